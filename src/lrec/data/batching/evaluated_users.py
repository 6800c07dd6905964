"""Which users an evaluation uses: all users, or a fixed sample to limit its cost."""

from typing import Literal

import numpy as np
from lightning.pytorch import LightningDataModule

from lrec.data.batching.eval_batches import shared_rows
from lrec.data.batching.plan import BatchPlan
from lrec.data.batching.train_batches import limited
from lrec.data.splits.rules import Split, Targets, hash_numbers
from lrec.errors import UserError

# Largest cost of an evaluation, as a share of the training since the previous one; and the number of users that it may
# have whatever they cost, because a metric of fewer users says little.
SHARE = 0.1
LEAST_USERS = 2000
# Most scores of a test (targets times items): about ten minutes on two cores.
MOST_SCORES = 10**11


def check_targets(split: Split, target_events: list[str] | None, cold_targets: str) -> None:
    """UserError if there is nothing to evaluate."""
    for name, targets in (("validation", split.val_targets), ("test", split.test_targets)):
        if len(targets.users_T) == 0 and target_events is not None:
            raise UserError(f"data.target_events: no {name} target is of these types: choose more of them")
        if len(targets.users_T) == 0 and cold_targets == "dropped":
            raise UserError(f"data.cold_targets dropped: no {name} target is an item of the training part")
    if len(split.val_users) == 0:
        raise UserError("no user has a validation target: the split needs users with at least 3 interactions")


def affordable_users(plan: BatchPlan, data: LightningDataModule) -> int:
    """How many users may validate during the fit that uses `data`. Reading a position costs a third of training on it,
    and ranking the catalogue for a target costs as much as training on one position."""
    split, trainer = plan.part.split, data.trainer
    assert trainer is not None
    users_T = split.val_targets.users_T
    rows = shared_rows(split, split.val_targets, plan.max_len)
    cost = rows.lengths_R.sum() / 3 + len(users_T)
    batches = plan.n_steps * trainer.accumulate_grad_batches
    interval = getattr(trainer, "val_check_interval", 1.0)  # Lightning sets none for a time: an epoch is assumed
    if isinstance(interval, float):
        interval = interval * limited(batches, trainer.limit_train_batches) * (trainer.check_val_every_n_epoch or 1)
    positions = plan.part.n_positions * interval / batches
    return max(int(SHARE * positions * len(np.unique(users_T)) / cost), LEAST_USERS)


def testable_users(targets: Targets, n_items: int) -> int:
    """How many users may be tested if each target is ranked among `n_items` items."""
    return max(int(MOST_SCORES * len(np.unique(targets.users_T)) / max(len(targets.users_T) * n_items, 1)), LEAST_USERS)


def sampled(targets: Targets, n_users: int | Literal["all"]) -> tuple[Targets, tuple[int, int] | None]:
    """The targets of a fixed sample of the users who have some, and (users of the sample, all users), or None if it has
    all targets. Its users' places in the store have the smallest hashes, so a larger sample contains a smaller one."""
    users = np.unique(targets.users_T)
    if n_users == "all" or n_users >= len(users):
        return targets, None
    sampled_T = np.isin(targets.users_T, users[np.argsort(hash_numbers(users), kind="stable")[:n_users]])
    return Targets(targets.users_T[sampled_T], targets.positions_T[sampled_T]), (n_users, len(users))
