"""What a study will take before it takes it: hours, memory and disk of each run, against a budget."""

import time
from dataclasses import dataclass
from pathlib import Path

from lrec import cost
from lrec.errors import UserError
from lrec.files import json_hash
from lrec.run import Run, RunConfig
from lrec.study.grid import PlannedRun
from lrec.study.launch import Limits
from lrec.wording import counted


@dataclass(frozen=True)
class Cost:
    """What a run takes: hours of one core, GiB of memory and GiB of disk; and what it is for."""

    run: str
    n_body: int
    n_total: int
    hours: float
    memory_gib: float
    disk_gib: float
    fraction: float = 1.0
    held_out: bool = False


def plan(runs: list[PlannedRun], folder: Path, threads: int) -> list[Cost]:
    """The cost of each run. Prepares the data: the catalogue's size decides it.

    Hours are those of one core and of all epochs, at a third of its rate of float32 matrix products, and ten seconds to
    start a run: early stopping makes them fewer. Memory is that of a float32 step on one process (`cost.memory`) plus a
    gibibyte for the process; disk counts two checkpoints. Runs that are finished in `folder` cost what they took.
    """
    from lrec.data.datasets import datamodule_of

    rate = _matmul_rate()
    opened: dict[str, tuple[int, int, int]] = {}
    costs = []
    for run in runs:
        key = json_hash(run.config.data | {"seed": 0})
        if key not in opened:
            data = datamodule_of(run.options)
            data.prepare_data()
            data.setup("fit")
            opened[key] = data.n_items, data.U, data.steps_per_epoch
        n_items, unique, steps = opened[key]
        config = run.network(n_items)
        targets = unique * _epochs(run.config, steps)
        hours = (10 + 3 * targets * sum(cost.flops_per_interaction(config)) / rate) / 3600
        if Run(folder / run.name).result is not None:
            hours = spent_hours([run], folder, threads)
        step = cost.memory(config, positions=run.config.value("data.targets_per_step"))
        total = cost.n_total(config)
        memory_gib, disk_gib = 1 + step.total / 2**30, 24 * total / 2**30
        takes = Cost(run.name, cost.n_body(config), total, hours, memory_gib, disk_gib, run.fraction, run.held_out)
        costs.append(takes)
    return costs


def _epochs(config: RunConfig, steps_per_epoch: int) -> float:
    """The most epochs that a run may take; Lightning's own default is 1000."""
    steps, epochs = config.value("trainer.max_steps", -1), config.value("trainer.max_epochs")
    by_steps = steps / steps_per_epoch if steps >= 0 else float("inf")
    if epochs is None:
        epochs = 1000 if by_steps == float("inf") else float("inf")
    return float(min(by_steps, epochs if epochs >= 0 else float("inf")))


def plan_table(costs: list[Cost], limits: Limits) -> str:
    """The runs with their expected hours, memory and disk, and what all of them come to."""
    lines = [f"{'run':<32}{'N_body':>12}{'N_total':>12}{'hours':>9}{'GiB':>7}{'disk GiB':>10}"]
    for c in costs:
        lines.append(
            f"{c.run:<32}{c.n_body:>12,}{c.n_total:>12,}{c.hours:>9.3f}{c.memory_gib:>7.1f}{c.disk_gib:>10.2f}"
        )
    hours, disk = sum(c.hours for c in costs), sum(c.disk_gib for c in costs)
    at_once = sum(sorted((c.memory_gib for c in costs), reverse=True)[: limits.jobs])
    lines.append(
        f"{counted(len(costs), 'run')}, at most {hours:.2f} hours of one core, {hours / limits.cores:.2f} on "
        f"{counted(limits.cores, 'core')}, {min(at_once, limits.memory_gib or at_once):.1f} GiB of memory, "
        f"{disk:.2f} GiB of disk"
    )
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


def spent_hours(runs: list[PlannedRun], folder: Path, threads: int) -> float:
    """Hours of a core that the runs have taken up to their last evaluation."""
    last = [points[-1].wall_s for run in runs if (points := Run(folder / run.name).points)]
    return sum(last) * threads / 3600


def _matmul_rate() -> float:
    """Float32 FLOPs per second of one core's matrix products, measured in processor time: other load counts little."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.ones(1024, 1024)
    a @ a
    started = time.process_time()
    for _ in range(5):
        a @ a
    seconds = time.process_time() - started
    torch.set_num_threads(threads)
    return 5 * 2 * 1024**3 / seconds
