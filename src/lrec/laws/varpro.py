"""Variable projection: the second, independent route to a law's parameters.

For each shape the best non-negative coefficients are found; what is left is a search over the shape alone, which sees
a far better conditioned problem (Golub and Pereyra 1973, "The differentiation of pseudo-inverses and nonlinear least
squares problems whose variables separate"). It uses none of the law's derivatives: a grid, then Newton steps on
quadratic models through neighbouring shapes.

Shapes: G shapes tried at once, N points, K coefficients, H shape parameters.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import qmc

from lrec.laws.descent import Problem, descend
from lrec.laws.law import Array, Law
from lrec.laws.objective import Objective

GRID = {1: 200, 2: 24**2}
"""Shapes of the grid for one and two free shape parameters; more have `SCATTER` scattered shapes."""
SCATTER = 1024
REFINED = {1: 1, 2: 2}
"""How many of the best shapes of the grid are refined; four where there are more shape parameters."""
LENGTHS = np.array([9.0, 3.0, 1.0, 0.3, 0.1, -0.1])[:, None]
"""Multiples of a Newton step that are tried."""
REPEATED = np.array([1.0, 3.0, 9.0])[:, None]
"""Multiples of the last step that are tried."""


@dataclass(frozen=True, eq=False)
class Projection:
    """The objective as a function of the shape alone.

    Attributes:
        low_T, high_T: Bounds of theta = ln(coefficients, shape); equal where a parameter is fixed.
    """

    law: Law
    objective: Objective
    z_NV: Array
    y_N: Array
    low_T: Array
    high_T: Array

    def minimise(self) -> Array:
        """The best theta_T."""
        free_H = self._bound(1) > self._bound(0)
        grid_GH = self._grid(free_H)
        rough_G = self._at(grid_GH, rounds=8)[1]
        best_G = np.argsort(rough_G)[: REFINED.get(int(free_H.sum()), 4)]
        theta_GT, value_G = self._at(grid_GH[best_G])
        if free_H.any():
            theta_GT, value_G = self._snapped(self._refine(theta_GT, free_H), free_H)
        return theta_GT[value_G.argmin()]

    def _bound(self, side: int) -> Array:
        return (self.low_T, self.high_T)[side][self.law.n_coefficients :]

    def _grid(self, free_H: Array) -> Array:
        """Logarithms of the shapes to start from, evenly within the bounds."""
        low_H, high_H = self._bound(0), self._bound(1)
        n_free = int(free_H.sum())
        if n_free in GRID:
            side = np.linspace(0, 1, round(GRID[n_free] ** (1 / n_free)))
            unit = np.stack(np.meshgrid(*[side] * n_free, indexing="ij"), axis=-1).reshape(-1, n_free)
        else:
            unit = qmc.Sobol(max(n_free, 1), rng=0).random(SCATTER)[:, :n_free]
        shape_GH = np.tile(low_H, (len(unit), 1))
        shape_GH[:, free_H] += unit * (high_H - low_H)[free_H]
        return shape_GH

    def _at(self, log_shape_GH: Array, log_c_GK: Array | None = None, rounds: int = 400) -> tuple[Array, Array]:
        """For each shape the best theta_GT and its objective, searched from log_c_GK or from least squares.

        The descent is in the terms' mean shares of the losses, in which the curve is linear.
        """
        k = self.law.n_coefficients
        phi_GNK = np.exp(np.maximum(self.law.log_basis(np.exp(log_shape_GH), self.z_NV)[0], -700)) / self.y_N[:, None]
        unit_GK = np.maximum(phi_GNK.mean(1), 1e-300)
        phi_GNK /= unit_GK[:, None]
        log_residuals = self.objective.residuals == "log"

        def model(share_SK: Array, rows_S: Array) -> tuple[Array, Array]:
            phi_SNK = phi_GNK[rows_S]
            fitted_SN = np.maximum((phi_SNK @ share_SK[..., None])[..., 0], 1e-300)
            if log_residuals:
                return -np.log(fitted_SN), -phi_SNK / fitted_SN[..., None]
            return self.y_N * (1 - fitted_SN), -phi_SNK * self.y_N[:, None]

        low_GK, high_GK = np.exp(self.low_T[:k]) * unit_GK, np.exp(self.high_T[:k]) * unit_GK
        problem = Problem(model, self.objective, np.ones((1, len(self.y_N))), low_GK, high_GK)
        ones_GN = np.ones(phi_GNK.shape[:2])
        start_GK = non_negative(phi_GNK, ones_GN) if log_c_GK is None else np.exp(log_c_GK) * unit_GK
        # Positive terms that sum up to the loss have shares of at most about one; at another shape they may have more.
        found = descend(problem, np.minimum(start_GK, 1.0), rounds)
        log_c_GK = np.log(np.maximum(found.theta_ST / unit_GK, 1e-300))
        theta_GT = np.concatenate([np.clip(log_c_GK, self.low_T[:k], self.high_T[:k]), log_shape_GH], axis=-1)
        return theta_GT, found.value_S

    def _refine(self, theta_GT: Array, free_H: Array) -> Array:
        """Newton steps on quadratic models through neighbouring shapes, on a scale that shrinks as they converge.

        A step may be longer or shorter than the model has it, or go on in the direction of the one before, which
        follows valleys whose floor has kinks. All shapes take a step together.
        """
        low_F, high_F = self._bound(0)[free_H], self._bound(1)[free_H]
        free_T = np.concatenate([np.zeros(self.law.n_coefficients, dtype=bool), free_H])
        n = int(free_H.sum())
        pairs = list(combinations(range(n), 2))
        offsets = [np.zeros(n), *np.eye(n), *-np.eye(n), *(np.eye(n)[i] + np.eye(n)[j] for i, j in pairs)]
        theta_GT, width_G = theta_GT.copy(), np.full(len(theta_GT), 0.3)
        last_GF = np.zeros((len(theta_GT), n))
        for _ in range(60):
            todo = np.flatnonzero(width_G >= 3e-6)
            if not len(todo):
                break
            width, before_GF = width_G[todo, None], theta_GT[todo][:, free_T]
            roomy = (high_F - low_F > 2 * width).all(-1, keepdims=True)
            centre_GF = np.where(roomy, np.clip(before_GF, low_F + width, high_F - width), before_GF)
            near_GOF = np.clip(centre_GF[:, None] + width[..., None] * np.array(offsets), low_F, high_F)
            near_GOT, near_GO = self._with(theta_GT[todo], free_T, near_GOF)
            step_GF = _newton(near_GO, n, pairs) * width
            step_GOF = np.concatenate([LENGTHS * step_GF[:, None], REPEATED * last_GF[todo][:, None]], axis=1)
            along_GOF = np.clip(centre_GF[:, None] + step_GOF, low_F, high_F)
            along_GOT, along_GO = self._with(theta_GT[todo], free_T, along_GOF)
            best_G = np.concatenate([along_GO, near_GO], axis=1).argmin(-1)
            theta_GT[todo] = np.concatenate([along_GOT, near_GOT], axis=1)[np.arange(len(todo)), best_G]
            last_GF[todo] = theta_GT[todo][:, free_T] - before_GF
            moved_G = np.abs(theta_GT[todo][:, free_T] - centre_GF).max(-1)
            narrower_G = np.minimum(np.maximum(0.5 * moved_G, width[:, 0] / 8), 0.5)
            width_G[todo] = np.where(moved_G < width[:, 0], narrower_G, width[:, 0])
        return theta_GT

    def _with(self, theta_GT: Array, free_T: Array, free_GOF: Array) -> tuple[Array, Array]:
        """The best theta_GOT and its objective for each theta_GT with its free shape parameters replaced."""
        theta_GOT = np.repeat(theta_GT[:, None], free_GOF.shape[1], axis=1)
        theta_GOT[..., free_T] = free_GOF
        k, flat_ST = self.law.n_coefficients, theta_GOT.reshape(-1, theta_GT.shape[1])
        found_ST, value_S = self._at(flat_ST[:, k:], flat_ST[:, :k])
        return found_ST.reshape(theta_GOT.shape), value_S.reshape(theta_GOT.shape[:2])

    def _snapped(self, theta_GT: Array, free_H: Array) -> tuple[Array, Array]:
        """The shapes with parameters near a bound put onto it too, each with its best theta and its objective."""
        low_H, high_H = self._bound(0), self._bound(1)
        shape_GH = theta_GT[:, self.law.n_coefficients :]
        low_GH, high_GH = free_H & (shape_GH < low_H + 0.6), free_H & (shape_GH > high_H - 0.6)
        on_bound_GH = np.where(low_GH, low_H, np.where(high_GH, high_H, shape_GH))
        return self._at(np.concatenate([on_bound_GH, shape_GH]))


def _newton(value_GO: Array, n: int, pairs: list[tuple[int, int]]) -> Array:
    """The step to the minimum of the quadratic through the values at 0, +e_i, -e_i and e_i + e_j, at most 3 wide."""
    middle_G1, up_GF, down_GF = value_GO[:, :1], value_GO[:, 1 : n + 1], value_GO[:, n + 1 : 2 * n + 1]
    gradient_GF = (up_GF - down_GF) / 2
    hessian_GFF = np.eye(n) * (up_GF + down_GF - 2 * middle_G1)[:, None]
    for (i, j), value_G in zip(pairs, value_GO[:, 2 * n + 1 :].T, strict=True):
        hessian_GFF[:, i, j] = hessian_GFF[:, j, i] = value_G - up_GF[:, i] - up_GF[:, j] + middle_G1[:, 0]
    curvature_GF, directions_GFF = np.linalg.eigh(hessian_GFF)
    size_GF = np.abs(curvature_GF)
    safe_GF1 = np.maximum(size_GF, 1e-9 * size_GF.max(-1, keepdims=True) + 1e-300)[..., None]
    step_GF = -(directions_GFF @ (directions_GFF.swapaxes(-1, -2) @ gradient_GF[..., None] / safe_GF1))[..., 0]
    return step_GF / np.maximum(np.abs(step_GF).max(-1, keepdims=True) / 3, 1.0)


def non_negative(phi_GNK: Array, target_GN: Array) -> Array:
    """Non-negative least squares, solved exactly by trying every set of positive coefficients."""
    n_coefficients = phi_GNK.shape[-1]
    best_G = np.full(len(phi_GNK), np.inf)
    solution_GK = np.zeros((len(phi_GNK), n_coefficients))
    for size in range(n_coefficients, 0, -1):
        for used in combinations(range(n_coefficients), size):
            phi_GNS = phi_GNK[..., list(used)]
            trial_GS = (np.linalg.pinv(phi_GNS, rcond=1e-13) @ target_GN[..., None])[..., 0]
            error_G = (((phi_GNS @ trial_GS[..., None])[..., 0] - target_GN) ** 2).sum(-1)
            better_G = (trial_GS >= 0).all(-1) & (error_G < best_G)
            best_G = np.where(better_G, error_G, best_G)
            full_GK = np.zeros_like(solution_GK)
            full_GK[:, list(used)] = trial_GS
            solution_GK = np.where(better_G[:, None], full_GK, solution_GK)
    return solution_GK
