"""What a fit minimises: a function of the residuals of the log loss, or of the loss itself, summed over the points."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lrec.errors import UserError
from lrec.laws.law import Array

Kind = Literal["huber", "lad", "lsq"]
Residuals = Literal["log", "level"]

LAD_DELTA = 1e-12  # residuals below this have the slopes of squares, which makes absolute deviations differentiable


@dataclass(frozen=True)
class Objective:
    """The sum over points of a function of the residual r, actual minus fitted.

    It is a sum: the mean of Huber terms is so small that optimisers stop at their tolerances, "converged".

    Attributes:
        kind: Huber's function (huber), |r| (lad, least absolute deviations) or r²/2 (lsq, least squares).
        residuals: Of the logarithm of the loss (log) or of the loss (level).
        delta: Where Huber's function turns from r²/2 to delta (|r| - delta/2).
        over: Weight of points that the fit overshoots.
    """

    kind: Kind = "huber"
    residuals: Residuals = "log"
    delta: float = 1e-3
    over: float = 1.0

    def __post_init__(self) -> None:
        for option, value, known in (("objective", self.kind, Kind), ("residuals", self.residuals, Residuals)):
            if value not in get_args(known):
                raise UserError(f"--{option}: '{value}' is none of {', '.join(get_args(known))}")

    def terms(self, residual: Array) -> Array:
        """Each point's share of the objective."""
        weight, size = np.where(residual < 0, self.over, 1.0), np.abs(residual)
        if self.kind == "lad":
            return weight * size
        quadratic = size if self.kind == "lsq" else np.minimum(size, self.delta)
        return weight * quadratic * (size - quadratic / 2)

    def weights(self, residual: Array) -> Array:
        """Of the residuals' squares, so that their sum has the slope of the objective."""
        over = np.where(residual < 0, self.over, 1.0)
        if self.kind == "lsq":
            return over
        delta, unit = (self.delta, 1.0) if self.kind == "huber" else (LAD_DELTA, LAD_DELTA)
        return over * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300)) / unit
