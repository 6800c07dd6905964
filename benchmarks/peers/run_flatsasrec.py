"""RecTools' FlatSASRecNet (its fast_transformers), in RecTools' environment; prints one line of JSON.

RecTools has sequences and the network and leaves the loop to its user: this one is Lightning's, with full softmax over
the logits that the network returns, batches of 128 users and AdamW.
"""

import json
import statistics
import time
import warnings

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from rectools import Columns
from rectools.fast_transformers import FlatSASRecNet, SequenceBatchDataset, build_sequences
from rectools_log import read_log
from rectools_run import Stopwatch, peak_gib, read_options, timed_trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

warnings.filterwarnings("ignore")


class Loop(pl.LightningModule):
    """Cross-entropy at every position that has a target."""

    def __init__(self, net: FlatSASRecNet, lr: float) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        logits = self.net(batch)
        # Its items begin with 1, and its columns of logits with item 1.
        return cross_entropy(logits.flatten(0, 1), batch["y"].flatten() - 1, ignore_index=-1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=self.lr)


def main() -> None:
    options = read_options()
    log, is_validation, is_test = read_log(options.folder / "log.csv")
    train = log[~is_validation & ~is_test]
    catalogue = pd.Index(train[Columns.Item].unique())
    x, y, _, _ = build_sequences(*tensors(train, catalogue), options.max_len)
    net = FlatSASRecNet(len(catalogue), 64, n_blocks=2, n_heads=2, session_max_len=options.max_len, dropout=0.1)
    batches = DataLoader(SequenceBatchDataset(x, y), batch_size=128, shuffle=True)
    timed_trainer(options.epochs).fit(Loop(net, options.lr), batches)
    fit_memory = peak_gib()
    test = log[is_test].sort_values(Columns.User)
    before_test = log[~is_test & log[Columns.Item].isin(catalogue)]
    before_test = before_test[before_test[Columns.User].isin(test[Columns.User])]
    evaluation_seconds = []
    for _ in range(3):
        started = time.perf_counter()
        lists_UK = recommend(net.eval(), before_test, catalogue, options.max_len)
        evaluation_seconds.append(time.perf_counter() - started)
    hit_UK = lists_UK == test[Columns.Item].to_numpy()[:, None]
    print(
        json.dumps(
            {
                "targets": int((y != 0).sum()) * options.epochs,
                "seconds": Stopwatch.seconds,
                "memory_gib": fit_memory,
                "evaluation_memory_gib": peak_gib(),
                "users": len(test),
                "evaluation_seconds": statistics.median(evaluation_seconds),
                "HR@10": float(hit_UK.sum() / len(test)),
                "NDCG@10": float((hit_UK / np.log2(np.arange(2, 12))).sum() / len(test)),
                "version": __import__("rectools").__version__,
                "torch": torch.__version__,
            }
        )
    )


def tensors(log: pd.DataFrame, catalogue: pd.Index) -> tuple[torch.Tensor, ...]:
    """Users, items as places in the catalogue, and times, as `build_sequences` wants them: integers."""
    users = pd.factorize(log[Columns.User], sort=True)[0]
    items = catalogue.get_indexer(log[Columns.Item])
    return tuple(map(torch.from_numpy, (users, items, log[Columns.Datetime].astype("int64").to_numpy())))


@torch.inference_mode()
def recommend(net: FlatSASRecNet, log: pd.DataFrame, catalogue: pd.Index, max_len: int) -> np.ndarray:
    """The ten best unseen items of each user, (U, 10), users sorted."""
    users, items, times = tensors(log, catalogue)
    n_users = int(users.max()) + 1
    # A pair of input and target for each event but the last: one more event makes inputs of all.
    last = torch.arange(n_users), torch.full((n_users,), len(catalogue)), times.max().repeat(n_users) + 1
    x, _, _, _ = build_sequences(*map(torch.cat, zip((users, items, times), last, strict=True)), max_len)
    order = torch.argsort(users, stable=True)
    users, items = users[order], items[order]
    best = []
    for first in range(0, n_users, 1024):
        rows = x[first : first + 1024]
        scores = net.encode_last(rows) @ net.all_item_embeddings().T
        seen = slice(*torch.searchsorted(users, torch.tensor([first, first + len(rows)])).tolist())
        scores[users[seen] - first, items[seen]] = -torch.inf
        best.append(scores.topk(10).indices)
    return catalogue.to_numpy()[torch.cat(best).numpy()]


if __name__ == "__main__":
    main()
