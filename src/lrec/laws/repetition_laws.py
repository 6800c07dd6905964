"""Laws of repeated data: what D passes over U unique interactions are worth, and where they do harm."""

from types import MappingProxyType

import numpy as np

from lrec.laws.law import EXPONENT, Array, Law, Values, power_of, stack
from lrec.laws.power_laws import Chinchilla


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
    shape_bounds = (EXPONENT, EXPONENT, REPEATS)
    shape_starts = ((0.1, 0.3, 0.8), (0.1, 0.3, 0.8), (1.0, 10.0, 100.0))

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1, N^-a and D'^-b."""
        size_N, data_N, unique_N = z_NV.T
        a_G1, b_G1, star_G1 = (shape_GH[:, h : h + 1] for h in range(3))
        worth_GN, _, by_star_GN = _worth(_log_repeats(data_N - unique_N), star_G1)
        data_GN = unique_N + worth_GN
        return stack(
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
        return stack([np.zeros(1), sum_GN], [[0.0] * 5, by_shape], sum_GN)

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """E, A, B, a, b, R_D and R_N."""
        (floor, size), (q, a, b, data_star, size_star) = coefficients_K, shape_H
        three = np.array([floor, size, size * a / b * power_of(np.log(q), -a)])
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
    shape_bounds = (EXPONENT, EXPONENT, EXPONENT, EXPONENT)
    shape_starts = ((0.1, 0.3, 0.8), (0.1, 0.3, 0.8), (0.3, 1.0), (0.3, 1.0))
    floor_starts = (0.3, 0.8)

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1, N^-a, D^-b and R^d (N/U)^k."""
        size_N, data_N, unique_N = z_NV.T
        a_G1, b_G1, d_G1, k_G1 = (shape_GH[:, h : h + 1] for h in range(4))
        log_repeats_N = np.maximum(_log_repeats(data_N - unique_N), -700.0)  # no repeats: a term that vanishes
        penalty_GN = np.where(log_repeats_N > -600, d_G1 * log_repeats_N + k_G1 * (size_N - unique_N), -1e4)
        return stack(
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
        penalty = float(coefficients_K[3]) * power_of(np.log(unit_V[2] / unit_V[0]), k)
        three = Chinchilla().named(coefficients_K[:3], shape_H[:2], unit_V)
        values = three | {"P": penalty, "d": d, "k": k}
        return {name: values[name] for name in self.parameters}

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """As for Chinchilla; P (N unit/U unit)^k; d, k."""
        coefficients, shape = Chinchilla().internal(p, unit_V)
        return [*coefficients, p["P"] * (unit_V[0] / unit_V[2]) ** p["k"]], [*shape, p["d"], p["k"]]
