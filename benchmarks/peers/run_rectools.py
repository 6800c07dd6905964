"""RecTools' SASRec on a prepared data set, in RecTools' own environment; prints one line of JSON."""

import json
import statistics
import time
import warnings

import numpy as np
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools_log import read_log
from rectools_run import Stopwatch, peak_gib, read_options, timed_trainer

warnings.filterwarnings("ignore")


def main() -> None:
    begun = time.perf_counter()
    options = read_options()
    log, is_validation, is_test = read_log(options.folder / "log.csv")
    train = log[~is_validation & ~is_test]
    known = set(train[Columns.Item])
    test = log[is_test]
    before_test = log[~is_test & log[Columns.Item].isin(known)]

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
        get_trainer_func=lambda: timed_trainer(options.epochs),
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
        if len(evaluation_seconds) == 1:
            whole_seconds = time.perf_counter() - begun
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
                "whole_seconds": whole_seconds,  # from the file to the first lists
                "HR@10": len(merged) / len(users),
                "NDCG@10": float((1 / np.log2(1 + merged[Columns.Rank])).sum() / len(users)),
                "version": __import__("rectools").__version__,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
