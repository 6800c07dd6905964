"""The loaders in Lightning's Trainer: resuming from any checkpoint equals training without a break."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lrec.data.batching.eval_batches import EvalBatch
from lrec.data.batching.train_batches import TrainBatch
from lrec.data.sources.interactions import InteractionsDataModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


class Tiny(LightningModule):
    """Predicts the next item from the last one, and records the targets it saw."""

    def configure_model(self) -> None:
        if hasattr(self, "table"):
            return
        torch.manual_seed(0)
        n_items = self.trainer.datamodule.n_items
        self.table = nn.Parameter(torch.randn(n_items, 4))
        self.seen: list[list[int]] = []

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        self.seen.append(batch.targets_M.tolist())
        hidden = self.table[batch.items_BL].flatten(0, 1)[batch.positions_M]
        loss = nn.functional.cross_entropy(hidden @ self.table.T, batch.targets_M, reduction="sum")
        return loss * self.trainer.accumulate_grad_batches / batch.step_targets

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    lines = (f"{u} " + " ".join(str((u * 7 + p * p) % 31) for p in range(3 + u % 40)) for u in range(60))
    (tmp_path / "log.txt").write_text("\n".join(lines))
    return tmp_path / "log.txt"


def fit(
    log: Path,
    checkpoints: Path,
    every: dict[str, Any],
    accumulation: int = 1,
    limit: float = 1.0,
    steps: int = 18,
    **options: Any,
) -> Tiny:
    data = InteractionsDataModule(
        path=log, data_dir=log.parent / "data", max_len=10, targets_per_step=120, num_workers=options.pop("workers", 0)
    )
    keep = ModelCheckpoint(checkpoints, filename="{epoch}-{step}", save_top_k=-1, **every)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=1,
        accumulate_grad_batches=accumulation,
        limit_train_batches=limit,
        callbacks=[keep],
    )
    model = Tiny()
    trainer.fit(model, data, **options)
    assert (data.steps_per_epoch, trainer.global_step) == (9, steps)
    return model


@pytest.mark.parametrize(
    ("every", "accumulation", "n_checkpoints"),
    [
        ({"every_n_train_steps": 1}, 1, 18),
        ({"every_n_train_steps": 3}, 2, 6),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, 1, 2),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": False}, 1, 2),
    ],
)
def test_resumed_equals_straight(
    log: Path, tmp_path: Path, every: dict[str, Any], accumulation: int, n_checkpoints: int
) -> None:
    straight = fit(log, tmp_path / "straight", every, accumulation)
    checkpoints = sorted((tmp_path / "straight").glob("*.ckpt"))
    n_batches = len(straight.seen)
    assert (n_batches, len(checkpoints)) == (18 * accumulation, n_checkpoints)
    for checkpoint in checkpoints:
        step = int(checkpoint.stem.rsplit("=", 1)[1])
        if step * accumulation == n_batches:
            continue
        resumed = fit(log, tmp_path / "resumed", every, accumulation, ckpt_path=checkpoint, weights_only=False)
        assert resumed.seen == straight.seen[step * accumulation :], checkpoint.name
        assert torch.equal(resumed.table, straight.table), checkpoint.name


@pytest.mark.parametrize(("limit", "accumulation", "of_epoch"), [(5, 1, 5), (0.5, 1, 4), (6, 2, 3)])
def test_after_a_limited_epoch_the_next_one_begins(
    limit: float, accumulation: int, of_epoch: int, log: Path, tmp_path: Path
) -> None:
    every = {"every_n_epochs": 1, "save_on_train_epoch_end": False}
    straight = fit(log, tmp_path / "straight", every, accumulation, limit, 2 * of_epoch)
    whole = fit(log, tmp_path / "whole", every)
    (checkpoint,) = (tmp_path / "straight").glob(f"*step={of_epoch}.ckpt")
    again = {"ckpt_path": checkpoint, "weights_only": False}
    resumed = fit(log, tmp_path / "resumed", every, accumulation, limit, 2 * of_epoch, **again)
    assert resumed.seen == straight.seen[of_epoch * accumulation :]
    assert torch.equal(resumed.table, straight.table)
    if accumulation == 1:
        longer = fit(log, tmp_path / "longer", every, **again)
        assert longer.seen == whole.seen[of_epoch:]


def test_batches_read_ahead_by_workers_do_not_count(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: set[int] = set()

    def note_groups(*_: Any) -> None:
        groups.clear()  # a worker leaves the group when it starts, and may start after the first batch of the other
        groups.update(os.getpgid(worker.pid or 0) for worker in multiprocessing.active_children())

    every = {"every_n_train_steps": 3}
    straight = fit(log, tmp_path / "straight", every)
    checkpoint = next((tmp_path / "straight").glob("*step=3.ckpt"))
    loader_state = torch.load(checkpoint, weights_only=False)["InteractionsDataModule"]
    assert loader_state == {"epoch": 0, "step": 3, "accumulation": 1, "seed": 0, "targets_per_step": 120}
    monkeypatch.setattr(Tiny, "on_train_batch_end", note_groups)
    resumed = fit(log, tmp_path / "resumed", every, ckpt_path=checkpoint, weights_only=False, workers=2)
    assert resumed.seen == straight.seen[3:]
    assert torch.equal(resumed.table, straight.table)
    assert multiprocessing.active_children() == []  # the workers end with the fit
    assert groups.isdisjoint({os.getpgrp()}), "a signal to the group of a run leaves its workers alone"
    assert groups
