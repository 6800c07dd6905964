"""Train the runs of a study as arrays of jobs with submitit (an optional extra): on SLURM, or without a cluster."""

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


def check_accelerators(study: Study, runs: Iterable[PlannedRun]) -> None:
    """UserError if a run has accelerator auto: this machine may have another accelerator than the nodes."""
    away = study.cluster is not None and study.cluster.get("cluster", "slurm") not in ("local", "debug")
    for run in runs if away else ():
        if run.config.value("trainer.accelerator", "auto") == "auto":
            what = f"run {run.name} has trainer.accelerator auto, which depends on this machine, not on the nodes"
            raise UserError(f"--cluster: {what}: choose cpu or gpu")


def train_on_cluster(
    study: Study, runs: list[PlannedRun], watch: Callable[[], object] = lambda: None
) -> Iterator[tuple[PlannedRun, Outcome]]:
    """Submit runs as arrays of jobs, wait for them, and yield each run with its outcome, as `train` does here. A job is
    one run with its retries. It has a task on each of its nodes, and the task starts the processes of the node's
    devices. Runs with the same numbers of nodes and GPUs form one array, of which `study.n_jobs` run at a time. Each
    `PlannedRun.wave` waits for all earlier ones."""
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
    """Return a `carry_out` for `train`: a job of submitit's local executor, which stops when this process ends."""
    executor = _executor(study)

    def carry_out(training: Training) -> Outcome:
        stopped = training.processes  # `train` stops these; the job has its own
        job = executor.submit(Job(os.getpid()), replace(training, folder=training.folder.resolve()))
        while not job.done():
            if stopped.stopping:
                os.kill(int(job.job_id), signal.SIGTERM)
            time.sleep(POLL_S)
        outcome = _outcome_of(job)
        return Outcome("stopped") if stopped.stopping and outcome.status == "failed" else outcome

    return carry_out


class Job:
    """What a job does on each of its nodes. Before the time limit, and if the job is preempted, submitit calls
    `checkpoint` and starts the job again. If the process with the id `study` ends, the job stops too."""

    def __init__(self, study: int | None = None) -> None:
        self.study, self.processes = study, Processes()

    def __call__(self, training: Training) -> Outcome:
        self.processes = Processes([os.getpid()] + ([self.study] if self.study else []))
        if self.study:  # submitit ignores SIGTERM
            signal.signal(signal.SIGTERM, lambda *_: self.processes.stop())
        # Some clusters send SIGUSR2 to all processes of a job: the server that forks the run must survive it.
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        start_server()
        signal.signal(signal.SIGUSR2, handler)
        training = replace(training, processes=self.processes)
        if training.run.config.value("trainer.num_nodes", 1) > 1:
            import submitit

            job = submitit.JobEnvironment()
            training = training.on_node(job.node, job.hostnames[0], 20000 + int(job.raw_job_id) % 20000)
        return training.carry_out()

    def checkpoint(self, training: Training) -> Any:
        """Make the run save and stop; return what submitit starts next, which continues the run."""
        from submitit.helpers import DelayedSubmission

        self.processes.stop(wait=True)
        return DelayedSubmission(Job(self.study), training)


def _executor(study: Study, **options: int) -> Any:
    """Submitit's executor with the parameters of --cluster. The cluster `debug` is this process."""
    if not (installed := RequirementCache("submitit>=1.5")):
        raise UserError(f"--cluster needs submitit: pip install 'lrec[cluster]' ({installed})")
    from submitit import AutoExecutor

    parameters: dict[str, Any] = {"name": study.name, "cpus_per_task": study.threads}
    parameters |= {"slurm_array_parallelism": study.n_jobs} | (study.cluster or {}) | options
    cluster = parameters.pop("cluster", "slurm")
    if cluster == "slurm":  # if a task is killed, end the others too: they would wait for it
        parameters["slurm_srun_args"] = [*parameters.get("slurm_srun_args", []), "--kill-on-bad-exit=1"]
    parameters.setdefault("timeout_min", A_DAY if cluster == "slurm" else 365 * A_DAY)  # submitit's default is minutes
    try:
        executor = AutoExecutor(study.folder / "jobs" / "%j", cluster=cluster)
        executor.update_parameters(**parameters)
    except (ValueError, NameError, TypeError, RuntimeError) as error:
        raise UserError(f"--cluster: {error}") from error
    return executor


def _outcome_of(job: Any) -> Outcome:
    try:
        return job.result()
    except Exception as error:  # any error of the job: time limit, lost node, cancelled
        return Outcome("failed", reason=(str(error).strip().splitlines() or [type(error).__name__])[-1])
