"""Fits a scaling law to points: the parameters with the least objective, how they were found, and what follows.

scipy's trust region searches for them, from the best shapes of the law's grid. With f_scale = delta, scipy's huber loss
is r²/2 up to delta and delta (|r| - delta/2) beyond, as in `Objective`. Absolute deviations are least at a vertex.
There, usually as many residuals are zero as there are parameters. `descend` finds it.

Shapes: S starts, N points, V variables, K coefficients, H shape parameters, T = K + H parameters, F free ones.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy.optimize import least_squares, lsq_linear, nnls

from lrec.errors import UserError
from lrec.laws.descent import DELTA, VANISHED, Kind, Objective, Problem, descend
from lrec.laws.intervals import Prediction, Profile
from lrec.laws.law import Array, Law, Values, as_columns
from lrec.laws.table import check_places

ZERO = 1e-8  # residuals below this are zero
AGREED = 1.001  # starts that end below this multiple of the best objective agree
STARTS = 3  # how many shapes of the grid are followed
DELTAS = {"huber": (np.inf, 1e-2, DELTA), "lad": (np.inf, 1e-2, 1e-3, 1e-4), "lsq": (np.inf,)}
"""The deltas of each objective. Each starts where the one before ended. All are used, or only the last ones."""
ROUNDS, MOST_ROUNDS = 200, 4000  # of scipy: from each start, and from the best end, maybe in a long flat valley
INSIDE = 1e-10  # scipy needs starts at least this far inside the bounds
LEAST_SHARE = 1e-3  # least share of the losses that each term starts with: a term that starts at zero would stay there


@dataclass(frozen=True)
class Diagnostics:
    """How the search went. Derivatives are with respect to the logarithms of the parameters, with x normalised."""

    starts: int
    share_agreeing: float  # share of the starts that ended within 0.1 % of the lowest objective
    bound_hits: tuple[str, ...]
    gradient_norm: float  # largest component of the gradient, without those that a bound holds
    condition_number: float  # of the Jacobian of the log loss


@dataclass(eq=False)
class Fit:
    """The law with the parameters that explain the points best, and where the starts of the search ended.

    Attributes:
        points: The points, as `laws.table` returns them.
        columns: Those with the variables of the law. x_NV has their values, and x_N those of the first: the size.
        y_N: The losses.
        value: The objective.
        floor: The least possible loss, as far as it is known. No loss below it is expected (`predict.outlook`).
    """

    problem: Problem
    points: pl.DataFrame
    theta_T: Array
    ends_ST: Array
    floor: float = 0.0

    def __post_init__(self) -> None:
        self.law, self.name, self.columns = self.problem.law, self.problem.law.name, self.problem.law.columns
        self.x_NV: Array = self.points.select(self.columns).to_numpy().astype(float)
        self.x_N, self.y_N = self.x_NV[:, 0], self.problem.y_SN[0]
        self.value = float(self.problem.values(self.theta_T[None])[0])

    @property
    def residual_N(self) -> Array:
        """Actual minus fitted, of ln L or of L, depending on the objective."""
        return self.problem.residuals(self.theta_T[None])[0]

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters by their names in `law.formula`, in the units of the data."""
        return self.problem.parameters(self.theta_T)

    @property
    def r2(self) -> float:
        spread = float(((self.y_N - self.y_N.mean()) ** 2).sum())
        return 1 - float(((self.y_N - self.curve(self.x_NV)) ** 2).sum()) / spread if spread > 0 else 0.0

    def curve(self, x: ArrayLike) -> Array:
        """The loss at x, (N,) or (N, V)."""
        return self.problem.curve(self.theta_T, x)

    def predict(self, x: ArrayLike) -> list[Prediction]:
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
    law: Law, x: ArrayLike, y: ArrayLike, objective: Objective | Kind = "huber", fixed: Values | None = None
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
    law: Law, points: pl.DataFrame, objective: Objective | Kind = "huber", fixed: Values | None = None
) -> Fit:
    """Fit `law` to points, as `laws.table` returns them; see `fit`."""
    objective, fixed = objective if isinstance(objective, Objective) else Objective(objective), fixed or {}
    x_NV, y_N = points.select(law.columns).to_numpy().astype(float), points["y"].to_numpy().astype(float)
    for name, values in (*zip(law.columns, x_NV.T, strict=True), ("y", y_N)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise UserError(f"fit: every value of {name} must be positive and finite")
    if unknown := [name for name in fixed if name not in law.parameters]:
        raise UserError(f"fit: the law {law.name} has no parameter '{unknown[0]}'; it has {', '.join(law.parameters)}")
    if "U" in law.variables and (x_NV[:, 1] < x_NV[:, 2] * (1 - 1e-9)).any():
        raise UserError("fit: D is below U at some point: D counts all interactions processed, U the unique ones")
    check_places(f"the law {law.name}", x_NV, law.variables, len(law.parameters) - len(fixed) + 1)
    unit_V = law.units(x_NV)
    problem = Problem(law, objective, unit_V, np.log(x_NV / unit_V), y_N[None], *_bounds(law, y_N, unit_V, fixed))
    return Fit(problem, points, *_search(problem))


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


def _bounds(law: Law, y_N: Array, unit_V: Array, fixed: Values) -> tuple[Array, Array]:
    k, (low_H, high_H) = law.n_coefficients, np.log(law.shape_bounds).T
    low_T = np.append(np.full(k, np.log(y_N.min()) - VANISHED), low_H)
    high_T = np.append(np.full(k, np.log(y_N.max()) + VANISHED), high_H)
    held_T = law.theta(fixed, unit_V)
    held_T[[i for i in range(k) if fixed.get(law.parameters[i], 1.0) <= 0]] = low_T[0] - 600  # fixed at zero
    held = np.isfinite(held_T)
    if held.sum() < len(fixed):
        raise UserError(f"fit: {', '.join(fixed)} cannot be fixed without the exponents they go with")
    low_T[held] = high_T[held] = held_T[held]
    return low_T, high_T


def _search(problem: Problem) -> tuple[Array, Array]:
    """The best parameters, theta_T, and where each start ended, theta_ST."""
    start_ST, all_deltas = _starts(problem), DELTAS[problem.objective.kind]
    last_deltas = all_deltas[2:] or all_deltas  # for least squares, they are the same: one way from the first start
    ways = [(start_ST[0], all_deltas), *((start_T, last_deltas) for start_T in start_ST[last_deltas == all_deltas :])]
    ends_ST = np.array([_follow(problem, start_T, deltas, ROUNDS) for start_T, deltas in ways])
    return _on_bounds(problem, _end(problem, ends_ST[problem.values(ends_ST).argmin()])), ends_ST


def _end(problem: Problem, theta_T: Array) -> Array:
    """The minimum near `theta_T`."""
    end_T = _follow(problem, theta_T, DELTAS[problem.objective.kind][-1:], MOST_ROUNDS)
    return descend(problem, end_T[None])[0][0] if problem.objective.kind == "lad" else end_T


def _starts(problem: Problem) -> Array:
    """The best shapes of the law's grid, each with coefficients by least squares of the relative residuals."""
    law, z_NV, y_N = problem.law, problem.z_NV, problem.y_SN[0]
    start_ST = []
    for shape_H in product(*law.shape_starts):
        phi_NK = np.exp(law.log_basis(np.array([shape_H]), z_NV)[0]) / y_N[:, None]
        least_K = LEAST_SHARE / np.maximum(phi_NK.mean(0), 1e-100)
        start_ST.append(np.log([*np.maximum(nnls(phi_NK, np.ones(len(y_N)))[0], least_K), *shape_H]))
    clipped_ST = np.unique(np.clip(start_ST, problem.low_T, problem.high_T), axis=0)
    value_S = [problem.values(start_T[None])[0] for start_T in clipped_ST]
    return clipped_ST[np.argsort(value_S, stable=True)[:STARTS]]


def _follow(problem: Problem, theta_T: Array, deltas: tuple[float, ...], rounds: int) -> Array:
    """Where scipy ends after it has used one delta after the other."""
    free_F, theta_T = np.flatnonzero(problem.high_T > problem.low_T), theta_T.copy()
    low_F, high_F = problem.low_T[free_F], problem.high_T[free_F]

    def whole(theta_F: Array) -> Array:
        theta_1T = theta_T[None].copy()
        theta_1T[0, free_F] = theta_F
        return theta_1T

    for delta in deltas if len(free_F) else ():
        huber = {} if np.isinf(delta) else {"loss": "huber", "f_scale": delta}
        theta_T[free_F] = least_squares(
            lambda theta_F: problem.residuals(whole(theta_F))[0],
            np.clip(theta_T[free_F], low_F + INSIDE, high_F - INSIDE),
            lambda theta_F: problem.jacobian(whole(theta_F))[0][:, free_F],
            bounds=(low_F, high_F), x_scale="jac", ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=rounds, **huber,
        ).x  # fmt: skip
    return theta_T


def _on_bounds(problem: Problem, theta_T: Array) -> Array:
    """Put parameters that ended near a bound onto this bound, if the other parameters can compensate for it."""
    for t, (low, high) in enumerate(zip(problem.low_T, problem.high_T, strict=True)):
        at, margin = theta_T[t], VANISHED / 2 if t < problem.law.n_coefficients else 0.5
        bound = low if at - low < high - at else high
        if not 0 < abs(at - bound) < margin:
            continue
        low_T, high_T, trial_T = problem.low_T.copy(), problem.high_T.copy(), theta_T.copy()
        low_T[t] = high_T[t] = trial_T[t] = bound
        end_T = _end(replace(problem, low_T=low_T, high_T=high_T), trial_T)
        value, end = problem.values(np.array([theta_T, end_T]))
        if end <= value * (1 + 1e-7) + 1e-14:
            theta_T = end_T
    return theta_T
