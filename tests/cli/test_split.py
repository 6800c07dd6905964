"""The option split: LastItems by its fields, any other rule by its class, in YAML and on the command line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lrec.cli import with_shipped_configs
from lrec.data.splits import LastItems, SplitRule
from lrec.data.temporal import GlobalTemporal
from lrec.lightning_cli import compose, datamodule_of

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
