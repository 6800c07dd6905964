"""RecTools' recommendations for many histories, in RecTools' own environment; prints one line of JSON.

The model is trained for one step only: what is timed does not depend on its weights.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools_run import peak_gib, timed_trainer

warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--max_len", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ranker", choices=["torch", "implicit"], default="torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    def read(name: str) -> pd.DataFrame:
        log = pd.read_csv(options.folder / name)
        log[Columns.Datetime] = pd.to_datetime(log.groupby("user").cumcount(), unit="s")
        log[Columns.Weight] = 1.0
        return log.rename(columns={"user": Columns.User, "item": Columns.Item})

    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=64,
        session_max_len=options.max_len,
        loss="BCE",
        n_negatives=1,
        batch_size=2,
        epochs=1,
        get_trainer_func=lambda: timed_trainer(1, limit_train_batches=1),
        recommend_torch_device="cpu",
        recommend_batch_size=1024,
        recommend_n_threads=options.threads,
        recommend_use_torch_ranking=options.ranker == "torch",
    )
    model.fit(Dataset.construct(read("catalogue.csv")))
    log = read("histories.csv")
    before = peak_gib()
    started = time.perf_counter()
    dataset = Dataset.construct(log)
    constructed = time.perf_counter()
    users = log[Columns.User].unique()
    found = model.recommend(users, dataset, k=10, filter_viewed=True)
    seconds = time.perf_counter() - constructed
    print(
        json.dumps(
            {
                "users": len(users),
                "lists": int(found[Columns.User].nunique()),
                "construct_seconds": constructed - started,
                "seconds": seconds,
                "memory_before_gib": before,
                "memory_gib": peak_gib(),
                "version": __import__("rectools").__version__,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
