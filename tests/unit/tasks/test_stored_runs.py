"""A run from elsewhere is only read: nothing that it names is imported, and nothing is written next to its data."""

import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lrec as package
from lrec.checkpoint.writing import write
from lrec.data.datasets import AmazonDataModule, InteractionsDataModule, MovieLensDataModule, SyntheticDataModule
from lrec.data.features import Features
from lrec.data.splits.reduction import Reduction
from lrec.data.splits.rules import LastItems
from lrec.data.splits.temporal import GlobalTemporal
from lrec.errors import UserError
from lrec.options.class_paths import TEXT
from lrec.training.module import SequentialRecommender
from snapshot import snapshot

MakeRun = Callable[..., Path]


@pytest.fixture
def run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a run. The current folder has a module that leaves a file when it is imported."""
    shutil.copytree(next(runs.iterdir()), tmp_path / "run")
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('imported').touch()\nclass Rule: ...\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def edit(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(data="evil.Rule"),
        lambda config: config["data"].update(class_path="evil.Rule"),
        lambda config: config["data"]["init_args"].update(split="evil.Rule"),
        lambda config: config["data"]["init_args"].update(split={"class_path": "evil.Rule"}),
        lambda config: config["data"]["init_args"].update(split=" evil.Rule\n"),
        lambda config: config["data"]["init_args"].update(split=["evil.Rule"]),
        lambda config: config["data"]["init_args"].update(reduction="evil.no-name"),
        lambda config: config["data"]["init_args"].update(path={"class_path": "evil.Rule"}),
    ],
    ids=["data", "class of data", "split", "class of split", "spaces", "list", "no name", "text"],
)
def test_tasks_import_nothing_that_a_stored_run_names(
    change: Callable[[dict[str, Any]], object], run: Path, refused: Callable[..., str]
) -> None:
    edit(run, change)
    assert "which is not lrec's own: --trust" in refused("tasks", "--runs", run, "--out", "out")
    assert not Path("imported").exists()
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["loss", "optimizer", "architecture"])
def test_a_checkpoint_imports_nothing_that_it_names(name: str, run: Path) -> None:
    best = run / "checkpoints" / "best.ckpt"
    stored = torch.load(best, weights_only=True)
    about = stored["lrec"] | {"model": "lrec.SequentialRecommender", "not_stored": {}}
    about |= {"architecture.attention": "evil.Rule"} if name == "architecture" else {}
    made_with = {"size": "0.8k", name: {"attention": "evil.Rule"} if name == "architecture" else "evil.Rule"}
    write(best, stored | {"lrec": about, "hyper_parameters": made_with})
    with pytest.raises(UserError, match=r"names the class evil\.Rule, which is not lrec's own"):
        SequentialRecommender.load_from_checkpoint(best)
    if name == "architecture":
        with pytest.raises(UserError, match=r"names the class evil\.Rule, which is not lrec's own"):
            package.load(best)
    assert not Path("imported").exists()


def options_of(kind: type) -> Iterator[tuple[str, str]]:
    """Each option of a class, and its type."""
    if is_dataclass(kind):
        yield from ((each.name, str(each.type)) for each in fields(kind))
        return
    for base in kind.__mro__:
        if "__init__" in vars(base) and base.__module__.startswith("lrec."):
            yield from ((name, str(p.annotation)) for name, p in inspect.signature(base.__init__).parameters.items())


def test_only_options_that_are_text_may_have_a_dot() -> None:
    kinds = (AmazonDataModule, InteractionsDataModule, MovieLensDataModule, SyntheticDataModule, LastItems,
             GlobalTemporal, Reduction, Features, SequentialRecommender)  # fmt: skip
    found = [(name, what) for kind in kinds for name, what in options_of(kind)]
    of_classes = {
        name for name, what in found if any(word in what for word in ("SplitRule", "Loss", "OptimizerConfig"))
    }
    assert of_classes == {"split", "loss", "optimizer"}
    assert not of_classes & TEXT
    no_paths = {"recent_popularity"}  # a share, or a duration such as 7d
    assert {name for name, what in found if "Path" in what or "str" in what} <= TEXT | no_paths
    assert {name for name, _ in found} >= TEXT


def test_nothing_is_written_to_the_data_folder_of_a_stored_run(
    run: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    init = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    shutil.copytree(init["data_dir"], tmp_path / "stores")
    log = shutil.copy(init["path"], tmp_path / "log.csv")
    os.utime(log, ns=(1, 1))  # sources.json does not know it
    edit(run, lambda config: config["data"]["init_args"].update(data_dir=str(tmp_path / "stores"), path=str(log)))
    before = snapshot(tmp_path / "stores")
    lrec("tasks", "--runs", run, "--tasks", "long_tail", "--out", "out")
    assert snapshot(tmp_path / "stores") == before

    elsewhere = tmp_path / "elsewhere"
    edit(run, lambda config: config["data"]["init_args"].update(data_dir=str(elsewhere)))
    error = refused("tasks", "--runs", run, "--tasks", "long_tail", "--out", "again")
    assert f"{run / 'config.yaml'}: {elsewhere}/log-" in error
    assert "does not exist; --trust prepares it" in error
    assert not elsewhere.exists()
    lrec("tasks", "--runs", run, "--tasks", "long_tail", "--out", "again", "--trust")
    assert json.loads(Path("again/tasks.json").read_text()) == json.loads(Path("out/tasks.json").read_text())
