"""Fits a scaling law by two independent routes and says how far to trust the answer.

Route one: L-BFGS-B from many starts. Route two: variable projection. The lower objective wins, and both
are compared.

Shapes: N points, K coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from lrec.errors import UserError
from lrec.scaling.laws import Array, Law
from lrec.scaling.search import SCALE, Objective, Search

NARROWEST = 1.01
"""Sizes that span less than this factor tell a power from a constant by rounding errors alone."""


@dataclass(frozen=True)
class Diagnostics:
    """How the search went.

    Attributes:
        starts: Starting points tried.
        share_agreeing: Share of them that ended within 0.1 % of the best objective.
        bound_hits: Parameters that ended on a bound.
        gradient_norm: Largest component of the gradient of the objective, bounds respected; 0 at an optimum.
        condition_number: Of the Jacobian of the log loss by coefficients and exponent, x and y normalised.
        route_difference: Largest relative difference of the two routes' curves, up to 10 times the largest x.
        warnings: What a reader should know, in sentences.
    """

    starts: int
    share_agreeing: float
    bound_hits: tuple[str, ...]
    gradient_norm: float
    condition_number: float
    route_difference: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to points.

    Attributes:
        parameters: By the names in `law.formula`, in the units of the data.
        value: The objective: the sum over points of Huber terms of the log-loss residuals with delta 1e-3 (huber), of
            their absolute values (lad), or of half their squares (lsq).
        r2: Share of the losses' variance explained.
        unit: Geometric mean of x, by which x is divided for the law's internals.
        coefficients_K, shape: The parameters as the law's basis has them.
    """

    law: Law
    objective: Objective
    x_N: Array
    y_N: Array
    unit: float
    coefficients_K: Array
    shape: float
    parameters: dict[str, float]
    value: float
    r2: float
    diagnostics: Diagnostics

    @property
    def n_sizes(self) -> int:
        """Distinct values of x."""
        return len(np.unique(self.x_N))

    def curve(self, x: Sequence[float] | Array) -> Array:
        """The fitted loss at x."""
        return self.law.basis(np.array([self.shape]), np.asarray(x, dtype=float) / self.unit)[0] @ self.coefficients_K


def fit(law: Law, x: Sequence[float] | Array, y: Sequence[float] | Array, objective: Objective = "huber") -> Fit:
    """Fit `law` to losses y at sizes x, on residuals of the log loss.

    Args:
        law: One of `laws.LAWS`.
        x: Positive sizes; repeated values are runs with other seeds.
        y: Positive losses in nats.
        objective: huber, lad (least absolute deviations) or lsq (least squares).

    Raises:
        UserError: fewer distinct sizes than parameters + 1, or all nearly equal; values that are not positive and
            finite; unknown objective.
    """
    x_N, y_N = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    _check(law, x_N, y_N, objective)
    unit, y_unit = (float(np.exp(np.log(values).mean())) for values in (x_N, y_N))
    search = Search(law, x_N / unit, y_N / y_unit, objective)

    starts = search.starts()
    ends = [search.descend(start) for start in starts]
    values = np.array([search.value(end) for end in ends])
    best, projected = int(values.argmin()), search.project()
    theta = min(projected, ends[best], key=search.value)
    value = search.value(theta)

    coefficients_K, shape = theta[:-1] * y_unit, float(theta[-1])
    u_wide = np.geomspace(search.u_N.min(), 10 * search.u_N.max(), 50)
    curves = [law.basis(end[-1:], u_wide)[0] @ end[:-1] for end in (projected, ends[best])]
    diagnostics = Diagnostics(
        starts=len(starts),
        share_agreeing=float(np.mean(values <= value * 1.001 + 1e-9 / SCALE)),
        bound_hits=_bound_hits(law, theta),
        gradient_norm=search.gradient_norm(theta),
        condition_number=search.condition_number(theta),
        route_difference=float(np.abs(curves[0] / curves[1] - 1).max()),
        warnings=(),
    )
    unmoved = np.allclose(ends[best], starts[best], rtol=1e-6, atol=0)
    warnings = _data_warnings(x_N, y_N) + _search_warnings(diagnostics, unmoved)
    fitted_N = law.basis(theta[-1:], search.u_N)[0] @ coefficients_K
    return Fit(
        law=law,
        objective=objective,
        x_N=x_N,
        y_N=y_N,
        unit=unit,
        coefficients_K=coefficients_K,
        shape=shape,
        parameters=law.named(coefficients_K, shape, unit),
        value=value,
        r2=_r2(y_N, fitted_N),
        diagnostics=replace(diagnostics, warnings=tuple(warnings)),
    )


def _check(law: Law, x_N: Array, y_N: Array, objective: Objective) -> None:
    if objective not in get_args(Objective):
        raise UserError(f"--objective: '{objective}' is none of {', '.join(get_args(Objective))}")
    if x_N.shape != y_N.shape or x_N.ndim != 1:
        raise UserError(f"fit: x and y must be lists of one length, not {x_N.shape} and {y_N.shape}")
    if not (np.isfinite(x_N) & np.isfinite(y_N) & (x_N > 0) & (y_N > 0)).all():
        raise UserError("fit: every x and y must be a positive number")
    sizes, needed = len(np.unique(x_N)), len(law.parameters) + 1
    if sizes < needed:
        raise UserError(
            f"fit: the law '{law.name}' has {len(law.parameters)} parameters and needs at least {needed} distinct "
            f"sizes to fit, but there are {sizes}; train more sizes or hold out fewer"
        )
    if x_N.max() < NARROWEST * x_N.min():
        raise UserError(f"fit: all sizes lie within {NARROWEST - 1:.0%} of {x_N.min():g}; a law needs a wider range")


def _bound_hits(law: Law, theta: Array) -> tuple[str, ...]:
    hits = theta <= 1e-9 * theta[:-1].max()
    low, high = law.shape_bounds
    hits[-1] = not low * (1 + 1e-6) < theta[-1] < high * (1 - 1e-6)
    return tuple(name for name, hit in zip(law.parameters, hits, strict=True) if hit)


def _data_warnings(x_N: Array, y_N: Array) -> list[str]:
    warnings = []
    sizes = np.unique(x_N)
    means = [float(y_N[x_N == size].mean()) for size in sizes]
    rises = [f"{sizes[i]:.4g} to {sizes[i + 1]:.4g}" for i in range(len(sizes) - 1) if means[i + 1] > means[i]]
    if rises:
        warnings.append(f"not monotone: the mean loss rises with x from {', '.join(rises)}")
    if len(sizes) < 5:
        warnings.append(
            f"only {len(sizes)} sizes: the exponent is hardly determined; trust the intervals, not the point"
        )
    return warnings


def _search_warnings(diagnostics: Diagnostics, unmoved: bool) -> list[str]:
    warnings = []
    if unmoved:
        warnings.append("the search from many starts returned its own start; only the second route supports the fit")
    if diagnostics.route_difference > 1e-4:
        warnings.append(
            f"the two routes of the fit differ by up to {diagnostics.route_difference:.2%} in loss; "
            "the one with the lower objective is used"
        )
    if diagnostics.share_agreeing < 0.1:
        warnings.append(f"only {diagnostics.share_agreeing:.0%} of the starts agree on the optimum")
    if diagnostics.bound_hits:
        warnings.append(f"not identified: {', '.join(diagnostics.bound_hits)} ended on a bound")
    return warnings


def _r2(y_N: Array, fitted_N: Array) -> float:
    spread = float(((y_N - y_N.mean()) ** 2).sum())
    return 1 - float(((y_N - fitted_N) ** 2).sum()) / spread if spread > 0 else 0.0
