"""What predict's callback holds and leaves on disk, and the best point of a run without a test."""

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lrec import BestAndLast, InteractionsDataModule, ScalingPoints, SequentialRecommender
from lrec.run import Point, Run
from lrec.training.table_writers import PredictionWriter


class Held(Callback):
    """Records the most batches of lists that are in memory at once, and all rows."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.batches: list[weakref.ref[pl.DataFrame]] = []
        self.most = 0
        self.rows: list[tuple[Any, ...]] = []

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.most = max(self.most, sum(batch() is not None for batch in self.batches))
        if batch_idx == self.fails_at:
            raise InterruptedError

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(weakref.ref(outputs))
        self.rows += outputs.rows()


@pytest.fixture
def predict(log_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Predict in batches of 32 of the log's 300 users."""
    monkeypatch.setattr("lrec.data.batching.eval_batches.MAX_TARGETS", 32)
    data = InteractionsDataModule(
        log_csv, user_column="who", item_column="what", time_column="when", data_dir=tmp_path, max_len=10
    )

    def run(held: Held) -> Path:
        trainer = Trainer(
            accelerator="cpu", default_root_dir=tmp_path / "run", callbacks=[PredictionWriter(), held],
            logger=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.predict(SequentialRecommender(size="3k", top_k=4), data, return_predictions=False)
        return tmp_path / "run"

    return run


def test_no_more_than_a_batch_of_lists_is_held(predict: Any) -> None:
    held = Held()
    run = predict(held)
    assert held.most <= 1
    found = pl.read_parquet(run / "predictions.parquet")
    assert found.schema == {"user": pl.String, "items": pl.List(pl.String), "scores": pl.List(pl.Float64)}
    assert found.rows() == held.rows, "in the order in which users were served"
    assert len(found) == 300
    assert [path.name for path in run.iterdir()] == ["predictions.parquet"]


def test_the_parts_of_an_earlier_prediction_by_several_processes_go(predict: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("predictions.0.parquet", "predictions.1.parquet", "predictions-of-mine.parquet"):
        (tmp_path / "run" / name).touch()
    run = predict(Held())
    assert {path.name for path in run.iterdir()} == {"predictions.parquet", "predictions-of-mine.parquet"}


def test_what_is_interrupted_leaves_nothing(predict: Any, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        predict(Held(fails_at=3))
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(("monitor", "best"), [("val/loss", 2), ("val/NDCG@10", 1)])
def test_without_a_test_the_best_point_is_that_of_the_best_checkpoint(monitor: str, best: int, tmp_path: Path) -> None:
    callback = ScalingPoints(test=False)
    for loss, ndcg in ((None, None), (3.0, 0.2), (2.0, 0.1)):
        callback.points.append(Point(val_loss=loss, metrics={"val/loss": loss, "val/NDCG@10": ndcg}))
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[BestAndLast(monitor)], default_root_dir=tmp_path)
    callback.on_fit_end(trainer, SequentialRecommender(size="3k"))
    assert [point.best for point in Run(tmp_path).points] == [place == best for place in range(3)]


def test_without_a_test_the_best_point_is_none_of_the_run_that_this_one_continues(tmp_path: Path) -> None:
    callback, keeper = ScalingPoints(test=False), BestAndLast()
    callback.points = [Point(val_loss=loss, metrics={"val/loss": loss}) for loss in (2.0, 3.0, 2.5)]
    keeper.best_model_score = torch.tensor(2.5)
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[keeper], default_root_dir=tmp_path)
    callback.on_fit_end(trainer, SequentialRecommender(size="3k"))
    assert [point.best for point in Run(tmp_path).points] == [False, False, True]
