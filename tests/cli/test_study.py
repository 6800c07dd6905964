"""A small study as a user runs it: prediction before the large runs, SIGKILL in the middle, another grid."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STUDY = {
    "name": "tiny",
    "configs": ["data/synthetic.yaml", "trainer/laptop.yaml"],
    "sizes": ["0.8k", "1.7k", "3k", "4.8k", "6.9k"],
    "holdout": 1,
    "jobs": 2,
    "options": {
        "data.n_users": 300,
        "data.n_items": 50,
        "data.length": 20,
        "trainer.max_epochs": 2,
        "trainer.enable_progress_bar": False,
        "model.optimizer.lr": 0.01,
        "model.dropout.residual.first": 0.1,
    },
}


def start(folder: Path) -> "subprocess.Popen[str]":
    """Start the study in a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    command = [sys.executable, "-m", "lrec", "scaling", "study", "--config", "tiny.yaml"]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def state(folder: Path) -> dict[str, str]:
    path = folder / "studies" / "tiny" / "study.json"
    return json.loads(path.read_text())["state"] if path.is_file() else {}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that went through, watched: the prediction is there before any large run is."""
    folder = tmp_path_factory.mktemp("studies") / "undisturbed"
    process = start(folder)
    study = folder / "studies" / "tiny"
    while process.poll() is None and not (study / "runs" / "6.9k-seed1").exists():
        time.sleep(0.02)
    assert (study / "prediction.json").exists()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return folder


def test_the_study_leaves_what_the_design_says(undisturbed: Path) -> None:
    study = undisturbed / "studies" / "tiny"
    assert set(state(undisturbed).values()) == {"finished"}
    fit = json.loads((study / "fit" / "fit.json").read_text())
    assert fit["n_points"] == 4
    (held_out,) = fit["holdout"]["points"]
    (ladder,) = json.loads((study / "prediction.json").read_text())["ladders"]
    (predicted,) = ladder["predictions"]
    assert held_out["x"] == predicted["x"] == 6912
    assert [held_out[k] for k in ("predicted", "low", "high")] == [predicted[k] for k in ("predicted", "low", "high")]
    (point,) = [
        point
        for line in (study / "runs" / "6.9k-seed1" / "points.jsonl").read_text().splitlines()
        if (point := json.loads(line))["best"]
    ]
    assert held_out["actual"] == point["test_loss"]
    assert point["study"] == "tiny"
    assert point["run"] == "6.9k-seed1"
    assert point["test_loss"] > point["floor"]["test"]
    report = (study / "report.md").read_text()
    assert f"{point['test_loss']:.4f}" in report
    assert "popularity" in report
    assert (study / "fit" / "fit.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(study / "fit"))
    events.Reload()
    assert "scaling/fit" in events.Tags()["images"]


def test_a_killed_study_ends_with_the_same_report(undisturbed: Path) -> None:
    folder = undisturbed.parent / "killed"
    process = start(folder)
    deadline = time.monotonic() + 200
    while "finished" not in state(folder).values():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(state(folder).values()).count("waiting") >= 2
    out, _ = start(folder).communicate(timeout=300)
    for name in ("report.md", "prediction.json", "fit/fit.json"):
        ours, theirs = (base / "studies" / "tiny" / name for base in (folder, undisturbed))
        assert ours.read_text() == theirs.read_text(), out


def test_another_grid_does_not_enter_the_folder(
    undisturbed: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    before = (undisturbed / "studies" / "tiny" / "study.json").read_bytes()
    assert "another grid" in refused("scaling", "study", "--config", "tiny.yaml", "--seeds=[2]")
    assert (undisturbed / "studies" / "tiny" / "study.json").read_bytes() == before


def test_a_finished_study_is_only_read(
    undisturbed: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    report = (undisturbed / "studies" / "tiny" / "report.md").read_text()
    assert report in lrec("scaling", "study", "--config", "tiny.yaml")


def test_dry_run_prints_the_cost_and_writes_no_study(
    undisturbed: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    printed = lrec("scaling", "study", "--config", "tiny.yaml", "--out", "elsewhere", "--dry_run", "true")
    assert "6.9k-seed1" in printed
    assert "5 runs" in printed
    assert not (undisturbed / "elsewhere").exists()


def test_fit_reads_the_points_of_a_study(
    undisturbed: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    lrec("scaling", "fit", "--points", "studies/tiny", "--holdout", 1, "--out", "refit")
    studied = json.loads((undisturbed / "studies" / "tiny" / "fit" / "fit.json").read_text())
    assert json.loads((undisturbed / "refit" / "fit.json").read_text()) == studied


def test_variants_without_a_law_are_compared(
    tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = STUDY | {
        "sizes": ["0.8k", "1.7k"],
        "holdout": 0,
        "law": None,
        "options": STUDY["options"] | {"trainer.max_epochs": 1, "model.optimizer.switch": {"at": 2}},  # type: ignore[operator]
        "variants": {"both": {}, "plain": {"model.optimizer.switch": None, "model.dropout.residual.first": 0.0}},
    }
    Path("variants.yaml").write_text(yaml.safe_dump(config))
    report = lrec("scaling", "study", "--config", "variants.yaml")
    assert "| fraction | size | variant |" in report
    runs = Path("studies/tiny/runs")
    for size in ("0.8k", "1.7k"):
        for variant, phase, rate in (("both", "sgd", 0.1), ("plain", "adamw", 0.0)):
            run = runs / f"{size}-{variant}-seed1"
            (point,) = [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]
            assert point["lr_phase"] == phase
            assert yaml.safe_load((run / "config.yaml").read_text())["model"]["dropout"]["residual"]["first"] == rate
            assert f"| {size} | {variant} | 1 | {point['test_loss']:.4f} |" in report
    assert not Path("studies/tiny/fit").exists()
    assert not Path("studies/tiny/prediction.json").exists()

    holdout = refused("scaling", "study", "--config", "variants.yaml", "--holdout=1")
    assert "--holdout 1: without a law nothing is predicted" in holdout
    named = refused("scaling", "study", "--config", "variants.yaml", '--variants={"a/b": {}}')
    assert "the name 'a/b' must be made of" in named
