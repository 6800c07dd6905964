"""The LSRM paper: its data sets, filters, split and way of counting, on sets made up here; its ladder and recipe."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from lrec.data.datamodule import SequenceDataModule
from lrec.data.datasets import datamodule_of
from lrec.options.config_files import find_config, with_shipped_configs
from lrec.study.grid import planned_runs
from lrec.study.options import Study
from lrec.training.lightning_cli import compose


def preset(name: str, path: Path, data_dir: Path) -> SequenceDataModule:
    options = [f"--config=data/{name}.yaml", f"--data.path={path}", f"--data.data_dir={data_dir}", "--model.size=98k"]
    data = datamodule_of(compose(with_shipped_configs(options)))
    data.prepare_data()
    data.setup()
    return data


def write_movielens(folder: Path, lengths: list[int]) -> Path:
    """A ratings.csv of users with these numbers of ratings, and an exact duplicate."""
    lines = ["userId,movieId,rating,timestamp"]
    for user, length in enumerate(lengths):
        lines += [f"{user},{movie},0.5,{1_000_000_000 + movie // 3}" for movie in range(length)]
    path = folder / "ratings.csv"
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    return path


def write_amazon(folder: Path) -> Path:
    """Two domains that are a 30-core only together, and users and items that fall below it."""
    raw = folder / "raw"
    raw.mkdir()
    for domain, items in (("Books", range(16)), ("Toys", range(16, 33))):
        rows = [(f"A{u}", f"B{i:09}", 1_400_000_000 + (i * 7 + u) % 33 * 1000) for u in range(31) for i in items]
        rows += [(f"Arare{u}", f"B{items[0]:09}", 1_400_000_000) for u in range(5)]
        rows += [(f"A{u}", f"B9{domain[0]:0>8}", 1_500_000_000) for u in range(29)]
        (raw / f"{domain}.csv").write_text("".join(f"{item},{user},5.0,{time}\n" for user, item, time in rows))
    return raw


@pytest.mark.parametrize("lengths", [[20, 21, 40, 300, 16], [20, 16, 15, 14, 3, 2, 1, 60]])
def test_movielens(lengths: list[int], tmp_path: Path, lrec) -> None:
    path = write_movielens(tmp_path, lengths)
    data = preset("lsrm-ml20m", path, tmp_path)

    rows, split = data.store.statistics["interactions"], data.cuts
    assert rows == sum(lengths), "every rating is an interaction, and the duplicate is none"
    is_long = np.array([length > 15 for length in lengths])
    counts = split.counts
    assert counts["trajectory"] == 10 * is_long.sum()
    assert counts["test"] == counts["validation"] == is_long.sum() + sum(3 <= length <= 15 for length in lengths)
    # The paper counts what is left without the trajectory and test of the users with more than 15 interactions. On
    # MovieLens-20M, where all users have more, that is 20,000,263 - 11 * 138,493 = 18,476,840.
    short_tests = counts["test"] - is_long.sum()
    assert counts["training"] + counts["validation"] + short_tests == rows - 11 * is_long.sum()
    assert sum(max(n - 1, 0) for n in split.train_U) == data.U
    for user, length in enumerate(lengths):
        cut = length - 10 if length > 15 else length
        expected = (cut - 2, cut - 1) if cut >= 3 else (-1, -1)
        assert (split.val_U[user], split.test_U[user]) == expected
    printed = lrec("data", "prepare", *with_shipped_configs(["--config=data/lsrm-ml20m.yaml"]), f"--data.path={path}",
                   f"--data.data_dir={tmp_path}")  # fmt: skip
    assert f"trajectory      {counts['trajectory']:,}\n" in printed


def test_amazon(tmp_path: Path) -> None:
    raw = write_amazon(tmp_path)
    data = preset("lsrm-amazon", raw, tmp_path)
    statistics = data.store.statistics
    assert (statistics["users"], statistics["items"], statistics["interactions"]) == (31, 33, 31 * 33)
    assert statistics["domains"] == 2
    counts = data.cuts.counts
    assert (data.cuts.test_U == 33 - 11).all()
    assert counts["training"] + counts["validation"] == statistics["interactions"] - 11 * statistics["users"]
    first_user = data.store.items_N[: data.store.offsets_U1[1]]
    domains = data.store.item_table["domain"].gather(first_user).to_list()
    assert domains != sorted(domains), "one sequence in time, not one domain after the other"


N_BODY = {
    "98k": 98_304,
    "786k": 786_432,
    "1.6m": 1_572_864,
    "9.4m": 9_437_184,
    "75m": 75_497_472,
    "829m": 829_440_000,
}
EPOCHS = {"98k": 30, "786k": 30, "1.6m": 30, "9.4m": 27, "75m": 12, "829m": 12}


@pytest.mark.parametrize("name", ["lsrm-ml20m", "lsrm-amazon"])
@pytest.mark.slow
def test_the_whole_ladder_is_planned(name: str, tmp_path: Path, lrec) -> None:
    path = write_movielens(tmp_path, [60, 90] * 10) if name == "lsrm-ml20m" else write_amazon(tmp_path)
    planned = lrec(
        "scaling", "study", f"--config={find_config(f'study/{name}.yaml')}", "--options.data.path", path,
        "--options.data.data_dir", tmp_path, "--out", tmp_path / "study", "--dry_run",
    )  # fmt: skip
    rows = re.findall(r"^(\S+)-seed1 +([\d,]+) ", planned, re.MULTILINE)
    assert {size: int(n_body.replace(",", "")) for size, n_body in rows} == N_BODY


def test_every_run_of_the_ladder_has_the_recipe() -> None:
    study = Study(**yaml.safe_load(find_config("study/lsrm-ml20m.yaml").read_text()))
    assert (study.fitted, study.held_out) == (["98k", "786k", "1.6m", "9.4m"], ["75m", "829m"])
    runs = {run.size: run.config for run in planned_runs(study)}
    assert {size: run.value("trainer.max_epochs") for size, run in runs.items()} == EPOCHS
    recipe = {
        "data.max_len": 50,
        "data.targets_per_step": 256,
        "model.optimizer.lr": 6e-5,
        "model.optimizer.weight_decay": 1e-8,
        "model.loss.class_path": "lrec.FullSoftmax",
        "checkpoint.monitor": "val/NDCG@10",
        "early_stopping.monitor": "val/NDCG@10",
        "early_stopping.patience": 10,
    }
    for size, run in runs.items():
        assert {option: run.value(option) for option in recipe} == recipe
        assert run.value("model.optimizer.switch.patience"), "AdamW gives way to SGD"
        for part in ("attention", "residual"):
            assert run.value(f"model.dropout.{part}.first") > run.value(f"model.dropout.{part}.last")
        assert run.value("trainer.accelerator") == "gpu"
        assert (run.value("trainer.strategy.class_path") == "lrec.FSDP2") == (size in study.held_out)
