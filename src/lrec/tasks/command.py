"""`lrec tasks`: trained runs in; tasks.json, tasks.md and a figure per task out."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lrec.errors import UserError
from lrec.processes import leads, processes
from lrec.run import find_runs
from lrec.tasks.assessment import TaskResult
from lrec.tasks.cold_start import cold_start
from lrec.tasks.ladder import Data, Ladder, ladder_of, load_run
from lrec.tasks.long_tail import long_tail
from lrec.tasks.report import Report
from lrec.tasks.robustness import robustness
from lrec.tasks.trajectory import trajectory
from lrec.tasks.transfer import transfer

TASKS: dict[str, Callable[[Ladder, int], TaskResult]] = {
    "cold_start": cold_start,
    "long_tail": long_tail,
    "robustness": robustness,
    "transfer": transfer,
    "trajectory": trajectory,
}


def tasks_command(runs: list[Path], tasks: str = "all", out: Path = Path("tasks"), seed: int = 0) -> None:
    """Put trained runs of one or many sizes to the five tasks; torchrun's processes share the work.

    Args:
        runs: Runs of lrec fit, or folders of them such as a study's runs; all on the same data.
        tasks: Names with commas between them: cold_start, long_tail, robustness, transfer, trajectory; or all.
        out: Folder for tasks.json, tasks.md and the figures.
        seed: Of corruption and of the resamples behind the intervals.
    """
    with processes():
        report = run_tasks(runs, tasks.split(","), seed)
        if leads():
            report.write(out)
            print(f"{report.summary()}\n\n{out / 'tasks.md'}")


def run_tasks(runs: Sequence[Path], tasks: Sequence[str] = ("all",), seed: int = 0) -> Report:
    """Put trained runs to tasks; they may have been trained on any number of processes.

    Args:
        runs: Folders of runs, or folders that hold some.
        tasks: Their names; all for all.
        seed: Of corruption and resampling.

    Raises:
        UserError: an unknown task; no run; runs that cannot be compared.
    """
    chosen = _chosen(tasks)
    if seed < 0:
        raise UserError(f"--seed must be at least 0, not {seed}")
    found = find_runs(runs)
    finite = [run for run in found if not run.diverged]
    if not finite:
        raise UserError("--runs: every run diverged")
    data = Data()
    ladder = ladder_of([load_run(run, data) for run in finite], data)
    report = Report(ladder, [run.folder for run in found if run not in finite], seed)
    for name in chosen:
        started = time.monotonic()
        report.results.append(TASKS[name](ladder, seed))
        if leads():
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return report


def _chosen(tasks: Sequence[str]) -> list[str]:
    """The tasks named, each once, in their own order."""
    names = {name.strip() for name in tasks}
    if unknown := sorted(names - {"all", *TASKS}):
        raise UserError(f"--tasks {unknown[0]}: choose among {', '.join(TASKS)}, or all")
    return [name for name in TASKS if name in names or "all" in names]
