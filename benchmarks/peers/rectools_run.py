"""What runs of RecTools' networks share: options, a silent trainer that is timed, memory; for scripts beside it."""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class Stopwatch(Callback):
    """Seconds of the training loop, kept by the class because RecTools copies its trainer."""

    started = seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Stopwatch.started = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Stopwatch.seconds = time.perf_counter() - Stopwatch.started


def read_options() -> argparse.Namespace:
    """The options of a run; torch has its threads and its seed afterwards."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--max_len", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def timed_trainer(epochs: int, **options: Any) -> Trainer:
    """A trainer of so many epochs on the CPU that writes nothing; `Stopwatch.seconds` has its time afterwards."""
    return Trainer(
        max_epochs=epochs,
        min_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Stopwatch()],
        **options,
    )


def peak_gib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
