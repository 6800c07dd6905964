"""Fits a scaling law by two independent routes and says how far to trust the answer.

Route one: L-BFGS-B with analytic gradients from many starts. Route two: variable projection, which searches the
exponent alone and solves the non-negative coefficients inside. The lower objective wins; any difference is reported.

Shapes: N points, K coefficients, G exponents tried at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal, get_args

import numpy as np
from scipy.optimize import minimize

from lrec.errors import UserError
from lrec.scaling.laws import Array, Law

Objective = Literal["huber", "lad", "lsq"]

HUBER_DELTA = 1e-3
LAD_DELTA = 1e-6
"""Below this a residual of the log loss counts as zero, which makes least absolute deviations differentiable."""
SCALE = 1e6
"""Objectives are near 1e-6 while L-BFGS-B's tolerances are relative to max(f, 1): unscaled, it stops at once."""


@dataclass(frozen=True)
class Diagnostics:
    """How the search went.

    Attributes:
        starts: Starting points tried.
        share_agreeing: Share of them that ended within 0.1 % of the best objective.
        bound_hits: Parameters that ended on a bound.
        gradient_norm: Largest component of the gradient of the objective, bounds respected; 0 at an optimum.
        condition_number: Of the Jacobian of the log loss by coefficients and exponent.
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
        return _curve(self.law, self.coefficients_K, self.shape, np.asarray(x, dtype=float) / self.unit)


def fit(law: Law, x: Sequence[float] | Array, y: Sequence[float] | Array, objective: Objective = "huber") -> Fit:
    """Fit `law` to losses y at sizes x, on residuals of the log loss.

    Args:
        law: One of `laws.LAWS`.
        x: Positive sizes; repeated values are runs with other seeds.
        y: Positive losses in nats.
        objective: huber, lad (least absolute deviations) or lsq (least squares).

    Raises:
        UserError: fewer distinct sizes than parameters + 1; values that are not positive and finite; unknown objective.
    """
    x_N, y_N = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
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
    unit = float(np.exp(np.log(x_N).mean()))
    u_N = x_N / unit

    theta_starts = _starts(law, u_N, y_N)
    ends = [_descend(law, u_N, y_N, start, objective) for start in theta_starts]
    best = min(range(len(ends)), key=lambda i: _value(law, u_N, y_N, ends[i], objective))
    projected = project(law, u_N, y_N, objective)
    values = np.array([_value(law, u_N, y_N, end, objective) for end in ends])
    projected_value = _value(law, u_N, y_N, projected, objective)
    theta = projected if projected_value <= values[best] else ends[best]
    value = min(projected_value, float(values[best]))

    coefficients_K, shape = theta[:-1], float(theta[-1])
    parameters = law.named(coefficients_K, shape, unit)
    u_wide = np.geomspace(u_N.min(), 10 * u_N.max(), 50)
    difference = np.abs(_curve_of(law, projected, u_wide) / _curve_of(law, ends[best], u_wide) - 1).max()
    agreeing = float(np.mean(values <= value * 1.001 + 1e-9 / SCALE))
    hits = _bound_hits(law, coefficients_K, shape)
    warnings = _data_warnings(x_N, y_N)
    if np.allclose(ends[best], theta_starts[best], rtol=1e-6, atol=0):
        warnings.append("the search from many starts returned its own start; only the second route supports the fit")
    if difference > 1e-4:
        warnings.append(f"the two routes of the fit differ by up to {difference:.2%} in loss; the better one is used")
    if agreeing < 0.1:
        warnings.append(f"only {agreeing:.0%} of the starts agree on the optimum")
    if hits:
        warnings.append(f"not identified: {', '.join(hits)} ended on a bound")
    return Fit(
        law=law,
        objective=objective,
        x_N=x_N,
        y_N=y_N,
        unit=unit,
        coefficients_K=coefficients_K,
        shape=shape,
        parameters=parameters,
        value=value,
        r2=_r2(y_N, _curve(law, coefficients_K, shape, u_N)),
        diagnostics=Diagnostics(
            starts=len(theta_starts),
            share_agreeing=agreeing,
            bound_hits=hits,
            gradient_norm=_gradient_norm(law, u_N, y_N, theta, objective),
            condition_number=float(np.linalg.cond(_log_jacobian(law, u_N, theta)[1])),
            route_difference=float(difference),
            warnings=tuple(warnings),
        ),
    )


def project(law: Law, u_N: Array, y_N: Array, objective: Objective) -> Array:
    """Variable projection: the best coefficients for each exponent of a grid, and the grid narrowed around the best.

    Returns the coefficients, then the exponent.
    """

    def solved(shape_G: Array) -> tuple[Array, Array]:
        phi_GNK = law.basis(shape_G, u_N)
        coefficients_GK = _inner(phi_GNK, y_N, objective)
        residual_GN = np.log(y_N) - np.log(np.einsum("gnk,gk->gn", phi_GNK, coefficients_GK))
        return _objective(residual_GN, objective).sum(-1), coefficients_GK

    shape = search_shape(law, lambda shape_G: solved(shape_G)[0])
    return np.append(solved(np.array([shape]))[1][0], shape)


def search_shape(law: Law, value_of: Callable[[Array], Array]) -> float:
    """The exponent within the law's bounds that minimises `value_of`: a grid, narrowed around its best point."""
    shape_G = np.geomspace(*law.shape_bounds, 200)
    while True:
        best = int(value_of(shape_G).argmin())
        if shape_G[-1] / shape_G[0] - 1 < 1e-13:
            return float(shape_G[best])
        shape_G = np.geomspace(shape_G[max(best - 1, 0)], shape_G[min(best + 1, len(shape_G) - 1)], 21)


def non_negative(phi_GNK: Array, weight_GN: Array, target_GN: Array) -> Array:
    """Weighted non-negative least squares, solved exactly by trying every set of positive coefficients."""
    n_coefficients = phi_GNK.shape[-1]
    best_G = np.full(len(phi_GNK), np.inf)
    solution_GK = np.zeros((len(phi_GNK), n_coefficients))
    for used in subsets(n_coefficients):
        phi = phi_GNK[..., used]
        gram = np.einsum("gnk,gn,gnl->gkl", phi, weight_GN, phi)
        moment = np.einsum("gnk,gn,gn->gk", phi, weight_GN, target_GN)
        trial = np.linalg.solve(gram, moment[..., None])[..., 0]
        error_G = (weight_GN * (np.einsum("gnk,gk->gn", phi, trial) - target_GN) ** 2).sum(-1)
        better_G = (trial >= 0).all(-1) & (error_G < best_G)
        best_G = np.where(better_G, error_G, best_G)
        full = np.zeros_like(solution_GK)
        full[:, used] = trial
        solution_GK = np.where(better_G[:, None], full, solution_GK)
    return solution_GK


def subsets(n: int) -> list[list[int]]:
    """The non-empty subsets of range(n), larger ones first."""
    return [list(c) for size in range(n, 0, -1) for c in combinations(range(n), size)]


def _inner(phi_GNK: Array, y_N: Array, objective: Objective) -> Array:
    """Non-negative coefficients that minimise the objective, by iteratively reweighted least squares."""
    ones_GN = np.ones(phi_GNK.shape[:2])
    coefficients_GK = non_negative(phi_GNK / y_N[None, :, None], ones_GN, ones_GN)
    for _ in range(300):
        loss_GN = np.einsum("gnk,gk->gn", phi_GNK, coefficients_GK)
        residual_GN = np.log(y_N) - np.log(loss_GN)
        weight_GN = np.minimum(1.0, _delta(objective) / np.maximum(np.abs(residual_GN), 1e-300))
        # Linearised: ln L(c + dc) = ln L(c) + phi.dc / L(c), and phi.c / L(c) = 1.
        update_GK = non_negative(phi_GNK / loss_GN[..., None], weight_GN, residual_GN + 1)
        moved = np.abs(update_GK - coefficients_GK).max() / y_N.max()
        coefficients_GK = update_GK
        if moved < 1e-10:
            break
    return coefficients_GK


def _starts(law: Law, u_N: Array, y_N: Array) -> list[Array]:
    """For each exponent and floor of the law's grid, the other coefficients in proportion to what the floor leaves."""
    starts = []
    for shape, share in product(law.shape_starts, law.floor_starts):
        phi_NK = law.basis(np.array([shape]), u_N)[0]
        floor = share * y_N.min()
        rest = np.mean(y_N - floor) / phi_NK[:, 1:].mean(0) / (law.n_coefficients - 1)
        starts.append(np.concatenate([[floor], rest, [shape]]))
    return starts


def _descend(law: Law, u_N: Array, y_N: Array, start: Array, objective: Objective) -> Array:
    def scaled(theta: Array) -> tuple[float, Array]:
        value, gradient = _value_and_gradient(law, u_N, y_N, theta, objective)
        return SCALE * value, SCALE * gradient

    smallest = 1e-12 * y_N.min()  # keeps the logarithm finite if every coefficient goes to its bound
    bounds = [(0.0, None)] + [(smallest, None)] * (law.n_coefficients - 1) + [law.shape_bounds]
    options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 5000, "maxfun": 20000, "maxcor": 20}
    return np.asarray(minimize(scaled, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x)


def _value_and_gradient(law: Law, u_N: Array, y_N: Array, theta: Array, objective: Objective) -> tuple[float, Array]:
    loss_N, jacobian_NT = _log_jacobian(law, u_N, theta)
    residual_N = np.log(y_N) - np.log(loss_N)
    delta = _delta(objective)
    slope_N = np.clip(residual_N, -delta, delta) / (LAD_DELTA if objective == "lad" else 1.0)
    return float(_objective(residual_N, objective).sum()), -slope_N @ jacobian_NT


def _value(law: Law, u_N: Array, y_N: Array, theta: Array, objective: Objective) -> float:
    return _value_and_gradient(law, u_N, y_N, theta, objective)[0]


def _objective(residual: Array, objective: Objective) -> Array:
    """Huber's function with the objective's delta; divided by it for lad, which makes it the absolute value."""
    delta = _delta(objective)
    if objective == "lsq":
        return residual**2 / 2
    size = np.abs(residual)
    huber = np.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))
    return huber / delta if objective == "lad" else huber


def _delta(objective: Objective) -> float:
    return {"huber": HUBER_DELTA, "lad": LAD_DELTA, "lsq": np.inf}[objective]


def _curve(law: Law, coefficients_K: Array, shape: float, u_N: Array) -> Array:
    return law.basis(np.array([shape]), u_N)[0] @ coefficients_K


def _curve_of(law: Law, theta: Array, u_N: Array) -> Array:
    return _curve(law, theta[:-1], theta[-1], u_N)


def _log_jacobian(law: Law, u_N: Array, theta: Array) -> tuple[Array, Array]:
    """The loss, and the derivatives of its logarithm by coefficients and exponent, (N, K + 1)."""
    by_coefficient = law.basis(theta[-1:], u_N)[0]
    by_shape = law.basis_gradient(theta[-1], u_N) @ theta[:-1]
    loss_N = by_coefficient @ theta[:-1]
    return loss_N, np.column_stack([by_coefficient, by_shape]) / loss_N[:, None]


def _gradient_norm(law: Law, u_N: Array, y_N: Array, theta: Array, objective: Objective) -> float:
    _, gradient = _value_and_gradient(law, u_N, y_N, theta, objective)
    low = np.append(np.zeros(law.n_coefficients), law.shape_bounds[0])
    high = np.append(np.full(law.n_coefficients, np.inf), law.shape_bounds[1])
    held_back = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    return float(np.abs(np.where(held_back, 0.0, gradient)).max())


def _bound_hits(law: Law, coefficients_K: Array, shape: float) -> tuple[str, ...]:
    hits = [law.parameters[k] for k in np.flatnonzero(coefficients_K <= 1e-9 * coefficients_K.max())]
    low, high = law.shape_bounds
    return (*hits, law.parameters[-1]) if shape <= low * (1 + 1e-6) or shape >= high * (1 - 1e-6) else tuple(hits)


def _data_warnings(x_N: Array, y_N: Array) -> list[str]:
    warnings = []
    sizes = np.unique(x_N)
    means = [y_N[x_N == size].mean() for size in sizes]
    rises = [f"{a:.4g} to {b:.4g}" for a, b, m, n in zip(sizes, sizes[1:], means, means[1:], strict=False) if n > m]
    if rises:
        warnings.append(f"not monotone: the mean loss rises with x from {', '.join(rises)}")
    if len(sizes) < 5:
        warnings.append(
            f"only {len(sizes)} sizes: the exponent is hardly determined; trust the intervals, not the point"
        )
    return warnings


def _r2(y_N: Array, predicted_N: Array) -> float:
    spread = float(((y_N - y_N.mean()) ** 2).sum())
    return 1 - float(((y_N - predicted_N) ** 2).sum()) / spread if spread > 0 else 0.0
