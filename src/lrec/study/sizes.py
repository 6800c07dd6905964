"""`lrec sizes`: parameters, FLOPs, memory and traffic of every size, on the terminal and as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lrec.common.files import write_json
from lrec.data.batching.plan import BatchPlan
from lrec.data.splits.reduction import Reduction, training_part
from lrec.data.splits.rules import LastItems
from lrec.data.store.store import Store
from lrec.errors import UserError, check_range
from lrec.model import cost, memory, traffic
from lrec.model.config import Architecture, Dropout, TransformerConfig
from lrec.model.network_sizes import SIZES, find_size


def sizes(
    sizes: list[str] | None = None,
    data: Path | None = None,
    items: int = 10_000,
    max_len: int = 50,
    targets_per_step: int = 4096,
    ranks: int = 1,
    shards: int | None = None,
    accumulation: int = 1,
    precision: memory.Precision = "32-true",
    checkpointing: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    architecture: Architecture = Architecture(),  # noqa: B008 (frozen)
    dropout: Dropout = Dropout(),  # noqa: B008 (frozen)
    out: Path | None = None,
) -> None:
    """Print parameters, FLOPs per interaction, and memory and traffic per rank of each size.

    Args:
        sizes: Entries of the ladder; all by default.
        data: A store (see lrec data prepare): its catalogue and the lengths of its training windows, after the split by
            last items. Without it items counts, and every window is full.
        items: Catalogue size where no data is given.
        max_len: Longest input, in items.
        targets_per_step: Targets of a global step, over all ranks and accumulated batches.
        ranks: Processes that share a step, one for each GPU.
        shards: Ranks that share the blocks' parameters, gradients and moments: all by default (FSDP), those of a node
            (hybrid), 1 for DDP. Where it is not 1, all ranks share the item table.
        accumulation: Micro-batches that a rank accumulates in a step.
        precision: Precision of training, as trainer.precision; bf16-mixed with shards is FSDP2's param_dtype bfloat16.
        checkpointing: Whether activations of the blocks are computed again in the backward pass.
        device: What trains; full softmax holds more logits at once on cuda.
        architecture: What a block is made of.
        dropout: Dropout rates; any but 0 needs memory for its masks.
        out: JSON file for the same figures, in bytes and FLOPs.
    """
    for name, value in {
        "items": items,
        "max_len": max_len,
        "targets_per_step": targets_per_step,
        "ranks": ranks,
        "accumulation": accumulation,
    }.items():
        check_range(f"--{name}", value, at_least=1)
    shards = ranks if shards is None else shards
    if shards < 1 or ranks % shards:
        raise UserError(f"--shards must divide --ranks {ranks}, got {shards}")
    names = list(SIZES) if sizes is None else sizes
    windows = _full_windows(items, max_len) if data is None else _windows_of(Store.open(data), max_len)
    positions = -(-targets_per_step // (ranks * accumulation))
    rows = []
    for name in names:
        config = TransformerConfig(windows.n_items, max_len, *find_size(name), dropout, architecture)
        flops = cost.flops_per_interaction(config, windows.pairs, checkpointing)
        peak = memory.of_step(config, positions, precision, shards, checkpointing, device, ranks)
        received = traffic.of_step(config, positions, precision, shards, ranks, accumulation)
        rows.append(
            {
                "size": name,
                "n_layers": config.layers,
                "d_model": config.width,
                "n_heads": config.heads,
                "parameters": cost.parameters(config)._asdict() | {"total": cost.n_total(config)},
                "flops_per_interaction": flops._asdict() | {"total": sum(flops)},
                "memory_bytes": peak._asdict() | {"total": peak.total},
                "step_of_a_rank": received._asdict()
                | {"received": received.total, "flops": sum(flops) * positions * accumulation},
            }
        )
    assumptions = asdict(windows) | {
        "max_len": max_len,
        "targets_per_step": targets_per_step,
        "ranks": ranks,
        "shards": shards,
        "accumulation": accumulation,
        "precision": precision,
        "checkpointing": checkpointing,
        "device": device,
        "architecture": asdict(architecture),
        "dropout": asdict(dropout),
    }
    if out is not None:
        write_json(out, {"assumptions": assumptions, "sizes": rows})
    print(
        f"{windows.n_items:,} items, windows of up to {max_len}, {windows.pairs:.1f} positions attended to on average\n"
        f"{positions:,} positions in a rank's micro-batch, {precision}, {shards} of {ranks} ranks share parameters"
        f"{', activations computed again' if checkpointing else ''}\n"
    )
    print(table(rows))
    if ranks > 1:
        print(f"\n{traffic_table(rows)}")


@dataclass(frozen=True)
class Windows:
    """What the data decide: items of the catalogue, and positions that one attends to on average, itself included."""

    n_items: int
    pairs: float


def _full_windows(n_items: int, max_len: int) -> Windows:
    return Windows(n_items, (max_len + 1) / 2)


def _windows_of(store: Store, max_len: int) -> Windows:
    split = LastItems()(store)
    part = training_part(split, Reduction())
    lengths_W = BatchPlan(part, max_len, targets_per_step=2 * max_len).epoch(seed=0, epoch=0).lengths_W
    return Windows(len(split.catalogue_V), float((lengths_W * (lengths_W + 1) / 2).sum() / lengths_W.sum()))


GROUPS = ("body", "items", "positions", "biases", "norms", "total")
PARTS = ("parameters", "gradients", "optimizer", "copies", "activations", "transient", "total")


def table(rows: list[dict[str, Any]]) -> str:
    """Two tables: parameters by group with FLOPs per interaction, and memory in MiB."""
    lines = [
        f"{'size':<6}{'L x d / heads':>16}" + "".join(f"{g:>15}" for g in GROUPS) + f"{'FLOPs':>11}{'backward':>11}"
    ]
    for row in rows:
        shape = f"{row['n_layers']} x {row['d_model']} / {row['n_heads']}"
        flops = row["flops_per_interaction"]
        counts = "".join(f"{row['parameters'][group]:>15,}" for group in GROUPS)
        lines.append(f"{row['size']:<6}{shape:>16}{counts}{flops['forward']:>11.2e}{flops['total']:>11.2e}")
    lines += ["", f"{'MiB':<6}" + "".join(f"{part:>13}" for part in PARTS)]
    for row in rows:
        lines.append(f"{row['size']:<6}" + "".join(f"{row['memory_bytes'][part] / 2**20:>13,.1f}" for part in PARTS))
    return "\n".join(lines)


def traffic_table(rows: list[dict[str, Any]]) -> str:
    """What a rank receives in a step, in MB, beside what it computes meanwhile."""
    titles = (*traffic.Traffic._fields, "received")
    lines = [f"{'MB a step':<11}" + "".join(f"{title:>13}" for title in titles) + f"{'TFLOP':>11}{'FLOP/B':>11}"]
    for row in rows:
        step = row["step_of_a_rank"]
        lines.append(
            f"{row['size']:<11}"
            + "".join(f"{step[title] / 1e6:>13,.1f}" for title in titles)
            + f"{step['flops'] / 1e12:>11,.2f}{step['flops'] / step['received']:>11,.0f}"
        )
    return "\n".join(lines)
