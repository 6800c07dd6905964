"""The search for the parameters of a fit: scipy's trust region, from the best shapes of the law's grid.

With f_scale = delta, scipy's huber loss is r²/2 up to delta and delta (|r| - delta/2) beyond, as in `Objective`.
Absolute deviations are least at a vertex. There, usually as many residuals are zero as there are parameters. `descend`
finds it.

Shapes: S starts, N points, K coefficients, H shape parameters, T = K + H parameters, F free ones.
"""

from dataclasses import replace
from itertools import product

import numpy as np
from scipy.optimize import least_squares, nnls

from lrec.laws.descent import DELTA, VANISHED, Problem, descend
from lrec.laws.law import Array

STARTS = 3  # how many shapes of the grid are followed
DELTAS = {"huber": (np.inf, 1e-2, DELTA), "lad": (np.inf, 1e-2, 1e-3, 1e-4), "lsq": (np.inf,)}
"""The deltas of each objective. Each starts where the one before ended. All are used, or only the last ones."""
ROUNDS, MOST_ROUNDS = 200, 4000
"""Most rounds of scipy from each start, and then from the best end, which may be in a long flat valley."""
INSIDE = 1e-10  # scipy needs starts at least this far inside the bounds
LEAST_SHARE = 1e-3  # least share of the losses that each term starts with: a term that starts at zero would stay there


def search(problem: Problem) -> tuple[Array, Array]:
    """The best parameters, theta_T, and where each start ended, theta_ST."""
    start_ST, all_deltas = _starts(problem), DELTAS[problem.objective.kind]
    last_deltas = all_deltas[2:] or all_deltas  # for least squares, they are the same: one way from the first start
    ways = [(start_ST[0], all_deltas), *((start_T, last_deltas) for start_T in start_ST[last_deltas == all_deltas :])]
    ends_ST = np.array([_follow(problem, start_T, deltas, ROUNDS) for start_T, deltas in ways])
    best_T = _end(problem, ends_ST[problem.values(ends_ST).argmin()])
    return _on_bounds(problem, best_T), ends_ST


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
