"""Two independent routes to the parameters of a law: gradient descent from many starts, and variable projection.

Parameters are one vector theta: the coefficients, then the exponent. u is x divided by its geometric mean, v is y
divided by its own, which keeps the problem well conditioned.

Shapes: N points, K coefficients, T = K + 1 parameters, G exponents tried at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import numpy as np
from scipy.optimize import minimize

from lrec.scaling.laws import Array, Law

Objective = Literal["huber", "lad", "lsq"]

HUBER_DELTA = 1e-3
LAD_DELTA = 1e-6
"""Below this a residual of the log loss counts as zero, which makes least absolute deviations differentiable."""
SCALE = 1e6
"""Objectives are near 1e-6 while L-BFGS-B's tolerances are relative to max(f, 1): unscaled, it stops at once."""


@dataclass(frozen=True, eq=False)
class Search:
    """The minimisation of an objective of the log-loss residuals over the parameters of a law."""

    law: Law
    u_N: Array
    v_N: Array
    objective: Objective

    def starts(self) -> list[Array]:
        """For each exponent and floor of the law's grid, the other coefficients share what the floor leaves."""
        thetas = []
        for shape, share in product(self.law.shape_starts, self.law.floor_starts):
            phi_NK = self.law.basis(np.array([shape]), self.u_N)[0]
            floor = share * self.v_N.min()
            rest = np.mean(self.v_N - floor) / phi_NK[:, 1:].mean(0) / (self.law.n_coefficients - 1)
            thetas.append(np.concatenate([[floor], rest, [shape]]))
        return thetas

    def descend(self, start: Array) -> Array:
        """L-BFGS-B with analytic gradients and tight tolerances."""

        def scaled(theta: Array) -> tuple[float, Array]:
            value, gradient = self.value_and_gradient(theta)
            return SCALE * value, SCALE * gradient

        smallest = 1e-12  # keeps the logarithm finite if every coefficient goes to its bound
        bounds = [(0.0, None)] + [(smallest, None)] * (self.law.n_coefficients - 1) + [self.law.shape_bounds]
        options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 5000, "maxfun": 20000, "maxcor": 20}
        return np.asarray(minimize(scaled, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x)

    def project(self) -> Array:
        """Variable projection: search the exponent alone, with the best non-negative coefficients for each."""

        def value_of(shape_G: Array) -> Array:
            phi_GNK = self.law.basis(shape_G, self.u_N)
            loss_GN = (phi_GNK @ self._coefficients(phi_GNK)[..., None])[..., 0]
            return self._terms(np.log(self.v_N) - np.log(loss_GN)).sum(-1)

        shape = np.array([search_shape(self.law, value_of)])
        return np.append(self._coefficients(self.law.basis(shape, self.u_N))[0], shape)

    def value_and_gradient(self, theta: Array) -> tuple[float, Array]:
        """The objective and its gradient by theta."""
        loss_N, jacobian_NT = self._log_jacobian(theta)
        residual_N = np.log(self.v_N) - np.log(loss_N)
        slope_N = np.clip(residual_N, -self._delta, self._delta)
        if self.objective == "lad":
            slope_N = slope_N / LAD_DELTA
        return float(self._terms(residual_N).sum()), -slope_N @ jacobian_NT

    def value(self, theta: Array) -> float:
        """The objective."""
        return self.value_and_gradient(theta)[0]

    def gradient_norm(self, theta: Array) -> float:
        """Largest component of the gradient that no bound holds back."""
        _, gradient_T = self.value_and_gradient(theta)
        low = np.append(np.zeros(self.law.n_coefficients), self.law.shape_bounds[0])
        high = np.append(np.full(self.law.n_coefficients, np.inf), self.law.shape_bounds[1])
        held_back = ((theta <= low) & (gradient_T > 0)) | ((theta >= high) & (gradient_T < 0))
        return float(np.abs(np.where(held_back, 0.0, gradient_T)).max())

    def condition_number(self, theta: Array) -> float:
        """Of the Jacobian of the log loss by theta."""
        return float(np.linalg.cond(self._log_jacobian(theta)[1]))

    @property
    def _delta(self) -> float:
        return {"huber": HUBER_DELTA, "lad": LAD_DELTA, "lsq": np.inf}[self.objective]

    def _terms(self, residual: Array) -> Array:
        """Huber's function with the objective's delta; divided by it for lad, which makes it the absolute value."""
        if self.objective == "lsq":
            return residual**2 / 2
        size = np.abs(residual)
        huber = np.where(size <= self._delta, residual**2 / 2, self._delta * (size - self._delta / 2))
        return huber / self._delta if self.objective == "lad" else huber

    def _log_jacobian(self, theta: Array) -> tuple[Array, Array]:
        """The loss, and the derivatives of its logarithm by theta, (N, T)."""
        by_coefficient_NK = self.law.basis(theta[-1:], self.u_N)[0]
        by_shape_N = self.law.basis_gradient(float(theta[-1]), self.u_N) @ theta[:-1]
        loss_N = by_coefficient_NK @ theta[:-1]
        return loss_N, np.column_stack([by_coefficient_NK, by_shape_N]) / loss_N[:, None]

    def _coefficients(self, phi_GNK: Array) -> Array:
        """Non-negative coefficients that minimise the objective, by iteratively reweighted least squares."""
        ones_GN = np.ones(phi_GNK.shape[:2])
        coefficients_GK = non_negative(phi_GNK / self.v_N[None, :, None], ones_GN, ones_GN)
        for _ in range(300):
            loss_GN = (phi_GNK @ coefficients_GK[..., None])[..., 0]
            residual_GN = np.log(self.v_N) - np.log(loss_GN)
            weight_GN = np.minimum(1.0, self._delta / np.maximum(np.abs(residual_GN), 1e-300))
            # Linearised: ln L(c + dc) = ln L(c) + phi.dc / L(c), and phi.c / L(c) = 1.
            update_GK = non_negative(phi_GNK / loss_GN[..., None], weight_GN, residual_GN + 1)
            moved = np.abs(update_GK - coefficients_GK).max()
            coefficients_GK = update_GK
            if moved < 1e-10:
                break
        return coefficients_GK


def search_shape(law: Law, value_of: Callable[[Array], Array]) -> float:
    """The exponent within the law's bounds that minimises `value_of`: a grid, narrowed around its best point."""
    shape_G = np.geomspace(*law.shape_bounds, 200)
    while True:
        best = int(value_of(shape_G).argmin())
        if shape_G[-1] / shape_G[0] - 1 < 1e-13:
            return float(shape_G[best])
        shape_G = np.geomspace(shape_G[max(best - 1, 0)], shape_G[min(best + 1, len(shape_G) - 1)], 21)


def non_negative(phi_GNK: Array, weight_GN: Array, target_GN: Array) -> Array:
    """Weighted non-negative least squares, solved exactly by trying every set of positive coefficients."""
    n_coefficients = phi_GNK.shape[-1]
    best_G = np.full(len(phi_GNK), np.inf)
    solution_GK = np.zeros((len(phi_GNK), n_coefficients))
    for used in subsets(n_coefficients):
        phi_GNS = phi_GNK[..., used]
        weighted_GSN = (phi_GNS * weight_GN[..., None]).swapaxes(-1, -2)
        trial_GS = np.linalg.solve(weighted_GSN @ phi_GNS, weighted_GSN @ target_GN[..., None])
        error_G = (weight_GN * ((phi_GNS @ trial_GS)[..., 0] - target_GN) ** 2).sum(-1)
        better_G = (trial_GS[..., 0] >= 0).all(-1) & (error_G < best_G)
        best_G = np.where(better_G, error_G, best_G)
        full_GK = np.zeros_like(solution_GK)
        full_GK[:, used] = trial_GS[..., 0]
        solution_GK = np.where(better_G[:, None], full_GK, solution_GK)
    return solution_GK


def subsets(n: int) -> list[list[int]]:
    """The non-empty subsets of range(n), larger ones first."""
    return [list(chosen) for size in range(n, 0, -1) for chosen in combinations(range(n), size)]
