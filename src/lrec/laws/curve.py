"""The curve of a law: values of its parameters, with the points that they should explain.

Shapes: S starts, N points, V variables, T parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from lrec.laws.descent import Objective, Problem
from lrec.laws.law import Array, Law, as_columns

VANISHED = 16.0
"""A coefficient is between e^-16 times the lowest loss, which counts as zero, and e^16 times the highest loss."""
FLOORS = (0.05, 0.5, 0.9)
"""Refits also start with floors at these shares of the lowest loss: a floor at zero would not rise by itself."""


@dataclass(frozen=True, eq=False)
class LawCurve:
    """Values of a law's parameters that may explain the points."""

    law: Law
    objective: Objective
    points: pl.DataFrame  # columns as in `laws.table`
    unit_V: Array  # units of the variables (`Law.units`), by which the law divides them internally
    low_T: Array  # bounds, equal if a parameter is fixed
    high_T: Array
    theta_T: Array  # logarithms of the parameters of the law's basis: first the coefficients, then the shape

    @cached_property
    def x_NV(self) -> Array:
        return self.points.select(self.law.columns).to_numpy().astype(float)

    @property
    def x_N(self) -> Array:
        """The first variable: the size."""
        return self.x_NV[:, 0]

    @cached_property
    def y_N(self) -> Array:
        return self.points["y"].to_numpy().astype(float)

    @property
    def z_NV(self) -> Array:
        return np.log(self.x_NV / self.unit_V)

    @property
    def n_fitted(self) -> int:
        """The number of parameters that are not fixed."""
        return int((self.low_T < self.high_T).sum())

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters by their names in `law.formula`, in the units of the data. A vanished coefficient is zero."""
        log_c_K, log_shape_H = np.split(self.theta_T, [self.law.n_coefficients])
        coefficients_K = np.where(log_c_K <= np.log(self.y_N.min()) - VANISHED + 1e-9, 0.0, np.exp(log_c_K))
        return self.law.named(coefficients_K, np.exp(log_shape_H), self.unit_V)

    @property
    def value(self) -> float:
        return float(self.problem().values(self.theta_T[None])[0])

    @property
    def r2(self) -> float:
        spread = float(((self.y_N - self.y_N.mean()) ** 2).sum())
        return 1 - float(((self.y_N - self.curve(self.x_NV)) ** 2).sum()) / spread if spread > 0 else 0.0

    @property
    def residual_N(self) -> Array:
        """Actual minus fitted, of ln L or of L, depending on the objective."""
        return self.problem().residuals(self.theta_T[None])[0]

    @property
    def start_ST(self) -> Array:
        """Where refits start: these parameters, and the same parameters with other floors."""
        start_ST = np.tile(self.theta_T, (1 + len(FLOORS) * self.law.has_floor, 1))
        start_ST[1:, 0] = np.log(self.y_N.min() * np.array(FLOORS[: len(start_ST) - 1]))
        return start_ST

    def curve(self, x: Sequence[float] | Array) -> Array:
        """The loss at x, (N,) or (N, V)."""
        z_NV = np.log(as_columns(self.law, x) / self.unit_V)
        return np.exp(self.law.log_loss(self.theta_T[None], z_NV)[0])

    def problem(self, objective: Objective | None = None) -> Problem:
        """The problem that the fit minimises, or the same problem with another objective."""
        return Problem(self.law, objective or self.objective, self.z_NV, self.y_N[None], self.low_T, self.high_T)
