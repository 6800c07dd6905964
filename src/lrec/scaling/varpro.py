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

from lrec.scaling.descent import Problem, descend
from lrec.scaling.laws import Array, Law
from lrec.scaling.objective import Objective

GRID = {1: 200, 2: 24**2}
"""Shapes of the grid for one and two free shape parameters; more have `SCATTER` scattered shapes."""
SCATTER = 1024
REFINED = {1: 1, 2: 2}
"""How many of the best shapes of the grid are refined; four where there are more shape parameters."""


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
        best_GH = grid_GH[np.argsort(rough_G)[: REFINED.get(int(free_H.sum()), 4)]]
        ends = [self._refine(shape_H, free_H) for shape_H in best_GH] if free_H.any() else [best_GH[0]]
        theta_GT, value_G = self._at(np.array(ends))
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

    def _at(self, log_shape_GH: Array, rounds: int = 400) -> tuple[Array, Array]:
        """For each shape the best theta_GT and its objective."""
        log_phi_GNK, _ = self.law.log_basis(np.exp(log_shape_GH), self.z_NV)
        k = self.law.n_coefficients
        log_y_N, log_residuals = np.log(self.y_N), self.objective.residuals == "log"

        def model(log_c_SK: Array, rows_S: Array) -> tuple[Array, Array]:
            terms_SNK = log_phi_GNK[rows_S] + log_c_SK[:, None]
            top_SN1 = terms_SNK.max(-1, keepdims=True)
            share_SNK = np.exp(terms_SNK - top_SN1)
            sum_SN1 = share_SNK.sum(-1, keepdims=True)
            log_loss_SN = (top_SN1 + np.log(sum_SN1))[..., 0]
            share_SNK /= sum_SN1
            if log_residuals:
                return log_y_N - log_loss_SN, -share_SNK
            loss_SN = np.exp(log_loss_SN)
            return self.y_N - loss_SN, -share_SNK * loss_SN[..., None]

        problem = Problem(
            model, self.objective, np.ones((1, len(self.y_N))), self.low_T[None, :k], self.high_T[None, :k]
        )
        phi_GNK = np.exp(np.maximum(log_phi_GNK, -700))
        least_GK = non_negative(phi_GNK / self.y_N[:, None], np.ones(phi_GNK.shape[:2]))
        start_GK = np.clip(np.log(np.maximum(least_GK, 1e-300)), self.low_T[:k], self.high_T[:k])
        # A coefficient at exactly its lower bound may have to rise again under another objective.
        start_GK = np.maximum(start_GK, start_GK.max(-1, keepdims=True) - 9)
        found = descend(problem, start_GK, rounds)
        return np.concatenate([found.theta_ST, log_shape_GH], axis=-1), found.value_S

    def _refine(self, shape_H: Array, free_H: Array) -> Array:
        """Newton steps on quadratic models through neighbouring shapes, on a scale that shrinks as they converge."""
        low_F, high_F = self._bound(0)[free_H], self._bound(1)[free_H]
        n = int(free_H.sum())
        pairs = list(combinations(range(n), 2))
        offsets = [np.zeros(n), *np.eye(n), *-np.eye(n), *(np.eye(n)[i] + np.eye(n)[j] for i, j in pairs)]
        width, centre_F = 0.3, shape_H[free_H]
        for _ in range(60):
            centre_F = (
                np.clip(centre_F, low_F + width, high_F - width) if (high_F - low_F > 2 * width).all() else centre_F
            )
            value_O = self._value(shape_H, free_H, centre_F + width * np.array(offsets))
            step_F = _newton(value_O, n, pairs) * width
            lengths = np.array([1.0, 0.5, 0.25, 0.1, -0.1])[:, None]
            trial_SF = np.concatenate([centre_F + lengths * step_F, centre_F + width * np.array(offsets)])
            trial_SF = np.clip(trial_SF, low_F, high_F)
            value_S = np.concatenate([self._value(shape_H, free_H, trial_SF[:5]), value_O])
            best = int(value_S.argmin())
            moved = float(np.abs(trial_SF[best] - centre_F).max())
            centre_F = trial_SF[best]
            width = min(max(0.5 * moved, width / 8), 0.5) if moved < width else width
            if width < 3e-6:
                break
        result_H = shape_H.copy()
        result_H[free_H] = np.clip(centre_F, low_F, high_F)
        return self._snapped(result_H, free_H)

    def _value(self, shape_H: Array, free_H: Array, free_SF: Array) -> Array:
        shape_SH = np.tile(shape_H, (len(free_SF), 1))
        shape_SH[:, free_H] = np.clip(free_SF, self._bound(0)[free_H], self._bound(1)[free_H])
        return self._at(shape_SH)[1]

    def _snapped(self, shape_H: Array, free_H: Array) -> Array:
        """The shape with parameters near a bound put onto it, where that is no worse."""
        low_H, high_H = self._bound(0), self._bound(1)
        near_H = free_H & ((shape_H < low_H + 0.6) | (shape_H > high_H - 0.6))
        if not near_H.any():
            return shape_H
        bound_H = np.where(shape_H < low_H + 0.6, low_H, high_H)
        on_bound_H = np.where(near_H, bound_H, shape_H)
        values_S = self._at(np.array([shape_H, on_bound_H]))[1]
        return on_bound_H if values_S[1] <= values_S[0] else shape_H


def _newton(value_O: Array, n: int, pairs: list[tuple[int, int]]) -> Array:
    """The step to the minimum of the quadratic through the values at 0, +e_i, -e_i and e_i + e_j, at most 3 wide."""
    middle, up, down, both = value_O[0], value_O[1 : n + 1], value_O[n + 1 : 2 * n + 1], value_O[2 * n + 1 :]
    gradient = (up - down) / 2
    hessian = np.diag(up + down - 2 * middle)
    for (i, j), value in zip(pairs, both, strict=True):
        hessian[i, j] = hessian[j, i] = value - up[i] - up[j] + middle
    curvature, directions = np.linalg.eigh(hessian)
    safe = np.maximum(np.abs(curvature), 1e-9 * np.abs(curvature).max() + 1e-300)
    step = -directions @ ((directions.T @ gradient) / safe)
    return step / max(1.0, float(np.abs(step).max()) / 3)


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
