"""Fits a scaling law by two independent routes.

Route one: descent from many starts. Route two: scipy's trust region from the best of their shapes. The lower objective
wins, and both are compared.

Shapes: S starts, N points, V variables, T parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import polars as pl

from lrec.errors import UserError
from lrec.laws.candidate import VANISHED, Candidate
from lrec.laws.descent import Descent, Problem, along_bounds, descend
from lrec.laws.diagnostics import Diagnostics, diagnose, share_agreeing
from lrec.laws.law import Array, Law, as_columns
from lrec.laws.objective import Kind, Objective
from lrec.laws.points import NARROWEST
from lrec.laws.profile import Prediction, Profile
from lrec.laws.trust_region import trust_region
from lrec.laws.vertex import polished

SETTLED = 0.5
"""If a smaller share of the starts agrees, the search goes on along the bounds."""


@dataclass(frozen=True, eq=False)
class Fit(Candidate):
    """The best parameters found for the points, and where the search for them began and ended.

    Attributes:
        start_ST, ends: Where the starts of the first route began, and where they ended.
        routes_ST: What the two routes found.
    """

    start_ST: Array
    ends: Descent
    routes_ST: Array

    @property
    def name(self) -> str:
        """Name of the law."""
        return self.law.name

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of points that hold the law's variables."""
        return self.law.columns

    def predict(self, x: Sequence[float] | Array) -> list[Prediction]:
        """The loss at each x, with the 90 % intervals of the mean curve and of a new run."""
        return self.profile.predict(x)

    @cached_property
    def profile(self) -> Profile:
        """What else explains the points: the 90 % intervals of parameters and predictions."""
        return Profile(self)

    @cached_property
    def diagnostics(self) -> Diagnostics:
        """How the search went, and what the points do not determine."""
        return diagnose(self, self.start_ST, self.ends, self.routes_ST)

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
        fixed: Parameters held at a value. A coefficient goes with its exponents: A of A/N^a can be fixed only with a.

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
    """Fit `law` to points, a table as `laws.points` has it; see `fit`."""
    start, start_ST = search_of(law, points, objective, fixed)
    descended_T, ends = by_descent(start, start_ST)
    routes_ST = np.array([descended_T, by_trust_region(start, start_ST)])
    problem = start.problem()
    routes_ST = _snapped(problem, routes_ST, law.n_coefficients)
    if start.objective.kind == "lad":
        routes_ST = np.array([polished(problem, theta_T) for theta_T in routes_ST])
    best_T = routes_ST[problem.values(routes_ST).argmin()]
    of_candidate = (law, start.objective, points, start.unit_V, start.low_T, start.high_T, best_T)
    return Fit(*of_candidate, start_ST=start_ST, ends=ends, routes_ST=routes_ST)


def search_of(
    law: Law,
    points: pl.DataFrame,
    objective: Objective | Kind = "huber",
    fixed: Mapping[str, float] | None = None,
) -> tuple[Candidate, Array]:
    """What is searched, and the starts of the search, start_ST; see `fit`."""
    objective = objective if isinstance(objective, Objective) else Objective(objective)
    x_NV, y_N = points.select(law.columns).to_numpy().astype(float), points["y"].to_numpy().astype(float)
    _check(law, x_NV, y_N, fixed or {})
    unit_V = law.units(x_NV)
    low_T, high_T = _bounds(law, y_N, unit_V, fixed or {})
    start_ST = np.unique(np.clip(_starts(law, np.log(x_NV / unit_V), y_N), low_T, high_T), axis=0)
    return Candidate(law, objective, points, unit_V, low_T, high_T, start_ST[0]), start_ST


def by_descent(start: Candidate, start_ST: Array) -> tuple[Array, Descent]:
    """The first route's parameters, theta_T, and where all starts ended."""
    problem = start.problem()
    ends = descend(problem, start_ST)
    best_T = ends.theta_ST[ends.value_S.argmin()]
    if share_agreeing(ends, ends.value_S.min()) < SETTLED:
        best_T = along_bounds(problem, best_T)
    return best_T, ends


def by_trust_region(start: Candidate, start_ST: Array) -> Array:
    """The second route's parameters, theta_T."""
    return trust_region(start.law, start.objective, start.z_NV, start.y_N, start.low_T, start.high_T, start_ST)


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


def _snapped(problem: Problem, theta_ST: Array, n_coefficients: int) -> Array:
    """Parameters that ended near a bound are put onto it if the others can make up for that."""
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
