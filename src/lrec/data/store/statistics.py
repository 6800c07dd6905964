"""A store's statistics: counted while it is written, and shown by `lrec data describe`. Shape suffixes: N interactions,
U users, I items."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from lrec.data.store.store import TIME_UNITS, Store


class Counter:
    """Counts statistics of interactions that are added user after user, all interactions of a user at once."""

    def __init__(self, n_items: int) -> None:
        self.counts_I = np.zeros(n_items, dtype=np.int64)
        self._lengths: list[np.ndarray] = []
        self._repeats = self._ties = 0
        self._times: list[int] = []

    def add(self, lengths_U: np.ndarray, items_N: np.ndarray, times_N: np.ndarray | None) -> None:
        if len(items_N) == 0:
            return
        n_items = len(self.counts_I)
        self._lengths.append(lengths_U)
        self.counts_I += np.bincount(items_N, minlength=n_items)
        users_N = np.repeat(np.arange(len(lengths_U)), lengths_U)
        pairs_N = np.sort(users_N * n_items + items_N)
        self._repeats += int(np.count_nonzero(pairs_N[1:] == pairs_N[:-1]))
        if times_N is not None:
            self._ties += int(np.count_nonzero((times_N[1:] == times_N[:-1]) & (users_N[1:] == users_N[:-1])))
            times = (*self._times, int(times_N.min()), int(times_N.max()))
            self._times = [min(times), max(times)]

    def offsets_U1(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))])

    def statistics(self) -> dict[str, Any]:
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
        if self._times:
            statistics["ties"] = self._ties
            statistics["first_time"], statistics["last_time"] = self._times
        return statistics


def describe(store: Path, verify: bool = False) -> None:
    """Print a store's statistics.

    Args:
        store: The store's folder.
        verify: Hash every file of the store as a whole.
    """
    opened = Store.open(store, verify)
    about = [("store", str(store)), ("k_core", str(opened.meta["options"]["k_core"]))]
    features = [
        (f"feature {name}", "numbers" if texts is None else f"{len(texts):,} values")
        for name, texts in opened.meta.get("features", {}).items()
    ]
    print_rows([*about, *in_words(opened.statistics, opened.facts), *features])


def print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def in_words(counted: Mapping[str, Any], about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The statistics and facts of a store, each with its name."""
    facts = dict(about)
    unit = facts.pop("time_unit", None)
    lengths = f"mean {counted['mean_length']:.1f}, median {counted['median_length']:g}, max {counted['max_length']:,}"
    rows = [(name, f"{counted[name]:,}") for name in ("users", "items", "interactions")]
    rows += [("density", f"{counted['density']:.4%}"), ("length", lengths)]
    if "first_time" in counted:
        rows.append(("time", f"{time_text(counted['first_time'], unit)} to {time_text(counted['last_time'], unit)}"))
        rows.append(("ties in time", _share(counted["ties"], counted["interactions"])))
    else:
        rows.append(("time", "none: rows are in time order"))
    rows.append(("repeats of an item", _share(counted["repeats"], counted["interactions"])))
    for name in ("duplicates_dropped", "domains"):
        if name in counted:
            rows.append((name.replace("_", " "), f"{counted[name]:,}"))
    return rows + [(name, str(value)) for name, value in facts.items()]


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"


def time_text(value: int, unit: Any) -> str:
    """A time of this unit as a date, or as a plain number if that is not possible."""
    if unit not in TIME_UNITS:
        return f"{value:,}"
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=value // TIME_UNITS[unit])
    except OverflowError:  # the year is not from 1 to 9999
        return f"{value:,} {unit}"
    return f"{moment:%Y-%m-%d %H:%M}"
