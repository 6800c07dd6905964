"""Linear regressions on a grid of shapes, weighted by how well each explains the points.

Given the shape of a curve (how fast it flattens, say) what is left is a linear regression with normal priors and
unknown noise, whose posterior is known in closed form: Student's t (Gelman et al., Bayesian Data Analysis, 3rd edition,
section 14.2). Averaging over the grid weighs every shape by its marginal likelihood times its prior.

Shapes: G shapes of the grid, N points, P places to predict, K coefficients.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from lrec.laws.law import Array

NEGLIGIBLE = 1e-4
"""Shapes of less weight are left out."""
FAR = 20.0
"""Quantiles are looked for within this many scales of the means."""


@dataclass(frozen=True)
class Prior:
    """What is believed before the points are seen.

    Attributes:
        mean_K, sd_K: Of each coefficient; an infinite sd knows nothing.
        noise: Standard deviation of a point of weight 1.
        noise_dof: How many points that belief about the noise is worth.
    """

    mean_K: Array
    sd_K: Array
    noise: float
    noise_dof: float


class Mixture:
    """The posterior of the coefficients at every shape, and the weight of every shape."""

    def __init__(self, basis_GNK: Array, y_N: Array, weight_GN: Array, log_prior_G: Array, prior: Prior) -> None:
        precision_KK = np.diag((prior.noise / prior.sd_K) ** 2)
        weighted_GNK = basis_GNK * weight_GN[..., None]
        gram_GKK = weighted_GNK.swapaxes(-1, -2) @ basis_GNK + precision_KK
        sum_GK = weighted_GNK.swapaxes(-1, -2) @ y_N + precision_KK @ prior.mean_K
        mean_GK = np.linalg.solve(gram_GKK, sum_GK[..., None])[..., 0]
        # Of the residuals and of the coefficients' distance from their prior.
        residual_GN = y_N - (basis_GNK @ mean_GK[..., None])[..., 0]
        off_GK = mean_GK - prior.mean_K
        square_G = (weight_GN * residual_GN**2).sum(-1) + ((off_GK @ precision_KK) * off_GK).sum(-1)
        known = int(np.isinf(prior.sd_K).sum())  # coefficients that take a point each
        self.dof = prior.noise_dof + len(y_N) - known
        square_G += prior.noise_dof * prior.noise**2
        log_G = log_prior_G + np.log(weight_GN).sum(-1) / 2
        log_G -= (np.linalg.slogdet(gram_GKK)[1] + self.dof * np.log(square_G)) / 2
        weight_G = np.exp(log_G - log_G.max())
        self.kept = np.flatnonzero(weight_G > NEGLIGIBLE * weight_G.sum())
        self.weight_G = weight_G[self.kept] / weight_G[self.kept].sum()
        self.mean_GK = mean_GK[self.kept]
        self._covariance_GKK = np.linalg.inv(gram_GKK[self.kept])
        self.variance_G = square_G[self.kept] / self.dof

    def at(self, basis_GPK: Array) -> tuple[Array, Array]:
        """The mean of a curve at places, and its variance in units of the noise's, (G, P), of the shapes kept."""
        mean_GP = (basis_GPK @ self.mean_GK[..., None])[..., 0]
        return mean_GP, ((basis_GPK @ self._covariance_GKK) * basis_GPK).sum(-1)

    def quantile(self, share: float | Array, mean_GP: Array, scale_GP: Array) -> Array:
        """Of the mixture of Student's t at every place, by bisection."""
        low_P, high_P = (mean_GP - FAR * scale_GP).min(0), (mean_GP + FAR * scale_GP).max(0)
        for _ in range(34):
            middle_P = (low_P + high_P) / 2
            below_P = self.weight_G @ stdtr(self.dof, (middle_P - mean_GP) / scale_GP) < share
            low_P, high_P = np.where(below_P, middle_P, low_P), np.where(below_P, high_P, middle_P)
        return (low_P + high_P) / 2
