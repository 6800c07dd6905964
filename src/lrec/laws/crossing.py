"""Two fitted curves side by side: by how much their exponents differ, and where they cross, with intervals.

Intervals are the 5th and 95th percentile over pairs of refits (`bootstrap`), one of each curve.

Shapes: B refits, P places.
"""

from dataclasses import dataclass

import numpy as np

from lrec.laws.bootstrap import bootstrap
from lrec.laws.fit import Fit
from lrec.laws.law import Array
from lrec.laws.profile import LEVEL

REACH = 10.0  # how far beyond the largest fitted size a crossing is looked for
PLACES = 400


@dataclass(frozen=True)
class Contrast:
    """One curve against another.

    Attributes:
        exponent: The law's exponent of the first minus that of the second.
        exponent_low: Low end of its interval.
        exponent_high: High end.
        crossing: The size at which the curves cross; None where they do not within the sizes and ten times the largest.
        crossing_low: Low end of its interval; 0 where it lies below the sizes.
        crossing_high: High end; inf where it lies beyond ten times the largest.
        lower_before: Whether the first curve is the lower one before the crossing, or everywhere.
        share: Share of the refits in which the curves cross.
    """

    exponent: float
    exponent_low: float
    exponent_high: float
    crossing: float | None
    crossing_low: float | None
    crossing_high: float | None
    lower_before: bool
    share: float

    @property
    def told_apart(self) -> bool:
        """Whether the interval of the difference of exponents leaves out 0."""
        return not self.exponent_low <= 0 <= self.exponent_high


def contrast(one: Fit, two: Fit) -> Contrast:
    """Compare two fits of the same law of one variable.

    Raises:
        UserError: one of them has no more runs than parameters.
    """
    assert one.law.name == two.law.name
    exponent = one.law.n_coefficients  # the first shape parameter
    refits = bootstrap(one, seed=0), bootstrap(two, seed=1)
    differences_B = np.exp(refits[0].theta_BT[:, exponent]) - np.exp(refits[1].theta_BT[:, exponent])
    ends = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    exponent_low, exponent_high = np.quantile(differences_B, ends)
    x_P = np.geomspace(min(one.x_N.min(), two.x_N.min()), REACH * max(one.x_N.max(), two.x_N.max()), PLACES)
    gap_P = np.log(one.curve(x_P)) - np.log(two.curve(x_P))
    gap_BP = np.subtract(*(each.fit.law.log_loss(each.theta_BT, np.log(x_P[:, None] / each.fit.unit_V))[0]
                           for each in refits))  # fmt: skip
    before = np.sign(gap_P[0])
    (at,), at_B = _crossings(gap_P[None], x_P, before), _crossings(gap_BP, x_P, before)
    crosses = bool(0 < at < np.inf)
    low, high = np.quantile(at_B, ends, method="nearest") if crosses else (None, None)
    return Contrast(
        exponent=float(np.exp(one.theta_T[exponent]) - np.exp(two.theta_T[exponent])),
        exponent_low=float(exponent_low),
        exponent_high=float(exponent_high),
        crossing=float(at) if crosses else None,
        crossing_low=None if low is None else float(low),
        crossing_high=None if high is None else float(high),
        lower_before=bool(before < 0),
        share=float(((at_B > 0) & (at_B < np.inf)).mean()),
    )


def _crossings(gap_BP: Array, x_P: Array, before: float) -> Array:
    """The first size at which a gap has lost the sign `before`: 0 where it never had it, inf where it keeps it."""
    other_BP = np.sign(gap_BP) != before
    first_B = other_BP.argmax(1)
    rows_B, left_B = np.arange(len(gap_BP)), np.maximum(first_B - 1, 0)
    left, right = gap_BP[rows_B, left_B], gap_BP[rows_B, first_B]
    with np.errstate(divide="ignore", invalid="ignore"):
        share_B = np.clip(np.nan_to_num(left / (left - right)), 0.0, 1.0)
    log_x_P = np.log(x_P)
    at_B = np.exp(log_x_P[left_B] + share_B * (log_x_P[first_B] - log_x_P[left_B]))
    return np.where(other_BP[:, 0], 0.0, np.where(other_BP.any(1), at_B, np.inf))
