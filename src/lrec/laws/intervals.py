"""Intervals of parameters, curves and new runs, from profile likelihoods: all that explains the points nearly as well.

A value belongs to the interval if SSE(best parameters with this value) <= SSE_min + s^2 t^2, with s^2 on n - p degrees
of freedom and Student's t. SSE is of relative residuals (in level if the fit's objective has these). With a robust
objective, a residual r beyond `OUTLYING` robust standard deviations s counts as OUTLYING s |r| instead of r^2.
At a fixed shape, the admissible parameters form an ellipsoid, without the part with negative coefficients. Its extremes
are known in closed form. An interval spans the extremes of all admissible shapes.

Points of one setting (values of the variables) are merged: at every shape, the squares within settings are the same.

Shapes: N points, S settings, V variables, K coefficients (U used), H shape parameters, G shapes, P places to predict.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import fdtri, stdtrit

from lrec.laws.descent import Objective, Problem, descend
from lrec.laws.law import Array, as_columns

LEVEL = 0.9
POOLING_LEVEL = 0.25  # of the F test that may tell seed noise from the sizes' own scatter about the curve
OUTLYING = 2.0
"""A residual beyond this many standard deviations is outlying. In a normal sample, 5 % of the residuals are. Their
lower weight costs least squares 1 % of its precision."""
WALKERS, STEPS = 160, 48  # size of the cloud of admissible shapes if there are several shape parameters
AT_ONCE = 2_000_000  # most numbers in an array of shapes x settings; more shapes are computed in parts


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The expected loss or metric at x (and d, u), with the 90 % interval of a new run."""

    x: float
    d: float | None = None
    u: float | None = None
    predicted: float
    low: float
    high: float

    @property
    def at(self) -> tuple[float, ...]:
        """The values of the variables x, d and u, as far as they are known."""
        return tuple(value for value in (self.x, self.d, self.u) if value is not None)


@dataclass(frozen=True, kw_only=True)
class Prediction(Expected):
    """An expected loss, also with the interval of the mean curve, which is narrower than that of a new run. `cautious`
    is a more careful prediction than `predicted`. Only a forecast has it; for a single law, it is None."""

    mean_low: float
    mean_high: float
    cautious: float | None = None


@dataclass(frozen=True, kw_only=True)
class Judged(Expected):
    """An expected value and the actual one, the mean over runs at x. `inside`: whether this is within the interval.
    Errors are in percent of the actual value; naive is the no-gain baseline."""

    actual: float
    error_pct: float
    naive_error_pct: float
    inside: bool


def came(expected: Expected, actual: float, naive: float) -> dict[str, Any]:
    """What `Judged` adds to an expected value; `naive` is the no-gain baseline's."""
    error, naive_error = (100 * (value / actual - 1) for value in (expected.predicted, naive))
    inside = expected.low <= actual <= expected.high
    return {"actual": actual, "error_pct": error, "naive_error_pct": naive_error, "inside": inside}


class Profile:
    """The parameters of a law that explain the points about as well as the best ones, at a level. `sigma` is the
    relative standard deviation of a run about the curve (absolute for residuals in level), on `dof` degrees of freedom;
    `shape_ends` are logarithms; `outliers` counts points that weigh less than half."""

    def __init__(self, problem: Problem, theta_T: Array, level: float = LEVEL) -> None:
        self._problem, self._theta_T, self._law, k = problem, theta_T, problem.law, problem.law.n_coefficients
        y_N, in_logs = problem.y_SN[0], problem.objective.residuals == "log"
        weight_N = np.ones(len(y_N)) if problem.objective.kind == "lsq" else _robust_weights(problem, theta_T)
        self.outliers = int((weight_N < 0.5).sum())
        precision_N = weight_N / np.exp(2 * self._law.log_loss(theta_T[None], problem.z_NV)[0]) if in_logs else weight_N
        self._z_SV, setting_N = np.unique(problem.z_NV, axis=0, return_inverse=True)
        setting_N = setting_N.ravel()
        precision_S = np.bincount(setting_N, precision_N)
        mean_S, self._root_S = np.bincount(setting_N, precision_N * y_N) / precision_S, np.sqrt(precision_S)
        self._target_S = mean_S * self._root_S
        self._within = float((precision_N * (y_N - mean_S[setting_N]) ** 2).sum())
        held_K = problem.low_T[:k] == problem.high_T[:k]
        self._held_K = np.where(held_K, np.exp(theta_T[:k]), 0.0)
        free = np.flatnonzero(~held_K).tolist()
        # Each set of free coefficients that may be positive while the others are zero.
        self._sets = [list(some) for size in range(len(free), 0, -1) for some in combinations(free, size)]
        self._sets += [[]] if held_K.any() else []
        self._low_H, self._high_H = problem.low_T[k:], problem.high_T[k:]
        best_H = self._best_shape()
        (least,), (positive,) = self._best(best_H[None])
        # A parameter that ends on its bound does not adapt to the points, so it costs no degree of freedom.
        free_H = (best_H > self._low_H + 1e-6) & (best_H < self._high_H - 1e-6)
        self.sigma, self.dof = self._noise(float(least), int(positive) + int(free_H.sum()))
        # The added epsilon keeps the best shape itself inside when the points lie exactly on the curve.
        self._limit = least + (self.sigma * stdtrit(self.dof, (1 + level) / 2)) ** 2 + 1e-24
        self._shape_GH = self._shapes(best_H)
        self.shape_ends = self._shape_GH.min(0), self._shape_GH.max(0)
        self._solutions = self._solve(self._shape_GH)

    def predict(self, x: ArrayLike) -> list[Prediction]:
        """The loss at each x, with both intervals. They always contain the fit's own curve."""
        x_PV, predictions = as_columns(self._law, x), []
        log_residuals = self._problem.objective.residuals == "log"
        for where, loss in zip(x_PV.tolist(), self._problem.curve(self._theta_T, x_PV).tolist(), strict=True):
            phi_GK = self._basis(self._shape_GH, np.log([where] / self._problem.unit_V))[:, 0]
            at = dict(zip(self._law.columns, where, strict=True)) | {"predicted": loss}
            for kind, noise in (("mean_", 0.0), ("", loss**2 if log_residuals else 1.0)):
                low_G, high_G = self._extremes(phi_GK, noise)
                at |= {f"{kind}low": max(0.0, min(loss, float(np.nanmin(low_G))))}
                at |= {f"{kind}high": max(loss, float(np.nanmax(high_G)))}
            predictions.append(Prediction(**at))
        return predictions

    @cached_property
    def parameters(self) -> dict[str, tuple[float, float]]:
        """The interval of each parameter, low and high. It always contains the fit's own value."""
        law, k, unit_V = self._law, self._law.n_coefficients, self._problem.unit_V
        values = {name: [value] for name, value in self._problem.parameters(self._theta_T).items()}
        # At a fixed shape a parameter rises or falls with its coefficient, whose extremes are known.
        for i in range(k):
            names = [law.parameters[i], *(name for name in law.parameters[k:] if law.tied.get(name, i) == i)]
            for end_G in self._extremes(np.broadcast_to(np.eye(k)[i], (len(self._shape_GH), k)), 0.0):
                for end, shape_H in zip(end_G.tolist(), self._shape_GH, strict=True):
                    if not np.isnan(end):
                        named = law.named(np.full(k, max(end, 0.0)), np.exp(shape_H), unit_V)
                        for name in names:
                            values[name].append(named[name])
        return {name: (min(found), max(found)) for name, found in values.items()}

    def _basis(self, log_shape_GH: Array, z_NV: Array) -> Array:
        return np.exp(self._law.log_basis(np.exp(log_shape_GH), z_NV))

    def _best(self, log_shape_GH: Array) -> tuple[Array, Array]:
        """The least sum of squared residuals at each shape, and how many coefficients are positive there."""
        least_G, positive_G = np.full(len(log_shape_GH), np.inf), np.zeros(len(log_shape_GH), dtype=int)
        for used, (_, solution_GU, sse_G) in zip(self._sets, self._solve(log_shape_GH), strict=True):
            better_G = (solution_GU >= 0).all(-1) & (sse_G < least_G)
            least_G, positive_G = np.where(better_G, sse_G, least_G), np.where(better_G, len(used), positive_G)
        return least_G, positive_G

    def _solve(self, log_shape_GH: Array) -> list[tuple[Array, ...]]:
        """For each set of coefficients: inverse Gram matrices, unconstrained solutions and their sums of squares."""
        rows = max(1, AT_ONCE // (len(self._z_SV) * self._law.n_coefficients))
        if len(log_shape_GH) > rows:
            parts = [self._solve(part_GH) for part_GH in np.split(log_shape_GH, range(rows, len(log_shape_GH), rows))]
            return [tuple(map(np.concatenate, zip(*same, strict=True))) for same in zip(*parts, strict=True)]
        phi_GSK = self._basis(log_shape_GH, self._z_SV) * self._root_S[:, None]
        rest_GS = self._target_S - phi_GSK @ self._held_K
        found: list[tuple[Array, ...]] = []
        for used in self._sets:
            phi_GSU = phi_GSK[..., used]
            gram_GUU = phi_GSU.swapaxes(-1, -2) @ phi_GSU
            scale_GU = np.sqrt(np.maximum(np.diagonal(gram_GUU, axis1=-2, axis2=-1), 1e-280))
            both_GUU = scale_GU[:, :, None] * scale_GU[:, None]
            inverse_GUU = np.linalg.inv(gram_GUU / both_GUU + 1e-14 * np.eye(len(used))) / both_GUU
            solution_GU = (inverse_GUU @ (phi_GSU.swapaxes(-1, -2) @ rest_GS[..., None]))[..., 0]
            squares_G = (((phi_GSU @ solution_GU[..., None])[..., 0] - rest_GS) ** 2).sum(-1)
            found.append((inverse_GUU, solution_GU, squares_G + self._within))
        return found

    def _extremes(self, direction_GK: Array, noise: float) -> tuple[Array, Array]:
        """The least and greatest coefficients . direction (plus a run's `noise`, a variance in units of sigma^2). At an
        extreme over the ellipsoid without negative coefficients, some coefficients are zero, and the others are at an
        extreme of their uncut ellipsoid. So every set of coefficients is tried, and the admissible ones are kept."""
        low_G, high_G = np.full(len(direction_GK), np.nan), np.full(len(direction_GK), np.nan)
        for used, (inverse_GUU, solution_GU, sse_G) in zip(self._sets, self._solutions, strict=True):
            step_GU = np.einsum("gst,gt->gs", inverse_GUU, direction_GK[:, used])
            centre_G = (solution_GU * direction_GK[:, used]).sum(-1) + direction_GK @ self._held_K
            variance_G = (step_GU * direction_GK[:, used]).sum(-1) + noise
            slack_G = self._limit - sse_G
            length_G = np.sqrt(np.maximum(slack_G, 0) / np.maximum(variance_G, 1e-300))
            for sign, end_G, choose in ((-1, low_G, np.fmin), (1, high_G, np.fmax)):
                admissible_G = (slack_G >= 0) & (solution_GU + sign * length_G[:, None] * step_GU >= 0).all(-1)
                value_G = np.where(admissible_G, centre_G + sign * length_G * variance_G, np.nan)
                end_G[:] = choose(end_G, value_G)
        return low_G, high_G

    def _best_shape(self) -> Array:
        """The logarithm of the shape with the least sum of squares, by pattern search from the fit or from a grid."""
        problem = self._problem
        least_squares = replace(problem, objective=Objective("lsq", problem.objective.residuals))
        shape_GH = descend(least_squares, problem.starts(self._theta_T))[0][:, self._law.n_coefficients :]
        if len(self._low_H) == 1:
            shape_GH = np.concatenate([shape_GH, np.linspace(self._low_H, self._high_H, 400)])
        best_H = shape_GH[self._best(shape_GH)[0].argmin()]
        width = (self._high_H - self._low_H) / 400
        directions = np.concatenate([np.zeros((1, len(best_H))), np.eye(len(best_H)), -np.eye(len(best_H))])
        while width.max() > 1e-9:
            near_GH = np.clip(best_H + width * directions, self._low_H, self._high_H)
            best = int(self._best(near_GH)[0].argmin())
            best_H, width = near_GH[best], width * (2 if best else 0.25)  # longer steps along a valley
        return best_H

    def _shapes(self, best_H: Array) -> Array:
        """Logarithms of admissible shapes, including the best: evenly spaced for one free parameter, else a cloud."""
        free = np.flatnonzero(self._high_H > self._low_H)
        if not len(free):
            return best_H[None]
        if len(free) > 1:
            return self._cloud(best_H, free)
        low_H, high_H = self._edges(np.tile(best_H, (2, 1)), np.stack([self._low_H, self._high_H]))
        return np.concatenate([best_H[None], np.linspace(low_H, high_H, 600)])

    def _edges(self, inside_GH: Array, outside_GH: Array) -> Array:
        """Where between each pair of shapes the sum of squares reaches its limit; the second shape if it never does."""
        for _ in range(45):
            middle_GH = (inside_GH + outside_GH) / 2
            holds_G1 = (self._best(middle_GH)[0] <= self._limit)[:, None]
            inside_GH, outside_GH = np.where(holds_G1, middle_GH, inside_GH), np.where(holds_G1, outside_GH, middle_GH)
        return inside_GH

    def _cloud(self, best_H: Array, free: Array) -> Array:
        """Random walkers over the admissible shapes. Each step goes along the difference of two walkers. Such steps
        adapt to any region (ter Braak 2006, "A Markov chain Monte Carlo version of the genetic algorithm differential
        evolution"). The walkers are uniform over the region, so most of them are near its border."""
        rng, low_H, high_H = np.random.default_rng(0), self._low_H, self._high_H
        # How far one parameter alone may go, as a first guess of the scale.
        alone_GH = np.eye(len(best_H))[free]
        reach_GH = np.clip(best_H + 3.0 * np.concatenate([-alone_GH, alone_GH]), low_H, high_H)
        spread_H = np.abs(self._edges(np.broadcast_to(best_H, reach_GH.shape), reach_GH) - best_H).max(0)
        walker_GH = np.clip(best_H + spread_H * rng.uniform(-1, 1, (WALKERS, len(best_H))), low_H, high_H)
        walker_GH[self._best(walker_GH)[0] > self._limit] = best_H
        seen = [best_H[None]]
        for step in range(STEPS):
            first, second = rng.integers(WALKERS, size=(2, WALKERS))
            length = rng.choice([0.3, 0.8, 1.5], size=(WALKERS, 1))
            jitter_GH = 0.05 * spread_H * rng.standard_normal(walker_GH.shape)
            apart_GH = walker_GH[first] - walker_GH[second]
            trial_GH = np.clip(walker_GH + length * apart_GH + jitter_GH, low_H, high_H)
            inside_G = self._best(trial_GH)[0] <= self._limit
            walker_GH = np.where(inside_G[:, None], trial_GH, walker_GH)
            if step >= STEPS // 4:
                seen.append(walker_GH[inside_G])
        return np.concatenate(seen)

    def _noise(self, least: float, p: int) -> tuple[float, int]:
        """The standard deviation of a residual and its degrees of freedom, with p free parameters. Runs of one size
        differ only by seed noise. If the sizes' means scatter about the curve more than this noise explains, each size
        counts as one observation, and the spread of seeds says nothing about a new size."""
        n, k = len(self._problem.z_NV), len(self._z_SV)
        lack = max(least - self._within, 0.0)
        if n > k > p and lack / (k - p) > fdtri(k - p, n - k, 1 - POOLING_LEVEL) * self._within / (n - k):
            return float(np.sqrt(lack / (k - p))), k - p
        return float(np.sqrt(least / (n - p))), n - p


def _robust_weights(problem: Problem, theta_T: Array) -> Array:
    """Weights of the points: 1, or less for a residual beyond `OUTLYING` standard deviations, found from the median. A
    robust fit with p free parameters passes through p points. So the median leaves out the p smallest residuals."""
    size_N = np.abs(problem.residuals(theta_T[None])[0])
    p = min(problem.n_free, len(size_N) - 1)
    typical = 1.4826 * float(np.median(np.sort(size_N)[p:]))
    return np.minimum(1.0, OUTLYING * typical / np.maximum(size_N, 1e-300)) if typical > 0 else np.ones(len(size_N))
