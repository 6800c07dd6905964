"""Standard errors of mean losses for a random sample of users, and of differences paired over users."""

import math

import polars as pl


def mean_or_nan(values: pl.Series) -> float:
    """The mean; nan if there are no values."""
    return float(values.to_numpy().mean()) if len(values) else math.nan


def standard_error(losses: pl.DataFrame, column: str = "loss") -> float:
    """Standard error of the mean over rows: sqrt(sum over users of (sum of deviations from the mean)²) / rows; nan if
    there are no rows."""
    if losses.is_empty():
        return math.nan
    above = losses.select("user", above=pl.col(column) - pl.col(column).mean())
    # maintain_order, because the last digit of the sum depends on the order.
    by_user = above.group_by("user", maintain_order=True).sum()["above"].to_numpy()
    return math.sqrt(float(by_user @ by_user)) / len(losses)


def paired(small: list[pl.DataFrame], large: list[pl.DataFrame], column: str = "loss") -> tuple[float, float]:
    """The mean difference in a figure (by default the loss), large size minus small size, on the same targets, and its
    standard error paired over users. Each size has a table for every seed; seeds are averaged. Targets of a user with
    the same step have the same order in every table."""
    number, target = pl.int_range(pl.len()).over("user", "step"), ["user", "step", "number"]
    one, other = (
        pl.concat([table.with_columns(number=number) for table in tables])
        .group_by(target, maintain_order=True)
        .agg(pl.col(column).mean())
        for tables in (small, large)
    )
    both = one.join(other, on=target, suffix="_large", maintain_order="left")
    difference = both.select("user", difference=pl.col(f"{column}_large") - pl.col(column))
    return mean_or_nan(difference["difference"]), standard_error(difference, "difference")
