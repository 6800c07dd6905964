"""The objective of a fit, and a descent from many starts, or for many sets of losses, at once.

The descent makes Levenberg-Marquardt steps on reweighted least squares, clipped to the bounds. scipy searches for a
fit (`fit`). A thousand refits are made here together: scipy makes them one after the other, which takes eighty times
as long (benchmarks/laws.py --refits).

Shapes: S rows, each with a start, N points, V variables, T parameters.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from lrec.errors import UserError
from lrec.laws.law import Array, Law, as_columns

Kind = Literal["huber", "lad", "lsq"]
Residuals = Literal["log", "level"]

DELTA = 1e-3  # where Huber's function turns from r²/2 to delta (|r| - delta/2)
LAD_DELTA = 1e-12  # residuals below this have the slope of a square, which makes absolute deviations differentiable
RIDGE = 1e-9  # on the diagonal of the parameters' correlation matrix: it stays regular if a parameter has no effect
ROUNDS, TOLERANCE = 400, 1e-12  # most steps, and the relative fall of the objective that counts as no fall
FIRST_DAMPING, MOST_DAMPING = 1e-3, 1e8
"""The descent ends if a step with at most the first damping hardly falls, or if one above the second does not fall."""
LONGEST = 4.0  # the longest step of a parameter in e-folds: the quadratic model is wrong for longer steps
VANISHED = 16.0  # coefficients are between e^-16 times the lowest loss, which counts as 0, and e^16 times the highest
FLOORS = (0.05, 0.5, 0.9)  # shares of the lowest loss where refits start too: a floor at zero would not rise by itself


@dataclass(frozen=True)
class Objective:
    """The sum over points of a function of the residual r, actual minus fitted: Huber's function (kind huber), |r|
    (lad, least absolute deviations) or r²/2 (lsq, least squares). Residuals are of the logarithm of the loss (log) or
    of the loss (level). A mean of Huber terms would be so small that optimisers reach their tolerances too early."""

    kind: Kind = "huber"
    residuals: Residuals = "log"

    def __post_init__(self) -> None:
        for option, value, known in (("objective", self.kind, Kind), ("residuals", self.residuals, Residuals)):
            if value not in get_args(known):
                raise UserError(f"--{option}: '{value}' is none of {', '.join(get_args(known))}")

    def terms(self, residual: Array) -> Array:
        """Each point's term of the objective."""
        size = np.abs(residual)
        if self.kind == "lad":
            return size
        quadratic = size if self.kind == "lsq" else np.minimum(size, DELTA)
        return quadratic * (size - quadratic / 2)

    def weights(self, residual: Array) -> Array:
        """Weights of the squared residuals, with which their sum has the slope of the objective."""
        if self.kind == "lsq":
            return np.ones_like(residual)
        delta, unit = (DELTA, 1.0) if self.kind == "huber" else (LAD_DELTA, LAD_DELTA)
        return np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300)) / unit


@dataclass(frozen=True, eq=False)
class Problem:
    """What each row minimises: the objective of a law's residuals at the points. theta_T has the logarithms of the
    parameters of the law's basis: first the coefficients, then the shape."""

    law: Law
    objective: Objective
    unit_V: Array  # units of the variables (`Law.units`), by which the law divides them internally
    z_NV: Array  # logarithms of the variables in these units
    y_SN: Array  # losses: one row for all starts, or one row for each start
    low_T: Array  # bounds, equal if a parameter is fixed
    high_T: Array

    @property
    def n_free(self) -> int:
        """The number of parameters that are not fixed."""
        return int((self.low_T < self.high_T).sum())

    def parameters(self, theta_T: Array) -> dict[str, float]:
        """The parameters by their names in `law.formula`, in the units of the data. A vanished coefficient is zero."""
        log_c_K, log_shape_H = np.split(theta_T, [self.law.n_coefficients])
        coefficients_K = np.where(log_c_K <= np.log(self.y_SN[0].min()) - VANISHED + 1e-9, 0.0, np.exp(log_c_K))
        return self.law.named(coefficients_K, np.exp(log_shape_H), self.unit_V)

    def starts(self, theta_T: Array) -> Array:
        """Where refits start: these parameters, and the same parameters with other floors, (S, T)."""
        start_ST = np.tile(theta_T, (1 + len(FLOORS) * self.law.has_floor, 1))
        start_ST[1:, 0] = np.log(self.y_SN[0].min() * np.array(FLOORS[: len(start_ST) - 1]))
        return start_ST

    def curve(self, theta_T: Array, x: ArrayLike) -> Array:
        """The loss at x, (N,) or (N, V)."""
        return np.exp(self.law.log_loss(theta_T[None], np.log(as_columns(self.law, x) / self.unit_V))[0])

    def residuals(self, theta_ST: Array) -> Array:
        """Actual minus fitted, of ln L or of L, depending on the objective, (S, N)."""
        log_loss_SN = self.law.log_loss(theta_ST, self.z_NV)
        return np.log(self.y_SN) - log_loss_SN if self.objective.residuals == "log" else self.y_SN - np.exp(log_loss_SN)

    def jacobian(self, theta_ST: Array) -> Array:
        """The derivatives of the residuals with respect to theta, (S, N, T)."""
        jacobian_SNT = -self.law.jacobian(theta_ST, self.z_NV)
        if self.objective.residuals == "level":
            jacobian_SNT *= np.exp(self.law.log_loss(theta_ST, self.z_NV))[..., None]
        return jacobian_SNT

    def values(self, theta_ST: Array) -> Array:
        """The objective of every row."""
        return np.asarray(self.objective.terms(self.residuals(theta_ST)).sum(-1))

    def slopes(self, theta_ST: Array) -> tuple[Array, Array]:
        """The gradient, (S, T), and the Hessian of the reweighted least-squares problem, (S, T, T)."""
        residual_SN, jacobian_SNT = self.residuals(theta_ST), self.jacobian(theta_ST)
        weighted_STN = (jacobian_SNT * self.objective.weights(residual_SN)[..., None]).swapaxes(-1, -2)
        return np.matmul(weighted_STN, residual_SN[..., None])[..., 0], np.matmul(weighted_STN, jacobian_SNT)

    def held(self, theta_ST: Array, gradient_ST: Array) -> Array:
        """Whether each parameter is fixed, or cannot move downhill because of a bound, (S, T)."""
        below_ST, above_ST = theta_ST <= self.low_T, theta_ST >= self.high_T
        return (below_ST & (gradient_ST > 0)) | (above_ST & (gradient_ST < 0)) | (self.low_T == self.high_T)


def descend(problem: Problem, start_ST: Array) -> tuple[Array, Array]:
    """Descend from the start of each row. Returns where the rows end, theta_ST, and the objective there, value_S."""
    theta_ST = np.clip(start_ST, problem.low_T, problem.high_T)
    value_S, damping_S = problem.values(theta_ST), np.full(len(theta_ST), FIRST_DAMPING)
    active_S, y_SN = np.arange(len(theta_ST)), np.broadcast_to(problem.y_SN, (len(theta_ST), len(problem.z_NV)))
    for _ in range(ROUNDS):
        part, theta, value = replace(problem, y_SN=y_SN[active_S]), theta_ST[active_S], value_S[active_S]
        trial = np.clip(theta + _steps(part, theta, damping_S[active_S]), problem.low_T, problem.high_T)
        reached = part.values(trial)
        falls = reached < value
        small = (value - reached <= TOLERANCE * value) & (damping_S[active_S] <= FIRST_DAMPING)
        done = np.where(falls, small, damping_S[active_S] > MOST_DAMPING)
        theta_ST[active_S[falls]], value_S[active_S[falls]] = trial[falls], reached[falls]
        damping_S[active_S] = np.maximum(damping_S[active_S] * np.where(falls, 0.1, 10.0), 1e-12)
        active_S = active_S[~done]
        if not len(active_S):
            break
    return theta_ST, value_S


def _steps(problem: Problem, theta_ST: Array, damping_S: Array) -> Array:
    """Steps to the minimum of each row's quadratic model, damped in units of its diagonal. Held parameters stay."""
    gradient_ST, hessian_STT = problem.slopes(theta_ST)
    held_ST = problem.held(theta_ST, gradient_ST)
    scale_ST = np.sqrt(np.maximum(np.diagonal(hessian_STT, axis1=-2, axis2=-1), 1e-200))
    between_STT = held_ST[:, :, None] | held_ST[:, None]
    unit_STT = np.where(between_STT, 0.0, hessian_STT / (scale_ST[:, :, None] * scale_ST[:, None]))
    unit_STT += (damping_S[:, None, None] + RIDGE + held_ST[:, :, None]) * np.eye(theta_ST.shape[1])
    fall_ST = np.where(held_ST, 0.0, gradient_ST / scale_ST)
    step_ST = -np.linalg.solve(unit_STT, fall_ST[..., None])[..., 0] / scale_ST
    return step_ST / np.maximum(np.abs(step_ST).max(-1, keepdims=True) / LONGEST, 1.0)
