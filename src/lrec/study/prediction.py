"""The prediction of a study, from the small sizes of each ladder. It is saved before any large run is read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import count, product
from typing import Any

import numpy as np

from lrec.common.files import read_json, write_json
from lrec.laws.fit import Fit
from lrec.laws.intervals import Expected, Prediction
from lrec.laws.loss_laws import name_of
from lrec.laws.metric_forecasts import expected_metrics
from lrec.laws.predict import Predictor, method_named, predictor_of
from lrec.laws.table import source_hash
from lrec.model import cost
from lrec.run import RunConfig, run_of_study
from lrec.study.grid import PlannedRun
from lrec.study.options import Study
from lrec.study.points import read_points
from lrec.study.record import changed_options


@dataclass(frozen=True)
class LadderFit:
    """The forecast or law of one fraction and variant. It is fitted to the small sizes, and predicts the loss and every
    tested metric of the large sizes."""

    name: str
    fit: Predictor
    predictions: tuple[Prediction, ...]
    metrics: Mapping[str, list[Expected]] = field(default_factory=dict)


def by_ladder(runs: list[PlannedRun]) -> dict[str, list[PlannedRun]]:
    ladders = dict.fromkeys(run.ladder for run in runs)
    return {ladder: [run for run in runs if run.ladder == ladder] for ladder in ladders}


def fit_ladder(study: Study, runs: list[PlannedRun], all_runs: list[PlannedRun]) -> LadderFit:
    """Fit the small sizes of one ladder and predict its large sizes, without reading any large run. A forecast also
    uses the same variant's runs with less data."""
    assert study.law is not None
    method, used = method_named(study.law), [run for run in runs if not run.held_out]
    if method is None:
        used += [run for run in all_runs if run.variant == runs[0].variant and run.fraction < runs[0].fraction]
    trained = [run_of_study(study.folder, run.name) for run in used]
    points = read_points([run.points_file for run in trained], study.x, study.y, shares=method is None)
    fitted = predictor_of(method, points)
    example = trained[0].points[0]
    n_items = example.N_head // example.d_model
    networks = [run.network(n_items) for run in runs if run.held_out]
    large = sorted({cost.n_body(network) for network in networks})
    if study.x == "N_total":  # the data may add rows, such as types of event; a finished run shows how many
        rows = (example.N_total - cost.n_total(used[0].network(n_items))) // example.d_model
        large = sorted({cost.n_total(network) + rows * network.width for network in networks})
    lengths = [points["d"].unique().sort()] if fitted.columns == ("x", "d") else []
    predictions = tuple(fitted.predict(np.array([*product(large, *lengths)]))) if large else ()
    metrics = expected_metrics(points, predictions) if predictions else {}
    return LadderFit(runs[0].ladder, fitted, predictions, metrics)


def write_prediction(study: Study, ladders: list[LadderFit], runs: list[PlannedRun]) -> None:
    """Save prediction.json before the large runs are read. If it already has a prediction from the same points for the
    same held-out sizes, it stays. Any other earlier prediction (the study was extended) is renamed with a number. The
    new one lists the held-out runs that had points before it."""
    out, path = study.folder, study.folder / "prediction.json"
    held_out = [run for run in runs if run.held_out]
    prediction = {
        "ladders": [
            {
                "ladder": ladder.name,
                "law": name_of(ladder.fit.law) if isinstance(ladder.fit, Fit) else ladder.fit.name,
                "x": study.x,
                "y": study.y,
                "source_hash": source_hash(ladder.fit.points),
                "parameters": ladder.fit.parameters if isinstance(ladder.fit, Fit) else {},
                "predictions": [asdict(point) for point in ladder.predictions],
                "metrics": {name: [asdict(each) for each in expected] for name, expected in ladder.metrics.items()},
            }
            for ladder in ladders
        ],
        "held_out_runs": {run.name: run.options for run in held_out},
        "trained_before": [run.name for run in held_out if run_of_study(out, run.name).points_file.is_file()],
    }
    if earlier := read_json(path):
        if _same_prediction(earlier, prediction):
            return
        names = (out / f"prediction-{number}.json" for number in count(1))
        path.rename(next(name for name in names if not name.exists()))
    write_json(path, prediction)


def _same_prediction(earlier: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether both are from the same points, and the earlier one is for all sizes of the present one. Predicted digits
    may differ between machines, and other seeds of a size have the same prediction."""
    names = ("ladder", "law", "x", "y", "source_hash")
    before, after = ([[ladder[name] for name in names] for ladder in each["ladders"]] for each in (earlier, now))
    had, has = (
        {(ladder["ladder"], p["x"], p["d"], p["u"]) for ladder in each["ladders"] for p in ladder["predictions"]}
        for each in (earlier, now)
    )
    runs, others = now["held_out_runs"], earlier["held_out_runs"]
    return (before == after and has <= had) and not any(
        changed_options(RunConfig(others[name]), RunConfig(runs[name])) for name in runs.keys() & others.keys()
    )
