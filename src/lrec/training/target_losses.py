"""The loss of a trained run on each held-out target, and its noise: `python -m lrec.training.target_losses RUN`.

The targets are the test targets and, of users with a trajectory, its items, each predicted from the true items before
it. Their mean is less noisy, and losses by user allow paired comparisons of sizes. Trajectories of thousands of users
are enough: each costs as much as ten tests.

Shape suffixes: C targets, U users with a target.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lrec.common.files import replacing
from lrec.data.datasets import datamodule_of
from lrec.data.splits.rules import Split, Targets, ranges
from lrec.evaluation.cases import cases_before, rank_by_net
from lrec.evaluation.standard_errors import standard_error
from lrec.run import Run
from lrec.serving.export import load

MOST_TRAJECTORIES = 10_000


def main(folder: Path) -> None:
    """Write RUN/target_losses.parquet, and means and standard errors into the run's best point. The column step is 0
    for a test target, and 1, 2, ... along the trajectory. Targets outside the catalogue are left out."""
    run = Run(folder)
    module = datamodule_of(run.config.options, "test")
    net = load(run.best, trust=True, new_items=False).net.float()  # the training has run the code of its classes anyway
    cases = cases_before(module.cuts, *targets(module.cuts, module.evaluated("test")[0]), module.max_len)
    first_C = module.cuts.trajectory_U[cases.users_C]
    steps_C = np.where((first_C >= 0) & (cases.positions_C >= first_C), cases.positions_C - first_C + 1, 0)
    run.write_progress(f"measuring the loss on each of {len(cases):,} targets")
    losses = pl.DataFrame({"user": cases.users_C, "step": steps_C, "loss": rank_by_net(net, cases).loss_C})
    table = losses.filter(pl.col("loss").is_not_nan()).sort("step", maintain_order=True)
    with replacing(run.target_losses_file) as temporary:
        table.write_parquet(temporary)
    test = table.filter(step=0)
    measured: dict[str, Any] = {"test_loss_se": standard_error(test)}
    if len(test) < len(table):
        measured["trajectory_loss"] = float(table["loss"].to_numpy().mean())
        measured["trajectory_loss_se"] = standard_error(table)
    run.write_points([replace(point, **measured) if point.best else point for point in run.points])
    run.progress_file.unlink(missing_ok=True)


def targets(split: Split, test: Targets) -> tuple[np.ndarray, np.ndarray]:
    """User and position of the test targets and of the items of at most `MOST_TRAJECTORIES` trajectories of test users,
    the same in all runs of a study. Items whose type of event cannot be a target are left out."""
    users_U = split.test_users[split.trajectory_U[split.test_users] >= 0]
    users_U = np.sort(np.random.default_rng(0).permutation(users_U)[:MOST_TRAJECTORIES])
    ends_U = np.diff(split.store.offsets_U1)[users_U]
    lengths_U = ends_U - split.trajectory_U[users_U]
    items = Targets(np.repeat(users_U, lengths_U), ranges(split.trajectory_U[users_U], lengths_U))
    may_T = split.may_be_targets(split.rows_of(items))
    users_T = np.concatenate([test.users_T, items.users_T[may_T]])
    return users_T, np.concatenate([test.positions_T, items.positions_T[may_T]])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
