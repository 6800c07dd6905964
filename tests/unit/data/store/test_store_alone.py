"""A store without the raw data that it was made from, at any path."""

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml

from lrec.data.sources.amazon import AmazonDataModule
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.sources.movielens import MovieLensDataModule
from lrec.data.sources.synthetic import SyntheticDataModule
from lrec.errors import UserError
from lrec.options.class_paths import TEXT

COLUMNS = {"user_column": "who", "item_column": "what", "time_column": "when"}
RAW = ["--config=data/csv.yaml", "--data.path=log.csv", *(f"--data.{name}={value}" for name, value in COLUMNS.items())]
ALONE = ["--data=lrec.InteractionsDataModule", "--data.store=moved/st.ore"]
TINY = [
    "--config=trainer/laptop.yaml", "--data.max_len=8", "--data.targets_per_step=64", "--model.size=0.8k",
    "--trainer.val_check_interval=3", "--trainer.enable_progress_bar=false", "--data.split.trajectory=2",
    "--data.split.trajectory_min_length=8",
]  # fmt: skip


@pytest.fixture
def moved(log_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InteractionsDataModule:
    """A data set that was prepared in the current folder. Only a copy of its store remains."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(log_csv, "log.csv")
    module = InteractionsDataModule(path=Path("log.csv"), **COLUMNS)  # type: ignore[arg-type]
    module.prepare_data()
    module.setup()
    move(module.store_path)
    return module


def move(store: Path) -> None:
    shutil.copytree(store, "moved/st.ore", copy_function=shutil.copyfile)  # without its mtimes
    shutil.rmtree("data")
    Path("log.csv").unlink()


def test_a_copied_store_is_the_same_data_without_the_raw_files(moved: InteractionsDataModule) -> None:
    alone = InteractionsDataModule(store=Path("moved/st.ore"))
    alone.prepare_data()
    alone.setup()
    assert alone.data_hash == moved.data_hash
    assert alone.columns == moved.columns
    assert alone.store.raw_user_ids.equals(pl.read_parquet("moved/st.ore/users.parquet")["raw_id"])
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k_core": 3}, "data.k_core=3: moved/st.ore was prepared with 0; leave the option out"),
        ({"time_column": "at"}, "data.time_column=at: moved/st.ore was prepared with when; leave the option out"),
        ({"min_rating": 2.0, "rating_column": "stars"}, "data.min_rating=2.0: moved/st.ore was prepared with None"),
        ({"target_events": ["buy"]}, "data.target_events: the data have no types of event"),
    ],
)
def test_options_that_contradict_a_store_are_refused(
    moved: InteractionsDataModule, options: dict[str, object], says: str
) -> None:
    alone = InteractionsDataModule(path=Path("nowhere.csv"), store=Path("moved/st.ore"), **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=says):
        alone.setup()


def test_k_core_and_columns_of_a_store_are_optional(log_csv: Path, tmp_path: Path) -> None:
    rows = pl.read_csv(log_csv).with_columns(stars=pl.col("when") % 3)
    rows.write_csv(tmp_path / "rated.csv")
    said = {**COLUMNS, "k_core": 3, "rating_column": "stars", "min_rating": 1.0}
    module = InteractionsDataModule(path=tmp_path / "rated.csv", data_dir=tmp_path, **said)  # type: ignore[arg-type]
    module.prepare_data()
    for options in ({}, said):
        alone = InteractionsDataModule(store=module.store_path, **options)  # type: ignore[arg-type]
        alone.setup()
        assert (alone.k_core, alone.columns, alone.min_rating) == (3, module.columns, 1.0)


def test_other_data_sets_take_their_stores_too(moved: InteractionsDataModule, tmp_path: Path) -> None:
    store = Path("moved/st.ore")
    MovieLensDataModule(store=store).open_store()
    with pytest.raises(UserError, match=r"data.user_column=reviewerID: moved/st.ore was prepared with who"):
        AmazonDataModule(Path("nowhere"), 2014, store=store).open_store()
    with pytest.raises(UserError, match=r"moved/st.ore holds no synthetic set of these options"):
        SyntheticDataModule(store=store).open_store()
    drawn = SyntheticDataModule(n_users=50, n_items=8, data_dir=tmp_path / "drawn")
    drawn.prepare_data()
    again = SyntheticDataModule(n_users=50, n_items=8, store=drawn.store_path)
    again.setup()
    assert again.floor == again.store.facts["floor"]
    with pytest.raises(UserError, match="name your interactions"):
        InteractionsDataModule()
    with pytest.raises(UserError, match="nowhere is not a store"):
        InteractionsDataModule(store=Path("nowhere")).setup()
    assert "store" in TEXT


def test_a_store_alone_is_enough_to_train_test_recommend_and_run_tasks(
    moved: InteractionsDataModule, lrec: Callable[..., str]
) -> None:
    lrec("fit", *ALONE, *TINY, "--trainer.max_steps=3", "--trainer.default_root_dir=run")
    assert "popularity" in lrec("test", "--config=run/config.yaml")
    Path("new.csv").write_text("who,what,when\nx,item-1,1600000000\nx,item-2,1600000060\n")
    recommend = ("recommend", "--ckpt_path=run/checkpoints/best.ckpt", "--histories=new.csv", "--k=3")
    assert "item-" in lrec(*recommend)
    assert "x" in lrec(*recommend)
    lrec("tasks", "--runs", "run", "--out", "tasks", "--tasks", "long_tail")
    assert Path("tasks/tasks.json").exists()


def test_a_run_goes_on_from_a_store_elsewhere(
    log_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lrec: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(log_csv, "log.csv")
    lrec("fit", *RAW, *TINY, "--trainer.max_steps=5", "--trainer.default_root_dir=run")
    shutil.copytree("run", "here")
    go_on = ["--ckpt_path=last", "--trainer.max_steps=9"]
    lrec("fit", "--config=here/config.yaml", *go_on, "--trainer.default_root_dir=here")
    move(next(Path("data").glob("log-*")))
    lrec("fit", "--config=run/config.yaml", *go_on, "--data.store=moved/st.ore")
    lasts = (Path(name) / "checkpoints" / "last.ckpt" for name in ("run", "here"))
    elsewhere, here = (torch.load(last, weights_only=True)["state_dict"] for last in lasts)
    assert all(torch.equal(tensor, here[name]) for name, tensor in elsewhere.items())
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"]["init_args"]["store"] == "moved/st.ore"
    Path("moved").rename("again")
    assert "popularity" in lrec("test", "--config=run/config.yaml", "--data.store=again/st.ore")
