"""The forecast: against a brute-force posterior, on curves that go on, stop and jump, and with shares of data."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from lrec.errors import UserError
from lrec.laws.analysis import Analysis
from lrec.laws.forecast import Forecast
from lrec.laws.law import Array
from lrec.laws.mixture import CELLS, Errors, Mixture, Part, Prior, of_curve, posterior, with_one_off
from lrec.laws.predict import holdout_report
from lrec.study.points import read_points

ML_1M = Path(__file__).parents[3] / "benchmarks" / "ml-1m-lsrm" / "all_points.jsonl"
SIZES = np.geomspace(1e4, 1e6, 6)


def points_of(loss: Array, sizes: Array = SIZES, may_stop: bool = False) -> pl.DataFrame:
    return pl.DataFrame({"x": sizes, "y": loss, "may_stop": may_stop})


def noisy(loss: Array, sigma: float = 0.001, seed: int = 0) -> Array:
    return np.asarray(loss * np.exp(sigma * np.random.default_rng(seed).standard_normal(len(loss))))


def with_shares() -> pl.DataFrame:
    """Size stops paying at U/8. With all the data no size is beyond that point."""
    rows = []
    for u in (8e5, 4e5, 2e5):
        stop = u / 8
        for n in np.geomspace(3e3, 1e5, 6):
            rows.append((n, u, 5.0 - 0.05 * np.log(u / 8e5) + 3 * (n**-2 + stop**-2) ** 0.125))
    return pl.DataFrame(rows, schema=["x", "u", "y"], orient="row")


def test_weights_and_quantiles_follow_bayes_rule() -> None:
    """The reference integrates marginal likelihoods over the coefficient and the noise on a grid."""
    rng = np.random.default_rng(0)
    basis_GN1 = rng.uniform(0.5, 1.5, (2, 5, 1))
    y_N, weight_N = basis_GN1[0, :, 0] * 0.7 + 0.1 * rng.standard_normal(5), np.array([1, 1, 0.5, 0.5, 0.25])
    prior = Prior(np.array([0.5]), np.array([0.8]), noise=0.1, noise_dof=3.0)
    errors = Errors(weight_N, np.log(weight_N).sum())
    mixture = Mixture([Part(basis_GN1, errors, np.log([0.3, 0.7]), np.zeros(2, dtype=int))], y_N, prior, 5)
    # In units of the noise the coefficient's prior sd is 0.8 / 0.1; the variance is scaled inverse chi squared.
    c, s = (g.ravel() for g in np.meshgrid(np.linspace(-2, 3, 801), np.geomspace(0.01, 2, 801)))
    grid = stats.norm.pdf(c, 0.5, 8 * s) * stats.chi2.pdf(3 * 0.1**2 / s**2, 3) / s**3 * s
    both = []
    for basis_N1, share in zip(basis_GN1, (0.3, 0.7), strict=True):
        residual = (y_N[:, None] - basis_N1 * c) * np.sqrt(weight_N)[:, None] / s
        both.append(share * grid * np.exp(-(residual**2).sum(0) / 2) / s**5)
    evidence = np.array([density.sum() for density in both])
    assert mixture.weight_G == pytest.approx(evidence / evidence.sum(), rel=1e-3)
    mean_GP, doubt_GP = mixture.at(np.ones((2, 1, 1)))
    found = mixture.quantile(0.8, mean_GP, np.sqrt(mixture.variance_G[:, None] * doubt_GP))
    order, mass = np.argsort(c), np.sum(both, axis=0)
    assert found[0] == pytest.approx(c[order][np.searchsorted(mass[order].cumsum(), 0.8 * mass.sum())], abs=0.01)


def test_the_closed_form_for_a_point_that_is_off_equals_a_fit() -> None:
    """For independent and for correlated errors; a point that is off has an additional variance of 99 / W_ii."""
    rng = np.random.default_rng(0)
    basis_GNK, y_N, mixed_NN = rng.standard_normal((3, 7, 2)), rng.standard_normal(7), rng.standard_normal((7, 7))
    prior, log_prior_G = Prior(np.array([0.0, 0.2]), np.array([np.inf, 0.6]), 0.1, 0.8), np.log([0.2, 0.3, 0.5])
    for precision in (rng.uniform(0.1, 1, 7), np.linalg.inv(mixed_NN @ mixed_NN.T + np.eye(7))):
        of_all = errors_of(precision)
        found_GO = with_one_off(Part(basis_GNK, of_all, log_prior_G, np.zeros(3, dtype=int)), y_N, prior)
        for o in range(8):
            if o == 0:
                less = of_all
            elif precision.ndim == 1:
                less = errors_of(precision * np.where(np.arange(7) == o - 1, 0.01, 1))
            else:
                own = np.diag(np.where(np.arange(7) == o - 1, 99 / np.diag(precision), 0.0))
                less = errors_of(np.linalg.inv(np.linalg.inv(precision) + own))
            fitted = posterior(Part(basis_GNK, less, log_prior_G, np.zeros(3, dtype=int)), y_N, prior)
            assert found_GO[:, o] == pytest.approx(fitted.log_G, rel=1e-9)
            marked = posterior(Part(basis_GNK, of_all, log_prior_G, np.full(3, o)), y_N, prior)
            for one, other in zip(marked, fitted, strict=True):
                assert one == pytest.approx(other, rel=1e-9, abs=1e-9)


def errors_of(precision: Array) -> Errors:
    return Errors(precision, float(np.log(precision).sum() if precision.ndim == 1 else np.linalg.slogdet(precision)[1]))


def test_a_curve_that_goes_on_is_extrapolated_and_one_that_stopped_is_not() -> None:
    going, stopped = 3 + 20 * SIZES**-0.25, 3 + 20 * (SIZES**-2 + 1e5**-2) ** 0.125
    (ahead,) = Forecast(points_of(noisy(going))).predict([8e6])
    truth = 3 + 20 * 8e6**-0.25
    assert abs(ahead.predicted - truth) < (going[-1] - truth) / 2
    assert ahead.low < truth < ahead.high
    (flat,) = Forecast(points_of(noisy(stopped, 1e-4), may_stop=True)).predict([8e6])
    assert flat.predicted == pytest.approx(stopped[-1], rel=5e-3)


def test_less_is_expected_of_a_curve_that_may_stop() -> None:
    falling = noisy(6 * SIZES**-0.05, 0.004)
    (goes_on,), (may_stop,) = (Forecast(points_of(falling, may_stop=stops)).predict([8e6]) for stops in (False, True))
    assert goes_on.predicted < may_stop.predicted < falling.min()
    assert abs(goes_on.predicted - 6 * 8e6**-0.05) < (falling.min() - 6 * 8e6**-0.05) / 2
    assert may_stop.high > goes_on.high


def test_intervals_nest_and_widen_and_hold_the_forecast() -> None:
    forecast = Forecast(points_of(noisy(3 + 20 * SIZES**-0.25)))
    near, far = forecast.predict([4e6, 4e8])
    for p in (near, far):
        assert p.low < p.mean_low <= p.predicted <= p.cautious <= p.high  # type: ignore[operator]
        assert p.mean_low < p.mean_high < p.high
    assert far.high - far.low > near.high - near.low
    assert forecast.curve([4e6, 4e8]) == pytest.approx([near.predicted, far.predicted])


def test_it_is_never_above_the_best_measured_loss_and_ignores_the_unit() -> None:
    loss = noisy(4 + 0.02 * np.log(SIZES), 0.002)
    assert Forecast(points_of(loss)).curve([1e7])[0] <= loss.min()
    falling = noisy(3 + 20 * SIZES**-0.25)
    one, other = Forecast(points_of(falling)), Forecast(points_of(falling, 1e6 * SIZES))
    assert one.curve([1e7]) == pytest.approx(other.curve([1e13]), rel=1e-9)


def test_a_point_that_is_off_hardly_matters() -> None:
    loss = noisy(3 + 20 * SIZES**-0.25, 2e-4)
    off = loss.copy()
    off[2] *= 1.03
    (clean,), (bent,) = (Forecast(points_of(y)).predict([8e6]) for y in (loss, off))
    assert bent.predicted == pytest.approx(clean.predicted, rel=0.015)
    assert bent.high - bent.low < 2.0 * (clean.high - clean.low)


def autocorrelated(x: Array, rng: np.random.Generator, length: float = 0.5) -> Array:
    """AR(1) noise along ln x, of variance 1. Correlations fall by a factor e over `length` of ln x."""
    noise, share = rng.standard_normal(len(x)), np.exp(-np.diff(np.log(x)) / length)
    for n, kept in enumerate(share):
        noise[n + 1] = kept * noise[n] + np.sqrt(1 - kept**2) * noise[n + 1]
    return noise


def test_intervals_cover_new_losses_if_neighbours_have_correlated_errors() -> None:
    """If the points counted as independent, only 0.56 would be inside."""
    held, x = [], np.append(np.geomspace(1e4, 1e6, 40), [2e6, 4e6])
    for repeat in range(40):
        loss = (1 + 20 * x**-0.25) * np.exp(0.02 * autocorrelated(x, np.random.default_rng(repeat)))
        predictions = Forecast(points_of(loss[:40], x[:40], may_stop=True)).predict(x[40:])
        held += [p.low < came < p.high for p, came in zip(predictions, loss[40:], strict=True)]
    assert 0.85 <= np.mean(held) <= 0.95


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (SIZES, (3.3774278705, 3.4552448155, 3.5283599844)),
        (np.repeat(np.geomspace(1e4, 1e6, 20), 2), (3.3919438586, 3.4547853701, 3.5161215693)),
    ],
)
def test_separate_runs_have_independent_errors(x: Array, expected: tuple[float, ...]) -> None:
    """Few sizes, or several runs of each: expected are the forecasts from before long curves had their own errors."""
    (p,) = Forecast(points_of(noisy(3 + 20 * x**-0.25), x, may_stop=True)).predict([4e6])
    assert (p.low, p.predicted, p.high) == pytest.approx(expected, rel=1e-9)


def test_many_points_of_one_curve_say_hardly_more_than_some_of_them() -> None:
    x = np.geomspace(1e4, 1e6, 400)
    rng = np.random.default_rng(0)
    loss = 1 + 20 * x**-0.25
    loss *= np.exp(0.01 * autocorrelated(x, rng) + 0.002 * rng.standard_normal(400))
    widths = []
    for step in (1, 4, 16):
        (p,) = Forecast(points_of(loss[::-step][::-1], x[::-step][::-1], may_stop=True)).predict([4e6])
        widths.append(p.high - p.low)
    assert max(widths) < 1.25 * min(widths)


def test_points_of_a_long_curve_are_merged_without_forgetting_their_scatter() -> None:
    """The marginal likelihood of a constant is the same, up to a factor, from all points and from cells of one size."""
    t_N = np.repeat(np.linspace(-4, 0, 20), 3)
    y_N = np.random.default_rng(0).standard_normal(60)
    t_C, y_C, errors = of_curve(t_N, y_N, 1.2)
    assert len(t_C) == 20
    prior, zero = Prior(np.zeros(1), np.array([np.inf]), 0.1, 0.8), np.zeros(1, dtype=int)
    cells = [posterior(Part(np.ones((1, 20, 1)), e, np.zeros(1), zero), y_C, prior) for e in errors]
    apart = t_N + 1e-12 * np.arange(60)  # so that no two points have the same size
    apart -= apart.max()
    _, every_y, each = of_curve(apart, y_N, 1.2)
    alone = [posterior(Part(np.ones((1, 60, 1)), e, np.zeros(1), zero), every_y, prior) for e in each]
    assert [float(p.square_G[0]) for p in cells] == pytest.approx([float(p.square_G[0]) for p in alone], rel=1e-5)
    difference = [float(p.log_G[0] - q.log_G[0]) for p, q in zip(cells, alone, strict=True)]
    assert difference == pytest.approx([difference[0]] * len(difference), abs=1e-4)
    assert len(of_curve(np.linspace(-4, 0, 1000), np.zeros(1000), 1.2)[0]) <= CELLS + 1


def test_a_long_curve_may_span_ten_decades() -> None:
    x = np.geomspace(1, 1e10, 14)
    (p,) = Forecast(points_of(noisy(2 + x**-0.2), x, may_stop=True)).predict([1e11])
    assert p.low < 2 + 1e11**-0.2 < p.high


def test_a_point_that_is_off_hardly_matters_on_a_long_curve() -> None:
    x = np.geomspace(1e4, 1e6, 40)
    loss = noisy(3 + 20 * x**-0.25, 2e-3)
    off = loss.copy()
    off[35] *= 1.2
    (clean,), (bent,) = (Forecast(points_of(y, x)).predict([4e6]) for y in (loss, off))
    assert bent.predicted == pytest.approx(clean.predicted, rel=0.01)
    assert bent.high - bent.low < 1.5 * (clean.high - clean.low)


def test_shares_of_the_data_tell_where_size_stops_paying() -> None:
    points = with_shares()
    largest = points.filter(pl.col("u") == 8e5)
    alone, told = Forecast(largest.drop("u")), Forecast(points)
    truth = 5 + 3 * (8e5**-2 + 1e5**-2) ** 0.125
    assert abs(told.curve([8e5])[0] - truth) < abs(alone.curve([8e5])[0] - truth) / 3
    (less,) = told.predict(np.array([[8e5, 2e5]]))
    assert (less.x, less.u) == (8e5, 2e5)
    assert less.predicted > told.curve([8e5])[0]


@pytest.mark.slow
def test_movielens_with_shares_is_predicted_within_half_a_percent() -> None:
    """Two to five of nine sizes are hidden. The law of size is off by 1.9 %, the no-gain baseline by 0.9 %."""
    points = read_points([ML_1M], shares=True)
    errors, inside = [], []
    for hidden in (2, 3, 4, 5):
        forecast, held_out = holdout_report(None, points, hidden)
        assert forecast.columns == ("x", "u")
        assert held_out is not None
        errors += [abs(p.error_pct) for p in held_out.points]
        inside += [p.inside for p in held_out.points]
    assert len(errors) == 26
    assert np.mean(errors) < 0.5
    assert all(inside)


def test_an_analysis_says_forecast_and_describes_by_a_law() -> None:
    sizes = np.geomspace(1e4, 1e7, 8)
    points = points_of(noisy(3 + 20 * sizes**-0.25, 3e-4), sizes)
    found = Analysis(*holdout_report(None, points, 2), points, {"x": "N_body", "y": "test_loss"})
    assert found.predictor.name == "forecast"
    assert found.fit.law.name == "lsrm"
    assert found.outlook.cautious is not None
    assert {method.name for method in found.methods} == {"forecast", "lsrm", "lsrm, E = 0"}
    said = " ".join(found.verdict)
    assert "The forecast holds" in said
    assert "; a cautious value is" in said


def test_too_few_sizes_or_equal_ones_are_refused() -> None:
    with pytest.raises(UserError, match="at least 4 distinct sizes, but there are 3"):
        Forecast(points_of(SIZES[:3] ** -0.1, SIZES[:3]))
    with pytest.raises(UserError, match="within 1% of 1e"):
        Forecast(points_of(SIZES**-0.1, 1e6 + np.arange(6)))


def test_a_curve_flattens_faster_if_all_sizes_have_the_same_data() -> None:
    """The noise is too large to tell whether the curve bends."""
    points = points_of(noisy(6 * SIZES**-0.05, sigma=0.01))
    same, nearly, more = (points.with_columns(d=pl.Series(d)) for d in (0 * SIZES + 1e6, 2e6 + SIZES, 20 * SIZES))
    unknown, grows, fixed, alike = (Forecast(each).predict([1.6e7])[0] for each in (points, more, same, nearly))
    assert unknown == grows
    assert fixed == alike
    assert fixed.predicted > unknown.predicted


def test_a_noisy_curve_of_many_sizes_may_span_eighteen_e_folds() -> None:
    """Curves that stop near the smallest of these sizes are flat at all others."""
    x = np.exp(np.linspace(0, 18, 13))
    (p,) = Forecast(points_of(noisy(2 + 8 * x**-0.2, 0.05), x, may_stop=True)).predict([10 * x[-1]])
    assert p.low < 2 + 8 * (10 * x[-1]) ** -0.2 < p.high
