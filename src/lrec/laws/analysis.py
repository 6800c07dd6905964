"""The analysis of a table of points: a prediction, the fit of a law, held-out errors, roll-outs and a verdict in words.
fit.json, the reports and the figures show the results of an analysis. They do not analyse again."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from lrec.common.pages import rendered
from lrec.common.text_tables import rows_table
from lrec.errors import UserError
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forecast import Forecast
from lrec.laws.intervals import OUTLYING, Judged, Prediction
from lrec.laws.loss_laws import LAWS
from lrec.laws.metric_forecasts import judged_metrics
from lrec.laws.predict import AHEAD, Comparison, Predictor, outlook, predictor_of, roll_out, tested, turns
from lrec.laws.table import flops_per_interaction, has_lengths, points_of_most_data

DESCRIBES = "lsrm"  # a forecast also gets the fit of this law, which describes the points
FLOORLESS = ("lsrm", "kaplan")  # laws that are also compared without their floor, as in Kaplan et al.
FAILS = "does not hold"
"""The verdict says this if the best or the median loss of the small sizes is the better prediction of the held-out
sizes, or if too few held-out sizes are within their intervals."""
MOSTLY = 0.7  # a law or forecast holds fully only if at least this share of the held-out sizes is within the intervals
RISES_SHOWN = 4  # a warning lists the sizes of at most this many steps
LOOSE = 4.0  # an exponent, or R*, whose interval spans this factor is not identified


@dataclass(frozen=True)
class Method:
    """A law with its fixed parameters, or the forecast, compared with other methods on the same points."""

    name: str
    fit: Fit | None  # fit of a law to all but the held-out sizes; None for the forecast
    holdout_mape: float | None
    rollout: Comparison | None  # None if there were too few sizes


@dataclass(eq=False)
class Analysis:
    """A forecast or a fit of the small sizes, judged by its errors on the held-out sizes (`predict.holdout_report`).
    `of_all` is the same method, but from all points. `fit` describes the small sizes by a law; if a law was chosen, it
    is the predictor. `names` maps y, and those of the columns x, d and u that the predictor uses, to the caller's
    names. `metrics` has the predicted and actual metrics of the held-out sizes by name."""

    predictor: Predictor
    holdout: Comparison | None
    points: pl.DataFrame  # all points, including the held-out ones
    names: Mapping[str, str]
    with_others: InitVar[bool] = True  # whether the predictor is compared with laws of the same variables
    floor: InitVar[float | None] = None

    def __post_init__(self, with_others: bool, floor: float | None) -> None:
        predictor, holdout, points, x = self.predictor, self.holdout, self.points, self.names["x"]
        self.of_all, self.names = predictor, {column: self.names[column] for column in (*predictor.columns, "y")}
        largest = points_of_most_data(predictor.points)
        self.fit = predictor if isinstance(predictor, Fit) else fit_points(LAWS[DESCRIBES], largest)
        is_law, self.unidentified = self.fit is predictor, unidentified(predictor)
        self.warnings = warnings(self.fit, holdout, is_law, x)
        if holdout:
            self.of_all = predictor_of(self.fit.law if is_law else None, points, self.fit.problem.objective)
        self.methods = compare_methods(predictor, self.fit, holdout, points) if with_others else []
        self.of_all.floor = floor or 0.0
        self.outlook = outlook(self.of_all)
        self.verdict = verdict(predictor, holdout, self.methods, self.outlook, x)
        self.metrics = {} if holdout is None else judged_metrics(predictor.points, holdout.points, points)

    def tested(self, metric: str) -> list[Judged]:
        """The predicted and actual metric of the held-out sizes. If runs have several lengths, only of the longest."""
        judged = self.metrics.get(metric, ())
        most = max((each.d or 0 for each in judged), default=0) if has_lengths(self.points) else 0
        return [each for each in judged if (each.d or 0) >= most]


def compare_methods(predictor: Predictor, fit: Fit, holdout: Comparison | None, points: pl.DataFrame) -> list[Method]:
    """Roll out the predictor and every law of the same variables that can be fitted. The best method is the first. A
    law of size, data and unique data is also compared with laws of size and data. Progress goes to stderr."""
    found = []
    if isinstance(predictor, Forecast):
        found.append(Method(predictor.name, None, holdout.mape if holdout else None, roll_out(Forecast, points)))
        points = points_of_most_data(points)
    held_out = pl.col("x") > predictor.points["x"].max()
    small, large = points.filter(~held_out), points.filter(held_out)
    n = len(fit.law.variables)
    alike = [law for law in (LAWS | {fit.law.name: fit.law}).values() if min(n, 2) <= len(law.variables) <= n]
    floors: tuple[Mapping[str, float], ...] = ({}, {"E": 0.0})
    for law, fixed in [(law, fixed) for law in alike for fixed in floors if not fixed or law.name in FLOORLESS]:
        name = f"{law.name}, E = 0" if fixed else law.name
        if len(law.variables) > 1:
            print(f"rolling out {name}", file=sys.stderr, flush=True)
        fitted_to = partial(fit_points, law, objective=fit.problem.objective, fixed=fixed)
        try:
            fitted = fitted_to(small)
        except UserError:  # too few settings for the law's parameters
            continue
        missed = tested(fitted, large).mape if len(large) else None
        found.append(Method(name, fitted, missed, roll_out(fitted_to, points)))
    return sorted(found, key=lambda method: np.inf if method.rollout is None else method.rollout.mape)


def doublings(forecast: Forecast, x: str) -> list[str]:
    """The expected losses for twice the size, run and both, and the cheapest way down; nothing without lengths."""
    if forecast.columns != ("x", "d"):
        return []
    points = forecast.points
    size, length = (float(points[name].to_numpy().max()) for name in ("x", "d"))
    again = "u" in points.columns and length > 1.001 * float(points["u"].to_numpy().max())
    longer_run = "twice the passes" if again else "twice the data"
    times = {"the same": (1, 1), f"twice {x}": (2, 1), longer_run: (1, 2), "both": (2, 2)}
    flops = flops_per_interaction(points)
    rows = [["compared with the largest", "loss", "90 % low", "90 % high", "fall", "FLOPs"]]
    per_flop: dict[str, float] = {}
    here, _, longer, _ = predictions = forecast.predict(np.array([*times.values()]) * [size, length])
    if turns(forecast, outlook(forecast)):  # as in the outlook, size brings nothing
        predictions = [here, here, longer, longer]
    for (name, (larger, more)), p in zip(times.items(), predictions, strict=True):
        cost, fall = float(more * flops(larger * size) / flops(size)), here.predicted - p.predicted
        rows.append([name, *(f"{loss:.4f}" for loss in (p.predicted, p.low, p.high)), f"{fall:.4f}", f"{cost:.2f}"])
        if cost > 1:
            per_flop[name] = fall / (cost - 1)
    best, falls = max(per_flop, key=per_flop.__getitem__), max(per_flop.values()) > 0
    largest = f"The largest fall of the loss per FLOP is expected from {best}."
    cheapest = largest if falls else "None of them is expected to lower the loss."
    return ["### Twice as much of size and data", rows_table(rows, text=(0,)), cheapest]


def rises(points: pl.DataFrame, columns: Sequence[str]) -> str:
    """The steps from one size to the next, at the same data, over which the mean loss rises, in words."""
    size, *data = columns
    means = points.group_by(columns).agg(pl.col("y").mean()).sort(*data, size)
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in data) if data else pl.lit(True)
    rise = means.with_columns(before=pl.col(size).shift()).filter(same & (pl.col("y") > pl.col("y").shift()))
    steps = rise.select("before", size).rows()
    some = ", ".join(f"{small:.4g} to {large:.4g}" for small, large in dict.fromkeys(steps[:RISES_SHOWN]))
    return some if len(steps) <= RISES_SHOWN else f"{some} and in {len(steps) - RISES_SHOWN} more steps"


def unidentified(fit: Predictor) -> list[str]:
    """Parameters that ended on a bound, and exponents whose interval spans `LOOSE` times or reaches a bound."""
    if not isinstance(fit, Fit):
        return []
    hits, k = fit.diagnostics.bound_hits, fit.law.n_coefficients
    (low_H, high_H), (least_H, most_H) = fit.profile.shape_ends, (fit.problem.low_T[k:], fit.problem.high_T[k:])
    loose_H = (high_H - low_H >= np.log(LOOSE)) | (low_H <= least_H + 1e-3) | (high_H >= most_H - 1e-3)
    names = np.array(fit.law.parameters[k:])[loose_H & (least_H < most_H)].tolist()
    return [*hits, *(name for name in names if name not in (*hits, *fit.law.tied))]


def warnings(fit: Fit, holdout: Comparison | None, predicts: bool = True, x: str = "x") -> list[str]:
    """Warnings from the points, whose x is named `x`, and, if the fit `predicts`, its search and held-out sizes."""
    points, shown = fit.points, dict[str, Any](rises=rises(fit.points, fit.columns), n_columns=len(fit.columns), x=x)
    shown |= {"n_sizes": points["x"].n_unique(), "n": len(points), "hits": (), "loose": {}, "off": 0, "holdout": None}
    shown["overfitted"] = int(points["overfitted"].sum()) if "overfitted" in points.columns else 0
    if predicts:
        hits, ends = fit.diagnostics.bound_hits, fit.profile.parameters
        shown |= {"hits": hits, "loose": {name: ends[name] for name in unidentified(fit)[len(hits) :]}}
        shown |= {"off": fit.profile.outliers, "far": 2 * OUTLYING, "holdout": holdout}
    return rendered("laws", "warnings.md.j2", shown).splitlines()


def verdict(
    predictor: Predictor, holdout: Comparison | None, methods: Sequence[Method], ahead: Prediction, x: str
) -> list[str]:
    """Sentences on the held-out sizes, the `outlook`, the roll-outs, and the parameters that are `unidentified`."""
    sizes_N, y_N = predictor.points.select("x", "y").to_numpy().T
    later = [] if holdout is None else [(p.x, p.actual) for p in holdout.points]
    every = pl.DataFrame([*predictor.points.select("x", "y").rows(), *later], schema=["x", "y"], orient="row")
    rolled, fitted = [method for method in methods if method.rollout], [method for method in methods if method.fit]
    shown: dict[str, Any] = {"x": x, "ahead": ahead, "times": AHEAD, "fails": FAILS, "mostly": MOSTLY}
    shown |= {"holdout": holdout, "decades": np.log10(sizes_N.max() / sizes_N.min())}
    if holdout is not None:
        shown["reached"] = shown["decades"] + np.log10(holdout.extrapolation_factor)
        # A single loss that is far too low makes the no-gain baseline, which expects this loss, as bad as the forecast.
        shown["median_mape"] = np.mean([abs(100 * (np.median(y_N) / actual - 1)) for _, actual in later])
    shown["what"] = "law" if isinstance(predictor, Fit) else predictor.name
    shown["rises"] = rises(every, ["x"]) if len(predictor.columns) == 1 else ""
    shown["rolled"] = next((method.rollout for method in methods if method.name == predictor.name), None)
    if len(rolled) > 1:
        shown |= {"best": rolled[0].name, "by_bic": min(fitted, key=lambda method: method.fit.bic).name}  # type: ignore[union-attr]
    return rendered("laws", "verdict.md.j2", shown | {"unsure": unidentified(predictor)}).splitlines()
