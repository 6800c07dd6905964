"""A law of the best learning rate and batch: powers of size and data, fitted to runs of any rates and batches.

Near its optimum, the loss is a parabola in the distances u from the best ln rate and v from the best ln batch. It is
steeper above the best rate than below: ln L = ln L* + (c_low or c_high) u^2 / 2 + c_batch v^2 / 2, where
u = ln rate - ln rate* - s v. The curvatures are the same for all D; those of the rate are powers of N. Each setting
(N, D) has its own L*, and its own optimum, which scatters around the powers of N and D. Few settings cannot determine
all exponents. So there is a prior, as wide as the published exponents scatter (arXiv 2503.04715, 2505.13738,
2512.22382; OLMo's ladder).

Shapes: N points, C settings, P parameters.
"""

from copy import copy
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.optimize import least_squares, minimize_scalar
from scipy.stats import norm

from lrec.errors import UserError
from lrec.laws.intervals import LEVEL
from lrec.laws.law import Array

NAMES = ("rate", "rate_N", "rate_D", "batch", "batch_N", "batch_D", "slope", "c_low", "c_high", "c_N", "c_batch")
"""ln of the optimum in the middle of the runs, its exponents, s, and ln of the curvatures: the rate's grow as N^c_N."""
MEAN_P = np.array([0.0, -0.45, 0.15, 0.0, 0.0, 0.5, 0.5, np.log(0.01), np.log(0.04), 0.0, np.log(0.01)])
SD_P = np.array([2.0, 0.2, 0.2, 2.0, 0.1, 0.15, 0.2, 1.5, 1.5, 0.2, 1.5])  # of the prior
# The prior for the scaled parametrisation, whose best rate hardly depends on the size. At a fixed batch, the best rate
# falls as D^-0.3 on average: as D^-0.6 on decks, as D^-0.5 on clicks, and on Go it rises a little. The best batch falls
# with the size: on two of three logs, networks of about 250k parameters learn better in half of the step that is the
# best for 3k parameters; on the third as well. On MovieLens-1M, with three passes, it does not fall. A wrong rate costs
# large networks more: on Go, clicks and decks, the curvature is 0.004 to 0.04 for 3k parameters, and 0.04 to 0.1 for
# 900k (benchmarks/hours.md).
SCALED_MEAN_P, SCALED_SD_P = MEAN_P.copy(), SD_P.copy()
SCALED_MEAN_P[[1, 2, 4]], SCALED_SD_P[[1, 2]] = (0.0, -0.05, -0.2), (0.1, 0.35)
SCALED_MEAN_P[7:10], SCALED_SD_P[7:10] = (np.log(0.02), np.log(0.03), 0.2), (0.5, 0.5, 0.15)
SCATTER = 0.2  # standard deviation of ln rate* and ln batch* of a setting around the powers
# Runs whose loss is 3 % or more above the best loss of their setting say nothing about its optimum. But each setting
# keeps its best three runs.
NEAR, LEAST_RATES = 0.03, 3
FAR = 4.0  # ratio of two sizes that tells powers of the size
NOISE, LEAST_NOISE = 2e-3, 5e-4  # of ln L around the parabola: the first guess, and the lowest value


@dataclass(frozen=True)
class RateChoice:
    """A rate and a batch, 90 % intervals of the best ones, and the expected cost of a miss as a share of the loss."""

    rate: float
    rate_low: float
    rate_high: float
    batch: float
    batch_low: float
    batch_high: float
    cost: float


class RateLaw:
    """The law fitted to runs, `scaled` or not: columns x (N), d (D), rate, batch and y (loss); not to runs that
    diverged. UserError if a value is not positive, or for fewer than `LEAST_RATES` rates."""

    def __init__(self, points: pl.DataFrame, scaled: bool = False) -> None:
        self._prior_2P = (SCALED_MEAN_P, SCALED_SD_P) if scaled else (MEAN_P, SD_P)
        runs = points.select("x", "d", "rate", "batch", "y").cast(pl.Float64).filter(pl.col("y").is_finite())
        if not (runs.to_numpy() > 0).all():
            raise UserError("rate law: every size, amount of data, rate, batch and loss must be positive")
        if runs["rate"].n_unique() < LEAST_RATES:
            raise UserError(f"rate law: {LEAST_RATES} rates are needed, not {runs['rate'].n_unique()}")
        of_best = pl.col("y") <= (1 + NEAR) * pl.col("y").min().over("x", "d")
        runs = runs.filter(of_best | (pl.col("y").rank("ordinal").over("x", "d") <= LEAST_RATES))
        log_N5 = np.log(runs.to_numpy())
        self._middle_4 = log_N5[:, :4].mean(0)
        self._place_N2, self._tried_N2 = np.split(log_N5[:, :4] - self._middle_4, 2, axis=1)
        self._y_N = log_N5[:, 4]
        cells, self._cell_N = np.unique(self._place_N2, axis=0, return_inverse=True)
        self._cell_N = self._cell_N.ravel()
        best_C = [self._y_N[self._cell_N == c].min() for c in range(len(cells))]
        start_P, noise = np.concatenate([self._prior_2P[0], best_C, np.zeros(2 * len(cells))]), NOISE
        for _ in range(3):
            end = least_squares(self._residuals, start_P, loss="huber", args=(noise,))
            start_P, off_N = end.x, np.abs(self._off(end.x))
            noise = max(LEAST_NOISE, 1.4826 * float(np.median(off_N)))
        k = len(NAMES)
        self._theta_P, self._covariance_PP = end.x[:k], np.linalg.inv(end.jac.T @ end.jac)[:k, :k]
        self.parameters = dict(zip(NAMES, self._theta_P.tolist(), strict=True))

    def choose(self, size: float, data: float, batch: float | None = None) -> RateChoice:
        """Choose a rate and a batch for a size and an amount of data, or only a rate if the batch is given. The more
        uncertain the best rate is, the lower is the choice: the loss rises faster above the best rate than below it."""
        n, d = np.log([size, data]) - self._middle_4[:2]
        middle_2, (best_batch, batch_sd) = self._middle_4[2:], self._batch(n, d)
        log_batch = best_batch if batch is None else float(np.log(batch)) - middle_2[1]
        best, sd = self._rate(n, d, log_batch)
        found = minimize_scalar(lambda shift: self._cost(shift, sd, n), bounds=(-2.0, 0.5), method="bounded")
        reach = norm.ppf((1 + LEVEL) / 2) * np.array([-1, 1])
        rate, rate_low, rate_high = np.exp(middle_2[0] + best + np.array([found.x, *(reach * sd)])).tolist()
        batch_low, batch_high = np.exp(middle_2[1] + best_batch + reach * batch_sd).tolist()
        chosen = float(np.exp(middle_2[1] + log_batch))
        return RateChoice(rate, rate_low, rate_high, chosen, batch_low, batch_high, self.cost(size, data, rate, chosen))

    def cost(self, size: float, data: float, rate: float, batch: float) -> float:
        """How far above the best loss this rate and batch are expected to be, as a share of it. The best rate is taken
        as uncertain, the best batch as known. If all runs have one batch, the batch costs nothing."""
        n, d, log_rate, log_batch = np.log([size, data, rate, batch]) - self._middle_4
        best, sd = self._rate(n, d, log_batch)
        cost = self._cost(log_rate - best, sd, n)
        if np.ptp(self._tried_N2[:, 1]) > 0:
            cost += float(np.exp(self._theta_P[10]) * (log_batch - self._batch(n, d)[0]) ** 2 / 2)
        return float(np.expm1(cost))

    def towards(self, size: float, data: float, rate: float, batch: float) -> "RateLaw":
        """This law, with powers of the size that change its best rate and batch for one size and amount of data: they
        come to lie half-way, in logarithms, between the law's and these. They stay the same for the smallest size of
        the runs. So a `size` less than `FAR` times as large moves less: it says less of the powers."""
        n, d, log_rate, log_batch = np.log([size, data, rate, batch]) - self._middle_4
        least = self._place_N2[:, 0].min()
        of_rate = log_rate - np.array([1, n, d]) @ self._theta_P[:3]
        half_2 = np.array([of_rate, log_batch - self._batch(n, d)[0]]) / 2
        of_size_2 = half_2 * (n - least) / max(n - least, np.log(FAR)) ** 2
        law = copy(self)
        law._theta_P = self._theta_P.copy()
        law._theta_P[[0, 3]] -= of_size_2 * least
        law._theta_P[[1, 4]] += of_size_2
        law.parameters = dict(zip(NAMES, law._theta_P.tolist(), strict=True))
        return law

    def _cost(self, u: float, sd: float, n: float) -> float:
        """The mean cost of a rate at the distance `u` from the mean of the best rate, which is normally distributed."""
        low, high = np.exp(self._theta_P[7:9] + self._theta_P[9] * n)
        z, square = u / sd, u**2 + sd**2
        above = square * norm.cdf(z) + u * sd * norm.pdf(z)
        return float(low * (square - above) + high * above) / 2

    def _batch(self, n: float, d: float) -> tuple[float, float]:
        """ln batch* and its standard error."""
        gradient_P = np.array([0, 0, 0, 1, n, d, 0, 0, 0, 0, 0])
        return float(gradient_P @ self._theta_P), self._error(gradient_P)

    def _rate(self, n: float, d: float, log_batch: float) -> tuple[float, float]:
        """ln rate* at a batch and its standard error. Runs of one batch determine the rate best at this batch."""
        of_place, slope = np.array([1, n, d]), self._theta_P[6]
        from_best = log_batch - of_place @ self._theta_P[3:6]
        gradient_P = np.array([*of_place, *(-slope * of_place), from_best, 0, 0, 0, 0])
        return float(of_place @ self._theta_P[:3] + slope * from_best), self._error(gradient_P)

    def _error(self, gradient_P: Array) -> float:
        return float(np.sqrt(gradient_P @ self._covariance_PP @ gradient_P + SCATTER**2))

    def _off(self, theta_P: Array) -> Array:
        """ln L of each run minus the parabola of its setting."""
        (r, r_n, r_d, b, b_n, b_d, slope, *curvatures), rest_C3 = theta_P[: len(NAMES)], theta_P[len(NAMES) :]
        best_N, rate_N, batch_N = rest_C3.reshape(3, -1)[:, self._cell_N]
        n_N, d_N = self._place_N2.T
        low, high, grows, of_batch = curvatures
        low_N, high_N = np.exp([low + grows * n_N, high + grows * n_N])
        v_N = self._tried_N2[:, 1] - (b + b_n * n_N + b_d * d_N + batch_N)
        u_N = self._tried_N2[:, 0] - (r + r_n * n_N + r_d * d_N + rate_N) - slope * v_N
        return self._y_N - best_N - (np.where(u_N < 0, low_N, high_N) * u_N**2 + np.exp(of_batch) * v_N**2) / 2

    def _residuals(self, theta_P: Array, noise: float) -> Array:
        """Residuals of the runs, the prior and the settings' scatter, each in its own standard deviations."""
        k, cells = len(NAMES), self._cell_N.max() + 1
        mean_P, sd_P = self._prior_2P
        scatter_C = theta_P[k + cells :] / SCATTER
        return np.concatenate([self._off(theta_P) / noise, (theta_P[:k] - mean_P) / sd_P, scatter_C])
