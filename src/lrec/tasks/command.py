"""`lrec tasks`: test trained runs; write tasks.json, tasks.md and a figure per task."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lrec.common.files import check_folder
from lrec.errors import UserError, check_range
from lrec.evaluation.shared_scoring import leads, processes
from lrec.options.class_paths import imported
from lrec.run import find_runs
from lrec.tasks.cold_start import cold_start
from lrec.tasks.long_tail import long_tail
from lrec.tasks.report import Report
from lrec.tasks.results import TaskResult
from lrec.tasks.robustness import robustness
from lrec.tasks.trained_runs import Data, Ladder, ladder_of, load_run
from lrec.tasks.trajectory import trajectory
from lrec.tasks.transfer import transfer

# A function of the runs by size, and of the seed for all random draws. Every process calls it with the same arguments.
Task = Callable[[Ladder, int], TaskResult]

TASKS: dict[str, Task] = {task.__name__: task for task in (cold_start, long_tail, robustness, transfer, trajectory)}


def tasks_command(
    runs: list[Path],
    tasks: str = "all",
    out: Path = Path("tasks"),
    users: int | None = None,
    seed: int = 0,
    trust: bool = False,
) -> None:
    """Test trained runs of one or several sizes on the five tasks; torchrun's processes share the work.

    Args:
        runs: Runs of lrec fit, or folders with such runs, for example a study's runs; all on the same data.
        tasks: Names separated by commas: cold_start, long_tail, robustness, transfer, trajectory, or all; and functions
            of your own, such as my_task.repeat_consumption in my_task.py.
        out: Folder for tasks.json, tasks.md and the figures.
        users: Largest number of users to test on, drawn by the seed, and of held-out users; null for all.
        seed: Seed for the choice of users, the corruption, and the resamples for the intervals.
        trust: Import classes that the runs name and that are not lrec's own.
    """
    check_folder(out, "--out")
    with processes():
        report = run_tasks(runs, tasks.split(","), seed, trust, users)
        if leads():
            report.write(out)
            print(f"{report.summary()}\n\n{out / 'tasks.md'}")


def run_tasks(
    runs: Sequence[Path], tasks: Sequence[str] = ("all",), seed: int = 0, trust: bool = False, users: int | None = None
) -> Report:
    """Test trained runs on tasks, with the options of `lrec tasks`; returns the report without writing it.

    Raises:
        UserError: A task is unknown or returns no TaskResult; there is no run; the runs cannot be compared.
    """
    chosen = _chosen(tasks)
    check_range("--seed", seed, at_least=0)
    check_range("--users", users, at_least=1)
    found = find_runs(runs)
    finite = [run for run in found if not run.diverged]
    if not finite:
        raise UserError("--runs: every run diverged")
    data = Data(trust)
    ladder = ladder_of([load_run(run, data) for run in finite], data, users, seed)
    report = Report(ladder, [run.folder for run in found if run not in finite], seed)
    for name, task in chosen.items():
        started = time.monotonic()
        result = task(ladder, seed)
        if not isinstance(result, TaskResult):
            raise UserError(f"--tasks {name} returned {type(result).__name__}, not a TaskResult")
        if result.name in (other.name for other in report.results):
            raise UserError(f"--tasks {name}: its result is named {result.name}, and so is the result of another task")
        report.results.append(result)
        if leads():
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return report


def _chosen(tasks: Sequence[str]) -> dict[str, Task]:
    """The named tasks, each once: first lrec's tasks in their own order, then the tasks of other modules."""
    names = dict.fromkeys(name.strip() for name in tasks)
    own: dict[str, Task] = {name: imported(name, "--tasks") for name in names if "." in name}
    if unknown := sorted(set(names) - {"all", *TASKS, *own}):
        raise UserError(
            f"--tasks {unknown[0]}: choose among {', '.join(TASKS)}, or all; one of your own is FILE.FUNCTION"
        )
    for name, task in own.items():
        if not callable(task) or isinstance(task, type):
            kind = "a class" if isinstance(task, type) else type(task).__name__
            raise UserError(f"--tasks {name} is {kind}, not a function of the runs and a seed")
    return {name: task for name, task in TASKS.items() if name in names or "all" in names} | own
