"""Minimises an objective over a law's parameters from many starts, or for many losses, at once.

BFGS with projection onto bounds and a weak Wolfe line search, which also copes with objectives that are hardly smooth
(Lewis and Overton 2013, "Nonsmooth optimization via quasi-Newton methods"). Its first Hessian is that of the reweighted
least-squares problem, so that curved valleys do not slow it down. All rows take a step together: numpy does for
hundreds of them what it does for one. A fit is searched for by scipy (`search`); what is done thousands of times, the
refits of a contrast and the profiles of parameters, is done here, where scipy takes fifty times as long, one after the
other (benchmarks/laws.py --refits).

Shapes: S rows, each with a start, N points, V variables, T parameters.
"""

from dataclasses import dataclass, replace

import numpy as np

from lrec.laws.law import Array, Law
from lrec.laws.objective import Objective

RIDGE = 1e-9
"""Added to the correlation matrix of the parameters, which keeps it regular where one of them does not matter."""
LOWER_SHARE = 1e-4
STEEPER_SHARE = 0.9
"""Constants of the weak Wolfe conditions: Armijo's, and that of the curvature."""
AT_ONCE = 20_000_000
"""Numbers in the arrays of rows x points x parameters^2; more rows are worked on one part after the other."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be minimised by each row: the objective of a law's residuals at the points.

    Attributes:
        z_NV: Logarithms of the variables in their units.
        y_SN: Losses, of one row for all or of a row each.
        low_ST, high_ST: Bounds of the parameters; likewise.
    """

    law: Law
    objective: Objective
    z_NV: Array
    y_SN: Array
    low_ST: Array
    high_ST: Array

    def rows(self, chosen_S: Array) -> "Problem":
        """That of some rows."""
        y_SN, low_ST, high_ST = (
            part if len(part) == 1 else part[chosen_S] for part in (self.y_SN, self.low_ST, self.high_ST)
        )
        return replace(self, y_SN=y_SN, low_ST=low_ST, high_ST=high_ST)

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

    def at(self, theta_ST: Array, delta: float) -> tuple[Array, Array, Array, Array]:
        """Value_S, gradient_ST, and what a Gauss-Newton Hessian needs: weights_SN and jacobian_SNT."""
        residual_SN, jacobian_SNT = self.residuals(theta_ST), self.jacobian(theta_ST)
        slope_SN, square_SN = self.objective.slopes(residual_SN, delta)
        value_S = self.objective.terms(residual_SN, delta).sum(-1)
        return value_S, np.matmul(slope_SN[:, None], jacobian_SNT)[:, 0], square_SN, jacobian_SNT


def descend(problem: Problem, start_ST: Array, rounds: int = 400, tolerance: float = 1e-15) -> tuple[Array, Array]:
    """Minimise from every start; absolute deviations by Huber functions of ever smaller delta.

    Returns:
        Where the rows ended, theta_ST, and the objective there, value_S.
    """
    rows = max(1, AT_ONCE // (problem.y_SN.shape[1] * start_ST.shape[1] ** 2))
    if len(start_ST) > rows:
        parts = np.split(np.arange(len(start_ST)), range(rows, len(start_ST), rows))
        ends = [descend(problem.rows(part), start_ST[part], rounds, tolerance) for part in parts]
        return np.concatenate([end_ST for end_ST, _ in ends]), np.concatenate([value_S for _, value_S in ends])
    theta_ST = np.clip(start_ST, problem.low_ST, problem.high_ST)
    smallest = problem.objective.smallest_delta
    for delta in (1e-2, 1e-3, 1e-4, 1e-6, smallest) if problem.objective.kind == "lad" else (smallest,):
        theta_ST = _minimise(problem, theta_ST, delta, rounds, tolerance)
    return theta_ST, problem.values(theta_ST)


def _minimise(problem: Problem, theta_ST: Array, delta: float, rounds: int, tolerance: float) -> Array:
    theta_ST = theta_ST.copy()
    value_S, gradient_ST, square_SN, jacobian_SNT = problem.at(theta_ST, delta)
    inverse_STT = _gauss_newton(square_SN, jacobian_SNT)
    stalled_S = np.zeros(len(theta_ST), dtype=int)
    active_S = np.arange(len(theta_ST))
    for _ in range(rounds):
        if not len(active_S):
            break
        a, active = active_S, problem.rows(active_S)
        theta, gradient, low, high = theta_ST[a], gradient_ST[a], active.low_ST, active.high_ST
        held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)) | (low == high)
        free_gradient = np.where(held, 0.0, gradient)
        step = -np.where(held, 0.0, np.matmul(_without(inverse_STT[a], held), free_gradient[..., None])[..., 0])
        downhill = (step * free_gradient).sum(-1)
        uphill = ~(downhill < 0)
        step[uphill] = -free_gradient[uphill]
        # A step is at most a few e-folds of a parameter: far away the quadratic model means nothing.
        step /= np.maximum(np.abs(step).max(-1, keepdims=True) / 4.0, 1.0)
        new_theta, new_value, new_gradient, found = _line_search(
            active, theta, step, value_S[a], gradient, free_gradient, delta
        )
        fall = value_S[a] - new_value
        change, turn = new_theta - theta, np.where(held, 0.0, new_gradient - gradient)
        small = fall <= tolerance * np.abs(value_S[a])
        theta_ST[a], value_S[a], gradient_ST[a] = new_theta, new_value, new_gradient
        inverse_STT[a] = _bfgs(inverse_STT[a], change, turn, found)
        # What does not move starts again from the Gauss-Newton Hessian, and ends if it does not move then either.
        stuck = small | ~found
        stalled_S[a] = np.where(stuck, stalled_S[a] + 1, 0)
        renew = a[stuck & (stalled_S[a] == 1)]
        if len(renew):
            inverse_STT[renew] = _gauss_newton(*problem.rows(renew).at(theta_ST[renew], delta)[2:])
        active_S = a[stalled_S[a] < 2]
    return theta_ST


def _without(inverse_STT: Array, held_ST: Array) -> Array:
    """The inverse Hessian of the free parameters, those held at their bounds fixed: a Schur complement."""
    rows_S = np.flatnonzero(held_ST.any(-1))
    if not len(rows_S):
        return inverse_STT
    result_STT, held_RT = inverse_STT.copy(), held_ST[rows_S]
    across_RTT = np.where(held_RT[:, None], inverse_STT[rows_S], 0.0)
    within_RTT = np.where(held_RT[:, :, None], across_RTT, 0.0)
    result_STT[rows_S] -= across_RTT @ np.linalg.pinv(within_RTT) @ across_RTT.swapaxes(-1, -2)
    return result_STT


def _gauss_newton(square_SN: Array, jacobian_SNT: Array) -> Array:
    """The inverse Hessian of the reweighted least-squares problem, whatever the scale of each parameter."""
    weighted_STN = (jacobian_SNT * square_SN[..., None]).swapaxes(-1, -2)
    hessian_STT = np.matmul(weighted_STN, jacobian_SNT)
    scale_ST = np.sqrt(np.maximum(np.diagonal(hessian_STT, axis1=-2, axis2=-1), 1e-200))
    both_STT = scale_ST[:, :, None] * scale_ST[:, None]
    ridge = RIDGE * np.eye(hessian_STT.shape[-1])
    return np.linalg.inv(hessian_STT / both_STT + ridge) / both_STT


def _bfgs(inverse_STT: Array, change_ST: Array, turn_ST: Array, found_S: Array) -> Array:
    """The inverse Hessian that sends the turn of the gradient to the change of theta."""
    curvature_S = (change_ST * turn_ST).sum(-1)
    usable_S = found_S & (curvature_S > 1e-300)
    rho_S = np.where(usable_S, 1 / np.where(usable_S, curvature_S, 1.0), 0.0)
    image_ST = np.matmul(inverse_STT, turn_ST[..., None])[..., 0]
    outer_STT = change_ST[:, :, None] * image_ST[:, None]
    factor_S = rho_S * (1 + rho_S * (turn_ST * image_ST).sum(-1))
    updated = (
        inverse_STT
        - rho_S[:, None, None] * (outer_STT + outer_STT.swapaxes(-1, -2))
        + factor_S[:, None, None] * change_ST[:, :, None] * change_ST[:, None]
    )
    return np.where((usable_S & np.isfinite(updated).all((-1, -2)))[:, None, None], updated, inverse_STT)


def _line_search(
    problem: Problem,
    theta_ST: Array,
    step_ST: Array,
    value_S: Array,
    gradient_ST: Array,
    free_gradient_ST: Array,
    delta: float,
) -> tuple[Array, Array, Array, Array]:
    """Weak Wolfe by bisection along the projected path; where no lower value is found, the start of the path."""
    n = len(theta_ST)
    slope_S = (step_ST * free_gradient_ST).sum(-1)
    low_S, high_S, length_S = np.zeros(n), np.full(n, np.inf), np.ones(n)
    best_theta, best_value, best_gradient = theta_ST.copy(), value_S.copy(), gradient_ST.copy()
    found_S = np.zeros(n, dtype=bool)
    todo = np.arange(n)
    for _ in range(40):
        part = problem.rows(todo)
        trial = np.clip(theta_ST[todo] + length_S[todo, None] * step_ST[todo], part.low_ST, part.high_ST)
        value, gradient, *_ = part.at(trial, delta)
        length = length_S[todo]
        lower = np.isfinite(value) & (value <= value_S[todo] + LOWER_SHARE * length * slope_S[todo])
        flat = (step_ST[todo] * gradient).sum(-1) >= STEEPER_SHARE * slope_S[todo]
        better = lower & (value < best_value[todo])
        at = todo[better]
        best_theta[at], best_value[at], best_gradient[at] = trial[better], value[better], gradient[better]
        found_S[at] = True
        high_S[todo] = np.where(lower, high_S[todo], length)
        low_S[todo] = np.where(lower, length, low_S[todo])
        # Below the value's own precision there is nothing to be found.
        hopeless = length * -slope_S[todo] <= 1e-16 * value_S[todo]
        done = (lower & flat) | (length > 1e3) | hopeless
        todo = todo[~done]
        if not len(todo):
            break
        bounded = np.isfinite(high_S[todo])
        length_S[todo] = np.where(bounded, (low_S[todo] + np.where(bounded, high_S[todo], 0)) / 2, 2 * length_S[todo])
    return best_theta, best_value, best_gradient, found_S
