"""What a study's report says, from runs on disk."""

import json
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrec.errors import UserError
from lrec.laws.fit import fit
from lrec.laws.forecast import Forecast
from lrec.laws.loss_laws import LAWS
from lrec.model.network_sizes import SIZES
from lrec.run import Point, Run
from lrec.study.grid import PlannedRun
from lrec.study.options import Study
from lrec.study.points import read_points
from lrec.study.prediction import LadderFit
from lrec.study.report import COLUMNS, write_report

LADDER = ("0.8k", "1.7k", "3k", "6.9k", "12k", "49k")


def n_body(size: str) -> int:
    return 12 * SIZES[size].layers * SIZES[size].width ** 2


def loss(size: str, fraction: float) -> float:
    return 4 + 0.2 * (1 - fraction) + (2e3 / n_body(size)) ** 0.3


def make_run(
    out: Path, size: str, fraction: float, status: str = "finished", test_loss: float | None = None
) -> PlannedRun:
    """A run's folder with the points that `lrec fit` would write."""
    run = PlannedRun(f"{size}-{fraction}", size, 1, fraction, "", f"fraction-{fraction:g}", size == LADDER[-1], {})
    folder = out / "runs" / run.name
    folder.mkdir(parents=True)
    diverged = status == "diverged"
    point = {
        "schema": 1,
        "size": size,
        "N_body": n_body(size),
        "D": 1000,
        "U": int(1000 * fraction),
        "epochs": 1.0,
        "step": 10,
        "flops": 6000 * n_body(size),
        "val_loss": None if diverged else 5.0,
        "test_loss": None if diverged else (test_loss or loss(size, fraction)),
        "best": not diverged,
        "status": status,
        "floor": {"val": 3.9, "test": 4.0},
        "metrics": {f"test/{name}": 0.1 for name in (*COLUMNS, "popularity/loss")}
        | {f"test/popularity/{name}": 0.05 for name in COLUMNS},
    }
    (folder / "points.jsonl").write_text(json.dumps(point) + "\n")
    return run


def study_in(out: Path) -> Study:
    return Study(name="made up", out=out, sizes=LADDER, holdout=1)


@cache
def ladder(fraction: float) -> LadderFit:
    x = [n_body(size) for size in LADDER[:-1]]
    fitted = fit(LAWS["lsrm"], x, [loss(size, fraction) for size in LADDER[:-1]])
    return LadderFit(f"fraction-{fraction:g}", fitted, tuple(fitted.predict([n_body(LADDER[-1])])))


@pytest.mark.slow
def test_every_fraction_has_its_own_fit(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, size, fraction) for fraction in (0.5, 1.0) for size in LADDER]
    report = write_report(study_in(tmp_path), runs, [ladder(0.5), ladder(1.0)], {})
    for fraction in (0.5, 1.0):
        content = json.loads((tmp_path / "fit" / f"fraction-{fraction:g}" / "fit.json").read_text())
        assert content["holdout"]["points"][0]["actual"] == loss("49k", fraction)
        assert content["parameters"]["E"]["value"] == pytest.approx(4 + 0.2 * (1 - fraction), rel=1e-4)
    assert "falls with every step in size" in report
    assert "every run lies above it" in report
    assert (tmp_path / "report.md").read_text() == report


def test_large_runs_of_several_lengths_are_judged_even_if_the_fitted_ones_stopped_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrec.laws.analysis.compare_methods", lambda *_: [])  # which takes most of the time
    monkeypatch.setattr("lrec.study.report.save_figure", lambda *_: None)
    runs, passes = [], dict.fromkeys(LADDER, 9) | {LADDER[-1]: 10}
    for size, horizon in product(LADDER, (0.5, 1.0)):
        run = replace(make_run(tmp_path, size, horizon), fraction=1.0, ladder="", horizon=horizon)
        (point,) = Run(tmp_path / "runs" / run.name).points
        long: dict[str, Any] = {"U": 1000, "D": int(1000 * passes[size] * horizon), "step": 1000, "horizon": horizon}
        Run(tmp_path / "runs" / run.name).write_points([replace(point, **long)])
        runs.append(run)
    small = read_points([Run(tmp_path / "runs" / run.name).points_file for run in runs[:-2]], shares=True)
    places = [(float(n_body(LADDER[-1])), length) for length in small["d"].unique().sort()]
    forecast = Forecast(small)
    (tmp_path / "prediction-1.json").write_text("{}")
    (tmp_path / "prediction.json").write_text(json.dumps({"trained_before": [runs[-1].name]}))
    fitted = LadderFit("", forecast, tuple(forecast.predict(np.array(places))))
    report = write_report(study_in(tmp_path), runs, [fitted], {})
    assert "- Risk: Not a prediction: 49k-1.0 had been trained" in report
    assert report.count("; prediction-*.json are the earlier predictions.") == 2
    assert len(json.loads((tmp_path / "fit" / "fit.json").read_text())["holdout"]["points"]) == 2


def test_the_best_baseline_stands_beside_popularity(tmp_path: Path) -> None:
    run = make_run(tmp_path, "3k", 1.0)
    path = tmp_path / "runs" / run.name / "points.jsonl"
    point = json.loads(path.read_text())
    losses = {"popularity": 4.6, "recent-popularity": 4.59, "repeat-last": None, "markov": 3.0757}
    point["metrics"] |= {f"test/{name}/loss": loss for name, loss in losses.items()}
    point["metrics"] |= {f"test/markov/{name}": 0.4747 for name in COLUMNS}
    path.write_text(json.dumps(point))
    report = write_report(study_in(tmp_path), [run], [], {})
    assert "| popularity |  |  |  |  |  | 4.6000 | 0.0500 |" in report
    assert "| markov |  |  |  |  |  | 3.0757 | 0.4747 |" in report
    assert "repeat-last" not in report


def test_a_ladder_that_loses_to_counting_says_so_first(tmp_path: Path) -> None:
    """If a baseline has a lower loss than most fitted sizes. One size that loses is not enough."""
    for name, markov, losing in (("one", loss("0.8k", 1.0) - 0.01, 1), ("most", loss("12k", 1.0) + 0.01, 4)):
        runs = [make_run(tmp_path / name, size, 1.0) for size in LADDER]
        for run in runs:
            file = tmp_path / name / "runs" / run.name / "points.jsonl"
            point = json.loads(file.read_text())
            point["metrics"]["test/markov/loss"] = markov
            file.write_text(json.dumps(point) + "\n")
        report = write_report(study_in(tmp_path / name), runs, [ladder(1.0)], {})
        assert "Out of line" not in report
        first = report.splitlines()[2]
        assert first.startswith("**Under-trained") == (losing > 2)
        if losing > 2:
            assert f"{losing} of 5 fitted sizes" in first
            assert "markov (0.8k, 1.7k, 3k, 6.9k)" in first
            assert "or a tuned learning rate (--tune '[lr]') may help" in first


@pytest.mark.slow
def test_a_ladder_may_lose_to_n_grams_too(tmp_path: Path) -> None:
    """Only if the largest size loses to them too, because small networks cannot hold what n-gram tables hold."""
    for name, beyond, losing in (("all", -0.01, True), ("but the largest", 0.01, False)):
        runs = [make_run(tmp_path / name, size, 1.0) for size in LADDER]
        counted = {"bigram": loss("0.8k", 1.0) + 1, "trigram": loss("12k", 1.0) + beyond}
        report = write_report(study_in(tmp_path / name), runs, [ladder(1.0)], {}, ngrams=counted)
        said = "5 of 5 fitted sizes have a higher test loss than trigram (0.8k, 1.7k, 3k, 6.9k, 12k)"
        assert (said in report) == ("Under-trained" in report) == losing
        assert f"a test loss of {counted['bigram']:.4f} by bigrams and {counted['trigram']:.4f} by trigrams." in report


def test_n_grams_are_compared_with_the_ladder_on_whose_data_they_were_counted(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, size, 1.0) for size in LADDER]
    for run in [make_run(tmp_path, size, 0.5, test_loss=9.0) for size in LADDER]:
        runs.append(replace(run, fraction=1.0, ladder="other"))
    counted = {"bigram": loss("12k", 1.0) + 0.01}
    report = write_report(study_in(tmp_path), runs, [ladder(1.0)], {}, ngrams=counted)
    assert "4 of 5 fitted sizes have" not in report
    assert "Under-trained" not in write_report(study_in(tmp_path), runs, [], {}, ngrams={"bigram": 8.0})
    assert report.count("by bigrams.") == 1


def test_a_fit_and_figures_that_a_study_no_longer_has_are_removed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, size, 1.0) for size in LADDER]
    alone = [replace(run, ladder="") for run in runs]
    write_report(study_in(tmp_path), alone, [replace(ladder(1.0), name="")], {})
    old = [tmp_path / "fit" / "fit.json", tmp_path / "figures" / "compute.png"]
    assert all(file.is_file() for file in old)
    write_report(study_in(tmp_path), [replace(run, variant="a") for run in runs], [ladder(1.0)], {})
    assert not any(file.exists() for file in old)
    assert (tmp_path / "fit" / "fraction-1" / "fit.json").is_file()
    assert (tmp_path / "figures" / "a" / "compute.png").is_file()


def test_a_study_with_hours_says_what_it_chose_and_why(tmp_path: Path) -> None:
    plan = {"hours": 1, "reasons": ["Every run trains on 5 targets."], "parts": {"trials": 0.25, "runs": 0.002}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    report = write_report(study_in(tmp_path), [make_run(tmp_path, "3k", 1.0)], [], {"fraction-1": "one size"})
    assert "## Plan\n\nEvery run trains on 5 targets.\n\n| part | time |" in report
    assert "| trials | 15 min |\n| runs | 7 s |" in report
    assert "Not trained" not in report


def test_large_runs_that_the_hours_do_not_allow_are_named(tmp_path: Path) -> None:
    study = replace(study_in(tmp_path), hours=0.5)
    runs = [make_run(tmp_path, size, 1.0) for size in LADDER[:-1]]
    report = write_report(study, runs, [ladder(1.0)], {}, late=["111k-seed1"])
    assert report.splitlines()[2].startswith("**Not trained: 111k-seed1**, as they would take more than --hours 0.5.")


def test_what_went_wrong_is_said(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, size, 1.0) for size in LADDER[:3]]
    runs.append(make_run(tmp_path, "6.9k", 1.0, test_loss=loss("1.7k", 1.0)))
    runs.append(make_run(tmp_path, "12k", 1.0, test_loss=3.95))
    runs.append(make_run(tmp_path, "49k", 1.0, status="diverged"))
    report = write_report(study_in(tmp_path), runs, [ladder(1.0)], {})
    assert "rises with size from 3k to 6.9k: not monotone" in report
    assert report.splitlines()[2].startswith("**Diverged and left out: 49k-1.0.**")
    assert report.splitlines()[4].startswith("**Out of line: 6.9k** of fraction-1 is")
    assert report.count("Out of line") == 1
    assert "below it: 12k-1.0" in report
    assert json.loads((tmp_path / "fit" / "fraction-1" / "fit.json").read_text())["holdout"] is None


def test_shapes_with_the_same_n_body_are_no_neighbours_in_a_line(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, size, 1.0) for size in LADDER[:3]]
    for run in runs:
        (point,) = Run(tmp_path / "runs" / run.name).points
        Run(tmp_path / "runs" / run.name).write_points([replace(point, N_body=12 * 64**2)])
    report = write_report(study_in(tmp_path), runs, [], {"fraction-1": "one N_body"})
    assert "Out of line" not in report


def test_a_study_of_one_size_says_nothing_about_size(tmp_path: Path) -> None:
    report = write_report(study_in(tmp_path), [make_run(tmp_path, "3k", 1.0)], [], {"fraction-1": "one size"})
    assert "every run lies above it" in report
    assert "step in size" not in report
    assert "Best size" not in report


def test_damaged_losses_by_target_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, "3k", 1.0)
    file = tmp_path / "runs" / run.name / "target_losses.parquet"
    file.write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match=rf"{file} is damaged .*: restore or remove it"):
        write_report(study_in(tmp_path), [run], [], {})
    file.unlink()
    write_report(study_in(tmp_path), [run], [], {})


@pytest.mark.parametrize(("law", "why"), [(None, "no law was fitted"), ("lsrm", "too few sizes, or not the largest,")])
def test_the_page_says_why_it_has_no_forecast(law: str | None, why: str, tmp_path: Path) -> None:
    study = Study(out=tmp_path, sizes=LADDER, holdout=0, law=law)
    write_report(study, [make_run(tmp_path, "3k", 1.0)], [], {})
    assert f"No forecast of HR@10: {why}" in (tmp_path / "report.html").read_text()


def test_a_ladder_without_a_law_does_not_remove_the_reports_of_others(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, size, 1.0) for size in LADDER]
    runs += [make_run(tmp_path, size, 0.5, status="diverged") for size in LADDER[:-1]]
    report = write_report(study_in(tmp_path), runs, [ladder(1.0)], {"fraction-0.5": "no usable point"})
    assert "No law: no usable point" in report
    assert "Diverged and left out: 0.8k-0.5, 1.7k-0.5" in report
    assert (tmp_path / "fit" / "fraction-1" / "fit.json").is_file()
    assert not (tmp_path / "fit" / "fraction-0.5").exists()


def test_a_run_is_finished_when_its_best_point_is_tested(tmp_path: Path) -> None:
    run = make_run(tmp_path, "3k", 1.0)
    path = tmp_path / "runs" / run.name / "points.jsonl"
    assert Run(path.parent).result == Point(**json.loads(path.read_text()))
    path.write_text(path.read_text().replace('"best": true', '"best": false'))
    assert Run(path.parent).result is None
    assert Run(tmp_path).result is None
