"""The split by time.

Positions count from 0 within a user's sequence, ordered by (time, row of the source). Shape suffix: U users.
"""

import re
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np

from lrec.data.splits.rules import Split, SplitRule
from lrec.data.store.store import TIME_UNITS, Store
from lrec.errors import UserError

_DURATION = re.compile(r"(\d+)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, repr=False)
class GlobalTemporal(SplitRule):
    """Cut everyone's sequence at the same two times: training before the first, validation up to the second, then test.

    A cut is a share of all interactions in the order of time (0.8), a time in the source's unit (1388534400), or an ISO
    date, UTC unless it says otherwise ("2014-01-01"). Interactions at the time of a cut come after it, so that ties
    stay together. A target's input is everything of the user before it, including targets; a user's very first
    interaction is not a target, because it has no input.

    Args:
        validate_from: First cut: share of all interactions (above 0, below 1), epoch (whole number) or ISO date.
        test_from: Second cut, in the same way.
        targets: Which of a user's interactions between the cuts, and after the second, are targets: the first or all.
        test_until: End of the test, given like the cuts, or as a duration after the second cut ("90s", "30m", "12h",
            "7d", "2w"). What happens at this time or later is no part of the split. null: the test has no end.
    """

    validate_from: int | float | str = 0.8
    test_from: int | float | str = 0.9
    targets: Literal["first", "all"] = "first"
    test_until: int | float | str | None = None

    def __post_init__(self) -> None:
        for name in ("validate_from", "test_from", "test_until"):
            cut = getattr(self, name)
            if isinstance(cut, float) and not 0 < cut < 1:
                raise UserError(f"split.{name} must be a share below 1, a whole epoch or an ISO date, not {cut}")
            if isinstance(cut, str) and not (name == "test_until" and _DURATION.fullmatch(cut)):
                _instant(name, cut)

    def __repr__(self) -> str:
        """The three options that were always there, and of later ones those that are set: the hash of the data of
        earlier runs stays."""
        told = [
            each for number, each in enumerate(fields(self)) if number < 3 or getattr(self, each.name) != each.default
        ]
        return f"{type(self).__name__}({', '.join(f'{each.name}={getattr(self, each.name)!r}' for each in told)})"

    def cut(self, store: Store) -> Split:
        """Cut by time; times are checked for leaks over all users."""
        if store.times_N is None:
            raise UserError("a split by time needs times, and the data have none: choose LastItems")
        first, second = (_cut_time(store, name, getattr(self, name)) for name in ("validate_from", "test_from"))
        if first >= second:
            raise UserError(
                f"split.validate_from={self.validate_from} (time {first}) must lie before "
                f"split.test_from={self.test_from} (time {second})"
            )
        train_U, seen_U, end_U = _count_before(store, first), _count_before(store, second), np.diff(store.offsets_U1)
        if self.test_until is not None:
            end = _cut_time(store, "test_until", self.test_until, second)
            if end <= second:
                raise UserError(
                    f"split.test_from={self.test_from} (time {second}) must lie before "
                    f"split.test_until={self.test_until} (time {end})"
                )
            end_U = _count_before(store, end)
        val_U, val_targets_U = self._targets(train_U, seen_U)
        test_U, test_targets_U = self._targets(seen_U, end_U)
        for name, targets_U in (("validation", val_targets_U), ("test", test_targets_U)):
            if not targets_U.any():
                raise UserError(f"the split leaves no {name} target: cut the times {first} and {second} elsewhere")
        split = Split(
            store=store,
            train_U=train_U,
            val_U=val_U,
            val_targets_U=val_targets_U,
            test_U=test_U,
            test_targets_U=test_targets_U,
            trajectory_U=np.full(store.n_users, -1),
            held_out_U=np.zeros(store.n_users, dtype=bool),
        )
        split.check_times()
        return split

    def _targets(self, begin_U: np.ndarray, end_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position of the first target (-1 if there is none) and number of targets among positions begin .. end - 1."""
        begin_U = np.maximum(begin_U, 1)
        targets_U = np.maximum(end_U - begin_U, 0)
        if self.targets == "first":
            targets_U = np.minimum(targets_U, 1)
        return np.where(targets_U > 0, begin_U, -1), targets_U


def _cut_time(store: Store, name: str, cut: int | float | str, since: int = 0) -> int:
    """The earliest time that comes after the cut, in the store's unit; a duration begins at the time `since`."""
    assert store.times_N is not None
    if isinstance(cut, float):
        place = min(int(cut * len(store.times_N) + 1e-9), len(store.times_N) - 1)
        return int(np.partition(store.times_N, place)[place])
    if isinstance(cut, int):
        return cut
    unit = store.facts.get("time_unit")
    if unit not in TIME_UNITS:
        raise UserError(f"split.{name}={cut}: the data's times are no dates; give a share or a number")
    if duration := _DURATION.fullmatch(cut):
        return since + int(duration[1]) * _SECONDS[duration[2]] * TIME_UNITS[unit]
    microseconds = (_instant(name, cut) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return -(-microseconds * TIME_UNITS[unit] // 10**6)


def _instant(name: str, cut: str) -> datetime:
    try:
        instant = datetime.fromisoformat(cut)
    except ValueError:
        duration = ", and no duration such as 7d or 12h" if name == "test_until" else ""
        raise UserError(f"split.{name}={cut} is no ISO date such as 2014-01-31 or 2014-01-31T12:00{duration}") from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _count_before(store: Store, time: int) -> np.ndarray:
    """Each user's number of interactions before the time, which are the first ones, in order of time."""
    assert store.times_N is not None
    return np.add.reduceat(store.times_N < time, store.offsets_U1[:-1], dtype=np.int64)
