"""Predictions of a fitted law with 90 % intervals, before and after the truth is known.

The intervals are profile likelihoods (for a new run: predictive profile likelihoods), with the residual variance
estimated on n - p degrees of freedom and Student's t as its yardstick, which keeps them honest with few sizes. A value
belongs to the interval if some parameters that pass through it explain the points nearly as well as the best ones do:

    SSE(best parameters through the value) <= SSE_min + s^2 t^2

where SSE is of relative residuals. At a fixed exponent those parameters form an ellipsoid, cut where coefficients would
be negative, whose extremes are known in closed form; the interval spans those of all exponents.

Shapes: N points, K coefficients, G exponents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from scipy import stats

from lrec.errors import UserError
from lrec.scaling.fit import Fit, fit
from lrec.scaling.laws import Array, Law
from lrec.scaling.search import Objective, non_negative, search_shape, subsets

LEVEL = 0.9
POOLING_LEVEL = 0.25
"""Seed noise and the sizes' own scatter about the curve are pooled unless an F test tells them apart at this level."""


@dataclass(frozen=True)
class Prediction:
    """The loss expected at x: the curve with the interval of its mean, and the wider one of a single new run."""

    x: float
    predicted: float
    mean_low: float
    mean_high: float
    low: float
    high: float


@dataclass(frozen=True)
class HeldOut(Prediction):
    """A prediction and what came: `actual` is the mean over runs at x, `inside` refers to the interval of a new run.

    Errors and half-width are in percent of the actual loss; naive is "as good as the best small model".
    """

    actual: float
    error_pct: float
    naive_error_pct: float
    half_width_pct: float
    inside: bool


@dataclass(frozen=True)
class Holdout:
    """Held-out sizes with mean absolute percentage errors of the law and of the naive prediction."""

    points: tuple[HeldOut, ...]
    mape: float
    naive_mape: float
    extrapolation_factor: float


class Profile:
    """The parameters of a fit's law that explain its points about as well as the best ones, at a level.

    Attributes:
        sigma: Estimated relative standard deviation of a run about the curve.
        dof: Its degrees of freedom.
        holds_fit: Whether the fit itself is among them; a robust fit is not where outliers bend least squares.
    """

    def __init__(self, fit: Fit, level: float = LEVEL) -> None:
        self._fit = fit
        self._law, self._u_N = fit.law, fit.x_N / fit.unit
        self._fitted_N = fit.curve(fit.x_N)
        self._target_N = fit.y_N / self._fitted_N
        best = search_shape(self._law, self._sse)
        (least,), (positive,) = self._best(np.array([best]))
        low, high = self._law.shape_bounds
        # A parameter that ends on its bound does not bend to the points: it costs no degree of freedom.
        free = int(positive) + (low * (1 + 1e-6) < best < high * (1 - 1e-6))
        self.sigma, self.dof = self._noise(float(least), free)
        # The added epsilon keeps the best exponent itself inside when the points lie exactly on the curve.
        self._limit = least + (self.sigma * stats.t.ppf((1 + level) / 2, self.dof)) ** 2 + 1e-24
        self.shape_G = self._shapes(best)
        self._phi_GNK = self._scaled_basis(self.shape_G)
        self.holds_fit = bool(((self._target_N - 1) ** 2).sum() <= self._limit)

    def predict(self, x: Sequence[float] | Array) -> list[Prediction]:
        """The loss at each x, with both intervals; they always hold the fit's own curve."""
        x_P = np.asarray(x, dtype=float)
        predictions = []
        for value, loss in zip(x_P.tolist(), self._fit.curve(x_P).tolist(), strict=True):
            direction_GK = self._law.basis(self.shape_G, np.array([value / self._fit.unit]))[:, 0]
            ends = []
            for noise in (0.0, loss**2):
                low_G, high_G = self._extremes(direction_GK, noise)
                ends += [max(0.0, min(loss, float(np.nanmin(low_G)))), max(loss, float(np.nanmax(high_G)))]
            predictions.append(Prediction(value, loss, *ends))
        return predictions

    def parameters(self) -> dict[str, tuple[float, float]]:
        """Low and high of each parameter; they always hold the fit's own value."""
        *linear, shape_name = self._law.parameters
        ends = {}
        for k, name in enumerate(linear):
            direction_GK = np.broadcast_to(np.eye(len(linear))[k], (len(self.shape_G), len(linear)))
            low_G, high_G = self._extremes(direction_GK, 0.0)
            ends[name] = [
                self._law.named(np.full(len(linear), max(end, 0.0)), shape, self._fit.unit)[name]
                for end_G in (low_G, high_G)
                for end, shape in zip(end_G.tolist(), self.shape_G.tolist(), strict=True)
                if not np.isnan(end)
            ]
        ends[shape_name] = self.shape_G.tolist()
        return {n: (min(*v, self._fit.parameters[n]), max(*v, self._fit.parameters[n])) for n, v in ends.items()}

    def pinned(self) -> list[Fit]:
        """The best fits with the floor pinned at the ends of its interval, since floor and exponent are confounded."""
        name = self._law.parameters[0]
        fits = []
        for floor in self.parameters()[name]:
            rest_GN = self._target_N - floor * self._phi_GNK[..., 0]
            power_GK = non_negative(self._phi_GNK[..., 1:], np.ones_like(rest_GN), rest_GN)
            error_G = ((np.einsum("gnk,gk->gn", self._phi_GNK[..., 1:], power_GK) - rest_GN) ** 2).sum(-1)
            best = int(error_G.argmin())
            coefficients_K, shape = np.array([floor, *power_GK[best]]), float(self.shape_G[best])
            named = self._law.named(coefficients_K, shape, self._fit.unit)
            fits.append(replace(self._fit, coefficients_K=coefficients_K, shape=shape, parameters=named))
        return fits

    def _scaled_basis(self, shape_G: Array) -> Array:
        return self._law.basis(shape_G, self._u_N) / self._fitted_N[:, None]

    def _sse(self, shape_G: Array) -> Array:
        """Least sum of squared relative residuals at each exponent."""
        return self._best(shape_G)[0]

    def _best(self, shape_G: Array) -> tuple[Array, Array]:
        """Least sum of squared relative residuals at each exponent, and how many coefficients are positive there."""
        phi_GNK = self._scaled_basis(shape_G)
        least_G, positive_G = np.full(len(shape_G), np.inf), np.zeros(len(shape_G), dtype=int)
        for used in subsets(phi_GNK.shape[-1]):
            _, solution_GS, sse_G = self._solve(phi_GNK[..., used])
            better_G = (solution_GS >= 0).all(-1) & (sse_G < least_G)
            least_G, positive_G = np.where(better_G, sse_G, least_G), np.where(better_G, len(used), positive_G)
        return least_G, positive_G

    def _solve(self, phi_GNS: Array) -> tuple[Array, Array, Array]:
        """Inverse Gram matrices, unconstrained solutions and their sums of squares."""
        inverse_GSS = np.linalg.inv(phi_GNS.swapaxes(-1, -2) @ phi_GNS)
        solution_GS = (inverse_GSS @ (phi_GNS.swapaxes(-1, -2) @ self._target_N)[..., None])[..., 0]
        sse_G = (((phi_GNS @ solution_GS[..., None])[..., 0] - self._target_N) ** 2).sum(-1)
        return inverse_GSS, solution_GS, sse_G

    def _extremes(self, direction_GK: Array, noise: float) -> tuple[Array, Array]:
        """Least and greatest coefficients . direction (+ a run's noise of that variance in units of sigma^2).

        A linear function over an ellipsoid cut by the orthant has its extremes where, on the coefficients that are not
        zero, it has them over the uncut ellipsoid: so every set of coefficients is tried and the admissible ones kept.
        """
        low_G, high_G = np.full(len(direction_GK), np.nan), np.full(len(direction_GK), np.nan)
        for used in subsets(direction_GK.shape[-1]):
            inverse_GSS, solution_GS, sse_G = self._solve(self._phi_GNK[..., used])
            step_GS = np.einsum("gst,gt->gs", inverse_GSS, direction_GK[:, used])
            centre_G = (solution_GS * direction_GK[:, used]).sum(-1)
            variance_G = (step_GS * direction_GK[:, used]).sum(-1) + noise
            slack_G = self._limit - sse_G
            length_G = np.sqrt(np.maximum(slack_G, 0) / np.maximum(variance_G, 1e-300))
            for sign, end_G, choose in ((-1, low_G, np.fmin), (1, high_G, np.fmax)):
                admissible_G = (slack_G >= 0) & (solution_GS + sign * length_G[:, None] * step_GS >= 0).all(-1)
                value_G = np.where(admissible_G, centre_G + sign * length_G * variance_G, np.nan)
                end_G[:] = choose(end_G, value_G)
        return low_G, high_G

    def _shapes(self, best: float) -> Array:
        """The admissible exponents: from the lowest to the highest, and the best."""
        low, high = self._law.shape_bounds
        grid_G = np.sort(np.append(np.geomspace(low, high, 400), best))
        inside_G = np.flatnonzero(self._sse(grid_G) <= self._limit)
        first, last = int(inside_G[0]), int(inside_G[-1])
        lowest = grid_G[0] if first == 0 else self._edge(grid_G[first - 1], grid_G[first])
        highest = grid_G[-1] if last == len(grid_G) - 1 else self._edge(grid_G[last + 1], grid_G[last])
        return np.sort(np.append(np.geomspace(lowest, highest, 300), best))

    def _edge(self, outside: float, inside: float) -> float:
        for _ in range(50):
            middle = float(np.sqrt(outside * inside))
            if self._sse(np.array([middle]))[0] <= self._limit:
                inside = middle
            else:
                outside = middle
        return inside

    def _noise(self, least: float, p: int) -> tuple[float, int]:
        """Standard deviation of a relative residual and its degrees of freedom, p parameters being free.

        Runs of one size differ by seed noise alone. If the sizes' means scatter about the curve more than that noise
        explains, the sizes are the units that count, and the spread of seeds says nothing about a new size.
        """
        sizes, size_N = np.unique(self._fit.x_N, return_inverse=True)
        n, k = len(size_N), len(sizes)
        means = np.bincount(size_N, self._target_N) / np.bincount(size_N)
        pure = float(((self._target_N - means[size_N]) ** 2).sum())
        lack = max(least - pure, 0.0)
        if n > k and lack / (k - p) > stats.f.isf(POOLING_LEVEL, k - p, n - k) * pure / (n - k):
            return float(np.sqrt(lack / (k - p))), k - p
        return float(np.sqrt(least / (n - p))), n - p


def predict(fit: Fit, x: Sequence[float] | Array, level: float = LEVEL) -> list[Prediction]:
    """Predict the loss at each x, with the intervals of the mean curve and of a new run at `level`."""
    return Profile(fit, level).predict(x)


def hold_out(points: pl.DataFrame, k: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split points (as `read_points` gives them) into those of all but the k largest sizes and the rest."""
    sizes = points["x"].unique().sort()
    if not 0 <= k < len(sizes):
        raise UserError(f"--holdout: {k} of {len(sizes)} sizes cannot be held out; use 0 to {len(sizes) - 1}")
    largest = sizes.tail(k).implode()
    return points.filter(~pl.col("x").is_in(largest)), points.filter(pl.col("x").is_in(largest))


def compare(fit: Fit, predictions: Sequence[Prediction], actual: pl.DataFrame) -> Holdout:
    """Join predictions made from `fit` with the points (columns x, y) that came later.

    Raises:
        UserError: a prediction without an actual value, or no prediction at all.
    """
    naive = min(float(fit.y_N[fit.x_N == size].mean()) for size in np.unique(fit.x_N))
    means = {float(x): float(y) for x, y in actual.group_by("x").agg(pl.col("y").mean()).iter_rows()}
    if not predictions:
        raise UserError("held-out report: there is no prediction to compare")
    points = []
    for p in predictions:
        if p.x not in means:
            raise UserError(f"held-out report: no finished run at the predicted size {p.x:g}")
        loss = means[p.x]
        points.append(
            HeldOut(
                **vars(p),
                actual=loss,
                error_pct=100 * (p.predicted / loss - 1),
                naive_error_pct=100 * (naive / loss - 1),
                half_width_pct=100 * (p.high - p.low) / 2 / loss,
                inside=p.low <= loss <= p.high,
            )
        )
    return Holdout(
        points=tuple(points),
        mape=float(np.mean([abs(p.error_pct) for p in points])),
        naive_mape=float(np.mean([abs(p.naive_error_pct) for p in points])),
        extrapolation_factor=max(p.x for p in points) / float(fit.x_N.max()),
    )


def holdout_report(
    law: Law, points: pl.DataFrame, k: int, objective: Objective = "huber"
) -> tuple[Fit, Holdout | None]:
    """Fit all but the k largest sizes and compare the rest with its predictions; None if k is 0."""
    small, large = hold_out(points, k)
    fitted = fit(law, small["x"].to_numpy(), small["y"].to_numpy(), objective)
    if large.is_empty():
        return fitted, None
    return fitted, compare(fitted, predict(fitted, large["x"].unique().sort().to_numpy()), large)
