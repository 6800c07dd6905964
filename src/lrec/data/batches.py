"""The batch plan of training, the batches of evaluation, and the loaders that serve them.

B batch rows, L positions of the longest row, M targets in the batch, V catalogue size, S seen pairs,
W windows of an epoch, T steps of an epoch, U users, N rows of a batch's histories laid end to end. Of times, T is
L + 1: those of a row's events, and then that of its request, in whole seconds.

Items in batches are catalogue indices. Rows are right-padded with item 0; padded positions are never listed in
positions_M or positions_B, and attention is causal, so that no mask is needed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lrec.data.splits import Split, TrainingPart, ranges
from lrec.errors import UserError, check_range

# Steps whose windows are sorted by length together: more saves padding, fewer mixes lengths better from step to step.
POOL_STEPS = 64
# Classes of length that alternate; an optimizer's momentum averages over about as many steps.
LENGTH_CLASSES = 8
MAX_EVAL_ROWS = 1024
MAX_EVAL_POSITIONS = 16384


class TrainBatch(NamedTuple):
    """A micro-batch of training windows; if there are no windows for it, one row of item 0 without targets."""

    items_BL: Tensor  # int64
    positions_M: Tensor  # int64, flat b*L + l of each position that predicts a target, ascending
    targets_M: Tensor  # int64
    step_targets: int  # targets of the whole global step: all ranks, all accumulated micro-batches
    step_pairs: int  # pairs of a position and one it attends to, of the whole global step
    times_BT: Tensor | None = None  # int64; the request's time is that of the last target


class EvalBatch(NamedTuple):
    """One target per row, after the last max_len known items before it."""

    items_BL: Tensor  # int64
    positions_B: Tensor  # int64, flat index of each row's last real position
    targets_B: Tensor  # int64, -1: outside the catalogue
    weights_B: Tensor  # float32, 1 for a target, 0 for a filler row or a history without any catalogue item
    users_B: Tensor  # int64, user index in the store, -1 for a filler row
    seen_rows_S: Tensor  # int64, row b ...
    seen_items_S: Tensor  # int64, ... has seen this item: the distinct catalogue items of the whole history
    times_BT: Tensor | None = None  # int64; the request's time is the target's, and 0 without a target


@dataclass(frozen=True)
class EpochPlan:
    """An epoch's windows in the order they are trained on: step s owns windows bounds[s] .. bounds[s + 1] - 1."""

    starts_W: np.ndarray  # entry of the training part where the window's inputs begin
    lengths_W: np.ndarray  # targets of the window, which are its inputs shifted by one
    bounds: np.ndarray  # int64, steps + 1 entries

    def micro_batch(self, step: int, micro: int, n_micro: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Starts and lengths of micro-batch `micro` of `n_micro` of a step, and the targets of the whole step."""
        window = slice(self.bounds[step], self.bounds[step + 1])
        starts, lengths = self.starts_W[window], self.lengths_W[window]
        total = int(lengths.sum())
        mine = _share_out(lengths, total, n_micro) == micro
        return starts[mine], lengths[mine], total

    def pairs(self, step: int) -> int:
        """Pairs of a position and one that it attends to, in the windows of a step."""
        lengths = self.lengths_W[self.bounds[step] : self.bounds[step + 1]].astype(np.int64)
        return int((lengths * (lengths + 1) // 2).sum())


def check_step(targets_per_step: int, max_len: int) -> None:
    """UserError where a step has no room for two windows."""
    check_range(f"targets_per_step, with max_len {max_len},", targets_per_step, at_least=2 * max_len)


@dataclass(frozen=True)
class BatchPlan:
    """The batches of training: what is the same in every epoch, and `epoch`, a pure function of (seed, epoch)."""

    part: TrainingPart
    max_len: int
    targets_per_step: int

    def __post_init__(self) -> None:
        check_step(self.targets_per_step, self.max_len)
        if self.n_targets == 0:
            raise UserError("there is no training target: every user has fewer than 2 training items")

    @property
    def n_targets(self) -> int:
        """U: targets of an epoch."""
        return int(np.maximum(self.part.lengths_U - 1, 0).sum())

    @property
    def n_steps(self) -> int:
        """S: global steps of an epoch, the same in each."""
        return -(-self.n_targets // self.targets_per_step)

    def epoch(self, seed: int, epoch: int) -> EpochPlan:
        """Cut each user into windows at a random offset, group them by length inside shuffled pools, form the steps.

        The order of the steps is random, but short and long windows alternate.
        """
        random = np.random.default_rng([seed, epoch])
        starts_W, lengths_W = self._windows(random)
        order = random.permutation(len(starts_W))
        # Every second pool is sorted downwards, so that where two pools meet in one step their lengths agree.
        pools = _share_out(lengths_W[order], self.n_targets, -(-self.n_steps // POOL_STEPS))
        keys = np.where(pools % 2, -lengths_W[order], lengths_W[order])
        order = order[np.lexsort((keys, pools))]
        steps = _share_out(lengths_W[order], self.n_targets, self.n_steps)
        total_T = np.bincount(steps, weights=lengths_W[order], minlength=self.n_steps)
        new_place = _alternating(total_T / np.bincount(steps, minlength=self.n_steps), random)[steps]
        order = order[np.argsort(new_place, kind="stable")]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(new_place, minlength=self.n_steps))])
        assert (np.diff(bounds) > 0).all(), "a step has no windows"
        return EpochPlan(starts_W[order], lengths_W[order], bounds)

    def _windows(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        users = np.flatnonzero(self.part.lengths_U > 1)
        targets = self.part.lengths_U[users] - 1
        # A long user's first window has 1 .. max_len targets, which shifts all the others.
        first = random.integers(1, self.max_len, size=len(users), endpoint=True)
        first = np.where(targets <= self.max_len, targets, first)
        counts = 1 + -(-(targets - first) // self.max_len)
        owner = np.repeat(np.arange(len(users)), counts)
        nth = ranges(np.zeros(len(users), dtype=np.int64), counts)
        begin = np.where(nth == 0, 0, first[owner] + (nth - 1) * self.max_len)
        end = np.minimum(first[owner] + nth * self.max_len, targets[owner])
        return self.part.starts_U[users][owner] + begin, end - begin


def _share_out(lengths: np.ndarray, total: int, n: int) -> np.ndarray:
    """The part, 0 .. n - 1, of each window when the row of windows is cut into n parts of near-equal targets.

    A window goes where its middle falls. Windows shorter than total / n leave no part empty.
    """
    middle2 = 2 * np.cumsum(lengths) - lengths
    return np.minimum(middle2 * n // (2 * total), n - 1)


def _alternating(lengths_T: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random place in the epoch for each step, such that a few steps in a row have lengths of all kinds.

    Many steps of one length in a row would pull the optimizer towards the users with histories of that length.
    """
    keys_T = np.empty(len(lengths_T))
    for alike in np.array_split(np.argsort(lengths_T, kind="stable"), LENGTH_CLASSES):
        # One step in each of len(alike) equal parts of the epoch.
        keys_T[alike] = (random.permutation(len(alike)) + random.random(len(alike))) / max(len(alike), 1)
    places_T = np.empty(len(lengths_T), dtype=np.int64)
    places_T[np.argsort(keys_T, kind="stable")] = np.arange(len(lengths_T))
    return places_T


def train_batch(
    part: TrainingPart,
    catalogue_index_I: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    step_targets: int,
    step_pairs: int,
    with_times: bool = False,
) -> TrainBatch:
    """Gather the windows' items, and their times where they are asked for."""
    if len(starts) == 0:
        empty, row = torch.zeros(0, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
        return TrainBatch(row, empty, empty, step_targets, step_pairs, row.expand(1, 2) if with_times else None)
    places = ranges(starts, lengths)
    items_BL, positions_M = padded(catalogue_index_I[part.items(places)], lengths)
    targets_M = catalogue_index_I[part.items(places + 1)]
    return TrainBatch(
        torch.from_numpy(items_BL),
        torch.from_numpy(positions_M),
        torch.from_numpy(targets_M),
        step_targets,
        step_pairs,
        torch.from_numpy(padded(part.seconds(ranges(starts, lengths + 1)), lengths + 1)[0]) if with_times else None,
    )


class EvalTask(NamedTuple):
    """Rows to evaluate: a row's history is the user's items before `ends`, its target the item at `ends`."""

    users: np.ndarray  # store indices; a user with several targets has as many rows
    ends: np.ndarray  # per row: length of the history
    with_target: bool  # False: the history may be the whole sequence, the target is -1
    with_times: bool = False


def eval_batch(split: Split, task: EvalTask, max_len: int, chosen: np.ndarray) -> EvalBatch:
    """The batch of the chosen entries of the task; without any, one filler row."""
    if len(chosen) == 0:
        return EvalBatch(
            items_BL=torch.zeros(1, 1, dtype=torch.int64),
            positions_B=torch.zeros(1, dtype=torch.int64),
            targets_B=torch.full((1,), -1),
            weights_B=torch.zeros(1),
            users_B=torch.full((1,), -1),
            seen_rows_S=torch.zeros(0, dtype=torch.int64),
            seen_items_S=torch.zeros(0, dtype=torch.int64),
            times_BT=torch.zeros(1, 2, dtype=torch.int64) if task.with_times else None,
        )
    users, ends = task.users[chosen], task.ends[chosen]
    starts = split.store.offsets_U1[users]
    rows_N = ranges(starts, ends)
    items_N = split.catalogue_index_I[split.store.items_N[rows_N]]
    times = None
    if task.with_times:
        asked_B = split.store.seconds(starts + ends) if task.with_target else np.zeros_like(ends)
        times = split.store.seconds(rows_N), asked_B
    histories = history_batch(items_N, ends, max_len, len(split.catalogue_V), times)
    if task.with_target:
        targets_B = split.catalogue_index_I[split.store.items_N[starts + ends]]
    else:
        targets_B = np.full(len(users), -1, dtype=np.int64)
    return EvalBatch(
        items_BL=histories.items_BL,
        positions_B=histories.positions_B,
        targets_B=torch.from_numpy(targets_B),
        weights_B=(histories.lengths_B > 0).float(),
        users_B=torch.from_numpy(users.astype(np.int64)),
        seen_rows_S=histories.seen_rows_S,
        seen_items_S=histories.seen_items_S,
        times_BT=histories.times_BT,
    )


class HistoryBatch(NamedTuple):
    """A row per history: its last max_len known items."""

    items_BL: Tensor  # int64
    positions_B: Tensor  # int64, flat index of each row's last real position
    lengths_B: Tensor  # int64, items of each row; 0 for a history without any known item
    seen_rows_S: Tensor  # int64, row b ...
    seen_items_S: Tensor  # int64, ... has seen this item: the distinct known items of the whole history
    times_BT: Tensor | None  # int64


def history_batch(
    items_N: np.ndarray,
    lengths_B: np.ndarray,
    max_len: int,
    n_items: int,
    times: tuple[np.ndarray, np.ndarray] | None = None,
) -> HistoryBatch:
    """The batch of these histories, laid end to end; items are catalogue indices, and -1 (outside) is left out.

    Args:
        items_N: The items.
        lengths_B: How many of them each history has.
        max_len: Most items of a row, the last ones.
        n_items: Catalogue size.
        times: Where the network reads them: time of each item (N), and of each history's request (B).
    """
    rows_N = np.repeat(np.arange(len(lengths_B)), lengths_B)
    known_N = items_N >= 0
    items_N, rows_N = items_N[known_N], rows_N[known_N]
    lengths_B = np.bincount(rows_N, minlength=len(lengths_B))
    kept_B = np.minimum(lengths_B, max_len)
    places_N = ranges(np.cumsum(lengths_B) - kept_B, kept_B)
    items_BL, _ = padded(items_N[places_N], kept_B)
    times_BT = None if times is None else with_request(times[0][known_N][places_N], kept_B, times[1])
    starts_B = np.arange(len(lengths_B)) * items_BL.shape[1]
    seen_S = _distinct(rows_N * n_items + items_N)
    return HistoryBatch(
        items_BL=torch.from_numpy(items_BL),
        positions_B=torch.from_numpy(starts_B + np.maximum(kept_B - 1, 0)),
        lengths_B=torch.from_numpy(kept_B),
        seen_rows_S=torch.from_numpy(seen_S // n_items),
        seen_items_S=torch.from_numpy(seen_S % n_items),
        times_BT=times_BT,
    )


def _distinct(keys_N: np.ndarray) -> np.ndarray:
    """The keys in order, each once; numpy's unique, which may hash them first, takes several times as long."""
    keys_N.sort()
    return keys_N[np.diff(keys_N, prepend=-1) > 0]


def with_request(times_N: np.ndarray, lengths_B: np.ndarray, asked_B: np.ndarray) -> Tensor:
    """Times of histories laid end to end, and of the request after each, (B, L + 1), with zeros on the right."""
    times_BT, _ = padded(np.insert(times_N, np.cumsum(lengths_B), asked_B), lengths_B + 1)
    no_items = times_BT.shape[1] < 2  # a batch of empty histories has a position too
    return torch.from_numpy(np.pad(times_BT, ((0, 0), (0, 1))) if no_items else times_BT)


def padded(values_N: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are laid end to end, as (B, L) with zeros on the right, and the flat index of each value in it."""
    values_BL = np.zeros((len(lengths_B), max(int(lengths_B.max()), 1)), values_N.dtype)
    flat_N = ranges(np.arange(len(lengths_B)) * values_BL.shape[1], lengths_B)
    values_BL.ravel()[flat_N] = values_N
    return values_BL, flat_N


def evaluation_bounds(lengths: np.ndarray) -> list[int]:
    """Where rows of ascending lengths are cut into batches, by rows and padded positions; the first bound is 0."""
    bounds = [0]
    while (start := bounds[-1]) < len(lengths):
        block = lengths[start : start + MAX_EVAL_ROWS]
        fits = int((block * np.arange(1, len(block) + 1) <= MAX_EVAL_POSITIONS).sum())
        bounds.append(start + max(fits, 1))
    return bounds


class Ranks(NamedTuple):
    """Who shares a global step: `world` processes, this one being `rank`, each with `accumulation` micro-batches."""

    world: int = 1
    rank: int = 0
    accumulation: int = 1


def _serve(dataset: Dataset, keys: Sequence, num_workers: int, pin_memory: bool) -> DataLoader:
    """The batches of these keys; workers stay from pass to pass, in which the keys may be others."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        # Of its own: DataLoader would draw from the global one and so change what is trained.
        generator=torch.Generator().manual_seed(0),
    )


ALONE = Ranks()


class _TrainDataset(Dataset[TrainBatch]):
    """Micro-batches by (epoch, step, accumulated micro-batch); a worker asks for each epoch's plan once."""

    def __init__(
        self,
        plan: BatchPlan,
        catalogue_index_I: np.ndarray,
        epoch_plan: Callable[[int], EpochPlan],
        ranks: Ranks,
        with_times: bool,
    ) -> None:
        self.plan, self.catalogue_index_I, self.epoch_plan, self.ranks = plan, catalogue_index_I, epoch_plan, ranks
        self.with_times = with_times
        self._epoch: tuple[int, EpochPlan] | None = None

    def __getitem__(self, key: tuple[int, int, int]) -> TrainBatch:
        epoch, step, accumulated = key
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self.epoch_plan(epoch)
        world, rank, accumulation = self.ranks
        plan = self._epoch[1]
        starts, lengths, total = plan.micro_batch(step, accumulated * world + rank, world * accumulation)
        pairs = plan.pairs(step)
        return train_batch(self.plan.part, self.catalogue_index_I, starts, lengths, total, pairs, self.with_times)


class TrainLoader:
    """This rank's micro-batches of one epoch per pass; it owns (epoch, step consumed) and resumes exactly.

    Each iter() begins the next epoch, the first after load_state_dict() continues in the middle of the saved one.
    The state may be loaded on another number of ranks, but in the middle of an epoch only with the same accumulation,
    because Lightning continues to count micro-batches.
    """

    def __init__(
        self,
        plan: BatchPlan,
        catalogue_index_I: np.ndarray,
        seed: int,
        ranks: Ranks = ALONE,
        num_workers: int = 0,
        pin_memory: bool = False,
        epoch_plan: Callable[[int], EpochPlan] | None = None,
        with_times: bool = False,
    ) -> None:
        """Serve the batches of a plan.

        Args:
            plan: What is the same in every epoch.
            catalogue_index_I: Catalogue index of each item of the store.
            seed: Seed of the order of training.
            ranks: Who shares a step.
            num_workers: Processes that assemble batches.
            pin_memory: Have batches where a GPU can fetch them while it computes.
            epoch_plan: Gives an epoch's plan; made here by default.
            with_times: Batches carry the times of events.
        """
        self.ranks, self.n_steps = ranks, plan.n_steps
        self._keys: list[tuple[int, int, int]] = []  # of this pass
        make_plan = epoch_plan or partial(plan.epoch, seed)
        dataset = _TrainDataset(plan, catalogue_index_I, make_plan, ranks, with_times)
        self._batches = _serve(dataset, self._keys, num_workers, pin_memory)
        self._epoch, self._consumed = -1, self.n_steps * ranks.accumulation
        self._resumed = False

    def __len__(self) -> int:
        return self.n_steps * self.ranks.accumulation

    @property
    def begun(self) -> bool:
        """Whether a batch was served or a state loaded."""
        return self._epoch >= 0

    def __iter__(self) -> Iterator[TrainBatch]:
        # A generator: an iterator that is never asked for a batch begins no epoch.
        if not self._resumed or self._consumed >= len(self):
            self._epoch, self._consumed = self._epoch + 1, 0
        self._resumed = False
        self._keys[:] = [
            (self._epoch, micro // self.ranks.accumulation, micro % self.ranks.accumulation)
            for micro in range(self._consumed, len(self))
        ]
        # Workers read ahead; a batch counts as consumed when it is handed over.
        for batch in self._batches:
            self._consumed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and whole steps consumed in it."""
        accumulation = self.ranks.accumulation
        return {"epoch": self._epoch, "step": self._consumed // accumulation, "accumulation": accumulation}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the saved step."""
        accumulation = self.ranks.accumulation
        if 0 < state["step"] < self.n_steps and state["accumulation"] != accumulation:
            raise UserError(
                f"the checkpoint was written in mid-epoch with accumulate_grad_batches={state['accumulation']}: "
                f"resume with the same, not {accumulation}"
            )
        self._epoch, self._consumed, self._resumed = state["epoch"], state["step"] * accumulation, True


class _EvalDataset(Dataset[EvalBatch]):
    """The batches of one rank; rows are sorted by length and cut by rows and positions."""

    def __init__(self, split: Split, task: EvalTask, max_len: int, ranks: Ranks) -> None:
        self.split, self.task, self.max_len, self.ranks = split, task, max_len, ranks
        lengths = np.minimum(task.ends, max_len)
        self._order = np.argsort(lengths, kind="stable")
        lengths = lengths[self._order]
        self._bounds = evaluation_bounds(lengths)

    def __len__(self) -> int:
        return -(-(len(self._bounds) - 1) // self.ranks.world)

    def __getitem__(self, index: int) -> EvalBatch:
        batch = index * self.ranks.world + self.ranks.rank
        beyond = batch + 1 >= len(self._bounds)
        chosen = self._order[:0] if beyond else self._order[self._bounds[batch] : self._bounds[batch + 1]]
        return eval_batch(self.split, self.task, self.max_len, chosen)


class EvalLoader:
    """This rank's evaluation batches: the same number on every rank, each row of the task once over all."""

    def __init__(
        self,
        split: Split,
        task: EvalTask,
        max_len: int,
        ranks: Ranks = ALONE,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        dataset = _EvalDataset(split, task, max_len, ranks)
        self._batches = _serve(dataset, range(len(dataset)), num_workers, pin_memory)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[EvalBatch]:
        return iter(self._batches)
