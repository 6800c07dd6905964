"""What validation costs, compared with the training between two evaluations, by default and with all users.

    python benchmarks/validation.py --data FOLDER [--threads 2] [--sizes 98k 1.6m] [--page benchmarks/validation.md]

There are two evaluations, each after an epoch or a part of it (STEPS). The second one is reported, since it scores no
baseline. Time is that of the process on all threads (CPU seconds), so other work on the machine counts little.
"""

import argparse
import logging
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from rows import commit

import lrec
from lrec.common.files import write_text
from lrec.data.datamodule import SequenceDataModule

# What is trained between two evaluations: an epoch, or a number of steps if an epoch takes long.
STEPS = {"beauty": 1.0, "ml-1m": 1.0, "globo": 100}
PAGE = """# What validation costs during training

{machine}.

    python benchmarks/validation.py --data FOLDER --page benchmarks/validation.md

Two blocks of width 64 (98k), or eight of width 128 (1.6m); full softmax, 4,096 targets a step, histories of 50 items
(200 on MovieLens-1M). Seconds are CPU seconds from the first evaluation to the second (100 steps on Globo's clicks),
and of the second evaluation. `auto` is the default of `data.validation_users`.

| data | size | validation_users | users | training, s | validation, s | share | NDCG@10 | standard error |
|---|---|---|---:|---:|---:|---:|---:|---:|
{rows}
"""


class Clock(Callback):
    """CPU seconds of training and of validation, of the last evaluation and the training before it."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.since = time.process_time()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.training = self._lap()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validation = self._lap()

    def _lap(self) -> float:
        now = time.process_time()
        seconds, self.since = now - self.since, now
        return seconds


def data_sets(folder: Path, stores: Path) -> dict[str, Callable[..., SequenceDataModule]]:
    """Functions that make a DataModule, by name; validation_users is still to be given."""
    globo = {"user_column": "user_id", "item_column": "click_article_id", "time_column": "click_timestamp", "k_core": 5}
    return {
        "beauty": lambda **options: lrec.InteractionsDataModule(
            folder / "s3rec_Beauty.txt.gz", data_dir=stores, **options
        ),
        "ml-1m": lambda **options: lrec.MovieLensDataModule(
            folder / "ml-1m_ratings.dat.xz", version="1m", data_dir=stores, max_len=200, **options
        ),
        "globo": lambda **options: lrec.InteractionsDataModule(
            folder / "globo_clicks.parquet", data_dir=stores, **globo, **options
        ),
    }


def measure(name: str, make: Callable[..., SequenceDataModule], size: str, users: str) -> str:
    """A row of the table."""
    seed_everything(0, verbose=False)
    rates = lrec.OverDepth(0.1, 0.1)
    dropout = lrec.Dropout(embedding=0.1, attention=rates, residual=rates)
    model, clock = lrec.SequentialRecommender(size=size, dropout=dropout), Clock()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        limit_train_batches=STEPS[name],
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(model, make(validation_users=users))
    figures = model.evaluations["val"]
    return (
        f"| {name} | {size} | {users} | {figures['targets']:,.0f} | {clock.training:.1f} | {clock.validation:.2f} "
        f"| **{clock.validation / clock.training:.1%}** | {figures['NDCG@10']:.4f} | {figures['NDCG@10_se']:.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with the raw files.")
    parser.add_argument("--sets", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--sizes", nargs="+", default=["98k", "1.6m"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--stores", type=Path, help="Folder of prepared stores; a temporary one by default.")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        sets = data_sets(options.data, options.stores or Path(temporary))
        for name in options.sets:
            for size in options.sizes:
                for users in ("auto", "all"):
                    rows.append(measure(name, sets[name], size, users))
                    print(rows[-1], flush=True)
    if options.page is not None:
        machine = (
            f"{time.strftime('%Y-%m-%d')}, commit {commit()}, {platform.machine()}, {options.threads} threads, torch "
            f"{torch.__version__}"
        )
        write_text(options.page, PAGE.format(machine=machine, rows="\n".join(rows)))


if __name__ == "__main__":
    main()
