"""The forecast in size and data, from runs of several lengths."""

import numpy as np
import polars as pl
import pytest

from lrec.laws.analysis import Analysis, doublings
from lrec.laws.forecast import Forecast
from lrec.laws.metric_forecasts import best_measured, expected_metrics
from lrec.laws.predict import compare, holdout_report, outlook
from lrec.laws.table import naive, points_of_most_data

SIZES, LENGTHS = np.geomspace(3e3, 3e4, 5), (2.5e5, 5e5, 1e6)


def loss_of(x: float, d: float, kind: str) -> float:
    if kind == "a sum":  # Chinchilla
        return 3.0 + 40 / x**0.4 + 200 / d**0.4
    return float((30 / x**0.4) ** 1.2 + 90 / d**0.35) ** 0.4 + 2.0  # larger sizes gain more from more data


def grid(kind: str, sigma: float = 0.002, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        (x, d, d / 1e6, loss_of(x, d, kind) * np.exp(sigma * rng.standard_normal())) for x in SIZES for d in LENGTHS
    ]
    return pl.DataFrame(rows, schema=["x", "d", "horizon", "y"], orient="row")


@pytest.mark.parametrize("kind", ["a sum", "together"])
def test_eight_times_the_size_and_four_times_the_data_are_expected_better_than_no_gain(kind: str) -> None:
    places = [(8 * SIZES[-1], 1e6), (SIZES[-1], 4e6), (8 * SIZES[-1], 4e6)]
    errors, naive_errors, inside = [], [], []
    for seed in range(6):
        points = grid(kind, seed=seed)
        forecast = Forecast(points)
        assert forecast.columns == ("x", "d")
        for p, place in zip(forecast.predict(np.array(places)), places, strict=True):
            assert p.at == place
            truth = loss_of(*place, kind)
            errors.append(abs(p.predicted / truth - 1))
            naive_errors.append(abs(naive(points)({"x": p.x, "d": p.d}) / truth - 1))
            inside.append(p.low <= truth <= p.high)
    assert np.mean(errors) < np.mean(naive_errors) / 3
    assert np.mean(inside) > 0.85


def test_more_size_or_data_is_never_expected_worse_than_what_is_known() -> None:
    points = grid("a sum")
    forecast = Forecast(points)
    sizes = [p.predicted for p in forecast.predict(np.array([(x, 1e6) for x in SIZES[-1] * np.array([1.5, 3, 9, 30])]))]
    lengths = [p.predicted for p in forecast.predict(np.array([(SIZES[0], d) for d in (2e6, 4e6, 8e6)]))]
    assert sizes == sorted(sizes, reverse=True)
    assert lengths == sorted(lengths, reverse=True)
    assert max(sizes) <= naive(points)({"x": 1e9, "d": 1e6})
    assert max(lengths) <= naive(points)({"x": SIZES[0], "d": 1e9})


def test_the_no_gain_baseline_has_no_more_size_or_data() -> None:
    points = grid("a sum", sigma=0)
    assert naive(points)({"x": SIZES[1], "d": 6e5}) == pytest.approx(loss_of(SIZES[1], 5e5, "a sum"))
    assert naive(points)({"x": 1e9, "d": 1e5}) == pytest.approx(loss_of(SIZES[-1], LENGTHS[0], "a sum"))


def test_a_law_of_size_uses_the_longest_runs() -> None:
    assert points_of_most_data(grid("a sum"))["d"].unique().to_list() == [1e6]


def test_metrics_follow_size_and_data_too() -> None:
    points = grid("a sum").with_columns((0.9 - 0.1 * pl.col("y")).alias("HR@10"))
    losses = Forecast(points).predict(np.array([(8 * SIZES[-1], 1e6), (8 * SIZES[-1], 4e6)]))
    one, four = expected_metrics(points, losses)["HR@10"]
    assert (one.d, four.d) == (1e6, 4e6)
    assert points["HR@10"].max() < one.predicted < four.predicted  # type: ignore[operator]


def test_if_the_largest_run_was_not_the_longest_the_outlook_is_for_the_largest_of_the_longest() -> None:
    points = grid("a sum").filter((pl.col("x") < SIZES[-1]) | (pl.col("d") < 1e6))
    assert outlook(Forecast(points)).at == (10 * SIZES[-2], 1e6)
    turned = points.with_columns(y=pl.when(pl.col("horizon") == 1).then(3 + pl.col("x") / 1e5).otherwise("y"))
    worst = turned.filter(pl.col("horizon") == 1)["y"].to_numpy().max()
    assert outlook(Forecast(turned)).predicted == pytest.approx(worst)


def test_laws_are_tested_on_the_same_held_out_sizes_as_the_forecast() -> None:
    rows = [(x, h * 1e6, h, loss_of(x, h * 1e6, "a sum")) for x in np.geomspace(3e3, 1e5, 8) for h in (0.5, 1.0)]
    points = pl.DataFrame(rows, schema=["x", "d", "horizon", "y"], orient="row")[:-1]  # the largest has no long run
    names = {"x": "N_body", "d": "D", "y": "test_loss"}
    found = Analysis(*holdout_report(None, points, 2), points, names)
    small, held_out = (points.filter(pl.col("horizon") == 1)[part] for part in (slice(None, 6), slice(6, None)))
    (law,) = (method for method in found.methods if method.name == "lsrm")
    assert law.fit is not None
    assert law.fit.points.equals(small)
    error = 100 * (law.fit.curve(held_out["x"].to_numpy()) / held_out["y"].to_numpy() - 1)
    assert law.holdout_mape == pytest.approx(abs(error.item()))


def test_held_out_metrics_are_compared_with_runs_that_are_no_longer() -> None:
    points = grid("a sum").with_columns((0.9 - 0.1 * pl.col("y")).alias("HR@10"))
    points = pl.concat([points.with_columns(pl.col("x") * few) for few in (1.0, 1.1)])  # enough sizes to hold two out
    names = {"x": "N_body", "d": "D", "y": "test_loss"}
    found = Analysis(*holdout_report(None, points, 2), points, names, with_others=False)
    small = found.predictor.points
    for each in found.metrics["HR@10"]:
        alike = best_measured(small.filter(pl.col("d") == each.d), "HR@10")
        assert each.naive_error_pct == pytest.approx(100 * (alike / each.actual - 1))
    assert {each.d for each in found.metrics["HR@10"]} == {*LENGTHS}
    assert [each.d for each in found.tested("HR@10")] == [1e6, 1e6]


def test_actual_losses_are_joined_by_size_and_length() -> None:
    points = grid("a sum")
    forecast = Forecast(points.filter(pl.col("x") < SIZES[-1]))
    came = points.filter(pl.col("x") == SIZES[-1])
    judged = compare(forecast, forecast.predict(came.select("x", "d").to_numpy()), came)
    assert [p.actual for p in judged.points] == came["y"].to_list()
    assert all(p.inside for p in judged.points)


def test_doublings_are_priced_and_the_cheapest_is_named() -> None:
    points = grid("a sum", sigma=0).with_columns(
        processed=pl.col("d"), flops=(6 * pl.col("x") + 4e5) * pl.col("d"), u=pl.lit(1e6)
    )
    heading, table, cheapest = doublings(Forecast(points), "N_body")
    assert heading == "### Twice as much of size and data"
    rows = {cells[1]: cells[2:-1] for line in table.splitlines() if (cells := [c.strip() for c in line.split("|")])}
    assert rows["the same"][0] == f"{Forecast(points).predict([[SIZES[-1], 1e6]])[0].predicted:.4f}"
    assert float(rows["twice the data"][-1]) == pytest.approx(2)
    assert 1 < float(rows["twice N_body"][-1]) < 1.5  # the item table does not grow with the body
    assert cheapest == "The largest fall of the loss per FLOP is expected from twice N_body."
    assert doublings(Forecast(points.filter(pl.col("horizon") == 1)), "N_body") == []


def test_doublings_expect_nothing_from_size_if_two_larger_sizes_did_worse() -> None:
    """As the outlook of the same report."""
    points = grid("a sum", sigma=0).with_columns(pl.col("y") + 0.5 * (pl.col("x") > 1e4))
    _, table, cheapest = doublings(Forecast(points), "N_body")
    same, twice_size, twice_data, both = ([c.strip() for c in line.split("|")][2:] for line in table.splitlines()[2:])
    assert twice_size[:4] == same[:4]
    assert both[:4] == twice_data[:4]
    assert "twice the data" in cheapest
