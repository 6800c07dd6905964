"""RecBole's SASRec on a prepared data set, in RecBole's own environment; prints one line of JSON."""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--max_len", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batches", type=int, help="An epoch is so many batches of its rows, at most.")
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    atomic = options.folder / "recbole" / "log" / "log.inter"
    atomic.parent.mkdir(parents=True, exist_ok=True)
    header, *rows = (options.folder / "log.csv").read_text().splitlines()
    assert header == "user,item,time"
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *(row.replace(",", "\t") for row in rows)]
    atomic.write_text("\n".join(lines) + "\n")
    config = Config(
        model="SASRec",
        dataset="log",
        config_dict={
            "data_path": str(options.folder / "recbole"),
            "USER_ID_FIELD": "user_id",
            "ITEM_ID_FIELD": "item_id",
            "TIME_FIELD": "timestamp",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": options.max_len,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
            "train_neg_sample_args": None,
            "loss_type": "CE",
            "hidden_size": 64,
            "inner_size": 256,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dropout_prob": 0.1,
            "attn_dropout_prob": 0.1,
            "learning_rate": options.lr,
            "train_batch_size": 2048,
            "eval_batch_size": 2048,
            "epochs": options.epochs,
            "eval_step": 0,
            "metrics": ["Recall", "NDCG"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "use_gpu": False,
            "seed": 0,
            "reproducibility": True,
            "show_progress": False,
            "save_dataset": False,
            "checkpoint_dir": str(options.folder / "recbole"),
        },
    )
    init_seed(0, True)
    dataset = create_dataset(config)
    train_data, _, test_data = data_preparation(config, dataset)
    model = SASRec(config, train_data.dataset)
    trainer = Trainer(config, model)
    rows_per_epoch = len(train_data.dataset)
    if options.batches is not None:
        rows_per_epoch = min(rows_per_epoch, options.batches * 2048)
        train_data.sampler._num_samples = rows_per_epoch  # the first of each epoch's random order
    started = time.perf_counter()
    trainer.fit(train_data, saved=False, verbose=False)
    seconds = time.perf_counter() - started
    fit_memory = peak_gib()
    evaluation_seconds = []
    for _ in range(3):
        started = time.perf_counter()
        trainer.evaluate(test_data, load_best_model=False)
        evaluation_seconds.append(time.perf_counter() - started)
    memory = peak_gib()
    ranks = unseen_ranks(model, test_data, [row.split(",") for row in rows])
    print(
        json.dumps(
            {
                "targets": rows_per_epoch * options.epochs,
                "whole": rows_per_epoch == len(train_data.dataset),
                "seconds": seconds,
                "memory_gib": fit_memory,
                "evaluation_memory_gib": memory,
                "users": len(ranks),
                "evaluation_seconds": statistics.median(evaluation_seconds),
                "HR@10": float((ranks <= 10).mean()),
                "NDCG@10": float(((ranks <= 10) / np.log2(1 + ranks)).mean()),
                "version": __import__("recbole").__version__,
                "torch": torch.__version__,
            }
        )
    )


@torch.no_grad()
def unseen_ranks(model: SASRec, test_data: FullSortEvalDataLoader, rows: list[list[str]]) -> np.ndarray:
    """Rank of each test target among the items the user has not seen: RecBole's own evaluation does not filter."""
    model.eval()
    log = test_data.dataset
    histories: dict[str, list[str]] = {}
    for user, item, _ in rows:
        histories.setdefault(user, []).append(item)
    ranks = []
    for batch, *_ in test_data:
        scores = model.full_sort_predict(batch).view(len(batch), -1)
        scores[:, 0] = -torch.inf  # the padding token
        users = log.id2token("user_id", batch["user_id"].numpy())
        for row, user, target in zip(scores, users, batch["item_id"].tolist(), strict=True):
            of_target = row[target].clone()
            row[torch.from_numpy(log.token2id("item_id", np.array(histories[user][:-1])))] = -torch.inf
            ranks.append(1 + int((row > of_target).sum()))
    return np.array(ranks)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
