"""What a study predicts, from made-up points."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl

from lrec.laws.forecast import Forecast
from lrec.model import cost
from lrec.run import Run
from lrec.study.grid import PlannedRun, planned_runs
from lrec.study.options import Study
from lrec.study.prediction import LadderFit, fit_ladder, write_prediction

ITEMS, TYPES = 50, 3


def test_all_parameters_of_large_runs_count_the_types_of_event_of_small_ones(tmp_path: Path) -> None:
    """How many types there are is known only once the data have been read."""
    configs = ["data/synthetic.yaml", "trainer/laptop.yaml"]
    sizes = ["0.8k", "1.7k", "3k", "4.8k", "6.9k"]
    study = Study("types", configs, sizes=sizes, out=tmp_path, holdout=1, fractions=(1.0,), law="lsrm", x="N_total")
    runs = planned_runs(study)
    nets = {run.name: replace(run.network(ITEMS), event_types=TYPES) for run in runs}
    for run in runs[:-1]:
        n_total = cost.n_total(nets[run.name])
        point = {"schema": 1, "best": True, "status": "finished", "N_total": n_total, "test_loss": 3 + 100 / n_total}
        point |= {"N_head": ITEMS * nets[run.name].width, "d_model": nets[run.name].width}
        (tmp_path / "runs" / run.name).mkdir(parents=True)
        Run(tmp_path / "runs" / run.name).points_file.write_text(json.dumps(point) + "\n")
    (predicted,) = fit_ladder(study, runs, []).predictions
    assert predicted.x == cost.n_total(nets[runs[-1].name])


def written(out: Path, fitted: int, *held_out: tuple[int, int]) -> dict[str, list[str]]:
    """The content of prediction.json after a prediction from so many sizes, for held-out runs of (size, seed)."""
    sizes = [1000.0 * 2**i for i in range(fitted)]
    forecast = Forecast(pl.DataFrame({"x": sizes, "y": [3 + 10 / size**0.3 for size in sizes]}))
    ladder = LadderFit("", forecast, tuple(forecast.predict(sorted({float(size) for size, _ in held_out}))))
    runs = [PlannedRun(f"{size}-{seed}", f"{size}", seed, 1.0, "", "", True, {}) for size, seed in held_out]
    write_prediction(Study(out=out, sizes=["3k"], holdout=0, law=None), [ladder], runs)
    found: dict[str, list[str]] = json.loads((out / "prediction.json").read_text())
    return found


def test_a_prediction_stays_for_other_seeds_and_for_fewer_of_its_sizes(tmp_path: Path) -> None:
    first = written(tmp_path, 5, (10**5, 1), (10**6, 1))
    for run in ("100000-1", "1000000-1"):
        Run(tmp_path / "runs" / run).write_points([])
    assert written(tmp_path, 5, (10**5, 1), (10**6, 1), (10**6, 2)) == first
    assert written(tmp_path, 5, (10**5, 1)) == first
    assert written(tmp_path, 5, (10**7, 1), (10**6, 1))["trained_before"] == ["1000000-1"]


def test_no_earlier_prediction_is_replaced(tmp_path: Path) -> None:
    for fitted in (5, 6, 7):
        written(tmp_path, fitted, (10**6, 1))
    (tmp_path / "prediction-1.json").unlink()
    earlier = (tmp_path / "prediction-2.json").read_text()
    written(tmp_path, 8, (10**6, 1))
    assert (tmp_path / "prediction-2.json").read_text() == earlier
    assert (tmp_path / "prediction-1.json").exists()
