"""Standard errors of mean losses, users being drawn, and of differences paired over users."""

import math

import polars as pl


def standard_error(losses: pl.DataFrame, column: str = "loss") -> float:
    """Of the mean over all rows, users being drawn: sqrt(sum over users of (sum of what is above the mean)²) / rows."""
    above = losses.select("user", above=pl.col(column) - pl.col(column).mean())
    # In order: the last digit of the sum depends on it.
    by_user = above.group_by("user", maintain_order=True).sum()["above"].to_numpy()
    return math.sqrt(float(by_user @ by_user)) / len(losses)


def paired(small: list[pl.DataFrame], large: list[pl.DataFrame], column: str = "loss") -> tuple[float, float]:
    """How much a figure of the targets, their loss by default, differs between the large size and the small one on the
    same targets, and its standard error paired over users. Each has a table for every seed; seeds are averaged."""
    one, other = (
        pl.concat(tables).group_by("user", "step", maintain_order=True).agg(pl.col(column).mean())
        for tables in (small, large)
    )
    both = one.join(other, on=["user", "step"], suffix="_large", maintain_order="left")
    difference = both.select("user", difference=pl.col(f"{column}_large") - pl.col(column))
    return float(difference["difference"].to_numpy().mean()), standard_error(difference, "difference")
