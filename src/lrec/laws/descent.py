"""What a fit minimises, and a descent from many starts, or for many losses, at once.

Levenberg's and Marquardt's steps on reweighted least squares, clipped to the bounds. A fit is searched for by scipy
(`search`); a thousand refits are made here, where scipy takes fifty times as long, one after the other
(benchmarks/laws.py --refits).

Shapes: S rows, each with a start, N points, V variables, T parameters.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from lrec.errors import UserError
from lrec.laws.law import Array, Law

Kind = Literal["huber", "lad", "lsq"]
Residuals = Literal["log", "level"]

LAD_DELTA = 1e-12  # residuals below this have the slopes of squares, which makes absolute deviations differentiable
RIDGE = 1e-9
"""Added to the correlation matrix of the parameters, which keeps it regular where one of them does not matter."""
ROUNDS, TOLERANCE = 400, 1e-12  # most steps, and the relative fall of the objective that counts as none
FIRST_DAMPING, MOST_DAMPING = 1e-3, 1e8
"""With the first at most, a step that hardly falls is the last; beyond the other, one that rises is."""
LONGEST = 4.0  # a step is at most so many e-folds of a parameter: far away the quadratic model means nothing


@dataclass(frozen=True)
class Objective:
    """The sum over points of a function of the residual r, actual minus fitted.

    It is a sum: the mean of Huber terms is so small that optimisers stop at their tolerances, "converged".

    Attributes:
        kind: Huber's function (huber), |r| (lad, least absolute deviations) or r²/2 (lsq, least squares).
        residuals: Of the logarithm of the loss (log) or of the loss (level).
        delta: Where Huber's function turns from r²/2 to delta (|r| - delta/2).
        over: Weight of points that the fit overshoots.
    """

    kind: Kind = "huber"
    residuals: Residuals = "log"
    delta: float = 1e-3
    over: float = 1.0

    def __post_init__(self) -> None:
        for option, value, known in (("objective", self.kind, Kind), ("residuals", self.residuals, Residuals)):
            if value not in get_args(known):
                raise UserError(f"--{option}: '{value}' is none of {', '.join(get_args(known))}")

    def terms(self, residual: Array) -> Array:
        """Each point's share of the objective."""
        weight, size = np.where(residual < 0, self.over, 1.0), np.abs(residual)
        if self.kind == "lad":
            return weight * size
        quadratic = size if self.kind == "lsq" else np.minimum(size, self.delta)
        return weight * quadratic * (size - quadratic / 2)

    def weights(self, residual: Array) -> Array:
        """Of the residuals' squares, so that their sum has the slope of the objective."""
        over = np.where(residual < 0, self.over, 1.0)
        if self.kind == "lsq":
            return over
        delta, unit = (self.delta, 1.0) if self.kind == "huber" else (LAD_DELTA, LAD_DELTA)
        return over * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300)) / unit


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be minimised by each row: the objective of a law's residuals at the points."""

    law: Law
    objective: Objective
    z_NV: Array  # logarithms of the variables in their units
    y_SN: Array  # losses, of one row for all or of a row each
    low_T: Array
    high_T: Array

    def rows(self, chosen_S: Array) -> "Problem":
        """That of some rows."""
        return self if len(self.y_SN) == 1 else replace(self, y_SN=self.y_SN[chosen_S])

    def residuals(self, theta_ST: Array) -> Array:
        """Actual minus fitted, of the logarithm or of the loss as the objective has it, (S, N)."""
        log_loss_SN = self.law.log_loss(theta_ST, self.z_NV)
        return np.log(self.y_SN) - log_loss_SN if self.objective.residuals == "log" else self.y_SN - np.exp(log_loss_SN)

    def jacobian(self, theta_ST: Array) -> Array:
        """The derivatives of the residuals by theta, (S, N, T)."""
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
        """Parameters that a bound holds back, or that are fixed."""
        below_ST, above_ST = theta_ST <= self.low_T, theta_ST >= self.high_T
        return (below_ST & (gradient_ST > 0)) | (above_ST & (gradient_ST < 0)) | (self.low_T == self.high_T)


def descend(problem: Problem, start_ST: Array) -> tuple[Array, Array]:
    """Where the rows end from their starts, theta_ST, and the objective there, value_S."""
    theta_ST = np.clip(start_ST, problem.low_T, problem.high_T)
    value_S, damping_S = problem.values(theta_ST), np.full(len(theta_ST), FIRST_DAMPING)
    active_S = np.arange(len(theta_ST))
    for _ in range(ROUNDS):
        part, theta, value = problem.rows(active_S), theta_ST[active_S], value_S[active_S]
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
    """To the minimum of each row's quadratic model, damped in units of its own diagonal; what a bound holds stays."""
    gradient_ST, hessian_STT = problem.slopes(theta_ST)
    held_ST = problem.held(theta_ST, gradient_ST)
    scale_ST = np.sqrt(np.maximum(np.diagonal(hessian_STT, axis1=-2, axis2=-1), 1e-200))
    between_STT = held_ST[:, :, None] | held_ST[:, None]
    unit_STT = np.where(between_STT, 0.0, hessian_STT / (scale_ST[:, :, None] * scale_ST[:, None]))
    unit_STT += (damping_S[:, None, None] + RIDGE + held_ST[:, :, None]) * np.eye(theta_ST.shape[1])
    fall_ST = np.where(held_ST, 0.0, gradient_ST / scale_ST)
    step_ST = -np.linalg.solve(unit_STT, fall_ST[..., None])[..., 0] / scale_ST
    return step_ST / np.maximum(np.abs(step_ST).max(-1, keepdims=True) / LONGEST, 1.0)
