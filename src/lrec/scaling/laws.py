"""Scaling laws: what loss to expect at a size, as a formula with parameters to be fitted.

Every law here is separable: given its shape (the exponents), the loss is a sum of non-negative multiples of basis
functions, L = sum_k c_k phi_k(x; shape). A fit then only has to search the shape. A new law is a class added to `LAWS`.

Shapes: N points, K basis functions (coefficients), G shapes tried at once.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


class Law(ABC):
    """What the fitter needs to know of a law; x is divided by its geometric mean (the `unit`) before it comes here.

    Each coefficient belongs to one parameter, in their order (given the shape); the exponent is the last parameter.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    n_coefficients: int
    shape_bounds: tuple[float, float]
    """Where the exponent may lie; a fit that ends here is reported as a bound hit."""
    shape_starts: tuple[float, ...]
    """Exponents from which the search starts."""
    floor_starts: tuple[float, ...]
    """Shares of the lowest loss at which the first coefficient (the floor) starts."""

    @abstractmethod
    def basis(self, shape_G: Array, x_N: Array) -> Array:
        """The basis functions at x, phi_GNK."""

    @abstractmethod
    def basis_gradient(self, shape: float, x_N: Array) -> Array:
        """Their derivatives by the exponent, dphi_NK."""

    @abstractmethod
    def named(self, coefficients: Array, shape: float, unit: float) -> dict[str, float]:
        """The parameters as the formula has them, in the units of the data."""


class Lsrm(Law):
    """L(x) = E + (x0/x)^a: a floor, and a power of one quantity (parameters, interactions or FLOPs).

    Source: "Scaling Law of Large Sequential Recommendation Models", Zhang et al. 2023, arXiv:2311.11351, there for the
    number of parameters without embeddings. E is in nats, x0 in the unit of x.
    """

    name = "lsrm"
    formula = "L(x) = E + (x0/x)^a"
    parameters = ("E", "x0", "a")
    n_coefficients = 2
    shape_bounds = (0.005, 5.0)
    shape_starts = (0.03, 0.1, 0.3, 1.0)
    floor_starts = (0.0, 0.3, 0.6, 0.8, 0.9, 0.98)

    def basis(self, shape_G: Array, x_N: Array) -> Array:
        """1 and x^-a."""
        power_GN = np.exp(-shape_G[:, None] * np.log(x_N))
        return np.stack([np.ones_like(power_GN), power_GN], axis=-1)

    def basis_gradient(self, shape: float, x_N: Array) -> Array:
        """0 and -ln(x) x^-a."""
        log_N = np.log(x_N)
        return np.stack([np.zeros_like(log_N), -log_N * np.exp(-shape * log_N)], axis=-1)

    def named(self, coefficients: Array, shape: float, unit: float) -> dict[str, float]:
        """E, x0 and a; x0 is 0 where the power vanished, inf where it overflows."""
        floor, power = (float(c) for c in coefficients)
        log_x0 = np.log(power) / shape + np.log(unit) if power > 0 else -np.inf
        return {"E": floor, "x0": float(np.exp(log_x0)) if log_x0 < 700 else np.inf, "a": float(shape)}


LAWS: dict[str, Law] = {law.name: law for law in (Lsrm(),)}
