"""Forecasts of metrics at larger sizes: HR@10, NDCG@10, or your own metric.

The odds of a miss, (1 - m)/m for a metric m, are forecast twice as if they were a loss: from the size, and from the
loss that is forecast for the size, because bad runs are farther from the first curve than from the second. The forecast
is the mean of both in ln odds, and its interval spans both intervals. Nothing is tuned here: the constants are those
of curves of losses. If no measured network has better lists of all items than of unseen items, because users hardly
ever have an item twice, then the forecast for all items is no better than the one for unseen items. Results on
measured ladders, and other methods that were tried: benchmarks/metric_forecasts.md.

Shapes: N points, P places, C curves.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl

from lrec.errors import UserError
from lrec.laws.forecast import Beliefs, Forecast
from lrec.laws.intervals import Expected, Judged, Prediction, came
from lrec.laws.law import Array
from lrec.laws.table import has_lengths, longest, means_by_size, metrics_in, points_of_most_data

# Metrics that are better if higher. Another metric is better if lower only if it falls when the loss falls.
RISING = ("HR@", "NDCG@", "MRR@", "recall@", "micro_recall@", "precision@", "MAP@")
# Metrics flatten less than losses do: with the same data for all sizes, as without (benchmarks/metric_forecasts.md).
OF_METRICS = Beliefs(size_damping=Beliefs.steady_damping)
FARTHEST = 20.0  # limit of |ln size| that a loss counts as; it matters if the known losses are nearly equal


def expected_metrics(
    points: pl.DataFrame, losses: Sequence[Prediction], names: Sequence[str] | None = None
) -> dict[str, list[Expected]]:
    """The expected metrics, all or those in `names`, at the places of losses; without those of too few sizes."""
    found = {}
    expected = cache(lambda metric: _expected(points, metric, losses))
    for metric in (name for name in metrics_in(points) if names is None or name in names):
        with suppress(UserError):
            found[metric] = expected(metric)
            unseen = f"{metric}_unseen" if metric.startswith(RISING) else ""
            if unseen in points.columns and (points[metric] <= points[unseen]).all():
                found[metric] = [_at_most(*each) for each in zip(found[metric], expected(unseen), strict=True)]
    return found


def _at_most(each: Expected, limit: Expected) -> Expected:
    middle = min(each.predicted, limit.predicted)
    return replace(each, predicted=middle, low=min(each.low, middle), high=max(min(each.high, limit.high), middle))


def judged_metrics(fitted: pl.DataFrame, losses: Sequence[Prediction], later: pl.DataFrame) -> dict[str, list[Judged]]:
    """Compare the metrics that fitted points predict at the places of predicted losses with those of later points. The
    no-gain baseline is the best measured metric, of runs that are no longer and have no more unique data, if any."""
    found = dict[str, list[Judged]]()
    for metric, expected in expected_metrics(fitted, losses).items():
        known, found[metric] = fitted.drop_nulls(metric), []
        for each in expected:
            at = {name: value for name in ("x", "d", "u") if (value := getattr(each, name)) is not None}
            actual_N = later.filter(**at)[metric].drop_nulls().to_numpy()
            if len(actual_N) and (actual := float(actual_N.mean())) > 0:
                # Without several lengths, D says little: a run that stopped early has a small D.
                alike = _no_more(known, each, "u", *(["d"] if has_lengths(known) else []))
                no_gain = best_measured(known if alike.is_empty() else alike, metric)
                found[metric].append(Judged(**vars(each), **came(each, actual, no_gain)))
    return found


def outlook_metrics(
    points: pl.DataFrame, losses: Sequence[Prediction], turns: bool, names: Sequence[str] | None = None
) -> dict[str, list[Expected]]:
    """The expected metrics, but no worse than those measured at smaller sizes with no more data. If the loss `turns`,
    sizes beyond all others have the metrics of the largest size."""
    known, found = longest(points), dict[str, list[Expected]]()
    most = float(known["x"].to_numpy().max())
    for metric, expected in expected_metrics(points, losses, names).items():
        better = max if is_better_high(points, metric) else min
        found[metric] = []
        for each in expected:
            stays = turns and each.x > most
            limit = pl.col("x") == most if stays else pl.col("x") <= each.x
            smaller = _no_more(known.drop_nulls(metric), each, "d", "u").filter(limit)
            bound = each.predicted if smaller.is_empty() else best_measured(smaller, metric)
            middle = bound if stays else better(each.predicted, bound)
            low, high = min(each.low, middle), max(each.high, middle)
            found[metric].append(replace(each, predicted=middle, low=low, high=high))
    return found


def best_measured(points: pl.DataFrame, metric: str) -> float:
    """The metric of the best size, as the mean over its runs."""
    means = means_by_size(points, metric)[metric].to_numpy()
    return float(means.max() if is_better_high(points, metric) else means.min())


def _no_more(points: pl.DataFrame, place: Expected, *columns: str) -> pl.DataFrame:
    """The points that have at most the place's D or U, as far as the place has them."""
    limits = {name: value for name in columns if (value := getattr(place, name)) is not None}
    return points.filter(True, *(pl.col(name) <= value * (1 + 1e-9) for name, value in limits.items()))


def is_better_high(points: pl.DataFrame, metric: str) -> bool:
    """Whether a higher value of a metric is better."""
    return metric.startswith(RISING) or not points.drop_nulls(metric).select(pl.corr("y", metric)).item() > 0


def _expected(points: pl.DataFrame, metric: str, losses: Sequence[Prediction]) -> list[Expected]:
    known = points.drop_nulls(metric).filter(pl.col(metric) > 0)
    value_N = known[metric].to_numpy().astype(float)
    is_share, sign = bool((value_N < 1).all()), 1 if is_better_high(known, metric) else -1
    most = 1.0 if metric.startswith(RISING) and (value_N <= 1).all() else np.inf  # without a miss, there are no odds
    odds_N = np.exp(sign * np.log(1 / value_N - is_share))
    of_odds = known.with_columns(y=pl.Series(odds_N), loss=pl.col("y"))
    curves = []  # (P, 3): the expected ln odds, and both ends of the interval
    if has_lengths(points) or all(loss.d is None for loss in losses):
        curves.append(against_size(of_odds, losses))
    with suppress(UserError):  # all losses nearly equal
        curves.append(against_loss(points_of_most_data(of_odds), losses))
    if not curves:
        raise UserError(f"{metric}: too few losses")
    middle_CP, low_CP, high_CP = np.moveaxis(np.array(curves), -1, 0)
    expected = []
    for loss, logs in zip(losses, np.column_stack([middle_CP.mean(0), low_CP.min(0), high_CP.max(0)]), strict=True):
        middle, *ends = np.minimum(1 / (is_share + np.exp(sign * logs)), most).tolist()
        expected.append(Expected(x=loss.x, d=loss.d, u=loss.u, predicted=middle, low=min(ends), high=max(ends)))
    return expected


def against_size(points: pl.DataFrame, losses: Sequence[Prediction]) -> Array:
    """The expected ln y at the places of the losses, with the ends of its interval, (P, 3)."""
    forecast = Forecast(points, OF_METRICS)
    columns = [name for name in forecast.columns if all(getattr(loss, name) is not None for loss in losses)]
    places_PV = np.array([[getattr(loss, name) for name in columns] for loss in losses])
    return np.log([[p.predicted, p.low, p.high] for p in forecast.predict(places_PV)])


def against_loss(points: pl.DataFrame, losses: Sequence[Prediction]) -> Array:
    """The same with the loss in place of the size, scaled so that the points span as much of it as of ln size."""
    if points["loss"].n_unique() < 2:
        raise UserError("all losses are equal")
    loss_N, size_N = points["loss"].to_numpy(), points["x"].to_numpy()
    least, per_nat = loss_N.min(), np.log(size_N.max() / size_N.min()) / np.ptp(loss_N)

    def as_size(loss: Array) -> Array:
        return np.exp(np.clip(per_nat * (least - loss), -FARTHEST, FARTHEST))

    forecast = Forecast(points.drop("u", strict=False).with_columns(x=as_size(loss_N)), OF_METRICS)
    loss_P3 = np.array([[loss.predicted, loss.low, loss.high] for loss in losses])
    at_loss, at_low, at_high = (forecast.predict(as_size(loss_P)) for loss_P in loss_P3.T)
    middle_P = np.log([p.predicted for p in at_loss])
    low_P = np.hypot(middle_P - np.log([p.low for p in at_loss]), middle_P - np.log([p.predicted for p in at_low]))
    high_P = np.hypot(np.log([p.high for p in at_loss]) - middle_P, np.log([p.predicted for p in at_high]) - middle_P)
    return np.column_stack([middle_P, middle_P - low_P, middle_P + high_P])
