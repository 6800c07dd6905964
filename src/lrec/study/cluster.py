"""The runs of a study as an array of jobs, by submitit (an optional extra): SLURM, or the same without a cluster."""

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import Any

from lightning_utilities.core.imports import RequirementCache

from lrec.errors import UserError
from lrec.study.grid import PlannedRun
from lrec.study.launch import Outcome, Training
from lrec.study.options import Study
from lrec.study.processes import Processes, start_server

POLL_S = 2.0
A_DAY = 24 * 60  # minutes


def check_accelerators(runs: Iterable[PlannedRun], parameters: dict[str, Any]) -> None:
    """UserError where a run leaves open what it trains on: here that may be something else than on the nodes."""
    if parameters.get("cluster", "slurm") in ("local", "debug"):
        return
    for run in runs:
        if run.config.value("trainer.accelerator", "auto") == "auto":
            raise UserError(
                f"--cluster: run {run.name} has trainer.accelerator auto, which asks for what this machine has, not "
                "the nodes: name it, as in --options.trainer.accelerator gpu"
            )


def train_on_cluster(
    study: Study, runs: list[PlannedRun], watch: Callable[[], object] = lambda: None
) -> Iterator[tuple[PlannedRun, Outcome]]:
    """Submit runs as arrays of jobs, wait, and yield each with what became of it; as `train` does it here.

    A job is a run with its retries, a task on each of its nodes, which starts the processes of the node's devices
    itself. Runs that take as many nodes and GPUs are one array, of which `study.jobs` run at a time; those that start
    from another one's network wait for all others, those of a horizon for all shorter ones.
    """
    for _, wave in groupby(sorted(runs, key=attrgetter("wave")), attrgetter("wave")):
        by_job: dict[Any, PlannedRun] = {}
        by_place: dict[tuple[int, int], list[PlannedRun]] = defaultdict(list)
        for run in wave:
            place = study.placement(run.config)
            by_place[place.nodes, place.gpus].append(run)
        for (nodes, gpus), alike in by_place.items():
            options = ({"nodes": nodes} if nodes > 1 else {}) | ({"gpus_per_node": gpus} if gpus else {})
            folder, cpus = study.folder.resolve() / "runs", (study.cluster or {}).get("cpus_per_task", study.threads)
            trainings = [Training(run, folder / run.name, study.name, cpus, study.retries) for run in alike]
            jobs = _executor(study, **options).map_array(Job(), trainings)
            by_job |= dict(zip(jobs, alike, strict=True))
        while by_job:
            watch()
            done = [job for job in by_job if job.done()]
            for job in done:
                yield by_job.pop(job), _outcome_of(job)
            time.sleep(0 if done else POLL_S)


def as_local_jobs(study: Study) -> Callable[[Training], Outcome]:
    """How `train` carries out a run as a job of submitit's local executor; such jobs stop when this process ends."""
    executor = _executor(study)

    def carry_out(training: Training) -> Outcome:
        stopped = training.processes  # by `train`; the job has processes of its own
        job = executor.submit(Job(os.getpid()), replace(training, folder=training.folder.resolve()))
        while not job.done():
            if stopped.stopping:
                os.kill(int(job.job_id), signal.SIGTERM)
            time.sleep(POLL_S)
        outcome = _outcome_of(job)
        return Outcome("stopped") if stopped.stopping and outcome.status == "failed" else outcome

    return carry_out


class Job:
    """What a job does on each of its nodes. Before its time limit and where it is preempted, submitit calls
    `checkpoint` and starts it again."""

    def __init__(self, study: int | None = None) -> None:
        """With the process that it ends with, too."""
        self.study = study
        self.processes = Processes()

    def __call__(self, training: Training) -> Outcome:
        self.processes = Processes([os.getpid()] + ([self.study] if self.study else []))
        if self.study:  # submitit ignores it
            signal.signal(signal.SIGTERM, lambda *_: self.processes.stop())
        # Some clusters signal all processes of a job: what the run is forked from must outlive that.
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        start_server()
        signal.signal(signal.SIGUSR2, handler)
        training = replace(training, processes=self.processes)
        if training.run.config.value("trainer.num_nodes", 1) == 1:
            return training.carry_out()
        job = _submitit().JobEnvironment()
        return train_on_node(training, job.node, job.hostnames[0], 20000 + int(job.raw_job_id) % 20000)

    def checkpoint(self, training: Training) -> Any:
        """Have the run save and stop; what submitit starts next, which continues it."""
        self.processes.stop()
        self.processes.wait()
        return _submitit().helpers.DelayedSubmission(Job(self.study), training)


def train_on_node(training: Training, node: int, head: str, port: int) -> Outcome:
    """Train a run of several nodes on one of them; the processes of all of them meet at the first one's address."""
    variables = {"NODE_RANK": str(node), "MASTER_ADDR": head, "MASTER_PORT": str(port)}
    training = replace(training, variables=variables)
    return training.help(node) if node else training.carry_out()


def _submitit() -> Any:
    if not (installed := RequirementCache("submitit>=1.5")):
        raise UserError(f"--cluster needs submitit: pip install 'lrec[cluster]' ({installed})")
    import submitit

    return submitit


def _executor(study: Study, **options: int) -> Any:
    """Of submitit, by the parameters of --cluster: those of AutoExecutor.update_parameters, and which cluster; `debug`
    is this process."""
    parameters: dict[str, Any] = {"name": study.name, "cpus_per_task": study.threads}
    parameters |= {"slurm_array_parallelism": study.jobs} | (study.cluster or {}) | options
    cluster = parameters.pop("cluster", "slurm")
    if cluster == "slurm":  # a task that is killed takes the others with it, which would wait for it
        parameters["slurm_srun_args"] = [*parameters.get("slurm_srun_args", []), "--kill-on-bad-exit=1"]
    parameters.setdefault("timeout_min", A_DAY if cluster == "slurm" else 365 * A_DAY)  # submitit's own is minutes
    try:
        executor = _submitit().AutoExecutor(study.folder / "jobs" / "%j", cluster=cluster)
        executor.update_parameters(**parameters)
    except (ValueError, NameError, TypeError, RuntimeError) as error:
        raise UserError(f"--cluster: {error}") from error
    return executor


def _outcome_of(job: Any) -> Outcome:
    try:
        outcome: Outcome = job.result()
    except Exception as error:  # of the job, whatever it was: time limit, lost node, cancelled
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        return Outcome("failed", reason=last[0])
    return outcome
