"""Train the runs of a study, each with `lrec fit` in a subprocess; a lock keeps two processes from training one run."""

import fcntl
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import yaml

from lrec.common.files import locked, write_text
from lrec.common.start_stop import TRY_AGAIN
from lrec.common.text_tables import counted
from lrec.errors import UserError
from lrec.run import Point, Run
from lrec.study import budget
from lrec.study.grid import PlannedRun
from lrec.study.options import Study
from lrec.study.processes import Processes

POLL_S = 2.0


class Outcome(NamedTuple):
    """How a run ended: finished, diverged, stopped (to be resumed), or failed, with the reason."""

    status: str
    point: Point | None = None
    reason: str = ""


def outcome_of(run: Run) -> Outcome | None:
    """How a run ended; None if it must still be trained, or its losses by target must still be measured."""
    point = run.result
    if point is None:
        return None
    # Without its checkpoint, for example if only its points were kept, the losses cannot be measured any more.
    unmeasured = point.test_loss is not None and point.test_loss_se is None and run.best.exists()
    return None if unmeasured else Outcome(point.status, point)


def is_running(folder: Path) -> bool:
    """Whether a process of any study trains the run in `folder` now."""
    try:
        with suppress(FileNotFoundError), lock_of(folder).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def lock_of(path: Path) -> Path:
    """The lock file that a process holds while it trains the run or the study in `path`, or writes the file, beside the
    path itself: links to it have no other lock."""
    path = path.resolve()
    return path.with_name(f".{path.name}.lock")


def train(
    study: Study,
    runs: list[PlannedRun],
    watch: Callable[[], bool] = lambda: True,
    carry_out: "Callable[[Training], Outcome] | None" = None,
) -> Iterator[tuple[PlannedRun, Outcome]]:
    """Train the runs of a study within its limits, in order of `PlannedRun.wave`; yield each run with its outcome. A
    run waits until enough GPUs and memory are free, and sees no other GPUs. `watch` is called every few seconds; once
    it returns False, no more runs start, and running ones save and stop. `carry_out` trains one run, by default in a
    process on this machine."""
    waiting, limit_gib = sorted(runs, key=attrgetter("wave")), study.memory_gib
    free, processes = list(study.every_gpu), Processes()
    running: dict[Future[Outcome], tuple[PlannedRun, list[str]]] = {}  # with the GPUs that it sees
    costs = budget.plan(study, runs) if limit_gib is not None else []
    memory_gib = {cost.run.name: cost.memory_gib for cost in costs}
    places = {run.name: study.placement(run.config) for run in runs}
    for name, place in places.items():
        if place.nodes > 1:
            raise UserError(f"run {name} trains on {place.nodes} nodes: --cluster starts it on all of them (SLURM)")
        if place.gpus > len(free):
            raise UserError(f"run {name} takes {counted(place.gpus, 'GPU')}: --gpus has {len(free)}")

    def may_start(run: PlannedRun) -> bool:
        others = [other.name for other, _ in running.values()]
        fits = not others or limit_gib is None or sum(memory_gib[name] for name in (run.name, *others)) <= limit_gib
        free_now = len(others) < study.n_jobs and places[run.name].gpus <= len(free)
        return free_now and fits and not {run.starts_from, run.goes_on_from} & set(others)

    with ThreadPoolExecutor(max_workers=study.n_jobs) as pool:
        try:
            while waiting or running:
                if not watch():
                    waiting.clear()
                    processes.stop()
                while waiting and may_start(waiting[0]):
                    run = waiting.pop(0)
                    gpus = [free.pop(0) for _ in range(places[run.name].gpus)]
                    visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
                    folder = study.folder / "runs" / run.name
                    training = Training(run, folder, study.name, study.threads, study.retries, processes, visible)
                    running[pool.submit(carry_out or Training.carry_out, training)] = run, gpus
                done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    run, gpus = running.pop(future)
                    free += gpus
                    yield run, future.result()
        except BaseException:
            processes.stop()
            raise


@dataclass(frozen=True)
class Training:
    run: PlannedRun
    folder: Path
    study: str
    threads: int  # cores that it may use
    retries: int = 0  # after failures
    processes: Processes = field(default_factory=Processes)  # running processes of this machine, its own included
    variables: Mapping[str, str] = field(default_factory=dict)  # additional environment variables
    node: int = 0  # of the nodes that train the run; only the first one writes to its folder

    def on_node(self, node: int, head: str, port: int) -> "Training":
        """The part of one node; all processes meet at `head`, the address of the first node."""
        variables = {"NODE_RANK": str(node), "MASTER_ADDR": head, "MASTER_PORT": str(port)}
        return replace(self, variables=variables, node=node)

    def carry_out(self) -> Outcome:
        """Train the run unless it is finished. If another process trains it, wait for that process: it has inherited
        the lock, and may outlive its killed study."""
        beside = self.folder.with_name(f".{self.folder.name}.node{self.node}")
        with locked(lock_of(beside if self.node else self.folder)) as lock:
            for _ in range(self.retries + 1):
                outcome = self._help(beside, lock) if self.node else self._attempt(lock)
                if outcome.status != "failed":
                    break
        return outcome

    def _help(self, beside: Path, lock: int) -> Outcome:
        config, log = (beside.with_name(f"{beside.name}.{ending}") for ending in ("yaml", "log"))
        write_text(config, yaml.safe_dump(self.run.config.options))
        code = self._process(self._fit(config), log, lock)
        return _unfinished(log, code) if code else Outcome("finished")

    def _attempt(self, lock: int) -> Outcome:
        trained, code = Run(self.folder), 0
        if trained.result is None:
            # Resuming is exact: an unfinished run resumes from its last checkpoint, or starts again if it has none.
            if not trained.last.exists():
                shutil.rmtree(trained.folder, ignore_errors=True)
            trained.write_config(self.run.config)
            code = self._process(self._fit(trained.config_file), trained.log_file, lock)
        if trained.result is not None and outcome_of(trained) is None:  # it had several processes, or was killed
            code = self._process(["lrec.training.target_losses", str(self.folder)], trained.log_file, lock)
        if outcome := outcome_of(trained):
            return outcome
        return Outcome("stopped") if self.processes.stopping else _unfinished(trained.log_file, code)

    def _process(self, arguments: list[str], log: Path, lock: int) -> int:
        return self.processes.run(arguments, log, self.threads, lock, self.variables)

    def _fit(self, config: Path) -> list[str]:
        run, checkpoint = self.run, "last"
        if run.goes_on_from and not Run(self.folder).last.exists():
            shorter = Run(self.folder.with_name(run.goes_on_from)).stable
            checkpoint = str(shorter) if shorter.exists() else "last"
        fit = ["lrec", "fit", f"--config={config}", f"--trainer.default_root_dir={self.folder}"]
        fit += [f"--ckpt_path={checkpoint}", f"--points.study={self.study}", f"--points.run={run.name}"]
        return fit + ([f"--model.warm_start={self.folder.with_name(run.starts_from)}"] if run.starts_from else [])


def _unfinished(log: Path, code: int) -> Outcome:
    """The outcome of a run that did not finish. If it failed, the reason is the signal or the last line of the log."""
    if code in (TRY_AGAIN, -signal.SIGTERM):
        return Outcome("stopped")
    said = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    reason = said[-1].removeprefix("lrec: error: ")
    if code < 0:
        reason = f"ended by {signal.Signals(-code).name}"
        reason += ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
    return Outcome("failed", reason=f"{reason} (see {log})")
