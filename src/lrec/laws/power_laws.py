"""Laws of data seen about once: a power of one quantity, or of size and data."""

from types import MappingProxyType

import numpy as np

from lrec.laws.law import EXPONENT, Array, Law, Values, power_of, stack


class Lsrm(Law):
    """L(x) = E + (x0/x)^a: a floor, and a power of one quantity: parameters, interactions or FLOPs. E is in nats."""

    name = "lsrm"
    formula = "L(x) = E + (x0/x)^a"
    source = "Scaling Law of Large Sequential Recommendation Models, arXiv 2311.11351 (there in N without embeddings)"
    variables = ("x",)
    parameters = ("E", "x0", "a")
    shape_bounds = (EXPONENT,)
    shape_starts = ((0.03, 0.1, 0.3, 1.0),)
    floor_starts = (0.01, 0.3, 0.6, 0.8, 0.9, 0.98)

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1 and x^-a."""
        (z_N,) = z_NV.T
        power_GN = -shape_GH[:, :1] * z_N
        return stack([np.zeros(1), power_GN], [[0.0], [-z_N]], power_GN)

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """E, x0 and a; x0 is 0 where the power vanished."""
        (floor, power), (a,), (unit,) = coefficients_K, shape_H, unit_V
        log_x0 = np.log(power) / a + np.log(unit) if power > 0 else -np.inf
        return {"E": float(floor), "x0": power_of(log_x0, 1.0), "a": float(a)}

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
    shape_bounds = (EXPONENT, EXPONENT)
    shape_starts = ((0.1, 0.3, 0.8), (0.1, 0.3, 0.8))

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1, N^-a and D^-b."""
        size_N, data_N = z_NV.T
        size_GN, data_GN = -shape_GH[:, :1] * size_N, -shape_GH[:, 1:] * data_N
        return stack([np.zeros(1), size_GN, data_GN], [[0.0, 0.0], [-size_N, 0.0], [0.0, -data_N]], size_GN)

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """E, A, B, a and b."""
        (floor, size, data), (a, b), log_unit_V = coefficients_K, shape_H, np.log(unit_V)
        return {
            "E": float(floor),
            "A": float(size) * power_of(log_unit_V[0], a),
            "B": float(data) * power_of(log_unit_V[1], b),
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
        return stack([np.zeros(1), aD_G1 * sum_GN], [[0.0] * 3, by_shape], sum_GN)

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """E, Dc, Nc, aN and aD."""
        (floor, scale), (w, aN, aD), log_unit_V = coefficients_K, shape_H, np.log(unit_V)
        log_dc = np.log(scale) / aD if scale > 0 else -np.inf  # in units of D
        log_nc = (np.log(w) + log_dc) * aD / aN
        return {
            "E": float(floor),
            "Dc": power_of(log_dc + log_unit_V[1], 1.0),
            "Nc": power_of(log_nc + log_unit_V[0], 1.0),
            "aN": float(aN),
            "aD": float(aD),
        }

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """E, Dc^aD; w, aN, aD."""
        size, data = p["Nc"] / unit_V[0], p["Dc"] / unit_V[1]
        return [p["E"], data ** p["aD"]], [size ** (p["aN"] / p["aD"]) / data, p["aN"], p["aD"]]
