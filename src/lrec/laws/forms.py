"""Scaling laws: what loss to expect at a size, as a formula with parameters to be fitted.

Every law here is a sum of positive terms, L = sum_k c_k phi_k(x; shape): given its shape (exponents and the like), the
coefficients c are linear. The fitter works with ln L = logsumexp_k(ln c_k + ln phi_k), as in arXiv 2203.15556, so a
law says what ln phi is, and its derivatives. A new law is a class added to `LAWS`.

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


class Law(ABC):
    """What the fitter needs to know of a law.

    Attributes:
        variables: What the loss depends on, in the order of the columns of x.
        parameters: Those of the formula: one for each coefficient, then one for each shape parameter. All positive.
        n_coefficients: How many of them are coefficients.
        shape_bounds: Where each shape parameter may lie, in the law's own units.
        shape_starts: For each shape parameter the values from which the search starts; their product is the grid.
        tied: Parameters after the coefficients' own that depend on a coefficient as well, and on which.
        floor_starts: Shares of the lowest loss at which the first coefficient, the floor, starts; () without a floor.
        source: Where the law comes from.
    """

    name: str
    formula: str
    source: str
    variables: tuple[str, ...]
    parameters: tuple[str, ...]
    n_coefficients: int
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


def _stack(log_phi: list[Array], by_shape: list[list[Array | float]], like_GN: Array) -> tuple[Array, Array]:
    """What `log_basis` returns, from what broadcasts to (G, N): one a term, and one a term and shape parameter."""
    stacked = np.empty((*like_GN.shape, len(log_phi), len(by_shape[0])))
    for k, row in enumerate(by_shape):
        for h, derivative in enumerate(row):
            stacked[..., k, h] = derivative
    return np.stack([np.broadcast_to(term, like_GN.shape) for term in log_phi], axis=-1), stacked


def _power(log_base: float, exponent: float) -> float:
    """exp(log_base * exponent), infinite where that overflows."""
    return float(np.exp(np.minimum(log_base * exponent, 709.78))) if log_base * exponent < 709.78 else float("inf")


class Lsrm(Law):
    """L(x) = E + (x0/x)^a: a floor, and a power of one quantity: parameters, interactions or FLOPs. E is in nats."""

    name = "lsrm"
    formula = "L(x) = E + (x0/x)^a"
    source = "Scaling Law of Large Sequential Recommendation Models, arXiv 2311.11351 (there in N without embeddings)"
    variables = ("x",)
    parameters = ("E", "x0", "a")
    n_coefficients = 2
    shape_bounds = (EXPONENT,)
    shape_starts = ((0.03, 0.1, 0.3, 1.0),)
    floor_starts = (0.01, 0.3, 0.6, 0.8, 0.9, 0.98)

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1 and x^-a."""
        (z_N,) = z_NV.T
        power_GN = -shape_GH[:, :1] * z_N
        return _stack([np.zeros(1), power_GN], [[0.0], [-z_N]], power_GN)

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """E, x0 and a; x0 is 0 where the power vanished."""
        (floor, power), (a,), (unit,) = coefficients_K, shape_H, unit_V
        log_x0 = np.log(power) / a + np.log(unit) if power > 0 else -np.inf
        return {"E": float(floor), "x0": _power(log_x0, 1.0), "a": float(a)}

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """E, (x0/unit)^a; a."""
        return [p["E"], (p["x0"] / unit_V[0]) ** p["a"]], [p["a"]]


class Chinchilla(Law):
    """L(N, D) = E + A/N^a + B/D^b: a floor, a term for too few parameters, a term for too little data."""

    name = "chinchilla"
    formula = "L(N, D) = E + A/N^a + B/D^b"
    source = "Training Compute-Optimal Large Language Models, arXiv 2203.15556, equation 2"
    variables = ("N", "D")
    parameters = ("E", "A", "B", "a", "b")
    n_coefficients = 3
    shape_bounds = (EXPONENT, EXPONENT)
    shape_starts = ((0.1, 0.3, 0.8), (0.1, 0.3, 0.8))

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1, N^-a and D^-b."""
        size_N, data_N = z_NV.T
        size_GN, data_GN = -shape_GH[:, :1] * size_N, -shape_GH[:, 1:] * data_N
        return _stack([np.zeros(1), size_GN, data_GN], [[0.0, 0.0], [-size_N, 0.0], [0.0, -data_N]], size_GN)

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """E, A, B, a and b."""
        (floor, size, data), (a, b), log_unit_V = coefficients_K, shape_H, np.log(unit_V)
        return {
            "E": float(floor),
            "A": float(size) * _power(log_unit_V[0], a),
            "B": float(data) * _power(log_unit_V[1], b),
            "a": float(a),
            "b": float(b),
        }

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """E, A/unit^a, B/unit^b; a, b."""
        return [p["E"], p["A"] * unit_V[0] ** -p["a"], p["B"] * unit_V[1] ** -p["b"]], [p["a"], p["b"]]


class Kaplan(Law):
    """L(N, D) = E + [(Nc/N)^(aN/aD) + Dc/D]^aD: whatever is scarcer decides. Kaplan et al. have no floor E."""

    name = "kaplan"
    formula = "L(N, D) = E + [(Nc/N)^(aN/aD) + Dc/D]^aD"
    source = "Scaling Laws for Neural Language Models, arXiv 2001.08361, equation 1.5, with a floor"
    variables = ("N", "D")
    parameters = ("E", "Dc", "Nc", "aN", "aD")
    tied = MappingProxyType({"Nc": 1})
    n_coefficients = 2
    shape_bounds = ((1e-8, 1e8), EXPONENT, EXPONENT)  # the first is (Nc/N unit)^(aN/aD) (D unit/Dc)
    shape_starts = ((0.1, 1.0, 10.0), (0.1, 0.3, 0.8), (0.1, 0.3, 0.8))

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1 and [w N^(-aN/aD) + 1/D]^aD."""
        size_N, data_N = z_NV.T
        w_G1, aN_G1, aD_G1 = (shape_GH[:, h : h + 1] for h in range(3))
        size_GN = np.log(w_G1) - aN_G1 / aD_G1 * size_N
        sum_GN = np.logaddexp(size_GN, -data_N)
        share_GN = np.exp(size_GN - sum_GN)
        by_shape = [
            aD_G1 * share_GN / w_G1,
            -share_GN * size_N,
            sum_GN + share_GN * aN_G1 / aD_G1 * size_N,
        ]
        return _stack([np.zeros(1), aD_G1 * sum_GN], [[0.0] * 3, by_shape], sum_GN)

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """E, Dc, Nc, aN and aD."""
        (floor, scale), (w, aN, aD), log_unit_V = coefficients_K, shape_H, np.log(unit_V)
        log_dc = np.log(scale) / aD if scale > 0 else -np.inf  # in units of D
        log_nc = (np.log(w) + log_dc) * aD / aN
        return {
            "E": float(floor),
            "Dc": _power(log_dc + log_unit_V[1], 1.0),
            "Nc": _power(log_nc + log_unit_V[0], 1.0),
            "aN": float(aN),
            "aD": float(aD),
        }

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """E, Dc^aD; w, aN, aD."""
        size, data = p["Nc"] / unit_V[0], p["Dc"] / unit_V[1]
        return [p["E"], data ** p["aD"]], [size ** (p["aN"] / p["aD"]) / data, p["aN"], p["aD"]]


def _worth(log_repeats: Array, star_G1: Array) -> tuple[Array, Array, Array]:
    """Passes that R repeats are worth, 1 + R*(1 - exp(-R/R*)): the logarithm, its derivatives by R and by R*.

    With expm1: 1 - exp(-R/R*) loses all digits at large R*, which invents an optimum near R* = 1e17.
    """
    t = np.minimum(np.exp(log_repeats) / star_G1, 700.0)
    worth = 1 - star_G1 * np.expm1(-t)
    return np.log(worth), np.exp(-t) / worth, (-np.expm1(-t) - t * np.exp(-t)) / worth


def _log_repeats(log_ratio: Array) -> Array:
    """ln(exp(log_ratio) - 1), -inf where log_ratio is not positive."""
    with np.errstate(divide="ignore"):
        return np.log(np.expm1(np.clip(log_ratio, 0.0, 300.0)))


REPEATS = (0.05, 1e5)
"""Where R* may lie; at the upper end repeated data is as good as new."""


class RepeatedData(Law):
    """Chinchilla, with D passes over U unique interactions worth D' = U + U R*(1 - exp(-R/R*)), R = D/U - 1."""

    name = "repeated_data"
    formula = "L(N, D, U) = E + A/N^a + B/D'^b, D' = U + U R_D (1 - exp(-R/R_D)), R = D/U - 1"
    source = "Scaling Data-Constrained Language Models, arXiv 2305.16264, equation 5, with N' = N"
    variables = ("N", "D", "U")
    parameters = ("E", "A", "B", "a", "b", "R_D")
    n_coefficients = 3
    shape_bounds = (EXPONENT, EXPONENT, REPEATS)
    shape_starts = ((0.1, 0.3, 0.8), (0.1, 0.3, 0.8), (1.0, 10.0, 100.0))

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1, N^-a and D'^-b."""
        size_N, data_N, unique_N = z_NV.T
        a_G1, b_G1, star_G1 = (shape_GH[:, h : h + 1] for h in range(3))
        worth_GN, _, by_star_GN = _worth(_log_repeats(data_N - unique_N), star_G1)
        data_GN = unique_N + worth_GN
        return _stack(
            [np.zeros(1), -a_G1 * size_N, -b_G1 * data_GN],
            [[0.0] * 3, [-size_N, 0.0, 0.0], [0.0, -data_GN, -b_G1 * by_star_GN]],
            data_GN,
        )

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """E, A, B, a, b and R_D."""
        return Chinchilla().named(coefficients_K, shape_H[:2], unit_V) | {"R_D": float(shape_H[2])}

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """As for Chinchilla, and R_D."""
        coefficients, shape = Chinchilla().internal(p, unit_V)
        return coefficients, [*shape, p["R_D"]]


class Muennighoff(Law):
    """As `RepeatedData`, and parameters beyond what U unique interactions call for decay likewise.

    U_N = min(N, (U G)^(b/a) G), G = (aA/bB)^(1/(a+b)), is the size that is compute-optimal for U; N' = U_N +
    U_N R_N (1 - exp(-(N/U_N - 1)/R_N)). B follows from A and q = (aA/bB)^(1/a), which makes U_N = min(N, q U^(b/a)).
    """

    name = "muennighoff"
    formula = "L(N, D, U) = E + A/N'^a + B/D'^b, D' = U + U R_D (1 - exp(-R/R_D)), N' likewise from U_N and R_N"
    source = "Scaling Data-Constrained Language Models, arXiv 2305.16264, equations 5 to 7 and appendix A"
    variables = ("N", "D", "U")
    parameters = ("E", "A", "B", "a", "b", "R_D", "R_N")
    tied = MappingProxyType({"B": 1})
    n_coefficients = 2
    shape_bounds = ((1e-8, 1e8), EXPONENT, EXPONENT, REPEATS, REPEATS)
    shape_starts = ((1.0,), (0.3, 0.6), (0.3, 0.6), (3.0, 15.0, 50.0, 150.0), (1.5, 5.0, 20.0))
    floor_starts = (0.3, 0.8)

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1, and N'^-a + (a/b) q^-a D'^-b."""
        size_N, data_N, unique_N = z_NV.T
        q_G1, a_G1, b_G1, data_star_G1, size_star_G1 = (shape_GH[:, h : h + 1] for h in range(5))
        data_worth_GN, _, by_data_star_GN = _worth(_log_repeats(data_N - unique_N), data_star_G1)
        data_GN = unique_N + data_worth_GN
        optimal_GN = np.log(q_G1) + b_G1 / a_G1 * unique_N
        called_for_GN = np.minimum(size_N, optimal_GN)
        log_repeats_GN = _log_repeats(size_N - called_for_GN)
        size_worth_GN, by_repeats_GN, by_size_star_GN = _worth(log_repeats_GN, size_star_G1)
        size_GN = called_for_GN + size_worth_GN
        # d ln N' / d ln U_N, the repeats N/U_N - 1 falling with U_N; nothing depends on U_N where it is N.
        by_called_for_GN = np.where(optimal_GN < size_N, 1 - by_repeats_GN * (np.exp(log_repeats_GN) + 1), 0.0)
        log_ratio_G1 = np.log(a_G1 / b_G1) - a_G1 * np.log(q_G1)  # B/A
        size_term_GN, data_term_GN = -a_G1 * size_GN, log_ratio_G1 - b_G1 * data_GN
        sum_GN = np.logaddexp(size_term_GN, data_term_GN)
        s_GN, d_GN = np.exp(size_term_GN - sum_GN), np.exp(data_term_GN - sum_GN)
        by_shape = [
            (-s_GN * a_G1 * by_called_for_GN - d_GN * a_G1) / q_G1,
            s_GN * (-size_GN + by_called_for_GN * b_G1 / a_G1 * unique_N) + d_GN * (1 / a_G1 - np.log(q_G1)),
            -s_GN * by_called_for_GN * unique_N - d_GN * (1 / b_G1 + data_GN),
            -d_GN * b_G1 * by_data_star_GN,
            -s_GN * a_G1 * by_size_star_GN,
        ]
        return _stack([np.zeros(1), sum_GN], [[0.0] * 5, by_shape], sum_GN)

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """E, A, B, a, b, R_D and R_N."""
        (floor, size), (q, a, b, data_star, size_star) = coefficients_K, shape_H
        three = np.array([floor, size, size * a / b * _power(np.log(q), -a)])
        stars = {"R_D": float(data_star), "R_N": float(size_star)}
        return Chinchilla().named(three, shape_H[1:3], unit_V) | stars

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """E, A/unit^a; q, a, b, R_D, R_N."""
        (floor, size, data), _ = Chinchilla().internal(p, unit_V)
        q = (p["a"] * size / (p["b"] * data)) ** (1 / p["a"])
        return [floor, size], [q, p["a"], p["b"], p["R_D"], p["R_N"]]


class Overfitting(Law):
    """Chinchilla, and a penalty that grows with repeats and with parameters per unique interaction."""

    name = "overfitting"
    formula = "L(N, D, U) = E + A/N^a + B/D^b + P R^d (N/U)^k, R = D/U - 1"
    source = "arXiv 2605.01640: Chinchilla in unique data x passes with an over-fitting penalty"
    variables = ("N", "D", "U")
    parameters = ("E", "A", "B", "P", "a", "b", "d", "k")
    n_coefficients = 4
    shape_bounds = (EXPONENT, EXPONENT, EXPONENT, EXPONENT)
    shape_starts = ((0.1, 0.3, 0.8), (0.1, 0.3, 0.8), (0.3, 1.0), (0.3, 1.0))
    floor_starts = (0.3, 0.8)

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1, N^-a, D^-b and R^d (N/U)^k."""
        size_N, data_N, unique_N = z_NV.T
        a_G1, b_G1, d_G1, k_G1 = (shape_GH[:, h : h + 1] for h in range(4))
        log_repeats_N = np.maximum(_log_repeats(data_N - unique_N), -700.0)  # no repeats: a term that vanishes
        penalty_GN = np.where(log_repeats_N > -600, d_G1 * log_repeats_N + k_G1 * (size_N - unique_N), -1e4)
        return _stack(
            [np.zeros(1), -a_G1 * size_N, -b_G1 * data_N, penalty_GN],
            [
                [0.0] * 4,
                [-size_N, 0.0, 0.0, 0.0],
                [0.0, -data_N, 0.0, 0.0],
                [0.0, 0.0, np.where(log_repeats_N > -600, log_repeats_N, 0.0), size_N - unique_N],
            ],
            penalty_GN,
        )

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """E, A, B, P, a, b, d and k."""
        d, k = (float(value) for value in shape_H[2:])
        penalty = float(coefficients_K[3]) * _power(np.log(unit_V[2] / unit_V[0]), k)
        three = Chinchilla().named(coefficients_K[:3], shape_H[:2], unit_V)
        values = three | {"P": penalty, "d": d, "k": k}
        return {name: values[name] for name in self.parameters}

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """As for Chinchilla; P (N unit/U unit)^k; d, k."""
        coefficients, shape = Chinchilla().internal(p, unit_V)
        return [*coefficients, p["P"] * (unit_V[0] / unit_V[2]) ** p["k"]], [*shape, p["d"], p["k"]]


class Logistic(Law):
    """A metric between b and b + m that falls as the loss rises: b + m / (1 + exp(k (L/L0 - 1)))."""

    name = "logistic"
    formula = "metric(L) = b + m/(1 + exp(k (L/L0 - 1)))"
    source = "metric = a/(1 + exp(-k(L - L0))) + b, arXiv 2405.10938 and others, with the steepness relative to L0"
    variables = ("L",)
    parameters = ("b", "m", "L0", "k")
    n_coefficients = 2
    shape_bounds = ((0.3, 3.0), (0.5, 200.0))  # the midpoint in units of the mean loss
    shape_starts = ((0.8, 1.0, 1.2), (3.0, 10.0, 30.0))
    floor_starts = (0.01, 0.5, 0.9)

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1 and the logistic function."""
        (z_N,) = z_NV.T
        middle_G1, k_G1 = shape_GH[:, :1], shape_GH[:, 1:]
        ratio_GN = np.exp(z_N) / middle_G1
        t_GN = k_G1 * (ratio_GN - 1)
        away_GN = np.exp(-np.logaddexp(0.0, -t_GN))
        by_shape = [away_GN * k_G1 * ratio_GN / middle_G1, -away_GN * (ratio_GN - 1)]
        return _stack([np.zeros(1), -np.logaddexp(0.0, t_GN)], [[0.0, 0.0], by_shape], t_GN)

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """b, m, L0 and k."""
        (b, m), (middle, k) = coefficients_K, shape_H
        return {"b": float(b), "m": float(m), "L0": float(middle * unit_V[0]), "k": float(k)}

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """b, m; L0/unit, k."""
        return [p["b"], p["m"]], [p["L0"] / unit_V[0], p["k"]]


class Linear(Law):
    """A metric that falls in proportion to the loss, m (1 - L/L0), and is 0 from L0 on."""

    name = "linear"
    formula = "metric(L) = m (1 - L/L0)"
    source = "a straight line in the loss"
    variables = ("L",)
    parameters = ("m", "L0")
    n_coefficients = 1
    shape_bounds = ((0.5, 50.0),)  # in units of the mean loss
    shape_starts = ((1.05, 1.2, 1.5, 3.0, 10.0),)
    floor_starts = ()

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1 - L/L0."""
        ratio_GN = np.exp(z_NV[:, 0]) / shape_GH
        left_GN = np.maximum(1 - ratio_GN, 1e-9)
        by_shape = np.where(ratio_GN < 1, ratio_GN / shape_GH / left_GN, 0.0)
        return _stack([np.log(left_GN)], [[by_shape]], left_GN)

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """m and L0."""
        return {"m": float(coefficients_K[0]), "L0": float(shape_H[0] * unit_V[0])}

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """m; L0/unit."""
        return [p["m"]], [p["L0"] / unit_V[0]]


LAWS: dict[str, Law] = {
    law.name: law for law in (Lsrm(), Chinchilla(), Kaplan(), RepeatedData(), Muennighoff(), Overfitting())
}
"""Laws of the loss."""

LINKS: dict[str, Law] = {law.name: law for law in (Linear(), Logistic())}
"""Laws of a metric such as NDCG@10, given the loss."""
