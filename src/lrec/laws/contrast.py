"""Compares two fitted curves: their exponents, where they cross, and the size that the second needs for the same loss.

Intervals are the 5th and 95th percentiles over pairs of refits to resampled residuals. These are multiplied by
sqrt(n / (n - p)), because a fit's residuals are smaller than the noise. Points of one run share their noise, so they
are resampled together, with a random sign (wild cluster bootstrap: Cameron, Gelbach and Miller 2008).

Shapes: B refits, S starts, N points, P places, T parameters.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lrec.common.text_tables import counted
from lrec.errors import UserError
from lrec.laws.descent import descend
from lrec.laws.fit import Fit
from lrec.laws.intervals import LEVEL
from lrec.laws.law import Array

REFITS = 1000
REACH = 10.0  # crossings are looked for up to this many times the largest fitted size
FURTHEST = 100.0  # `Contrast.times` is looked for between 1 / FURTHEST and FURTHEST
PLACES = 400


@dataclass(frozen=True)
class Contrast:
    """The comparison of two curves: values with the low and high ends of their intervals."""

    exponent: float  # the exponent of the first curve minus the exponent of the second
    exponent_low: float
    exponent_high: float
    crossing: float | None  # None if they do not cross between the smallest size and ten times the largest
    crossing_low: float | None  # 0 if below the smallest size
    crossing_high: float | None  # inf if beyond ten times the largest size
    lower_before: bool | None  # whether the first curve is lower before the crossing, or everywhere; None if equal
    share: float  # share of the refits in which the curves cross
    reached: float  # the largest size that both curves reach
    times: float  # the second curve needs times * reached for the first's loss; 0 if below 1/100, inf if above 100
    times_low: float
    times_high: float

    @property
    def told_apart(self) -> bool:
        """Whether the interval of the difference of exponents does not contain 0."""
        return not self.exponent_low <= 0 <= self.exponent_high


def contrast(one: Fit, two: Fit) -> Contrast:
    """Compare two fits of the same law of one variable; UserError if one has no more runs than parameters, or no two
    different losses."""
    if any(np.ptp(fit.points["y"].to_numpy()) == 0 for fit in (one, two)):
        raise UserError("bootstrap: all losses of a ladder are equal, so its exponent is not known")
    exponent = one.law.n_coefficients  # the first shape parameter
    # The first row is the fit itself, the others are its refits.
    one_BT, two_BT = (np.vstack([fit.theta_T, refits_of(fit, seed=seed)]) for seed, fit in enumerate((one, two)))
    x_P = np.geomspace(min(one.x_N.min(), two.x_N.min()), REACH * max(one.x_N.max(), two.x_N.max()), PLACES)
    gap_BP = _log_losses(one, one_BT, x_P) - _log_losses(two, two_BT, x_P)
    before = np.sign(gap_BP[0, 0])
    at_B = _crossings(gap_BP, x_P, before)
    cross_B = (at_B > 0) & (at_B < np.inf)
    reached = float(min(one.x_N.max(), two.x_N.max()))
    times_P = np.geomspace(1 / FURTHEST, FURTHEST, 2 * PLACES + 1)
    excess_BP = _log_losses(two, two_BT, reached * times_P) - _log_losses(one, one_BT, np.array([reached]))
    exponents = _with_ends(np.exp(one_BT[:, exponent]) - np.exp(two_BT[:, exponent]), "linear")
    crossings: tuple[float | None, float | None, float | None] = _with_ends(at_B) if cross_B[0] else (None, None, None)
    times = _with_ends(_crossings(excess_BP, times_P, before=1.0))
    lower_before = bool(before < 0) if before else None
    return Contrast(*exponents, *crossings, lower_before, float(cross_B[1:].mean()), reached, *times)


def _with_ends(value_B: Array, method: Literal["linear", "nearest"] = "nearest") -> tuple[float, float, float]:
    """The fit's own value, and the ends of the interval over the refits."""
    low, high = np.quantile(value_B[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method=method)
    return float(value_B[0]), float(low), float(high)


def refits_of(fit: Fit, refits: int = REFITS, seed: int = 0) -> Array:
    """Parameters of refits to resampled residuals, theta_BT; UserError if there are no more runs than parameters."""
    run_N = _runs(fit)
    n, p = int(run_N.max()) + 1, fit.problem.n_free
    if n <= p:
        free = counted(p, "free parameter")
        raise UserError(f"bootstrap: a law of {free} needs more runs than {n} to tell how they scatter")
    drawn_BN = _resampled(fit.residual_N * np.sqrt(n / (n - p)), run_N, refits, np.random.default_rng(seed))
    start_ST = fit.problem.starts(fit.theta_T)
    problem = replace(fit.problem, y_SN=np.tile(fit.curve(fit.x_NV) * np.exp(drawn_BN), (len(start_ST), 1)))
    theta_ST, value_S = descend(problem, np.repeat(start_ST, refits, axis=0))
    best_B = value_S.reshape(-1, refits).argmin(0)
    return np.asarray(theta_ST.reshape(len(start_ST), refits, -1)[best_B, np.arange(refits)])


def _runs(fit: Fit) -> Array:
    """The number of each point's run. A point without a run (column `run`) counts as a run of its own."""
    if "run" not in fit.points.columns:
        return np.arange(len(fit.points))
    keys = [number if run is None else (run,) for number, run in enumerate(fit.points["run"])]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def _resampled(residual_N: Array, run_N: Array, refits: int, rng: np.random.Generator) -> Array:
    """Replace each run's residuals by those of a random run with as many points, with a random sign."""
    drawn_BN = np.empty((refits, len(residual_N)))
    members = [np.flatnonzero(run_N == run) for run in range(int(run_N.max()) + 1)]
    for count in {len(points) for points in members}:
        alike_RC = np.array([points for points in members if len(points) == count])
        donor_BR = rng.integers(len(alike_RC), size=(refits, len(alike_RC)))
        sign_BR1 = rng.choice([-1.0, 1.0], size=(*donor_BR.shape, 1))
        drawn_BN[:, alike_RC.ravel()] = (sign_BR1 * residual_N[alike_RC[donor_BR]]).reshape(refits, -1)
    return drawn_BN


def _log_losses(fit: Fit, theta_BT: Array, x_P: Array) -> Array:
    """Logarithm of the loss of each curve at each size, (B, P)."""
    return fit.law.log_loss(theta_BT, np.log(x_P[:, None] / fit.problem.unit_V))


def _crossings(gap_BP: Array, x_P: Array, before: float) -> Array:
    """The first size at which a gap no longer has the sign `before`: 0 if it never has it, inf if it always has it."""
    other_BP = np.sign(gap_BP) != before
    first_B = other_BP.argmax(1)
    rows_B, left_B = np.arange(len(gap_BP)), np.maximum(first_B - 1, 0)
    left, right = gap_BP[rows_B, left_B], gap_BP[rows_B, first_B]
    with np.errstate(divide="ignore", invalid="ignore"):
        share_B = np.clip(np.nan_to_num(left / (left - right)), 0.0, 1.0)
    log_x_P = np.log(x_P)
    at_B = np.exp(log_x_P[left_B] + share_B * (log_x_P[first_B] - log_x_P[left_B]))
    return np.where(other_BP[:, 0], 0.0, np.where(other_BP.any(1), at_B, np.inf))
