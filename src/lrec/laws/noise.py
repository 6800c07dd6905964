"""How points err about the curve of a forecast: each on its own, or neighbours alike (docs/laws.md).

Up to `LADDER` sizes, or several points a size, are runs of their own. Others are a curve, as of the evaluations of one
run: beside its noise it strays from any formula, slowly, so that neighbours are off alike and a hundred of them say
little more than ten. This misfit is an Ornstein-Uhlenbeck process of ln x. Its standard deviation grows by e for every
`memory` of ln x below the largest x, or is the same everywhere. Which of them, how large it is beside the noise and how
long it lasts is inferred with the curve (Rasmussen and Williams, Gaussian Processes for Machine Learning, sections 2.7
and 4.2).

Shapes: N points, C cells of points.
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from lrec.laws.law import Array

LADDER = 12  # sizes; roll-outs go size by size up to here, too
ODDS, LENGTHS = (0.1, 1.0, 10.0), (0.1, 0.3, 1.0, 3.0)
"""Of misfit to noise in the variance at the largest x; over how much of ln x a misfit is forgotten, by e. Evenly in the
logarithm, and all alike before points are seen."""
CELLS = 100
"""Points of more sizes are merged into so many cells, even in ln x, over which a misfit hardly changes."""


class Errors(NamedTuple):
    """In units of a point's variance at the largest x."""

    precision: Array  # (N,), or (N, N) where errors are correlated
    log_det: float  # of the precision of all points, those merged into a cell included
    scatter: float = 0.0  # sum of squares within cells
    merged: int = 0  # how many points more there are than cells

    def times(self, value: Array) -> Array:
        """The precision times vectors (N,), (G, N) or matrices (G, N, K)."""
        if self.precision.ndim == 1:
            return self.precision[:, None] * value if value.ndim == 3 else self.precision * value
        return self.precision @ value if value.ndim == 3 else value @ self.precision

    @property
    def diagonal_N(self) -> Array:
        """The precision of each point, were all others known."""
        return self.precision if self.precision.ndim == 1 else np.diag(self.precision)


def of_runs(t_N: Array, memory: float) -> Errors:
    """Errors of independent runs at t = ln(x / the largest x): the variance grows by e for every `memory` below it."""
    return Errors(np.exp(t_N / memory), t_N.sum() / memory)


def of_curve(t_N: Array, y_N: Array, memory: float) -> tuple[Array, Array, list[Errors]]:
    """The places and means of the cells of a curve, and what its errors may be."""
    place_N = t_N if len(np.unique(t_N)) <= CELLS else np.floor(t_N * CELLS / -t_N.min())
    _, cell_N, count_C = np.unique(place_N, return_inverse=True, return_counts=True)
    t_C, y_C = (np.bincount(cell_N, value_N) / count_C for value_N in (t_N, y_N))
    within, merged = float(((y_N - y_C[cell_N]) ** 2).sum()), len(t_N) - len(t_C)
    apart_CC, errors = np.abs(t_C[:, None] - t_C), []
    for odds, length, growth_C in product(ODDS, LENGTHS, (np.exp(-t_C / memory), np.ones(len(t_C)))):
        noise, misfit = 1 / (1 + odds), odds / (1 + odds)
        misfit_CC = misfit * np.outer(growth_C, growth_C) * np.exp(-apart_CC / length)
        precision_CC = np.linalg.inv(misfit_CC + np.diag(noise / count_C))
        log_det = np.linalg.slogdet(precision_CC)[1] - merged * np.log(noise)
        errors.append(Errors(precision_CC, float(log_det), within / noise, merged))
    return t_C, y_C, errors
