"""The option split: LastItems by its fields, any other rule by its class, in YAML and on the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from fit_arguments import fit_arguments

from lrec.data.datasets import datamodule_of
from lrec.data.splits.rules import LastItems, SplitRule, UserSplit
from lrec.data.splits.temporal import GlobalTemporal
from lrec.options.config_files import with_shipped_configs
from lrec.training.lightning_cli import compose

BASE = ["--config=data/synthetic.yaml", "--model.size=0.8k"]


def from_yaml(split: Any, folder: Path) -> list[str]:
    path = folder / "split.yaml"
    path.write_text(yaml.safe_dump({"data": {"class_path": "lrec.SyntheticDataModule", "init_args": {"split": split}}}))
    return [f"--config={path}"]


@pytest.mark.parametrize(
    ("split", "options", "expected"),
    [
        (None, [], LastItems()),
        (None, ["--data.split.trajectory=10"], LastItems(trajectory=10)),
        ({"trajectory": 10, "trajectory_min_length": 20}, [], LastItems(10, 0.0, 20)),
        ({"trajectory": 10}, ["--data.split.held_out_users=0.2"], LastItems(10, 0.2)),
        (
            {"class_path": "lrec.GlobalTemporal", "init_args": {"validate_from": 0.7, "targets": "all"}},
            [],
            GlobalTemporal(0.7, 0.9, "all"),
        ),
        (
            {"class_path": "GlobalTemporal", "init_args": {"validate_from": "2014-01-01", "test_from": 1400000000}},
            ["--data.split.targets=all"],
            GlobalTemporal("2014-01-01", 1400000000, "all"),
        ),
        (None, ["--data.split=GlobalTemporal", "--data.split.validate_from=2014-01-01"], GlobalTemporal("2014-01-01")),
        (None, ["--data.split=UserSplit", "--data.split.test=0.2"], UserSplit(test=0.2)),
    ],
)
def test_split_options_and_their_round_trip(
    split: Any, options: list[str], expected: SplitRule, tmp_path: Path
) -> None:
    arguments = [*BASE, *(from_yaml(split, tmp_path) if split else []), *options]
    config = compose(with_shipped_configs(arguments))
    assert datamodule_of(config).split == expected
    # What --print_config prints and what a run saves.
    printed = tmp_path / "printed.yaml"
    printed.write_text(yaml.safe_dump(config))
    again = compose([f"--config={printed}"])
    assert again == config
    assert datamodule_of(again).split == expected


def test_print_config_round_trips(lrec, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def printed(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            lrec("fit", *arguments, "--print_config")
        assert stop.value.code == 0
        return capsys.readouterr().out

    first = printed(*BASE, "--data.split=GlobalTemporal", "--data.split.validate_from=0.7")
    (tmp_path / "config.yaml").write_text(first)
    assert "validate_from: 0.7" in first
    assert printed(f"--config={tmp_path / 'config.yaml'}") == first


def test_a_wrong_option_of_a_split_is_named(refused) -> None:
    assert "validate_form" in refused("fit", *BASE, "--data.split=GlobalTemporal", "--data.split.validate_form=0.7")
    assert "no ISO date" in refused("fit", *BASE, "--data.split=GlobalTemporal", "--data.split.validate_from=soon")


def test_fit_by_time_tests_every_target(log_csv: Path, tmp_path: Path, lrec, refused) -> None:
    arguments = [
        "--data=InteractionsDataModule",
        f"--data.path={log_csv}",
        f"--data.data_dir={tmp_path / 'data'}",
        *("--data.user_column=who", "--data.item_column=what", "--data.time_column=when"),
        *("--data.max_len=10", "--data.targets_per_step=256"),
        *("--data.split=GlobalTemporal", "--data.split.targets=all"),
    ]
    fit = ["fit", "--config=trainer/laptop.yaml", *arguments, "--model.size=0.8k", "--trainer.max_epochs=1"]
    lrec(*fit, f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.enable_progress_bar=false")
    best = [json.loads(line) for line in (tmp_path / "run" / "points.jsonl").read_text().splitlines()][-1]
    assert best["best"]
    assert 1 < best["test_loss"] < 6
    printed = lrec("data", "prepare", *arguments)
    log = pl.read_csv(log_csv).sort("when")
    first, second = (log["when"][int(len(log) * share)] for share in (0.8, 0.9))
    begins = log.group_by("who").agg(pl.col("when").min())["when"]

    def rows(column: pl.Series, begin: int, end: int) -> int:
        return int(column.is_between(begin, end, closed="left").sum())

    for part, begin, end in (("validation", first, second), ("test", second, 2**40)):
        expected = rows(log["when"], begin, end) - rows(begins, begin, end)
        assert f"\n{part:<14}  {expected:,}\n" in printed
    printed = lrec("data", "prepare", *arguments, "--data.split.test_targets=window")
    assert "\ntest sets " in printed
    assert "\nvalidation  " in printed
    early = ["--data.split.validate_from=2001-01-01", "--data.split.test_from=2002-01-01"]
    assert "leaves no validation target" in refused("data", "prepare", *arguments, *early)
    assert "must lie before" in refused(
        "data", "prepare", *arguments, early[1], "--data.split.validate_from=2003-01-01"
    )


def test_a_test_without_a_target_is_refused_before_the_training(
    tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    """Every user's last item is of the other domain."""
    rows = [(f"u{user}", f"{'aaaab'[n]}{(user + n) % 3}", n, "aaaab"[n]) for user in range(40) for n in range(5)]
    pl.DataFrame(rows, ["user", "item", "timestamp", "domain"], orient="row").write_csv(tmp_path / "log.csv")
    options = {"data__domain_column": "domain", "data__only_domain": "a", "trainer__max_epochs": 1}
    arguments = fit_arguments(tmp_path / "run", tmp_path / "log.csv", **options)
    assert "no user has a test target" in refused(*arguments)
    assert not (tmp_path / "run").exists()
    lrec(*arguments, "--points.test=false")
