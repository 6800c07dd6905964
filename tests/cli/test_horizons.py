"""Horizons: a run goes on from a shorter one before its learning rate fell, and ends as if it had trained alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_switch import assert_same_end, options, points_of  # noqa: F401 (a fixture)

from lrec.errors import UserError
from lrec.study.grid import PlannedRun, planned_runs
from lrec.study.options import Study

pytestmark = pytest.mark.usefixtures("warm_processes")

STUDY: dict[str, Any] = {
    "name": "horizons",
    "configs": ["data/synthetic.yaml", "trainer/laptop.yaml"],
    "sizes": ["0.8k"],
    "holdout": 0,
    "law": None,
    "horizons": [0.25, 0.5, 1.0],
    "options": {
        "data.n_users": 400,
        "data.n_items": 30,
        "data.length": 10,
        "data.targets_per_step": 64,
        "trainer.max_epochs": 1,
        "trainer.enable_progress_bar": False,
    },
}


def runs_of(**changes: Any) -> list[PlannedRun]:
    return planned_runs(Study(**STUDY | changes))


ACCUMULATED = ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=3"]
EVERY_STEP = ["--trainer.val_check_interval=1", "--points.test=false"]


@pytest.mark.parametrize(
    "more",
    [[], *(pytest.param(each, marks=pytest.mark.slow) for each in (EVERY_STEP, ACCUMULATED))],
    ids=["plain", "evaluated at every step", "accumulated"],
)
def test_a_longer_run_goes_on_as_if_it_had_trained_alone(
    more: list[str],
    options: list[str],  # noqa: F811
    tmp_path: Path,
    lrec: Callable[..., str],
) -> None:
    def fit(name: str, epochs: int, *further: str) -> Path:
        length = [f"--trainer.max_epochs={epochs}", f"--model.optimizer.warmup={0.4 / epochs}"]
        wsd = "--model.optimizer.decay=wsd"
        lrec("fit", *options, *more, wsd, *length, f"--trainer.default_root_dir={tmp_path / name}", *further)
        return tmp_path / name

    short, alone = fit("short", 1), fit("alone", 3)
    assert_same_end(fit("on", 3, f"--ckpt_path={short / 'checkpoints' / 'stable.ckpt'}"), alone)
    assert points_of(tmp_path / "on")[0]["run"] == "on"


def test_the_stable_checkpoint_is_saved_even_if_an_evaluation_follows(
    options: list[str],  # noqa: F811
    tmp_path: Path,
    lrec: Callable[..., str],
) -> None:
    lrec("fit", *options, *EVERY_STEP, "--model.optimizer.decay=wsd", "--trainer.max_steps=4",
         f"--trainer.default_root_dir={tmp_path}")  # fmt: skip
    assert torch.load(tmp_path / "checkpoints" / "stable.ckpt", weights_only=True)["global_step"] == 3


def test_runs_of_horizons_are_complete_by_themselves() -> None:
    quarter, half, whole = (run.config.value for run in runs_of())
    assert [get("trainer.limit_train_batches") for get in (quarter, half, whole)] == [0.25, 0.5, None]
    assert [get("model.optimizer.warmup") for get in (quarter, half, whole)] == pytest.approx([0.05, 0.025, 0.0125])
    assert whole("model.optimizer.decay") == "wsd"
    assert [run.own for run in runs_of()] == pytest.approx([1, 1 - 0.85 / 2, 1 - 0.85 / 2])
    assert [get("points.horizon") for get in (quarter, half, whole)] == [0.25, 0.5, 1.0]
    assert [run.config.value("points.horizon") for run in runs_of(horizons=[1, 2])] == [1, 2]
    epochs = STUDY["options"] | {"trainer.max_epochs": 8}
    passes = [run.config.value("trainer.max_epochs") for run in runs_of(options=epochs, horizons=[0.125, 1, 0.5, 2])]
    assert passes == [1, 4, 8, 16]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"trainer.max_epochs": 3}, r"--horizons 0\.5 of trainer\.max_epochs 3 is 1\.5"),
        ({"model.optimizer.decay": "cosine"}, "model.optimizer.decay wsd"),
        ({"trainer.max_steps": 100}, "trainer.max_epochs only"),
        ({"model.optimizer.switch.at": 9}, "without switch"),
    ],
)
def test_what_horizons_cannot_share_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        runs_of(options=STUDY["options"] | changed)


def test_one_horizon_is_refused() -> None:
    with pytest.raises(UserError, match=r"--horizons \[0\.5\]: for one, set the length of the training"):
        runs_of(horizons=[0.5])


def test_runs_start_from_the_longest_horizon_of_their_source() -> None:
    runs = runs_of(horizons=[0.25, 0.5], variants={"a": {}, "b": {}}, starts_from={"b": "a"})
    assert {run.starts_from for run in runs if run.variant == "b"} == {"0.8k-a-horizon-0.5-seed1"}
    assert "0.8k-a-horizon-0.5-seed1" in {run.name for run in runs}


@pytest.mark.slow
def test_a_study_repeats_and_extends_its_horizons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lrec: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(yaml.safe_dump(STUDY))
    runs = tmp_path / "studies" / "horizons" / "runs"
    lrec("scaling", "study", "--config", "study.yaml")
    names = ["0.8k-horizon-0.25-seed1", "0.8k-horizon-0.5-seed1", "0.8k-seed1"]
    (first,), (half,), (whole,) = (points_of(runs / name) for name in names)
    assert [point["horizon"] for point in (first, half, whole)] == [0.25, 0.5, 1.0]
    assert first["D"] < half["D"] < whole["D"] == whole["U"]
    # A lost run is trained again from the run before it, or from the beginning if that run's checkpoint is lost too.
    shutil.rmtree(runs / names[1])
    lrec("scaling", "study", "--config", "study.yaml")
    assert points_of(runs / names[1])[0]["test_loss"] == half["test_loss"]
    shutil.rmtree(runs / names[1])
    (runs / names[0] / "checkpoints" / "stable.ckpt").unlink()
    lrec("scaling", "study", "--config", "study.yaml", "--horizons", "[0.25, 0.5, 1, 2]")
    assert points_of(runs / names[1])[0]["test_loss"] == half["test_loss"]
    assert points_of(runs / names[2])[0] == whole
    (*_, twice) = points_of(runs / "0.8k-horizon-2-seed1")
    assert twice["D"] == 2 * whole["U"]
    state = json.loads((runs.parent / "study.json").read_text())["state"]
    assert set(state.values()) == {"finished"}


@pytest.mark.slow
def test_held_out_sizes_are_predicted_at_every_horizon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lrec: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    longer = STUDY["options"] | {"data.max_len": 8, "data.targets_per_step": 16, "trainer.max_epochs": 4}
    ladder = {"sizes": ["1x8", "1x12", "1x16", "1x20", "1x32", "1x40"], "holdout": 2, "law": "forecast", "jobs": 2}
    Path("study.yaml").write_text(yaml.safe_dump(STUDY | ladder | {"horizons": [0.5, 1.0], "options": longer}))
    said = lrec("scaling", "study", "--config", "study.yaml")
    study = tmp_path / "studies" / "horizons"
    (of_ladder,) = json.loads((study / "prediction.json").read_text())["ladders"]
    places = [(p["x"], p["d"]) for p in of_ladder["predictions"]]
    (u,) = {point["U"] for point in points_of(study / "runs" / "1x8-seed1")}
    assert places == [(12288, 2 * u), (12288, 4 * u), (19200, 2 * u), (19200, 4 * u)]
    content = json.loads((study / "fit" / "fit.json").read_text())
    assert content["d"] == "D"
    judged = {(p["x"], p["d"]): p["actual"] for p in content["holdout"]["points"]}
    assert judged[19200, 2 * u] == points_of(study / "runs" / "1x40-horizon-0.5-seed1")[-1]["test_loss"]
    assert judged[19200, 4 * u] in [point["test_loss"] for point in points_of(study / "runs" / "1x40-seed1")]
    assert {metric["d"] for metric in of_ladder["metrics"]["HR@10"]} == {2 * u, 4 * u}
    assert "Twice as much of size and data" in said
