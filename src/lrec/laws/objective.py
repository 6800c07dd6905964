"""What a fit minimises: a function of the residuals of the log loss, or of the loss itself, summed over the points."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lrec.errors import UserError
from lrec.laws.law import Array

Kind = Literal["huber", "lad", "lsq"]
Residuals = Literal["log", "level"]

LAD_DELTA = 1e-8
"""Residuals below this share of the typical one count as squares, which makes absolute deviations differentiable."""


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
        if self.kind not in get_args(Kind):
            raise UserError(f"--objective: '{self.kind}' is none of {', '.join(get_args(Kind))}")
        if self.residuals not in get_args(Residuals):
            raise UserError(f"--residuals: '{self.residuals}' is none of {', '.join(get_args(Residuals))}")

    @property
    def smallest_delta(self) -> float:
        """The delta at which the minimum is the objective's own."""
        return {"huber": self.delta, "lad": LAD_DELTA, "lsq": np.inf}[self.kind]

    def terms(self, residual: Array, delta: float | None = None) -> Array:
        """Each point's share of the objective; with `delta`, of the smooth function that is minimised in its place."""
        weight = np.where(residual < 0, self.over, 1.0)
        if self.kind == "lsq":
            return weight * residual**2 / 2
        size = np.abs(residual)
        if self.kind == "lad" and delta is None:
            return weight * size
        delta = self.delta if delta is None else delta
        quadratic = np.minimum(size, delta)
        return weight * quadratic * (size - quadratic / 2) / (1.0 if self.kind == "huber" else delta)

    def slopes(self, residual: Array, delta: float) -> tuple[Array, Array]:
        """The derivative of `terms` by the residual, and the weight of the residual's square with the same slope."""
        over = np.where(residual < 0, self.over, 1.0)
        if self.kind == "lsq":
            return over * residual, over
        unit = 1.0 if self.kind == "huber" else delta
        weight = over * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300)) / unit
        return weight * residual, weight
