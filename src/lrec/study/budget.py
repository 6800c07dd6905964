"""What a study will take before it takes it: hours, memory and disk of each run, against a budget."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lrec.common.files import json_hash
from lrec.common.text_tables import counted
from lrec.errors import UserError
from lrec.model import cost, memory
from lrec.model.config import TransformerConfig
from lrec.run import Run, RunConfig
from lrec.study.devices import here
from lrec.study.grid import PlannedRun
from lrec.study.launch import Limits

if TYPE_CHECKING:
    from lrec.data.datasets import SequenceDataModule
    from lrec.data.splits.reduction import TrainingPart
    from lrec.model.losses import Loss

# FLOPs per second of a GPU where there is none to be measured, in bfloat16 products and in float32.
ASSUMED = {"bf16-mixed": 100e12, "bf16-true": 100e12, "32-true": 15e12}
# Evaluation, the optimizer and what a trainer does between steps, as a share of what is measured.
BESIDE_STEPS = 0.25
STARTING_S = 10
PROCESS_GIB = 1.0


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
    (`rate`), and ten seconds to start a run: early stopping makes them fewer. Without a GPU here, a rate is assumed.
    Memory is that of a step in the run's precision and strategy (`memory.of_step`) plus a gibibyte for each process; on
    a GPU the step's is the GPU's, and the machine holds a copy of parameters and moments while they are saved. Disk
    counts two checkpoints. Runs that are finished in `folder` cost what they took.
    """
    from lrec.data.datasets import datamodule_of
    from lrec.training.module import model_of

    opened: dict[str, SequenceDataModule] = {}
    measured = cache(_rate)
    costs = []
    for run in runs:
        key = json_hash(run.config.nested["data"] | {"seed": 0})
        if key not in opened:
            data = datamodule_of(run.options)
            data.prepare_data()
            data.setup("fit")
            opened[key] = data
        data = opened[key]
        model, place = model_of(run.options), limits.placement(run)
        config = model.network_config(data.n_items, data.max_len)
        positions = -(-run.config.value("data.targets_per_step") // (place.ranks * place.accumulation))
        of_epoch = _flops(config, model.loss, data.batch_plan.part, place.checkpointing)
        flops = of_epoch * _epochs(run.config, data.steps_per_epoch)
        training_s = (1 + BESIDE_STEPS) * flops / measured(config, model.loss, positions, place.precision, place.kind)
        hours = (STARTING_S * place.ranks + training_s) / 3600
        if Run(folder / run.name).result is not None:
            hours = spent_hours([run], folder, limits)
        step = memory.of_step(
            config, positions, place.precision, place.shards, place.checkpointing, place.kind, place.ranks
        )
        total = cost.n_total(config)
        of_process = step.total if place.kind == "cpu" else step.parameters + step.optimizer
        costs.append(
            Cost(
                run.name,
                cost.n_body(config),
                total,
                hours,
                place.devices * (PROCESS_GIB + of_process / 2**30),
                24 * total / 2**30,
                run.fraction,
                run.held_out,
                step.total / 2**30 if place.gpus else 0.0,
                place.gpus * place.nodes,
            )
        )
    return costs


def _flops(config: TransformerConfig, loss: "Loss", part: "TrainingPart", checkpointing: bool) -> int:
    """FLOPs of an epoch, all windows counted as full."""
    pairs = part.n_positions * (config.max_len + 1) // 2
    head_flops = loss.flops_per_target(config.n_items, config.width)
    flops = cost.training_flops(config, part.n_targets, pairs, head_flops, part.n_positions)
    if checkpointing:
        flops += part.n_positions * cost.flops_per_interaction(config, checkpointing=True).recomputed
    return flops


def _rate(config: TransformerConfig, loss: "Loss", positions: int, precision: memory.Precision, kind: str) -> float:
    if kind == "cuda" and not here():
        return ASSUMED[precision]
    from lrec.study.rate import training_rate

    return training_rate(config, loss, positions, precision, kind)


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
    lines = [
        f"{'run':<32}{'N_body':>12}{'N_total':>15}{'hours':>9}{'GiB':>7}{'disk GiB':>10}"
        + (f"{'GPUs':>6}{'GiB each':>10}" if on_gpus else "")
    ]
    for c in costs:
        of_gpus = f"{c.gpus or '':>6}{f'{c.gpu_gib:.1f}' if c.gpus else '':>10}" if on_gpus else ""
        lines.append(
            f"{c.run:<32}{c.n_body:>12,}{c.n_total:>15,}{c.hours:>9.3f}{c.memory_gib:>7.1f}{c.disk_gib:>10.2f}"
            + of_gpus
        )
    disk = sum(c.disk_gib for c in costs)
    at_once = sum(sorted((c.memory_gib for c in costs), reverse=True)[: limits.jobs])
    takes = []
    if on_gpus:
        takes.append(f"at most {sum(c.hours for c in on_gpus):.2f} GPU-hours")
    if len(on_gpus) < len(costs):
        hours = sum(c.hours for c in costs if not c.gpus)
        takes.append(
            f"at most {hours:.2f} hours of one core, {hours / limits.cores:.2f} on {counted(limits.cores, 'core')}"
        )
    takes += [f"{min(at_once, limits.memory_gib or at_once):.1f} GiB of memory", f"{disk:.2f} GiB of disk"]
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
