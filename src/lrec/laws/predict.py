"""Predictions by the forecast or a law, and their comparison with the losses that runs then reach."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import polars as pl

from lrec.common.text_tables import counted
from lrec.errors import UserError
from lrec.laws.descent import Kind, Objective
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forecast import Forecast
from lrec.laws.intervals import Judged, Prediction, came
from lrec.laws.law import Law
from lrec.laws.loss_laws import law_named
from lrec.laws.mixture import LADDER
from lrec.laws.table import TooFewError, longest, naive, points_of_most_data

AHEAD = 10.0  # the outlook is for this many times the largest size
STEPS = 4  # steps of a roll-out over more than `LADDER` sizes; up to `LADDER` sizes are rolled out size by size

Predictor = Forecast | Fit  # has a name, its points, the columns of points that make a place, `predict` and `curve`


def method_named(name: str) -> Law | None:
    """A law by its name or class path; None for `forecast`."""
    return None if name == Forecast.name else law_named(name)


def predictor_of(method: Law | None, points: pl.DataFrame, objective: Objective | Kind = "huber") -> Predictor:
    """The law fitted to the points, or the forecast from them if there is no law."""
    return Forecast(points) if method is None else fit_points(method, points, objective)


@dataclass(frozen=True, kw_only=True)
class HeldOut(Judged, Prediction):
    """A predicted loss and the actual one. The half-width of the interval is in percent of the latter."""

    half_width_pct: float


@dataclass
class Comparison:
    """Predictions compared with the actual losses. The largest x is `extrapolation_factor` times the fitted. `mape` and
    `naive_mape` are the mean absolute errors of the predictions and of the no-gain baseline in percent."""

    points: tuple[HeldOut, ...]
    extrapolation_factor: float

    def __post_init__(self) -> None:
        self.mape = float(np.mean([abs(p.error_pct) for p in self.points]))
        self.naive_mape = float(np.mean([abs(p.naive_error_pct) for p in self.points]))
        self.inside = sum(p.inside for p in self.points)


def hold_out(points: pl.DataFrame, k: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split points into those of the smaller sizes and those of the k largest sizes."""
    sizes = points["x"].unique().sort()
    if not 0 <= k < len(sizes):
        way_out = f"use 0 to {len(sizes) - 1}" if len(sizes) > 1 else "add points of other sizes"
        raise UserError(f"--holdout: {k} of {counted(len(sizes), 'size')} cannot be held out; {way_out}")
    largest = pl.col("x").is_in(sizes.tail(k).implode())
    return points.filter(~largest), points.filter(largest)


def compare(predictor: Predictor, predictions: Sequence[Prediction], actual: pl.DataFrame) -> Comparison:
    """Join predictions with the later points at their places."""
    columns = predictor.columns
    known = ["u"] if "u" in actual.columns and "u" not in columns else []
    groups = actual.group_by(columns, maintain_order=True).agg(pl.col("y", *known).mean()).to_dicts()
    at = {tuple(float(group[name]) for name in columns): group for group in groups}
    points, no_gain = [], naive(predictor.points)
    for p in predictions:
        loss = float(at[p.at]["y"])
        judged = came(p, loss, no_gain(at[p.at]))
        points.append(HeldOut(**vars(p), **judged, half_width_pct=100 * (p.high - p.low) / 2 / loss))
    return Comparison(tuple(points), max(p.x for p in points) / float(predictor.points["x"].to_numpy().max()))


def tested(predictor: Predictor, later: pl.DataFrame) -> Comparison:
    """Predict the distinct places of later points, sorted by size, and compare."""
    places = later.select(predictor.columns).unique().sort(predictor.columns).to_numpy().astype(float)
    return compare(predictor, predictor.predict(places), later)


def holdout_report(
    method: Law | None, points: pl.DataFrame, k: int, objective: Objective | Kind = "huber"
) -> tuple[Predictor, Comparison | None]:
    """Predict the k largest sizes from the others, by a law or the forecast. If k is 0, there is no comparison."""
    small, large = hold_out(points, k)
    try:
        predictor = predictor_of(method, small, objective)
    except TooFewError as error:
        if not k:
            raise
        raise TooFewError(f"{error} or hold out fewer") from error
    return predictor, None if large.is_empty() else tested(predictor, large)


def roll_out(fitted_to: Callable[[pl.DataFrame], Predictor], points: pl.DataFrame) -> Comparison | None:
    """Predict each size (of many sizes, several per step) from all smaller ones; None if there are too few to fit."""
    steps = []
    for last, reach in pairwise(_edges(points["x"].unique().sort().to_list())):
        try:
            predictor = fitted_to(points.filter(pl.col("x") <= last))
        except UserError:  # too few sizes yet
            continue
        steps.append(tested(predictor, points.filter(pl.col("x").is_between(last, reach, "right"))))
    if not steps:
        return None
    farthest = max(step.extrapolation_factor for step in steps)
    return Comparison(tuple(point for step in steps for point in step.points), farthest)


def _edges(sizes: list[float]) -> list[float]:
    """The last size of each step of a roll-out: every size of a ladder, or of more sizes those at an even factor."""
    if len(sizes) <= LADDER:
        return sizes
    factor, edges = (sizes[-1] / sizes[0]) ** (1 / (STEPS + 1)), sizes[:1]
    for size in sizes:
        if size >= factor * edges[-1]:
            edges.append(size)
    return edges if edges[-1] == sizes[-1] else [*edges, sizes[-1]]


def outlook(predictor: Predictor, times: float = AHEAD) -> Prediction:
    """The loss at `times` the largest size, with the most data that this size had. It is never below the predictor's
    floor. If the loss `turns`, it is also not below the loss of the largest size."""
    largest, means = _reached(predictor)
    ahead = predictor.predict(np.array([[times * largest[0], *largest[1:]]]))[0]
    return above_floor(predictor, ahead, max(means[-1] / ahead.predicted, 1.0) if turns(predictor, ahead) else 1.0)


def above_floor(predictor: Predictor, expected: Prediction, rise: float = 1.0) -> Prediction:
    """A prediction with no loss below the predictor's floor, and with `rise` times all losses except the low ends."""
    losses = {name: loss for name, loss in vars(expected).items() if name not in ("x", "d", "u") and loss is not None}
    times = dict.fromkeys(losses, rise) | {"low": 1.0, "mean_low": 1.0}
    return replace(expected, **{name: max(times[name] * loss, predictor.floor) for name, loss in losses.items()})


def turns(predictor: Predictor, ahead: Prediction) -> bool:
    """Whether two sizes larger than the best size did worse, or a larger size is expected to be no better than the
    best: a loss that has risen may not fall again. A loss that fell more in the last step than in the one before
    continues to fall, even if it is now below the curve. The many, noisy losses of a long curve are taken in groups."""
    losses = np.array(_reached(predictor)[1])
    means = [group.mean() for group in np.array_split(losses, min(len(losses), LADDER))]
    falls = -np.diff(means)
    still_falls = len(falls) > 1 and falls[-1] > max(falls[-2], 0)
    return len(means) - int(np.argmin(means)) > 2 or (ahead.predicted >= min(means) and not still_falls)


def _reached(predictor: Predictor) -> tuple[tuple[float, ...], list[float]]:
    """The variables of the largest of the longest runs (of a forecast only those on the most data), and the mean loss
    of each size at its data, sorted by size."""
    points = predictor.points
    points = points_of_most_data(points) if isinstance(predictor, Forecast) else longest(points)
    means = points.group_by(predictor.columns).agg(pl.col("y").mean()).sort(predictor.columns).rows()
    largest = means[-1][:-1]
    return largest, [row[-1] for row in means if row[1:-1] == largest[1:]]
