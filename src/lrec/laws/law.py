"""What a scaling law is: a formula for the loss at a size, with parameters to be fitted.

Every law is a sum of positive terms, L = sum_k c_k phi_k(x; shape): given its shape (exponents and the like), the
coefficients c are linear. The fitter works with ln L = logsumexp_k(ln c_k + ln phi_k), as in arXiv 2203.15556.

Shapes: G shapes tried at once, N points, V variables, K coefficients, H shape parameters, T = K + H parameters.
z = ln(variable / unit), the unit being the variable's geometric mean, which keeps the problem well conditioned.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Values = Mapping[str, float]

EXPONENT = (0.005, 5.0)  # where exponents may lie; a fit that ends here is reported as a bound hit
UNBOUNDED = "unbounded"  # an end of a parameter's interval that means nothing
MEANINGFUL = 1e30
"""No model, data set or budget is so large, or so small: such a number is what an exponent near its bound leaves."""
STEP = 1e-6  # of the differences that stand for derivatives by the logarithms of shape parameters


def parameter_text(value: float | None, unknown: str = "not identified") -> str:
    """A parameter's value with four digits, or that it means nothing; None stands for a value that overflowed."""
    means = value is not None and (value == 0 or 1 / MEANINGFUL < value < MEANINGFUL)
    return f"{value:.4g}" if means else unknown


class Law(ABC):
    """The base of every law; a law of your own is a subclass, found by its class path (`loss_laws.law_named`).

    Attributes:
        name: What tables and figures call the law.
        formula: The formula, as it is printed.
        variables: What the loss depends on, in the order of the columns of x: ("x",), one quantity of any kind,
            ("N", "D") or ("N", "D", "U").
        parameters: Those of the formula: one for each coefficient, then one for each shape parameter. All positive.
        shape_bounds: Where each shape parameter may lie, in the law's own units.
        shape_starts: For each shape parameter the values that the search tries; it starts from the best of
            their products.
        has_floor: Whether the first coefficient is a floor.
        tied: Parameters after the coefficients' own that depend on a coefficient as well, and on which.
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
        """ln phi_GNK."""

    @abstractmethod
    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """The parameters as the formula has them, in the units of the data; what overflows is infinite."""

    @abstractmethod
    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """The inverse of `named`: coefficients and shape; a parameter that is NaN makes NaN what depends on it."""

    @property
    def n_coefficients(self) -> int:
        return len(self.parameters) - len(self.shape_bounds)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of points that hold the variables."""
        return ("x", "d", "u")[: len(self.variables)]

    def units(self, x_NV: Array) -> Array:
        """Geometric means of the variables; U is counted in the unit of D, since their ratio has a meaning."""
        unit_V = np.exp(np.log(x_NV).mean(0))
        unit_V[2:] = unit_V[1:2]
        return unit_V

    def log_loss(self, theta_GT: Array, z_NV: Array) -> Array:
        """ln L, (G, N), at theta = ln(coefficients, shape)."""
        return np.asarray(np.logaddexp.reduce(self._log_terms(theta_GT, z_NV), axis=-1))

    def jacobian(self, theta_GT: Array, z_NV: Array) -> Array:
        """The derivatives of ln L by theta, (G, N, T): a coefficient's is the share of its term."""
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
        """The logarithms of coefficients and shape from the formula's parameters; NaN where a parameter is missing."""
        given = dict.fromkeys(self.parameters, float("nan")) | dict(p)
        with np.errstate(divide="ignore"):
            return np.log(np.concatenate(self.internal(given, unit_V)))

    def loss(self, p: Values, x: Array) -> Array:
        """The formula: the loss at x, (N,) or (N, V), for parameters in the units of the data."""
        x_NV = as_columns(self, x)
        unit_V = np.ones(x_NV.shape[1])
        return np.exp(self.log_loss(self.theta(p, unit_V)[None], np.log(x_NV))[0])


def as_columns(law: Law, x: Array) -> Array:
    """x as a column for each variable of the law."""
    x_NV = np.asarray(x, dtype=float)
    x_NV = x_NV[:, None] if x_NV.ndim == 1 else x_NV
    assert x_NV.shape[1:] == (len(law.variables),), (x_NV.shape, law.variables)
    return x_NV


def by_column(shape_GH: Array) -> Array:
    """The shape parameters, each a column, (G, 1), that broadcasts against points."""
    return shape_GH.T[..., None]


def stack(*log_phi: Array | float) -> Array:
    """What `log_basis` returns, from terms that broadcast to (G, N)."""
    return np.stack(np.broadcast_arrays(*log_phi), axis=-1)


def power_of(log_base: float, exponent: float) -> float:
    """exp(log_base * exponent), infinite where that overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(log_base * exponent))
