"""Which interactions are for training, validation and test: where each user's sequence is cut.

Positions count from 0 within a user's sequence, ordered by (time, row of the source). Shape suffixes: U users, N
interactions, I items of the store, V items of the catalogue, T targets of evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise, starmap
from typing import Any, NamedTuple

import numpy as np

from lrec.data.store.store import Store
from lrec.errors import UserError, check_range

HELD_OUT_MIN_LENGTH = 50  # users with more interactions than this may be held out whole


class SplitRule(ABC):
    """A way to cut every user's sequence: `LastItems`, `GlobalTemporal`, `UserSplit`, or a class of your own: a frozen
    dataclass that defines `cut`. Its fields are its options (`--data.split my_split.Rule`), and its repr is part of the
    data hash, by which a run knows what it was trained on."""

    @property
    def trained_on(self) -> str:
        """The part of the rule that goes into the data hash."""
        return repr(self)

    @abstractmethod
    def cut(self, store: Store) -> "Split":
        """Decide where each user's sequence is cut. `items_N` and `times_N` of the store (None if the source has no
        times) are the interactions, user after user, each user's in time order. `offsets_U1` tells which of them belong
        to which user."""

    def __call__(self, store: Store) -> "Split":
        """Cut the store's users. Raise UserError if the cut is malformed, leaks, or leaves nothing to train on."""
        name = type(self).__name__
        if not is_dataclass(self):
            raise UserError(f"split {name}: make it a frozen dataclass, so that its options are part of its repr")
        split = self.cut(store)
        if not isinstance(split, Split):
            raise UserError(f"split {name}: cut returned {type(split).__name__}, not a Split")
        try:
            split.check()
        except AssertionError as error:
            raise UserError(f"split {name}: {error}") from None
        if len(split.catalogue_V) == 0:
            raise UserError(f"split {name}: the split leaves nothing to train on: hold out less")
        return split


@dataclass(frozen=True)
class LastItems(SplitRule):
    """Hold out the last items of each user.

    The last item of a user is the test target, and the item before it is the validation target. The input of the test
    includes the validation item. Users with fewer than 3 items are only for training. With a trajectory, the last
    `trajectory` items of users with more than `trajectory_min_length` interactions are held out first, and the two
    items before them are for test and validation.

    Args:
        trajectory: Number of last items of a long history that are held out, to predict them step by step; 0 for none
            (10 in LSRM).
        held_out_users: Share of the users with more than 50 interactions, chosen by the hash of their raw id, kept
            out of training, validation and test for the cold-start task.
        trajectory_min_length: Users with more interactions than this have a trajectory.
    """

    trajectory: int = 0
    held_out_users: float = 0.0
    trajectory_min_length: int = 15

    def __post_init__(self) -> None:
        check_range("split.trajectory", self.trajectory, at_least=0)
        check_range("split.held_out_users", self.held_out_users, at_least=0, at_most=1)
        if self.trajectory:  # so that something is left to train on
            option = f"split.trajectory_min_length, with trajectory {self.trajectory},"
            check_range(option, self.trajectory_min_length, at_least=self.trajectory + 2)

    def cut(self, store: Store) -> "Split":
        """Count from the end of each sequence."""
        lengths_U = np.diff(store.offsets_U1)
        held_out_U = (lengths_U > HELD_OUT_MIN_LENGTH) & chosen_users(store, "held out", self.held_out_users)
        long_U = (lengths_U > self.trajectory_min_length) if self.trajectory else np.zeros_like(held_out_U)
        end_U = lengths_U - long_U * self.trajectory
        evaluated_U = end_U >= 3
        train_U = np.where(held_out_U, 0, np.where(evaluated_U, end_U - 2, lengths_U))
        val_U, test_U = (np.where(evaluated_U, end_U - back, -1) for back in (2, 1))
        number_U, trajectory_U = evaluated_U.astype(np.int64), np.where(long_U, end_U, -1)
        return Split(store, train_U, val_U, number_U, test_U, number_U, trajectory_U, held_out_U)


@dataclass(frozen=True)
class UserSplit(SplitRule):
    """Validate and test on users who are not used for training (strong generalisation).

    Each user belongs to one part, chosen by the hash of the raw id. All items of a validation or test user except the
    first are targets. The input of a target is the last max_len items before it.

    Args:
        validation: Share of the users for validation.
        test: Share of the users for the test.
    """

    validation: float = 0.05
    test: float = 0.05

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            check_range(f"split.{name}", getattr(self, name), above=0, below=1)
        if self.validation + self.test >= 1:
            raise UserError(f"split: validation {self.validation} and test {self.test} leave no user to train on")

    def cut(self, store: Store) -> "Split":
        """Assign each user to one part."""
        share_U, lengths_U = user_hashes(store, "part") / 2**64, np.diff(store.offsets_U1)
        validates_U = share_U < self.validation
        tests_U = ~validates_U & (share_U < self.validation + self.test)
        val_targets_U, test_targets_U = (np.maximum(lengths_U - 1, 0) * each for each in (validates_U, tests_U))
        for name, number_U in (("validation", val_targets_U), ("test", test_targets_U)):
            if not number_U.any():
                raise UserError(f"split.{name} {getattr(self, name)}: no target in {store.n_users} users; increase it")
        train_U = np.where(validates_U | tests_U, 0, lengths_U)
        val_U, test_U = (np.where(number_U > 0, 1, -1) for number_U in (val_targets_U, test_targets_U))
        none_U, nobody_U = np.full(store.n_users, -1), np.zeros(store.n_users, dtype=bool)
        return Split(store, train_U, val_U, val_targets_U, test_U, test_targets_U, none_U, nobody_U)


class Targets(NamedTuple):
    """What to predict: one row per target, by user and position."""

    users_T: np.ndarray
    positions_T: np.ndarray


@dataclass(frozen=True)
class Split:
    """Positions of the cuts, by user; -1 if a user has no such part. A user's targets of one kind are consecutive.

    Attributes:
        store: The store that is split.
        train_U: Number of leading items in the unreduced training part, 0 for a held-out user.
        val_U: Position of the first validation target.
        val_targets_U: Number of validation targets.
        test_U: Position of the first test target.
        test_targets_U: Number of test targets.
        trajectory_U: Position of the first trajectory item.
        held_out_U: Users without a training part. They have targets, but `val_users`, `val_targets`, `test_users` and
            `test_targets` leave them out.
        target_N: Which interactions may be targets, in training and in evaluation; None: all.
        sets_2: Whether a user's validation targets, and test targets, are one set, predicted once, before its first
            item.
        features: Function of rows of the store: what a network reads of these interactions besides item and time, (N,
            F). None if this is at most the type of event.
    """

    store: Store
    train_U: np.ndarray
    val_U: np.ndarray
    val_targets_U: np.ndarray
    test_U: np.ndarray
    test_targets_U: np.ndarray
    trajectory_U: np.ndarray
    held_out_U: np.ndarray
    target_N: np.ndarray | None = None
    sets_2: np.ndarray = field(default_factory=lambda: np.zeros(2, dtype=bool))
    features: Callable[[np.ndarray], np.ndarray] | None = None

    @cached_property
    def val_users(self) -> np.ndarray:
        """Users with a validation target, without held-out users, ascending."""
        return np.flatnonzero((self.val_U >= 0) & ~self.held_out_U)

    @cached_property
    def test_users(self) -> np.ndarray:
        """Users with a test target, without held-out users, ascending."""
        return np.flatnonzero((self.test_U >= 0) & ~self.held_out_U)

    @cached_property
    def val_targets(self) -> Targets:
        """Every validation target of `val_users`, user after user; of a set, the position where it begins."""
        return self._targets(self.val_users, self.val_U, self.val_targets_U, self.sets_2[0])

    @cached_property
    def test_targets(self) -> Targets:
        """Every test target of `test_users`, user after user; of a set, the position where it begins."""
        return self._targets(self.test_users, self.test_U, self.test_targets_U, self.sets_2[1])

    @cached_property
    def held_out_targets(self) -> Targets:
        """The last item of every held-out user who has one, if it may be a target."""
        lengths_U = np.diff(self.store.offsets_U1)
        return self._targets(np.flatnonzero(self.held_out_U), lengths_U - 1, np.minimum(lengths_U, 1), False)

    def _targets(self, users: np.ndarray, first_U: np.ndarray, number_U: np.ndarray, are_sets: bool) -> Targets:
        users_T, positions_T = np.repeat(users, number_U[users]), ranges(first_U[users], number_U[users])
        may_T = self.may_be_targets(self.store.offsets_U1[users_T] + positions_T)
        if are_sets:
            users = np.unique(users_T[may_T])
            return Targets(users, first_U[users])
        return Targets(users_T[may_T], positions_T[may_T])

    def may_be_targets(self, rows_N: np.ndarray) -> np.ndarray:
        """Which of these interactions, rows of the store, may be targets, bool (N,)."""
        return np.ones(len(rows_N), dtype=bool) if self.target_N is None else self.target_N[rows_N]

    def target_items(self, targets: Targets) -> np.ndarray:
        """Catalogue index of each target, int64 (T,); -1 outside the catalogue, or after the last item of the user."""
        begins_U, (users_T, positions_T) = self.store.offsets_U1, targets
        exists_T = begins_U[users_T] + positions_T < begins_U[users_T + 1]
        items_T = self.store.items_N.take(self.rows_of(targets), mode="clip")
        return np.where(exists_T, self.catalogue_index_I[items_T], -1)

    def is_known(self, targets: Targets) -> np.ndarray:
        """Whether each target is an item of the catalogue, bool (T,)."""
        return self.target_items(targets) >= 0

    def events(self, rows_N: np.ndarray) -> np.ndarray | None:
        """What a network reads of interactions besides item and time, int64: the type of each, (N,), or, with features,
        the rows of the network's feature table for each, (N, F). None if it reads nothing else."""
        if self.features is not None:
            return self.features(rows_N)
        return None if self.store.events_N is None else self.store.events_N[rows_N].astype(np.int64)

    def rows_of(self, targets: Targets) -> np.ndarray:
        """The store row of each target; of a set, that of its first item that may be a target."""
        rows_T = self.store.offsets_U1[targets.users_T] + targets.positions_T
        if self.target_N is None or not self.sets_2.any():
            return rows_T
        may_be = np.flatnonzero(self.target_N)
        return may_be[np.searchsorted(may_be[:-1], rows_T)]

    def training_rows(self) -> Iterator[np.ndarray]:
        """The rows of the unreduced training part, block by block."""
        for users in blocks_of_users(self.train_U):
            yield ranges(self.store.offsets_U1[:-1][users], self.train_U[users])

    @cached_property
    def counts_I(self) -> np.ndarray:
        """Interactions of each item of the store in the unreduced training part, int64."""
        counts_I = np.zeros(self.store.n_items, dtype=np.int64)
        for rows_N in self.training_rows():
            counts_I += np.bincount(self.store.items_N[rows_N], minlength=len(counts_I))
        return counts_I

    @classmethod
    def of_arrays(cls, store: Store, arrays: dict[str, np.ndarray]) -> "Split":
        """The split that has these arrays, counts included."""
        mine: dict[str, Any] = {each.name: arrays[each.name] for each in fields(cls) if each.name in arrays}
        split = cls(store, **mine)
        vars(split).update(arrays)  # cached properties too
        return split

    @cached_property
    def catalogue_V(self) -> np.ndarray:
        """Store index of each catalogue item, ascending: the items of the unreduced training part."""
        return np.flatnonzero(self.counts_I)

    @cached_property
    def counts_V(self) -> np.ndarray:
        """Interactions of each catalogue item in the unreduced training part, int64."""
        return self.counts_I[self.catalogue_V]

    @cached_property
    def catalogue_index_I(self) -> np.ndarray:
        """Catalogue index of each store item, int64; -1 for an item outside the catalogue."""
        known_I = self.counts_I > 0
        return np.where(known_I, np.cumsum(known_I) - 1, -1)

    @property
    def counts(self) -> dict[str, int]:
        """Number of interactions in the training part and the trajectories, of targets or sets of targets, of catalogue
        items and of held-out users."""
        sets = [" sets" * bool(are_sets) for are_sets in self.sets_2]
        last_U = (np.diff(self.store.offsets_U1) - self.trajectory_U) * (self.trajectory_U >= 0)
        return {
            "training": int(self.train_U.sum()),
            f"validation{sets[0]}": len(self.val_targets.users_T),
            f"test{sets[1]}": len(self.test_targets.users_T),
            "trajectory": int(last_U[~self.held_out_U].sum()),
            "catalogue": len(self.catalogue_V),
            "held-out users": int(self.held_out_U.sum()),
        }

    def of_users(self, chosen_U: np.ndarray) -> "Split":
        """The same split, with only the targets and trajectories of the chosen users. The training part stays."""
        positions, numbers = ("val_U", "test_U", "trajectory_U"), ("val_targets_U", "test_targets_U", "held_out_U")
        changed: dict[str, Any] = {name: np.where(chosen_U, getattr(self, name), -1) for name in positions}
        return replace(self, **changed, **{name: getattr(self, name) * chosen_U for name in numbers})

    def check(self) -> None:
        """Raise AssertionError unless training < validation < test < trajectory holds within every user."""
        self._check_shapes()
        end_U, leaks_U = np.diff(self.store.offsets_U1), self.held_out_U & (self.train_U > 0)
        test, val = (self.test_U, self.test_targets_U), (self.val_U, self.val_targets_U)
        for begin_U, number_U in ((self.trajectory_U, 0), test, val, (0, self.train_U)):
            leaks_U |= (begin_U >= 0) & (begin_U + number_U > end_U)
            end_U = np.where(begin_U >= 0, begin_U, end_U)
        refuse_leak(leaks_U)

    def _check_shapes(self) -> None:
        n_users = self.store.n_users
        for name, values_U in vars(self).items():
            kinds, wanted = ("b", "bool") if name == "held_out_U" else ("iu", "integers")
            fits = isinstance(values_U, np.ndarray) and values_U.shape == (n_users,) and values_U.dtype.kind in kinds
            if name.endswith("_U") and not fits:
                raise AssertionError(f"{name} is not an array of {wanted}, one for each of {n_users} users")
        if (self.train_U < 0).any():
            raise AssertionError("train_U is negative")
        for part in ("val", "test"):
            first_U, number_U = getattr(self, f"{part}_U"), getattr(self, f"{part}_targets_U")
            wrong_U = (number_U < 0) | ((number_U > 0) != (first_U >= 0))
            if wrong_U.any():
                user = int(wrong_U.argmax())
                raise AssertionError(
                    f"user {user} (store index) has {part}_U {first_U[user]} and {part}_targets_U {number_U[user]}: "
                    "give a position and a number of targets, or -1 and 0"
                )

    def check_times(self, validation: bool = True) -> None:
        """Raise AssertionError unless training < validation < test holds in time, over all users together. Without
        `validation`, only check that training and validation lie before the test."""
        assert self.store.times_N is not None
        none_U, latest = np.zeros_like(self.train_U), -np.inf
        train, val, test = (none_U, self.train_U), (self.val_U, self.val_targets_U), (self.test_U, self.test_targets_U)
        before = [train, val] if validation else [(none_U, np.maximum(self.train_U, self.val_U + self.val_targets_U))]
        for begin_U, number_U in (*before, test):
            times_T = self.store.times_N[ranges(self.store.offsets_U1[:-1] + begin_U, number_U)]
            if (times_T <= latest).any():
                raise AssertionError(f"leak: a target at time {times_T.min()}, earlier parts reach to {latest}")
            latest = times_T.max() if len(times_T) else latest


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers starts[i] .. starts[i] + lengths[i] - 1 for each i, concatenated."""
    shifts = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return shifts + np.arange(len(shifts))


def blocks_of_users(lengths_U: np.ndarray, most: int = 1 << 22) -> Iterator[slice]:
    """All users in blocks of about `most` entries, so that a computation over the entries needs little memory."""
    ends_U = np.cumsum(lengths_U)
    bounds = np.searchsorted(ends_U, np.arange(0, int(lengths_U.sum()), most), side="right")
    return starmap(slice, pairwise([*bounds.tolist(), len(ends_U)]))


def refuse_leak(leaks_U: np.ndarray) -> None:
    """Raise AssertionError if one of the users has a held-out position in the training part."""
    if leaks_U.any():
        user = int(leaks_U.argmax())
        raise AssertionError(f"leak: held-out positions in the training part of user {user} (store index)")


def user_hashes(store: Store, purpose: str) -> np.ndarray:
    """A 64-bit hash of each user's raw id, uint64, different for each purpose."""
    key = purpose.encode()
    digests = b"".join(blake2b(raw.encode(), digest_size=8, key=key).digest() for raw in store.raw_user_ids)
    return np.frombuffer(digests, dtype="<u8")


def chosen_users(store: Store, purpose: str, share: float) -> np.ndarray:
    """Which users are in a share of all users, chosen by their hash, bool (U,)."""
    if share in (0, 1):
        return np.full(store.n_users, bool(share))
    return user_hashes(store, purpose) < np.uint64(int(share * 2**64))


def hash_numbers(numbers: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer (Steele et al. 2014): a well mixed, fixed 64-bit hash of each number."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
