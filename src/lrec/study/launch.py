"""Training the runs of a study: `lrec fit` as a subprocess for each, started at most once at a time."""

import fcntl
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml

from lrec.common.files import locked, write_text
from lrec.common.start_stop import TRY_AGAIN
from lrec.errors import UserError
from lrec.run import Point, Run
from lrec.study.grid import PlannedRun
from lrec.study.placement import Placement, placement
from lrec.study.processes import Processes

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
    carry_out: "Callable[[Training], Outcome] | None" = None,
) -> Iterator[tuple[PlannedRun, Outcome]]:
    """Train runs, in order, within the limits; yield each with what became of it.

    Runs that start from another one's network come after all others. A run waits until as many GPUs are free as it
    takes, and sees no others; and for memory, of which `memory_gib` says what each is expected to need. `watch` is
    called every few seconds: once it returns False, none starts, and those under way save and stop. `carry_out` trains
    one of them; by default a process here does.
    """
    memory = memory_gib or dict.fromkeys((run.name for run in runs), 0.0)
    waiting = sorted(runs, key=lambda run: run.starts_from != "")
    gpus_of = {run.name: _gpus(run, limits) for run in runs}
    free, processes = list(limits.gpus), Processes()
    running: dict[Future[Outcome], Training] = {}

    def may_start(run: PlannedRun) -> bool:
        others = [training.run.name for training in running.values()]
        needed = memory[run.name] + sum(memory[name] for name in others)
        fits = not others or needed <= (limits.memory_gib or float("inf"))
        return len(others) < limits.jobs and run.starts_from not in others and fits and gpus_of[run.name] <= len(free)

    with ThreadPoolExecutor(max_workers=limits.jobs) as pool:
        try:
            while waiting or running:
                if not watch():
                    waiting.clear()
                    processes.stop()
                while waiting and may_start(waiting[0]):
                    run = waiting.pop(0)
                    gpus = tuple(free.pop(0) for _ in range(gpus_of[run.name]))
                    place = (folder / run.name, study, limits.threads, limits.retries)
                    training = Training(run, *place, gpus=gpus, processes=processes)
                    running[pool.submit(carry_out or Training.carry_out, training)] = training
                done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    training = running.pop(future)
                    free += training.gpus
                    yield training.run, future.result()
        except BaseException:
            processes.stop()
            raise


def _gpus(run: PlannedRun, limits: Limits) -> int:
    """GPUs of a run here; UserError where there are not so many, or it is to train on several machines."""
    place = limits.placement(run)
    if place.nodes > 1:
        raise UserError(f"run {run.name} trains on {place.nodes} nodes: --cluster starts it on all of them (SLURM)")
    if place.gpus > len(limits.gpus):
        raise UserError(f"run {run.name} takes {place.gpus} GPUs: --gpus has {len(limits.gpus)}")
    return place.gpus


@dataclass(frozen=True)
class Training:
    """A run as it is trained on this machine.

    Attributes:
        threads: Cores it may take.
        retries: How often it is started again where it fails.
        gpus: GPUs that it sees, as CUDA_VISIBLE_DEVICES names them; none: it sees what there is.
        variables: More of its environment.
        processes: Those under way here.
    """

    run: PlannedRun
    folder: Path
    study: str
    threads: int
    retries: int = 0
    gpus: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    processes: Processes = field(default_factory=Processes)

    def carry_out(self) -> Outcome:
        """Train the run unless it is finished.

        A run that another process trains is waited for: it inherits the lock, and may outlive its killed study.
        """
        with locked(lock_of(self.folder)) as lock:
            return self._retried(lambda: self._attempt(lock))

    def help(self, node: int) -> Outcome:
        """Be one of the further nodes of a run, whose first one carries it out: that alone writes to its folder."""
        own = self.folder.with_name(f".{self.folder.name}.node{node}")
        config, log = own.with_suffix(f"{own.suffix}.yaml"), own.with_suffix(f"{own.suffix}.log")
        with locked(lock_of(own)) as lock:
            write_text(config, yaml.safe_dump(self.run.config.options))

            def attempt() -> Outcome:
                code = self._process(self._fit(config), log, lock)
                return _unfinished(log, code) if code else Outcome("finished")

            return self._retried(attempt)

    def _retried(self, attempt: Callable[[], Outcome]) -> Outcome:
        """What became of the first attempt that did not fail, or of the last."""
        outcome = attempt()
        for _ in range(self.retries):
            if outcome.status != "failed":
                break
            outcome = attempt()
        return outcome

    def _attempt(self, lock: int) -> Outcome:
        trained, code = Run(self.folder), 0
        if trained.result is None:
            # Resuming is exact: what a killed study left unfinished resumes from its last checkpoint, or starts again.
            if not trained.last.exists():
                shutil.rmtree(trained.folder, ignore_errors=True)
            trained.write_config(self.run.config)
            code = self._process(self._fit(trained.config_file), trained.log_file, lock)
        if trained.result is not None and outcome_of(trained) is None:  # several processes, or killed in between
            code = self._process(["lrec.training.target_losses", str(self.folder)], trained.log_file, lock)
        if outcome := outcome_of(trained):
            return outcome
        return Outcome("stopped") if self.processes.stopping else _unfinished(trained.log_file, code)

    def _process(self, arguments: list[str], log: Path, lock: int) -> int:
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}
        return self.processes.run(arguments, log, self.threads, lock, {**visible, **self.variables})

    def _fit(self, config: Path) -> list[str]:
        """Its `lrec fit`."""
        fit = ["lrec", "fit", f"--config={config}", f"--trainer.default_root_dir={self.folder}", "--ckpt_path=last"]
        fit += [f"--points.study={self.study}", f"--points.run={self.run.name}"]
        source = self.run.starts_from
        return fit + ([f"--model.warm_start={self.folder.with_name(source)}"] if source else [])


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
