"""The studies whose points and predictions are committed: today's configurations still describe the same runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lrec.laws.predict import holdout_report
from lrec.options.config_files import find_config
from lrec.run import RunConfig, read_points_file
from lrec.study.grid import planned_runs
from lrec.study.options import Study
from lrec.study.points import read_points
from lrec.study.record import changed_options

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
COMMITTED = sorted(path.parent.name for path in BENCHMARKS.glob("*/prediction.json"))


@pytest.mark.parametrize("name", COMMITTED)
def test_a_study_has_the_held_out_runs_that_were_predicted(name: str) -> None:
    study = Study(**yaml.safe_load(find_config(f"study/{name}.yaml").read_text()))
    predicted = json.loads((BENCHMARKS / name / "prediction.json").read_text())["held_out_runs"]
    data = next(iter(predicted.values()))["data"]["init_args"]
    options = study.options | ({"data.path": "anywhere"} if "path" in data else {})
    alone = {"sizes": study.held_out, "seeds": study.holdout_seeds, "holdout": 0, "law": None}
    held_out = replace(study, options=options, fractions=(max(study.fractions),), **alone)
    today = {run.name: run.config for run in planned_runs(held_out)}
    assert today.keys() == predicted.keys()
    for run, config in today.items():
        # Some were trained before data.validation_users existed, when all users validated.
        predicted[run]["data"]["init_args"].setdefault("validation_users", "all")
        predicted[run]["model"]["optimizer"].setdefault("muon", None)  # or before Muon
        assert predicted[run]["data"]["init_args"].pop("user_features", None) is None  # once an option
        assert changed_options(RunConfig(predicted[run]), config) == ""


@pytest.mark.parametrize("name", COMMITTED)
def test_the_points_of_a_study_have_its_sizes(name: str) -> None:
    study = Study(**yaml.safe_load(find_config(f"study/{name}.yaml").read_text()))
    trained = {point.size for point in read_points_file(BENCHMARKS / name / "all_points.jsonl")}
    assert trained == set(study.ladder)


def test_the_quickstarts_prediction_is_near_and_its_interval_within_naives_error() -> None:
    _, held_out = holdout_report(None, read_points([BENCHMARKS / "quickstart" / "all_points.jsonl"]), 2)
    assert held_out is not None
    for point in held_out.points:
        naive = abs(point.naive_error_pct)
        assert point.inside
        assert abs(point.error_pct) <= naive / 3
        assert point.half_width_pct <= naive
