"""The runs of a study: what each trains, and `lrec fit` as a subprocess for each, started at most once at a time."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lrec.files import locked, write_text
from lrec.shape import Architecture, Dropout, OverDepth, TransformerConfig, find_size
from lrec.signals import TRY_AGAIN

POLL_S = 5.0


@dataclass(frozen=True)
class Run:
    """One training of the grid.

    Attributes:
        name: Unique in the study; the name of its folder.
        variant: Which of the study's variants it is; "" where there is one only.
        ladder: The runs that one law is for share it: what sets them apart from others, but for size and seed.
        held_out: Whether its loss is predicted before it is trained.
        options: The whole configuration of its `lrec fit`, but for where it writes.
        starts_from: Name of the run whose best network it starts from; "" where it starts anew.
    """

    name: str
    size: str
    seed: int
    fraction: float
    variant: str
    ladder: str
    held_out: bool
    options: dict[str, Any]
    starts_from: str = ""

    def net_config(self, n_items: int) -> TransformerConfig:
        """The shape of the net it trains on a catalogue of `n_items`, without muP, which costs nothing."""
        model, max_len = self.options["model"], self.options["data"]["init_args"]["max_len"]
        rates = model["dropout"]
        dropout = Dropout(rates["embedding"], OverDepth(**rates["attention"]), OverDepth(**rates["residual"]))
        return TransformerConfig(
            n_items, max_len, *find_size(self.size), dropout, Architecture(**model["architecture"])
        )


class Outcome(NamedTuple):
    """What became of a run: finished, diverged, failed (with the last line of its log) or stopped (to go on later)."""

    status: str
    point: dict[str, Any] | None = None
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


def points_of(folder: Path) -> list[dict[str, Any]]:
    """The evaluations so far of the run in `folder`."""
    path = folder / "points.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def finished_point(folder: Path) -> dict[str, Any] | None:
    """What the run in `folder` came to: its best and tested point, the last one if it diverged, None if unfinished."""
    points = points_of(folder)
    if points and points[-1]["status"] == "diverged":
        return points[-1]
    return next((point for point in points if point["best"]), None)


def outcome_of(folder: Path) -> Outcome | None:
    """What the run in `folder` came to; None while it is to be trained or its losses by target are to be measured."""
    point = finished_point(folder)
    if point is None:
        return None
    # Without its checkpoint, as where its points alone were kept, it is what it is.
    measured = (
        "test_loss_se" in point or point["status"] == "diverged" or not (folder / "checkpoints" / "best.ckpt").exists()
    )
    return Outcome(point["status"], point) if measured else None


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


class Processes:
    """The processes under way, so that all can be told to save and stop; once that is said, none is started."""

    def __init__(self) -> None:
        self.stopping = False
        self._under_way: list[subprocess.Popen[bytes]] = []

    def run(self, arguments: list[str], log: Path, threads: int, lock: int) -> int:
        """Run `python -m` with arguments, inheriting the lock, to the end; returns its exit code."""
        if self.stopping:
            return -signal.SIGTERM
        # A run starts the processes of its devices itself: it is not to take a scheduler's job for its own.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        with log.open("a") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment | {"OMP_NUM_THREADS": str(threads)},
                pass_fds=[lock],
            )
            self._under_way.append(process)
            code = process.wait()
            self._under_way.remove(process)
        return code

    def stop(self) -> None:
        """Tell all to stop."""
        self.stopping = True
        for process in list(self._under_way):
            process.terminate()


def train(
    runs: list[Run],
    folder: Path,
    study: str,
    limits: Limits,
    memory_gib: dict[str, float] | None = None,
    watch: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[Run, Outcome]]:
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
    running: dict[Future[Outcome], Run] = {}
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
    run: Run, folder: Path, study: str, threads: int, retries: int = 0, processes: Processes | None = None
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


def _attempt(run: Run, folder: Path, study: str, threads: int, lock: int, processes: Processes) -> Outcome:
    log, code = folder / "log.txt", 0
    if finished_point(folder) is None:
        code = processes.run(["lrec", "fit", *_arguments(run, folder, study)], log, threads, lock)
    if finished_point(folder) is not None and outcome_of(folder) is None:  # several processes, or killed in between
        code = processes.run(["lrec.target_losses", str(folder)], log, threads, lock)
    if outcome := outcome_of(folder):
        return outcome
    if processes.stopping or code in (TRY_AGAIN, -signal.SIGTERM):
        return Outcome("stopped")
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
    return Outcome("failed", reason=f"{last[0].removeprefix('lrec: error: ')} (see {log})")


def _arguments(run: Run, folder: Path, study: str) -> list[str]:
    """Those of the run's `lrec fit`, its folder made ready."""
    # Resuming is exact: what a killed study left half-done goes on from its last checkpoint, or starts again.
    resumed = (folder / "checkpoints" / "last.ckpt").exists()
    if not resumed:
        shutil.rmtree(folder, ignore_errors=True)
    write_text(folder / "config.yaml", yaml.safe_dump(run.options, sort_keys=False))
    arguments = [f"--config={folder / 'config.yaml'}", f"--trainer.default_root_dir={folder}"]
    arguments += [f"--points.study={study}", f"--points.run={run.name}"]
    arguments += [f"--model.warm_start={folder.with_name(run.starts_from)}"] if run.starts_from else []
    arguments += ["--ckpt_path=last"] if resumed else []
    return arguments
