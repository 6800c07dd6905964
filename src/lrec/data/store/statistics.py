"""Statistics that are counted while a store is written.

Shape suffixes: N interactions, U users, I items.
"""

from typing import Any

import numpy as np

from lrec.data.store.sorting import stable_argsort


class Counter:
    """Statistics of interactions that are added user after user, each user's all at once."""

    def __init__(self, n_items: int) -> None:
        self.counts_I = np.zeros(n_items, dtype=np.int64)
        self._lengths: list[np.ndarray] = []
        self._repeats = 0
        self._ties = 0
        self._times: tuple[int, int] | None = None

    def add(self, lengths_U: np.ndarray, items_N: np.ndarray, times_N: np.ndarray | None) -> None:
        """Count the interactions of some users."""
        if len(items_N) == 0:
            return
        n_items = len(self.counts_I)
        self._lengths.append(lengths_U)
        self.counts_I += np.bincount(items_N, minlength=n_items)
        users_N = np.repeat(np.arange(len(lengths_U), dtype=np.int32), lengths_U)
        # Users are in order, so that a stable sort by item puts a user's repeats side by side.
        by_item_N = stable_argsort(items_N)
        again_N = _equal_to_next(items_N[by_item_N]) & _equal_to_next(users_N[by_item_N])
        self._repeats += int(np.count_nonzero(again_N))
        if times_N is not None:
            self._ties += int(np.count_nonzero(_equal_to_next(times_N) & _equal_to_next(users_N)))
            least, most = self._times or (int(times_N[0]), int(times_N[0]))
            self._times = (min(least, int(times_N.min())), max(most, int(times_N.max())))

    def offsets_U1(self) -> np.ndarray:
        """Where each user's interactions begin, int64."""
        return np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))])

    def statistics(self) -> dict[str, Any]:
        """The statistics of meta.json."""
        lengths_U, n_items = np.concatenate(self._lengths), len(self.counts_I)
        interactions = int(lengths_U.sum())
        statistics: dict[str, Any] = {
            "users": len(lengths_U),
            "items": n_items,
            "interactions": interactions,
            "density": interactions / (len(lengths_U) * n_items),
            "mean_length": float(lengths_U.mean()),
            "median_length": float(np.median(lengths_U)),
            "max_length": int(lengths_U.max()),
            "repeats": self._repeats,
        }
        if self._times is not None:
            statistics["ties"] = self._ties
            statistics["first_time"], statistics["last_time"] = self._times
        return statistics


def _equal_to_next(values_N: np.ndarray) -> np.ndarray:
    return values_N[1:] == values_N[:-1]


class ItemDomains:
    """The domain of each item: that of its first row in the source."""

    def __init__(self, n_items: int) -> None:
        self._first_row_I = np.full(n_items, np.iinfo(np.int64).max)
        self.domain_I = np.zeros(n_items, dtype=np.int32)

    def add(self, items_N: np.ndarray, rows_N: np.ndarray, domains_N: np.ndarray) -> None:
        """Note the domains of some interactions with the numbers of their rows."""
        order_N = np.lexsort((rows_N, items_N))
        items_N = items_N[order_N]
        first = np.flatnonzero(np.diff(items_N, prepend=-1))
        items, rows, domains = items_N[first], rows_N[order_N[first]], domains_N[order_N[first]]
        earlier = rows < self._first_row_I[items]
        self._first_row_I[items[earlier]] = rows[earlier]
        self.domain_I[items[earlier]] = domains[earlier]
