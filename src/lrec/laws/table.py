"""The table that laws are fitted to: a Polars frame with a row per trained run.

    x           what is scaled: a size, an amount of data or FLOPs; positive
    y           the loss in nats; positive
    d, u        interactions processed, and unique interactions; d may be another count, such as unique interactions
    processed   interactions processed, even if d counts something else
    horizon     length as a share of the longest, if runs have several lengths; d is then the length at their end
    run         the run of the point; points of one run share its noise
    flops       training FLOPs
    wall_s      seconds that training took
    overfitted  whether the validation loss rose again after its best
    may_stop    whether the loss may stop falling at larger x: x counts data, or runs saw their data many times

x and y are required, and d and u for laws that depend on them. Other columns may have metrics (`metrics_in`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import polars as pl

from lrec.common.files import json_hash
from lrec.errors import UserError
from lrec.laws.law import Array

COLUMNS = "x", "y", "d", "u", "processed", "horizon", "run", "flops", "wall_s", "overfitted", "may_stop", "file", "row"

NARROWEST = 1.01  # if sizes span less than this factor, only rounding errors distinguish a power from a constant


class TooFewError(UserError):
    """There are too few sizes, or settings of several variables, for a law or a forecast."""


def check_places(method: str, place_NV: Array, variables: Sequence[str], least: int) -> None:
    """UserError if a method has fewer than `least` distinct places, or if all its sizes or data are nearly equal."""
    if (there := len(np.unique(place_NV, axis=0))) < least:
        places = "sizes" if len(variables) == 1 else f"settings of {', '.join(variables)}"
        few = f"needs at least {least} distinct {places}, but there are {there}"
        raise TooFewError(f"{method} {few}: add sizes")
    for what, column in zip(("sizes", "amounts of data"), place_NV.T, strict=False):
        if column.max() / column.min() < NARROWEST:
            alike = f"all are within {NARROWEST - 1:.0%} of {column.min():.6g}"
            raise UserError(f"{method} needs {what} that differ; {alike}")


def metrics_in(points: pl.DataFrame) -> list[str]:
    """The names of the points' metrics: all other columns with numbers."""
    return [name for name, kind in points.schema.items() if kind.is_numeric() and name not in COLUMNS]


def source_hash(points: pl.DataFrame, columns: Sequence[str] = ("x", "y")) -> str:
    """SHA-256 of the values used. It does not depend on the order of the points."""
    return json_hash(sorted([float(value) for value in row] for row in points.select(columns).iter_rows()))


def has_lengths(points: pl.DataFrame) -> bool:
    """Whether the points are of runs of several lengths."""
    return "horizon" in points.columns and points["horizon"].n_unique() > 1


def naive(points: pl.DataFrame) -> Callable[[Mapping[str, float | None]], float]:
    """The no-gain baseline by place: the loss of the best small model. Only models with no more unique data than the
    place count, or all if there are none. Data processed come second: a run that stopped early has a small D, that of
    its best epoch. If runs have several lengths, only those that are no larger and no longer than the place count."""
    lengths = has_lengths(points)

    @cache
    def means(*limits: str) -> tuple[Array, Array]:
        of_places = points.group_by({"x", *limits}).agg(pl.col("y").mean())
        return of_places.select(limits).to_numpy(), of_places["y"].to_numpy()

    def best(place: Mapping[str, float | None]) -> float:
        data = next((name for name in ("u", "d") if name in points.columns and place.get(name) is not None), None)
        limits = ["x", "d"] if lengths else [data] if data else []
        limit_NV, y_N = means(*limits)
        alike_N = (limit_NV <= np.array([place[name] or 0 for name in limits]) * (1 + 1e-9)).all(1)
        if lengths and not alike_N.any():  # the place is shorter or smaller than all runs
            alike_N = limit_NV[:, 1] == np.nanmin(limit_NV[:, 1])
        return float((y_N[alike_N] if alike_N.any() else y_N).min())

    return best


def longest(points: pl.DataFrame) -> pl.DataFrame:
    """The points of the longest runs, or all points if the runs do not have several lengths."""
    return points.filter(pl.col("horizon") == pl.col("horizon").max()) if has_lengths(points) else points


def points_of_most_data(points: pl.DataFrame) -> pl.DataFrame:
    """The longest runs, and of these the points with the most unique data, which a law of size alone describes. Unknown
    lengths or unique data leave no point out."""
    points = longest(points)
    known = "u" in points.columns and points["u"].null_count() == 0
    return points.filter(pl.col("u") == pl.col("u").max()) if known else points


def means_by_size(points: pl.DataFrame, name: str = "y") -> pl.DataFrame:
    """Each x, in order, and the mean of a column over its points with the most data that have it."""
    return points_of_most_data(points).drop_nulls(name).group_by("x").agg(pl.col(name).mean()).sort("x")


def flops_per_interaction(points: pl.DataFrame) -> Callable[[Array | float], Any]:
    """Training FLOPs per interaction as a function of N: 6 N + h N^g, or 6 N if the points do not determine h and g.
    The first term is for the matrices that N counts, forward and backward. The second term is fitted to the FLOPs of
    the points. It is for the rest: the item table, whose width grows with the body, and attention."""
    processed, h, g = "processed" if "processed" in points.columns else "d", 0.0, 0.0
    if {"flops", processed} <= set(points.columns):
        known = points.drop_nulls(["flops", processed])
        rest_N = (known["flops"] / known[processed] - 6 * known["x"]).to_numpy()
        if len(known) > 1 and (rest_N > 0).all() and known["x"].n_unique() > 1:
            g, log_h = np.polyfit(np.log(known["x"].to_numpy()), np.log(rest_N), 1)
            h = float(np.exp(log_h))
    return lambda size: 6 * np.asarray(size) + h * np.asarray(size) ** g
