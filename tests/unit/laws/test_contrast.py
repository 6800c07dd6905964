"""Curves with a known crossing: it is found, and intervals cover it as often as they say. Also the refits behind it."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from lrec.errors import UserError
from lrec.laws.contrast import _resampled, _runs, contrast, refits_of
from lrec.laws.fit import Fit, fit, fit_points
from lrec.laws.law import Array
from lrec.laws.loss_laws import LAWS, law_named

SIZES = np.repeat(np.geomspace(3e3, 3e6, 7), 2)


def ladder(floor: float, scale: float, exponent: float, noise: float, seed: int) -> Fit:
    """The law fitted to points of floor + (scale / N) ** exponent, each off by a factor of about 1 ± `noise`."""
    random = np.random.default_rng(seed)
    loss = (floor + (scale / SIZES) ** exponent) * np.exp(noise * random.standard_normal(len(SIZES)))
    return fit_points(law_named("lsrm"), pl.DataFrame({"x": SIZES, "y": loss}))


# 2 + (1e4 / N) ** 0.2 and 2 + (S / N) ** 0.4 cross where (1e4 / N) ** 0.2 = (S / N) ** 0.4: N = S² / 1e4.
CROSSING = 1e5
STEEP = (2.0, (1e4 * CROSSING) ** 0.5, 0.4)
FLAT = (2.0, 1e4, 0.2)


def test_without_noise_the_crossing_is_exact() -> None:
    found = contrast(ladder(*FLAT, 1e-6, 0), ladder(*STEEP, 1e-6, 1))
    assert found.crossing == pytest.approx(CROSSING, rel=0.01)
    assert found.crossing_low <= found.crossing <= found.crossing_high < 1.1 * CROSSING
    assert found.exponent == pytest.approx(-0.2, abs=1e-3)
    assert found.told_apart
    assert found.lower_before  # the flat curve, at small sizes


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = []
    for seed in range(12):
        found = contrast(ladder(*FLAT, 0.003, seed), ladder(*STEEP, 0.003, 100 + seed))
        assert found.crossing is not None
        held.append(found.crossing_low <= CROSSING <= found.crossing_high)
    assert np.mean(held) > 0.6


def test_curves_that_do_not_cross_have_no_crossing() -> None:
    found = contrast(ladder(2.0, 1e4, 0.2, 1e-4, 0), ladder(2.5, 1e4, 0.2, 1e-4, 1))
    assert found.crossing is None
    assert found.lower_before
    assert found.share == 0
    assert not found.told_apart
    assert found.times == np.inf  # 2.5 is more than the first's loss at the largest size


@pytest.mark.parametrize("factor", [pytest.param(0.25, marks=pytest.mark.slow), 4.0])
def test_what_the_second_needs_for_the_loss_of_the_first(factor: float) -> None:
    found = contrast(ladder(2.0, 1e4, 0.2, 1e-6, 0), ladder(2.0, factor * 1e4, 0.2, 1e-6, 1))
    assert found.reached == SIZES.max()
    assert found.times == pytest.approx(factor, rel=0.01)
    assert found.times_low <= found.times <= found.times_high
    assert found.times_high < 1.1 * found.times_low


def of_size(n: int, noise: float, objective: str = "lsq") -> Fit:
    """The law fitted to points of 2 + (1e4 / N)^0.3 at n sizes."""
    size = np.geomspace(1e3, 1e7, n)
    loss = (2 + (1e4 / size) ** 0.3) * np.exp(noise * np.random.default_rng(0).standard_normal(n))
    return fit(LAWS["lsrm"], size, loss, objective)  # type: ignore[arg-type]


def spread(fitted: Fit, refits: int = 500) -> float:
    """Standard deviation of the refits' log losses at eight times the largest size."""
    place = np.log(np.array([[8 * fitted.x_N.max()]]) / fitted.problem.unit_V)
    log_loss_B1 = fitted.law.log_loss(refits_of(fitted, refits), place)
    return float(log_loss_B1.std())


@pytest.mark.slow
def test_refits_scatter_as_the_delta_method_says_if_there_are_many_points() -> None:
    fitted = of_size(80, 0.005)
    jacobian = fitted.law.jacobian(fitted.theta_T[None], fitted.problem.z_NV)[0]
    place = np.log(np.array([[8e7]]) / fitted.problem.unit_V)
    gradient = fitted.law.jacobian(fitted.theta_T[None], place)[0, 0]
    covariance = (fitted.residual_N**2).sum() / 77 * np.linalg.inv(jacobian.T @ jacobian)
    assert spread(fitted, 2000) == pytest.approx(float(np.sqrt(gradient @ covariance @ gradient)), rel=0.08)


@pytest.mark.parametrize("objective", ["huber", "lsq"])
def test_refits_end_where_a_full_search_of_the_same_losses_does(objective: str) -> None:
    fitted = of_size(80, 0.005, objective)
    refits_BT = refits_of(fitted, refits=4)
    assert (refits_BT == refits_of(fitted, refits=4)).all()
    inflated_N = fitted.residual_N * np.sqrt(80 / 77)
    drawn_BN = _resampled(inflated_N, np.arange(80), 4, np.random.default_rng(0))
    assert np.isin(np.abs(drawn_BN), np.abs(inflated_N)).all()
    for theta_T, drawn_N in zip(refits_BT, drawn_BN, strict=True):
        again = fit(fitted.law, fitted.x_NV, fitted.curve(fitted.x_NV) * np.exp(drawn_N), fitted.problem.objective)
        assert replace(fitted, theta_T=theta_T).curve(fitted.x_NV) == pytest.approx(again.curve(fitted.x_NV), rel=2e-6)


@pytest.mark.slow
def test_points_of_one_run_count_once() -> None:
    """The points of a run share all of their noise, so ten points of one run say no more than one."""
    noise = 0.003 * np.random.default_rng(3).standard_normal(12)
    size = np.geomspace(1e5, 1e7, 12)

    def points_of(times: int) -> pl.DataFrame:
        loss = (4 + 1.2 * size**-0.12) * np.exp(noise)
        columns: dict[str, Array] = {"x": size, "y": loss, "run": np.arange(12)}
        return pl.DataFrame({name: np.repeat(values, times) for name, values in columns.items()})

    law = LAWS["lsrm"]
    clustered, single = (spread(fit_points(law, points_of(times), "lsq")) for times in (10, 1))
    naive = spread(fit_points(law, points_of(10).drop("run"), "lsq"))
    assert clustered == pytest.approx(single, rel=0.25)
    assert naive < clustered / 2


def test_points_without_a_run_are_runs_of_their_own() -> None:
    size = np.geomspace(1e5, 1e7, 12)
    points = pl.DataFrame({"x": size, "y": 4 + 1.2 * size**-0.12 + 0.01 * np.sin(size)})
    assert _runs(fit_points(LAWS["lsrm"], points)).tolist() == list(range(12))
    some = points.with_columns(run=pl.Series(["a", "a"] + [None] * 10))
    assert _runs(fit_points(LAWS["lsrm"], some)).tolist() == [0, *range(11)]


def test_too_few_runs_are_refused() -> None:
    size = np.repeat(np.geomspace(1e5, 1e7, 4), 2)
    points = pl.DataFrame(
        {"x": size, "y": 4 + 1.2 * size**-0.12 + 0.01 * np.sin(size), "run": [1, 1, 1, 1, 2, 2, 2, 2]}
    )
    with pytest.raises(UserError, match="more runs than 2"):
        refits_of(fit_points(LAWS["lsrm"], points))


def test_a_ladder_of_one_loss_has_no_exponent_to_compare() -> None:
    """Every exponent gives the same flat line, so none of them can be told apart from another."""
    points = pl.DataFrame({"x": SIZES, "y": np.full(len(SIZES), 3.0)})
    with pytest.raises(UserError, match="all losses of a ladder are equal"):
        contrast(fit_points(law_named("lsrm"), points), ladder(*STEEP, 1e-3, 1))
