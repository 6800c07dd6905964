"""How far a law may be trusted: rolled out over the sizes, beside other laws of the same variables, and in words."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from lrec.errors import UserError
from lrec.laws.bootstrap import bootstrap
from lrec.laws.fit import Fit, fit_points, rises
from lrec.laws.forms import LAWS
from lrec.laws.law import Law
from lrec.laws.objective import Kind, Objective
from lrec.laws.predict import HeldOut, Holdout, Prediction, Profile, compare, hold_out, predict, settings

FLOORLESS = ("lsrm", "kaplan")
"""Laws that are compared without their floor too, as Kaplan et al. have it."""
AHEAD = 10.0
"""How many times the largest fitted size the outlook is for."""


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

    @property
    def inside(self) -> int:
        """How many steps were inside the interval of a new run."""
        return sum(step.inside for step in self.steps)


@dataclass(frozen=True)
class Rival:
    """A law beside others of the same points.

    Attributes:
        name: The law, and what is fixed in it.
        fit: Of all but the held-out sizes. Its BIC and AICc compare laws of one table only: the lower the better,
            differences below about 2 meaning nothing.
        holdout_mape: Mean absolute percentage error on the held-out sizes, None where there are none.
    """

    name: str
    fit: Fit
    holdout_mape: float | None
    rollout: RollOut | None


def roll_out(
    law: Law,
    points: pl.DataFrame,
    objective: Objective | Kind = "huber",
    fixed: Mapping[str, float] | None = None,
    known: Fit | None = None,
) -> RollOut | None:
    """Fit the k smallest sizes and predict the next, for every k; None where no k leaves enough to fit.

    Args:
        law: The law.
        points: A table as `laws.points` has it.
        objective: As for `fit_points`.
        fixed: As for `fit_points`.
        known: The fit for one k, so that it is not made again.
    """
    n_sizes = points["x"].n_unique()
    steps: list[HeldOut] = []
    for k in range(2, n_sizes):
        small, larger = hold_out(points, n_sizes - k)
        following = larger.filter(pl.col("x") == pl.col("x").min())
        try:
            fitted = known if known and known.points.equals(small) else fit_points(law, small, objective, fixed)
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

    Where the law is one of size, data and unique data, those of size and data alone are among them. Laws of several
    variables take seconds to minutes, so progress goes to stderr.
    """
    small, large = hold_out(points, holdout)
    found = []
    for other, fixed in _of_the_same_variables(law):
        name = ", ".join([other.name, *(f"{parameter} = {value:g}" for parameter, value in (fixed or {}).items())])
        if len(other.variables) > 1:
            print(f"rolling out {name}", file=sys.stderr, flush=True)
        try:
            fitted = fit_points(other, small, objective, fixed)
        except UserError:  # too few settings for so many parameters
            continue
        mape = compare(fitted, predict(fitted, settings(other, large)), large).mape if len(large) else None
        found.append(Rival(name, fitted, mape, roll_out(other, points, objective, fixed, fitted)))
    return sorted(found, key=lambda rival: np.inf if rival.rollout is None else rival.rollout.mape)


def _of_the_same_variables(law: Law) -> list[tuple[Law, Mapping[str, float] | None]]:
    """Laws to compare, each with what is fixed in it."""
    alike = [
        other for other in LAWS.values() if min(len(law.variables), 2) <= len(other.variables) <= len(law.variables)
    ]
    return [
        (other, fixed) for other in alike for fixed in (None, {"E": 0.0}) if fixed is None or other.name in FLOORLESS
    ]


def outlook(fit: Fit, profile: Profile) -> dict[str, Prediction]:
    """The loss at `AHEAD` times the largest fitted size, at the most data that it had: by profile.

    By bootstrap too where outliers had the profile widened, unless there are fewer runs than parameters.
    """
    largest = max(map(tuple, fit.x_NV.tolist()))
    place = np.array([[AHEAD * largest[0], *largest[1:]]])
    predictions = {"profile": profile.predict(place)[0]}
    if not profile.holds_fit:
        with suppress(UserError):
            predictions["bootstrap"] = bootstrap(fit).predict(place)[0]
    return predictions


def unidentified(fit: Fit, profile: Profile) -> list[str]:
    """Parameters that the points do not determine; the last exponent too if its interval reaches its bound."""
    exponent = fit.law.parameters[-1]
    (low, high), (lowest, highest) = profile.parameters[exponent], fit.law.shape_bounds[-1]
    unbounded = low <= lowest * 1.001 or high >= highest * 0.999
    return list(dict.fromkeys([*fit.diagnostics.unidentified, *([exponent] if unbounded else [])]))


def warnings(fit: Fit, profile: Profile, holdout: Holdout | None) -> list[str]:
    """The fit's warnings, and those that only the intervals and the held-out sizes give rise to."""
    found = list(fit.diagnostics.warnings)
    if not profile.holds_fit:
        found.append(
            "outliers: the fit lies outside the least-squares region, so its intervals were widened to hold it; "
            "look at the residuals"
        )
    for name in unidentified(fit, profile):
        if name not in fit.diagnostics.unidentified:
            low, high = profile.parameters[name]
            found.append(
                f"not identified: the 90 % interval of {name} reaches its bound ({low:.3g} to {high:.3g}); "
                "report predictions with their intervals, not the exponent"
            )
    if holdout is not None and holdout.extrapolation_factor > 100:
        found.append(f"the law is extrapolated {holdout.extrapolation_factor:.0f} times beyond its largest size")
    return found


def verdict(
    fit: Fit,
    holdout: Holdout | None,
    judged: Sequence[Rival],
    ahead: Mapping[str, Prediction],
    unsure: Sequence[str],
    x: str,
) -> list[str]:
    """What the fit, the held-out sizes and the roll-out come to, in plain words.

    Args:
        fit: The fit of the small sizes.
        holdout: The held-out sizes, None if there are none.
        judged: The laws compared, `rivals`.
        ahead: The `outlook`.
        unsure: Parameters that are not identified, `unidentified`.
        x: Name of the first variable.
    """
    sentences = [_held(fit, holdout, x), _expected(ahead, x)]
    if len(fit.law.variables) == 1:
        later = () if holdout is None else holdout.points
        x_N, y_N = np.append(fit.x_N, [p.x for p in later]), np.append(fit.y_N, [p.actual for p in later])
        if steps := rises(x_N, y_N):
            where = ", ".join(f"{small:.4g} to {large:.4g}" for small, large in steps)
            sentences.append(f"The mean loss rises with {x} from {where}: a power law describes the trend at most.")
    sentences += _compared(fit, judged)
    if unsure:
        plural = "are" if len(unsure) > 1 else "is"
        sentences.append(f"{', '.join(unsure)} {plural} not identified: rely on predictions with their intervals.")
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


def _expected(ahead: Mapping[str, Prediction], x: str) -> str:
    p = ahead["profile"]
    data = ", ".join(f"{name} {value:.4g}" for name, value in (("D", p.d), ("U", p.u)) if value is not None)
    where = f"At {AHEAD:g} times the largest fitted {x}{' with ' + data if data else ''}"
    sentence = f"{where} expect {p.predicted:.4g} [{p.low:.4g}, {p.high:.4g}] for a new run"
    if "bootstrap" in ahead:
        sentence += f" (by bootstrap [{ahead['bootstrap'].low:.4g}, {ahead['bootstrap'].high:.4g}])"
    return sentence + "."


def _compared(fit: Fit, judged: Sequence[Rival]) -> list[str]:
    sentences = []
    rolled = [(rival, rival.rollout) for rival in judged if rival.rollout is not None]
    for rival, steps in rolled:
        if rival.name == fit.law.name:
            sentences.append(
                f"Rolled out from the smallest sizes on, the next size is missed by {steps.mape:.2f} % on average "
                f"(naive {steps.naive_mape:.2f} %), inside its interval {steps.inside} of {len(steps.steps)} times."
            )
    if len(rolled) > 1:
        best, by_bic = rolled[0][0], min(judged, key=lambda rival: rival.fit.bic)
        agree = "as BIC has it too" if best is by_bic else f"while BIC prefers {by_bic.name}"
        sentences.append(f"Of the laws compared, {best.name} predicts the next size best, {agree}.")
    return sentences


def judged_content(judged: Sequence[Rival]) -> list[dict[str, Any]]:
    """What fit.json says of the laws compared."""
    return [
        {
            "law": rival.name,
            "n_parameters": rival.fit.n_fitted,
            "bic": rival.fit.bic,
            "aicc": rival.fit.aicc,
            "holdout_mape": rival.holdout_mape,
            "rollout": None
            if rival.rollout is None
            else {
                "mape": rival.rollout.mape,
                "naive_mape": rival.rollout.naive_mape,
                "inside": rival.rollout.inside,
                "steps": [vars(step) for step in rival.rollout.steps],
            },
        }
        for rival in judged
    ]
