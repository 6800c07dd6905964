"""How the search for a fit went, and how far to trust the answer.

Shapes: S starts, N points, V variables, T parameters.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import polars as pl
from scipy.optimize import lsq_linear

from lrec.common.text_tables import counted
from lrec.laws.curve import LawCurve
from lrec.laws.descent import Problem, descend
from lrec.laws.law import Array, Law
from lrec.laws.objective import LAD_DELTA

UNDECIDED = 1.35
"""Parameters whose log-likelihood is less than this below the best are not told apart: half of chi squared at 90 %."""
LOOSE = 4.0
"""A parameter that may as well be this many times another value is not identified."""
RISES_SHOWN = 4
"""Steps in size that a warning lists by their sizes."""
AGREED = 1.001
"""Starts that end below this multiple of the best objective agree."""


@dataclass(frozen=True)
class Diagnostics:
    """How the search went.

    Attributes:
        starts: Starts of the search.
        share_agreeing: Share of them that ended within 0.1 % of the lowest objective.
        bound_hits: Parameters that ended on a bound.
        gradient_norm: Largest component of the gradient of the objective by the logarithms of the parameters, bounds
            respected; 0 at an optimum.
        condition_number: Of the Jacobian of the log loss by the logarithms of the parameters, x normalised.
        ranges: For each exponent (or R*), the values that the objective itself hardly tells apart.
        warnings: What a reader should know, in sentences.
    """

    starts: int
    share_agreeing: float
    bound_hits: tuple[str, ...]
    gradient_norm: float
    condition_number: float
    ranges: dict[str, tuple[float, float]]
    warnings: tuple[str, ...]

    @property
    def unidentified(self) -> tuple[str, ...]:
        """Parameters that ended on a bound, or that the objective hardly tells from values `LOOSE` times apart."""
        loose = (name for name, (low, high) in self.ranges.items() if high / low >= LOOSE)
        return (*self.bound_hits, *(name for name in loose if name not in self.bound_hits))


def diagnose(best: LawCurve, ends_ST: Array) -> Diagnostics:
    """Of the best curve, and of where the starts of the search for it ended."""
    law, low_T, high_T = best.law, best.low_T, best.high_T
    free_T = (best.theta_T > low_T) & (best.theta_T < high_T)
    jacobian_NT = law.jacobian(best.theta_T[None], best.z_NV)[0]
    end_S = best.problem().values(ends_ST)
    diagnostics = Diagnostics(
        starts=len(ends_ST),
        share_agreeing=float(np.mean(end_S <= end_S.min() * AGREED + 1e-15)),
        bound_hits=tuple(
            name for name, hit, fixed in zip(law.parameters, ~free_T, low_T == high_T, strict=True) if hit and not fixed
        ),
        gradient_norm=_gradient_norm(best.problem(), best.theta_T),
        condition_number=float(np.linalg.cond(jacobian_NT[:, free_T])) if free_T.any() else 1.0,
        ranges=_ranges(best),
        warnings=(),
    )
    warnings = data_warnings(law, best.points, best.x_NV, best.y_N) + _search_warnings(diagnostics)
    return replace(diagnostics, warnings=tuple(warnings))


def _gradient_norm(problem: Problem, theta_T: Array) -> float:
    """Largest component of the gradient that no bound holds back."""
    objective = problem.objective
    gradient_T = problem.at(theta_T[None], objective.smallest_delta)[1][0]
    low_T, high_T = problem.low_ST[0], problem.high_ST[0]
    if objective.kind == "lad":
        gradient_T = _least_subgradient(problem, theta_T)
    held = ((theta_T <= low_T) & (gradient_T > 0)) | ((theta_T >= high_T) & (gradient_T < 0))
    return float(np.abs(np.where(held | (low_T == high_T), 0.0, gradient_T)).max())


def _least_subgradient(problem: Problem, theta_T: Array) -> Array:
    """Of absolute deviations: a residual that is zero has any slope between those to its left and right."""
    residual_N, jacobian_NT = problem.residuals(theta_T[None])[0], problem.jacobian(theta_T[None])[0]
    over = problem.objective.over
    zero_N = np.abs(residual_N) < LAD_DELTA
    rest_T = np.where(residual_N > 0, 1.0, -over)[~zero_N] @ jacobian_NT[~zero_N]
    free_T = (theta_T > problem.low_ST[0]) & (theta_T < problem.high_ST[0])
    if not (zero_N.any() and free_T.any()):
        return rest_T
    slope_Z = lsq_linear(jacobian_NT[zero_N][:, free_T].T, -rest_T[free_T], bounds=(-over, 1.0)).x
    least_T: Array = rest_T + slope_Z @ jacobian_NT[zero_N]
    return least_T


def _ranges(best: LawCurve) -> dict[str, tuple[float, float]]:
    """For each shape parameter, the values at which the objective can be had almost as low as at the best ones."""
    law, k = best.law, best.law.n_coefficients
    n_left = best.n_sizes - int(best.free_T.sum())
    if best.value < 1e-12 * len(best.points) or n_left < 1:
        return {}
    factors = np.log(2) * np.array([*np.arange(0.5, 4, 0.5), 5, 6.5, 8])
    rows = [(t, sign * f) for t in range(k, len(best.theta_T)) for sign in (-1, 1) for f in factors]
    rows = [
        (t, f)
        for t, f in rows
        if best.low_T[t] < best.high_T[t] and best.low_T[t] <= best.theta_T[t] + f <= best.high_T[t]
    ]
    if not rows:
        return {}
    low_ST, high_ST = (np.tile(bound_T, (len(rows), 1)) for bound_T in (best.low_T, best.high_T))
    start_ST = np.tile(best.theta_T, (len(rows), 1))
    for s, (t, f) in enumerate(rows):
        start_ST[s, t] = low_ST[s, t] = high_ST[s, t] = best.theta_T[t] + f
    problem = replace(best.problem(), low_ST=low_ST, high_ST=high_ST)
    _, value_S = descend(problem, start_ST, rounds=60)
    share = 0.5 if best.objective.kind == "lsq" else 1.0  # of a Gaussian and of a Laplace likelihood
    behind_S = share * n_left * np.log(value_S / best.value)
    ranges = {}
    for t in sorted({t for t, _ in rows}):
        near = [f for (row, f), behind in zip(rows, behind_S, strict=True) if row == t and behind < UNDECIDED]
        at = best.theta_T[t]
        ranges[law.parameters[t]] = (float(np.exp(at + min([0, *near]))), float(np.exp(at + max([0, *near]))))
    return ranges


def rises(x_N: Array, y_N: Array) -> list[tuple[float, float]]:
    """The steps from one size to the next over which the mean loss rises."""
    size_S, mean_S = size_means(x_N, y_N)
    return [step for step, rise in zip(pairwise(size_S.tolist()), np.diff(mean_S) > 0, strict=True) if rise]


def size_means(x_N: Array, y_N: Array) -> tuple[Array, Array]:
    """The sizes, and the mean loss of each."""
    size_S, at_N = np.unique(x_N, return_inverse=True)
    return size_S, np.array([y_N[mine].mean() for mine in _groups(at_N)])


def _groups(at_N: Array) -> list[Array]:
    """Of every group from 0 on, where its members are."""
    return np.split(np.argsort(at_N, stable=True), np.cumsum(np.bincount(at_N))[:-1])


def data_warnings(law: Law, points: pl.DataFrame, x_NV: Array, y_N: Array) -> list[str]:
    """Warnings that follow from the points alone, whatever predicts from them."""
    warnings = []
    # At the same data, where the law has a variable for it.
    _, group_N = np.unique(x_NV[:, 1:], axis=0, return_inverse=True)
    steps = [step for mine in _groups(group_N.ravel()) for step in rises(x_NV[mine, 0], y_N[mine])]
    if steps and law.variables[0] != "L":
        some = ", ".join(f"{small:.4g} to {large:.4g}" for small, large in dict.fromkeys(steps[:RISES_SHOWN]))
        where = some if len(steps) <= RISES_SHOWN else f"{some} and in {len(steps) - RISES_SHOWN} more steps"
        same = " at the same data" if len(law.variables) > 1 else ""
        warnings.append(f"not monotone: the mean loss rises with x{same} from {where}")
    if (n_sizes := len(np.unique(x_NV[:, 0]))) < 5:
        warnings.append(
            f"only {counted(n_sizes, 'size')}: the exponent is hardly determined; trust the intervals, not the point"
        )
    if "overfitted" in points.columns and (count := int(points["overfitted"].sum())):
        warnings.append(
            f"over-fitting: the validation loss of {count} of {len(points)} runs rose again after its best, which is "
            "what is used; with stronger regularisation the curve may be another"
        )
    return warnings


def _search_warnings(diagnostics: Diagnostics) -> list[str]:
    warnings = []
    if diagnostics.share_agreeing < 0.1:
        warnings.append(f"only {diagnostics.share_agreeing:.0%} of the starts agree on the optimum")
    if diagnostics.bound_hits:
        warnings.append(f"not identified: {', '.join(diagnostics.bound_hits)} ended on a bound")
    for name in diagnostics.unidentified:
        if name not in diagnostics.bound_hits:
            low, high = diagnostics.ranges[name]
            warnings.append(
                f"not identified: {name} could as well be anywhere between {low:.3g} and {high:.3g}; "
                "report predictions with their intervals, not the parameter"
            )
    return warnings
