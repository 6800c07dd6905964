"""A small study as a user runs it: prediction before the large runs, SIGKILL in the middle, another grid."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lrec.common.text_tables import on_terminal
from lrec.study.launch import is_running

pytestmark = pytest.mark.usefixtures("warm_processes")

STUDY: dict[str, Any] = {
    "name": "tiny",
    "configs": ["data/synthetic.yaml", "trainer/laptop.yaml"],
    "sizes": ["0.8k", "1.7k", "3k", "4.8k", "6.9k"],
    "holdout": 1,
    "fractions": [1.0],
    "jobs": 2,
    "options": {
        "data.n_users": 300,
        "data.n_items": 50,
        "data.length": 20,
        "data.split.trajectory": 4,
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


def points(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study without interruptions; its prediction must exist before any large run does."""
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
    losses = pl.read_parquet(study / "runs" / "6.9k-seed1" / "target_losses.parquet")
    assert losses.group_by("step").len()["len"].to_list() == [300] * 5
    assert losses.filter(pl.col("step") == 0)["loss"].mean() == pytest.approx(point["test_loss"], rel=1e-5)
    assert losses["loss"].mean() == pytest.approx(point["trajectory_loss"], rel=1e-9)
    by_user = losses.group_by("user").agg(pl.col("loss").mean())["loss"]
    assert point["trajectory_loss_se"] == pytest.approx(by_user.std(ddof=0) / 300**0.5)
    metric = fit["metrics"]["HR@10"][0]
    assert ladder["metrics"]["HR@10"][0].items() <= metric.items()
    assert metric["actual"] == point["metrics"]["test/HR@10"]
    page = (study / "report.html").read_text()
    assert "10 times" in page
    assert "core-hours" in page
    report = (study / "report.md").read_text()
    assert f"{point['test_loss']:.4f}" in report
    assert "popularity" in report
    assert (study / "fit" / "fit.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(study / "fit"))
    events.Reload()
    assert "scaling/fit" in events.Tags()["images"]
    assert (study / "figures" / "compute.png").read_bytes().startswith(b"\x89PNG")
    assert not (study / "figures" / "repetition.png").exists(), "no run has four evaluations"


def finished(folder: Path) -> int:
    return list(state(folder).values()).count("finished")


def start_until_a_run_is_finished(folder: Path) -> "subprocess.Popen[str]":
    """Start the study; wait until one more run is finished and another is under way."""
    before, process = finished(folder), start(folder)
    deadline = time.monotonic() + 200
    while finished(folder) == before or not any(
        is_running(run) for run in (folder / "studies" / "tiny" / "runs").iterdir()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def without_times(report: str) -> str:
    return re.sub(r"^\| (training|computing one request),.*\n", "", report, flags=re.MULTILINE)


@pytest.mark.slow
def test_a_study_stopped_and_killed_ends_with_the_same_report(undisturbed: Path) -> None:
    folder = undisturbed.parent / "disturbed"
    stopped = start_until_a_run_is_finished(folder)
    runs = folder / "studies" / "tiny" / "runs"
    stopped.send_signal(signal.SIGTERM)
    out, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 75, out
    assert re.search(r"not finished: \d of \d runs; start the same command again to continue", out)
    assert not any(is_running(run) for run in runs.iterdir())
    assert len(state(folder)) > finished(folder)

    killed = start_until_a_run_is_finished(folder)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(state(folder).values()).count("waiting") >= 1

    out, _ = start(folder).communicate(timeout=300)
    studies = [base / "studies" / "tiny" for base in (folder, undisturbed)]
    for name in ("report.md", "prediction.json"):
        ours, theirs = (without_times((study / name).read_text()) for study in studies)
        assert ours == theirs, out
    ours, theirs = (json.loads((study / "fit" / "fit.json").read_text()) for study in studies)
    for content in (ours, theirs):
        every = [*content["points"], *content["held_out_points"]]
        assert all(point.pop("wall_s") > 0 for point in every), "plans take throughput from these"
        del content["content_hash"]
    assert ours == theirs


def test_runs_with_other_options_do_not_enter_the_folder(
    undisturbed: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    before = (undisturbed / "studies" / "tiny" / "study.json").read_bytes()
    refusal = refused("scaling", "study", "--config", "tiny.yaml", "--options.model.optimizer.lr", 0.02)
    assert "has run 0.8k-seed1 with other options (model.optimizer.lr 0.01, now 0.02)" in refusal
    assert (undisturbed / "studies" / "tiny" / "study.json").read_bytes() == before


def copy_of(earlier: Path, study: Path, *patterns: str) -> None:
    """Copy what matches from one study's folder to another's."""
    for path in (path for pattern in patterns for path in earlier.glob(pattern)):
        copy = study / path.relative_to(earlier)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def trained(study: Path) -> list[str]:
    """Runs that were trained here: `lrec fit` leaves a log."""
    return sorted(path.parent.name for path in study.glob("runs/*/log.txt"))


@pytest.mark.slow
def test_a_study_is_extended_without_training_again(
    undisturbed: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the runs' points and the prediction alone, with the data elsewhere: only the new size is trained."""
    earlier = undisturbed / "studies" / "tiny"
    folder = undisturbed.parent / "extended"
    study = folder / "studies" / "tiny"
    copy_of(earlier, study, "prediction.json", "runs/*/points.jsonl")
    monkeypatch.chdir(folder)
    command = ["scaling", "study", "--config", str(undisturbed / "tiny.yaml"), "--options.data.data_dir", "elsewhere"]
    lrec(*command)
    assert trained(study) == []
    for name in ("fit/fit.json", "prediction.json", "all_points.jsonl"):
        assert (study / name).read_text() == (earlier / name).read_text()
    command.append(f"--sizes={json.dumps([*STUDY['sizes'], '9.4k'])}")
    lrec(*command)
    assert trained(study) == ["9.4k-seed1"]
    assert json.loads((study / "fit" / "fit.json").read_text())["n_points"] == 5
    assert json.loads((study / "prediction.json").read_text())["trained_before"] == []
    assert (study / "prediction-1.json").read_text() == (earlier / "prediction.json").read_text()
    # Fitted again with one more seed at a small size, after the largest was trained, it is no prediction any more.
    report = lrec(*command, f"--size_seeds={json.dumps({'0.8k': [1, 2]})}")
    assert "Not a prediction: 9.4k-seed1 had been trained before it was written" in report


@pytest.mark.slow
def test_a_grid_that_shrinks_and_grows_again_loses_nothing(
    undisturbed: Path, lrec: Callable[..., str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the study's record alone: no runs, no checkpoints, no prediction."""
    earlier, folder = undisturbed / "studies" / "tiny", undisturbed.parent / "shrunk"
    study = folder / "studies" / "tiny"
    copy_of(earlier, study, "study.json", "all_points.jsonl")
    monkeypatch.chdir(folder)
    command = ["scaling", "study", "--config", str(undisturbed / "tiny.yaml")]
    table = lrec(*command, "--status", "true")
    assert table.count("finished") == 5
    lrec(*command, f"--sizes={json.dumps(STUDY['sizes'][:-1])}", "--holdout", 0)
    changed = ["--size_options", json.dumps({"6.9k": {"model.optimizer.lr": 0.02}})]
    assert "has run 6.9k-seed1 with other options" in refused(*command, *changed)
    lrec(*command)
    assert trained(study) == []
    assert (study / "all_points.jsonl").read_text() == (earlier / "all_points.jsonl").read_text()
    assert (study / "fit" / "fit.json").read_text() == (earlier / "fit" / "fit.json").read_text()
    assert "Not a prediction" in (study / "report.md").read_text()


def test_data_that_changed_are_refused_before_anything_is_trained(
    undisturbed: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, folder = undisturbed / "studies" / "tiny", undisturbed.parent / "changed"
    study = folder / "studies" / "tiny"
    copy_of(earlier, study, "study.json", "all_points.jsonl")
    lines = (study / "all_points.jsonl").read_text()
    (now,) = {json.loads(line)["data_hash"] for line in lines.splitlines()}
    (study / "all_points.jsonl").write_text(lines.replace(now, "f" * 64))
    monkeypatch.chdir(folder)
    command = ["scaling", "study", "--config", str(undisturbed / "tiny.yaml")]
    message = refused(*command, f"--sizes={json.dumps([*STUDY['sizes'], '9.4k'])}")
    assert f"the data of run 0.8k-seed1 have data_hash {'f' * 16}, the current data {now[:16]}" in message
    assert trained(study) == []


@pytest.mark.slow
def test_a_finished_study_is_only_read(
    undisturbed: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    report = (undisturbed / "studies" / "tiny" / "report.md").read_text()
    shown = on_terminal(report, Path("studies/tiny"))
    assert shown in lrec("scaling", "study", "--config", "tiny.yaml")


def test_dry_run_prints_the_cost_and_writes_no_study(
    undisturbed: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    printed = lrec("scaling", "study", "--config", "tiny.yaml", "--out", "elsewhere", "--dry_run", "true")
    assert "6.9k-seed1" in printed
    assert "5 runs" in printed
    assert "smaller data samples" not in printed
    assert not (undisturbed / "elsewhere").exists()


@pytest.mark.slow
def test_dry_run_counts_the_runs_of_smaller_shares(
    undisturbed: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    longer = ["--fractions", "null", "--options.trainer.max_epochs", 5]  # so that shares are trained by default
    by_default = lrec("scaling", "study", "--config", "tiny.yaml", "--out", "elsewhere", *longer, "--dry_run")
    assert "13 runs" in by_default
    assert "8 of them with smaller data samples" in by_default


def test_a_ledger_has_forecasts_before_and_after_their_results(
    undisturbed: Path, lrec: Callable[..., str], refused: Callable[..., str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    finished, early = undisturbed / "studies" / "tiny", tmp_path / "early" / "tiny"
    fitted = [
        folder.name for folder in (finished / "runs").iterdir() if folder.is_dir() and folder.name != "6.9k-seed1"
    ]
    for name in ("prediction.json", *(f"runs/{run}/points.jsonl" for run in fitted)):
        (early / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(finished / name, early / name)

    def registered() -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path("ledger.jsonl").read_text().splitlines()]

    assert "1 forecast, 0 measured" in lrec("scaling", "register", "--study", early)
    (forecast,) = registered()
    assert forecast["before"]
    assert forecast["measured"] is None
    lrec("scaling", "register", "--study", early)
    assert registered() == [forecast], "the same forecast is not registered again"

    assert "1 forecast, 1 measured" in lrec("scaling", "register", "--study", finished)
    (judged,) = json.loads((finished / "fit" / "fit.json").read_text())["holdout"]["points"]
    (measured,) = registered()
    assert measured == forecast | {"measured": judged["actual"], "no_gain": pytest.approx(measured["no_gain"])}
    losses = [point["test_loss"] for run in fitted for point in points(finished / "runs" / run) if point["best"]]
    assert measured["no_gain"] == pytest.approx(min(losses))
    assert f"{measured['predicted']:.4f}" in Path("ledger.md").read_text()

    other = json.loads((early / "prediction.json").read_text())
    other["ladders"][0]["predictions"][0]["predicted"] += 0.1
    (early / "prediction.json").write_text(json.dumps(other))
    lrec("scaling", "register", "--study", early)
    assert registered()[0] == measured, "another study with the same name changes nothing"
    assert len(registered()) == 2

    lrec("scaling", "register", "--study", finished, "--ledger", "late.jsonl")
    assert "after its result" in Path("late.md").read_text()
    assert "the page has this name" in refused("scaling", "register", "--study", finished, "--ledger", "ledger.md")
    assert "no prediction.json" in refused("scaling", "register", "--study", tmp_path)
    Path("ledger.jsonl").write_text("{}\n")
    assert "ledger.jsonl, row 1" in refused("scaling", "register", "--study", finished)


def test_fit_reads_the_points_of_a_study(
    undisturbed: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    studied = json.loads((undisturbed / "studies" / "tiny" / "fit" / "fit.json").read_text())
    lrec("scaling", "fit", "--points", "studies/tiny", "--holdout", 1, "--floor", studied["floor"], "--out", "refit")
    refit = json.loads((undisturbed / "refit" / "fit.json").read_text())
    assert refit == studied


@pytest.mark.slow
def test_studies_are_compared(
    undisturbed: Path, lrec: Callable[..., str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    shutil.copytree("studies/tiny", "studies/again")
    printed = lrec("scaling", "compare", "--studies", "studies/tiny", "studies/again", "--out", "both")
    assert "studies/again" in printed
    compared = json.loads(Path("both/compare.json").read_text())
    fit = json.loads(Path("studies/tiny/fit/fit.json").read_text())
    assert list(compared["ladders"]) == ["studies/tiny", "studies/again"]
    for ladder in compared["ladders"].values():
        assert ladder["parameters"] == {name: bounds["value"] for name, bounds in fit["parameters"].items()}
        assert len(ladder["points"]) == 4
        assert [size for size, _ in ladder["held_out"]] == [6912]
    assert Path("both/compare.png").read_bytes().startswith(b"\x89PNG")
    nothing = refused("scaling", "compare", "--studies", "studies")
    assert "--studies studies: no study there" in nothing


@pytest.mark.slow
def test_the_loss_over_trajectories_is_fitted(
    undisturbed: Path, lrec: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "studies" / "tiny"
    study.mkdir(parents=True)
    shutil.copy(undisturbed / "studies" / "tiny" / "all_points.jsonl", study)
    lrec("scaling", "study", "--config", str(undisturbed / "tiny.yaml"), "--y", "trajectory_loss")
    (best,) = (point for point in points(study / "runs" / "6.9k-seed1") if point["best"])
    (held_out,) = json.loads((study / "fit" / "fit.json").read_text())["holdout"]["points"]
    assert held_out["actual"] == pytest.approx(best["trajectory_loss"])


@pytest.mark.slow
@pytest.mark.slow
def test_a_large_run_left_out_for_the_hours_was_predicted(
    undisturbed: Path, lrec: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "studies" / "tiny"
    copy_of(
        undisturbed / "studies" / "tiny", study, *(f"runs/{size}-seed1/points.jsonl" for size in STUDY["sizes"][:4])
    )
    command = ["scaling", "study", "--config", str(undisturbed / "tiny.yaml")]
    assert "left out, as they would take more than --hours 1e-06: 6.9k-seed1" in lrec(*command, "--hours", "1e-6")
    predicted = (study / "prediction.json").read_text()
    assert [*json.loads(predicted)["held_out_runs"]] == ["6.9k-seed1"]
    assert "Not a prediction" not in lrec(*command)
    assert trained(study) == ["6.9k-seed1"]
    assert (study / "prediction.json").read_text() == predicted
    assert not (study / "prediction-1.json").exists()


@pytest.mark.slow
def test_variants_without_a_law_are_compared(
    tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = STUDY | {
        "sizes": ["0.8k", "1.7k"],
        "holdout": 0,
        "law": None,
        "options": STUDY["options"] | {"trainer.max_epochs": 1, "model.optimizer.switch": {"at": 2}},
        "variants": {"both": {}, "plain": {"model.optimizer.switch": None, "model.dropout.residual.first": 0.0}},
    }
    Path("variants.yaml").write_text(yaml.safe_dump(config))
    lrec("scaling", "study", "--config", "variants.yaml")
    report = Path("studies/tiny/report.md").read_text()
    assert "| fraction | size | variant |" in report
    runs = Path("studies/tiny/runs")
    for size in ("0.8k", "1.7k"):
        for variant, phase, rate in (("both", "sgd", 0.1), ("plain", "adamw", 0.0)):
            run = runs / f"{size}-{variant}-seed1"
            (point,) = points(run)
            assert point["lr_phase"] == phase
            assert yaml.safe_load((run / "config.yaml").read_text())["model"]["dropout"]["residual"]["first"] == rate
            assert f"| {size} | {variant} | 1 | {point['test_loss']:.4f} |" in report
    assert not Path("studies/tiny/fit").exists()
    assert not Path("studies/tiny/prediction.json").exists()

    holdout = refused("scaling", "study", "--config", "variants.yaml", "--holdout=1")
    assert "--holdout 1: without a law nothing is predicted" in holdout
    named = refused("scaling", "study", "--config", "variants.yaml", '--variants={"a/b": {}}')
    assert "the name 'a/b' must be made of" in named
