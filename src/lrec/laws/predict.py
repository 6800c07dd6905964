"""Predictions of a fitted law, before and after the truth is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from lrec.errors import UserError
from lrec.laws.fit import Fit, fit_points
from lrec.laws.law import Array, Law
from lrec.laws.objective import Kind, Objective
from lrec.laws.profile import Prediction


@dataclass(frozen=True)
class HeldOut(Prediction):
    """A prediction and what came: `actual` is the mean over runs at x, `inside` refers to the interval of a new run.

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
        """Mean absolute percentage error of the law."""
        return float(np.mean([abs(p.error_pct) for p in self.points]))

    @property
    def naive_mape(self) -> float:
        """That of "as good as the best small model"."""
        return float(np.mean([abs(p.naive_error_pct) for p in self.points]))

    @property
    def inside(self) -> int:
        """How many were inside the interval of a new run."""
        return sum(p.inside for p in self.points)


@dataclass(frozen=True)
class Holdout(Comparison):
    """The held-out sizes of a fit, the largest of them `extrapolation_factor` times the largest fitted."""

    extrapolation_factor: float


def predict(fit: Fit, x: Sequence[float] | Array) -> list[Prediction]:
    """The loss at each x, with the 90 % intervals of the mean curve and of a new run."""
    return fit.profile.predict(x)


def hold_out(points: pl.DataFrame, k: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split points (a table as `laws.points` has it) into those of all but the k largest sizes and the rest."""
    sizes = points["x"].unique().sort()
    if not 0 <= k < len(sizes):
        raise UserError(f"--holdout: {k} of {len(sizes)} sizes cannot be held out; use 0 to {len(sizes) - 1}")
    largest = sizes.tail(k).implode()
    return points.filter(~pl.col("x").is_in(largest)), points.filter(pl.col("x").is_in(largest))


def naive(points: pl.DataFrame, place: Mapping[str, float | None]) -> float:
    """The loss of the best small model: what to expect where larger ones buy nothing.

    Of the small models that had no more unique data than the place has; of all where none had so little. Where the
    points do not know unique data, no more data processed: where they do, D is that of the best epoch, which one run
    that stopped early has little of.
    """
    data = next((name for name in ("u", "d") if name in points.columns and place.get(name) is not None), None)
    settings = ["x"] if data is None else ["x", data]
    means = points.group_by(settings).agg(pl.col("y").mean())
    alike = means if data is None else means.filter(pl.col(data) <= (place[data] or 0) * (1 + 1e-9))
    return float((means if alike.is_empty() else alike)["y"].min())  # type: ignore[arg-type]


def compare(fit: Fit, predictions: Sequence[Prediction], actual: pl.DataFrame) -> Holdout:
    """Join predictions made from `fit` with the points that came later.

    Raises:
        UserError: a prediction without an actual value, or no prediction at all.
    """
    columns = fit.law.columns
    known = [name for name in ("u",) if name in actual.columns and name not in columns]
    groups = actual.group_by(columns, maintain_order=True).agg(pl.col("y", *known).mean()).to_dicts()
    came = {tuple(float(group[name]) for name in columns): group for group in groups}
    if not predictions:
        raise UserError("held-out report: there is no prediction to compare")
    points = []
    for p in predictions:
        if p.at not in came:
            raise UserError(
                f"held-out report: no finished run at the predicted size {', '.join(f'{v:g}' for v in p.at)}"
            )
        loss = float(came[p.at]["y"])
        points.append(
            HeldOut(
                **vars(p),
                actual=loss,
                error_pct=100 * (p.predicted / loss - 1),
                naive_error_pct=100 * (naive(fit.points, came[p.at]) / loss - 1),
                half_width_pct=100 * (p.high - p.low) / 2 / loss,
                inside=p.low <= loss <= p.high,
            )
        )
    return Holdout(tuple(points), max(p.x for p in points) / float(fit.x_N.max()))


def settings(law: Law, points: pl.DataFrame) -> Array:
    """The distinct settings of the law's variables among points, a row each, by size."""
    return points.select(law.columns).unique().sort(law.columns).to_numpy().astype(float)


def holdout_report(
    law: Law, points: pl.DataFrame, k: int, objective: Objective | Kind = "huber"
) -> tuple[Fit, Holdout | None]:
    """Fit all but the k largest sizes and compare the rest with its predictions; None if k is 0."""
    small, large = hold_out(points, k)
    fitted = fit_points(law, small, objective)
    if large.is_empty():
        return fitted, None
    return fitted, compare(fitted, predict(fitted, settings(law, large)), large)
