"""`lrec scaling exchange`: steps of a study whose runs obey a known law, and a study that is really trained."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lrec.cli import main
from lrec.common.files import write_json
from lrec.run import Point, Run, run_of_study
from lrec.study.grid import planned_runs
from lrec.study.options import Study, ladder_n_body
from lrec.study.record import Record

SIZES = ["1x8", "1x12", "1x16", "1x24", "1x32", "1x48"]
OPTIONS = {"data.n_users": 100, "data.n_items": 30, "data.length": 20, "data.max_len": 10, "trainer.max_epochs": 1}
OPTIONS |= {"data.targets_per_step": 64, "trainer.enable_progress_bar": False}
CONFIGS = ["data/synthetic.yaml", "trainer/laptop.yaml"]
STEPS = {
    "passes x2": {"trainer.max_epochs": 2},
    "users x2": {"data.reduction.users": 1.0},
    "bigger": {"model.size": "1x24"},
    "nothing": {"model.optimizer.weight_decay": 0.02},
}
USERS = 400


def law(n_body: float) -> float:
    return 3 + 6 * n_body**-0.3


def finish(run: Run, size: str, loss: float, seconds: float) -> None:
    """Write a finished run with this mean loss, over targets of which some are harder than others."""
    best = {"best": True, "status": "finished", "metrics": {"test/HR@10": 1 / loss}, "epochs": 1.0}
    run.folder.mkdir(parents=True)
    losses = {"test_loss": loss, "test_loss_se": 0.1, "val_loss": loss}
    run.write_points([Point(run=run.name, N_body=ladder_n_body(size), wall_s=seconds, **losses, **best)])  # type: ignore[arg-type]
    hard_U = np.random.default_rng(0).standard_normal(USERS)
    table = {"user": range(USERS), "step": np.zeros(USERS, dtype=int), "loss": loss + hard_U - hard_U.mean()}
    pl.DataFrame(table).write_parquet(run.target_losses_file)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of six sizes on half of the users; the losses follow the law, and 1,000 parameters take an hour."""
    folder = tmp_path_factory.mktemp("exchange")
    options = OPTIONS | {"data.data_dir": str(folder)}
    of_runs = {"sizes": SIZES, "fractions": (0.5,), "holdout": 1, "options": options}
    study = Study("known", CONFIGS, out=folder / "known", **of_runs)  # type: ignore[arg-type]
    record = Record(study, planned_runs(study))
    record.enter((), ())
    for run in record.runs:
        n_body = ladder_n_body(run.size)
        finish(record.trained(run), run.size, law(n_body), 3.6 * n_body)
    return study.folder


@pytest.fixture
def study(known: Path, tmp_path: Path) -> Path:
    """A copy, which a test may change."""
    return shutil.copytree(known, tmp_path / "known")


def finish_steps(study: Path, **came: tuple[float, float]) -> None:
    """Write finished steps at 1x16; for each, the N_body whose loss it has, and its hours."""
    out = study.with_name("known-exchange")
    for name, (n_body, hours) in {"again-seed101": (3072.0, 3.072), **came}.items():
        finish(run_of_study(out, f"1x16-{name.replace('_', '-')}"), "1x16", law(n_body), 3600 * hours)


def run_exchange(study: Path, lrec: Callable[..., str], *options: str) -> dict[str, Any]:
    lrec("scaling", "exchange", f"--study={study}", "--size=1x16", f"--steps={json.dumps(STEPS)}", *options)
    found: dict[str, Any] = json.loads((study.with_name("known-exchange") / "exchange.json").read_text())
    return found


def test_steps_are_worth_the_sizes_that_have_their_losses(study: Path, lrec: Callable[..., str]) -> None:
    finish_steps(
        study, **{"passes-x2-seed1": (6912, 6.0), "users-x2-seed1": (12288, 6.1), "nothing-seed1": (3072, 3.0)}
    )
    found = run_exchange(study, lrec)
    steps = found["steps"]
    assert steps["passes x2"]["worth"]["times"] == pytest.approx(6912 / 3072, rel=0.01)
    assert steps["users x2"]["worth"]["times"] == pytest.approx(4, rel=0.01)
    assert steps["users x2"]["gain"] == pytest.approx(law(3072) - law(12288))
    assert steps["users x2"]["hours_more"] == pytest.approx(6.1 - 3.072)
    assert steps["users x2"]["hours_by_size"] == pytest.approx(12.288 - 3.072, rel=0.05)
    assert steps["bigger"]["worth"]["times"] == pytest.approx(2.25)
    assert steps["bigger"]["hours_more"] == pytest.approx(1.25 * 3.072, rel=0.01)
    assert steps["bigger"]["metric_more"] == pytest.approx(1 / law(6912) - 1 / law(3072))
    assert abs(steps["nothing"]["gain"]) < 1e-9 < steps["nothing"]["half"]
    assert [*steps] == sorted(steps, key=lambda name: steps[name]["gain"] / steps[name]["hours_more"], reverse=True)
    assert found["cheapest"] == "users x2"
    report = (study.with_name("known-exchange") / "exchange.md").read_text()
    assert report.startswith("# Buy users x2 next")
    assert (study.with_name("known-exchange") / "exchange.png").is_file()


def test_a_study_is_named_also_in_its_own_folder(
    study: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_steps(study, **{"nothing-seed1": (3072, 3.0)})
    write_json(study.with_name("known-exchange") / "exchange.json", {})  # of another program
    monkeypatch.chdir(study)
    steps = json.dumps({"nothing": STEPS["nothing"]})
    assert "Steps of known at 1x16" in lrec("scaling", "exchange", "--study=.", "--size=1x16", f"--steps={steps}")


def test_the_metric_is_that_of_the_better_lists_and_a_changed_step_is_refused(
    study: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    """The refusal does not name --restart, which only studies have."""
    for size in SIZES:
        run = run_of_study(study, f"{size}-users-0.5-seed1")
        hits = {"val/HR@10": 0.3, "val/HR@10_unseen": 0.4, "test/HR@10_unseen": 0.5}
        run.write_points([replace(point, metrics=point.metrics | hits) for point in run.points])
    finish_steps(study, **{"nothing-seed1": (3072, 3.0)})
    command = ["scaling", "exchange", f"--study={study}", "--size=1x16"]
    assert "HR@10_unseen 0.5000" in lrec(*command, f"--steps={json.dumps({'nothing': STEPS['nothing']})}")
    found = json.loads((study.with_name("known-exchange") / "exchange.json").read_text())
    assert (found["metric"], found["HR@10_unseen"]) == ("HR@10_unseen", 0.5)
    assert found["steps"]["nothing"]["metric_more"] is None
    refusal = refused(*command, "--steps={nothing: {model.optimizer.weight_decay: 0.3}}")
    assert refusal.rstrip().endswith("(model.optimizer.weight_decay 0.02, now 0.3): choose another --out")


@pytest.mark.slow
def test_two_steps_are_predicted_before_they_are_judged(study: Path, lrec: Callable[..., str]) -> None:
    finish_steps(study, **{"passes-x2-seed1": (6912, 6.0), "users-x2-seed1": (6912, 6.1), "nothing-seed1": (3072, 3.0)})
    before = run_exchange(study, lrec)["combinations"]
    assert "actual" not in before["passes x2+users x2"]
    expected = law(3072 * 2.25**2)
    assert before["passes x2+users x2"]["predicted"] == pytest.approx(expected, rel=0.005)
    out = study.with_name("known-exchange")
    finish(run_of_study(out, "1x16-passes-x2-users-x2-seed1"), "1x16", 1.02 * expected, 36000)
    finish(run_of_study(out, "1x16-bigger-passes-x2-seed1"), "1x24", law(6912 * 2.25), 36000)
    after = run_exchange(study, lrec, "--combine=[passes x2+users x2, bigger+passes x2]")["combinations"]
    pair = after["passes x2+users x2"]
    assert pair["predicted"] == before["passes x2+users x2"]["predicted"]
    assert pair["error_pct"] == pytest.approx(100 * (1 / 1.02 - 1), abs=0.5)
    assert pair["inside"] == (pair["low"] <= pair["actual"] <= pair["high"])
    assert after["bigger+passes x2"]["inside"]
    # Judged combinations stay, and another one is added.
    assert run_exchange(study, lrec)["combinations"] == after
    finish(run_of_study(out, "1x16-bigger-users-x2-seed1"), "1x24", law(6912 * 2.25), 36000)
    more = run_exchange(study, lrec, "--combine=[bigger+users x2]")["combinations"]
    assert {name: each for name, each in more.items() if "actual" in each}.keys() == {
        "passes x2+users x2",
        "bigger+passes x2",
        "bigger+users x2",
    }
    # A pair stands there once, whichever of its steps is named first.
    finish(run_of_study(out, "1x16-nothing-passes-x2-seed1"), "1x16", law(6912), 36000)
    named = [*run_exchange(study, lrec, "--combine=[nothing+passes x2]")["combinations"]]
    assert "nothing+passes x2" in named
    assert "passes x2+nothing" not in named
    # A combination whose run is lost has no actual loss any more.
    shutil.rmtree(run_of_study(out, "1x16-passes-x2-users-x2-seed1").folder)
    assert "actual" not in run_exchange(study, lrec)["combinations"]["passes x2+users x2"]


def test_a_step_beyond_the_ladder_is_worth_more_than_it_shows(study: Path, lrec: Callable[..., str]) -> None:
    finish_steps(study, **{"passes-x2-seed1": (1e9, 6.0), "users-x2-seed1": (800, 6.1), "nothing-seed1": (3072, 3.0)})
    found = run_exchange(study, lrec)
    assert found["steps"]["passes x2"]["worth"]["times"] is None  # infinite
    combinations = found["combinations"]
    assert not [name for name, each in combinations.items() if "passes x2" in name and "predicted" in each]
    report = (study.with_name("known-exchange") / "exchange.md").read_text()
    assert "more than shown" in report
    assert found["steps"]["users x2"]["gain"] < 0 < found["steps"]["users x2"]["worth"]["times"] < 1


@pytest.mark.parametrize("passes", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_what_is_offered_follows_from_the_study(passes: int, study: Path, lrec: Callable[..., str]) -> None:
    record = json.loads((study / "study.json").read_text())
    for run in record["grid"]["runs"]:
        run["options"]["trainer"]["max_epochs"] = passes
    write_json(study / "study.json", record)
    printed = lrec("scaling", "exchange", f"--study={study}", "--size=1x16", "--dry_run")
    planned = [line.split()[0] for line in printed.splitlines() if line.startswith("1x16-")]
    offered = ["users-x2", "length-x2", "passes-x2", "time", "seen-items", *(["next-items"] if passes > 1 else [])]
    assert planned == ["1x16-again-seed101", *(f"1x16-{name}-seed1" for name in offered)]
    assert not study.with_name("known-exchange").exists()


def test_a_rate_follows_the_ladder(study: Path, lrec: Callable[..., str]) -> None:
    record = json.loads((study / "study.json").read_text())
    for run in record["grid"]["runs"]:
        run["options"]["model"]["optimizer"]["lr"] = 10 * ladder_n_body(run["size"]) ** -0.5
    write_json(study / "study.json", record)
    finish_steps(study, **{"passes-x2-seed1": (6912, 6.0), "users-x2-seed1": (6912, 6.1), "nothing-seed1": (3072, 3.0)})
    finish(run_of_study(study.with_name("known-exchange"), "1x16-bigger-passes-x2-seed1"), "1x24", 3.5, 36000)
    run_exchange(study, lrec, "--combine=[bigger+passes x2]")
    runs = json.loads((study.with_name("known-exchange") / "study.json").read_text())["grid"]["runs"]
    rates = {run["variant"]: run["options"]["model"]["optimizer"]["lr"] for run in runs}
    assert rates["bigger+passes x2"] == pytest.approx(10 * 6912**-0.5, rel=1e-3)
    assert rates["passes x2"] == pytest.approx(10 * 3072**-0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size=1x17"], "has finished runs of 1x8, 1x12, 1x16, 1x24, 1x32, 1x48"),
        (["--steps={a: {model.size: 4x192}}"], "sizes from 768 to 276,480 parameters only"),
        (["--steps={a: {model.size: 5}}"], "unknown size '5'"),
        (["--steps={a: {model.size: 1x4}}"], "sizes from 768 to 276,480 parameters only"),
        (["--steps={a+b: {trainer.max_epochs: 2}}"], "must not contain +"),
        (["--steps={a: {data.split.trajectory: 3}}"], "step a: other test targets or items"),
        (["--steps={a: {data.test_users: 50}}"], "step a: other test targets or items"),
        (["--steps={a: {trainer.max_epochs: 2}}", "--combine=[a+b]"], "'b' is none of the steps: a"),
        (["--steps={a b: {trainer.max_epochs: 2}, a-b: {trainer.max_epochs: 3}}"], "differ only in signs"),
        (["--steps={a: {data.seed: 2}, b: {data.seed: 3}}", "--combine=[a+b]"], "two of them change the same option"),
    ],
)
def test_what_is_refused(study: Path, options: list[str], said: str, refused: Callable[..., str]) -> None:
    assert said in refused("scaling", "exchange", f"--study={study}", *options)
    assert not study.with_name("known-exchange").exists()


def test_a_step_that_diverged_is_named(study: Path, refused: Callable[..., str]) -> None:
    finish_steps(study)
    again = run_of_study(study.with_name("known-exchange"), "1x16-again-seed101")
    again.write_points([Point(run=again.name, status="diverged")])
    again.target_losses_file.unlink()
    refusal = refused("scaling", "exchange", f"--study={study}", "--size=1x16", "--steps={bigger: {model.size: 1x24}}")
    assert "step again diverged" in refusal


def test_a_study_whose_first_variant_starts_from_another_is_refused(study: Path, refused: Callable[..., str]) -> None:
    record = json.loads((study / "study.json").read_text())
    for run in record["grid"]["runs"]:
        run |= {"variant": "warm", "starts_from": f"{run['size']}-cold-seed1"}
    write_json(study / "study.json", record)
    assert "its first variant, warm, starts from another" in refused("scaling", "exchange", f"--study={study}")


def test_a_folder_without_a_study_or_its_losses_is_refused(
    study: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "no study there" in refused("scaling", "exchange", f"--study={tmp_path / 'none'}")
    run_of_study(study, "1x8-users-0.5-seed1").target_losses_file.unlink()
    assert "compared target by target" in refused("scaling", "exchange", f"--study={study}")


def test_losses_of_other_targets_are_refused(study: Path, refused: Callable[..., str]) -> None:
    """A gain over the few targets that two tables share would be no gain of the step."""
    file = run_of_study(study, "1x24-users-0.5-seed1").target_losses_file
    table = pl.read_parquet(file)
    for other in (table.head(100), table.with_columns(pl.col("user") + 1)):
        other.write_parquet(file)
        refusal = refused("scaling", "exchange", f"--study={study}")
        assert "1x24-users-0.5-seed1/target_losses.parquet has other targets" in refusal


@pytest.mark.parametrize("grid", [None, {}, {"runs": [], "y": "test_loss"}, {"runs": [{}]}])
def test_a_damaged_record_is_refused(grid: object, study: Path, refused: Callable[..., str]) -> None:
    write_json(study / "study.json", {"grid": grid})
    assert "its study.json is damaged: start the study again" in refused("scaling", "exchange", f"--study={study}")


@pytest.mark.slow
@pytest.mark.usefixtures("warm_processes")
def test_a_study_and_its_steps_are_trained(tmp_path: Path, lrec: Callable[..., str]) -> None:
    shared = [f"--options.{name}={json.dumps(value)}" for name, value in OPTIONS.items()]
    sizes = [f"--sizes={json.dumps(SIZES[:4])}", "--holdout=0", "--law=null", "--fractions=[0.5]"]
    folders = [f"--out={tmp_path / 'study'}", f"--options.data.data_dir={tmp_path}"]
    main(["scaling", "study", f"--configs={json.dumps(CONFIGS)}", *sizes, *folders, *shared])
    asked = ["scaling", "exchange", f"--study={tmp_path / 'study'}", "--combine=[time+passes x2]"]
    lrec(*asked)
    found = json.loads((tmp_path / "study-exchange" / "exchange.json").read_text())
    assert {"users x2", "length x2", "passes x2", "time"} < found["steps"].keys()
    assert all(math.isfinite(step["gain"]) and step["hours"] > 0 for step in found["steps"].values())
    assert found["combinations"]["time+passes x2"]["actual"] > 0
    assert "[0/" not in lrec(*asked)  # nothing is trained twice


@pytest.mark.parametrize("steps", [[1], {"a": {}}])
def test_results_of_another_shape_are_refused(steps: object, study: Path, refused: Callable[..., str]) -> None:
    earlier = {"study": "known", "size": "1x32", "steps": steps, "combinations": {}}
    write_json(study.with_name("known-exchange") / "exchange.json", earlier)
    assert "exchange.json is damaged" in refused("scaling", "exchange", f"--study={study}")


def test_data_that_have_changed_since_the_study_are_refused(study: Path, refused: Callable[..., str]) -> None:
    """Other targets of the same users would count as the same targets."""
    run = run_of_study(study, "1x16-users-0.5-seed1")
    run.write_points([replace(point, data_hash="of another log") for point in run.points])
    said = "the data have changed since run 1x16-users-0.5-seed1 of the study"
    assert said in refused("scaling", "exchange", f"--study={study}", "--size=1x16")
    assert not study.with_name("known-exchange").exists()


def test_a_study_keeps_its_folder_and_needs_a_fitted_size(study: Path, refused: Callable[..., str]) -> None:
    command = ["scaling", "exchange", f"--study={study}"]
    assert "is the folder of the study: choose another" in refused(*command, f"--out={study / '..' / study.name}")
    for size in SIZES[:-1]:
        shutil.rmtree(run_of_study(study, f"{size}-users-0.5-seed1").folder)
    assert "known has finished runs of 1x48, but of no fitted size" in refused(*command)


def test_steps_are_trained_together_once_in_whatever_order(study: Path, lrec: Callable[..., str]) -> None:
    options = [f"--steps={json.dumps(STEPS)}", "--combine=[nothing+users x2, users x2+nothing]", "--dry_run"]
    printed = lrec("scaling", "exchange", f"--study={study}", "--size=1x16", *options)
    together = [line.split()[0] for line in printed.splitlines() if "users-x2" in line and "nothing" in line]
    assert together == ["1x16-users-x2-nothing-seed1"]
