"""The cut of the HSTU repository, as a split rule of one's own: `--data.split all_but_last.AllButLast`."""

from dataclasses import dataclass

import numpy as np

from lrec.data.splits.rules import Split, SplitRule
from lrec.data.store.store import Store


@dataclass(frozen=True)
class AllButLast(SplitRule):
    """The last item of each user is the test, and all others train; the repository has no validation.

    Args:
        validation: Every n-th user holds out the item before the last too, to choose the epoch by.
    """

    validation: int = 20

    def cut(self, store: Store) -> Split:
        """Count from the end of each sequence; users with fewer than 3 items only train."""
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
