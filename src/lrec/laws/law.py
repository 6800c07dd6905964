"""What a scaling law is: a formula for the loss at a size, with parameters to be fitted.

Every law is a sum of positive terms, L = sum_k c_k phi_k(x; shape): given its shape (exponents and the like), the
coefficients c are linear. The fitter works with ln L = logsumexp_k(ln c_k + ln phi_k), as in arXiv 2203.15556, so a law
says what ln phi is, and its derivatives.

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

EXPONENT = (0.005, 5.0)
"""Where exponents may lie; a fit that ends here is reported as a bound hit."""
NOT_IDENTIFIED = "not identified"
MEANINGFUL = 1e30
"""No model, data set or budget is so large, or so small: such a number is what an exponent near its bound leaves."""


def is_identified(value: float) -> bool:
    """Whether a parameter's value can mean anything: a floor of 0 can."""
    return value == 0 or 1 / MEANINGFUL < value < MEANINGFUL


def parameter_text(value: float | None) -> str:
    """A parameter's value with four digits, or "not identified"; None stands for a value that overflowed."""
    return f"{value:.4g}" if value is not None and is_identified(value) else NOT_IDENTIFIED


def end_text(value: float | None) -> str:
    """An end of a parameter's interval, or "unbounded"; None stands for a value that overflowed."""
    return f"{value:.4g}" if value is not None and is_identified(value) else "unbounded"


class Law(ABC):
    """The base of every law; a law of your own is a subclass, found by its class path (`forms.law_named`).

    Attributes:
        name: What tables and figures call the law.
        formula: The formula, as it is printed.
        source: Where the law comes from.
        variables: What the loss depends on, in the order of the columns of x: ("x",), one quantity of any kind,
            ("N", "D") or ("N", "D", "U").
        parameters: Those of the formula: one for each coefficient, then one for each shape parameter. All positive.
        shape_bounds: Where each shape parameter may lie, in the law's own units.
        shape_starts: For each shape parameter the values from which the search starts; their product is the grid.
        floor_starts: Shares of the lowest loss at which the first coefficient, the floor, starts; () without a floor.
        tied: Parameters after the coefficients' own that depend on a coefficient as well, and on which.
    """

    name: str
    formula: str
    source: str = ""
    variables: tuple[str, ...]
    parameters: tuple[str, ...]
    shape_bounds: tuple[tuple[float, float], ...]
    shape_starts: tuple[tuple[float, ...], ...]
    floor_starts: tuple[float, ...] = (0.3, 0.6, 0.85)
    tied: Mapping[str, int] = MappingProxyType({})

    @abstractmethod
    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """ln phi_GNK, and its derivatives by the shape parameters, (G, N, K, H)."""

    @abstractmethod
    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """The parameters as the formula has them, in the units of the data; what overflows is infinite."""

    @abstractmethod
    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """The inverse of `named`: coefficients and shape; a parameter that is NaN makes NaN what depends on it."""

    @property
    def n_coefficients(self) -> int:
        """How many of the parameters are coefficients."""
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

    def log_loss(self, theta_GT: Array, z_NV: Array) -> tuple[Array, Array]:
        """ln L, (G, N), and its derivatives by theta = ln(coefficients, shape), (G, N, T)."""
        log_c_GK, shape_GH = theta_GT[:, : self.n_coefficients], np.exp(theta_GT[:, self.n_coefficients :])
        log_phi_GNK, by_shape_GNKH = self.log_basis(shape_GH, z_NV)
        terms_GNK = log_phi_GNK + log_c_GK[:, None]
        top_GN1 = terms_GNK.max(-1, keepdims=True)
        share_GNK = np.exp(terms_GNK - top_GN1)
        sum_GN1 = share_GNK.sum(-1, keepdims=True)
        share_GNK /= sum_GN1
        by_shape_GNH = np.matmul(share_GNK[..., None, :], by_shape_GNKH)[..., 0, :] * shape_GH[:, None]
        return (top_GN1 + np.log(sum_GN1))[..., 0], np.concatenate([share_GNK, by_shape_GNH], axis=-1)

    def theta(self, p: Values, unit_V: Array) -> Array:
        """The logarithms of coefficients and shape from the formula's parameters; NaN where a parameter is missing."""
        given = dict.fromkeys(self.parameters, float("nan")) | dict(p)
        with np.errstate(divide="ignore"):
            return np.log(np.concatenate(self.internal(given, unit_V)))

    def loss(self, p: Values, x: Array) -> Array:
        """The formula: the loss at x, (N,) or (N, V), for parameters in the units of the data."""
        x_NV = as_columns(self, x)
        unit_V = np.ones(x_NV.shape[1])
        return np.exp(self.log_loss(self.theta(p, unit_V)[None], np.log(x_NV))[0][0])


def as_columns(law: Law, x: Array) -> Array:
    """x as a column for each variable of the law."""
    x_NV = np.asarray(x, dtype=float)
    x_NV = x_NV[:, None] if x_NV.ndim == 1 else x_NV
    assert x_NV.ndim == 2, x_NV.shape
    assert x_NV.shape[1] == len(law.variables), (x_NV.shape, law.variables)
    return x_NV


def stack(log_phi: list[Array], by_shape: list[list[Array | float]], like_GN: Array) -> tuple[Array, Array]:
    """What `log_basis` returns, from what broadcasts to (G, N): one a term, and one a term and shape parameter."""
    log_phi_GNK = np.empty((*like_GN.shape, len(log_phi)))
    by_shape_GNKH = np.empty((*log_phi_GNK.shape, len(by_shape[0])))
    for k, (term, row) in enumerate(zip(log_phi, by_shape, strict=True)):
        log_phi_GNK[..., k] = term
        for h, derivative in enumerate(row):
            by_shape_GNKH[..., k, h] = derivative
    return log_phi_GNK, by_shape_GNKH


def power_of(log_base: float, exponent: float) -> float:
    """exp(log_base * exponent), infinite where that overflows."""
    return float(np.exp(np.minimum(log_base * exponent, 709.78))) if log_base * exponent < 709.78 else float("inf")
