"""A split rule that splits like the HSTU repository: `--data.split all_but_last.AllButLast`."""

from dataclasses import dataclass

import numpy as np

from lrec.data.splits.rules import Split, SplitRule
from lrec.data.store.store import Store


@dataclass(frozen=True)
class AllButLast(SplitRule):
    """The last item of each user is the test target. All others are for training; the repository has no validation.

    Args:
        validation: For every n-th user, the item before the last is the validation target, which chooses the epoch.
    """

    validation: int = 20

    def cut(self, store: Store) -> Split:
        """Cut each sequence at its end; all items of users with fewer than 3 items are for training."""
        lengths_U = np.diff(store.offsets_U1)
        evaluated_U = lengths_U >= 3
        validates_U = evaluated_U & (np.arange(len(lengths_U)) % self.validation == 0)
        return Split(
            store=store,
            train_U=lengths_U - evaluated_U - validates_U,
            val_U=np.where(validates_U, lengths_U - 2, -1),
            val_targets_U=validates_U.astype(np.int64),
            test_U=np.where(evaluated_U, lengths_U - 1, -1),
            test_targets_U=evaluated_U.astype(np.int64),
            trajectory_U=np.full_like(lengths_U, -1),
            held_out_U=np.zeros_like(evaluated_U),
        )
