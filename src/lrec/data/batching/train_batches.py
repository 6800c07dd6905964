"""The batch plan of training, and the loader that serves its batches.

B batch rows, L positions of the longest row, M targets in the batch, W windows of an epoch, T steps of an epoch,
U users, N rows of a batch's histories laid end to end. Of times, T is L + 1: those of a row's events, and then that of
its request, in whole seconds.

Items in batches are catalogue indices. Rows are right-padded with item 0; padded positions are never listed in
positions_M, and attention is causal, so that no mask is needed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lrec.data.splits.reduction import TrainingPart
from lrec.data.splits.rules import ranges
from lrec.errors import UserError, check_range

# Steps whose windows are sorted by length together: more saves padding, fewer mixes lengths better from step to step.
POOL_STEPS = 64
# Classes of length that alternate; an optimizer's momentum averages over about as many steps.
LENGTH_CLASSES = 8


class TrainBatch(NamedTuple):
    """A micro-batch of training windows; if there are no windows for it, one row of item 0 without targets."""

    items_BL: Tensor  # int32
    positions_M: Tensor  # int32, flat b*L + l of each position that predicts a target, ascending
    targets_M: Tensor  # int64, which what a loss does with them needs
    step_targets: int  # targets of the whole global step: all ranks, all accumulated micro-batches
    step_pairs: int  # pairs of a position and one it attends to, of the whole global step
    times_BT: Tensor | None = None  # int64; the request's time is that of the last target
    events_BL: Tensor | None = None  # int64, type of each item's event
    step_positions: int | None = None  # of the whole global step; None: as many as targets


@dataclass(frozen=True)
class EpochPlan:
    """An epoch's windows in the order they are trained on: step s owns windows bounds[s] .. bounds[s + 1] - 1."""

    starts_W: np.ndarray  # entry of the training part where the window's inputs begin; int32 where that is enough
    lengths_W: np.ndarray  # int32, inputs of the window; what may be its targets is the same, shifted by one
    bounds: np.ndarray  # int64, steps + 1 entries

    def micro_batch(self, step: int, micro: int, n_micro: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Starts and lengths of micro-batch `micro` of `n_micro` of a step, and the positions of the whole step."""
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
        if self.part.n_positions == 0:
            raise UserError("there is no training target: every user has fewer than 2 training items")
        if self.part.n_targets == 0:
            raise UserError("target_events: no event of these types is a training target")

    @property
    def n_steps(self) -> int:
        """S: global steps of an epoch, the same in each."""
        return -(-self.part.n_positions // self.targets_per_step)

    def step_targets(self, epoch: EpochPlan, step: int) -> int:
        """Targets of a step."""
        window = slice(epoch.bounds[step], epoch.bounds[step + 1])
        return self.part.targets_in(epoch.starts_W[window], epoch.lengths_W[window])

    def epoch(self, seed: int, epoch: int) -> EpochPlan:
        """Cut each user into windows at a random offset, group them by length inside shuffled pools, form the steps.

        The order of the steps is random, but short and long windows alternate.
        """
        random = np.random.default_rng([seed, epoch])
        starts_W, lengths_W = self._windows(random)
        order = random.permutation(len(starts_W))
        # Every second pool is sorted downwards, so that where two pools meet in one step their lengths agree.
        pools = _share_out(lengths_W[order], self.part.n_positions, -(-self.n_steps // POOL_STEPS))
        keys = np.where(pools % 2, -lengths_W[order], lengths_W[order])
        order = order[np.lexsort((keys, pools))]
        steps = _share_out(lengths_W[order], self.part.n_positions, self.n_steps)
        total_T = np.bincount(steps, weights=lengths_W[order], minlength=self.n_steps)
        new_place = _alternating(total_T / np.bincount(steps, minlength=self.n_steps), random)[steps]
        order = order[np.argsort(new_place, kind="stable")]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(new_place, minlength=self.n_steps))])
        assert (np.diff(bounds) > 0).all(), "a step has no windows"
        return EpochPlan(starts_W[order], lengths_W[order], bounds)

    @property
    def _index(self) -> type[np.signedinteger]:
        """The smallest type that counts the entries of the training part."""
        most = int((self.part.starts_U + self.part.lengths_U).max())
        return np.int32 if most <= np.iinfo(np.int32).max else np.int64

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
        starts_W = self.part.starts_U[users][owner] + begin
        return starts_W.astype(self._index), (end - begin).astype(np.int32)


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
    step_positions: int | None = None,
) -> TrainBatch:
    """Gather the windows' items, their types of event where there are any, and their times where they are asked for."""
    has_events = part.store.events_N is not None
    if len(starts) == 0:
        row, empty = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
        times_BT = torch.zeros(1, 2, dtype=torch.int64) if with_times else None
        no_events = row.long() if has_events else None
        return TrainBatch(row, empty, empty.long(), step_targets, step_pairs, times_BT, no_events, step_positions)
    places = ranges(starts, lengths)
    items_BL, positions_M = padded(catalogue_index_I[part.items(places)].astype(np.int32), lengths)
    targets_M = catalogue_index_I[part.items(places + 1)]
    if part.target_N is not None:
        may_M = part.may_be_targets(places + 1)
        positions_M, targets_M = positions_M[may_M], targets_M[may_M]
    events_BL = padded(part.events(places).astype(np.int64), lengths)[0] if has_events else None
    return TrainBatch(
        torch.from_numpy(items_BL),
        torch.from_numpy(positions_M.astype(np.int32)),
        torch.from_numpy(targets_M),
        step_targets,
        step_pairs,
        torch.from_numpy(padded(part.seconds(ranges(starts, lengths + 1)), lengths + 1)[0]) if with_times else None,
        None if events_BL is None else torch.from_numpy(events_BL),
        step_positions,
    )


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


class Ranks(NamedTuple):
    """Who shares a global step: `world` processes, this one being `rank`, each with `accumulation` micro-batches."""

    world: int = 1
    rank: int = 0
    accumulation: int = 1


def serve(dataset: Dataset, keys: Sequence, num_workers: int, pin_memory: bool) -> DataLoader:
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
        starts, lengths, positions = plan.micro_batch(step, accumulated * world + rank, world * accumulation)
        return train_batch(
            self.plan.part,
            self.catalogue_index_I,
            starts,
            lengths,
            self.plan.step_targets(plan, step),
            plan.pairs(step),
            self.with_times,
            positions,
        )


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
        self._batches = serve(dataset, self._keys, num_workers, pin_memory)
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
