"""The prediction of a study: from the small sizes of each ladder, committed to before a large run is read."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lrec.common.files import write_json
from lrec.laws.fit import Fit
from lrec.laws.loss_laws import name_of
from lrec.laws.predict import Prediction, Predictor, method_named, predictor_of
from lrec.laws.table import source_hash
from lrec.model import cost
from lrec.run import Point, RunConfig, run_of_study
from lrec.study.grid import PlannedRun
from lrec.study.options import Study
from lrec.study.points import read_points
from lrec.study.record import changed_options


@dataclass(frozen=True)
class LadderFit:
    """The forecast or law of one fraction and variant: of the small sizes, with predictions for the large ones."""

    name: str
    x: str
    y: str
    source_hash: str
    fit: Predictor
    predictions: tuple[Prediction, ...]


def by_ladder(runs: list[PlannedRun]) -> dict[str, list[PlannedRun]]:
    """The runs of each ladder."""
    ladders: dict[str, list[PlannedRun]] = defaultdict(list)
    for run in runs:
        ladders[run.ladder].append(run)
    return ladders


def fit_ladder(study: Study, runs: list[PlannedRun], of_less_data: list[PlannedRun]) -> LadderFit:
    """Fit the small sizes of one ladder and predict its large ones; no large run is read.

    A forecast rests on the same variant's runs of less data too.
    """
    assert study.law is not None
    method = method_named(study.law)
    used = [run for run in runs if not run.held_out] + (of_less_data if method is None else [])
    trained = [run_of_study(study.folder, run.name) for run in used]
    points = read_points([run.points_file for run in trained], study.x, study.y, shares=method is None)
    fitted = predictor_of(method, points)
    example = trained[0].result
    assert example is not None
    n_items = example.N_head // example.d_model
    large = sorted({_count(run, n_items, study.x, used[0], example) for run in runs if run.held_out})
    predictions = tuple(fitted.predict(large)) if large else ()
    return LadderFit(runs[0].ladder, study.x, study.y, source_hash(points), fitted, predictions)


def _count(run: PlannedRun, n_items: int, x: str, finished: PlannedRun, example: Point) -> int:
    """The parameters a run will have: types of event add rows to N_total, how many is known from a finished run."""
    network = run.network(n_items)
    if x == "N_body":
        return cost.n_body(network)
    types = (example.N_total - cost.n_total(finished.network(n_items))) // example.d_model
    return cost.n_total(replace(network, event_types=types))


def of_less_data(runs: list[PlannedRun], ladder: list[PlannedRun]) -> list[PlannedRun]:
    """The runs of a ladder's variant with smaller shares of the data."""
    first = ladder[0]
    return [run for run in runs if run.variant == first.variant and run.fraction < first.fraction]


def write_prediction(out: Path, ladders: list[LadderFit], runs: list[PlannedRun]) -> None:
    """Commit to the prediction while the large runs are unread.

    One that is there for the same points and held-out runs stays. One that rests on others (the study was extended)
    is kept under a number, and the new one names the held-out runs that were trained before it.
    """
    path = out / "prediction.json"
    held_out = [run for run in runs if run.held_out]
    prediction = {
        "ladders": [
            {
                "ladder": ladder.name,
                "law": name_of(ladder.fit.law) if isinstance(ladder.fit, Fit) else ladder.fit.name,
                "x": ladder.x,
                "y": ladder.y,
                "source_hash": ladder.source_hash,
                "parameters": ladder.fit.parameters if isinstance(ladder.fit, Fit) else {},
                "predictions": [asdict(point) for point in ladder.predictions],
            }
            for ladder in ladders
        ],
        "held_out_runs": {run.name: run.options for run in held_out},
        "trained_before": [run.name for run in held_out if run_of_study(out, run.name).points_file.is_file()],
    }
    if path.is_file():
        if _same_prediction(json.loads(path.read_text(encoding="utf-8")), prediction):
            return
        path.rename(out / f"prediction-{1 + len(list(out.glob('prediction-*.json')))}.json")
    write_json(path, prediction)


def _same_prediction(earlier: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether they rest on the same points and are for the same runs; the last digits may differ between machines."""
    rest_on = [
        [[ladder[name] for name in ("ladder", "law", "x", "y", "source_hash")] for ladder in each["ladders"]]
        for each in (earlier, now)
    ]
    runs, others = now["held_out_runs"], earlier["held_out_runs"]
    return (
        rest_on[0] == rest_on[1]
        and runs.keys() == others.keys()
        and not any(changed_options(RunConfig(others[name]), RunConfig(runs[name])) for name in runs)
    )
