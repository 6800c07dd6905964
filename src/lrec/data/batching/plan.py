"""Which windows of which users form each global step. Shape suffixes: W windows and T steps of an epoch, U users."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrec.data.splits.reduction import TrainingPart
from lrec.data.splits.rules import ranges
from lrec.data.store.made_once import made_once
from lrec.errors import UserError

# Number of steps whose windows are sorted by length together: more steps save padding, fewer steps mix lengths better.
POOL_STEPS = 64
# Number of classes of length that alternate. An optimizer's momentum averages over about this number of steps.
LENGTH_CLASSES = 8


@dataclass(frozen=True)
class EpochPlan:
    """An epoch's windows in training order: step s owns windows bounds[s] .. bounds[s + 1] - 1."""

    starts_W: np.ndarray  # entry of the training part where the window's inputs begin; int32 if that is enough
    lengths_W: np.ndarray  # int32, number of inputs of the window; its possible targets are the entries one place later
    bounds: np.ndarray  # int64, steps + 1 entries

    def windows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Starts and lengths of a step's windows."""
        mine = slice(*self.bounds[step : step + 2])
        return self.starts_W[mine], self.lengths_W[mine]


@dataclass(frozen=True)
class BatchPlan:
    """The batches of training: what all epochs share, and `epoch`, which is a pure function of (seed, epoch)."""

    part: TrainingPart
    max_len: int
    targets_per_step: int

    def __post_init__(self) -> None:
        if self.part.n_positions == 0:
            raise UserError("there is no training target: every user has fewer than 2 training items")
        if self.part.n_targets == 0:
            raise UserError("target_events: no event of these types is a training target")

    @property
    def n_steps(self) -> int:
        return self.steps_of(self.targets_per_step)

    def steps_of(self, targets_per_step: int) -> int:
        """Number of steps of an epoch. The plan depends on targets_per_step only through this number."""
        return -(-self.part.n_positions // targets_per_step)

    def epoch(self, seed: int, epoch: int) -> EpochPlan:
        """Cut users into windows at random offsets, sort these by length inside shuffled pools, and form the steps."""
        random = np.random.default_rng([seed, epoch])
        starts_W, lengths_W = self._windows(random)
        order = random.permutation(len(starts_W))
        # Every second pool is sorted downwards, so that a step with windows of two pools has similar lengths.
        pools = share_out(lengths_W[order], -(-self.n_steps // POOL_STEPS))
        order = order[np.lexsort((np.where(pools % 2, -lengths_W[order], lengths_W[order]), pools))]
        steps = share_out(lengths_W[order], self.n_steps)
        total_T = np.bincount(steps, weights=lengths_W[order], minlength=self.n_steps)
        new_place = _alternating(total_T / np.bincount(steps, minlength=self.n_steps), random)[steps]
        order = order[np.argsort(new_place, kind="stable")]
        bounds = np.append(0, np.cumsum(np.bincount(new_place, minlength=self.n_steps)))
        assert (np.diff(bounds) > 0).all(), "a step has no windows"
        return EpochPlan(starts_W[order], lengths_W[order], bounds)

    def _windows(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        users = np.flatnonzero(self.part.lengths_U > 1)
        targets = self.part.lengths_U[users] - 1
        # The first window of a long user has 1 .. max_len targets, which shifts all later windows.
        first = random.integers(1, self.max_len, size=len(users), endpoint=True)
        first = np.where(targets <= self.max_len, targets, first)
        counts = 1 + -(-(targets - first) // self.max_len)
        owner = np.repeat(np.arange(len(users)), counts)
        end_W = first[owner] + self.max_len * ranges(np.zeros_like(counts), counts)
        begin_W = np.maximum(end_W - self.max_len, 0)
        lengths_W = np.minimum(end_W, targets[owner]) - begin_W
        starts_W = self.part.starts_U[users][owner] + begin_W
        last = int((self.part.starts_U + self.part.lengths_U).max())
        return starts_W.astype(np.int32 if last < 2**31 else np.int64), lengths_W.astype(np.int32)


def share_out(lengths: np.ndarray, n: int) -> np.ndarray:
    """The part, 0 .. n - 1, of each window, if the sequence of windows is cut into n parts with almost equally many
    targets: the part that contains the window's middle. If no window has an n-th of the targets, no part is empty."""
    ends = np.cumsum(lengths)
    return np.minimum((2 * ends - lengths) * n // (2 * ends[-1]), n - 1)


def _alternating(lengths_T: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random place in the epoch for each step. A few consecutive steps have windows of all lengths, because many
    steps with one length would pull the optimizer towards the users with histories of this length."""
    keys_T = np.empty(len(lengths_T))
    for alike in np.array_split(np.argsort(lengths_T, kind="stable"), LENGTH_CLASSES):
        # One step in each of len(alike) equal parts of the epoch.
        keys_T[alike] = (random.permutation(len(alike)) + random.random(len(alike))) / max(len(alike), 1)
    return np.argsort(np.argsort(keys_T, kind="stable"))


def shared_epoch(plan: BatchPlan, seed: int, folder: Path, epoch: int) -> EpochPlan:
    """The same as `plan.epoch(seed, epoch)`, but the processes of a run that share a folder make it only once."""
    found = made_once(folder, str(epoch), lambda: vars(plan.epoch(seed, epoch)))
    # Processes take their steps together, so none will ask again for the epoch before the previous one.
    shutil.rmtree(folder / str(epoch - 2), ignore_errors=True)
    return EpochPlan(**found)
