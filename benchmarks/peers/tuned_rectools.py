"""RecTools' SASRec trained with one setting, in RecTools' own environment; prints one line of JSON.

The epoch of least validation loss is kept. Ranks are those of the validation and of the test items among each user's
ten best unseen items, in order of users; one that is not among them is null.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import pandas as pd
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools_log import read_log

warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path)
    parser.add_argument("--max_len", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--patience", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--users_per_step", type=int)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seed_everything(options.seed)
    log, validation, test = read_log(options.log)
    checkpoints = tempfile.TemporaryDirectory()

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=options.epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                EarlyStopping("val_loss", patience=options.patience),
                ModelCheckpoint(checkpoints.name, "best", monitor="val_loss", save_weights_only=True),
            ],
        )

    def is_validation(interactions: pd.DataFrame) -> pd.Series:
        return interactions.groupby(Columns.User).cumcount(ascending=False) == 0

    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=64,
        session_max_len=options.max_len,
        dropout_rate=options.dropout,
        loss="softmax",
        lr=options.lr,
        batch_size=options.users_per_step,
        get_val_mask_func=is_validation,
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
    )
    model.fit(Dataset.construct(log[~test]))
    epochs = model.fit_trainer.current_epoch
    model.load_weights_from_checkpoint(f"{checkpoints.name}/best.ckpt")

    def ranks(targets: pd.Series, history: pd.Series) -> list[int | None]:
        """Rank of each target, in order of users."""
        wanted = log.loc[targets, [Columns.User, Columns.Item]]
        known = log[history & log[Columns.Item].isin(set(model.data_preparator.get_known_item_ids()))]
        users = known.loc[known[Columns.User].isin(wanted[Columns.User]), Columns.User].unique()
        lists = model.recommend(users, Dataset.construct(known), k=10, filter_viewed=True)
        found = wanted.merge(lists, on=[Columns.User, Columns.Item], how="left").sort_values(Columns.User)
        return [None if pd.isna(rank) else int(rank) for rank in found[Columns.Rank]]

    print(
        json.dumps(
            {
                "validation": ranks(validation, ~test & ~validation),
                "test": ranks(test, ~test),
                "epochs": epochs,
            }
        )
    )


if __name__ == "__main__":
    main()
