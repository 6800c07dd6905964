"""Linear regressions on a grid of shapes of a curve, weighted by their marginal likelihoods times their priors.

At a given shape (such as how fast the curve flattens), coefficients have normal priors, and the noise is unknown. So
the posterior is Student's t in closed form (Gelman et al., Bayesian Data Analysis, 3rd edition, section 14.2).

The errors of points are independent, or correlated between neighbours (docs/laws.md).

Shapes: G shapes of the grid, N points, C cells of points, P places to predict, K coefficients.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.special import beta, stdtr, stdtrit

from lrec.laws.law import Array

LADDER = 12  # with more sizes, one point each, the points are a long curve, and roll-outs take several sizes per step
ODDS, LENGTHS = (0.1, 1.0, 10.0), (0.1, 0.3, 1.0, 3.0)
"""Ratios of the variances of misfit and noise at the largest x, and distances in ln x over which a misfit falls by a
factor of e. Both are evenly spaced in the logarithm. All values are equally probable before the points are seen."""
CELLS = 100  # points of more sizes are merged into this many cells, even in ln x: in each, a misfit hardly changes
TAKEN = 0.99  # a point that is off loses this share of its weight


class Errors(NamedTuple):
    """The errors of the points, in units of a point's variance at the largest x."""

    precision: Array  # (N,), or (N, N) if errors are correlated
    log_det: float  # ln of the determinant of the precision of all points, including those merged into cells
    scatter: float = 0.0  # sum of squares within cells
    merged: int = 0  # the number of points minus the number of cells

    def times(self, value: Array) -> Array:
        """The precision times vectors (N,), (G, N) or matrices (G, N, K)."""
        if self.precision.ndim == 1:
            return self.precision[:, None] * value if value.ndim == 3 else self.precision * value
        return self.precision @ value if value.ndim == 3 else value @ self.precision

    @property
    def diagonal_N(self) -> Array:
        """The precision of each point if all others are known."""
        return self.precision if self.precision.ndim == 1 else np.diag(self.precision)


def of_runs(t_N: Array, memory: float) -> Errors:
    """Errors of independent runs at t = ln(x / the largest x). The variance grows by e for every `memory` below 0."""
    return Errors(np.exp(t_N / memory), t_N.sum() / memory)


def of_curve(t_N: Array, y_N: Array, memory: float) -> tuple[Array, Array, list[Errors]]:
    """The places and means of the cells of a curve, such as the evaluations of one run, and its possible errors.
    Besides noise, such a curve has a slowly changing misfit to any formula. So neighbours err in the same direction,
    and a hundred of them say little more than ten. The misfit is an Ornstein-Uhlenbeck process of ln x. Its standard
    deviation grows by a factor of e for every `memory` of ln x below the largest x, or is constant. Which of these is
    true, the ratio to the noise, and the length of the misfit are inferred together with the curve (Rasmussen and
    Williams, Gaussian Processes for Machine Learning, sections 2.7 and 4.2)."""
    place_N = t_N if len(np.unique(t_N)) <= CELLS else np.floor(t_N * CELLS / -t_N.min())
    _, cell_N, count_C = np.unique(place_N, return_inverse=True, return_counts=True)
    t_C, y_C = (np.bincount(cell_N, value_N) / count_C for value_N in (t_N, y_N))
    within, merged = float(((y_N - y_C[cell_N]) ** 2).sum()), len(t_N) - len(t_C)
    apart_CC, errors = np.abs(t_C[:, None] - t_C), []
    for odds, length, growth_C in product(ODDS, LENGTHS, (np.exp(-t_C / memory), np.ones(len(t_C)))):
        noise, misfit = 1 / (1 + odds), odds / (1 + odds)
        misfit_CC = misfit * np.outer(growth_C, growth_C) * np.exp(-apart_CC / length)
        precision_CC = np.linalg.inv(misfit_CC + np.diag(noise / count_C))
        log_det = np.linalg.slogdet(precision_CC)[1] - merged * np.log(noise)
        errors.append(Errors(precision_CC, float(log_det), within / noise, merged))
    return t_C, y_C, errors


@dataclass(frozen=True)
class Prior:
    """The beliefs about the coefficients and the noise before the points are seen."""

    mean_K: Array
    sd_K: Array  # infinite if nothing is known
    noise: float  # standard deviation of a point of weight 1
    noise_dof: float  # how many points this belief is worth

    def dof(self, n: int) -> float:
        """Degrees of freedom of the noise after n points. A coefficient about which nothing is known costs one."""
        return self.noise_dof + n - int(np.isinf(self.sd_K).sum())


class Posterior(NamedTuple):
    """The posterior of the coefficients at some shapes."""

    gram_GKK: Array  # precisions in units of the noise
    mean_GK: Array
    square_G: Array  # sums of squares
    log_G: Array  # logarithms of the shapes' weights, up to a constant


class Part(NamedTuple):
    """Some of the shapes, with one model of the errors of the points."""

    basis_GNK: Array
    errors: Errors
    log_prior_G: Array
    off_G: Array  # the point that is off, counted from 1; 0: no point is off


def posterior(part: Part, y_N: Array, prior: Prior) -> Posterior:
    """The posterior of the coefficients at some shapes. A point that is off loses most of its weight: the precision W
    of the errors becomes W - `TAKEN` W e (W e)' / e' W e, with e the point's unit vector."""
    (basis_GNK, errors, log_prior_G, off_G), precision_KK = part, np.diag((prior.noise / prior.sd_K) ** 2)
    pulled_GKN, pulled_y_N = errors.times(basis_GNK).swapaxes(-1, -2), errors.times(y_N)
    gram_GKK = pulled_GKN @ basis_GNK + precision_KK
    sum_GK = pulled_GKN @ y_N + precision_KK @ prior.mean_K
    off_R = np.flatnonzero(off_G)
    point_R = off_G[off_R] - 1
    taken_R, lost_RK = TAKEN / errors.diagonal_N[point_R], pulled_GKN[off_R, :, point_R]
    gram_GKK[off_R] -= taken_R[:, None, None] * lost_RK[:, :, None] * lost_RK[:, None, :]
    sum_GK[off_R] -= (taken_R * pulled_y_N[point_R])[:, None] * lost_RK
    mean_GK = np.linalg.solve(gram_GKK, sum_GK[..., None])[..., 0]
    # The squares of the residuals, and of the coefficients' distances from their prior means.
    residual_GN, off_GK = y_N - (basis_GNK @ mean_GK[..., None])[..., 0], mean_GK - prior.mean_K
    pulled_GN = errors.times(residual_GN)
    square_G = (pulled_GN * residual_GN).sum(-1) + ((off_GK @ precision_KK) * off_GK).sum(-1)
    square_G += prior.noise_dof * prior.noise**2 + errors.scatter
    square_G[off_R] -= taken_R * pulled_GN[off_R, point_R] ** 2
    log_G = log_prior_G + errors.log_det / 2 + np.where(off_G > 0, np.log(1 - TAKEN) / 2, 0)
    log_G -= (np.linalg.slogdet(gram_GKK)[1] + prior.dof(len(y_N) + errors.merged) * np.log(square_G)) / 2
    return Posterior(gram_GKK, mean_GK, square_G, log_G)


def with_one_off(part: Part, y_N: Array, prior: Prior) -> Array:
    """ln of every shape's weight, up to a constant, if no point is off, and if each in turn is, (G, 1 + N). If W loses
    d W e (W e)', the precision P loses d (B' W e) (B' W e)', and the squares lose d (e' W r)^2 / (1 - d e' W B P^-1 B'
    W e), with the basis B and the residuals r."""
    errors, (gram_GKK, mean_GK, square_G, log_G) = part.errors, posterior(part, y_N, prior)
    d_N, pulled_GNK = TAKEN / errors.diagonal_N, errors.times(part.basis_GNK)
    left_GN = 1 - d_N * ((pulled_GNK @ np.linalg.inv(gram_GKK)) * pulled_GNK).sum(-1)
    pulled_GN = errors.times(y_N - (part.basis_GNK @ mean_GK[..., None])[..., 0])
    share_GN = 1 - d_N * pulled_GN**2 / left_GN / square_G[:, None]
    log_GN = (np.log(1 - TAKEN) - np.log(left_GN) - prior.dof(len(y_N) + errors.merged) * np.log(share_GN)) / 2
    return log_G[:, None] + np.column_stack([np.zeros(len(log_G)), log_GN])


class Mixture:
    """The posterior of the coefficients at every shape, and the weight of every shape."""

    def __init__(self, parts: Iterable[Part], y_N: Array, prior: Prior, n: int) -> None:
        found = zip(*(posterior(part, y_N, prior) for part in parts), strict=True)
        gram_GKK, self.mean_GK, square_G, log_G = (np.concatenate(values) for values in found)
        weight_G = np.exp(log_G - log_G.max())
        self.dof, self.weight_G = prior.dof(n), weight_G / weight_G.sum()
        self._covariance_GKK = np.linalg.inv(gram_GKK)
        self.variance_G = square_G / self.dof

    def at(self, basis_GPK: Array) -> tuple[Array, Array]:
        """The mean of each shape's curve at places, and its variance in units of the noise's variance, both (G, P)."""
        mean_GP = (basis_GPK @ self.mean_GK[..., None])[..., 0]
        return mean_GP, ((basis_GPK @ self._covariance_GKK) * basis_GPK).sum(-1)

    def quantile(self, share: float | Array, mean_GP: Array, scale_GP: Array) -> Array:
        """The quantile of the mixture of Student's t distributions at every place, by Newton's method. A step that
        would leave the known bounds halves them instead."""
        part_GP = mean_GP + scale_GP * stdtrit(self.dof, share)
        low_P, high_P, x_P = part_GP.min(0), part_GP.max(0), self.weight_G @ part_GP
        of_density = self.dof**0.5 * beta(self.dof / 2, 0.5)
        for _ in range(34):
            from_mean_GP = (x_P - mean_GP) / scale_GP
            excess_P = self.weight_G @ stdtr(self.dof, from_mean_GP) - share
            low_P, high_P = np.where(excess_P < 0, x_P, low_P), np.where(excess_P < 0, high_P, x_P)
            density_GP = (1 + from_mean_GP**2 / self.dof) ** (-(self.dof + 1) / 2) / of_density / scale_GP
            before_P, x_P = x_P, x_P - excess_P / (self.weight_G @ density_GP)
            x_P = np.where((low_P <= x_P) & (x_P <= high_P), x_P, (low_P + high_P) / 2)
            if np.all(np.abs(x_P - before_P) < 1e-11):
                break
        return x_P
