"""The base of scaling laws: a law is a formula for the loss at a size, with parameters to be fitted.

Every law is a sum of positive terms, L = sum_k c_k phi_k(x; shape). Given its shape (such as the exponents), L is
linear in the coefficients c. The fit uses ln L = logsumexp_k(ln c_k + ln phi_k), as in arXiv 2203.15556.

Shapes: G shapes tried at once, N points, V variables, K coefficients, H shape parameters, T = K + H parameters.
z = ln(variable / unit). The unit is the variable's geometric mean, which keeps the problem well conditioned.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Values = Mapping[str, float]

EXPONENT = (0.005, 5.0)  # bounds of exponents; a fit that ends at a bound is reported as a bound hit
UNBOUNDED = "unbounded"  # shown for an end of a parameter's interval that means nothing
MEANINGFUL = 1e30  # no model, data set or budget is above it, or below its inverse; exponents near a bound give such
STEP = 1e-6  # for derivatives by differences, with respect to the logarithms of shape parameters


def parameter_text(value: float | None, unknown: str = "not identified") -> str:
    """A parameter's value with four digits, or `unknown` if it means nothing. None is a value that overflowed."""
    means = value is not None and (value == 0 or 1 / MEANINGFUL < value < MEANINGFUL)
    return f"{value:.4g}" if means else unknown


class Law(ABC):
    """The base class of every law. Your own law is a subclass, found by its class path (`loss_laws.law_named`).

    Attributes:
        name: The name of the law in tables and figures.
        formula: The formula, as it is printed.
        variables: What the loss depends on, in the order of the columns of x: ("x",) (one quantity of any kind),
            ("N", "D") or ("N", "D", "U").
        parameters: Names in the formula: one for each coefficient, then one for each shape parameter. All are positive.
        shape_bounds: The bounds of each shape parameter, in the law's own units.
        shape_starts: For each shape parameter, the values that the search tries. It starts from the best of
            their combinations.
        has_floor: Whether the first coefficient is a floor.
        tied: Shape parameters that also depend on a coefficient, each with the index of this coefficient.
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    parameters: tuple[str, ...]
    shape_bounds: tuple[tuple[float, float], ...]
    shape_starts: tuple[tuple[float, ...], ...]
    has_floor: bool = True
    tied: Mapping[str, int] = MappingProxyType({})

    @abstractmethod
    def log_basis(self, shape_GH: Array, z_NV: Array) -> Array:
        """The logarithms of the terms without their coefficients: ln phi_GNK."""

    @abstractmethod
    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """The parameters by their names in the formula, in the units of the data. Values that overflow are infinite."""

    @abstractmethod
    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """The inverse of `named`: coefficients and shape. A value that depends on a NaN parameter is NaN."""

    @property
    def n_coefficients(self) -> int:
        return len(self.parameters) - len(self.shape_bounds)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of points that hold the variables."""
        return ("x", "d", "u")[: len(self.variables)]

    def units(self, x_NV: Array) -> Array:
        """Geometric means of the variables. But U has the unit of D, because their ratio has a meaning."""
        unit_V = np.exp(np.log(x_NV).mean(0))
        unit_V[2:] = unit_V[1:2]
        return unit_V

    def log_loss(self, theta_GT: Array, z_NV: Array) -> Array:
        """ln L, (G, N), at theta = ln(coefficients, shape)."""
        return np.asarray(np.logaddexp.reduce(self._log_terms(theta_GT, z_NV), axis=-1))

    def jacobian(self, theta_GT: Array, z_NV: Array) -> Array:
        """The derivatives of ln L with respect to theta, (G, N, T): for a coefficient, the share of its term in L."""
        (g, t), k = theta_GT.shape, self.n_coefficients
        terms_GNK = self._log_terms(theta_GT, z_NV)
        share_GNK = np.exp(terms_GNK - np.logaddexp.reduce(terms_GNK, axis=-1, keepdims=True))
        up_HT = STEP * np.eye(t)[k:]
        beside_GST = theta_GT[:, None] + np.concatenate([up_HT, -up_HT])
        up_GHN, down_GHN = np.split(self.log_loss(beside_GST.reshape(-1, t), z_NV).reshape(g, -1, len(z_NV)), 2, axis=1)
        return np.concatenate([share_GNK, ((up_GHN - down_GHN) / (2 * STEP)).swapaxes(1, 2)], axis=-1)

    def _log_terms(self, theta_GT: Array, z_NV: Array) -> Array:
        k = self.n_coefficients
        return self.log_basis(np.exp(theta_GT[:, k:]), z_NV) + theta_GT[:, None, :k]

    def theta(self, p: Values, unit_V: Array) -> Array:
        """The logarithms of coefficients and shape from the formula's parameters; NaN if a parameter is missing."""
        given = dict.fromkeys(self.parameters, float("nan")) | dict(p)
        with np.errstate(divide="ignore"):
            return np.log(np.concatenate(self.internal(given, unit_V)))

    def loss(self, p: Values, x: ArrayLike) -> Array:
        """The formula: the loss at x, (N,) or (N, V), for parameters in the units of the data."""
        theta_T = self.theta(p, np.ones(len(self.variables)))
        return np.exp(self.log_loss(theta_T[None], np.log(as_columns(self, x)))[0])


def as_columns(law: Law, x: ArrayLike) -> Array:
    """x with a column for each variable of the law, (N, V)."""
    x_NV = np.asarray(x, dtype=float)
    x_NV = x_NV[:, None] if x_NV.ndim == 1 else x_NV
    assert x_NV.shape[1:] == (len(law.variables),), (x_NV.shape, law.variables)
    return x_NV


def by_column(shape_GH: Array) -> Array:
    """The shape parameters. Each is a column, (G, 1), that broadcasts against points."""
    return shape_GH.T[..., None]


def stack(*log_phi: Array | float) -> Array:
    """What `log_basis` returns, from terms that broadcast to (G, N)."""
    return np.stack(np.broadcast_arrays(*log_phi), axis=-1)


def power_of(log_base: float, exponent: float) -> float:
    """exp(log_base * exponent), or infinity if this overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(log_base * exponent))
