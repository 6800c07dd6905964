"""Settings of a process while a trainer works in it: garbage collection, memory, random numbers."""

import gc
import hashlib
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lrec.common import cpu_threads
from lrec.common.hardware import keep_freed_memory
from lrec.errors import UserError


class ProcessSetup(Callback):
    """The model adds this callback in every stage and with any Trainer."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Exclude the objects that exist by now from garbage collection: going through them takes two thirds of the
        time of logging an evaluation. On a CPU, keep freed memory for the next batches."""
        gc.freeze()
        if cpu_threads.is_cpu(trainer.strategy.root_device):
            keep_freed_memory()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """UserError if a subclass has its own hook, and a resumed run would count its targets from 0 again."""
        if trainer.global_step and not pl_module.D:
            name = f"{type(pl_module).__name__}.on_load_checkpoint"
            raise UserError(f"{name} does not restore the run: call super().on_load_checkpoint(checkpoint)")

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Seed dropout from (seed, micro-step, rank). So a resumed run has the same dropout as an uninterrupted one,
        although checkpoints do not hold the state of the generators."""
        key = f"{pl_module.data.seed}/{trainer.fit_loop.total_batch_idx}/{trainer.global_rank}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")
        # torch.manual_seed would seed every kind of device, and keep a stack trace for each unused kind.
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        gc.unfreeze()
