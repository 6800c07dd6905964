"""The findings of a backtest: the gain of size by age, and how much of the gain of training anew an update keeps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

import polars as pl

from lrec.backtest.options import Backtest, Update, network_of
from lrec.evaluation.standard_errors import mean_or_nan, paired, standard_error
from lrec.run import Point

METRIC = "NDCG@10"
CONFIDENCE, Z = "90 %", 1.6449
KEY = ["window", "user", "step"]
Tables = list[pl.DataFrame]  # tables of targets, one for each seed


@dataclass(frozen=True)
class Gain:
    """The difference of a mean from a base, on the same targets, with its standard error over users."""

    value: float
    error: float
    base: float

    @property
    def sign(self) -> int:
        """1 if the whole interval is a gain, -1 if the whole interval is a loss, else 0."""
        return int(self.value > Z * self.error) - int(self.value < -Z * self.error)

    @property
    def reached(self) -> float:
        return self.base + self.value

    def __str__(self) -> str:
        half = Z * self.error
        if self.base == 0:  # no share of nothing
            return f"{self.value:+.4f} ({self.value - half:+.4f} to {self.value + half:+.4f})"
        middle, half = 100 * self.value / self.base, 100 * half / self.base
        return f"{middle:+.1f} % ({middle - half:+.1f} to {middle + half:+.1f})"


def figures_of(table: pl.DataFrame) -> pl.DataFrame:
    """The targets with their HR@10, NDCG@10 and NDCG@10_unseen; a miss, whose rank is infinite, counts 0."""
    ranks = {METRIC: pl.col("rank"), f"{METRIC}_unseen": pl.col("rank_unseen")}
    ndcg = {name: pl.when(rank <= 10).then(1 / (1 + rank).log(2)).otherwise(0.0) for name, rank in ranks.items()}
    return table.with_columns((pl.col("rank") <= 10).cast(pl.Float64).alias("HR@10"), **ndcg)


def mean_of(tables: Tables, column: str) -> float:
    """The mean of a figure over targets that have it (nan if none has), then over seeds."""
    return mean(mean_or_nan(table[column].drop_nans().cast(pl.Float64)) for table in tables)


def summary_of(tables: Tables) -> dict[str, float]:
    """The number of targets and the means of their figures."""
    figures = ("loss", "HR@10", METRIC, f"{METRIC}_unseen")
    return {"targets": len(tables[0]), **{name: mean_of(tables, name) for name in figures}}


@dataclass(frozen=True)
class Findings:
    """From `served`: by variant, size and seed, a network's result, and how it ranks the windows after its origin."""

    backtest: Backtest
    served: Mapping[tuple[str, str, int], tuple[Point, pl.DataFrame]]

    def tables(self, size: str, tested: Sequence[tuple[str, int]]) -> Tables:
        """The targets of windows, each ranked by its network (`tested` has both) of a size; a table for each seed."""
        return [
            pl.concat([self.served[network, size, seed][1].filter(window=window) for network, window in tested])
            for seed in self.backtest.seeds
        ]

    @property
    def origins(self) -> list[int]:
        """The origins at which networks are trained anew."""
        return [*range(1, self.backtest.folds + 1)] if "full" in self.backtest.update else [1]

    @cached_property
    def by_age(self) -> dict[int, dict[str, Tables]]:
        """By age (the number of windows since the origin) and size: targets as networks trained anew rank them."""
        folds, found = self.backtest.folds, dict[int, dict[str, Tables]]()
        for age in range(folds):
            tested = [(network_of("full", k), k + age) for k in self.origins if k + age <= folds]
            found[age] = {size: self.tables(size, tested) for size in self.backtest.sizes}
        return found

    @cached_property
    def of_size(self) -> dict[int, Gain]:
        """The gain of the last size over the first one in NDCG@10, by age; empty if there is one size."""
        small, large = self.backtest.sizes[0], self.backtest.sizes[-1]
        if small == large:
            return {}
        return {
            age: Gain(*paired(tables[small], tables[large], METRIC), mean_of(tables[small], METRIC))
            for age, tables in self.by_age.items()
        }

    @cached_property
    def updates(self) -> list[dict[str, Any]]:
        """Each size and update over all windows but the first: the figures of the networks that serve, on targets that
        all updates have, and their shares of the gain of training anew over no update, and of its training seconds."""
        rows, later, seeds = list[dict[str, Any]](), range(2, self.backtest.folds + 1), self.backtest.seeds
        for size in self.backtest.sizes:
            tables, seconds = dict[Update, Tables](), {"none": 0.0}
            for update in self.backtest.update:
                tested = [(network_of(update, k), k) for k in later]
                tables[update] = self.tables(size, tested)
                if update != "none":
                    trained = [self.served[network, size, seed][0] for network, _ in tested for seed in seeds]
                    seconds[update] = sum(point.wall_s for point in trained) / len(seeds)
            # A network has no targets where no earlier item is in its catalogue.
            for common in [mine[0].select(KEY) for mine in tables.values()]:
                tables = {name: [each.join(common, KEY, "semi") for each in mine] for name, mine in tables.items()}
            for update, mine in tables.items():
                row = {"size": size, "update": update, **summary_of(mine), "seconds": seconds[update]}
                if update != "none" and {"none", "full"} <= set(tables):
                    row["gain_kept"], row["gain_kept_se"] = share_of_gain(tables["none"], mine, tables["full"])
                    row["cost"] = seconds[update] / seconds["full"]
                rows.append(row)
        return rows


def share_of_gain(none: Tables, own: Tables, full: Tables) -> tuple[float, float]:
    """(own - none) / (full - none) of the metric, and its standard error over users by the ratio's linear
    approximation; nan if full - none is not certainly above zero."""
    one, *others = (
        pl.concat(tables).group_by(KEY, maintain_order=True).agg(pl.col(METRIC).mean().alias(name))
        for name, tables in (("none", none), ("own", own), ("full", full))
    )
    for other in others:
        one = one.join(other, on=KEY, maintain_order="left")
    mine, whole = one["own"] - one["none"], one["full"] - one["none"]
    of_all = mean_or_nan(whole)
    if not of_all > Z * standard_error(one.select("user", whole=whole), "whole"):
        return math.nan, math.nan
    share = mean_or_nan(mine) / of_all
    above = one.select("user", above=mine - share * whole)
    return share, standard_error(above, "above") / abs(of_all)
