"""Which users an evaluation has: all of them, or a fixed sample that it can afford."""

from typing import Literal

import numpy as np
from lightning.pytorch import LightningDataModule

from lrec.data.batching.eval_batches import EvalTask, shared_rows
from lrec.data.batching.plan import BatchPlan
from lrec.data.splits.rules import Split, Targets, hash_numbers
from lrec.errors import UserError

# What an evaluation may cost, as a share of the training since the last one; and how many users it has all the same,
# for a figure of fewer says little.
SHARE = 0.1
LEAST_USERS = 2000
# Scores of a test, targets times items: about ten minutes of two cores.
MOST_SCORES = 10**11


def check_targets(split: Split, target_events: list[str] | None, cold_targets: str) -> None:
    """UserError where there is nothing to evaluate."""
    for name, targets in (("validation", split.val_targets), ("test", split.test_targets)):
        if len(targets.users_T) == 0 and target_events is not None:
            raise UserError(f"data.target_events: no {name} target is of these types: choose more of them")
        if len(targets.users_T) == 0 and cold_targets == "dropped":
            raise UserError(f"data.cold_targets dropped: no {name} target is an item of the training part")
    if len(split.val_users) == 0:
        raise UserError("no user has a validation target: the split needs users with at least 3 interactions")


def affordable_users(split: Split, plan: BatchPlan, data: LightningDataModule) -> int:
    """How many users may validate in the fit that `data` are attached to: to read one costs a third of training on it,
    to rank the catalogue for a target as much as training on one."""
    users_T, positions_T = split.val_targets
    rows = shared_rows(split, EvalTask(users_T, positions_T, True), plan.max_len)
    cost = rows.lengths_R.sum() / 3 + len(users_T)
    return max(int(SHARE * _positions_between_evaluations(plan, data) * len(split.val_users) / cost), LEAST_USERS)


def testable_users(users: np.ndarray, targets: Targets, n_items: int) -> int:
    """How many of the users may be tested, where each target is ranked among so many items."""
    return max(int(MOST_SCORES * len(users) / max(len(targets.users_T) * n_items, 1)), LEAST_USERS)


def sampled(
    users: np.ndarray, targets: Targets, n_users: int | Literal["all"]
) -> tuple[Targets, tuple[int, int] | None]:
    """The targets of a fixed sample of users, those whose place in the store has the least hash; a smaller sample is
    part of a larger one. How many users these are, of how many, or None where they are all."""
    if n_users == "all" or n_users >= len(users):
        return targets, None
    sampled_T = np.isin(targets.users_T, users[np.argsort(hash_numbers(users), kind="stable")[:n_users]])
    chosen = Targets(targets.users_T[sampled_T], targets.positions_T[sampled_T])
    return chosen, None if sampled_T.all() else (len(np.unique(chosen.users_T)), len(users))


def _positions_between_evaluations(plan: BatchPlan, data: LightningDataModule) -> float:
    """Positions of training from one evaluation to the next; where a time lies between them, those of an epoch."""
    trainer = data.trainer
    assert trainer is not None
    batches = plan.n_steps * trainer.accumulate_grad_batches
    limit, interval = trainer.limit_train_batches, trainer.val_check_interval
    of_epoch = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    if isinstance(interval, float):
        interval = interval * of_epoch * (trainer.check_val_every_n_epoch or 1)
    return plan.part.n_positions * interval / batches
