"""A run's optimizer steps: their loss over the targets of all R processes, and where they end."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lrec.data.batching.train_batches import limited
from lrec.errors import UserError


@dataclass
class LossSum:
    """A training loss summed over this rank's targets. It stays on the device until the value is needed."""

    loss_sum: Tensor | float = 0.0
    targets: int = 0

    def add(self, loss_sum: Tensor, targets: int) -> None:
        self.loss_sum = self.loss_sum + loss_sum
        self.targets += targets

    def by_rank(self, strategy: Strategy) -> list[list[float]]:
        """The sum of the loss and the number of targets of each rank."""
        loss_sum = torch.as_tensor(self.loss_sum, dtype=torch.float64, device=strategy.root_device)
        gathered: Tensor = strategy.all_gather(torch.stack([loss_sum, torch.full_like(loss_sum, self.targets)]))
        return gathered.reshape(-1, 2).tolist()

    @classmethod
    def restored(cls, by_rank: list[list[float]], trainer: Trainer) -> "LossSum":
        """This rank's part of what `by_rank` gave; if the number of ranks was another, the first rank has all."""
        sums_R2 = torch.tensor(by_rank, dtype=torch.float64).reshape(-1, 2)
        as_before = len(sums_R2) == trainer.world_size
        loss_sum, targets = sums_R2[trainer.global_rank] if as_before else sums_R2.sum(0) * trainer.is_global_zero
        return cls(loss_sum.float().to(trainer.strategy.root_device), int(targets))

    def mean(self, strategy: Strategy) -> float:
        """The mean loss over the targets of all ranks. Resets the sum to zero."""
        loss_total, targets = map(sum, zip(*self.by_rank(strategy), strict=True))
        self.loss_sum, self.targets = 0.0, 0
        return loss_total / max(targets, 1)


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer steps after this micro-batch."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def steps_per_epoch(trainer: Trainer, n_steps: int) -> int:
    """Optimizer steps of an epoch if a whole one has `n_steps`, as the limit of batches allows."""
    return _batches_per_epoch(trainer, n_steps) // trainer.accumulate_grad_batches


def _batches_per_epoch(trainer: Trainer, n_steps: int) -> int:
    return limited(n_steps * trainer.accumulate_grad_batches, trainer.limit_train_batches)


def end_with_a_step(trainer: Any, n_steps: int) -> None:
    """Round the limit of batches per epoch up to whole steps; a whole epoch has `n_steps`. Lightning would otherwise
    take a last step of fewer micro-batches, whose number of targets is not known. Log a training loss in each epoch.
    UserError if an epoch has no batch, or if evaluations are further apart than an epoch."""
    every, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
    batches = _batches_per_epoch(trainer, n_steps)
    if batches == 0:
        raise UserError(f"--trainer.limit_train_batches {limit} takes none of the {n_steps * every:,} batches")
    if batches % every:
        batches = trainer.limit_train_batches = batches + every - batches % every
        why = f"so that the epoch ends with a step (--trainer.accumulate_grad_batches {every})"
        rank_zero_only(print)(f"--trainer.limit_train_batches {limit} becomes {batches}, {why}")
    trainer.log_every_n_steps = min(trainer.log_every_n_steps, batches // every)
    between = getattr(trainer, "val_check_interval", None)  # Lightning sets none if it is a time
    if isinstance(between, int) and between > batches and trainer.check_val_every_n_epoch and trainer.limit_val_batches:
        too_many = f"--trainer.val_check_interval {between} is more than the {batches:,} batches of an epoch"
        raise UserError(f"{too_many}; it counts the batches of all epochs with --trainer.check_val_every_n_epoch null")


def logs_now(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning writes what is logged at the end of this micro-batch: every log_every_n_steps steps."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return ends_step(trainer, batch_idx) and every > 0 and trainer.global_step % every == 0
