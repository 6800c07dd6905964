"""The forecast and laws put to the test: rolled out over the sizes, side by side."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from lrec.errors import UserError
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forecast import Forecast
from lrec.laws.forms import LAWS
from lrec.laws.law import Law
from lrec.laws.points import points_of_most_data
from lrec.laws.predict import Comparison, HeldOut, Holdout, Predictor, compare, hold_out, settings

FLOORLESS = ("lsrm", "kaplan")
"""Laws that are compared without their floor too, as Kaplan et al. have it."""

STEPS, LADDER = 4, 12
"""Steps of a roll-out over a table of more than `LADDER` sizes; up to so many are rolled out size by size."""


@dataclass(frozen=True)
class Rival:
    """A law, or the forecast, beside others of the same points.

    Attributes:
        name: forecast, or the law and what is fixed in it.
        fit: Of all but the held-out sizes. Its BIC and AICc compare laws of one table only: the lower the better,
            differences below about 2 meaning nothing. None for the forecast, which is no law.
        holdout_mape: Mean absolute percentage error on the held-out sizes, None where there are none.
    """

    name: str
    fit: Fit | None
    holdout_mape: float | None
    rollout: Comparison | None


def roll_out(made_of: Callable[[pl.DataFrame], Predictor], points: pl.DataFrame) -> Comparison | None:
    """Predict each size from all smaller ones; None if there are too few to fit.

    A table of many sizes takes `STEPS` steps of one factor.

    Args:
        made_of: From points to a predictor; it raises UserError where there are too few.
        points: A table as `laws.points` has it.
    """
    steps: list[HeldOut] = []
    for last, reach in pairwise(_edges(points["x"].unique().sort().to_list())):
        small = points.filter(pl.col("x") <= last)
        following = points.filter(pl.col("x").is_between(last, reach, "right"))
        try:
            predictor = made_of(small)
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


def rivals(predictor: Predictor, fit: Fit, holdout: Holdout | None, points: pl.DataFrame) -> list[Rival]:
    """The predictor, its law and every other of the same variables, rolled out, the best first.

    Laws that cannot be fitted are left out. Where the law is one of size, data and unique data, those of size and data
    alone are among them. Progress of laws of several variables goes to stderr.

    Args:
        predictor: The forecast, or the fit itself.
        fit: Of the law to the small sizes.
        holdout: What became of the predictions, None where nothing is held out.
        points: All points, held-out ones included.
    """
    held_out = 0 if holdout is None else len({p.x for p in holdout.points})
    found = []
    if isinstance(predictor, Forecast):
        met = None if holdout is None else holdout.mape
        found.append(Rival(predictor.name, None, met, roll_out(Forecast, points)))
        points = points_of_most_data(points)
    small, large = hold_out(points, held_out)
    for law, fixed in _of_the_same_variables(fit.law):
        name = ", ".join([law.name, *(f"{parameter} = {value:g}" for parameter, value in (fixed or {}).items())])
        if len(law.variables) > 1:
            print(f"rolling out {name}", file=sys.stderr, flush=True)
        known = fit if law is fit.law and not fixed else None

        def made_of(smallest: pl.DataFrame, law: Law = law, fixed: Any = fixed, known: Fit | None = known) -> Fit:
            again = known is not None and known.points.equals(smallest)
            return known if known is not None and again else fit_points(law, smallest, fit.objective, fixed)

        try:
            fitted = made_of(small)
        except UserError:  # too few settings for so many parameters
            continue
        came = compare(fitted, fitted.predict(settings(law.columns, large)), large) if held_out else None
        found.append(Rival(name, fitted, None if came is None else came.mape, roll_out(made_of, points)))
    return sorted(found, key=lambda rival: np.inf if rival.rollout is None else rival.rollout.mape)


def _of_the_same_variables(law: Law) -> list[tuple[Law, Mapping[str, float] | None]]:
    """Laws to compare, each with what is fixed in it."""
    fewest, most = min(len(law.variables), 2), len(law.variables)
    alike = [other for other in (LAWS | {law.name: law}).values() if fewest <= len(other.variables) <= most]
    return [
        (other, fixed) for other in alike for fixed in (None, {"E": 0.0}) if fixed is None or other.name in FLOORLESS
    ]
