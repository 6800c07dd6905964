"""The best rate and batch: on surfaces with a known optimum, and on a public table whose largest sizes are held out."""

from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.interpolate import griddata

from lrec.errors import UserError
from lrec.laws.law import Array
from lrec.laws.rate_law import RateLaw

TABLE = Path(__file__).parents[4] / "shared" / "data" / "scaling" / "steplaw_dense.csv"
SETTINGS = [(n, d) for n in (1e4, 3e4, 1e5) for d in (1e6, 1e7)]
SLOPE, LOW, HIGH, OF_BATCH = 0.4, 0.01, 0.05, 0.01
LARGE = (8e5, 8e7)


def optimum(n: float, d: float) -> tuple[float, float]:
    """ln of the best rate and batch, with exponents unlike those of published fits."""
    log_n, log_d = np.log(n / 3e4), np.log(d / 3e6)
    return np.log(4e-3) - 0.6 * log_n - 0.1 * log_d, np.log(600) + 0.4 * log_d


def excess(n: float, d: float, rate: Array | float, batch: Array | float) -> Array:
    """ln of the loss divided by the best loss."""
    best_rate, best_batch = optimum(n, d)
    v = np.log(batch) - best_batch
    u = np.log(rate) - best_rate - SLOPE * v
    return (np.where(u < 0, LOW, HIGH) * u**2 + OF_BATCH * v**2) / 2


def runs(seed: int, kept: float = 0.7) -> pl.DataFrame:
    """A grid of rates and batches for each setting, some of them missing. Far above the best rate, runs diverge."""
    random, rows = np.random.default_rng(seed), []
    for n, d in SETTINGS:
        scatter = np.exp(0.1 * random.standard_normal(2))
        for rate in 1e-3 * 2.0 ** np.arange(-2, 6):
            for batch in 128 * 2.0 ** np.arange(6):
                above = float(excess(n, d, rate * scatter[0], batch * scatter[1]))
                loss = (2 + 20 * n**-0.3) * np.exp(above + 5e-4 * random.standard_normal())
                rows.append((n, d, rate, batch, np.nan if above > 0.15 else loss))
    table = pl.DataFrame(rows, schema=["x", "d", "rate", "batch", "y"], orient="row")
    return table.sample(fraction=kept, seed=seed)


@cache
def law(seed: int) -> RateLaw:
    return RateLaw(runs(seed))


def test_a_larger_size_gets_a_rate_and_batch_that_cost_little_and_intervals_that_hold_the_best() -> None:
    inside, best = [], np.exp(optimum(*LARGE))
    for seed in range(12):
        choice = law(seed).choose(*LARGE)
        assert excess(*LARGE, choice.rate, choice.batch) < 0.003
        assert choice.rate_low < choice.rate < choice.rate_high
        at_batch = best[0] * (choice.batch / best[1]) ** SLOPE
        inside += [choice.rate_low < at_batch < choice.rate_high, choice.batch_low < best[1] < choice.batch_high]
    assert np.mean(inside) >= 0.8


def test_parameters_that_the_runs_determine_are_found() -> None:
    found = RateLaw(runs(0, kept=1.0)).parameters
    expected = {"rate_N": -0.6, "rate_D": -0.1, "batch_D": 0.4, "slope": SLOPE}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=0.15)
    curvatures = np.exp([found[name] for name in ("c_low", "c_high", "c_batch")])
    assert curvatures == pytest.approx([LOW, HIGH, OF_BATCH], rel=0.3)


def test_the_less_is_known_the_further_below_the_best_rate_it_stays() -> None:
    near, far = (law(0).choose(3e4 * times, 1e7 * times) for times in (1, 1000))
    below = [choice.rate / np.sqrt(choice.rate_low * choice.rate_high) for choice in (near, far)]
    assert 1 > below[0] > below[1] > 0.4
    assert near.cost < far.cost
    assert near.rate_high / near.rate_low < far.rate_high / far.rate_low


def test_a_batch_that_is_given_moves_the_rate_and_has_its_cost() -> None:
    free, fixed = law(0).choose(*LARGE), law(0).choose(*LARGE, batch=law(0).choose(*LARGE).batch / 8)
    # Up to the margin, which is wider if the best rate is known less well.
    assert fixed.rate / free.rate == pytest.approx(8 ** -law(0).parameters["slope"], rel=1e-3)
    assert fixed.batch == pytest.approx(free.batch / 8)
    assert fixed.cost > free.cost + 0.5 * OF_BATCH * np.log(8) ** 2 / 2


def test_what_missing_the_optimum_costs() -> None:
    n, d = SETTINGS[3]
    rate, batch = np.exp(optimum(n, d))
    for factors in ((1, 1), (0.25, 1), (2, 1), (1, 4)):
        cost = law(0).cost(n, d, rate * factors[0], batch * factors[1])
        assert cost == pytest.approx(np.expm1(excess(n, d, rate * factors[0], batch * factors[1])), abs=4e-3)
    choice = law(0).choose(n, d)
    assert law(0).cost(n, d, choice.rate, choice.batch) == pytest.approx(choice.cost, rel=1e-6)


def test_runs_of_one_batch_and_two_sizes_say_what_they_can() -> None:
    some = runs(1).filter(pl.col("batch") == 512, pl.col("x") < 5e4, pl.col("d") < 5e6)
    choice = RateLaw(some).choose(3e4, 1e6)
    best = optimum(3e4, 1e6)
    at_batch = np.exp(best[0] + SLOPE * (np.log(choice.batch) - best[1]))
    assert choice.rate == pytest.approx(at_batch, rel=0.5)
    assert choice.batch_high > 3 * choice.batch_low


def test_a_tried_setting_moves_the_law_half_way_to_it_and_leaves_the_smallest_size() -> None:
    own = law(0)
    before, tried_rate, tried_batch = own.choose(*LARGE), 3e-4, 900.0
    moved = own.towards(*LARGE, tried_rate, tried_batch)
    after = moved.choose(*LARGE)
    assert after.batch == pytest.approx((before.batch * tried_batch) ** 0.5)
    middle_before, middle_after = ((each.rate_low * each.rate_high) ** 0.5 for each in (before, after))
    assert middle_after == pytest.approx((middle_before * tried_rate) ** 0.5)
    smallest = SETTINGS[0][0]
    for data in (1e6, 1e8):
        assert moved.choose(smallest, data).rate == pytest.approx(own.choose(smallest, data).rate)
        assert moved.choose(smallest, data).batch == pytest.approx(own.choose(smallest, data).batch)
    assert own.choose(*LARGE) == before
    assert moved.cost(*LARGE, middle_after, after.batch) < own.cost(*LARGE, middle_after, after.batch)


def test_a_tried_setting_of_a_near_size_hardly_moves_the_rates_of_far_sizes() -> None:
    own, smallest = law(0), SETTINGS[0][0]
    tried = own.choose(1.3 * smallest, 1e8)
    moved = own.towards(1.3 * smallest, 1e8, tried.rate / 2, tried.batch)
    for size in (smallest / 8, 8 * smallest):
        assert moved.choose(size, 1e8).rate == pytest.approx(own.choose(size, 1e8).rate, rel=0.3)
    assert own.towards(smallest, 1e8, tried.rate / 2, tried.batch).parameters == own.parameters


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(UserError, match="3 rates are needed, not 2"):
        RateLaw(runs(0).filter(pl.col("rate").is_in(runs(0)["rate"].unique()[:2].implode())))
    with pytest.raises(UserError, match="must be positive"):
        RateLaw(runs(0).with_columns(rate=pl.lit(0.0)))


@pytest.mark.skipif(not TABLE.is_file(), reason="the public tables lie beside the repository, not in it")
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_the_two_largest_sizes_of_a_public_table_lose_at_most_three_in_a_thousand(share: float) -> None:
    """Fitted to smaller sizes with little data, and judged at the nearest run of the grid and between runs."""
    table = pl.read_csv(TABLE).select(x="N", d="D", rate="lr", batch="bs", y="loss")
    small = table.filter(pl.col("x") <= 268.5e6, pl.col("d") <= 2e10).sample(fraction=share, seed=0)
    fitted, settings = RateLaw(small), table.filter(pl.col("x") > 5e8).select("x", "d").unique().rows()
    assert len(settings) == 5
    for n, d in settings:
        choice, cell = fitted.choose(n, d), table.filter(pl.col("x") == n, pl.col("d") == d)
        at, chosen = np.log(cell.select("rate", "batch").to_numpy()), np.log([choice.rate, choice.batch])
        best, nearest = cell["y"].min(), int(((at - chosen) ** 2).sum(1).argmin())
        sane = (cell["y"] < 1.1 * best).to_numpy()
        between = griddata(at[sane], cell["y"].to_numpy()[sane], chosen[None]).item()
        assert cell["y"][nearest] / best < 1.003
        assert between / best < 1.003


def test_a_wrong_rate_costs_large_networks_more() -> None:
    """Trials of three sizes, a factor of two apart: the curvature is 0.005 for the smallest, and 0.05 for the largest.
    Were it the same for all, the flat curve of the small size would move the rate of the large one far down."""
    rows = []
    for n in (3e3, 5e4, 9e5):
        best, curvature = 8e-3 * (n / 3e3) ** -0.2, 0.005 * (n / 3e3) ** 0.4
        for rate in best * 2.0 ** np.arange(-1.4, 2):
            rows.append((n, 5e5, rate, 512, 4 * np.exp(curvature * np.log(rate / best) ** 2 / 2)))
    found = RateLaw(pl.DataFrame(rows, schema=["x", "d", "rate", "batch", "y"], orient="row"), scaled=True)
    assert found.parameters["c_N"] == pytest.approx(0.4, abs=0.1)
    assert found.choose(9e5, 5e5, 512).rate == pytest.approx(8e-3 * 300**-0.2, rel=0.15)
    costs = [found.cost(n, 5e5, 4e-3 * (n / 3e3) ** -0.2, 512) for n in (3e3, 9e5)]
    assert costs[1] > 3 * costs[0]
