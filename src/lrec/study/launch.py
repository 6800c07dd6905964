"""Training the runs of a study: `lrec fit` as a subprocess for each, started at most once at a time."""

import fcntl
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from lrec.common.files import locked, write_text
from lrec.common.start_stop import TRY_AGAIN
from lrec.errors import UserError
from lrec.run import Point, Run
from lrec.study.devices import Placement, placement
from lrec.study.forked import Processes
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
        gpus: GPUs of all of them, as CUDA_VISIBLE_DEVICES names them; a run gets as many as it asks for (its
            trainer.devices), or an equal share.
    """

    jobs: int
    cores: int
    memory_gib: float | None = None
    retries: int = 0
    gpus: tuple[str, ...] = ()

    def placement(self, run: PlannedRun) -> Placement:
        """What a run trains on."""
        return placement(run.config, len(self.gpus) // self.jobs)

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


def train(
    runs: list[PlannedRun],
    folder: Path,
    study: str,
    limits: Limits,
    memory_gib: dict[str, float] | None = None,
    watch: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[PlannedRun, Outcome]]:
    """Train runs, in order, within the limits; yield each with what became of it.

    Runs that start from another one's network come after all others. A run waits until as many GPUs are free as it
    takes, and sees no others.

    Args:
        runs: The runs.
        folder: Where each has its folder.
        study: Name of the study.
        limits: What they may take side by side.
        memory_gib: What each is expected to need, by name; read only if the limits have one of memory.
        watch: Called every few seconds. Once it returns False, no further run starts, and those under way are told to
            save and stop.
    """
    memory = memory_gib or dict.fromkeys((run.name for run in runs), 0.0)
    limit = limits.memory_gib or float("inf")
    waiting = sorted(runs, key=lambda run: run.starts_from != "")
    running: dict[Future[Outcome], PlannedRun] = {}
    gpus_of = {run.name: _gpus(run, limits) for run in runs}
    free, given = list(limits.gpus), dict[str, list[str]]()
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
                    if gpus_of[waiting[0].name] > len(free):
                        break
                    run = waiting.pop(0)
                    given[run.name] = [free.pop(0) for _ in range(gpus_of[run.name])]
                    variables = {"CUDA_VISIBLE_DEVICES": ",".join(given[run.name])} if given[run.name] else {}
                    arguments = (run, folder / run.name, study, limits.threads, limits.retries, processes, variables)
                    running[pool.submit(train_one, *arguments)] = run
                done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    free += given.pop(running[future].name)
                    yield running.pop(future), future.result()
        except BaseException:
            processes.stop()
            raise


def _gpus(run: PlannedRun, limits: Limits) -> int:
    """GPUs of a run here; UserError where there are not so many, or it is to train on several machines."""
    place = limits.placement(run)
    if place.nodes > 1:
        raise UserError(f"run {run.name} trains on {place.nodes} nodes: --cluster starts it on all of them")
    if place.gpus > len(limits.gpus):
        raise UserError(f"run {run.name} takes {place.gpus} GPUs: --gpus has {len(limits.gpus)}")
    return place.gpus


def train_one(
    run: PlannedRun,
    folder: Path,
    study: str,
    threads: int,
    retries: int = 0,
    processes: Processes | None = None,
    variables: Mapping[str, str] | None = None,
) -> Outcome:
    """Train a run unless it is finished, again where it fails, up to `retries` times.

    A run that another process trains is waited for: it inherits the lock, and may outlive its killed study.
    """
    processes = processes or Processes()
    with locked(lock_of(folder)) as lock:
        return _retried(lambda: _attempt(run, folder, study, threads, lock, processes, variables), retries)


def help_train(
    node: int,
    run: PlannedRun,
    folder: Path,
    study: str,
    threads: int,
    retries: int,
    variables: Mapping[str, str],
) -> Outcome:
    """Be one of the further nodes of a run, whose first one is in `train_one`: it alone writes to the run's folder."""
    own = folder.with_name(f".{folder.name}.node{node}")
    processes = Processes()
    with locked(lock_of(own)) as lock:
        config, log = own.with_suffix(f"{own.suffix}.yaml"), own.with_suffix(f"{own.suffix}.log")
        write_text(config, yaml.safe_dump(run.config.options))
        fit = ["lrec", "fit", *_options(run, Run(folder), study, config)]

        def attempt() -> Outcome:
            code = processes.run(fit, log, threads, lock, variables)
            return _unfinished(log, code) if code else Outcome("finished")

        return _retried(attempt, retries)


def _retried(attempt: Callable[[], Outcome], retries: int) -> Outcome:
    """What became of the first attempt that did not fail, or of the last."""
    outcome = attempt()
    for _ in range(retries):
        if outcome.status != "failed":
            break
        outcome = attempt()
    return outcome


def _attempt(
    run: PlannedRun,
    folder: Path,
    study: str,
    threads: int,
    lock: int,
    processes: Processes,
    variables: Mapping[str, str] | None,
) -> Outcome:
    trained, code = Run(folder), 0
    if trained.result is None:
        fit = ["lrec", "fit", *_arguments(run, trained, study)]
        code = processes.run(fit, trained.log_file, threads, lock, variables)
    if trained.result is not None and outcome_of(trained) is None:  # several processes, or killed in between
        losses = ["lrec.training.target_losses", str(folder)]
        code = processes.run(losses, trained.log_file, threads, lock, variables)
    if outcome := outcome_of(trained):
        return outcome
    return Outcome("stopped") if processes.stopping else _unfinished(trained.log_file, code)


def _unfinished(log: Path, code: int) -> Outcome:
    """What became of a run whose process ended with that exit code before its end: the reason is the signal that ended
    it, else the last line of its log."""
    if code in (TRY_AGAIN, -signal.SIGTERM):
        return Outcome("stopped")
    if code < 0:
        hint = ", as where memory runs out" if code == -signal.SIGKILL else ""
        reason = f"ended by {signal.Signals(-code).name}{hint}"
    else:
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
        reason = last[0].removeprefix("lrec: error: ")
    return Outcome("failed", reason=f"{reason} (see {log})")


def _arguments(run: PlannedRun, trained: Run, study: str) -> list[str]:
    """Those of the run's `lrec fit`, its folder made ready."""
    # Resuming is exact: what a killed study left unfinished resumes from its last checkpoint, or starts again.
    if not trained.last.exists():
        shutil.rmtree(trained.folder, ignore_errors=True)
    trained.write_config(run.config)
    return _options(run, trained, study, trained.config_file)


def _options(run: PlannedRun, trained: Run, study: str, config: Path) -> list[str]:
    arguments = [f"--config={config}", f"--trainer.default_root_dir={trained.folder}", "--ckpt_path=last"]
    arguments += [f"--points.study={study}", f"--points.run={run.name}"]
    return arguments + ([f"--model.warm_start={trained.folder.with_name(run.starts_from)}"] if run.starts_from else [])
