"""Which users validate during training: a fixed sample, so that an evaluation costs little beside the training.

Shape suffixes: U users, T targets of evaluation.
"""

import numpy as np

from lrec.data.batching.eval_batches import EvalTask, shared_rows
from lrec.data.splits.rules import Split, Targets, hash_numbers

# What an evaluation may cost, as a share of the training since the last one; and how many users it has all the same,
# for a figure of fewer says little.
SHARE = 0.1
LEAST_USERS = 2000


def affordable_users(split: Split, max_len: int, trained_positions: float) -> int:
    """How many users may validate after training on so many positions.

    To read a position costs a third of training on it, which goes forward once and backward for twice as much; ranking
    the catalogue for a target counts as training on one.
    """
    users_T, positions_T = split.val_targets
    rows = shared_rows(split, EvalTask(users_T, positions_T, True), max_len)
    cost = rows.lengths_R.sum() / 3 + len(users_T)
    return max(int(SHARE * trained_positions * len(split.val_users) / cost), LEAST_USERS)


def targets_of_sample(split: Split, n_users: int) -> Targets:
    """The validation targets of a fixed sample of users: those whose place in the store has the least hash.

    It depends on the data and the number alone, and a smaller sample is part of a larger one.
    """
    users, targets = split.val_users, split.val_targets
    if n_users >= len(users):
        return targets
    sampled_U = np.zeros(split.store.n_users, dtype=bool)
    sampled_U[users[np.argsort(hash_numbers(users), kind="stable")[:n_users]]] = True
    sampled_T = sampled_U[targets.users_T]
    return Targets(targets.users_T[sampled_T], targets.positions_T[sampled_T])
