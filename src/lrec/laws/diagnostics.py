"""How the search for a fit went, and what the points themselves warn of.

Shapes: S starts, N points, T parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.optimize import lsq_linear

from lrec.common.text_tables import counted
from lrec.laws.curve import LawCurve
from lrec.laws.descent import Problem
from lrec.laws.law import Array, Law

RISES_SHOWN = 4  # steps in size that a warning lists by their sizes
ZERO = 1e-8  # residuals below this are zero
AGREED = 1.001  # starts that end below this multiple of the best objective agree


@dataclass(frozen=True)
class Diagnostics:
    """How the search went; derivatives are by the logarithms of the parameters, x normalised."""

    starts: int
    share_agreeing: float  # ended within 0.1 % of the lowest objective
    bound_hits: tuple[str, ...]
    gradient_norm: float  # its largest component that no bound holds back
    condition_number: float  # of the Jacobian of the log loss


def diagnose(best: LawCurve, ends_ST: Array) -> Diagnostics:
    """Of the best curve, and of where the starts of the search for it ended."""
    low_T, high_T, problem = best.low_T, best.high_T, best.problem()
    free_T = (best.theta_T > low_T) & (best.theta_T < high_T)
    jacobian_NT = best.law.jacobian(best.theta_T[None], best.z_NV)[0]
    end_S = problem.values(ends_ST)
    return Diagnostics(
        starts=len(ends_ST),
        share_agreeing=float(np.mean(end_S <= end_S.min() * AGREED + 1e-15)),
        bound_hits=tuple(np.array(best.law.parameters)[~free_T & (low_T < high_T)].tolist()),
        gradient_norm=_gradient_norm(problem, best.theta_T),
        condition_number=float(np.linalg.cond(jacobian_NT[:, free_T])) if free_T.any() else 1.0,
    )


def _gradient_norm(problem: Problem, theta_T: Array) -> float:
    """Largest component of the gradient that no bound holds back."""
    gradient_T = problem.slopes(theta_T[None])[0][0]
    if problem.objective.kind == "lad":
        gradient_T = _least_subgradient(problem, theta_T)
    return float(np.abs(np.where(problem.held(theta_T, gradient_T), 0.0, gradient_T)).max())


def _least_subgradient(problem: Problem, theta_T: Array) -> Array:
    """Of absolute deviations: a residual that is zero has any slope between those to its left and right."""
    residual_N, jacobian_NT = problem.residuals(theta_T[None])[0], problem.jacobian(theta_T[None])[0]
    over = problem.objective.over
    zero_N = np.abs(residual_N) < ZERO
    rest_T = np.where(residual_N > 0, 1.0, -over)[~zero_N] @ jacobian_NT[~zero_N]
    free_T = (theta_T > problem.low_T) & (theta_T < problem.high_T)
    if not (zero_N.any() and free_T.any()):
        return rest_T
    slope_Z = lsq_linear(jacobian_NT[zero_N][:, free_T].T, -rest_T[free_T], bounds=(-over, 1.0)).x
    least_T: Array = rest_T + slope_Z @ jacobian_NT[zero_N]
    return least_T


def rises(points: pl.DataFrame, columns: Sequence[str]) -> str:
    """The steps from one size to the next, at the same data, over which the mean loss rises, in words."""
    size, *data = columns
    means = points.group_by(columns).agg(pl.col("y").mean()).sort(*data, size)
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in data) if data else pl.lit(True)
    rise = means.with_columns(before=pl.col(size).shift()).filter(same & (pl.col("y") > pl.col("y").shift()))
    steps = rise.select("before", size).rows()
    some = ", ".join(f"{small:.4g} to {large:.4g}" for small, large in dict.fromkeys(steps[:RISES_SHOWN]))
    return some if len(steps) <= RISES_SHOWN else f"{some} and in {len(steps) - RISES_SHOWN} more steps"


def data_warnings(law: Law, points: pl.DataFrame) -> list[str]:
    """Warnings that follow from the points alone, whatever predicts from them."""
    warnings = []
    if where := rises(points, law.columns):
        same = " at the same data" if len(law.variables) > 1 else ""
        warnings.append(f"not monotone: the mean loss rises with x{same} from {where}")
    if (n_sizes := points["x"].n_unique()) < 5:
        warnings.append(
            f"only {counted(n_sizes, 'size')}: the exponent is hardly determined; trust the intervals, not the point"
        )
    if "overfitted" in points.columns and (count := int(points["overfitted"].sum())):
        warnings.append(
            f"over-fitting: the validation loss of {count} of {len(points)} runs rose again after its best, which is "
            "what is used; with stronger regularisation the curve may be another"
        )
    return warnings
