"""The runs of a study as an array of jobs, by submitit (an optional extra): SLURM, or the same without a cluster."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_utilities.core.imports import RequirementCache

from lrec.errors import UserError
from lrec.study.grid import PlannedRun
from lrec.study.launch import Limits, Outcome, Training

POLL_S = 5.0


def check_accelerators(runs: list[PlannedRun], parameters: dict[str, Any]) -> None:
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
    runs: list[PlannedRun], folder: Path, study: str, limits: Limits, parameters: dict[str, Any]
) -> Iterator[tuple[PlannedRun, Outcome]]:
    """Submit runs as arrays of jobs, wait, and yield each with what became of it; as `train` does it here.

    A job is a run with its retries, a task on each of its nodes, which starts the processes of the node's devices
    itself. Runs that take as many nodes and GPUs are one array, of which `limits.jobs` run at a time; those that start
    from another one's network wait for all others. All nodes must see the folder; the jobs' own logs go to `jobs`
    beside it. Parameters are those of submitit's AutoExecutor.update_parameters, and cluster: slurm (the default),
    local (processes here) or debug (in this process).
    """
    if not (installed := RequirementCache("submitit>=1.5")):
        raise UserError(f"--cluster needs submitit: pip install 'lrec[cluster]' ({installed})")
    import submitit

    for wave in ([run for run in runs if not run.starts_from], [run for run in runs if run.starts_from]):
        by_job: dict[Any, PlannedRun] = {}
        for (nodes, gpus), alike in _by_place(wave, limits).items():
            options = parameters | ({"nodes": nodes} if nodes > 1 else {}) | ({"gpus_per_node": gpus} if gpus else {})
            cpus = options.get("cpus_per_task", limits.threads)
            trainings = [Training(run, (folder / run.name).resolve(), study, cpus, limits.retries) for run in alike]
            jobs = _executor(folder, study, limits, options).map_array(_train_on_node, trainings)
            by_job |= dict(zip(jobs, alike, strict=True))
        for job in submitit.helpers.as_completed(list(by_job), poll_frequency=POLL_S):
            try:
                outcome = job.result()
            except Exception as error:  # of the job, whatever it was: time limit, lost node, cancelled
                last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                outcome = Outcome("failed", reason=last[0])
            yield by_job[job], outcome


def _by_place(runs: list[PlannedRun], limits: Limits) -> dict[tuple[int, int], list[PlannedRun]]:
    """The runs by their nodes and GPUs of a node."""
    alike: dict[tuple[int, int], list[PlannedRun]] = {}
    for run in runs:
        place = limits.placement(run)
        alike.setdefault((place.nodes, place.gpus), []).append(run)
    return alike


def _executor(folder: Path, study: str, limits: Limits, parameters: dict[str, Any]) -> Any:
    import submitit

    options = dict(parameters)
    try:
        executor = submitit.AutoExecutor(folder.parent / "jobs" / "%j", cluster=options.pop("cluster", "slurm"))
        executor.update_parameters(
            **{"name": study, "cpus_per_task": limits.threads, "slurm_array_parallelism": limits.jobs} | options
        )
    except (ValueError, NameError, TypeError, RuntimeError) as error:
        raise UserError(f"--cluster: {error}") from error
    return executor


def _train_on_node(training: Training) -> Outcome:
    """What a job does on each of its nodes."""
    if training.run.config.value("trainer.num_nodes", 1) == 1:
        return training.carry_out()
    import submitit

    job = submitit.JobEnvironment()
    return train_on_node(training, job.node, job.hostnames[0], 20000 + int(job.raw_job_id) % 20000)


def train_on_node(training: Training, node: int, head: str, port: int) -> Outcome:
    """Train a run of several nodes on one of them; the processes of all of them meet at the first one's address."""
    variables = {"NODE_RANK": str(node), "MASTER_ADDR": head, "MASTER_PORT": str(port)}
    training = replace(training, variables=variables)
    return training.help(node) if node else training.carry_out()
