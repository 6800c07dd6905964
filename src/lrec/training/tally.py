"""A run's optimizer steps: their loss over the targets of all processes, their FLOPs, and where they end."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lrec.data.batching.train_batches import TrainBatch, limited
from lrec.errors import UserError
from lrec.model import cost
from lrec.model.config import TransformerConfig
from lrec.model.losses import Loss


class LossSum:
    """A training loss summed over this rank's targets. It stays on the device until the value is needed."""

    def __init__(self, loss_sum: Tensor | None = None, targets: int = 0) -> None:
        self.loss_sum, self.targets = loss_sum, targets

    def add(self, loss_sum: Tensor, targets: int) -> None:
        self.loss_sum = loss_sum if self.loss_sum is None else self.loss_sum + loss_sum
        self.targets += targets

    def by_rank(self, module: LightningModule) -> list[list[float]]:
        """The sum of the loss and the number of targets of each rank."""
        loss_sum = self.loss_sum if self.loss_sum is not None else torch.zeros((), device=module.device)
        here = torch.stack([loss_sum.double(), loss_sum.new_tensor(self.targets, dtype=torch.float64)])
        gathered: Tensor = module.trainer.strategy.all_gather(here)
        return gathered.reshape(-1, 2).tolist()

    def mean(self, module: LightningModule) -> float:
        """The mean loss over the targets of all ranks. Resets the sum to zero."""
        loss_total, targets = map(sum, zip(*self.by_rank(module), strict=True))
        self.loss_sum, self.targets = None, 0
        return loss_total / max(targets, 1)


def step_flops(config: TransformerConfig, loss: Loss, batch: TrainBatch) -> int:
    """FLOPs, over all ranks, of the whole step that contains this micro-batch."""
    head = loss.flops_per_target(config.n_items, config.width)
    network = cost.training_flops(config, batch.step_targets, batch.step_pairs, head, batch.step_positions)
    return network + cost.projection_flops(config)


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer steps after this micro-batch."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def end_with_a_step(trainer: Trainer, n_steps: int) -> None:
    """Round the limit of batches per epoch up to whole steps; a whole epoch has `n_steps`. Lightning would otherwise
    take a last step of fewer micro-batches, whose number of targets is not known. UserError if evaluations are further
    apart than an epoch."""
    every, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
    batches = limited(n_steps * every, limit)
    if batches % every:
        trainer.limit_train_batches = batches + every - batches % every
        rank_zero_only(print)(
            f"--trainer.limit_train_batches {limit} becomes {trainer.limit_train_batches}, so that the epoch ends with "
            f"a step (--trainer.accumulate_grad_batches {every})"
        )
        batches = trainer.limit_train_batches
    between = getattr(trainer, "val_check_interval", None)  # Lightning sets none if it is a time
    if isinstance(between, int) and between > batches and trainer.check_val_every_n_epoch and trainer.limit_val_batches:
        raise UserError(
            f"--trainer.val_check_interval {between} is more than the {batches:,} batches of an epoch; it counts the "
            "batches of all epochs with --trainer.check_val_every_n_epoch null"
        )


def logs_now(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning writes what is logged at the end of this micro-batch: every log_every_n_steps steps."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return ends_step(trainer, batch_idx) and every > 0 and trainer.global_step % every == 0
