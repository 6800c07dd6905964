"""Minimises an objective over a law's parameters from many starts at once.

BFGS with projection onto bounds and a weak Wolfe line search, which also copes with objectives that are hardly smooth
(Lewis and Overton 2013, "Nonsmooth optimization via quasi-Newton methods"). Its first Hessian is that of the reweighted
least-squares problem, so that curved valleys do not slow it down. All starts take a step together: numpy does for
hundreds of them what it does for one. That is why it is not scipy's: from the same starts L-BFGS-B, one start after the
other, takes three times as long (benchmarks/laws.py --refits), and a bootstrap has 4,000.

Shapes: S starts, M residuals, T parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lrec.laws.law import Array
from lrec.laws.objective import Objective

Model = Callable[[Array, Array], tuple[Array, Array]]
"""From theta_ST and the rows' numbers to the residuals_SM and their derivatives by theta, (S, M, T)."""

RIDGE = 1e-9
"""Added to the correlation matrix of the parameters, which keeps it regular where one of them does not matter."""
LOWER_SHARE = 1e-4
STEEPER_SHARE = 0.9
"""Constants of the weak Wolfe conditions: Armijo's, and that of the curvature."""


@dataclass(frozen=True, eq=False)
class Descent:
    """Where the starts ended: theta_ST, and the objective there."""

    theta_ST: Array
    value_S: Array


@dataclass(frozen=True, eq=False)
class Problem:
    """The objective of weighted residuals and its gradient.

    Attributes:
        weight_SM: Weight of each term; one row serves all starts.
        low_ST, high_ST: Bounds; here too one row serves all starts.
    """

    model: Model
    objective: Objective
    weight_SM: Array
    low_ST: Array
    high_ST: Array

    def bounds(self, rows_S: Array) -> tuple[Array, Array]:
        """The bounds of some rows."""
        return (self.low_ST, self.high_ST) if len(self.low_ST) == 1 else (self.low_ST[rows_S], self.high_ST[rows_S])

    def values(self, theta_ST: Array) -> Array:
        """The objective at the parameters of every start."""
        residual_SM, _ = self.model(theta_ST, np.arange(len(theta_ST)))
        return (self.weight_SM * self.objective.terms(residual_SM)).sum(-1)

    def at(self, theta_ST: Array, rows_S: Array, delta: float) -> tuple[Array, Array, Array, Array]:
        """Value_S, gradient_ST, and what a Gauss-Newton Hessian needs: weights_SM and jacobian_SMT."""
        residual_SM, jacobian_SMT = self.model(theta_ST, rows_S)
        weight_SM = self.weight_SM if len(self.weight_SM) == 1 else self.weight_SM[rows_S]
        slope_SM, square_SM = self.objective.slopes(residual_SM, delta)
        value_S = (weight_SM * self.objective.terms(residual_SM, delta)).sum(-1)
        gradient_ST = np.matmul((weight_SM * slope_SM)[:, None], jacobian_SMT)[:, 0]
        return value_S, gradient_ST, weight_SM * square_SM, jacobian_SMT


def descend(
    problem: Problem, start_ST: Array, rounds: int = 400, tolerance: float = 1e-15, finest: float = 0.0
) -> Descent:
    """Minimise from every start; absolute deviations by Huber functions of ever smaller delta, `finest` at least."""
    rows_S = np.arange(len(start_ST))
    theta_ST = np.clip(start_ST, problem.low_ST, problem.high_ST)
    smallest = problem.objective.smallest_delta
    deltas = (
        [smallest]
        if problem.objective.kind != "lad"
        else [delta for delta in (1e-2, 1e-3, 1e-4, 1e-6, smallest) if delta >= finest]
    )
    for delta in deltas:
        theta_ST = _minimise(problem, theta_ST, rows_S, delta, rounds, tolerance)
    return Descent(theta_ST, problem.values(theta_ST))


def along_bounds(problem: Problem, theta_T: Array) -> Array:
    """Parameters from which no detour over a bound of one of them leads lower.

    Where points hardly determine a law, valleys are long and narrow, and parameters lie on bounds at their ends.
    """
    value = problem.values(theta_T[None])[0]
    low_T, high_T = problem.low_ST[0], problem.high_ST[0]
    free = np.flatnonzero(low_T < high_T)
    which_S, bound_S = np.tile(free, 2), np.concatenate([low_T[free], high_T[free]])
    rows_S = np.arange(len(which_S))
    for _ in range(10):
        start_ST, low_ST, high_ST = (np.tile(part_T, (len(rows_S), 1)) for part_T in (theta_T, low_T, high_T))
        for part_ST in (start_ST, low_ST, high_ST):
            part_ST[rows_S, which_S] = bound_S
        on_bound = descend(replace(problem, low_ST=low_ST, high_ST=high_ST), start_ST)
        freed = descend(problem, on_bound.theta_ST[on_bound.value_S.argsort()[:3]])
        lowest = float(freed.value_S.min())
        if not lowest < value * (1 - 1e-6):
            break
        theta_T, value = freed.theta_ST[freed.value_S.argmin()], lowest
    return theta_T


def _minimise(problem: Problem, theta_ST: Array, rows_S: Array, delta: float, rounds: int, tolerance: float) -> Array:
    theta_ST = theta_ST.copy()
    value_S, gradient_ST, square_SM, jacobian_SMT = problem.at(theta_ST, rows_S, delta)
    inverse_STT = _gauss_newton(square_SM, jacobian_SMT)
    stalled_S = np.zeros(len(theta_ST), dtype=int)
    active_S = np.arange(len(theta_ST))
    for _ in range(rounds):
        if not len(active_S):
            break
        a = active_S
        theta, gradient = theta_ST[a], gradient_ST[a]
        low, high = problem.bounds(rows_S[a])
        held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)) | (low == high)
        free_gradient = np.where(held, 0.0, gradient)
        step = -np.where(held, 0.0, np.matmul(_without(inverse_STT[a], held), free_gradient[..., None])[..., 0])
        downhill = (step * free_gradient).sum(-1)
        uphill = ~(downhill < 0)
        step[uphill] = -free_gradient[uphill]
        # A step is at most a few e-folds of a parameter: far away the quadratic model means nothing.
        step /= np.maximum(np.abs(step).max(-1, keepdims=True) / 4.0, 1.0)
        new_theta, new_value, new_gradient, found = _line_search(
            problem, theta, step, value_S[a], gradient, free_gradient, rows_S[a], delta
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
            inverse_STT[renew] = _gauss_newton(*problem.at(theta_ST[renew], rows_S[renew], delta)[2:])
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


def _gauss_newton(square_SM: Array, jacobian_SMT: Array) -> Array:
    """The inverse Hessian of the reweighted least-squares problem, whatever the scale of each parameter."""
    weighted_STM = (jacobian_SMT * square_SM[..., None]).swapaxes(-1, -2)
    hessian_STT = np.matmul(weighted_STM, jacobian_SMT)
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
    rows_S: Array,
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
        trial = np.clip(theta_ST[todo] + length_S[todo, None] * step_ST[todo], *problem.bounds(rows_S[todo]))
        value, gradient, *_ = problem.at(trial, rows_S[todo], delta)
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
