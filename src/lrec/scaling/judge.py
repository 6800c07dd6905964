"""How far a law may be trusted: rolled out over the sizes, beside other laws of the same variables, and in words."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl

from lrec.errors import UserError
from lrec.scaling.fit import Fit, fit_points
from lrec.scaling.laws import LAWS, Array, Law
from lrec.scaling.objective import Kind, Objective
from lrec.scaling.predict import HeldOut, Holdout, compare, hold_out, predict, settings

FLOORLESS = {"lsrm": {"E": 0.0}, "kaplan": {"E": 0.0}}
"""Laws that are compared without their floor too, as Kaplan et al. have it."""


@dataclass(frozen=True)
class RollOut:
    """Fits of the k smallest sizes, each asked for the next size, for every k that the law can be fitted to.

    Attributes:
        steps: The next size's predictions and what came, for each k; for each setting where there are several.
        mape: Mean absolute percentage error of the law, `naive_mape` that of "as good as the best small model".
    """

    steps: tuple[HeldOut, ...]
    mape: float
    naive_mape: float


@dataclass(frozen=True)
class Rival:
    """A law beside others of the same points: criteria are of the fit, errors of what was held out or rolled out.

    BIC and AICc compare laws of one table only: the lower the better, differences below about 2 meaning nothing.
    """

    law: str
    fixed: Mapping[str, float]
    n_parameters: int
    bic: float
    aicc: float
    holdout_mape: float | None
    rollout: RollOut | None

    @property
    def name(self) -> str:
        """The law, and what is fixed in it."""
        return ", ".join([self.law, *(f"{name} = {value:g}" for name, value in self.fixed.items())])


def roll_out(
    law: Law,
    points: pl.DataFrame,
    objective: Objective | Kind = "huber",
    fixed: Mapping[str, float] = MappingProxyType({}),
) -> RollOut | None:
    """Fit the k smallest sizes and predict the next, for every k; None where no k leaves enough to fit."""
    n_sizes = points["x"].n_unique()
    steps: list[HeldOut] = []
    for k in range(2, n_sizes):
        small, larger = hold_out(points, n_sizes - k)
        following = larger.filter(pl.col("x") == pl.col("x").min())
        try:
            fitted = fit_points(law, small, objective, fixed)
        except UserError:  # too few sizes yet
            continue
        steps += compare(fitted, predict(fitted, settings(law, following)), following).points
    if not steps:
        return None
    return RollOut(
        tuple(steps),
        float(np.mean([abs(step.error_pct) for step in steps])),
        float(np.mean([abs(step.naive_error_pct) for step in steps])),
    )


def rivals(law: Law, points: pl.DataFrame, holdout: int, objective: Objective | Kind = "huber") -> list[Rival]:
    """Fit and roll out every law of the same variables, the best rolled out first; those not to be fitted left out.

    Where the points have size and data, these are the laws of both; progress goes to stderr, since they take seconds.
    """
    small, large = hold_out(points, holdout)
    least = min(len(law.variables), 2)
    candidates = [other for other in LAWS.values() if least <= len(other.variables) <= len(law.variables)]
    found = []
    for rival, fixed in [(other, f) for other in candidates for f in ({}, FLOORLESS.get(other.name)) if f is not None]:
        if len(rival.variables) > 1:
            print(f"rolling out {rival.name}", file=sys.stderr, flush=True)
        try:
            fitted = fit_points(rival, small, objective, fixed)
        except UserError:
            continue
        mape = compare(fitted, predict(fitted, settings(rival, large)), large).mape if len(large) else None
        rolled = roll_out(rival, points, objective, fixed)
        found.append(Rival(rival.name, fixed, fitted.n_fitted, fitted.bic, fitted.aicc, mape, rolled))
    return sorted(found, key=lambda rival: np.inf if rival.rollout is None else rival.rollout.mape)


def verdict(fit: Fit, holdout: Holdout | None, judged: Sequence[Rival], warnings: list[str], x: str) -> list[str]:
    """What the fit, the held-out sizes and the roll-out come to, in plain words."""
    sentences = [_held(fit, holdout, x)]
    place, factor = _ten_times(fit)
    (ahead,) = predict(fit, place)
    sentences.append(
        f"At {factor:g} times the largest fitted {x} expect {ahead.predicted:.4g} [{ahead.low:.4g}, {ahead.high:.4g}] "
        "for a new run."
    )
    rolled = next((rival.rollout for rival in judged if rival.name == fit.law.name), None)
    if rolled is not None:
        inside = sum(step.inside for step in rolled.steps)
        sentences.append(
            f"Rolled out from the smallest sizes on, the next size is missed by {rolled.mape:.2f} % on average (naive "
            f"{rolled.naive_mape:.2f} %) and is inside its interval {inside} of {len(rolled.steps)} times."
        )
    if len(judged) > 1:
        by_bic = min(judged, key=lambda rival: rival.bic)
        best = judged[0]
        agree = "as BIC does" if best is by_bic else f"while BIC prefers {by_bic.name}"
        sentences.append(f"Of the laws compared, {best.name} predicts the next size best, {agree}.")
    unknown = sorted({w.split(":")[1].split()[0] for w in warnings if w.startswith("not identified")})
    if unknown:
        plural = "are" if len(unknown) > 1 else "is"
        sentences.append(f"{', '.join(unknown)} {plural} not identified: rely on predictions with their intervals.")
    if any(w.startswith("not monotone") for w in warnings):
        sentences.append("The loss does not fall with every step in size: a power law describes the trend at most.")
    return sentences


def _held(fit: Fit, holdout: Holdout | None, x: str) -> str:
    decades = np.log10(fit.x_N.max() / fit.x_N.min())
    if holdout is None:
        return (
            f"The law is fitted over {decades:.1f} decades of {x}; nothing was held out, so nothing says whether it "
            "holds beyond them."
        )
    inside, n = sum(p.inside for p in holdout.points), len(holdout.points)
    reached = decades + np.log10(holdout.extrapolation_factor)
    figures = (
        f"held-out sizes up to {holdout.extrapolation_factor:.3g} times the largest fitted were predicted within "
        f"{holdout.mape:.2f} % on average (naive {holdout.naive_mape:.2f} %), {inside} of {n} inside the 90 % interval"
    )
    if holdout.mape > holdout.naive_mape:
        return f"The law does not hold: {figures}, which is worse than to expect nothing of larger sizes."
    if holdout.mape <= holdout.naive_mape / 2 and inside >= 0.7 * n:
        return f"The law holds over {reached:.1f} decades of {x}: {figures}."
    return f"The law holds in part over {reached:.1f} decades of {x}: {figures}."


def _ten_times(fit: Fit) -> tuple[Array, float]:
    """Ten times the largest size, at the most data that runs of that size had."""
    largest = fit.x_NV[np.lexsort(fit.x_NV.T[::-1])[-1]]
    return (np.concatenate([largest[:1] * 10, largest[1:]])[None], 10.0)


def judged_content(judged: Sequence[Rival]) -> list[dict[str, Any]]:
    """What fit.json says of the laws compared."""
    return [
        {
            "law": rival.name,
            "n_parameters": rival.n_parameters,
            "bic": rival.bic,
            "aicc": rival.aicc,
            "holdout_mape": rival.holdout_mape,
            "rollout": None
            if rival.rollout is None
            else {
                "mape": rival.rollout.mape,
                "naive_mape": rival.rollout.naive_mape,
                "steps": [vars(step) for step in rival.rollout.steps],
            },
        }
        for rival in judged
    ]
