"""What a study will take before it takes it: hours, memory and disk of each run, against a budget."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lrec.common import hardware
from lrec.common.files import json_hash
from lrec.common.text_tables import counted
from lrec.errors import UserError
from lrec.model import cost, memory
from lrec.model.config import TransformerConfig
from lrec.run import Run, RunConfig
from lrec.study.grid import PlannedRun
from lrec.study.launch import Limits
from lrec.study.placement import here

if TYPE_CHECKING:
    from torch import Tensor

    from lrec.data.datamodule import SequenceDataModule
    from lrec.model.losses import Loss

# FLOPs per second of a GPU where there is none to be measured, in bfloat16 products and in float32.
ASSUMED = {"bf16-mixed": 100e12, "bf16-true": 100e12, "32-true": 15e12}
# Evaluation, the optimizer and what a trainer does between steps, as a share of what is measured.
BESIDE_STEPS = 0.25
STARTING_S = 10
PROCESS_GIB = 1.0

# A step to be measured within a fraction of a second.
BLOCKS = 2
MOST_ITEMS = 20_000
MOST_FLOPS = {"cpu": 5e9, "cuda": 1e13}
SECONDS = 0.2


@dataclass(frozen=True)
class Cost:
    """What a run takes, and what it is for.

    Attributes:
        hours: Of one core; of one GPU where it trains on GPUs.
        memory_gib: Of all its processes on a machine.
        gpu_gib: Of each GPU; 0 where it trains on CPUs.
        disk_gib: Of its checkpoints.
        gpus: GPUs, over all its machines.
    """

    run: str
    n_body: int
    n_total: int
    hours: float
    memory_gib: float
    disk_gib: float
    fraction: float = 1.0
    held_out: bool = False
    gpu_gib: float = 0.0
    gpus: int = 0


def plan(runs: list[PlannedRun], folder: Path, limits: Limits) -> list[Cost]:
    """The cost of each run. Prepares the data: the catalogue's size decides it.

    Hours are those of all epochs, of one core or one GPU, by a short step measured here in the run's own precision
    (`training_rate`), and ten seconds to start a run: early stopping makes them fewer. Memory is that of a step in the
    run's precision and strategy (`memory.of_step`) plus a gibibyte for each process. On a GPU the step's is the GPU's,
    and the machine holds a copy of parameters and moments while they are saved. Disk counts two checkpoints. Runs that
    are finished in `folder` cost what they took.
    """
    opened: dict[str, SequenceDataModule] = {}
    rate = cache(training_rate)
    costs = []
    for run in runs:
        if (key := json_hash(run.config.nested["data"] | {"seed": 0})) not in opened:
            opened[key] = run.open_data()
        data = opened[key]
        place = limits.placement(run)
        config, loss = run.network(data.n_items), run.model.loss
        positions = -(-run.config.value("data.targets_per_step") // (place.ranks * place.accumulation))
        step = memory.of_step(
            config, positions, place.precision, place.shards, place.checkpointing, place.kind, place.ranks
        )
        of_process = step.total if place.kind == "cpu" else step.parameters + step.optimizer
        if Run(folder / run.name).result is not None:
            hours = spent_hours([run], folder, limits)
        else:
            flops = _flops_of_epoch(config, loss, data, place.checkpointing) * _epochs(run.config, data.steps_per_epoch)
            training_s = (1 + BESIDE_STEPS) * flops / rate(config, loss, positions, place.precision, place.kind)
            hours = (STARTING_S * place.ranks + training_s) / 3600
        costs.append(
            Cost(
                run.name,
                cost.n_body(config),
                cost.n_total(config),
                hours,
                memory_gib=place.devices * (PROCESS_GIB + of_process / 2**30),
                disk_gib=24 * cost.n_total(config) / 2**30,
                fraction=run.fraction,
                held_out=run.held_out,
                gpu_gib=step.total / 2**30 if place.gpus else 0.0,
                gpus=place.gpus * place.nodes,
            )
        )
    return costs


def _flops_of_epoch(config: TransformerConfig, loss: "Loss", data: "SequenceDataModule", checkpointing: bool) -> int:
    """All windows counted as full."""
    part = data.batch_plan.part
    pairs = part.n_positions * (config.max_len + 1) // 2
    head_flops = loss.flops_per_target(config.n_items, config.width)
    flops = cost.training_flops(config, part.n_targets, pairs, head_flops, part.n_positions)
    if checkpointing:
        flops += part.n_positions * cost.flops_per_interaction(config, checkpointing=True).recomputed
    return flops


def training_rate(
    config: TransformerConfig, loss: "Loss", positions: int, precision: memory.Precision, kind: hardware.Kind = "cpu"
) -> float:
    """FLOPs per second of forward and backward: of one core, in processor time, so that other load counts little; or of
    one GPU, assumed where there is none here.

    Steps of a network of the same width and parts, of up to two blocks over a catalogue of up to 20,000 items, on
    `positions` of a micro-batch, or fewer where they would take long.
    Shape suffixes: B rows, L positions, M targets, D width, V catalogue.
    """
    if kind == "cuda" and not here():
        return ASSUMED[precision]
    import torch

    from lrec.common.cpu_threads import one_core
    from lrec.model.transformer import Transformer

    small = replace(config, layers=min(config.layers, BLOCKS), n_items=min(config.n_items, MOST_ITEMS))
    length = small.max_len
    head_flops = loss.flops_per_target(small.n_items, small.width)
    of_row = cost.training_flops(small, length, length * (length + 1) // 2, head_flops)
    rows = max(min(positions // length, int(MOST_FLOPS[kind] / of_row)), 1)
    device = torch.device(kind)
    with one_core(), torch.random.fork_rng(devices=[]):
        net = Transformer(small).to(device, torch.bfloat16 if precision == "bf16-true" else None)
        items_BL = torch.randint(0, small.n_items, (rows, length), device=device)
        targets_M = torch.randint(0, small.n_items, (rows * length,), device=device)
        times_BT = torch.zeros(rows, length + 1, dtype=torch.int64, device=device) if net.reads_times else None
        counts_V = torch.ones(small.n_items, dtype=torch.int64, device=device)

        def head(hidden_BLD: "Tensor", table_VD: "Tensor") -> "Tensor":
            return loss(hidden_BLD.flatten(0, 1), table_VD, targets_M, counts_V)

        def step() -> None:
            with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss_sum: Tensor = net(items_BL, head, times_BT=times_BT)
            loss_sum.backward()
            net.zero_grad()

        step()  # what is done once
        steps, began = 0, hardware.seconds(kind)
        while steps == 0 or hardware.seconds(kind) - began < SECONDS:
            step()
            steps += 1
        return steps * rows * of_row / (hardware.seconds(kind) - began)


def _epochs(config: RunConfig, steps_per_epoch: int) -> float:
    """The most epochs that a run may take; Lightning's own default is 1000."""
    steps, epochs = config.value("trainer.max_steps", -1), config.value("trainer.max_epochs")
    by_steps = steps / steps_per_epoch if steps >= 0 else float("inf")
    if epochs is None:
        epochs = 1000 if by_steps == float("inf") else float("inf")
    return float(min(by_steps, epochs if epochs >= 0 else float("inf")))


def plan_table(costs: list[Cost], limits: Limits) -> str:
    """The runs with their expected hours, memory and disk, and what all of them come to."""
    on_gpus = [c for c in costs if c.gpus]
    head = f"{'run':<32}{'N_body':>12}{'N_total':>15}{'hours':>9}{'GiB':>7}{'disk GiB':>10}"
    lines = [head + (f"{'GPUs':>6}{'GiB each':>10}" if on_gpus else "")]
    for c in costs:
        line = f"{c.run:<32}{c.n_body:>12,}{c.n_total:>15,}{c.hours:>9.3f}{c.memory_gib:>7.1f}{c.disk_gib:>10.2f}"
        of_gpus = f"{c.gpus or '':>6}{f'{c.gpu_gib:.1f}' if c.gpus else '':>10}" if on_gpus else ""
        lines.append(line + of_gpus)
    takes = [f"at most {sum(c.hours for c in on_gpus):.2f} GPU-hours"] if on_gpus else []
    if len(on_gpus) < len(costs):
        hours = sum(c.hours for c in costs if not c.gpus)
        cores = counted(limits.cores, "core")
        takes.append(f"at most {hours:.2f} hours of one core, {hours / limits.cores:.2f} on {cores}")
    at_once = sum(sorted((c.memory_gib for c in costs), reverse=True)[: limits.jobs])
    takes.append(f"{min(at_once, limits.memory_gib or at_once):.1f} GiB of memory")
    takes.append(f"{sum(c.disk_gib for c in costs):.2f} GiB of disk")
    lines.append(f"{counted(len(costs), 'run')}, {', '.join(takes)}")
    if on_gpus and not here():
        rates = f"{ASSUMED['bf16-mixed'] / 1e12:.0f} TFLOP/s in bfloat16, {ASSUMED['32-true'] / 1e12:.0f} in float32"
        lines.append(f"no GPU is here to be measured: hours at {rates}, which small steps do not reach")
    of_shares = [c.hours for c in costs if c.fraction < max(c.fraction for c in costs)]
    if of_shares and (held_out := [c.hours for c in costs if c.held_out]):
        lines.append(
            f"{len(of_shares)} of them with smaller shares of the data, {sum(of_shares):.2f} hours; the largest "
            f"held-out run alone may take {max(held_out):.2f}"
        )
    return "\n".join(lines)


def check(costs: list[Cost], memory_gib: float | None, hours: float | None, disk_gib: float | None) -> None:
    """Refuse a study that may take more than it is allowed; None allows anything."""
    largest = max(costs, key=lambda c: c.memory_gib)
    if memory_gib is not None and largest.memory_gib > memory_gib:
        raise UserError(f"--memory_gib {memory_gib:g}: run {largest.run} alone needs {largest.memory_gib:.1f} GiB")
    for option, allowed, needed in (
        ("budget_hours", hours, sum(c.hours for c in costs)),
        ("budget_disk_gib", disk_gib, sum(c.disk_gib for c in costs)),
    ):
        if allowed is not None and needed > allowed:
            raise UserError(
                f"--{option} {allowed:g}: the study may take {needed:.2f} (see --dry_run true); allow it, or train "
                "fewer or smaller sizes, fewer seeds or epochs"
            )


def spent_hours(runs: list[PlannedRun], folder: Path, limits: Limits) -> float:
    """Hours of a core, or of a GPU, that the runs have taken up to their last evaluation."""
    seconds = 0.0
    for run in runs:
        if points := Run(folder / run.name).points:
            place = limits.placement(run)
            seconds += points[-1].wall_s * (place.ranks if place.gpus else limits.threads)
    return seconds / 3600
