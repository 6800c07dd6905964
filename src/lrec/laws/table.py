"""The table that laws are fitted to: a Polars frame with a row per trained run.

    x           what is scaled: a size, an amount of data or FLOPs; positive
    y           the loss in nats; positive
    d, u        interactions processed and unique ones, for laws of them; d may be another count, as of unique ones
    processed   interactions processed, whatever d counts
    horizon     where runs of several lengths stand side by side, the share of the longest; d is then where they end
    run         points of one run share its noise
    flops       training FLOPs
    wall_s      seconds that training took
    overfitted  whether the validation loss rose again after its best
    may_stop    whether larger x may stop to pay: x counts data, or runs saw their data again and again

x and y are required; a law asks for d and u where it depends on them. Metrics may stand beside them (`metrics_in`).
"""

from collections.abc import Mapping, Sequence

import polars as pl

from lrec.common.files import json_hash

COLUMNS = (
    *("x", "y", "d", "u", "processed", "horizon", "run", "flops", "wall_s"),
    *("overfitted", "may_stop", "file", "row"),
)

NARROWEST = 1.01  # sizes that span less than this factor tell a power from a constant by rounding errors alone


def metrics_in(points: pl.DataFrame) -> list[str]:
    """The names of the points' metrics: all their other columns with numbers."""
    return [name for name, kind in points.schema.items() if kind.is_numeric() and name not in COLUMNS]


def source_hash(points: pl.DataFrame, columns: Sequence[str] = ("x", "y")) -> str:
    """SHA-256 of the values used, whatever the order of the points."""
    return json_hash(sorted([float(value) for value in row] for row in points.select(columns).iter_rows()))


def has_lengths(points: pl.DataFrame) -> bool:
    """Whether runs of several lengths stand side by side."""
    return "horizon" in points.columns and points["horizon"].n_unique() > 1


def naive(points: pl.DataFrame, place: Mapping[str, float | None]) -> float:
    """The loss of the best small model: what to expect where larger ones buy nothing.

    Of the small models that had no more unique data than the place has; of all where none had so little. Where the
    points do not know unique data, no more data processed: where they do, D is that of the best epoch, which one run
    that stopped early has little of. Where lengths are compared, of those that are no larger and no longer.
    """
    data = next((name for name in ("u", "d") if name in points.columns and place.get(name) is not None), None)
    limits = ["x", "d"] if has_lengths(points) else [data] if data else []
    means = points.group_by({"x", *limits}).agg(pl.col("y").mean())
    alike = means.filter(True, *(pl.col(name) <= (place[name] or 0) * (1 + 1e-9) for name in limits))
    if has_lengths(points) and alike.is_empty():  # shorter or smaller than all
        alike = means.filter(pl.col("d") == pl.col("d").min())
    return float((means if alike.is_empty() else alike)["y"].to_numpy().min())


def points_of_most_data(points: pl.DataFrame) -> pl.DataFrame:
    """The points with the most unique data, and of them the longest runs, which a law of size alone describes; all
    where that is unknown."""
    if has_lengths(points):
        points = points.filter(pl.col("horizon") == pl.col("horizon").max())
    if "u" not in points.columns or points["u"].null_count():
        return points
    return points.filter(pl.col("u") == pl.col("u").max())
