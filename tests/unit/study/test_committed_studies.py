"""The studies whose points and predictions are committed: today's configurations still describe the same runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lrec.parser import find_config
from lrec.run import RunConfig, read_points_file
from lrec.study.grid import planned_runs
from lrec.study.options import Study
from lrec.study.record import changed_options

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
COMMITTED = sorted(path.parent.name for path in BENCHMARKS.glob("*/prediction.json"))


@pytest.mark.parametrize("name", COMMITTED)
def test_a_study_has_the_held_out_runs_that_were_predicted(name: str) -> None:
    study = Study(**yaml.safe_load(find_config(f"study/{name}.yaml").read_text()))
    predicted = json.loads((BENCHMARKS / name / "prediction.json").read_text())["held_out_runs"]
    data = next(iter(predicted.values()))["data"]["init_args"]
    options = study.options | ({"data.path": "anywhere"} if "path" in data else {})
    alone = {"sizes": study.held_out, "seeds": study.holdout_seeds, "holdout": 0, "law": None, "fractions": (1.0,)}
    held_out = replace(study, options=options, **alone)
    today = {run.name: run.config for run in planned_runs(held_out)}
    assert today.keys() == predicted.keys()
    for run, config in today.items():
        assert changed_options(RunConfig(predicted[run]), config) == ""


@pytest.mark.parametrize("name", COMMITTED)
def test_the_points_of_a_study_are_of_its_sizes(name: str) -> None:
    study = Study(**yaml.safe_load(find_config(f"study/{name}.yaml").read_text()))
    trained = {point.size for point in read_points_file(BENCHMARKS / name / "all_points.jsonl")}
    assert trained == set(study.ladder)
