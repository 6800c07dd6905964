"""Rules from sweeps: what was best at each size by validation loss, as a power of the size."""

import json
from pathlib import Path

import pytest

from lrec.study.grid import PlannedRun
from lrec.study.options import ladder_n_body
from lrec.study.sweep import tune

VALUES = [0.0025, 0.005, 0.01, 0.02]


def sweep(folder: Path, best: dict[str, float]) -> list[PlannedRun]:
    """Runs whose validation loss is least at `best`, and whose test loss says the contrary."""
    runs = []
    for size, optimum in best.items():
        for value in VALUES:
            run = PlannedRun(
                f"{size}-{value}", size, 1, 1.0, "", "", False, {"model": {"optimizer": {"lr": value}}, "data": {}}
            )
            (folder / run.name).mkdir()
            distance = abs(value / optimum - 1)
            point = {"val_loss": 5 + distance, "test_loss": 5 - distance, "status": "finished"}
            (folder / run.name / "points.jsonl").write_text(json.dumps(point) + "\n")
            runs.append(run)
    return runs


def test_the_best_values_become_a_power_of_the_size(tmp_path: Path) -> None:
    runs = sweep(tmp_path, {"3k": 0.01, "12k": 0.005, "49k": 0.0025})  # by N^-1/2, exactly
    tuned = tune(runs, tmp_path, {"model.optimizer.lr": VALUES})
    factor, exponent = tuned.rules["model.optimizer.lr"]
    assert exponent == pytest.approx(-0.5, rel=1e-4)
    assert factor * ladder_n_body("1.6m") ** exponent == pytest.approx(0.01 * (3072 / 1572864) ** 0.5, rel=1e-3)
    assert tuned.best["12k"] == {"model.optimizer.lr": 0.005, "val/loss": 5.0}
    assert tuned.edges == ["model.optimizer.lr 0.0025 at 49k is an end of the range tried: try values beyond it"]


def test_a_diverged_run_is_not_the_best(tmp_path: Path) -> None:
    runs = sweep(tmp_path, {"3k": 0.01})
    path = tmp_path / "3k-0.01" / "points.jsonl"
    path.write_text(path.read_text().replace("finished", "diverged"))
    assert tune(runs, tmp_path, {"model": {"optimizer.lr": VALUES}}).rules == {"model.optimizer.lr": [0.005, 0.0]}
