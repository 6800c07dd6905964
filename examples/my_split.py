"""A split rule of your own: the last tenth of each history is for test, the tenth before it for validation.

    lrec data prepare --config configs/data/ml-latest-small.yaml --data.split my_split.LastShare --data.split.share 0.2

See docs/extending.md. Shape suffix: U users.
"""

from dataclasses import dataclass

import numpy as np

from lrec import UserError
from lrec.data.splits.rules import Split, SplitRule
from lrec.data.store.store import Store


@dataclass(frozen=True)
class LastShare(SplitRule):
    """Hold out the end of each history for test and as much before it for validation. The rest is for training.

    Args:
        share: Share of a history for test, rounded up. If a history is too short for this, it is only for training.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share < 0.5:
            raise UserError(f"split.share must lie between 0 and 0.5, not {self.share}")

    def cut(self, store: Store) -> Split:
        """Cut every history at two positions, which count from 0."""
        lengths_U = np.diff(store.offsets_U1)
        held_U = np.ceil(lengths_U * self.share).astype(np.int64)
        held_U[2 * held_U >= lengths_U] = 0
        return Split(
            store=store,
            train_U=lengths_U - 2 * held_U,
            val_U=np.where(held_U > 0, lengths_U - 2 * held_U, -1),
            val_targets_U=held_U,
            test_U=np.where(held_U > 0, lengths_U - held_U, -1),
            test_targets_U=held_U,
            trajectory_U=np.full(store.n_users, -1),
            held_out_U=np.zeros(store.n_users, dtype=bool),
        )
