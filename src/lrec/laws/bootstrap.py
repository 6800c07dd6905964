"""Intervals by bootstrap, beside those of `predict`: the law refitted to resampled residuals, all refits at once.

A naive bootstrap lies with few sizes: residuals of a fit are smaller than the noise, and a normal distribution has thin
tails. Residuals are therefore multiplied by sqrt(n / (n - p)), and an interval reaches Student's t on n - p degrees of
freedom standard deviations to either side, n counting runs and p the parameters fitted. Even so the intervals are
somewhat too narrow with few sizes (benchmarks/interval_coverage.md), since the refits scatter about one fit, which may
itself be far off; those of `predict` are not.

Points of one run (column `run`) share what the run has drawn, so they are resampled together: each run gets the
residuals, with a random sign, of a run with as many points, as in the wild cluster bootstrap (Cameron, Gelbach and
Miller 2008, "Bootstrap-based improvements for inference with clustered errors").

Shapes: B refits, N points, P places to predict.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit

from lrec.common.text_tables import counted
from lrec.errors import UserError
from lrec.laws.candidate import residual_model
from lrec.laws.descent import descend
from lrec.laws.fit import Fit
from lrec.laws.law import Array, as_columns
from lrec.laws.profile import LEVEL, Prediction

REFITS = 1000
FINEST = 1e-4
"""Absolute deviations smaller than this count as squares in a refit: far below what refits scatter by."""
FLOOR_STARTS = (0.05, 0.5, 0.9)
"""Shares of the lowest loss at which refits start the floor as well."""


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Refits of a law to resampled residuals.

    Attributes:
        theta_BT: Their parameters, as `Fit.theta_T`.
        sigma: Estimated standard deviation of a run about the curve: relative, or absolute for residuals in level.
        dof: Its degrees of freedom.
    """

    fit: Fit
    theta_BT: Array
    sigma: float
    dof: int

    def predict(self, x: Sequence[float] | Array, level: float = LEVEL) -> list[Prediction]:
        """The loss at each x, with the intervals of the mean curve and of a new run."""
        law, x_PV = self.fit.law, as_columns(self.fit.law, np.asarray(x, dtype=float))
        log_loss_BP, _ = law.log_loss(self.theta_BT, np.log(x_PV / self.fit.unit_V))
        t = float(stdtrit(self.dof, (1 + level) / 2))
        log = self.fit.objective.residuals == "log"
        predictions = []
        for p, (where, loss) in enumerate(zip(x_PV.tolist(), self.fit.curve(x_PV).tolist(), strict=True)):
            above_B = log_loss_BP[:, p] - np.log(loss) if log else np.exp(log_loss_BP[:, p]) - loss
            spread = float(np.sqrt((above_B**2).mean()))
            reach = (t * spread, t * float(np.hypot(spread, self.sigma)))
            signed = [sign * r for r in reach for sign in (-1, 1)]
            ends = [loss * float(np.exp(r)) if log else loss + r for r in signed]
            predictions.append(Prediction(where[0], loss, *ends, *where[1:]))
        return predictions


def bootstrap(fit: Fit, refits: int = REFITS, seed: int = 0) -> Bootstrap:
    """Refit the law to resampled residuals, from the fit's own parameters.

    Raises:
        UserError: no more runs than parameters fitted.
    """
    run_N = _runs(fit)
    n, p = int(run_N.max()) + 1, fit.n_fitted
    if n <= p:
        raise UserError(
            f"bootstrap: a law of {counted(p, 'free parameter')} needs more runs than {n} to tell how they scatter"
        )
    residual_N = fit.residual_N
    sigma = float(np.sqrt((residual_N**2).mean() * n / (n - p)))
    drawn_BN = _resampled(residual_N * np.sqrt(n / (n - p)), run_N, refits, np.random.default_rng(seed))
    curve_N = fit.curve(fit.x_NV)
    y_BN = curve_N * np.exp(drawn_BN) if fit.objective.residuals == "log" else np.maximum(curve_N + drawn_BN, 1e-9)
    start_ST = _starts(fit)
    rows = len(start_ST)
    problem = replace(fit.problem(), model=residual_model(fit.law, fit.z_NV, np.tile(y_BN, (rows, 1)), fit.objective))
    ends = descend(problem, np.repeat(start_ST, refits, axis=0), rounds=100, tolerance=1e-10, finest=FINEST)
    best_B = ends.value_S.reshape(rows, refits).argmin(0)
    theta_BT = ends.theta_ST.reshape(rows, refits, -1)[best_B, np.arange(refits)]
    return Bootstrap(fit, theta_BT, sigma, n - p)


def _starts(fit: Fit) -> Array:
    """The fit's own parameters; and others of the floor, which at zero would not rise again by itself."""
    start_ST = np.tile(fit.theta_T, (1 + len(FLOOR_STARTS) * bool(fit.law.floor_starts), 1))
    start_ST[1:, 0] = np.log(fit.y_N.min() * np.array(FLOOR_STARTS[: len(start_ST) - 1]))
    return np.asarray(np.clip(start_ST, fit.low_T, fit.high_T))


def _runs(fit: Fit) -> Array:
    """For each point the number of its run; a point without one (column `run`) is a run of its own."""
    if "run" not in fit.points.columns:
        return np.arange(len(fit.points))
    keys = [(run, number if run is None else None) for number, run in enumerate(fit.points["run"])]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def _resampled(residual_N: Array, run_N: Array, refits: int, rng: np.random.Generator) -> Array:
    """Each run's residuals replaced by those of a run with as many points, with a random sign."""
    drawn_BN = np.empty((refits, len(residual_N)))
    members = [np.flatnonzero(run_N == run) for run in range(int(run_N.max()) + 1)]
    for count in {len(points) for points in members}:
        alike_RC = np.array([points for points in members if len(points) == count])
        donor_BR = rng.integers(len(alike_RC), size=(refits, len(alike_RC)))
        sign_BR1 = rng.choice([-1.0, 1.0], size=(*donor_BR.shape, 1))
        drawn_BN[:, alike_RC.ravel()] = (sign_BR1 * residual_N[alike_RC[donor_BR]]).reshape(refits, -1)
    return drawn_BN
