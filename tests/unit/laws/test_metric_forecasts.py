"""Forecasts of metrics: on known curves, and for metrics that cannot be forecast."""

import numpy as np
import polars as pl
import pytest

from lrec.laws.forecast import Forecast
from lrec.laws.intervals import Prediction
from lrec.laws.law import Array
from lrec.laws.metric_forecasts import best_measured, expected_metrics, judged_metrics, outlook_metrics

SIZES = np.geomspace(1e4, 1e6, 7)
LARGER = np.array([4e6, 1.6e7])


def loss_of(size: Array) -> Array:
    return 4 + 6 * size**-0.25


def hit_rate_of(loss: Array) -> Array:
    return 1 / (1 + np.exp(2 * (loss - 4)))


def points_of(size: Array, **metrics: Array) -> pl.DataFrame:
    return pl.DataFrame({"x": size, "y": loss_of(size), "may_stop": False} | metrics)


def test_a_metric_that_follows_the_loss_is_forecast_far_beyond_the_measured_ones() -> None:
    points = points_of(SIZES, **{"HR@10": hit_rate_of(loss_of(SIZES))})
    losses = Forecast(points).predict(LARGER)
    truth = points_of(LARGER, **{"HR@10": hit_rate_of(loss_of(LARGER))})
    (judged,) = judged_metrics(points, losses, truth).values()
    assert [each.x for each in judged] == LARGER.tolist()
    for each in judged:
        assert each.inside
        assert abs(each.error_pct) < abs(each.naive_error_pct) / 2
        assert each.naive_error_pct == pytest.approx(100 * (best_measured(points, "HR@10") / each.actual - 1))


def test_a_run_that_went_badly_does_not_bend_the_forecast() -> None:
    """Its metric is as low as its loss is high, so it lies on the curve of the metric against the loss."""
    loss = loss_of(SIZES)
    loss[5] += 0.1
    bad = pl.DataFrame({"x": SIZES, "y": loss, "HR@10": hit_rate_of(loss), "may_stop": False})
    losses = Forecast(bad).predict(LARGER[:1])
    ((each,),) = expected_metrics(bad, losses).values()
    assert each.low <= hit_rate_of(loss_of(LARGER))[0] <= each.high
    assert each.predicted == pytest.approx(hit_rate_of(loss_of(LARGER))[0], rel=0.02)


def test_any_metric_is_forecast_also_if_lower_is_better() -> None:
    loss = loss_of(SIZES)
    points = points_of(SIZES, **{"revenue": 100 / loss, "mean rank": 50 * loss, "seldom": np.where(loss > 4.3, 0, 0.1)})
    expected = expected_metrics(points, Forecast(points).predict(LARGER))
    assert expected.keys() == {"revenue", "mean rank"}
    assert expected["revenue"][1].predicted == pytest.approx(100 / loss_of(LARGER)[1], rel=0.01)
    assert expected["mean rank"][1].predicted == pytest.approx(50 * loss_of(LARGER)[1], rel=0.01)
    assert best_measured(points, "mean rank") == pytest.approx(50 * loss[-1])
    at = {"x": 4e6, "d": 1e7, "predicted": 4.1, "low": 4.0, "high": 4.2, "mean_low": 4.0, "mean_high": 4.2}
    of_data = points.with_columns(pl.lit(1e7).alias("d"), pl.lit(0.0).alias("never"))
    assert expected_metrics(of_data, [Prediction(**at)]).keys() == {"revenue", "mean rank"}, "a law of size and data"


def test_runs_with_more_data_are_no_bound_and_no_baseline_for_less_data() -> None:
    loss = loss_of(SIZES)
    few = points_of(SIZES, **{"HR@10": hit_rate_of(loss)}).with_columns(d=5e6, u=1e6)
    much = few.with_columns(y=pl.Series(loss - 0.5), **{"HR@10": pl.Series(hit_rate_of(loss - 0.5))}, d=1e7, u=2e6)
    points = pl.concat([few, much])
    at = {"x": SIZES[-1], "predicted": loss[-1], "low": 4.15, "high": 4.25, "mean_low": 4.15, "mean_high": 4.25}
    for name, value in (("d", 5e6), ("u", 1e6)):
        ((each,),) = outlook_metrics(points, [Prediction(**at | {name: value})], False).values()
        assert each.predicted == pytest.approx(few["HR@10"][-1], rel=0.05)
    losses = Forecast(points).predict(np.array([[LARGER[0], 1e6]]))
    ((judged,),) = judged_metrics(points, losses, few.with_columns(x=LARGER[0])).values()
    assert judged.naive_error_pct == pytest.approx(100 * (few["HR@10"][-1] / judged.actual - 1))


def test_a_metric_that_size_does_not_move_is_not_forecast_to_rise() -> None:
    flat = np.random.default_rng(0).normal(0.2, 0.002, len(SIZES))
    points = pl.DataFrame({"x": SIZES, "y": 5 + flat, "HR@10": flat, "may_stop": True})
    for each in expected_metrics(points, Forecast(points).predict(LARGER))["HR@10"]:
        assert each.low < 0.2 < each.high
        assert each.predicted == pytest.approx(0.2, abs=0.005)


def test_a_hit_rate_of_one_is_not_forecast_to_rise_above_it() -> None:
    points = points_of(SIZES, **{"HR@10": np.array([0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 1.0])})
    for each in expected_metrics(points, Forecast(points).predict(LARGER))["HR@10"]:
        assert each.low <= each.predicted <= each.high <= 1


def test_lists_of_all_items_are_not_forecast_to_be_better_than_lists_of_unseen_items() -> None:
    """Small networks list items that users never have again. Larger ones learn not to, and then gain no more by it."""
    unseen = 0.35 + 0.02 * np.log10(SIZES / SIZES[0])
    learnt = unseen * np.linspace(0.4, 0.97, len(SIZES))
    points = points_of(SIZES, **{"NDCG@10": learnt, "NDCG@10_unseen": unseen})
    losses = Forecast(points).predict(LARGER)
    alone = expected_metrics(points.drop("NDCG@10_unseen"), losses)["NDCG@10"]
    bound = expected_metrics(points, losses)
    for each, limit, without in zip(bound["NDCG@10"], bound["NDCG@10_unseen"], alone, strict=True):
        assert each.predicted == min(without.predicted, limit.predicted)
        assert each.low <= each.predicted <= each.high <= without.high
    assert bound["NDCG@10"][1].predicted < alone[1].predicted
    assert expected_metrics(points, losses, ["NDCG@10"]) == {"NDCG@10": bound["NDCG@10"]}
    repeated = points.with_columns(pl.col("NDCG@10_unseen") * 0.5)  # some targets are items that the users had before
    assert expected_metrics(repeated, losses)["NDCG@10"] == alone
