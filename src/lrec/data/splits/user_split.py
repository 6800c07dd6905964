"""The split by user.

Positions count from 0 within a user's sequence, ordered by (time, row of the source).
Shape suffix: U users.
"""

from dataclasses import dataclass

import numpy as np

from lrec.data.splits.rules import Split, SplitRule, user_hashes
from lrec.data.store.store import Store
from lrec.errors import UserError, check_range


@dataclass(frozen=True)
class UserSplit(SplitRule):
    """Validate and test on users of whom nothing trains (strong generalisation).

    Each user belongs to one part, chosen by the hash of the raw id. All items of a validation or test user but the
    first are targets, each after all items before it, as far as max_len reaches.

    Args:
        validation: Share of the users that validate.
        test: Share of the users that test.
    """

    validation: float = 0.05
    test: float = 0.05

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            check_range(f"split.{name}", getattr(self, name), above=0, below=1)
        if self.validation + self.test >= 1:
            raise UserError(f"split: validation {self.validation} and test {self.test} leave no user to train on")

    def cut(self, store: Store) -> Split:
        """Give each user to one part."""
        share_U, lengths_U = user_hashes(store, "part") / 2**64, np.diff(store.offsets_U1)
        validates_U = share_U < self.validation
        tests_U = ~validates_U & (share_U < self.validation + self.test)
        targets_U = np.maximum(lengths_U - 1, 0)
        for name, chosen_U in (("validation", validates_U), ("test", tests_U)):
            if not (targets_U * chosen_U).any():
                raise UserError(f"split.{name} {getattr(self, name)}: none of the {store.n_users} users, give more")
        return Split(
            store=store,
            train_U=np.where(validates_U | tests_U, 0, lengths_U),
            val_U=np.where(validates_U & (targets_U > 0), 1, -1),
            val_targets_U=targets_U * validates_U,
            test_U=np.where(tests_U & (targets_U > 0), 1, -1),
            test_targets_U=targets_U * tests_U,
            trajectory_U=np.full(store.n_users, -1),
            held_out_U=np.zeros(store.n_users, dtype=bool),
        )
