"""Split rules, DataModules and callbacks from a user's file in the current folder: used, or refused in one line."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from lrec.data.store.store import Store

EXAMPLES = Path(__file__).parents[4] / "examples"
WRONG = """
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from lrec import LastItems
from lrec.data.datamodule import SequenceDataModule
from lrec.data.store.prepare import RawInteractions
from lrec.data.splits.rules import SplitRule


class NotARule:
    pass


class NotFrozen(SplitRule):
    def cut(self, store):
        return LastItems().cut(store)


@dataclass(frozen=True)
class NoCut(SplitRule):
    pass


@dataclass(frozen=True)
class Wrong(SplitRule):
    how: str = ""

    def cut(self, store):
        split = LastItems().cut(store)
        lengths_U = np.diff(store.offsets_U1)
        return {
            "nothing": lambda: None,
            "short": lambda: replace(split, test_U=split.test_U[1:]),
            "list": lambda: replace(split, held_out_U=split.held_out_U.tolist()),
            "text": lambda: replace(split, train_U=split.train_U.astype(str)),
            "negative": lambda: replace(split, train_U=split.train_U - 100),
            "number": lambda: replace(split, val_targets_U=split.val_targets_U - 1),
            "order": lambda: replace(split, val_U=split.test_U, test_U=split.val_U),
            "leak": lambda: replace(split, train_U=lengths_U),
            "beyond": lambda: replace(split, test_targets_U=split.test_targets_U + 1),
            "no_training": lambda: replace(split, train_U=np.zeros_like(lengths_U)),
        }[self.how]()


class NotData:
    pass


class NoRead(SequenceDataModule):
    store_name = "own"


class Own(SequenceDataModule):
    def __init__(self, how: str, **options) -> None:
        super().__init__(**options)
        self.how = how

    @property
    def store_name(self):
        return "own/shop" if self.how == "name" else "own"

    def source(self):
        return {"how": self if self.how == "source" else self.how}

    def read(self):
        frame = pl.DataFrame({"user": ["u"] * 4, "item": [1, 2, 3, 4], "time": [1, 2, 3, 4]})
        changed = {
            "column": frame.rename({"user": "customer"}),
            "type": frame.with_columns(pl.col("time").cast(pl.Float64)),
            "empty": frame.with_columns(item=pl.Series([1, None, 3, 4])),
        }
        return RawInteractions(changed.get(self.how, frame))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples of docs/extending.md, which is the current folder."""
    for name in ("my_split.py", "my_data.py", "my_callback.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    (tmp_path / "my_wrong.py").write_text(WRONG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def csv(log_csv: Path) -> list[str]:
    columns = {"path": log_csv, "user_column": "who", "item_column": "what", "time_column": "when"}
    return ["--config=data/csv.yaml", *(f"--data.{name}={value}" for name, value in columns.items())]


TINY = [
    "--config=trainer/laptop.yaml", "--data.max_len=8", "--data.targets_per_step=64", "--model.size=0.8k",
    "--trainer.max_steps=3", "--trainer.val_check_interval=3", "--trainer.enable_progress_bar=false",
    "--trainer.default_root_dir=run",
]  # fmt: skip


def split_lines(said: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in said.splitlines() if line)


def test_a_split_rule_cuts_trains_and_is_found_again(csv: list[str], folder: Path, lrec: Callable[..., str]) -> None:
    own = ["--data.split=my_split.LastShare", "--data.split.share=0.2"]
    said = split_lines(lrec("data", "prepare", *csv, *own))
    store = Store.open(next(Path("data").glob("log-*")))
    lengths = np.diff(store.offsets_U1)
    held = [-(-int(n) // 5) if 2 * -(-int(n) // 5) < n else 0 for n in lengths]
    assert said["split"] == "LastShare(share=0.2)"
    assert said["test"] == said["validation"] == f"{sum(held):,}"
    assert said["training"] == f"{lengths.sum() - 2 * sum(held):,}"
    callback = ["--trainer.callbacks+=my_callback.Announcer", "--trainer.callbacks.metric=HR@10"]
    assert "\nstep 3: HR@10 0." in lrec("fit", *csv, *own, *TINY, *callback)
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"]["init_args"]["split"] == {
        "class_path": "my_split.LastShare",
        "init_args": {"share": 0.2},
    }
    assert "popularity" in lrec("test", "--config=run/config.yaml")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["my_wrong.NotARule"], "--data.split: my_wrong.NotARule is no subclass of SplitRule"),
        (["my_wrong.Missing"], "--data.split: my_wrong.Missing: module 'my_wrong' has no attribute 'Missing'"),
        (
            ["my_wrong.NoCut"],
            "--data.split: my_wrong.NoCut is abstract: your class must define every abstract method of its base",
        ),
        (["my_wrong.NotFrozen"], "split NotFrozen: make it a frozen dataclass"),
        (["my_split.LastShare", "--data.split.share=0.5"], "split.share must lie between 0 and 0.5, not 0.5"),
        (["my_split.LastShare", "--data.split.part=0.5"], "--data.split: no option 'part'"),
        ("nothing", "split Wrong: cut returned NoneType, not a Split"),
        ("short", "split Wrong: test_U is not an array of integers, one for each of 300 users"),
        ("list", "split Wrong: held_out_U is not an array of bool, one for each of 300 users"),
        ("text", "split Wrong: train_U is not an array of integers, one for each of 300 users"),
        ("negative", "split Wrong: train_U is negative"),
        ("number", "split Wrong: user 0 (store index) has val_U"),
        ("order", "split Wrong: leak: held-out positions in the training part of user 0"),
        ("leak", "split Wrong: leak: held-out positions in the training part of user 0"),
        ("beyond", "split Wrong: leak: held-out positions in the training part of user 0"),
        ("no_training", "split Wrong: the split leaves nothing to train on"),
    ],
)
def test_a_split_that_does_not_fit_is_one_line(
    options: list[str] | str, says: str, csv: list[str], folder: Path, refused: Callable[..., str]
) -> None:
    if isinstance(options, str):
        options = ["my_wrong.Wrong", f"--data.split.how={options}"]
    assert refused("data", "prepare", *csv, "--data.split", *options).startswith(f"lrec: error: {says}")


def test_a_data_module_is_read_trained_on_and_tested(folder: Path, lrec: Callable[..., str]) -> None:
    random = np.random.default_rng(0)
    orders = [
        (f"c{user}", int(random.integers(20)), 1_700_000_000 + 100 * step + user, int(random.random() < 0.1))
        for step in range(9)
        for user in range(60)
    ]
    with sqlite3.connect("shop #1?.db") as shop:  # in a URI, # and ? have a meaning
        shop.execute("CREATE TABLE orders (customer TEXT, product INT, ordered_at INT, returned INT)")
        shop.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", orders)
    own = ["--data=my_data.ShopOrders", "--data.path=shop #1?.db"]
    said = split_lines(lrec("data", "prepare", *own))
    kept = [order for order in orders if not order[3]]
    assert said["interactions"] == f"{len(kept):,}"
    store = Store.open(next(Path("data").glob("shop-*")))
    items = store.item_table["raw_id"].gather(store.items_N).to_list()
    first = slice(*store.offsets_U1[:2].tolist())
    assert items[first] == [str(product) for customer, product, _, _ in kept if customer == "c0"]
    lrec("fit", *own, *TINY, "--data.split=my_split.LastShare", "--data.split.share=0.2")
    assert "popularity" in lrec("test", "--config=run/config.yaml")
    catalogue = pl.read_parquet("run/items.parquet")["raw_id"]
    assert set(catalogue) <= {str(product) for _, product, _, _ in kept}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["my_wrong.NotData"], "--data: my_wrong.NotData is no subclass of SequenceDataModule"),
        (
            ["my_wrong.NoRead"],
            "--data: my_wrong.NoRead is abstract: your class must define every abstract method of its base",
        ),
        (
            ["my_nowhere.Data"],
            "--data: my_nowhere.Data: No module named 'my_nowhere': is my_nowhere.py in the current folder?",
        ),
        (["my_data.ShopOrders", "--data.path=nowhere.db"], "nowhere.db does not exist (option path)"),
        ("name", "store_name 'own/shop': letters, digits, _ and - are allowed"),
        ("source", "own: source() must hold plain values (Object of type Own is not JSON serializable)"),
        ("column", "own: read() gives no column user; its columns are customer, item, time"),
        ("type", "own: read() gives time as Float64; ids are text or integers, times integers"),
        ("empty", "own, row 2: read() gives no item"),
    ],
)
def test_a_data_module_that_does_not_fit_is_one_line(
    options: list[str] | str, says: str, folder: Path, refused: Callable[..., str]
) -> None:
    if isinstance(options, str):
        options = ["my_wrong.Own", f"--data.how={options}"]
    assert refused("data", "prepare", "--data", *options) == f"lrec: error: {says}"
