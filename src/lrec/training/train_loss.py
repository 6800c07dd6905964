"""The training loss of all processes, and when it is asked for."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor


class LossSum:
    """A training loss summed over targets; on its device, until somebody asks."""

    def __init__(self) -> None:
        self.loss_sum: Tensor | None = None
        self.targets = 0

    def add(self, loss_sum: Tensor, targets: int) -> None:
        """Add the sum over so many targets of this rank."""
        self.loss_sum = loss_sum if self.loss_sum is None else self.loss_sum + loss_sum
        self.targets += targets

    def totals(self, module: LightningModule) -> tuple[float, int]:
        """The sum and its targets, over all ranks."""
        loss_sum = self.loss_sum if self.loss_sum is not None else torch.zeros((), device=module.device)
        here = torch.stack([loss_sum.double(), loss_sum.new_tensor(self.targets, dtype=torch.float64)])
        loss_total, targets = module.trainer.strategy.reduce(here, reduce_op="sum").tolist()
        return loss_total, int(targets)

    def mean(self, module: LightningModule) -> float:
        """The mean over targets of all ranks; the sum begins again."""
        loss_total, targets = self.totals(module)
        self.loss_sum, self.targets = None, 0
        return loss_total / max(targets, 1)


def logs_now(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning writes what is logged at the end of this micro-batch: every log_every_n_steps steps."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return stepped and every > 0 and trainer.global_step % every == 0
