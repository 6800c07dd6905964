"""A law of your own: a power law that begins only above some size.

Try it from this folder: lrec scaling fit --points runs --law my_law.OffsetPower --out fit
"""

import numpy as np

from lrec.laws.law import EXPONENT, Array, Law, Values, by_column, power_of, stack


class OffsetPower(Law):
    """L(x) = E + A/(x + s)^a. Below the offset s, size hardly matters. Far above s, it is a power law with a floor."""

    name = "offset-power"
    formula = "L(x) = E + A/(x + s)^a"
    variables = ("x",)
    parameters = ("E", "A", "a", "s")
    shape_bounds = (EXPONENT, (1e-4, 1e2))
    shape_starts = ((0.1, 0.3, 1.0), (0.01, 0.1, 1.0))

    def log_basis(self, shape_GH: Array, z_NV: Array) -> Array:
        """ln 1 and -a ln(x + s); x is in units of its geometric mean."""
        a_G1, s_G1 = by_column(shape_GH)
        return stack(0.0, -a_G1 * np.log(np.exp(z_NV[:, 0]) + s_G1))

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        """E, A, a and s in the units of the data: (x/unit + s/unit)^-a is unit^a (x + s)^-a."""
        (floor, power), (a, s), (unit,) = coefficients_K, shape_H, unit_V
        return {"E": float(floor), "A": float(power) * power_of(np.log(unit), a), "a": float(a), "s": float(s * unit)}

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        """The inverse of `named`."""
        (unit,) = unit_V
        return [p["E"], p["A"] / unit ** p["a"]], [p["a"], p["s"] / unit]
