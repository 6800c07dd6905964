"""lrec, trained and evaluated on a prepared data set; prints one line of JSON."""

import argparse
import json
import resource
import shutil
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

import lrec
from lrec.serving.recommender import Model


class Stopwatch(Callback):
    """Seconds of the training loop."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--max_len", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--targets_per_step", type=int, default=1024)
    parser.add_argument("--precision", default="32-true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    seed_everything(0, verbose=False)
    data = lrec.InteractionsDataModule(
        options.folder / "log.csv",
        user_column="user",
        item_column="item",
        time_column="time",
        data_dir=options.folder / "lrec",
        max_len=options.max_len,
        targets_per_step=options.targets_per_step,
    )
    rates = lrec.OverDepth(0.1, 0.1)
    model = lrec.SequentialRecommender(
        size="98k",
        dropout=lrec.Dropout(embedding=0.1, attention=rates, residual=rates),
        optimizer=lrec.Optimizer(lr=options.lr),
    )
    stopwatch = Stopwatch()
    trainer = Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        devices=1,
        precision=options.precision,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[stopwatch],
    )
    trainer.fit(model, data)
    fit_memory = peak_gib()
    # What the peers' evaluations make: each user's ten best unseen items, by raw id, from the history before the test.
    trained = Model(model.net.eval(), data.item_table()["raw_id"], {})
    log = pl.read_csv(options.folder / "log.csv", schema_overrides={"user": pl.String, "item": pl.String})
    tested = log.group_by("user", maintain_order=True).agg("item").filter(pl.col("item").list.len() >= 3)
    histories = tested.select("user", items=pl.col("item").list.head(pl.col("item").list.len() - 1))
    targets = tested.select("user", target=pl.col("item").list.last())
    evaluation_seconds = []
    for _ in range(3):
        started = time.perf_counter()
        lists = trained.recommend(histories, k=10)
        evaluation_seconds.append(time.perf_counter() - started)
    memory = peak_gib()
    hits = lists.join(targets, on="user").filter(pl.col("items").list.contains(pl.col("target")))
    shutil.rmtree(data.store.path / "baselines", ignore_errors=True)  # an earlier run's: these are measured too
    started = time.perf_counter()
    trainer.test(model, data, verbose=False)
    test_seconds = time.perf_counter() - started
    figures = model.evaluations["test"]
    if options.precision == "32-true":  # `recommend` always computes so
        assert len(hits) / len(lists) == figures["HR@10_unseen"], "recommend and test differ"
    print(
        json.dumps(
            {
                "targets": model.D,
                "seconds": stopwatch.seconds,
                "memory_gib": fit_memory,
                "evaluation_memory_gib": memory,
                "users": len(lists),
                "evaluation_seconds": statistics.median(evaluation_seconds),
                "test_seconds": test_seconds,
                "HR@10": figures["HR@10_unseen"],
                "NDCG@10": figures["NDCG@10_unseen"],
                "popularity": {
                    name: model.evaluations["test/popularity"][f"{name}_unseen"] for name in ("HR@10", "NDCG@10")
                },
                "version": "this commit",
                "torch": torch.__version__,
            }
        )
    )


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
