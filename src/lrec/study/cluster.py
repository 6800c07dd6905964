"""The runs of a study as an array of jobs, by submitit (an optional extra): SLURM, or the same without a cluster."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_utilities.core.imports import RequirementCache

from lrec.errors import UserError
from lrec.study.grid import PlannedRun
from lrec.study.launch import Limits, Outcome, train_one

POLL_S = 5.0


def train_on_cluster(
    runs: list[PlannedRun], folder: Path, study: str, limits: Limits, parameters: dict[str, Any]
) -> Iterator[tuple[PlannedRun, Outcome]]:
    """Submit runs as one array, wait, and yield each with what became of it.

    Runs that start from another one's network are a second array, once the first has ended.

    A job is a run with its retries, one task on one node; it starts the processes of the node's devices itself.
    The folder must be seen by all nodes.

    Args:
        runs: The runs.
        folder: Where each has its folder; the jobs' own logs go to `jobs` beside it.
        study: Name of the study, and of the jobs.
        limits: `jobs` of the array run at a time; a job that fails is started again `retries` times.
        parameters: Those of submitit's AutoExecutor.update_parameters, such as timeout_min, slurm_partition or
            gpus_per_node, and cluster: slurm (the default), local (processes here) or debug (in this process).
    """
    if not (installed := RequirementCache("submitit>=1.5")):
        raise UserError(f"--cluster needs submitit: pip install 'lrec[cluster]' ({installed})")
    import submitit

    options = dict(parameters)
    try:
        executor = submitit.AutoExecutor(folder.parent / "jobs" / "%j", cluster=options.pop("cluster", "slurm"))
        executor.update_parameters(
            **{"name": study, "cpus_per_task": limits.threads, "slurm_array_parallelism": limits.jobs} | options
        )
    except (ValueError, NameError, TypeError, RuntimeError) as error:
        raise UserError(f"--cluster: {error}") from error
    for wave in ([run for run in runs if not run.starts_from], [run for run in runs if run.starts_from]):
        yield from _submit(executor, wave, folder, study, options.get("cpus_per_task", limits.threads), limits.retries)


def _submit(
    executor: Any, runs: list[PlannedRun], folder: Path, study: str, cpus: int, retries: int
) -> Iterator[tuple[PlannedRun, Outcome]]:
    import submitit

    if not runs:
        return
    arguments = [(run, (folder / run.name).resolve(), study, cpus, retries) for run in runs]
    by_job = dict(zip(executor.map_array(train_one, *zip(*arguments, strict=True)), runs, strict=True))
    for job in submitit.helpers.as_completed(list(by_job), poll_frequency=POLL_S):
        try:
            outcome = job.result()
        except Exception as error:  # of the job, whatever it was: time limit, lost node, cancelled
            last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            outcome = Outcome("failed", reason=last[0])
        yield by_job[job], outcome
