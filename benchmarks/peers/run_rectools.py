"""RecTools' SASRec on a prepared data set, in RecTools' own environment; prints one line of JSON."""

import argparse
import json
import resource
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools_log import read_log

warnings.filterwarnings("ignore")


class Stopwatch(Callback):
    """Seconds of the training loop, kept by the class because RecTools copies its trainer."""

    started = seconds = 0.0

    def on_train_start(self, trainer, pl_module):
        Stopwatch.started = time.perf_counter()

    def on_train_end(self, trainer, pl_module):
        Stopwatch.seconds = time.perf_counter() - Stopwatch.started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--max_len", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    log, is_validation, is_test = read_log(options.folder / "log.csv")
    train = log[~is_validation & ~is_test]
    known = set(train[Columns.Item])
    test = log[is_test]
    before_test = log[~is_test & log[Columns.Item].isin(known)]

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=options.epochs,
            min_epochs=options.epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Stopwatch()],
        )

    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=64,
        session_max_len=options.max_len,
        dropout_rate=0.1,
        loss="softmax",
        lr=options.lr,
        batch_size=128,
        epochs=options.epochs,
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
        recommend_batch_size=1024,
    )
    model.fit(Dataset.construct(train))
    fit_memory = peak_gib()
    users = test[Columns.User].to_numpy()
    evaluation_seconds = []
    for _ in range(3):
        started = time.perf_counter()
        lists = model.recommend(users, Dataset.construct(before_test), k=10, filter_viewed=True)
        evaluation_seconds.append(time.perf_counter() - started)
    merged = lists.merge(test[[Columns.User, Columns.Item]], on=[Columns.User, Columns.Item])
    lengths = train.groupby(Columns.User).size().to_numpy()
    print(
        json.dumps(
            {
                "targets": int(np.minimum(np.maximum(lengths - 1, 0), options.max_len).sum()) * options.epochs,
                "seconds": Stopwatch.seconds,
                "memory_gib": fit_memory,
                "evaluation_memory_gib": peak_gib(),
                "users": len(users),
                "evaluation_seconds": statistics.median(evaluation_seconds),
                "HR@10": len(merged) / len(users),
                "NDCG@10": float((1 / np.log2(1 + merged[Columns.Rank])).sum() / len(users)),
                "version": __import__("rectools").__version__,
                "torch": torch.__version__,
            }
        )
    )


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
