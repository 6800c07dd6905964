"""A law put to the test: rolled out over the sizes, and beside other laws of the same variables."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from lrec.errors import UserError
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forms import LAWS
from lrec.laws.law import Law
from lrec.laws.objective import Kind, Objective
from lrec.laws.predict import Comparison, HeldOut, Holdout, compare, hold_out, predict, settings

FLOORLESS = ("lsrm", "kaplan")
"""Laws that are compared without their floor too, as Kaplan et al. have it."""


STEP = 1.5
"""The factor from one step of a roll-out to the next, at least."""


@dataclass(frozen=True)
class Rival:
    """A law beside others of the same points.

    Attributes:
        name: The law, and what is fixed in it.
        fit: Of all but the held-out sizes. Its BIC and AICc compare laws of one table only: the lower the better,
            differences below about 2 meaning nothing.
        holdout_mape: Mean absolute percentage error on the held-out sizes, None where there are none.
    """

    name: str
    fit: Fit
    holdout_mape: float | None
    rollout: Comparison | None


def roll_out(
    law: Law,
    points: pl.DataFrame,
    objective: Objective | Kind = "huber",
    fixed: Mapping[str, float] | None = None,
    known: Fit | None = None,
) -> Comparison | None:
    """Fit the smallest sizes and predict the next, for ever more sizes; None where none leave enough to fit.

    Each step is one of a factor of `STEP` at least, to the next size or beyond: a table of 200 sizes has no more steps
    than a ladder over as many decades.

    Args:
        law: The law.
        points: A table as `laws.points` has it.
        objective: As for `fit_points`.
        fixed: As for `fit_points`.
        known: The fit of some of the smallest, so that it is not made again.
    """
    steps: list[HeldOut] = []
    for last, reach in pairwise(_edges(points["x"].unique().sort().to_list())):
        small = points.filter(pl.col("x") <= last)
        following = points.filter(pl.col("x").is_between(last, reach, "right"))
        try:
            fitted = known if known and known.points.equals(small) else fit_points(law, small, objective, fixed)
        except UserError:  # too few sizes yet
            continue
        steps += compare(fitted, predict(fitted, settings(law, following)), following).points
    return Comparison(tuple(steps)) if steps else None


def _edges(sizes: list[float]) -> list[float]:
    """The smallest size, and ever the next one that is `STEP` times as large; at the end the largest."""
    edges = [sizes[0]]
    for size in sizes:
        if size >= STEP * edges[-1]:
            edges.append(size)
    return edges if edges[-1] == sizes[-1] else [*edges, sizes[-1]]


def rivals(fit: Fit, holdout: Holdout | None, points: pl.DataFrame) -> list[Rival]:
    """The law and every other of the same variables, fitted and rolled out, the best rolled out first.

    Laws that cannot be fitted are left out. Where the law is one of size, data and unique data, those of size and data
    alone are among them. Laws of several variables take seconds to minutes, so progress goes to stderr.

    Args:
        fit: The fit of the small sizes.
        holdout: What became of its predictions, None where nothing is held out.
        points: All points, held-out ones included.
    """
    _, large = hold_out(points, 0 if holdout is None else len({p.x for p in holdout.points}))
    found = []
    for law, fixed in _of_the_same_variables(fit.law):
        name = ", ".join([law.name, *(f"{parameter} = {value:g}" for parameter, value in (fixed or {}).items())])
        if len(law.variables) > 1:
            print(f"rolling out {name}", file=sys.stderr, flush=True)
        fitted, met = fit, holdout
        if law is not fit.law or fixed:
            try:
                fitted = fit_points(law, fit.points, fit.objective, fixed)
            except UserError:  # too few settings for so many parameters
                continue
            met = None if holdout is None else compare(fitted, predict(fitted, settings(law, large)), large)
        rolled = roll_out(law, points, fit.objective, fixed, known=fitted)
        found.append(Rival(name, fitted, None if met is None else met.mape, rolled))
    return sorted(found, key=lambda rival: np.inf if rival.rollout is None else rival.rollout.mape)


def _of_the_same_variables(law: Law) -> list[tuple[Law, Mapping[str, float] | None]]:
    """Laws to compare, each with what is fixed in it."""
    fewest, most = min(len(law.variables), 2), len(law.variables)
    alike = [other for other in (LAWS | {law.name: law}).values() if fewest <= len(other.variables) <= most]
    return [
        (other, fixed) for other in alike for fixed in (None, {"E": 0.0}) if fixed is None or other.name in FLOORLESS
    ]
