"""Bootstrap intervals against theory, against the profile's, and over runs of several points."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from lrec.errors import UserError
from lrec.laws.bootstrap import _resampled, bootstrap
from lrec.laws.fit import Fit, fit, fit_points
from lrec.laws.forms import LAWS

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "a": 0.35, "b": 0.37}


def chinchilla(n: int = 80, noise: float = 0.005, objective: str = "lsq") -> Fit:
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(np.log([5e7, 1e9]), np.log([1.6e10, 3e11]), size=(n, 2)))
    y = LAWS["chinchilla"].loss(TRUTH, x) * np.exp(noise * rng.standard_normal(n))
    return fit(LAWS["chinchilla"], x, y, objective)  # type: ignore[arg-type]


def test_intervals_agree_with_the_delta_method_and_the_profile_where_there_are_many_points() -> None:
    fitted = chinchilla()
    place = np.array([[2e9, 3e10]])
    boot = bootstrap(fitted, refits=2000)
    (ours,), (profile,) = boot.predict(place), fitted.predict(place)
    _, jacobian = fitted.law.log_loss(fitted.theta_T[None], fitted.z_NV)
    _, gradient = fitted.law.log_loss(fitted.theta_T[None], np.log(place / fitted.unit_V))
    covariance = boot.sigma**2 * np.linalg.inv(jacobian[0].T @ jacobian[0])
    error = float(np.sqrt(gradient[0, 0] @ covariance @ gradient[0, 0])) * stats.t.ppf(0.95, 75)
    assert boot.dof == 75
    assert np.log(ours.mean_high / ours.predicted) == pytest.approx(error, rel=0.06)
    assert ours.mean_high - ours.mean_low == pytest.approx(profile.mean_high - profile.mean_low, rel=0.15)
    assert ours.high - ours.low == pytest.approx(profile.high - profile.low, rel=0.05)
    assert ours.low < ours.mean_low < ours.predicted < ours.mean_high < ours.high


@pytest.mark.parametrize("objective", ["huber", "lsq"])
def test_refits_end_where_a_full_search_of_the_same_losses_does(objective: str) -> None:
    fitted = chinchilla(objective=objective)
    boot = bootstrap(fitted, refits=4)
    assert (boot.theta_BT == bootstrap(fitted, refits=4).theta_BT).all()
    inflated_N = fitted.residual_N * np.sqrt(80 / 75)
    drawn_BN = _resampled(inflated_N, np.arange(80), 4, np.random.default_rng(0))
    assert np.isin(np.abs(drawn_BN), np.abs(inflated_N)).all()
    for theta_T, drawn_N in zip(boot.theta_BT, drawn_BN, strict=True):
        again = fit(fitted.law, fitted.x_NV, fitted.curve(fitted.x_NV) * np.exp(drawn_N), fitted.objective)
        assert fitted.at(theta_T).curve(fitted.x_NV) == pytest.approx(again.curve(fitted.x_NV), rel=2e-6)


def test_points_of_one_run_count_once() -> None:
    """Runs whose points share all of their noise: ten points of one run say no more than one does."""
    rng = np.random.default_rng(3)
    size = np.repeat(np.geomspace(1e5, 1e7, 12), 10)
    noise = np.repeat(0.003 * rng.standard_normal(12), 10)
    points = pl.DataFrame(
        {"x": size, "y": (4 + 1.2 * size**-0.12) * np.exp(noise), "run": np.repeat(np.arange(12), 10)}
    )
    law = LAWS["lsrm"]
    clustered = bootstrap(fit_points(law, points, "lsq"), 500)
    single = bootstrap(fit_points(law, points.unique("run").drop("run"), "lsq"), 500)
    naive = bootstrap(fit_points(law, points.drop("run"), "lsq"), 500)
    widths = [p.mean_high - p.mean_low for b in (clustered, single, naive) for p in b.predict([8e7])]
    assert clustered.dof == single.dof
    assert widths[0] == pytest.approx(widths[1], rel=0.25)
    assert widths[2] < widths[0] / 2


def test_points_without_a_run_are_runs_of_their_own() -> None:
    size = np.geomspace(1e5, 1e7, 12)
    points = pl.DataFrame({"x": size, "y": 4 + 1.2 * size**-0.12 + 0.01 * np.sin(size)})
    some = points.with_columns(run=pl.Series(["a", "a"] + [None] * 10))
    assert bootstrap(fit_points(LAWS["lsrm"], some), 50).dof == bootstrap(fit_points(LAWS["lsrm"], points), 50).dof - 1


def test_too_few_runs_are_refused() -> None:
    size = np.repeat(np.geomspace(1e5, 1e7, 4), 2)
    points = pl.DataFrame(
        {"x": size, "y": 4 + 1.2 * size**-0.12 + 0.01 * np.sin(size), "run": [1, 1, 1, 1, 2, 2, 2, 2]}
    )
    with pytest.raises(UserError, match="more runs than 2"):
        bootstrap(fit_points(LAWS["lsrm"], points))
