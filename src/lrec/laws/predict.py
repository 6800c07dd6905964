"""Predictions of the forecast or of a law, before and after the truth is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from lrec.errors import UserError
from lrec.laws.descent import Kind, Objective
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forecast import Forecast
from lrec.laws.intervals import Prediction, came
from lrec.laws.law import Array, Law
from lrec.laws.loss_laws import law_named
from lrec.laws.mixture import LADDER
from lrec.laws.table import naive

STEPS = 4  # of a roll-out over a table of more than `LADDER` sizes; up to so many are rolled out size by size

Predictor = Forecast | Fit
"""Has a name, the points it rests on, the columns of points that make a place, `predict` and `curve`."""


def method_named(name: str) -> Law | None:
    """A law by its name or class path; None for `forecast`."""
    return None if name == Forecast.name else law_named(name)


def predictor_of(method: Law | None, points: pl.DataFrame, objective: Objective | Kind = "huber") -> Predictor:
    """The law fitted to the points, or, without one, the forecast from them."""
    return Forecast(points) if method is None else fit_points(method, points, objective)


@dataclass(frozen=True)
class HeldOut(Prediction):
    """A prediction and what came, the mean over runs at x; `inside` refers to the interval of a new run.

    Errors and half-width are in percent of the actual loss; naive is "as good as the best small model".
    """

    actual: float = np.nan
    error_pct: float = np.nan
    naive_error_pct: float = np.nan
    half_width_pct: float = np.nan
    inside: bool = False


@dataclass(frozen=True)
class Comparison:
    """Predictions beside what came."""

    points: tuple[HeldOut, ...]

    @property
    def mape(self) -> float:
        return float(np.mean([abs(p.error_pct) for p in self.points]))

    @property
    def naive_mape(self) -> float:
        """That of "as good as the best small model"."""
        return float(np.mean([abs(p.naive_error_pct) for p in self.points]))

    @property
    def inside(self) -> int:
        return sum(p.inside for p in self.points)


@dataclass(frozen=True)
class Holdout(Comparison):
    """The held-out sizes of a fit, the largest of them `extrapolation_factor` times the largest fitted."""

    extrapolation_factor: float


def hold_out(points: pl.DataFrame, k: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split points into those of all but the k largest sizes and the rest."""
    sizes = points["x"].unique().sort()
    if not 0 <= k < len(sizes):
        raise UserError(f"--holdout: {k} of {len(sizes)} sizes cannot be held out; use 0 to {len(sizes) - 1}")
    largest = pl.col("x").is_in(sizes.tail(k).implode())
    return points.filter(~largest), points.filter(largest)


def compare(predictor: Predictor, predictions: Sequence[Prediction], actual: pl.DataFrame) -> Holdout:
    """Join predictions with the points that came later; UserError where one did not come, or none was made."""
    columns = predictor.columns
    known = ["u"] if "u" in actual.columns and "u" not in columns else []
    groups = actual.group_by(columns, maintain_order=True).agg(pl.col("y", *known).mean()).to_dicts()
    at = {tuple(float(group[name]) for name in columns): group for group in groups}
    if not predictions:
        raise UserError("held-out report: there is no prediction to compare")
    points, best = [], {}
    for p in predictions:
        if p.at not in at:
            raise UserError(
                f"held-out report: no finished run at the predicted size {', '.join(f'{v:g}' for v in p.at)}"
            )
        group = at[p.at]
        loss, data = float(group["y"]), (group.get("d"), group.get("u"))
        if data not in best:
            best[data] = naive(predictor.points, group)
        judged = came(p.low, p.predicted, p.high, loss, best[data])
        points.append(HeldOut(**vars(p), **judged, half_width_pct=100 * (p.high - p.low) / 2 / loss))
    return Holdout(tuple(points), max(p.x for p in points) / float(predictor.points["x"].to_numpy().max()))


def settings(columns: Sequence[str], points: pl.DataFrame) -> Array:
    """The distinct places among points, a row each, by size."""
    return points.select(columns).unique().sort(columns).to_numpy().astype(float)


def holdout_report(
    method: Law | None, points: pl.DataFrame, k: int, objective: Objective | Kind = "huber"
) -> tuple[Predictor, Holdout | None]:
    """Predict the k largest sizes from the others, by a law or the forecast; without a comparison if k is 0."""
    small, large = hold_out(points, k)
    predictor = predictor_of(method, small, objective)
    if large.is_empty():
        return predictor, None
    return predictor, compare(predictor, predictor.predict(settings(predictor.columns, large)), large)


def roll_out(fitted_to: Callable[[pl.DataFrame], Predictor], points: pl.DataFrame) -> Comparison | None:
    """Predict each size, of many sizes the next ones, from all smaller ones; None if there are too few to fit."""
    steps: list[HeldOut] = []
    for last, reach in pairwise(_edges(points["x"].unique().sort().to_list())):
        small = points.filter(pl.col("x") <= last)
        following = points.filter(pl.col("x").is_between(last, reach, "right"))
        try:
            predictor = fitted_to(small)
        except UserError:  # too few sizes yet
            continue
        steps += compare(predictor, predictor.predict(settings(predictor.columns, following)), following).points
    return Comparison(tuple(steps)) if steps else None


def _edges(sizes: list[float]) -> list[float]:
    """Where a roll-out pauses: at every size of a ladder, or at those that follow on each other by an even factor."""
    if len(sizes) <= LADDER:
        return sizes
    factor, edges = (sizes[-1] / sizes[0]) ** (1 / (STEPS + 1)), sizes[:1]
    for size in sizes:
        if size >= factor * edges[-1]:
            edges.append(size)
    return edges if edges[-1] == sizes[-1] else [*edges, sizes[-1]]
