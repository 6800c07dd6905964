"""The speedrun: an entry counts if its kept checkpoint reaches the target, and the page says what was measured."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
RULES = """
data:
  class_path: lrec.InteractionsDataModule
  init_args: {user_column: who, item_column: what, time_column: when, max_len: 8}
model: {size: 0.8k, optimizer: {lr: 0.05}}
trainer: {accelerator: cpu, max_epochs: 4, enable_model_summary: false, num_sanity_val_steps: 0}
points: {test: false}
early_stopping: {monitor: val/loss, stopping_threshold: TARGET}
"""
HEAD = "# 2026-11-30, 0a1b2c3: Small steps, and a warm-up\n# as short.\n"


@pytest.fixture
def speedrun(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of benchmarks/speedrun.py."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return runpy.run_path(str(REPOSITORY / "benchmarks" / "speedrun.py"))


@pytest.fixture
def entry(tmp_path: Path) -> Callable[[float], Path]:
    """Writes an entry of a small track with a target, in nats; the log has 40 items."""

    def write(target: float) -> Path:
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny.yaml").write_text(RULES.replace("TARGET", str(target)))
        path = tmp_path / "tiny" / "01-small.yaml"
        path.write_text(HEAD + "data: {class_path: lrec.InteractionsDataModule, init_args: {targets_per_step: 64}}\n")
        return path

    return write


@pytest.mark.usefixtures("warm_processes")
def test_an_entry_that_reaches_its_target_is_kept_beside_it(
    speedrun: dict[str, Any], entry: Callable[[float], Path], log_csv: Path
) -> None:
    path = entry(3.5)
    speedrun["main"]([str(path), "--data", str(log_csv), "--seeds", "4"])
    (seed,) = json.loads(path.with_suffix(".json").read_text()).items()
    assert seed[0] == "4"
    assert 1 < seed[1]["val/loss"] <= 3.5
    assert seed[1]["processor_s"] > 0
    head, _, row = speedrun["table"](path.parent).splitlines()
    assert head.count("|") == row.count("|")
    assert "| 2026-11-30 | 0a1b2c3 | Small steps, and a warm-up as short. |" in row


@pytest.mark.usefixtures("warm_processes")
def test_an_entry_that_misses_its_target_leaves_nothing(
    speedrun: dict[str, Any], entry: Callable[[float], Path], log_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = entry(0.1)
    with pytest.raises(SystemExit) as stop:
        speedrun["main"]([str(path), "--data", str(log_csv), "--seeds", "1"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "seed 1 has a val/loss of" in said
    assert not path.with_suffix(".json").exists()


def test_an_entry_without_its_comment_is_refused(
    speedrun: dict[str, Any], entry: Callable[[float], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = entry(3.5)
    path.write_text("# faster\n")
    with pytest.raises(SystemExit) as stop:
        speedrun["main"]([str(path), "--data", "nowhere"])
    assert stop.value.code == 2
    assert "begin with a comment" in capsys.readouterr().err


def test_each_entry_stands_beside_the_record_before_it(speedrun: dict[str, Any], tmp_path: Path) -> None:
    for name, seconds in (("1", [120, 60, 180]), ("2", [150]), ("3", [60, 90])):
        (tmp_path / f"{name}.yaml").write_text(HEAD)
        seeds = {str(seed): {"processor_s": second} for seed, second in enumerate(seconds)}
        (tmp_path / f"{name}.json").write_text(json.dumps(seeds))
    (tmp_path / "4.yaml").write_text(HEAD)  # not measured
    rows = [line.split(" | ")[4:] for line in speedrun["table"](tmp_path).splitlines()[2:]]
    assert rows == [
        ["**2.00**", "2.00, 1.00, 3.00", " |"],
        ["2.50", "2.50", "125% |"],
        ["**1.25**", "1.00, 1.50", "62% |"],
    ]


def test_the_page_says_what_was_measured(speedrun: dict[str, Any]) -> None:
    page = speedrun["PAGE"].read_text()
    assert speedrun["with_tables"](page) == page
