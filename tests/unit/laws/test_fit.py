"""The fit against exact answers, scipy's general optimisers and the laws of scaling themselves."""

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares, minimize
from scipy.special import huber

from lrec.errors import UserError
from lrec.laws.analysis import warnings
from lrec.laws.fit import fit, fit_points
from lrec.laws.law import Array, Law
from lrec.laws.loss_laws import LAWS

LSRM = LAWS["lsrm"]
SIZES = np.geomspace(1e5, 1e7, 6)


def noisy(seed: int, sizes: Array = SIZES, sigma: float = 0.003) -> Array:
    noise = np.random.default_rng(seed).standard_normal(len(sizes))
    return (4 + 1.2 * sizes**-0.12) * np.exp(sigma * noise)


def log_residuals(theta: Array, x: Array, y: Array) -> Array:
    """Written out from the formula: theta is E, log x0, a."""
    floor, log_x0, exponent = theta
    return np.log(y) - np.log(floor + np.exp(exponent * (log_x0 - np.log(x))))


@given(
    floor=st.floats(0.1, 8),
    amplitude=st.floats(0.05, 5),
    exponent=st.floats(0.03, 1.5),
    smallest=st.floats(1e2, 1e9),
    objective=st.sampled_from(["huber", "lad", "lsq"]),
)
@settings(max_examples=15, deadline=None)
def test_noiseless_points_give_their_parameters_back(
    floor: float, amplitude: float, exponent: float, smallest: float, objective: str
) -> None:
    x = smallest * np.geomspace(1, 300, 6)
    y = floor + amplitude * (x / smallest) ** -exponent
    fitted = fit(LSRM, x, y, objective)  # type: ignore[arg-type]
    truth = {"E": floor, "x0": smallest * amplitude ** (1 / exponent), "a": exponent}
    assert fitted.parameters == pytest.approx(truth, rel=1e-6)
    assert fitted.r2 == pytest.approx(1)


@pytest.mark.parametrize("seed", [1, 4, 5])
def test_least_squares_agrees_with_scipy(seed: int) -> None:
    x, y = SIZES, noisy(seed)
    ends = [
        least_squares(log_residuals, start, args=(x, y), xtol=1e-15, ftol=1e-15, gtol=1e-15, x_scale=(1, 10, 0.1),
                      bounds=([0, -np.inf, 0.005], [np.inf, np.inf, 5]), max_nfev=4000)
        for start in ([3.9, 1.0, 0.1], [4.1, 5.0, 0.3])
    ]  # fmt: skip
    best = min(ends, key=lambda end: end.cost)
    fitted = fit(LSRM, x, y, "lsq")
    assert fitted.value <= best.cost * (1 + 1e-9)
    assert fitted.curve(x) == pytest.approx(y / np.exp(best.fun), rel=1e-5)


@pytest.mark.parametrize(("objective", "power"), [("huber", 1e-3), ("lad", 0.0)])
def test_robust_objectives_are_sums_and_no_worse_than_a_simplex_search(objective: str, power: float) -> None:
    x, y = SIZES, noisy(2)

    def total(theta: Array) -> float:
        residuals = log_residuals(theta, x, y)
        return float(huber(power, residuals).sum() if power else np.abs(residuals).sum())

    options = {"xatol": 1e-12, "fatol": 1e-16, "maxiter": 20000, "maxfev": 20000}
    reference = min(
        minimize(total, start, method="Nelder-Mead", options=options).fun for start in ([4, 1.5, 0.12], [4.1, 6, 0.4])
    )
    fitted = fit(LSRM, x, y, objective)  # type: ignore[arg-type]
    assert fitted.value <= reference * (1 + 1e-4)
    p = fitted.parameters
    assert fitted.value == pytest.approx(total(np.array([p["E"], np.log(p["x0"]), p["a"]])), rel=1e-3)


def test_the_robust_fit_shrugs_off_an_outlier_that_bends_least_squares() -> None:
    x = np.geomspace(1e5, 1e7, 10)
    y = 4 + 1.2 * x**-0.12
    y[8] *= 1.02
    truth = 4 + 1.2 * 8e7**-0.12
    errors = [abs(fit(LSRM, x, y, o).curve([8e7])[0] / truth - 1) for o in ("huber", "lsq")]
    assert errors[0] < errors[1] / 5


@given(scale=st.sampled_from([1e-6, 1e3, 1e12]), seed=st.integers(0, 50))
@settings(max_examples=6, deadline=None)
def test_the_unit_of_x_and_the_order_of_points_do_not_matter(scale: float, seed: int) -> None:
    y = noisy(seed, sigma=0.0005)
    order = np.random.default_rng(seed).permutation(len(y))
    one, other = fit(LSRM, SIZES, y), fit(LSRM, scale * SIZES[order], y[order])
    assume(not one.diagnostics.bound_hits)
    assert one.parameters["E"] == pytest.approx(other.parameters["E"], rel=1e-5)
    assert one.curve([8e7]) == pytest.approx(other.curve([8e7 * scale]), rel=1e-6)
    assert np.log(other.parameters["x0"] / one.parameters["x0"]) == pytest.approx(np.log(scale), abs=1e-3)


@pytest.mark.parametrize("law", LAWS.values(), ids=lambda law: law.name)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_a_laws_jacobian_is_its_derivative(law: Law, data: st.DataObject) -> None:
    """The derivative of ln L by ln(coefficients, shape), at points with and without repeats."""
    z = np.sort(np.array(data.draw(st.lists(st.floats(-3, 3), min_size=12, max_size=12))).reshape(4, 3), axis=0)
    z = z[:, : len(law.variables)]
    z[1:, 1:2] += 0.5
    z[:, 2:] = np.minimum(z[:, 2:], z[:, 1:2])
    bounds = [(-3.0, 1.0)] * law.n_coefficients + [
        (max(np.log(low), np.log(0.05)), min(np.log(high), np.log(50))) for low, high in law.shape_bounds
    ]
    theta = np.array([data.draw(st.floats(*b)) for b in bounds])
    found = law.jacobian(theta[None], z)[0]
    numeric = [
        (law.log_loss((theta + 1e-5 * e)[None], z)[0] - law.log_loss((theta - 1e-5 * e)[None], z)[0]) / 2e-5
        for e in np.eye(len(theta))
    ]
    assume(max(np.abs(found).max(), np.abs(numeric).max()) < 100)  # above that, differences are not derivatives
    assert found == pytest.approx(np.transpose(numeric), rel=1e-3, abs=1e-3)


def test_tight_tolerances_bring_the_starts_together_and_the_gradient_to_zero() -> None:
    d = fit(LSRM, SIZES, noisy(2)).diagnostics
    assert d.starts >= 4
    assert d.share_agreeing > 0.5
    assert d.gradient_norm < 1e-7
    assert 1 < d.condition_number < 1e6


def test_a_long_valley_of_the_shape_is_followed_to_its_end() -> None:
    """Steps of one length would take an hour here."""
    x = np.array([(n, d) for n in (1e6, 1e7) for d in (1e8, 1e9, 1e10)])
    profile = fit(
        LAWS["kaplan"], x, LAWS["chinchilla"].loss({"E": 1.7, "A": 400, "B": 410, "a": 0.34, "b": 0.28}, x)
    ).profile
    assert profile.dof == 2, "aN ends on its bound, and costs no degree of freedom"


def test_too_few_sizes_are_refused_however_many_seeds() -> None:
    x = np.repeat([1e5, 1e6, 1e7], 5)
    with pytest.raises(UserError, match="needs at least 4 distinct sizes, but there are 3"):
        fit(LSRM, x, 4 + 1.2 * x**-0.12)


def test_values_that_are_no_losses_are_refused() -> None:
    with pytest.raises(UserError, match="positive"):
        fit(LSRM, SIZES, [5, 4, 3, np.nan, 2, 1])
    with pytest.raises(UserError, match="within 1% of 1e"):
        fit(LSRM, 1e6 + np.arange(6), noisy(0))
    with pytest.raises(UserError, match="huber, lad, lsq"):
        fit(LSRM, SIZES, noisy(0), "ols")  # type: ignore[arg-type]


def test_a_loss_that_rises_with_size_gets_a_warning() -> None:
    y = 4 + 1.2 * SIZES**-0.12
    assert warnings(fit(LSRM, SIZES, y), None) == []
    y[3] = y[2] + 0.01
    assert any(w.startswith("not monotone") for w in warnings(fit(LSRM, SIZES, y), None))


def test_a_loss_that_rises_with_size_at_the_same_data_gets_a_warning() -> None:
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e4, 1e7, 4), np.geomspace(1e6, 1e8, 3)))
    law = LAWS["chinchilla"]
    y = law.loss({"E": 2.0, "A": 50.0, "B": 80.0, "a": 0.3, "b": 0.25}, np.stack([n, d], 1))
    points = pl.DataFrame({"x": n, "d": d, "y": y})
    assert not any("not monotone" in w for w in warnings(fit_points(law, points), None))
    risen = points.with_columns(y=pl.when(pl.col("x") > 5e6).then(pl.col("y") + 0.5).otherwise("y"))
    found = warnings(fit_points(law, risen), None, x="params")
    assert any("rises with params at the same data from 1e+06 to 1e+07" in w for w in found)
    assert any(w.startswith("only 4 sizes") for w in found)


def test_few_sizes_and_bound_hits_get_warnings() -> None:
    fitted = fit(LSRM, SIZES[:4], 9 * SIZES[:4] ** -0.1)
    assert fitted.diagnostics.bound_hits == ("E",)
    assert any(w.startswith("only 4 sizes") for w in warnings(fitted, None))
    assert any("E ended on a bound" in w for w in warnings(fitted, None))
