"""Which users are evaluated, and their batches: histories, and the targets that the network predicts within them or
after them.

Attention is causal, so the hidden state of a position depends only on the history up to this position. Targets of one
history share a row if the network would read the same positions for each of them: one pass over the row serves all.
A target may stand for a set: all items of a user in a window of time, predicted once, before the first of them.

Letters and padding: see `train_batches`. S seen pairs, P pairs of a target and an item of its set; of all batches, T
targets and R rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lrec.data.batching.plan import BatchPlan
from lrec.data.batching.train_batches import ALONE, Ranks, limited, padded, with_request
from lrec.data.splits.rules import Split, Targets, hash_numbers, ranges
from lrec.errors import UserError

MAX_TARGETS = 1024
MAX_POSITIONS = 16384
# Largest cost of an evaluation, as a share of the training since the previous one; and a number of users that it may
# always have, because a metric of fewer users says little.
SHARE = 0.1
LEAST_USERS = 2000
# Most scores of a test (targets times items): about ten minutes on two cores.
MOST_SCORES = 10**11


class EvalBatch(NamedTuple):
    """Histories, and the targets that follow them or beginnings of them; each row has at least one target."""

    items_BL: Tensor  # int64, the last max_len known items of each history
    positions_M: Tensor  # int64, flat b*L + l of the last known item before each target, row after row
    targets_M: Tensor  # int64, catalogue index; -1 if outside the catalogue
    weights_M: Tensor  # float32, 1; 0 for a filler row, or if no catalogue item comes before the target
    users_M: Tensor  # int64, user index in the store, -1 for a filler row
    seen_targets_S: Tensor  # int64, the target m of each seen pair
    seen_items_S: Tensor  # int64, the item of each pair: a catalogue item of the history before m; pairs are distinct
    times_BT: Tensor | None = None  # int64; the request has the time of the row's last target, or 0 without a target
    events_BL: Tensor | None = None  # int64, type of each item's event; with features (B, L, F), see `EventInput`
    true_targets_P: Tensor | None = None  # int64, if targets are sets: the target m of each pair
    true_items_P: Tensor | None = None  # int64, a catalogue item of its set; pairs ascend and are distinct
    n_true_M: Tensor | None = None  # int64, number of distinct items of the set, in the catalogue or not

    def parts(self, n: int) -> list["EvalBatch"]:
        """Split the rows into n parts; into one part if each of the n would be less than a quarter of a full batch."""
        n_rows, length = self.items_BL.shape
        full = max(len(self.targets_M) / MAX_TARGETS, n_rows * length / MAX_POSITIONS)
        if n_rows < n or 4 * full < n:
            return [self]
        bounds_R = torch.arange(n + 1) * n_rows // n
        bounds_M = torch.searchsorted(self.positions_M, bounds_R * length)
        # The last letter of a field's name is the dimension that is cut.
        bounds = {"L": bounds_R, "T": bounds_R, "M": bounds_M}
        given = {name: values for name, values in self._asdict().items() if values is not None}
        pairs = given.keys() & {"seen_targets_S", "true_targets_P"}
        bounds |= {name[-1]: torch.searchsorted(given[name], bounds_M) for name in pairs}
        parts = []
        for part in range(n):
            mine = {name: slice(*each[part : part + 2].tolist()) for name, each in bounds.items()}
            fields = {name: of_all[mine[name[-1]]] for name, of_all in given.items()}
            fields["positions_M"] = fields["positions_M"] - mine["L"].start * length
            fields |= {name: fields[name] - mine["M"].start for name in pairs}
            parts.append(EvalBatch(**fields))
        return parts


class Rows(NamedTuple):
    """Which targets share a row, in ascending order of the rows' lengths."""

    targets_T: np.ndarray  # indices, row after row; the target with a row's longest history is last
    counts_R: np.ndarray  # targets of each row
    lengths_R: np.ndarray  # positions of each row

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The targets of each batch, row after row, and the number of targets of each row."""
        starts_R1, rows = np.append(0, np.cumsum(self.counts_R)), batch_slices(self.lengths_R, self.counts_R)
        return [(self.targets_T[starts_R1[some.start] : starts_R1[some.stop]], self.counts_R[some]) for some in rows]


def rows_of(order_T: np.ndarray, begins_T: np.ndarray, lengths_T: np.ndarray) -> Rows:
    """Put targets into rows. `order_T` has the targets of a row next to each other, the longest history last. In this
    order, `begins_T` says whether a target begins a row, and `lengths_T` how many positions its history has."""
    first_R = np.flatnonzero(begins_T)
    counts_R = np.diff(first_R, append=len(order_T))
    lengths_R = lengths_T[first_R + counts_R - 1]
    ascending_R = np.argsort(lengths_R, kind="stable")
    counts_R = counts_R[ascending_R]
    return Rows(order_T[ranges(first_R[ascending_R], counts_R)], counts_R, lengths_R[ascending_R])


def shared_rows(split: Split, targets: Targets, max_len: int, with_times: bool = False) -> Rows:
    """The rows of targets: all histories of a user that have at most max_len items share a row."""
    users_T, ends_T = targets
    apart_T = ends_T > max_len  # cutting off the oldest items would shift the positions
    if with_times:
        # In a shared row, the time of the next known item is read as the time of the request: it must be the target's.
        apart_T |= ~split.is_known(targets)
    order_T = np.lexsort((ends_T, apart_T, users_T))
    begins_T = apart_T[order_T] | (np.diff(users_T[order_T], prepend=-1) != 0)
    return rows_of(order_T, begins_T, np.minimum(ends_T, max_len)[order_T])


def batch_slices(lengths_R: np.ndarray, counts_R: np.ndarray) -> Iterator[slice]:
    """Cut rows of ascending lengths into batches, by targets and padded positions."""
    end = 0
    while (start := end) < len(lengths_R):
        block = slice(start, start + MAX_TARGETS)
        positions = lengths_R[block] * np.arange(1, len(lengths_R[block]) + 1)
        fits = int(((positions <= MAX_POSITIONS) & (np.cumsum(counts_R[block]) <= MAX_TARGETS)).sum())
        end = start + max(fits, 1)
        yield slice(start, end)


def history_batch(
    items_N: np.ndarray,
    lengths_B: np.ndarray,
    max_len: int,
    n_items: int,
    times: tuple[np.ndarray, np.ndarray] | None = None,
    places: tuple[np.ndarray, np.ndarray] | None = None,
    events_N: np.ndarray | None = None,
) -> EvalBatch:
    """The batch of these histories, laid end to end, without targets. Items are catalogue indices; -1 is left out.

    `times` are the times of the items (N) and of the request of each history (B). `places` are the row of each target
    and the number of the row's items before it (M); by default, one target follows each row. A row of more than max_len
    items must have only one target.
    """
    rows_M, ends_M = places or (np.arange(len(lengths_B)), lengths_B)
    known_N = items_N >= 0
    known_before_N1 = np.append(0, np.cumsum(known_N))
    starts_B = np.cumsum(lengths_B) - lengths_B
    first_B = known_before_N1[starts_B]
    known_B = known_before_N1[starts_B + lengths_B] - first_B
    lengths_M = known_before_N1[starts_B[rows_M] + ends_M] - first_B[rows_M]
    kept_B = np.minimum(known_B, max_len)
    items_N, places_N = items_N[known_N], ranges(first_B + known_B - kept_B, kept_B)
    items_BL = padded(items_N[places_N], kept_B)
    last_M = lengths_M - (known_B - kept_B)[rows_M] - 1
    seen_S = np.repeat(np.arange(len(rows_M)) * n_items, lengths_M) + items_N[ranges(first_B[rows_M], lengths_M)]
    seen_S.sort()  # np.unique takes several times as long, because it may hash the values first
    seen_S = seen_S[np.diff(seen_S, prepend=-1) > 0]
    return EvalBatch(
        items_BL=items_BL,
        positions_M=torch.from_numpy(rows_M * items_BL.shape[1] + np.maximum(last_M, 0)),
        targets_M=torch.full((len(rows_M),), -1),
        weights_M=torch.from_numpy(lengths_M > 0).float(),
        users_M=torch.from_numpy(rows_M),
        seen_targets_S=torch.from_numpy(seen_S // n_items),
        seen_items_S=torch.from_numpy(seen_S % n_items),
        times_BT=None if times is None else with_request(times[0][known_N][places_N], kept_B, times[1]),
        events_BL=None if events_N is None else padded(events_N[known_N][places_N], kept_B),
    )


@dataclass
class EvalBatches(Dataset[EvalBatch]):
    """This rank's evaluation batches: each rank has as many, and each target is on exactly one rank. A target is the
    user's item at its position, or -1 after the last item; its history is the items before."""

    split: Split
    targets: Targets
    max_len: int
    ranks: Ranks = ALONE
    with_times: bool = False
    sizes_T: np.ndarray | None = None  # numbers of items, if targets are sets

    def __post_init__(self) -> None:
        batches = shared_rows(self.split, self.targets, self.max_len, self.with_times).batches()
        # By batch: targets, and the number in each row. After all targets comes that of a filler row, so that each rank
        # gets the same number of batches.
        self.batches = [*batches, *[(np.array([-1]), np.array([1]))] * (-len(batches) % self.ranks.world)]
        self._users_T = np.append(self.targets.users_T, -1).astype(np.int64)
        self._ends_T = np.append(self.targets.positions_T, 0)
        self.sizes_T = None if self.sizes_T is None else np.append(self.sizes_T, 0)
        self._items_T = self.split.target_items(Targets(self._users_T, self._ends_T))

    def __len__(self) -> int:
        return len(self.batches) // self.ranks.world

    def __iter__(self) -> Iterator[EvalBatch]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> EvalBatch:
        chosen_M, counts_B = self.batches[index * self.ranks.world + self.ranks.rank]
        split, store = self.split, self.split.store
        users_M, ends_M = self._users_T[chosen_M], self._ends_T[chosen_M]
        next_M, last_B = store.offsets_U1[users_M] + ends_M, np.cumsum(counts_B) - 1
        ends_B, next_B = ends_M[last_B], next_M[last_B]
        rows_N, times = ranges(next_B - ends_B, ends_B), None
        if self.with_times:
            has_target_B = next_B < store.offsets_U1[users_M[last_B] + 1]
            asked_B = np.where(has_target_B, store.seconds(np.minimum(next_B, len(store.items_N) - 1)), 0)
            times = store.seconds(rows_N), asked_B
        found = history_batch(
            split.catalogue_index_I[store.items_N[rows_N]],
            ends_B,
            self.max_len,
            len(split.catalogue_V),
            times,
            places=(np.repeat(np.arange(len(counts_B)), counts_B), ends_M),
            events_N=split.events(rows_N),
        )
        sets = {} if self.sizes_T is None else self._sets(next_M, self.sizes_T[chosen_M])
        items_M, users_M = torch.from_numpy(self._items_T[chosen_M]), torch.from_numpy(users_M)
        return found._replace(targets_M=items_M, users_M=users_M, **sets)

    def _sets(self, first_M: np.ndarray, sizes_M: np.ndarray) -> dict[str, Tensor]:
        """The fields of a batch that describe its sets, which begin at these rows of the store."""
        split, n_items = self.split, self.split.store.n_items
        of_N, rows_N = np.repeat(np.arange(len(sizes_M)), sizes_M), ranges(first_M, sizes_M)
        pairs_Q = np.unique((of_N * n_items + split.store.items_N[rows_N])[split.may_be_targets(rows_N)])
        of_Q, items_Q = pairs_Q // n_items, split.catalogue_index_I[pairs_Q % n_items]
        n_true_M, known_Q = np.bincount(of_Q, minlength=len(sizes_M)), items_Q >= 0
        found = {"true_targets_P": of_Q[known_Q], "true_items_P": items_Q[known_Q], "n_true_M": n_true_M}
        return {name: torch.from_numpy(values) for name, values in found.items()}


def check_targets(split: Split, target_events: list[str] | None, cold_targets: str) -> None:
    """UserError if there is nothing to evaluate."""
    for name, targets in (("validation", split.val_targets), ("test", split.test_targets)):
        if len(targets.users_T) == 0 and target_events is not None:
            raise UserError(f"data.target_events: no {name} target is of these types: choose more of them")
        if len(targets.users_T) == 0 and cold_targets == "dropped":
            raise UserError(f"data.cold_targets dropped: no {name} target is an item of the training part")
    if len(split.val_users) == 0:
        raise UserError("no user has a validation target: the split needs users with at least 3 interactions")


def affordable_users(plan: BatchPlan, trainer: Any) -> int:
    """How many users may validate during the fit of Lightning's `trainer`. Reading a position costs a third of training
    on it, and ranking the catalogue for a target costs as much as training on one position."""
    targets, batches = plan.part.split.val_targets, plan.n_steps * trainer.accumulate_grad_batches
    cost = shared_rows(plan.part.split, targets, plan.max_len).lengths_R.sum() / 3 + len(targets.users_T)
    interval = getattr(trainer, "val_check_interval", 1.0)  # Lightning sets none for a time: an epoch is assumed
    if isinstance(interval, float):
        interval = interval * limited(batches, trainer.limit_train_batches) * (trainer.check_val_every_n_epoch or 1)
    positions = plan.part.n_positions * interval / batches
    return max(int(SHARE * positions * len(np.unique(targets.users_T)) / cost), LEAST_USERS)


def testable_users(targets: Targets, n_items: int) -> int:
    """How many users may be tested if each target is ranked among `n_items` items."""
    return max(int(MOST_SCORES * len(np.unique(targets.users_T)) / max(len(targets.users_T) * n_items, 1)), LEAST_USERS)


def sampled(targets: Targets, n_users: int | Literal["all"]) -> tuple[Targets, tuple[int, int] | None]:
    """The targets of a fixed sample of the users who have some, and (users of the sample, all users), or None if it has
    all targets. Its users' places in the store have the smallest hashes, so a larger sample contains a smaller one."""
    users = np.unique(targets.users_T)
    if n_users == "all" or n_users >= len(users):
        return targets, None
    sampled_T = np.isin(targets.users_T, users[np.argsort(hash_numbers(users), kind="stable")[:n_users]])
    return Targets(targets.users_T[sampled_T], targets.positions_T[sampled_T]), (n_users, len(users))
