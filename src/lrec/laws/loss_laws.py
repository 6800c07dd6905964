"""Laws of the loss (docs/laws.md has their sources). A law is found by its short name or its class path."""

from types import MappingProxyType

import numpy as np

from lrec.errors import UserError
from lrec.laws.law import EXPONENT, Array, Law, Values, by_column, power_of, stack
from lrec.options.class_paths import class_path, imported

REPEATS = (0.05, 1e5)  # bounds of R*; at the upper bound, repeated data is as good as new data


class Lsrm(Law):
    """L(x) = E + (x0/x)^a: a floor, and a power of one quantity: parameters, interactions or FLOPs. E is in nats."""

    name = "lsrm"
    formula = "L(x) = E + (x0/x)^a"
    variables = ("x",)
    parameters = ("E", "x0", "a")
    shape_bounds = (EXPONENT,)
    shape_starts = ((0.03, 0.1, 0.3, 1.0),)

    def log_basis(self, shape_GH: Array, z_NV: Array) -> Array:
        return stack(0.0, -shape_GH * z_NV[:, 0])

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        (floor, power), (a,), (unit,) = coefficients_K, shape_H, unit_V
        log_x0 = np.log(power) / a + np.log(unit) if power > 0 else -np.inf
        return {"E": float(floor), "x0": power_of(log_x0, 1.0), "a": float(a)}

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        return [p["E"], (p["x0"] / unit_V[0]) ** p["a"]], [p["a"]]


class Chinchilla(Law):
    """L(N, D) = E + A/N^a + B/D^b: a floor, a term for too few parameters, a term for too little data."""

    name = "chinchilla"
    formula = "L(N, D) = E + A/N^a + B/D^b"
    variables: tuple[str, ...] = ("N", "D")
    parameters: tuple[str, ...] = ("E", "A", "B", "a", "b")
    shape_bounds: tuple[tuple[float, float], ...] = (EXPONENT, EXPONENT)
    shape_starts: tuple[tuple[float, ...], ...] = ((0.1, 0.3, 0.8), (0.1, 0.3, 0.8))

    def log_basis(self, shape_GH: Array, z_NV: Array) -> Array:
        (size_N, data_N), (a_G1, b_G1) = z_NV.T, by_column(shape_GH)
        return stack(0.0, -a_G1 * size_N, -b_G1 * data_N)

    def units_of(self, shape_H: Array, unit_V: Array) -> list[float]:
        """The value, in the units of the data, of each coefficient that is 1 in the law's own units."""
        return [1.0, *map(power_of, np.log(unit_V[:2]), shape_H[:2])]

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        units = zip(coefficients_K, self.units_of(shape_H, unit_V), strict=True)
        return dict(zip(self.parameters, [*(float(c) * unit for c, unit in units), *map(float, shape_H)], strict=True))

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        names, shape = self.parameters, [p[name] for name in self.parameters[self.n_coefficients :]]
        units = self.units_of(-np.array(shape), unit_V)
        return [p[name] * unit for name, unit in zip(names, units, strict=False)], shape


class Kaplan(Law):
    """L(N, D) = E + [(Nc/N)^(aN/aD) + Dc/D]^aD: the scarcer of N and D decides. Kaplan et al. have no floor E."""

    name = "kaplan"
    formula = "L(N, D) = E + [(Nc/N)^(aN/aD) + Dc/D]^aD"
    variables = ("N", "D")
    parameters = ("E", "Dc", "Nc", "aN", "aD")
    tied = MappingProxyType({"Nc": 1})
    shape_bounds = ((1e-8, 1e8), EXPONENT, EXPONENT)  # the first is (Nc/N unit)^(aN/aD) (D unit/Dc)
    shape_starts = ((0.1, 1.0, 10.0), (0.1, 0.3, 0.8), (0.1, 0.3, 0.8))

    def log_basis(self, shape_GH: Array, z_NV: Array) -> Array:
        (size_N, data_N), (w_G1, aN_G1, aD_G1) = z_NV.T, by_column(shape_GH)
        return stack(0.0, aD_G1 * np.logaddexp(np.log(w_G1) - aN_G1 / aD_G1 * size_N, -data_N))

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        (floor, scale), (w, aN, aD), log_unit_V = coefficients_K, shape_H, np.log(unit_V)
        log_dc = np.log(scale) / aD if scale > 0 else -np.inf  # in units of D
        log_nc = (np.log(w) + log_dc) * aD / aN
        data, size = power_of(log_dc + log_unit_V[1], 1.0), power_of(log_nc + log_unit_V[0], 1.0)
        return {"E": float(floor), "Dc": data, "Nc": size, "aN": float(aN), "aD": float(aD)}

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        size, data = p["Nc"] / unit_V[0], p["Dc"] / unit_V[1]
        return [p["E"], data ** p["aD"]], [size ** (p["aN"] / p["aD"]) / data, p["aN"], p["aD"]]


class RepeatedData(Chinchilla):
    """Chinchilla with D' in place of D: the worth of D/U passes over U, D' = U + U R*(1 - exp(-R/R*)), R = D/U - 1."""

    name = "repeated_data"
    formula = "L(N, D, U) = E + A/N^a + B/D'^b, D' = U + U R_D (1 - exp(-R/R_D)), R = D/U - 1"
    variables = ("N", "D", "U")
    parameters = ("E", "A", "B", "a", "b", "R_D")
    shape_bounds = (EXPONENT, EXPONENT, REPEATS)
    shape_starts = ((0.1, 0.3, 0.8), (0.1, 0.3, 0.8), (1.0, 10.0, 100.0))

    def log_basis(self, shape_GH: Array, z_NV: Array) -> Array:
        (size_N, data_N, unique_N), (a_G1, b_G1, star_G1) = z_NV.T, by_column(shape_GH)
        worth_GN = _log_worth(_log_repeats(data_N - unique_N), star_G1)
        return stack(0.0, -a_G1 * size_N, -b_G1 * (unique_N + worth_GN))


class Muennighoff(Law):
    """As `RepeatedData`. In the same way, parameters beyond the best size for U unique interactions lose worth. U_N =
    min(N, (U G)^(b/a) G), with G = (aA/bB)^(1/(a+b)), is the compute-optimal size for U, and N' = U_N + U_N R_N (1 -
    exp(-(N/U_N - 1)/R_N)). B follows from A and q = (aA/bB)^(1/a), so that U_N = min(N, q U^(b/a))."""

    name = "muennighoff"
    formula = "L(N, D, U) = E + A/N'^a + B/D'^b, D' = U + U R_D (1 - exp(-R/R_D)), N' likewise from U_N and R_N"
    variables = ("N", "D", "U")
    parameters = ("E", "A", "B", "a", "b", "R_D", "R_N")
    tied = MappingProxyType({"B": 1})
    shape_bounds = ((1e-8, 1e8), EXPONENT, EXPONENT, REPEATS, REPEATS)
    shape_starts = ((1.0,), (0.3, 0.6), (0.3, 0.6), (3.0, 15.0, 50.0, 150.0), (1.5, 5.0, 20.0))

    def log_basis(self, shape_GH: Array, z_NV: Array) -> Array:
        size_N, data_N, unique_N = z_NV.T
        q_G1, a_G1, b_G1, data_star_G1, size_star_G1 = by_column(shape_GH)
        data_GN = unique_N + _log_worth(_log_repeats(data_N - unique_N), data_star_G1)
        called_for_GN = np.minimum(size_N, np.log(q_G1) + b_G1 / a_G1 * unique_N)
        size_GN = called_for_GN + _log_worth(_log_repeats(size_N - called_for_GN), size_star_G1)
        log_ratio_G1 = np.log(a_G1 / b_G1) - a_G1 * np.log(q_G1)  # B/A
        return stack(0.0, np.logaddexp(-a_G1 * size_GN, log_ratio_G1 - b_G1 * data_GN))

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        (floor, size), (q, a, b, data_star, size_star) = coefficients_K, shape_H
        three = np.array([floor, size, size * a / b * power_of(np.log(q), -a)])
        stars = {"R_D": float(data_star), "R_N": float(size_star)}
        return Chinchilla().named(three, shape_H[1:3], unit_V) | stars

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        (floor, size, data), _ = Chinchilla().internal(p, unit_V)
        q = (p["a"] * size / (p["b"] * data)) ** (1 / p["a"])
        return [floor, size], [q, p["a"], p["b"], p["R_D"], p["R_N"]]


class Overfitting(Chinchilla):
    """Chinchilla plus a penalty that grows with repeats and with parameters per unique interaction."""

    name = "overfitting"
    formula = "L(N, D, U) = E + A/N^a + B/D^b + P R^d (N/U)^k, R = D/U - 1"
    variables = ("N", "D", "U")
    parameters = ("E", "A", "B", "P", "a", "b", "d", "k")
    shape_bounds = (EXPONENT, EXPONENT, EXPONENT, EXPONENT)
    shape_starts = ((0.1, 0.3, 0.8), (0.1, 0.3, 0.8), (0.3, 1.0), (0.3, 1.0))

    def log_basis(self, shape_GH: Array, z_NV: Array) -> Array:
        (size_N, data_N, unique_N), (a_G1, b_G1, d_G1, k_G1) = z_NV.T, by_column(shape_GH)
        penalty_GN = d_G1 * _log_repeats(data_N - unique_N) + k_G1 * (size_N - unique_N)
        return stack(0.0, -a_G1 * size_N, -b_G1 * data_N, penalty_GN)

    def units_of(self, shape_H: Array, unit_V: Array) -> list[float]:
        return [*super().units_of(shape_H, unit_V), power_of(np.log(unit_V[2] / unit_V[0]), shape_H[3])]


def _log_worth(log_repeats: Array, star_G1: Array) -> Array:
    """ln of the worth of 1 + R passes, in passes over new data: 1 + R*(1 - exp(-R/R*)). It uses expm1, because
    1 - exp(-R/R*) loses all digits at large R*, which creates a false optimum near R* = 1e17."""
    return np.log(1 - star_G1 * np.expm1(-np.minimum(np.exp(log_repeats) / star_G1, 700.0)))


def _log_repeats(log_ratio: Array) -> Array:
    """ln(exp(log_ratio) - 1), or -inf if log_ratio is not positive."""
    with np.errstate(divide="ignore"):
        return np.log(np.expm1(np.clip(log_ratio, 0.0, 300.0)))


LAWS: dict[str, Law] = {
    law.name: law for law in (Lsrm(), Chinchilla(), Kaplan(), RepeatedData(), Muennighoff(), Overfitting())
}


def law_named(name: str) -> Law:
    """A law of the loss by its name, or by a class path such as my_law.OffsetPower; UserError if there is none."""
    if name in LAWS:
        return LAWS[name]
    if "." not in name:
        raise UserError(f"--law: {name!r} is none of {', '.join(LAWS)}; give your own law as FILE.CLASS")
    kind = imported(name, "--law")
    if not (isinstance(kind, type) and issubclass(kind, Law)):
        raise UserError(f"--law {name} is no subclass of lrec.laws.law.Law")
    absent = (attribute for attribute in Law.__annotations__ if not hasattr(kind, attribute))
    if missing := [*sorted(kind.__abstractmethods__), *absent]:
        raise UserError(f"--law {name} does not define {', '.join(missing)}")
    law: Law = kind()
    if law.variables not in (("x",), ("N", "D"), ("N", "D", "U")):
        raise UserError(f'--law {name}: variables {law.variables} are none of ("x",), ("N", "D") and ("N", "D", "U")')
    if not 0 < len(law.shape_bounds) == len(law.shape_starts):
        needed = "shape_bounds and shape_starts need an entry for each shape parameter, and at least one"
        raise UserError(f"--law {name}: {needed}: a fixed exponent is a shape parameter with equal bounds")
    return law


def name_of(law: Law) -> str:
    """The name by which `law_named` finds the law."""
    return law.name if LAWS.get(law.name) is law else class_path(type(law))
