"""Training the runs of a study: `lrec fit` as a subprocess for each, started at most once at a time."""

import fcntl
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import forkserver, reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from lrec.files import locked
from lrec.run import Point, Run
from lrec.signals import TRY_AGAIN
from lrec.study.grid import PlannedRun

POLL_S = 2.0


class Outcome(NamedTuple):
    """What became of a run: finished, diverged, stopped (to be resumed), or failed, with the reason."""

    status: str
    point: Point | None = None
    reason: str = ""


@dataclass(frozen=True)
class Limits:
    """What runs side by side may take.

    Attributes:
        jobs: Number of runs.
        cores: Cores of all of them, in equal shares.
        memory_gib: Memory of all of them as the plan has it; none for no limit.
        retries: How often a run that fails is started again by itself.
    """

    jobs: int
    cores: int
    memory_gib: float | None = None
    retries: int = 0

    @property
    def threads(self) -> int:
        """Cores of one run."""
        return max(self.cores // self.jobs, 1)


def outcome_of(run: Run) -> Outcome | None:
    """What became of a run; None while it is to be trained or its losses by target are to be measured."""
    point = run.result
    if point is None:
        return None
    # Without its checkpoint, as where its points alone were kept, it is what it is.
    measured = point.test_loss_se is not None or point.diverged or not run.best.exists()
    return Outcome(point.status, point) if measured else None


def is_running(folder: Path) -> bool:
    """Whether a process, of whatever study, trains the run in `folder` now."""
    try:
        with lock_of(folder).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def lock_of(folder: Path) -> Path:
    """The file that whoever trains the run in `folder` holds."""
    return folder.with_name(f".{folder.name}.lock")


def start_server() -> None:
    """Start what runs are forked from, unless it is there; it imports while this process does something else."""
    multiprocessing.set_forkserver_preload(["lrec.study.server"])
    forkserver.ensure_running()


class Processes:
    """The processes under way, so that all can be told to save and stop; once that is said, none is started.

    They are forked from a server that has imported Lightning once, which takes seconds, and has done nothing else: what
    ends one of them leaves the others alone.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._under_way: list[BaseProcess] = []

    def run(self, arguments: list[str], log: Path, threads: int, lock: int) -> int:
        """Run `python -m` with arguments, inheriting the lock, to the end; returns its exit code."""
        if self.stopping:
            return -signal.SIGTERM
        # A run starts the processes of its devices itself: it is not to take a scheduler's job for its own.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment |= {"OMP_NUM_THREADS": str(threads)}
        start_server()
        process = multiprocessing.get_context("forkserver").Process(
            target=_run_module, args=(arguments, log, environment, _Descriptor(lock))
        )
        process.start()
        self._under_way.append(process)
        process.join()
        self._under_way.remove(process)
        assert process.exitcode is not None
        return process.exitcode

    def stop(self) -> None:
        """Tell all to stop."""
        self.stopping = True
        for process in list(self._under_way):
            process.terminate()


def _run_module(arguments: list[str], log: Path, environment: dict[str, str], lock: "_Descriptor") -> None:
    """What `python -m` does with arguments, in a forked process; the lock is held while it lives."""
    import torch

    with log.open("a") as out:
        os.dup2(out.fileno(), sys.stdout.fileno())
        os.dup2(out.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ |= environment
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


class _Descriptor:
    """An open file that a forked process inherits."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherited, (reduction.DupFd(self.number),)


def _inherited(handed: Any) -> _Descriptor:
    return _Descriptor(handed.detach())


def train(
    runs: list[PlannedRun],
    folder: Path,
    study: str,
    limits: Limits,
    memory_gib: dict[str, float] | None = None,
    watch: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[PlannedRun, Outcome]]:
    """Train runs, in order, within the limits; yield each with what became of it.

    Runs that start from another one's network come after all others.

    Args:
        runs: The runs.
        folder: Where each has its folder.
        study: Name of the study.
        limits: What they may take side by side.
        memory_gib: What each is expected to need; only where the limits say something of memory.
        watch: Called every few seconds; once it says False no run is started, and those under way are told to save
            and stop.
    """
    memory = memory_gib or dict.fromkeys((run.name for run in runs), 0.0)
    limit = limits.memory_gib or float("inf")
    waiting = sorted(runs, key=lambda run: run.starts_from != "")
    running: dict[Future[Outcome], PlannedRun] = {}
    processes = Processes()
    with ThreadPoolExecutor(max_workers=limits.jobs) as pool:
        try:
            while waiting or running:
                if not watch():
                    waiting.clear()
                    processes.stop()
                while waiting and len(running) < limits.jobs:
                    taken = sum(memory[run.name] for run in running.values())
                    source_runs = waiting[0].starts_from in (run.name for run in running.values())
                    if source_runs or (running and taken + memory[waiting[0].name] > limit):
                        break
                    run = waiting.pop(0)
                    arguments = (run, folder / run.name, study, limits.threads, limits.retries, processes)
                    running[pool.submit(train_one, *arguments)] = run
                done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        except BaseException:
            processes.stop()
            raise


def train_one(
    run: PlannedRun, folder: Path, study: str, threads: int, retries: int = 0, processes: Processes | None = None
) -> Outcome:
    """Train a run unless it is finished, again where it fails, up to `retries` times.

    A run that another process trains is waited for: it inherits the lock, and may outlive its killed study.
    """
    processes = processes or Processes()
    with locked(lock_of(folder)) as lock:
        for _ in range(retries + 1):
            outcome = _attempt(run, folder, study, threads, lock, processes)
            if outcome.status != "failed":
                break
        return outcome


def _attempt(run: PlannedRun, folder: Path, study: str, threads: int, lock: int, processes: Processes) -> Outcome:
    trained, code = Run(folder), 0
    if trained.result is None:
        code = processes.run(["lrec", "fit", *_arguments(run, trained, study)], trained.log_file, threads, lock)
    if trained.result is not None and outcome_of(trained) is None:  # several processes, or killed in between
        code = processes.run(["lrec.target_losses", str(folder)], trained.log_file, threads, lock)
    if outcome := outcome_of(trained):
        return outcome
    if processes.stopping or code in (TRY_AGAIN, -signal.SIGTERM):
        return Outcome("stopped")
    return Outcome("failed", reason=f"{_reason(trained, code)} (see {trained.log_file})")


def _reason(trained: Run, code: int) -> str:
    """Why a run failed: the signal that ended it, else the last line of its log."""
    if code < 0:
        hint = ", as where memory runs out" if code == -signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{hint}"
    last = trained.log_file.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
    return last[0].removeprefix("lrec: error: ")


def _arguments(run: PlannedRun, trained: Run, study: str) -> list[str]:
    """Those of the run's `lrec fit`, its folder made ready."""
    # Resuming is exact: what a killed study left unfinished resumes from its last checkpoint, or starts again.
    resumed = trained.last.exists()
    if not resumed:
        shutil.rmtree(trained.folder, ignore_errors=True)
    trained.write_config(run.config)
    arguments = [f"--config={trained.config_file}", f"--trainer.default_root_dir={trained.folder}"]
    arguments += [f"--points.study={study}", f"--points.run={run.name}"]
    arguments += [f"--model.warm_start={trained.folder.with_name(run.starts_from)}"] if run.starts_from else []
    arguments += ["--ckpt_path=last"] if resumed else []
    return arguments
