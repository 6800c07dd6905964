"""The second, independent route to a law's parameters: scipy's trust region from the best of the grid's shapes.

It shares nothing with `descent` but the law's formula. It starts at the shape of the law's grid that is best with the
coefficients of least squares, derivatives are differences, and Huber's function is `scipy.optimize.least_squares`' own:
its huber loss with f_scale delta is r²/2 up to delta and delta (|r| - delta/2) beyond, summed over the points, as
`Objective` has it. Least absolute deviations are Huber's function of a small delta, where `vertex.polished` starts.
Residuals of points that the fit overshoots are weighted first, which is exact except for Huber's function, where it is
close.

Shapes: S starts, N points, K coefficients, T parameters, F free ones.
"""

import numpy as np
from scipy.optimize import least_squares, nnls

from lrec.laws.law import Array, Law
from lrec.laws.objective import Objective

DELTAS = (np.inf, 1e-2, 1e-3, 1e-4)
"""Deltas on the way to the objective's own, each used from where the one before ended: all, or the last of them."""
ROUNDS = 200
STEP = 1e-6
"""Step of the differences, in logarithms of the parameters."""
INSIDE = 1e-10
"""How far from the bounds scipy wants its starts."""
LEAST_SHARE = 1e-3
"""Least share of the losses that each term starts with: a term that starts at zero would stay there."""


def trust_region(
    law: Law, objective: Objective, z_NV: Array, y_N: Array, low_T: Array, high_T: Array, start_ST: Array
) -> Array:
    """The best theta_T that is reached from the starts; arguments as in `Candidate`."""
    free_F = np.flatnonzero(high_T > low_T)
    if not len(free_F):
        return low_T
    low_F, high_F = low_T[free_F], high_T[free_F]

    def whole(theta_SF: Array) -> Array:
        theta_ST = np.tile(low_T, (len(theta_SF), 1))
        theta_ST[:, free_F] = theta_SF
        return theta_ST

    def residuals(theta_ST: Array) -> Array:
        log_loss_SN = law.log_loss(theta_ST, z_NV)[0]
        return np.log(y_N) - log_loss_SN if objective.residuals == "log" else y_N - np.exp(log_loss_SN)

    def weighted(theta_SF: Array) -> Array:
        residual_SN = residuals(whole(theta_SF))
        over = np.sqrt(objective.over) if objective.kind == "lsq" else objective.over
        return residual_SN * np.where(residual_SN < 0, over, 1.0)

    def derivatives(theta_F: Array) -> Array:
        up_FF = np.minimum(theta_F + STEP * np.eye(len(theta_F)), high_F)
        down_FF = np.maximum(theta_F - STEP * np.eye(len(theta_F)), low_F)
        width_F = (up_FF - down_FF).sum(1)
        return ((weighted(up_FF) - weighted(down_FF)) / np.where(width_F > 0, width_F, 1.0)[:, None]).T

    def follow(theta_F: Array, deltas: tuple[float, ...]) -> Array:
        for delta in deltas:
            huber = {} if np.isinf(delta) else {"loss": "huber", "f_scale": delta}
            theta_F = least_squares(
                lambda theta_F: weighted(theta_F[None])[0],
                np.clip(theta_F, low_F + INSIDE, high_F - INSIDE),
                derivatives,
                bounds=(low_F, high_F),
                x_scale="jac",
                ftol=1e-15,
                xtol=1e-15,
                gtol=1e-15,
                max_nfev=ROUNDS,
                **huber,
            ).x
        return theta_F

    smallest = {"huber": objective.delta, "lad": DELTAS[-1], "lsq": np.inf}[objective.kind]
    ways = [(*(delta for delta in DELTAS if delta > smallest), smallest)]
    if objective.kind != "lsq":
        ways.append((*(delta for delta in DELTAS if smallest < delta <= 1e-3), smallest))
    shape_ST = np.clip(_starts(law, z_NV, y_N, start_ST), low_T, high_T)
    best_F = shape_ST[objective.terms(residuals(shape_ST)).sum(-1).argmin(), free_F]
    ends_ST = whole(np.array([follow(best_F, way) for way in ways]))
    best_T: Array = ends_ST[objective.terms(residuals(ends_ST)).sum(-1).argmin()]
    return best_T


def _starts(law: Law, z_NV: Array, y_N: Array, start_ST: Array) -> Array:
    """The starts' shapes, each with the coefficients of the least squares of its relative residuals."""
    k = law.n_coefficients
    shape_SH = np.unique(start_ST[:, k:], axis=0)
    phi_SNK = np.exp(law.log_basis(np.exp(shape_SH), z_NV)[0]) / y_N[:, None]
    coefficient_SK = np.array([nnls(phi_NK, np.ones(len(y_N)))[0] for phi_NK in phi_SNK])
    least_SK = LEAST_SHARE / np.maximum(phi_SNK.mean(1), 1e-100)
    return np.concatenate([np.log(np.maximum(coefficient_SK, least_SK)), shape_SH], axis=1)
