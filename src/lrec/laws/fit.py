"""Fits a scaling law by two independent routes and says how far to trust the answer.

Route one: descent from many starts. Route two: variable projection. The lower objective wins, and both are compared.

Shapes: S starts, N points, V variables, T parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import polars as pl

from lrec.errors import UserError
from lrec.laws.descent import Model, Problem, along_bounds, descend
from lrec.laws.law import Array, Law, as_columns
from lrec.laws.objective import Kind, Objective
from lrec.laws.varpro import Projection

NARROWEST = 1.01
"""Sizes that span less than this factor tell a power from a constant by rounding errors alone."""
VANISHED = 16.0
"""A coefficient e^16 times smaller than the lowest loss counts as zero; also how far above the highest it may lie."""
UNDECIDED = 1.35
"""Log-likelihood by which parameters must fall behind the best ones to be told apart: half of chi squared at 90 %."""
LOOSE = 4.0
"""A parameter that may as well be this many times another value is not identified."""

RISES_SHOWN = 4
"""Steps in size that a warning lists by their sizes."""

AGREED = 1.001
"""Starts that end below this multiple of the best objective agree."""
SETTLED = 0.5
"""Share of the starts that have to agree, or the search goes on along the bounds."""


@dataclass(frozen=True)
class Diagnostics:
    """How the search went.

    Attributes:
        starts: Starting points tried.
        share_agreeing: Share of them that ended within 0.1 % of the best objective.
        bound_hits: Parameters that ended on a bound.
        gradient_norm: Largest component of the gradient of the objective by the logarithms of the parameters, bounds
            respected; 0 at an optimum.
        condition_number: Of the Jacobian of the log loss by the logarithms of the parameters, x normalised.
        route_difference: Largest relative difference of the two routes' curves, over the points and up to 10 times
            the largest x.
        ranges: For each exponent (or R*), the values that the objective itself hardly tells apart.
        warnings: What a reader should know, in sentences.
    """

    starts: int
    share_agreeing: float
    bound_hits: tuple[str, ...]
    gradient_norm: float
    condition_number: float
    route_difference: float
    ranges: dict[str, tuple[float, float]]
    warnings: tuple[str, ...]

    @property
    def unidentified(self) -> tuple[str, ...]:
        """Parameters that ended on a bound, or that the objective hardly tells from values `LOOSE` times apart."""
        loose = (name for name, (low, high) in self.ranges.items() if high / low >= LOOSE)
        return (*self.bound_hits, *(name for name in loose if name not in self.bound_hits))


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to points.

    Attributes:
        points: The points fitted, a table as `laws.points` has it.
        unit_V: Geometric means of the variables, by which they are divided for the law's internals.
        theta_T: Logarithms of the parameters as the law's basis has them: coefficients, then shape.
        low_T, high_T: Their bounds.
        parameters: By the names in `law.formula`, in the units of the data.
        value: The objective, summed over the points.
        r2: Share of the losses' variance explained.
    """

    law: Law
    objective: Objective
    points: pl.DataFrame
    unit_V: Array
    theta_T: Array
    low_T: Array
    high_T: Array
    parameters: dict[str, float]
    value: float
    r2: float
    diagnostics: Diagnostics

    @property
    def x_NV(self) -> Array:
        """The variables, a column each."""
        return self.points.select(self.law.columns).to_numpy().astype(float)

    @property
    def x_N(self) -> Array:
        """The first variable: the size."""
        return self.x_NV[:, 0]

    @property
    def y_N(self) -> Array:
        """The losses."""
        return self.points["y"].to_numpy().astype(float)

    @property
    def z_NV(self) -> Array:
        """Logarithms of the variables in their units."""
        return np.log(self.x_NV / self.unit_V)

    @property
    def n_sizes(self) -> int:
        """Distinct settings of the variables."""
        return len(np.unique(self.x_NV, axis=0))

    @property
    def free_T(self) -> Array:
        """Parameters that bend to the points: neither fixed nor on a bound."""
        return (self.theta_T > self.low_T + 1e-6) & (self.theta_T < self.high_T - 1e-6)

    @property
    def n_fitted(self) -> int:
        """How many parameters were not held fixed."""
        return int((self.low_T < self.high_T).sum())

    @property
    def bic(self) -> float:
        """Bayesian information criterion, up to a constant that laws fitted to the same points share.

        The likelihood is that of which the objective is the logarithm: Gaussian for lsq, Laplace's for huber and lad.
        """
        return self._deviance + (self.n_fitted + 1) * float(np.log(len(self.points)))

    @property
    def aicc(self) -> float:
        """Akaike's criterion corrected for few points (Hurvich and Tsai 1989), infinite where they are too few."""
        n, p = len(self.points), self.n_fitted + 1
        return self._deviance + 2 * p + (2 * p * (p + 1) / (n - p - 1) if n > p + 1 else np.inf)

    @property
    def _deviance(self) -> float:
        """Minus twice the log-likelihood, the scale of the residuals being estimated."""
        n, residual_N = len(self.points), self.residual_N
        if self.objective.kind == "lsq":
            return n * float(np.log(2 * np.pi * np.maximum((residual_N**2).mean(), 1e-300)) + 1)
        return 2 * n * float(np.log(2 * np.maximum(np.abs(residual_N).mean(), 1e-150)) + 1)

    @property
    def residual_N(self) -> Array:
        """Actual minus fitted, of the logarithm or of the loss as the objective has it."""
        fitted_N = self.curve(self.x_NV)
        return np.log(self.y_N / fitted_N) if self.objective.residuals == "log" else self.y_N - fitted_N

    def curve(self, x: Sequence[float] | Array) -> Array:
        """The fitted loss at x, (N,) or (N, V)."""
        z_NV = np.log(as_columns(self.law, np.asarray(x, dtype=float)) / self.unit_V)
        return np.exp(self.law.log_loss(self.theta_T[None], z_NV)[0][0])

    def problem(self, objective: Objective | None = None) -> Problem:
        """What was minimised, or the same with another objective."""
        objective = objective or self.objective
        model = residual_model(self.law, self.z_NV, self.y_N, objective)
        return Problem(model, objective, np.ones((1, len(self.points))), self.low_T[None], self.high_T[None])

    def at(self, theta_T: Array) -> "Fit":
        """The same with other parameters."""
        return replace(self, theta_T=theta_T, parameters=named(self.law, theta_T, self.y_N, self.unit_V))


def residual_model(law: Law, z_NV: Array, y_N: Array, objective: Objective) -> Model:
    """Residuals of the losses y_N, or of a row of losses for each start, and their derivatives by theta."""
    log_y = np.log(y_N)

    def model(theta_ST: Array, rows_S: Array) -> tuple[Array, Array]:
        log_loss_SN, jacobian_SNT = law.log_loss(theta_ST, z_NV)
        if objective.residuals == "log":
            return (log_y if log_y.ndim == 1 else log_y[rows_S]) - log_loss_SN, -jacobian_SNT
        loss_SN = np.exp(log_loss_SN)
        return (y_N if y_N.ndim == 1 else y_N[rows_S]) - loss_SN, -jacobian_SNT * loss_SN[..., None]

    return model


def named(law: Law, theta_T: Array, y_N: Array, unit_V: Array) -> dict[str, float]:
    """The formula's parameters; a coefficient that vanished is zero."""
    k = law.n_coefficients
    coefficients_K = np.where(theta_T[:k] <= np.log(y_N.min()) - VANISHED + 1e-9, 0.0, np.exp(theta_T[:k]))
    return law.named(coefficients_K, np.exp(theta_T[k:]), unit_V)


def fit(
    law: Law,
    x: Sequence[float] | Array,
    y: Sequence[float] | Array,
    objective: Objective | Kind = "huber",
    fixed: Mapping[str, float] | None = None,
) -> Fit:
    """Fit `law` to losses y at x.

    Args:
        law: One of `laws.LAWS` or `laws.LINKS`.
        x: Positive sizes, (N,), or a column for each variable of the law, (N, V); repeated ones are other seeds.
        y: Positive losses in nats.
        objective: An `Objective`, or huber, lad (least absolute deviations), lsq (least squares) of the log loss.
        fixed: Parameters held at a value. A coefficient goes with its exponents: A of A/N^a is fixed only where a is.

    Raises:
        UserError: fewer distinct sizes than parameters + 1, or all nearly equal; values that are not positive and
            finite; unknown objective; a parameter that cannot be fixed.
    """
    x_N, y_N = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x_N) != len(y_N) or y_N.ndim != 1 or x_N.ndim > 2:
        raise UserError(f"fit: x and y must be of one length, not {x_N.shape} and {y_N.shape}")
    points = pl.DataFrame(dict(zip(law.columns, as_columns(law, x_N).T, strict=True)) | {"y": y_N})
    return fit_points(law, points, objective, fixed)


def fit_points(
    law: Law,
    points: pl.DataFrame,
    objective: Objective | Kind = "huber",
    fixed: Mapping[str, float] | None = None,
) -> Fit:
    """Fit `law` to points a table as `laws.points` has it; see `fit`."""
    objective = objective if isinstance(objective, Objective) else Objective(objective)
    x_NV, y_N = points.select(law.columns).to_numpy().astype(float), points["y"].to_numpy().astype(float)
    _check(law, x_NV, y_N, fixed or {})
    unit_V = law.units(x_NV)
    low_T, high_T = _bounds(law, y_N, unit_V, fixed or {})
    z_NV = np.log(x_NV / unit_V)
    problem = Problem(
        residual_model(law, z_NV, y_N, objective), objective, np.ones((1, len(y_N))), low_T[None], high_T[None]
    )
    start_ST = np.unique(np.clip(_starts(law, z_NV, y_N), low_T, high_T), axis=0)
    ends = descend(problem, start_ST)
    best = int(ends.value_S.argmin())
    descended_T = ends.theta_ST[best]
    if _agreeing(ends.value_S, ends.value_S[best]) < SETTLED:
        descended_T = along_bounds(problem, descended_T)
    projected_T = Projection(law, objective, z_NV, y_N, low_T, high_T).minimise()
    routes = _snapped(problem, np.array([descended_T, projected_T]), law.n_coefficients)
    value_S = problem.values(routes)
    winner = int(value_S.argmin())
    theta_T, value = routes[winner], float(value_S[winner])
    log_loss_N, jacobian_NT = (part[0] for part in law.log_loss(theta_T[None], z_NV))
    free_T = (theta_T > low_T) & (theta_T < high_T)
    fitted = Fit(
        law=law,
        objective=objective,
        points=points,
        unit_V=unit_V,
        theta_T=theta_T,
        low_T=low_T,
        high_T=high_T,
        parameters=named(law, theta_T, y_N, unit_V),
        value=value,
        r2=_r2(y_N, np.exp(log_loss_N)),
        diagnostics=Diagnostics(
            starts=len(start_ST),
            share_agreeing=_agreeing(ends.value_S, value),
            bound_hits=tuple(
                name
                for name, hit, fixed_ in zip(law.parameters, ~free_T, low_T == high_T, strict=True)
                if hit and not fixed_
            ),
            gradient_norm=_gradient_norm(problem, theta_T),
            condition_number=float(np.linalg.cond(jacobian_NT[:, free_T])) if free_T.any() else 1.0,
            route_difference=_route_difference(law, routes, z_NV),
            ranges={},
            warnings=(),
        ),
    )
    diagnostics = replace(fitted.diagnostics, ranges=_ranges(fitted))
    unmoved = bool(np.abs(ends.theta_ST[best] - start_ST).max(-1).min() < 1e-6) and bool((low_T < high_T).any())
    warnings = _data_warnings(law, points, x_NV, y_N) + _search_warnings(diagnostics, unmoved)
    return replace(fitted, diagnostics=replace(diagnostics, warnings=tuple(warnings)))


def _check(law: Law, x_NV: Array, y_N: Array, fixed: Mapping[str, float]) -> None:
    for name, values in (*zip(law.columns, x_NV.T, strict=True), ("y", y_N)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise UserError(f"fit: every value of {name} must be positive and finite")
    for name in fixed:
        if name not in law.parameters:
            raise UserError(f"fit: the law {law.name} has no parameter '{name}'; it has {', '.join(law.parameters)}")
    if "U" in law.variables and (x_NV[:, 1] < x_NV[:, 2] * (1 - 1e-9)).any():
        raise UserError("fit: D is below U at some point: D counts all interactions processed, U the unique ones")
    needed, there = len(law.parameters) - len(fixed) + 1, len(np.unique(x_NV, axis=0))
    what = "sizes" if len(law.variables) == 1 else f"settings of {', '.join(law.variables)}"
    if there < needed:
        raise UserError(
            f"the law {law.name} needs at least {needed} distinct {what} to fit, but there are {there}: "
            "add sizes or hold out fewer"
        )
    for variable, column in zip(law.variables[:2], x_NV.T, strict=False):
        if column.max() / column.min() < NARROWEST:
            raise UserError(
                f"fit: all sizes are within {NARROWEST - 1:.0%} of {column.min():.6g} in {variable}; "
                "a law needs sizes that differ"
            )


def _bounds(law: Law, y_N: Array, unit_V: Array, fixed: Mapping[str, float]) -> tuple[Array, Array]:
    shape = np.log(np.array(law.shape_bounds)).T
    k = law.n_coefficients
    low_T = np.concatenate([np.full(k, np.log(y_N.min()) - VANISHED), shape[0]])
    high_T = np.concatenate([np.full(k, np.log(y_N.max()) + VANISHED), shape[1]])
    held_T = law.theta(fixed, unit_V)
    held = np.isfinite(held_T)
    for name, value in fixed.items():
        if value <= 0 and law.parameters.index(name) < k:  # a coefficient at zero
            held_T[law.parameters.index(name)], held[law.parameters.index(name)] = low_T[0] - 600, True
    if held.sum() < len(fixed):
        raise UserError(f"fit: {', '.join(fixed)} cannot be fixed without the exponents they go with")
    low_T[held] = high_T[held] = held_T[held]
    return low_T, high_T


def _starts(law: Law, z_NV: Array, y_N: Array) -> Array:
    """For each shape and floor of the law's grid, the other coefficients share what the floor leaves."""
    thetas = []
    for shape in product(*law.shape_starts):
        phi_NK = np.exp(law.log_basis(np.array([shape]), z_NV)[0][0])
        for share in law.floor_starts or (None,):
            floor = [] if share is None else [share * y_N.min()]
            rest_NK = phi_NK[:, len(floor) :]
            others = (y_N.mean() - sum(floor)) / np.maximum(rest_NK.mean(0), 1e-100) / rest_NK.shape[1]
            thetas.append(np.log([*floor, *others, *shape]))
    return np.array(thetas)


def _agreeing(value_S: Array, best: float) -> float:
    """Share of the starts that ended about as low as the best."""
    return float(np.mean(value_S <= best * AGREED + 1e-15))


def _snapped(problem: Problem, theta_ST: Array, n_coefficients: int) -> Array:
    """Parameters that ended near a bound, put onto it where the others can make up for it."""
    theta_ST = theta_ST.copy()
    low_T, high_T = problem.low_ST[0], problem.high_ST[0]
    for s, t in product(range(len(theta_ST)), range(len(low_T))):
        margin = VANISHED / 2 if t < n_coefficients else 0.5
        bound = low_T[t] if theta_ST[s, t] - low_T[t] < high_T[t] - theta_ST[s, t] else high_T[t]
        if not 0 < abs(theta_ST[s, t] - bound) < margin:
            continue
        low_ST, high_ST, trial_ST = problem.low_ST.copy(), problem.high_ST.copy(), theta_ST[[s]].copy()
        low_ST[0, t] = high_ST[0, t] = trial_ST[0, t] = bound
        end = descend(replace(problem, low_ST=low_ST, high_ST=high_ST), trial_ST)
        if end.value_S[0] <= problem.values(theta_ST[[s]])[0] * (1 + 1e-7) + 1e-14:
            theta_ST[s] = end.theta_ST[0]
    return theta_ST


def _gradient_norm(problem: Problem, theta_T: Array) -> float:
    """Largest component of the gradient that no bound holds back."""
    objective = problem.objective
    _, gradient_ST, *_ = problem.at(theta_T[None], np.zeros(1, dtype=int), objective.smallest_delta)
    low_T, high_T = problem.low_ST[0], problem.high_ST[0]
    held = ((theta_T <= low_T) & (gradient_ST[0] > 0)) | ((theta_T >= high_T) & (gradient_ST[0] < 0))
    return float(np.abs(np.where(held | (low_T == high_T), 0.0, gradient_ST[0])).max())


def _route_difference(law: Law, routes_ST: Array, z_NV: Array) -> float:
    largest_V = z_NV.max(0)
    path_V = np.linspace(0, 1, 25)[:, None]
    wide_NV = np.concatenate([z_NV, z_NV.min(0) + path_V * (largest_V - z_NV.min(0)), largest_V + path_V * np.log(10)])
    if "U" in law.variables:
        wide_NV[:, 2] = np.minimum(wide_NV[:, 2], wide_NV[:, 1])
    log_loss_SN, _ = law.log_loss(routes_ST, wide_NV)
    return float(np.abs(np.expm1(log_loss_SN[0] - log_loss_SN[1])).max())


def _ranges(fitted: Fit) -> dict[str, tuple[float, float]]:
    """For each shape parameter, the values at which the objective can be had almost as low as at the best ones."""
    law, k = fitted.law, fitted.law.n_coefficients
    n_left = fitted.n_sizes - int(fitted.free_T.sum())
    if fitted.value < 1e-12 * len(fitted.points) or n_left < 1:
        return {}
    factors = np.log(2) * np.array([*np.arange(0.5, 4, 0.5), 5, 6.5, 8])
    rows = [(t, sign * f) for t in range(k, len(fitted.theta_T)) for sign in (-1, 1) for f in factors]
    rows = [
        (t, f)
        for t, f in rows
        if fitted.low_T[t] < fitted.high_T[t] and fitted.low_T[t] <= fitted.theta_T[t] + f <= fitted.high_T[t]
    ]
    if not rows:
        return {}
    low_ST, high_ST = (np.tile(bound_T, (len(rows), 1)) for bound_T in (fitted.low_T, fitted.high_T))
    start_ST = np.tile(fitted.theta_T, (len(rows), 1))
    for s, (t, f) in enumerate(rows):
        start_ST[s, t] = low_ST[s, t] = high_ST[s, t] = fitted.theta_T[t] + f
    problem = replace(fitted.problem(), low_ST=low_ST, high_ST=high_ST)
    value_S = descend(problem, start_ST, rounds=60).value_S
    share = 0.5 if fitted.objective.kind == "lsq" else 1.0  # of a Gaussian and of a Laplace likelihood
    behind_S = share * n_left * np.log(value_S / fitted.value)
    ranges = {}
    for t in sorted({t for t, _ in rows}):
        near = [f for (row, f), behind in zip(rows, behind_S, strict=True) if row == t and behind < UNDECIDED]
        best = fitted.theta_T[t]
        ranges[law.parameters[t]] = (float(np.exp(best + min([0, *near]))), float(np.exp(best + max([0, *near]))))
    return ranges


def rises(x_N: Array, y_N: Array) -> list[tuple[float, float]]:
    """The steps from one size to the next over which the mean loss rises."""
    sizes = np.unique(x_N)
    means = [float(y_N[x_N == size].mean()) for size in sizes]
    return [(float(sizes[i]), float(sizes[i + 1])) for i in range(len(sizes) - 1) if means[i + 1] > means[i]]


def _data_warnings(law: Law, points: pl.DataFrame, x_NV: Array, y_N: Array) -> list[str]:
    warnings = []
    # At the same data, where the law has a variable for it.
    _, group_N = np.unique(x_NV[:, 1:], axis=0, return_inverse=True)
    groups = [group_N.ravel() == group for group in range(int(group_N.max()) + 1)]
    steps = [step for mine_N in groups for step in rises(x_NV[mine_N, 0], y_N[mine_N])]
    if steps and law.variables[0] != "L":
        some = ", ".join(f"{small:.4g} to {large:.4g}" for small, large in dict.fromkeys(steps[:RISES_SHOWN]))
        where = some if len(steps) <= RISES_SHOWN else f"{some} and in {len(steps) - RISES_SHOWN} more steps"
        same = " at the same data" if len(law.variables) > 1 else ""
        warnings.append(f"not monotone: the mean loss rises with x{same} from {where}")
    if (n_sizes := len(np.unique(x_NV[:, 0]))) < 5:
        warnings.append(f"only {n_sizes} sizes: the exponent is hardly determined; trust the intervals, not the point")
    if "overfitted" in points.columns and (count := int(points["overfitted"].sum())):
        warnings.append(
            f"over-fitting: the validation loss of {count} of {len(points)} runs rose again after its best, which is "
            "what is used; with stronger regularisation the curve may be another"
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
    for name in diagnostics.unidentified:
        if name not in diagnostics.bound_hits:
            low, high = diagnostics.ranges[name]
            warnings.append(
                f"not identified: {name} could as well be anywhere between {low:.3g} and {high:.3g}; "
                "report predictions with their intervals, not the parameter"
            )
    return warnings


def _r2(y_N: Array, fitted_N: Array) -> float:
    spread = float(((y_N - y_N.mean()) ** 2).sum())
    return 1 - float(((y_N - fitted_N) ** 2).sum()) / spread if spread > 0 else 0.0
