"""Which part of the training data is used. Shape suffixes: U users, N interactions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lrec.data.splits.rules import Split, blocks_of_users, chosen_users, events_of, hash_numbers, ranges, refuse_leak
from lrec.data.store.store import Store
from lrec.errors import check_range


@dataclass(frozen=True)
class Reduction:
    """Keep a part of the training data; the catalogue and all targets stay. Smaller shares nest in larger ones.

    Users are chosen first, then the recent items of each, then single interactions among what is left.

    Args:
        users: Share of the users, chosen by the hash of their raw id.
        interactions: Share of the training interactions, chosen by the hash of their place in the store.
        recent: Most recent share of each user's training items, rounded up.
    """

    users: float = 1.0
    interactions: float = 1.0
    recent: float = 1.0

    def __post_init__(self) -> None:
        for name in ("users", "interactions", "recent"):
            check_range(f"reduction.{name}", getattr(self, name), above=0, at_most=1)


@dataclass(frozen=True)
class TrainingPart:
    """Training sequences: user u owns lengths_U[u] entries from starts_U[u] on. The entries are rows of the store, or
    of `rows` (ascending rows of the store) where single interactions were dropped."""

    store: Store
    starts_U: np.ndarray
    lengths_U: np.ndarray
    rows: np.ndarray | None
    target_N: np.ndarray | None = None  # see Split
    features: Callable[[np.ndarray], np.ndarray] | None = None  # see Split

    def items(self, places: np.ndarray) -> np.ndarray:
        return self.store.items_N[self._rows(places)]

    def seconds(self, places: np.ndarray) -> np.ndarray:
        return self.store.seconds(self._rows(places))

    def events(self, places: np.ndarray) -> np.ndarray | None:
        return events_of(self.store, self.features, self._rows(places))

    @property
    def n_positions(self) -> int:
        """Positions of an epoch: every entry but each user's last."""
        return int(np.maximum(self.lengths_U - 1, 0).sum())

    @cached_property
    def n_targets(self) -> int:
        """U: targets of an epoch; a position has one where the event after it may be a target."""
        return self.targets_in(self.starts_U, np.maximum(self.lengths_U - 1, 0))

    def targets_in(self, starts: np.ndarray, lengths: np.ndarray) -> int:
        """Targets of windows of so many positions."""
        if self.target_N is None:
            return int(lengths.sum())
        places = (ranges(starts[some] + 1, lengths[some]) for some in blocks_of_users(lengths))
        return sum(int(np.count_nonzero(self.may_be_targets(each))) for each in places)

    def may_be_targets(self, places: np.ndarray) -> np.ndarray:
        """Which of these entries may be targets, bool."""
        if self.target_N is None:
            return np.ones(len(places), dtype=bool)
        return self.target_N[self._rows(places)]

    def _rows(self, places: np.ndarray) -> np.ndarray:
        return places if self.rows is None else self.rows[places]

    def check(self, split: Split) -> None:
        """Fail loudly if an entry lies outside its user's unreduced training part."""
        users = np.flatnonzero(self.lengths_U)
        first, last = self.starts_U[users], self.starts_U[users] + self.lengths_U[users] - 1
        if self.rows is not None:
            first, last = self.rows[first], self.rows[last]
        begin = self.store.offsets_U1[users]
        leaks_U = np.zeros(len(self.lengths_U), dtype=bool)
        leaks_U[users] = (first < begin) | (last >= begin + split.train_U[users])
        refuse_leak(leaks_U)


def training_part(split: Split, reduction: Reduction) -> TrainingPart:
    """The training items of the split that the reduction keeps, checked for leaks."""
    lengths_U = split.train_U * chosen_users(split.store, "reduction", reduction.users)
    # The tolerance keeps 0.1 * 30 = 3.0000000000000004 at 3.
    kept_U = np.ceil(lengths_U * reduction.recent - 1e-9).astype(np.int64)
    starts_U = split.store.offsets_U1[:-1] + lengths_U - kept_U
    if reduction.interactions == 1:
        part = TrainingPart(split.store, starts_U, kept_U, None, split.target_N, split.features)
    else:
        rows = ranges(starts_U, kept_U)
        count = int(np.ceil(len(rows) * reduction.interactions - 1e-9))
        rows = np.sort(rows[np.argsort(hash_numbers(rows), kind="stable")[:count]])
        bounds_U1 = np.searchsorted(rows, split.store.offsets_U1)
        part = TrainingPart(split.store, bounds_U1[:-1], np.diff(bounds_U1), rows, split.target_N, split.features)
    part.check(split)
    return part
