"""A study in which every part is a class of the user's own file: trained, fitted, put to tasks, used to recommend."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import yaml

import lrec as package
from lrec.model import cost
from lrec.run import Run

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = ["0.8k", "1.7k", "3k", "4.8k"]
STUDY = {
    "name": "own",
    "configs": ["trainer/laptop.yaml"],
    "sizes": SIZES,
    "holdout": 0,
    "jobs": 2,
    "options": {
        "model.class_path": "noisy_recommender.NoisyRecommender",
        "model.noise": 0.2,
        "model.loss": "smoothed_softmax.SmoothedSoftmax",
        "model.optimizer": "nesterov.Nesterov",
        "model.optimizer.lr": 0.2,
        "model.architecture.attention": "gated_attention.GatedAttention",
        "data.class_path": "my_data.ShopOrders",
        "data.path": "shop.db",
        "data.split": "my_split.LastShare",
        "data.split.share": 0.2,
        "data.max_len": 10,
        "data.targets_per_step": 256,
        "trainer.max_epochs": 1,
        "trainer.enable_progress_bar": False,
    },
}


@pytest.fixture
def folder(log_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples, a shop's database and the study."""
    for example in EXAMPLES.glob("*.py"):
        shutil.copy(example, tmp_path)
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("shop.db") as shop:
        shop.execute("CREATE TABLE orders (customer TEXT, product TEXT, ordered_at INTEGER, returned INTEGER)")
        shop.executemany("INSERT INTO orders VALUES (?, ?, ?, 0)", pl.read_csv(log_csv).rows())
    Path("own.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


@pytest.mark.slow
def test_a_study_made_of_own_classes(folder: Path, lrec: Callable[..., str], refused: Callable[..., str]) -> None:
    planned = lrec("scaling", "study", "--config", "own.yaml", "--dry_run")
    lrec("scaling", "study", "--config", "own.yaml")
    report = Path("studies/own/report.md").read_text()
    runs = {size: Run(Path("studies/own/runs") / f"{size}-seed1") for size in SIZES}
    for size, run in runs.items():
        model = package.load(run.best, trust=True)
        assert run.result is not None
        # The gated attention has five matrices of width x width, one more than softmax attention.
        assert run.result.N_body == cost.n_body(model.net.config) == 13 * model.net.config.width**2
        assert f"{run.result.N_body:,}" in planned
        assert f"| {size} | 1 | {run.result.N_body:,} |" in report
        assert run.config.value("model.noise") == 0.2
        assert run.target_losses_file.is_file()
    assert json.loads(Path("studies/own/fit/fit.json").read_text())["n_points"] == len(SIZES)

    command = ["tasks", "--runs", "studies/own/runs", "--tasks", "long_tail,my_task.repeat_consumption"]
    message = refused(*command)
    assert "names the class my_data.ShopOrders, which is not lrec's own: --trust" in message
    assert not Path("tasks").exists()
    assert "Repeat consumption" in lrec(*command, "--trust")
    assert set(json.loads(Path("tasks/tasks.json").read_text())["tasks"]) == {"long_tail", "repeat_consumption"}

    histories = ["--histories", "shop.csv", "--out", "lists.csv"]
    pl.DataFrame({"user": ["u1", "u1"], "item": ["item-1", "item-2"]}).write_csv("shop.csv")
    command = ["recommend", "--ckpt_path", runs["3k"].folder, *histories]
    assert "--trust" in refused(*command, "--time_column", "null")
    lrec(*command, "--time_column", "null", "--trust")
    assert pl.read_csv("lists.csv").height == 10
