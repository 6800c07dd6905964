"""The last digits of least absolute deviations: a sequence of linear programs.

Where the sum of absolute residuals is least, mostly as many of them are zero as there are parameters: a vertex. Methods
that smooth the absolute value come near it. A linear program over the residuals' derivatives steps onto it, and a few
of them, in a region that shrinks where the law bends too much, reach it to the last digit (Osborne and Watson 1971, "On
an algorithm for discrete nonlinear L1 approximation").

Shapes: N points, T parameters, F free ones.
"""

import numpy as np
from scipy.optimize import linprog

from lrec.laws.descent import Problem
from lrec.laws.law import Array

ROUNDS = 40
RADIUS = 0.1
"""How far the first step may go, in logarithms of the parameters."""
SMALLEST = 1e-12
"""The least radius."""
LEAST_FALL = 1e-12
"""Relative fall of the objective below which a step is the last."""


def polished(problem: Problem, theta_T: Array) -> Array:
    """The minimum of absolute deviations that `theta_T` is near; parameters on a bound stay there."""
    low_T, high_T = problem.low_ST[0], problem.high_ST[0]
    free_F = np.flatnonzero((theta_T > low_T) & (theta_T < high_T))
    value, radius = float(problem.values(theta_T[None])[0]), RADIUS
    for _ in range(ROUNDS):
        step_F, expected = _step(problem, theta_T, free_F, radius)
        trial_T = theta_T.copy()
        trial_T[free_F] = np.clip(theta_T[free_F] + step_F, low_T[free_F], high_T[free_F])
        reached = float(problem.values(trial_T[None])[0])
        fall, length = value - reached, float(np.abs(step_F).max(initial=0))
        # A step that lowers the objective by less than a tenth of what its linear program promised was too long.
        radius = max(4 * length if fall > 0.1 * (value - expected) else length / 4, SMALLEST)
        if fall > 0:
            theta_T, value = trial_T, reached
        if not value - expected > LEAST_FALL * value and fall <= LEAST_FALL * value:
            break
    return theta_T


def _step(problem: Problem, theta_T: Array, free_F: Array, radius: float) -> tuple[Array, float]:
    """The step within the radius that is best for the residuals' derivatives, and the objective they promise."""
    # All in units of the radius: the program's tolerances are then a share of the step.
    residual_SN, jacobian_SNT = problem.model(theta_T[None], np.zeros(1, dtype=int))
    n, one_NN = residual_SN.shape[1], np.eye(residual_SN.shape[1])
    # The residual after the step is above - below, both at least 0.
    cost = np.concatenate([np.zeros(len(free_F)), np.ones(n), np.full(n, problem.objective.over)])
    reach_F2 = np.stack(
        [
            np.maximum(-1.0, (problem.low_ST[0, free_F] - theta_T[free_F]) / radius),
            np.minimum(1.0, (problem.high_ST[0, free_F] - theta_T[free_F]) / radius),
        ],
        axis=1,
    )
    ends = [*map(tuple, reach_F2), *[(0, None)] * (2 * n)]
    derivatives = np.hstack([jacobian_SNT[0][:, free_F], -one_NN, one_NN])
    program = linprog(cost, A_eq=derivatives, b_eq=-residual_SN[0] / radius, bounds=ends)
    if program.x is None:
        return np.zeros(len(free_F)), np.inf
    return radius * program.x[: len(free_F)], radius * float(program.fun)
