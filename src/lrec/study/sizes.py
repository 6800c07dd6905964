"""`lrec sizes`: parameters, FLOPs, memory and traffic of every size, on the terminal and as JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lrec.common.files import check_writable, write_json
from lrec.common.pages import rendered
from lrec.data.splits.reduction import Reduction, training_part
from lrec.data.splits.rules import LastItems
from lrec.data.store.store import Store
from lrec.errors import UserError, check_range
from lrec.model import cost, memory
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
        sizes: Names of sizes, or shapes such as 2x96; all named sizes by default.
        data: A store (see lrec data prepare). Its catalogue and the lengths of its training windows are used, after a
            leave-one-out split. Without it, the catalogue has `items` items, and every window is full.
        items: Number of items in the catalogue, if there is no data.
        max_len: Longest input, in items.
        targets_per_step: Targets of a step, over all ranks and accumulated micro-batches.
        ranks: Number of processes that share a step, one for each GPU.
        shards: Number of ranks that share the blocks' parameters, gradients and moments: all by default (FSDP), the
            ranks of a node (hybrid), or 1 (DDP). If it is not 1, all ranks share the item table.
        accumulation: Number of micro-batches that a rank accumulates in a step.
        precision: As in trainer.precision; bf16-mixed with shards is FSDP2's param_dtype bfloat16.
        checkpointing: Whether the backward pass computes the activations of the blocks again.
        device: Device that trains; full softmax holds more logits at once on cuda.
        architecture: Parts of a block.
        dropout: Dropout rates; a rate above 0 needs memory for its masks.
        out: JSON file for the same figures, in bytes and FLOPs.
    """
    counts = {"max_len": max_len, "targets_per_step": targets_per_step, "ranks": ranks}
    for name, value in (counts | {"items": items, "accumulation": accumulation}).items():
        check_range(f"--{name}", value, at_least=1)
    shards = ranks if shards is None else shards
    if shards < 1 or ranks % shards:
        raise UserError(f"--shards must divide --ranks {ranks}, got {shards}")
    n_items, pairs = (items, (max_len + 1) / 2) if data is None else _of_store(data, max_len)
    positions = -(-targets_per_step // (ranks * accumulation))
    rows = []
    for name in list(SIZES) if sizes is None else sizes:
        config = TransformerConfig(n_items, max_len, *find_size(name), dropout, architecture)
        flops = cost.flops_per_interaction(config, pairs, checkpointing)
        peak = memory.of_step(config, positions, precision, shards, checkpointing, device, ranks)
        received = cost.traffic(config, positions, precision, shards, ranks, accumulation)
        of_step = {"received": sum(received), "flops": sum(flops) * positions * accumulation}
        shape = {"size": name, "n_layers": config.layers, "d_model": config.width, "n_heads": config.heads}
        figures = {
            "parameters": cost.parameters(config)._asdict() | {"total": cost.n_total(config)},
            "flops_per_interaction": flops._asdict() | {"total": sum(flops)},
            "memory_bytes": peak._asdict() | {"total": peak.total},
            "step_of_a_rank": received._asdict() | of_step,
        }
        rows.append(shape | figures)
    assumptions: dict[str, Any] = {"n_items": n_items, "pairs": pairs, **counts, "shards": shards}
    assumptions |= {"accumulation": accumulation, "precision": precision, "checkpointing": checkpointing}
    assumptions |= {"device": device, "architecture": asdict(architecture), "dropout": asdict(dropout)}
    if out is not None:
        check_writable(out, "--out")
        write_json(out, {"assumptions": assumptions, "sizes": rows})
    print(rendered("study", "sizes.txt.j2", assumptions | {"positions": positions, "rows": rows}), end="")


def _of_store(path: Path, max_len: int) -> tuple[int, float]:
    """The catalogue size of a store, and the mean number of positions that a position attends to, itself included."""
    from lrec.data.batching.train_batches import BatchPlan  # imports torch

    split = LastItems()(Store.open(path))
    part = training_part(split, Reduction())
    lengths_W = BatchPlan(part, max_len, targets_per_step=2 * max_len).epoch(seed=0, epoch=0).lengths_W
    return len(split.catalogue_V), float((lengths_W * (lengths_W + 1) / 2).sum() / lengths_W.sum())
