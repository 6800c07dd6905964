"""Which part of the data is used: a part of the training data, or one domain, cut at the same places as all domains
together. What is held out for a model of all domains is also held out for a model of one domain. So one model may start
from the other and be compared with it. Shape suffixes: U users, N interactions, I items of the store."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lrec.common.files import json_hash
from lrec.data.splits.rules import Split, blocks_of_users, chosen_users, hash_numbers, ranges, refuse_leak
from lrec.data.splits.temporal import count_before
from lrec.data.store.store import Store
from lrec.errors import UserError, check_range


@dataclass(frozen=True, repr=False)
class Reduction:
    """Keep a part of the training data. The catalogue and all validation and test targets stay. A larger share contains
    the smaller shares.

    lrec first chooses users, then the recent items of each user, then single interactions of these items. With `since`,
    all new interactions are kept, and the shares say which old interactions are kept too (a replay).

    Args:
        users: Share of the users, chosen by the hash of their raw id; 0 only with since.
        interactions: Share of the training interactions, chosen by the hash of their place in the store.
        recent: Most recent share of each user's training items, rounded up.
        since: Time in the source's unit. All interactions from this time on are kept, for all users; null: only the
            shares count.
        before: With since, the number of interactions before this time that are kept as input for users who are not
            chosen.
    """

    users: float = 1.0
    interactions: float = 1.0
    recent: float = 1.0
    since: int | None = None
    before: int = 0

    def __repr__(self) -> str:
        # The repr is part of the data hash. Without `since`, it stays as it was before that option existed.
        names = ("users", "interactions", "recent", *(() if self.since is None else ("since", "before")))
        return f"Reduction({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def __post_init__(self) -> None:
        for name in ("users", "interactions", "recent"):
            some = {"at_least": 0} if name == "users" and self.since is not None else {"above": 0}
            check_range(f"reduction.{name}", getattr(self, name), **some, at_most=1)
        check_range("reduction.before", self.before, at_least=0)


@dataclass(frozen=True)
class TrainingPart:
    """Training sequences: user u owns lengths_U[u] entries from starts_U[u] on. An entry is a row of the store. If
    single interactions were dropped, it is a place in `rows`, which holds ascending rows of the store."""

    split: Split
    starts_U: np.ndarray
    lengths_U: np.ndarray
    rows: np.ndarray | None = None

    def items(self, places: np.ndarray) -> np.ndarray:
        return self.split.store.items_N[self.rows_at(places)]

    def rows_at(self, places: np.ndarray) -> np.ndarray:
        """The store row of each entry."""
        return places if self.rows is None else self.rows[places]

    @property
    def n_positions(self) -> int:
        """Number of positions in an epoch: all entries except the last one of each user."""
        return int(np.maximum(self.lengths_U - 1, 0).sum())

    @cached_property
    def n_targets(self) -> int:
        """U, the number of targets in an epoch. A position has a target if the event after it may be one."""
        return self.targets_in(self.starts_U, np.maximum(self.lengths_U - 1, 0))

    def targets_in(self, starts: np.ndarray, lengths: np.ndarray) -> int:
        """Number of targets in windows that begin at `starts` and have `lengths` positions."""
        if (target_N := self.split.target_N) is None:
            return int(lengths.sum())
        places = (ranges(starts[some] + 1, lengths[some]) for some in blocks_of_users(lengths))
        return sum(int(np.count_nonzero(target_N[self.rows_at(each)])) for each in places)

    def check(self) -> None:
        """Raise AssertionError if an entry lies outside its user's unreduced training part."""
        users = np.flatnonzero(self.lengths_U)
        starts, begin = self.starts_U[users], self.split.store.offsets_U1[users]
        first, last = self.rows_at(starts), self.rows_at(starts + self.lengths_U[users] - 1)
        leaks_U = np.zeros(len(self.lengths_U), dtype=bool)
        leaks_U[users] = (first < begin) | (last >= begin + self.split.train_U[users])
        refuse_leak(leaks_U)


def training_part(split: Split, reduction: Reduction) -> TrainingPart:
    """The training items of the split that the reduction keeps, checked for leaks."""
    lengths_U = split.train_U * chosen_users(split.store, "reduction", reduction.users)
    # The tolerance keeps 0.1 * 30 = 3.0000000000000004 at 3.
    kept_U = np.ceil(lengths_U * reduction.recent - 1e-9).astype(np.int64)
    if reduction.since is not None:
        if split.store.times_N is None:
            raise UserError("reduction.since needs times, and the data have none")
        new_U = np.maximum(split.train_U - count_before(split.store, reduction.since), 0)
        kept_U = np.maximum(kept_U, np.where(new_U > 0, np.minimum(new_U + reduction.before, split.train_U), 0))
        lengths_U = np.where(kept_U > 0, split.train_U, 0)
    starts_U = split.store.offsets_U1[:-1] + lengths_U - kept_U
    part = TrainingPart(split, starts_U, kept_U)
    if reduction.interactions < 1:
        rows, since, times_N = ranges(starts_U, kept_U), reduction.since, split.store.times_N
        old_P = np.arange(len(rows)) if since is None or times_N is None else np.flatnonzero(times_N[rows] < since)
        count = int(np.ceil(len(old_P) * reduction.interactions - 1e-9))
        rows = np.delete(rows, old_P[np.argsort(hash_numbers(rows[old_P]), kind="stable")[count:]])
        bounds_U1 = np.searchsorted(rows, split.store.offsets_U1)
        part = TrainingPart(split, bounds_U1[:-1], np.diff(bounds_U1), rows)
    part.check()
    return part


@dataclass(frozen=True)
class DomainStore(Store):
    """A store's interactions with the items of one domain; users and items keep the store's indices."""

    domain: str

    @property
    def hash(self) -> str:
        return json_hash([super().hash, self.domain])

    @cached_property
    def kept_N(self) -> np.ndarray:
        """Which interactions of the whole store belong to the domain."""
        in_domain_I = (self.item_table["domain"] == self.domain).fill_null(False).to_numpy()
        return in_domain_I[super()._map("items.npy")]

    def _map(self, name: str) -> np.ndarray:
        values = super()._map(name)
        return self.before_N1[values] if name == "offsets.npy" else values[self.kept_N]

    @cached_property
    def before_N1(self) -> np.ndarray:
        """How many of the domain's interactions come before each interaction of the whole store."""
        return np.concatenate([[0], np.cumsum(self.kept_N)])


def of_domain(split: Split, domain: str) -> Split:
    """The parts of a split that are interactions with a domain's items. The catalogue is its training items."""
    whole = split.store
    domains = whole.item_table["domain"].drop_nulls().unique().sort().to_list()
    if domain not in domains:
        known = f"choose one of {', '.join(domains)}" if domains else "the data have no domains"
        raise UserError(f"only_domain {domain!r}: {known}")
    store = DomainStore(whole.path, whole.meta, domain)
    first_U, before_N1 = whole.offsets_U1[:-1], store.before_N1

    def within(positions_U: np.ndarray) -> np.ndarray:
        """How many of each user's first `positions_U` interactions belong to the domain."""
        return before_N1[first_U + positions_U] - before_N1[first_U]

    def part(position_U: np.ndarray, number_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First position and number of the domain's targets in a part of the split, by user."""
        begin_U = np.maximum(position_U, 0)
        mine_U = np.where(position_U < 0, 0, within(begin_U + number_U) - within(begin_U))
        return np.where(mine_U > 0, within(begin_U), -1), mine_U

    val, test = part(split.val_U, split.val_targets_U), part(split.test_U, split.test_targets_U)
    trajectory_U = np.where(split.trajectory_U < 0, -1, within(np.maximum(split.trajectory_U, 0)))
    target_N = None if split.target_N is None else split.target_N[store.kept_N]
    result = Split(store, within(split.train_U), *val, *test, trajectory_U, split.held_out_U, target_N, split.sets_2)
    result.check()
    if len(result.catalogue_V) == 0:
        raise UserError(f"only_domain {domain!r}: the split leaves nothing of it to train on")
    return result
