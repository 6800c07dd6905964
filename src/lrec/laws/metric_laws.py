"""Laws of a metric such as NDCG@10, given the loss."""

import numpy as np

from lrec.laws.law import Array, Law, Values, stack


class Logistic(Law):
    """A metric between b and b + m that falls as the loss rises: b + m / (1 + exp(k (L/L0 - 1)))."""

    name = "logistic"
    formula = "metric(L) = b + m/(1 + exp(k (L/L0 - 1)))"
    source = "metric = a/(1 + exp(-k(L - L0))) + b, arXiv 2405.10938 and others, with the steepness relative to L0"
    variables = ("L",)
    parameters = ("b", "m", "L0", "k")
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
        return stack([np.zeros(1), -np.logaddexp(0.0, t_GN)], [[0.0, 0.0], by_shape], t_GN)

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
    shape_bounds = ((0.5, 50.0),)  # in units of the mean loss
    shape_starts = ((1.05, 1.2, 1.5, 3.0, 10.0),)
    floor_starts = ()

    def log_basis(self, shape_GH: Array, z_NV: Array) -> tuple[Array, Array]:
        """1 - L/L0."""
        ratio_GN = np.exp(z_NV[:, 0]) / shape_GH
        left_GN = np.maximum(1 - ratio_GN, 1e-9)
        by_shape = np.where(ratio_GN < 1, ratio_GN / shape_GH / left_GN, 0.0)
        return stack([np.log(left_GN)], [[by_shape]], left_GN)

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """m and L0."""
        return {"m": float(coefficients_K[0]), "L0": float(shape_H[0] * unit_V[0])}

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """m; L0/unit."""
        return [p["m"]], [p["L0"] / unit_V[0]]
