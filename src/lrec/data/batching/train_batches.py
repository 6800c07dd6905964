"""Training batches: the windows of a step as tensors, and the loader that serves them.

B batch rows, L positions of the longest row, M targets in the batch, N items of all histories of a batch, laid end to
end. For times, T is L + 1: the times of a row's events, then the time of its request, in whole seconds.

Items in batches are catalogue indices. Rows are right-padded with item 0; padded positions are never listed in
positions_M. Attention is causal, so no mask is needed.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lrec.data.batching.plan import BatchPlan, EpochPlan, share_out
from lrec.data.splits.rules import ranges
from lrec.errors import UserError


class TrainBatch(NamedTuple):
    """A micro-batch of training windows; if there are no windows for it, one row of item 0 without targets."""

    items_BL: Tensor  # int32
    positions_M: Tensor  # int32, flat b*L + l of each position that predicts a target, ascending
    targets_M: Tensor  # int64, because the operations of the losses need it
    n_positions: int  # positions without padding; not each may have a target
    step_targets: int  # targets of the whole global step, over all ranks and accumulated micro-batches
    step_positions: int  # positions of the whole global step
    step_pairs: int  # pairs of a position and a position it attends to, of the whole global step
    times_BT: Tensor | None = None  # int64; the request has the time of the last target
    events_BL: Tensor | None = None  # int64, type of each item's event; with features (B, L, F), see `EventInput`

    def next_targets(self, n: int) -> Tensor:
        """The target of each position and the n - 1 targets that follow in its row, (M, n); -1 where the row ends."""
        rows_M = self.positions_M // self.items_BL.shape[1]
        targets_MK = self.targets_M.new_full((len(rows_M), n), -1)
        for ahead in range(min(n, len(rows_M))):
            same_row = rows_M[ahead:] == rows_M[: len(rows_M) - ahead]
            targets_MK[: len(same_row), ahead] = torch.where(same_row, self.targets_M[ahead:], -1)
        return targets_MK


def with_request(times_N: np.ndarray, lengths_B: np.ndarray, asked_B: np.ndarray) -> Tensor:
    """Times of histories (laid end to end) and of the request after each, as (B, L + 1) with zeros on the right."""
    return padded(np.insert(times_N, np.cumsum(lengths_B), asked_B), lengths_B + 1, least=2)


def padded(values_N: np.ndarray, lengths_B: np.ndarray, least: int = 1) -> Tensor:
    """Rows laid end to end, as (B, L) with zeros on the right; L is at least `least`, even if all rows are empty."""
    length = max(int(lengths_B.max()), least)
    values_BL = np.zeros((len(lengths_B), length, *values_N.shape[1:]), values_N.dtype)
    values_BL[np.arange(length) < lengths_B[:, None]] = values_N
    return torch.from_numpy(values_BL)


def limited(batches: int, limit: float) -> int:
    """How many of an epoch's micro-batches Lightning takes with a limit: a number of them (int), or a share."""
    return min(limit, batches) if isinstance(limit, int) else int(limit * batches)


class Ranks(NamedTuple):
    """Who shares a global step: `world` processes with `accumulation` micro-batches each; this process is `rank`."""

    world: int = 1
    rank: int = 0
    accumulation: int = 1


ALONE = Ranks()


def _apart(_: int) -> None:
    """Leave the processes that Ctrl-C and `timeout` signal: a run that is told to stop may need more batches."""
    os.setpgrp()


class ServedLoader:
    """The batches of these keys. Workers stay alive from pass to pass, and each pass may have other keys. The class is
    not a DataLoader, because Lightning would replace the sampler of a DataLoader."""

    def __init__(self, dataset: Dataset, keys: Sequence, num_workers: int, pin_memory: bool) -> None:
        self.dataset = dataset
        options: dict[str, Any] = {"batch_size": None, "sampler": keys, "pin_memory": pin_memory}
        options |= {"num_workers": num_workers, "persistent_workers": num_workers > 0, "worker_init_fn": _apart}
        # Without its own generator, DataLoader would draw from the global one and so change the training.
        self._batches = DataLoader(dataset, **options, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    # After a fit or an evaluation, Lightning stops the workers of a loader that has an `_iterator`, as DataLoader has.
    # Without it, the garbage collector would stop them, and wait five seconds for each.
    @property
    def _iterator(self) -> Any:
        return self._batches._iterator

    @_iterator.setter
    def _iterator(self, iterator: None) -> None:
        self._batches._iterator = iterator


@dataclass
class _TrainDataset(Dataset[TrainBatch]):
    """Micro-batches by (epoch, step, accumulated micro-batch); a worker asks for the plan of each epoch once."""

    plan: BatchPlan
    epoch_plan: Callable[[int], EpochPlan]
    ranks: Ranks
    with_times: bool
    _epoch: tuple[int, EpochPlan] | None = None

    def __getitem__(self, key: tuple[int, int, int]) -> TrainBatch:
        epoch, step, accumulated = key
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self.epoch_plan(epoch)
        (world, rank, accumulation), (starts_W, lengths_W) = self.ranks, self._epoch[1].windows(step)
        mine_W = share_out(lengths_W, world * accumulation) == accumulated * world + rank
        starts, lengths = starts_W[mine_W], lengths_W[mine_W]
        if len(starts) == 0:
            starts, lengths = np.zeros((2, 1), dtype=np.int64)
        part, split, places = self.plan.part, self.plan.part.split, ranges(starts, lengths)
        rows_N, next_N = part.rows_at(places), part.rows_at(places + 1)
        index_I, store, events_N = split.catalogue_index_I, split.store, split.events(rows_N)
        items_BL = padded(index_I[store.items_N[rows_N]].astype(np.int32), lengths)
        positions_M, may_M = ranges(np.arange(len(lengths)) * items_BL.shape[1], lengths), split.may_be_targets(next_N)
        times_BT = None
        if self.with_times:
            asked_B = store.seconds(part.rows_at(starts + lengths))
            times_BT = with_request(store.seconds(rows_N), lengths, asked_B)
        return TrainBatch(
            items_BL=items_BL,
            positions_M=torch.from_numpy(positions_M[may_M].astype(np.int32)),
            targets_M=torch.from_numpy(index_I[store.items_N[next_N[may_M]]]),
            n_positions=int(lengths.sum()),
            step_targets=part.targets_in(starts_W, lengths_W),
            step_positions=int(lengths_W.sum()),
            step_pairs=int((lengths_W.astype(np.int64) * (lengths_W + 1)).sum()) // 2,
            times_BT=times_BT,
            events_BL=None if events_N is None else padded(events_N, lengths),
        )


class TrainLoader(ServedLoader):
    """This rank's micro-batches, one epoch per pass. The loader owns (epoch, consumed steps) and resumes exactly. Each
    iter() begins the next epoch, but the first one after load_state_dict() continues the saved epoch. The number of
    ranks may differ from the saved one. The number of steps of an epoch may not, because Lightning continues to count
    them. In the middle of an epoch, seed and accumulation may not differ either. `limit` is Lightning's limit of
    batches: after as many, a saved epoch is over."""

    def __init__(
        self,
        plan: BatchPlan,
        seed: int,
        ranks: Ranks = ALONE,
        num_workers: int = 0,
        pin_memory: bool = False,
        epoch_plan: Callable[[int], EpochPlan] | None = None,
        with_times: bool = False,
        limit: float = 1.0,
    ) -> None:
        self.ranks, self.n_steps, self._plan, self._seed = ranks, plan.n_steps, plan, seed
        self._keys: list[tuple[int, int, int]] = []  # keys of this pass
        dataset = _TrainDataset(plan, epoch_plan or partial(plan.epoch, seed), ranks, with_times)
        super().__init__(dataset, self._keys, num_workers, pin_memory)
        self._epoch, self._consumed, self._resumed = -1, len(self), False
        self._ends_at = limited(len(self), limit)

    def __len__(self) -> int:
        return self.n_steps * self.ranks.accumulation

    @property
    def begun(self) -> bool:
        return self._epoch >= 0

    def __iter__(self) -> Iterator[TrainBatch]:
        # This is a generator, so an iterator that is never asked for a batch begins no epoch.
        if not self._resumed or self._consumed >= self._ends_at:
            self._epoch, self._consumed = self._epoch + 1, 0
        self._resumed, accumulation = False, self.ranks.accumulation
        self._keys[:] = [(self._epoch, *divmod(micro, accumulation)) for micro in range(self._consumed, len(self))]
        # Workers read ahead; a batch counts as consumed when it is handed over.
        for batch in self._batches:
            self._consumed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        accumulation = self.ranks.accumulation
        plan = {"accumulation": accumulation, "seed": self._seed, "targets_per_step": self._plan.targets_per_step}
        return {"epoch": self._epoch, "step": self._consumed // accumulation, **plan}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the saved step; UserError if that would skip or repeat data."""
        mine, options = self.state_dict(), {"accumulation": "accumulate_grad_batches", "seed": "data.seed"}
        if self._plan.steps_of(state["targets_per_step"]) != self.n_steps:
            options = {"targets_per_step": "data.targets_per_step"}
        elif not 0 < state["step"] < self.n_steps:  # the next pass is a whole epoch
            options = {}
        for name, option in options.items():
            if state[name] != mine[name]:
                raise UserError(
                    f"the checkpoint was written with {option}={state[name]}: resume with the same, not {mine[name]}, "
                    "because another value would skip some of the data and repeat other data"
                )
        self._epoch, self._consumed, self._resumed = state["epoch"], state["step"] * self.ranks.accumulation, True
