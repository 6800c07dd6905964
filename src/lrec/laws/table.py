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

from collections.abc import Mapping, Sequence

import polars as pl

from lrec.common.files import json_hash

COLUMNS = (
    *("x", "y", "d", "u", "processed", "horizon", "run", "flops", "wall_s"),
    *("overfitted", "may_stop", "file", "row"),
)

NARROWEST = 1.01  # if sizes span less than this factor, only rounding errors distinguish a power from a constant


def metrics_in(points: pl.DataFrame) -> list[str]:
    """The names of the points' metrics: all other columns with numbers."""
    return [name for name, kind in points.schema.items() if kind.is_numeric() and name not in COLUMNS]


def source_hash(points: pl.DataFrame, columns: Sequence[str] = ("x", "y")) -> str:
    """SHA-256 of the values used. It does not depend on the order of the points."""
    return json_hash(sorted([float(value) for value in row] for row in points.select(columns).iter_rows()))


def has_lengths(points: pl.DataFrame) -> bool:
    """Whether the points are of runs of several lengths."""
    return "horizon" in points.columns and points["horizon"].n_unique() > 1


def naive(points: pl.DataFrame, place: Mapping[str, float | None]) -> float:
    """The no-gain baseline: the loss of the best small model.

    Only models with no more unique data than the place count, or all if there are none. If the points have no unique
    data, data processed are compared instead. These come second, because a run that stopped early has a small D, that
    of its best epoch. If runs have several lengths, only those that are no larger and no longer than the place count.
    """
    data = next((name for name in ("u", "d") if name in points.columns and place.get(name) is not None), None)
    limits = ["x", "d"] if has_lengths(points) else [data] if data else []
    means = points.group_by({"x", *limits}).agg(pl.col("y").mean())
    alike = means.filter(True, *(pl.col(name) <= (place[name] or 0) * (1 + 1e-9) for name in limits))
    if has_lengths(points) and alike.is_empty():  # the place is shorter or smaller than all runs
        alike = means.filter(pl.col("d") == pl.col("d").min())
    return float((means if alike.is_empty() else alike)["y"].to_numpy().min())


def points_of_most_data(points: pl.DataFrame) -> pl.DataFrame:
    """The longest runs, and of these the points with the most unique data, which a law of size alone describes. Unknown
    lengths or unique data leave no point out."""
    if has_lengths(points):
        points = points.filter(pl.col("horizon") == pl.col("horizon").max())
    if "u" not in points.columns or points["u"].null_count():
        return points
    return points.filter(pl.col("u") == pl.col("u").max())
