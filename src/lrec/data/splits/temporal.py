"""The split by time. Shape suffixes and positions: see `rules`."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Literal

import numpy as np

from lrec.data.formats.times import is_like_a_date
from lrec.data.splits.rules import Split, SplitRule, user_hashes
from lrec.data.store.store import TIME_UNITS, Store, seconds_in, time_text
from lrec.errors import UserError, check_range

Which = Literal["first", "last", "random", "all", "window"]


@dataclass(frozen=True)
class GlobalTemporal(SplitRule):
    """Cut all histories at the same two times: training before the first cut, validation up to the second, then the
    test.

    A cut is a share of all interactions in the order of time (0.8), a time in the source's unit (1388534400), or an ISO
    date ("2014-01-01", in UTC without an offset). Interactions at the time of a cut come after it, so that ties stay
    together. The input of a target is all earlier items of the user, including targets. The first interaction of a user
    is not a target, because it has no input.

    Args:
        validate_from: First cut: share of all interactions (above 0, below 1), Unix time (whole number) or ISO date.
        test_from: Second cut, in the same way.
        targets: Which interactions of a user between the cuts, and after the second cut, are targets: the first, the
            last, a random one, all (each after the interactions before it), or all as one set (window), predicted once,
            before the first of them.
        test_until: End of the test, given like the cuts, or as a duration after the second cut ("90s", "30m", "12h",
            "7d", "2w"). Interactions at this time or later are not in the split. null: the test has no end.
        test_targets: Targets of the test, if the rule differs from validation.
        validate_by: time: validation is between the cuts. last_item: training goes up to the second cut, but the last
            item before this cut of each user with at least three items is for validation. users: validation has the
            last items of some users, who are not used for training. With last_item and users, validate_from has no
            effect.
        held_out_users: Number of users for validate_by users: the users whose raw ids have the smallest hashes.
        seed: Seed of random targets, which are drawn by the hash of the user's raw id.
    """

    validate_from: int | float | str = 0.8
    test_from: int | float | str = 0.9
    targets: Which = "first"
    test_until: int | float | str | None = None
    test_targets: Which | None = None
    validate_by: Literal["time", "last_item", "users"] = "time"
    held_out_users: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("split.held_out_users", self.held_out_users, at_least=1)
        for name in ("validate_from", "test_from", "test_until"):
            cut = getattr(self, name)
            if not (name == "test_until" and isinstance(cut, str) and seconds_in(cut) is not None):
                check_cut(f"split.{name}", cut)

    @property
    def trained_on(self) -> str:
        """Options that only affect the test are left out, so that a run may be tested in several ways. Later options
        are left out if they are not set, so that the data hash of earlier runs stays the same."""
        names = ["validate_from", "test_from", "targets"]
        names += ["validate_by"] * (self.validate_by != "time") + ["held_out_users"] * (self.validate_by == "users")
        names += ["seed"] * (self.targets == "random" and self.seed != 0)  # it draws the targets of the validation too
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def cut(self, store: Store) -> Split:
        """Cut by time, and check for leaks in time over all users."""
        if store.times_N is None:
            raise UserError("a split by time needs times, and the data have none: choose LastItems")
        times = {"test_from": (second := cut_time(store, "split.test_from", self.test_from))}
        if self.validate_by == "time":
            times = {"validate_from": cut_time(store, "split.validate_from", self.validate_from)} | times
        if self.test_until is not None:
            times["test_until"] = cut_time(store, "split.test_until", self.test_until, second)
        for one, other in pairwise(times):
            if times[one] >= times[other]:
                said = [f"split.{name}={getattr(self, name)} (time {times[name]})" for name in (one, other)]
                raise UserError(f"{said[0]} must lie before {said[1]}")
        before_U = {name: count_before(store, time) for name, time in times.items()}
        seen_U, end_U = before_U["test_from"], before_U.get("test_until", np.diff(store.offsets_U1))
        train_U = before_U["validate_from"] if self.validate_by == "time" else self._training(store, seen_U)
        val_targets: Which = self.targets if self.validate_by == "time" else "last"
        test_targets = self.test_targets or self.targets
        val = self._targets(store, "validation", val_targets, train_U, seen_U)
        test = self._targets(store, "test", test_targets, seen_U, end_U)
        none_U, nobody_U = np.full(store.n_users, -1), np.zeros(store.n_users, dtype=bool)
        sets_2 = np.array([val_targets == "window", test_targets == "window"])
        split = Split(store, train_U, *val, *test, none_U, nobody_U, sets_2=sets_2)
        for name, targets_U in (("validation", split.val_targets_U), ("test", split.test_targets_U)):
            if not targets_U.any():
                cuts = ", ".join(f"{each} {time_text(time, store.time_unit)}" for each, time in times.items())
                why = "a target needs an earlier interaction of its user. Take other times, or users with more rows"
                raise UserError(f"the split leaves no {name} target ({cuts}): {why}")
        split.check_times(validation=self.validate_by == "time")
        return split

    def _training(self, store: Store, seen_U: np.ndarray) -> np.ndarray:
        """How many of the interactions before the test are for training, if last items are for validation, by user."""
        if self.validate_by == "last_item":
            return seen_U - (seen_U >= 3)
        users, train_U = np.flatnonzero(seen_U >= 2), seen_U.copy()
        train_U[users[np.argsort(user_hashes(store, "validates")[users])[: self.held_out_users]]] = 0
        return train_U

    def _targets(
        self, store: Store, purpose: str, which: Which, begin_U: np.ndarray, end_U: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Position of the first target (-1 if there is none) and number of targets among positions begin .. end - 1."""
        begin_U = np.maximum(begin_U, 1)
        number_U = np.maximum(end_U - begin_U, 0)
        has_U = number_U > 0
        if which in ("all", "window"):
            return np.where(has_U, begin_U, -1), number_U
        if which == "last":
            begin_U = end_U - 1
        elif which == "random":
            drawn_U = user_hashes(store, f"{purpose} target {self.seed}") % np.maximum(number_U, 1).astype(np.uint64)
            begin_U = begin_U + drawn_U.astype(np.int64)
        return np.where(has_U, begin_U, -1), has_U.astype(np.int64)


def check_cut(option: str, cut: int | float | str | None) -> None:
    """UserError if a cut is neither a share below 1, nor a whole number, nor an ISO date."""
    if isinstance(cut, float) and not 0 < cut < 1:
        raise UserError(f"{option} must be a share below 1, a whole Unix time or an ISO date, not {cut}")
    if isinstance(cut, str):
        _instant(option, cut)


def cut_time(store: Store, option: str, cut: int | float | str, since: int = 0) -> int:
    """The earliest time that comes after the cut, in the store's unit. A duration, such as 7d, counts from `since`."""
    assert store.times_N is not None
    if isinstance(cut, float):
        place = min(int(cut * len(store.times_N) + 1e-9), len(store.times_N) - 1)
        return int(np.partition(store.times_N, place)[place])
    if isinstance(cut, int) and not (store.time_unit == "us" and is_like_a_date(cut)):
        return cut
    cut = str(cut)  # it is a date, as in the log
    if store.time_unit not in TIME_UNITS:
        raise UserError(f"{option}={cut}: the data's times are no dates; give a share or a number")
    per_second = TIME_UNITS[store.time_unit]
    if (seconds := seconds_in(cut)) is not None:
        return since + seconds * per_second
    microseconds = (_instant(option, cut) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return -(-microseconds * per_second // 10**6)


def _instant(option: str, cut: str) -> datetime:
    try:
        instant = datetime.fromisoformat(re.sub(r"^(\d{8})(\d{4}|\d{6})$", r"\1T\2", cut))
    except ValueError:
        duration = ", and no duration such as 7d or 12h" if option == "split.test_until" else ""
        raise UserError(f"{option}={cut} is no ISO date such as 2014-01-31 or 2014-01-31T12:00{duration}") from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def count_before(store: Store, time: int) -> np.ndarray:
    """Number of interactions of each user before the time; these are the user's first ones."""
    assert store.times_N is not None
    has_U = np.diff(store.offsets_U1) > 0  # reduceat would count the next user's first interaction for an empty user
    before_U = np.zeros(store.n_users, dtype=np.int64)
    before_U[has_U] = np.add.reduceat(store.times_N < time, store.offsets_U1[:-1][has_U], dtype=np.int64)
    return before_U
