"""What a study says about runs that are in progress, from their folders alone."""

import sys
from pathlib import Path

import pytest

from lrec.common.files import locked
from lrec.run import Point, Run
from lrec.study import status
from lrec.study.grid import PlannedRun
from lrec.study.launch import lock_of

NAMES = ("a", "b")
TRAINING = "training: step 1,200 of 30,000, at most 16 min left"


@pytest.fixture
def runs(tmp_path: Path) -> list[PlannedRun]:
    for name in NAMES:
        (tmp_path / name).mkdir()
    return [PlannedRun(name, "3k", 1, 1.0, "", "", False, {}) for name in NAMES]


def test_a_table_says_what_the_running_runs_are_doing(runs: list[PlannedRun], tmp_path: Path) -> None:
    Run(tmp_path / "a").write_progress(TRAINING)
    Run(tmp_path / "b").write_progress("left by an attempt that was killed")
    with locked(lock_of(tmp_path / "a")):
        _, first, second = status.runs_table(runs, tmp_path, {}).splitlines()
    assert first.endswith(f"  {TRAINING}")
    assert second.split() == ["b", "fitted", "waiting"]


def test_a_terminal_has_a_table_even_if_nothing_runs(
    runs: list[PlannedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    status.Live(runs, tmp_path).show()
    (head,) = capsys.readouterr().err.splitlines()
    assert head.split()[:2] == ["run", "state"]


def test_a_long_name_is_separated_from_what_follows(tmp_path: Path) -> None:
    long = PlannedRun("3k-users-0.25-lr-0.025-targets_per_step-256-seed9", "3k", 9, 0.25, "", "", False, {})
    _, row = status.runs_table([long], tmp_path, {}).splitlines()
    assert row.split() == [long.name, "fitted", "waiting"]


def test_a_log_has_a_line_about_each_running_run_every_minute(
    runs: list[PlannedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    now = 0.0
    monkeypatch.setattr(status.time, "monotonic", lambda: now)
    live, one = status.Live(runs, tmp_path), Run(tmp_path / "a")

    def said() -> list[str]:
        live.show()
        return capsys.readouterr().out.splitlines()

    with locked(lock_of(one.folder)), locked(lock_of(tmp_path / "b")):
        assert said() == ["a: beginning", "b: beginning"]
        assert said() == []
        one.write_progress(TRAINING)
        now = 61.0
        assert said() == [f"a: {TRAINING}", "b: beginning"]
        one.write_points([Point(epochs=1.0, train_loss=5.25, val_loss=5.5, wall_s=70)])
        now = 70.0
        assert said() == [f"a: {TRAINING}, 1 epoch, train loss 5.2500, val loss 5.5000, 70 s"]
        one.progress_file.unlink()
        one.write_points([Point(best=True, epochs=1.0, val_loss=5.5, wall_s=70)])
        now = 135.0
        assert said() == ["a: ending, 1 epoch, val loss 5.5000, 70 s", "b: beginning"]
