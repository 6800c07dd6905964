"""A run's steps: their loss over the targets of all processes, what they cost, where they end, their dropout's seed."""

import hashlib

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lrec.data.batching.train_batches import TrainBatch
from lrec.model import cost
from lrec.model.config import TransformerConfig
from lrec.model.losses import Loss


class LossSum:
    """A training loss summed over this rank's targets; on its device, until somebody asks."""

    def __init__(self, loss_sum: Tensor | None = None, targets: int = 0) -> None:
        self.loss_sum, self.targets = loss_sum, targets

    def add(self, loss_sum: Tensor, targets: int) -> None:
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


def step_flops(config: TransformerConfig, loss: Loss, batch: TrainBatch) -> int:
    """FLOPs of the whole step, of all ranks, that a micro-batch is part of."""
    head = loss.flops_per_target(config.n_items, config.width)
    network = cost.training_flops(config, batch.step_targets, batch.step_pairs, head, batch.step_positions)
    return network + cost.projection_flops(config)


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer steps after this micro-batch."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def end_with_a_step(trainer: Trainer, n_steps: int) -> None:
    """Round a limit of an epoch's batches up to whole steps, of which a whole epoch has so many: Lightning would take a
    last step of fewer micro-batches, whose targets nobody has counted."""
    every, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
    batches = limit if isinstance(limit, int) else int(limit * n_steps * every)
    if batches % every:
        trainer.limit_train_batches = batches + every - batches % every
        rank_zero_only(print)(
            f"--trainer.limit_train_batches {limit}: {trainer.limit_train_batches}, so that the epoch ends with a step "
            f"(--trainer.accumulate_grad_batches {every})"
        )


def logs_now(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning writes what is logged at the end of this micro-batch: every log_every_n_steps steps."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return ends_step(trainer, batch_idx) and every > 0 and trainer.global_step % every == 0


def seed_dropout(trainer: Trainer, seed: int, device: torch.device) -> None:
    """Seed dropout from (seed, micro-step, rank), so that a resumed run drops what the undisturbed one would:
    checkpoints do not hold the generators' state."""
    key = f"{seed}/{trainer.fit_loop.total_batch_idx}/{trainer.global_rank}".encode()
    drawn = int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")
    # torch.manual_seed would seed every kind of device, and keep a stack trace for each that is not in use.
    torch.default_generator.manual_seed(drawn)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(drawn)
