"""Fits a scaling law to points: the parameters with the least objective, how they were found, and what follows.

Shapes: S starts, N points, V variables, T parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from scipy.optimize import lsq_linear

from lrec.errors import UserError
from lrec.laws.descent import VANISHED, Kind, Objective, Problem
from lrec.laws.intervals import Prediction, Profile
from lrec.laws.law import Array, Law, as_columns
from lrec.laws.search import search
from lrec.laws.table import check_places

ZERO = 1e-8  # residuals below this are zero
AGREED = 1.001  # starts that end below this multiple of the best objective agree


@dataclass(frozen=True)
class Diagnostics:
    """How the search went. Derivatives are with respect to the logarithms of the parameters, with x normalised."""

    starts: int
    share_agreeing: float  # share of the starts that ended within 0.1 % of the lowest objective
    bound_hits: tuple[str, ...]
    gradient_norm: float  # largest component of the gradient, without those that a bound holds
    condition_number: float  # of the Jacobian of the log loss


@dataclass(frozen=True, eq=False)
class Fit:
    """The law with the parameters that explain the points best, and where the starts of the search ended."""

    problem: Problem
    points: pl.DataFrame  # columns as in `laws.table`
    theta_T: Array
    ends_ST: Array

    @property
    def law(self) -> Law:
        return self.problem.law

    @property
    def name(self) -> str:
        return self.law.name

    @property
    def columns(self) -> tuple[str, ...]:
        return self.law.columns

    @cached_property
    def x_NV(self) -> Array:
        return self.points.select(self.columns).to_numpy().astype(float)

    @property
    def x_N(self) -> Array:
        """The first variable: the size."""
        return self.x_NV[:, 0]

    @property
    def y_N(self) -> Array:
        return self.problem.y_SN[0]

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters by their names in `law.formula`, in the units of the data."""
        return self.problem.parameters(self.theta_T)

    @property
    def residual_N(self) -> Array:
        """Actual minus fitted, of ln L or of L, depending on the objective."""
        return self.problem.residuals(self.theta_T[None])[0]

    @property
    def value(self) -> float:
        return float(self.problem.values(self.theta_T[None])[0])

    @property
    def r2(self) -> float:
        spread = float(((self.y_N - self.y_N.mean()) ** 2).sum())
        return 1 - float(((self.y_N - self.curve(self.x_NV)) ** 2).sum()) / spread if spread > 0 else 0.0

    def curve(self, x: Sequence[float] | Array) -> Array:
        """The loss at x, (N,) or (N, V)."""
        return self.problem.curve(self.theta_T, x)

    def predict(self, x: Sequence[float] | Array) -> list[Prediction]:
        """The loss at each x, with the 90 % intervals of the mean curve and of a new run."""
        return self.profile.predict(x)

    @cached_property
    def profile(self) -> Profile:
        """The 90 % intervals of parameters and predictions: all that explains the points nearly as well as this fit."""
        return Profile(self.problem, self.theta_T)

    @cached_property
    def diagnostics(self) -> Diagnostics:
        problem, end_S = self.problem, self.problem.values(self.ends_ST)
        free_T = (self.theta_T > problem.low_T) & (self.theta_T < problem.high_T)
        jacobian_NT = self.law.jacobian(self.theta_T[None], problem.z_NV)[0]
        gradient_T = _gradient(problem, self.theta_T, free_T)
        return Diagnostics(
            starts=len(self.ends_ST),
            share_agreeing=float(np.mean(end_S <= end_S.min() * AGREED + 1e-15)),
            bound_hits=tuple(np.array(self.law.parameters)[~free_T & (problem.low_T < problem.high_T)].tolist()),
            gradient_norm=float(np.abs(np.where(problem.held(self.theta_T, gradient_T), 0.0, gradient_T)).max()),
            condition_number=float(np.linalg.cond(jacobian_NT[:, free_T])) if free_T.any() else 1.0,
        )

    @property
    def bic(self) -> float:
        """Bayesian information criterion, up to a constant that laws fitted to the same points share. The logarithm of
        the likelihood is the objective: Gaussian for lsq, Laplace for huber and lad."""
        return self._deviance + (self.problem.n_free + 1) * float(np.log(len(self.points)))

    @property
    def aicc(self) -> float:
        """Akaike's criterion, corrected for few points (Hurvich and Tsai 1989); infinite if the points are too few."""
        n, p = len(self.points), self.problem.n_free + 1
        return self._deviance + 2 * p + (2 * p * (p + 1) / (n - p - 1) if n > p + 1 else np.inf)

    @property
    def _deviance(self) -> float:
        """Minus twice the log-likelihood, with an estimated scale of the residuals."""
        n, residual_N = len(self.points), self.residual_N
        if self.problem.objective.kind == "lsq":
            return n * float(np.log(2 * np.pi * np.maximum((residual_N**2).mean(), 1e-300)) + 1)
        return 2 * n * float(np.log(2 * np.maximum(np.abs(residual_N).mean(), 1e-150)) + 1)


def fit(
    law: Law,
    x: Sequence[float] | Array,
    y: Sequence[float] | Array,
    objective: Objective | Kind = "huber",
    fixed: Mapping[str, float] | None = None,
) -> Fit:
    """Fit `law` to losses y at x.

    Args:
        law: One of `LAWS`, or your own law.
        x: Positive sizes, (N,), or a column for each variable of the law, (N, V). Sizes may repeat (other seeds).
        y: Positive losses in nats.
        objective: An `Objective`, or huber, lad (least absolute deviations), lsq (least squares) of the log loss.
        fixed: Parameters to hold at a value. A coefficient needs its exponents: A of A/N^a can be fixed only with a.

    Raises:
        UserError: There are fewer distinct sizes than parameters + 1, or all are nearly equal; a value is not positive
            and finite; the objective is unknown; a parameter cannot be fixed.
    """
    x_N, y_N = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x_N) != len(y_N) or y_N.ndim != 1 or x_N.ndim > 2:
        raise UserError(f"fit: x and y must have the same length, not {x_N.shape} and {y_N.shape}")
    points = pl.DataFrame(dict(zip(law.columns, as_columns(law, x_N).T, strict=True)) | {"y": y_N})
    return fit_points(law, points, objective, fixed)


def fit_points(
    law: Law, points: pl.DataFrame, objective: Objective | Kind = "huber", fixed: Mapping[str, float] | None = None
) -> Fit:
    """Fit `law` to points, as `laws.table` returns them; see `fit`."""
    objective, fixed = objective if isinstance(objective, Objective) else Objective(objective), fixed or {}
    x_NV, y_N = points.select(law.columns).to_numpy().astype(float), points["y"].to_numpy().astype(float)
    _check(law, x_NV, y_N, fixed)
    unit_V = law.units(x_NV)
    problem = Problem(law, objective, unit_V, np.log(x_NV / unit_V), y_N[None], *_bounds(law, y_N, unit_V, fixed))
    return Fit(problem, points, *search(problem))


def _gradient(problem: Problem, theta_T: Array, free_T: Array) -> Array:
    """The gradient of the objective. For absolute deviations, it is the smallest subgradient: at a residual of zero,
    any slope between the left and the right slope is possible."""
    if problem.objective.kind != "lad":
        return problem.slopes(theta_T[None])[0][0]
    residual_N, jacobian_NT = problem.residuals(theta_T[None])[0], problem.jacobian(theta_T[None])[0]
    zero_N = np.abs(residual_N) < ZERO
    rest_T: Array = np.sign(residual_N)[~zero_N] @ jacobian_NT[~zero_N]
    if zero_N.any() and free_T.any():
        slope_Z = lsq_linear(jacobian_NT[zero_N][:, free_T].T, -rest_T[free_T], bounds=(-1.0, 1.0)).x
        rest_T = rest_T + slope_Z @ jacobian_NT[zero_N]
    return rest_T


def _check(law: Law, x_NV: Array, y_N: Array, fixed: Mapping[str, float]) -> None:
    for name, values in (*zip(law.columns, x_NV.T, strict=True), ("y", y_N)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise UserError(f"fit: every value of {name} must be positive and finite")
    for name in fixed:
        if name not in law.parameters:
            raise UserError(f"fit: the law {law.name} has no parameter '{name}'; it has {', '.join(law.parameters)}")
    if "U" in law.variables and (x_NV[:, 1] < x_NV[:, 2] * (1 - 1e-9)).any():
        raise UserError("fit: D is below U at some point: D counts all interactions processed, U the unique ones")
    check_places(f"the law {law.name}", x_NV, law.variables, len(law.parameters) - len(fixed) + 1)


def _bounds(law: Law, y_N: Array, unit_V: Array, fixed: Mapping[str, float]) -> tuple[Array, Array]:
    shape = np.log(np.array(law.shape_bounds)).T
    k = law.n_coefficients
    low_T = np.concatenate([np.full(k, np.log(y_N.min()) - VANISHED), shape[0]])
    high_T = np.concatenate([np.full(k, np.log(y_N.max()) + VANISHED), shape[1]])
    held_T = law.theta(fixed, unit_V)
    for name, value in fixed.items():
        if value <= 0 and law.parameters.index(name) < k:  # a coefficient that is fixed at zero
            held_T[law.parameters.index(name)] = low_T[0] - 600
    held = np.isfinite(held_T)
    if held.sum() < len(fixed):
        raise UserError(f"fit: {', '.join(fixed)} cannot be fixed without the exponents they go with")
    low_T[held] = high_T[held] = held_T[held]
    return low_T, high_T
