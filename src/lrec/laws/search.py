"""The search for the parameters of a fit: scipy's trust region, from the best shapes of the law's grid.

Each shape of the grid gets the coefficients of least squares. The best of them are where `least_squares` starts from,
whose huber loss with f_scale delta is r²/2 up to delta and delta (|r| - delta/2) beyond, summed over the points, as
`Objective` has it. Residuals of points that the fit overshoots are weighted first, which is exact except for Huber's
function, where it is close.

Least absolute deviations are Huber's function of a small delta first. Where their sum is least, mostly as many
residuals are zero as there are parameters: a vertex. A linear program over the residuals' derivatives steps onto it,
and a few of them, in a region that shrinks where the law bends too much, reach it to the last digit (Osborne and Watson
1971, "On an algorithm for discrete nonlinear L1 approximation").

Shapes: S starts, N points, K coefficients, H shape parameters, T = K + H parameters, F free ones.
"""

from dataclasses import replace
from itertools import product

import numpy as np
from scipy.optimize import least_squares, linprog, nnls
from scipy.sparse import eye_array, hstack

from lrec.laws.curve import VANISHED
from lrec.laws.descent import Problem
from lrec.laws.law import Array

STARTS = 3
"""How many shapes of the grid are followed."""
DELTAS = (np.inf, 1e-2, 1e-3, 1e-4)
"""Deltas on the way to the objective's own, each used from where the one before ended: all, or the last of them."""
ROUNDS, MOST_ROUNDS = 200, 4000
"""Of scipy, from a start, and from the best end on: it stands in a long flat valley where that matters."""
INSIDE = 1e-10
"""How far from the bounds scipy wants its starts."""
LEAST_SHARE = 1e-3
"""Least share of the losses that each term starts with: a term that starts at zero would stay there."""
PROGRAMS, RADIUS, SMALLEST = 40, 0.1, 1e-12
"""Most linear programs; how far the first step may go, in logarithms of the parameters, and the least it may."""
LEAST_FALL = 1e-12
"""Relative fall of absolute deviations below which a step is the last."""


def search(problem: Problem) -> tuple[Array, Array]:
    """The best parameters, theta_T, and where each start ended, theta_ST."""
    smallest = _last_delta(problem)
    start_ST, robust = _starts(problem), not np.isinf(smallest)
    all_of_them = (*(delta for delta in DELTAS if delta > smallest), smallest)
    the_last = (*(delta for delta in DELTAS if smallest < delta <= 1e-3), smallest)
    ways = [(start_ST[0], all_of_them), *((start_T, the_last) for start_T in start_ST[not robust :])]
    ends_ST = np.array([_follow(problem, start_T, deltas, ROUNDS) for start_T, deltas in ways])
    best_T = _end(problem, ends_ST[problem.values(ends_ST).argmin()])
    return _on_bounds(problem, best_T), ends_ST


def _last_delta(problem: Problem) -> float:
    return {"huber": problem.objective.delta, "lad": DELTAS[-1], "lsq": np.inf}[problem.objective.kind]


def _end(problem: Problem, theta_T: Array) -> Array:
    """The minimum that `theta_T` is near."""
    end_T = _follow(problem, theta_T, (_last_delta(problem),), MOST_ROUNDS)
    return _vertex(problem, end_T) if problem.objective.kind == "lad" else end_T


def _starts(problem: Problem) -> Array:
    """The best shapes of the law's grid, each with the coefficients of the least squares of its relative residuals."""
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
    """Where scipy ends, one delta after the other."""
    low_T, high_T, objective = problem.low_T, problem.high_T, problem.objective
    free_F, theta_T = np.flatnonzero(high_T > low_T), theta_T.copy()
    over = np.sqrt(objective.over) if objective.kind == "lsq" else objective.over

    def whole(theta_F: Array) -> Array:
        theta_1T = theta_T[None].copy()
        theta_1T[0, free_F] = theta_F
        return theta_1T

    def weighted(theta_F: Array) -> Array:
        residual_N = problem.residuals(whole(theta_F))[0]
        return residual_N * np.where(residual_N < 0, over, 1.0)

    def derivatives(theta_F: Array) -> Array:
        residual_N = problem.residuals(whole(theta_F))[0]
        return problem.jacobian(whole(theta_F))[0][:, free_F] * np.where(residual_N < 0, over, 1.0)[:, None]

    for delta in deltas if len(free_F) else ():
        huber = {} if np.isinf(delta) else {"loss": "huber", "f_scale": delta}
        start_F = np.clip(theta_T[free_F], low_T[free_F] + INSIDE, high_T[free_F] - INSIDE)
        theta_T[free_F] = least_squares(
            weighted, start_F, derivatives, bounds=(low_T[free_F], high_T[free_F]), x_scale="jac",
            ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=rounds, **huber,
        ).x  # fmt: skip
    return theta_T


def _on_bounds(problem: Problem, theta_T: Array) -> Array:
    """Parameters that ended near a bound are put onto it if the others can make up for that."""
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


def _vertex(problem: Problem, theta_T: Array) -> Array:
    """The minimum of absolute deviations that `theta_T` is near; parameters on a bound stay there."""
    free_F = np.flatnonzero((theta_T > problem.low_T) & (theta_T < problem.high_T))
    low_F, high_F = problem.low_T[free_F], problem.high_T[free_F]
    value, radius = float(problem.values(theta_T[None])[0]), RADIUS
    for _ in range(PROGRAMS):
        step_F, expected = _step(problem, theta_T, free_F, radius)
        trial_T = theta_T.copy()
        trial_T[free_F] = np.clip(theta_T[free_F] + step_F, low_F, high_F)
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
    residual_N, jacobian_NF = problem.residuals(theta_T[None])[0], problem.jacobian(theta_T[None])[0][:, free_F]
    n = len(residual_N)
    # The residual after the step is above - below, both at least 0.
    cost = np.concatenate([np.zeros(len(free_F)), np.ones(n), np.full(n, problem.objective.over)])
    low_F = np.maximum(-1.0, (problem.low_T[free_F] - theta_T[free_F]) / radius)
    high_F = np.minimum(1.0, (problem.high_T[free_F] - theta_T[free_F]) / radius)
    ends = [*zip(low_F, high_F, strict=True), *[(0, None)] * (2 * n)]
    derivatives = hstack([jacobian_NF, -eye_array(n), eye_array(n)])
    program = linprog(cost, A_eq=derivatives, b_eq=-residual_N / radius, bounds=ends)
    if program.x is None:
        return np.zeros(len(free_F)), np.inf
    return radius * program.x[: len(free_F)], radius * float(program.fun)
