"""The forecast: what larger models will reach, predicted by many weighted curves together (docs/laws.md).

A curve is ln L = A - S (1 - e^(-k t)) / k, t = ln(x / the largest x). A curve that may stop at G has N' = (N^-2 +
G^-2)^(-1/2) in place of N. If the points have data samples, G becomes G U^g, and A and S depend on ln U. If there are
runs of several lengths, the loss also falls with the length D by such a curve. The fall in D may then make the fall in
x steeper or flatter, by the same amount at every size.
Results on measured curves, and other methods that were tried: benchmarks/forecasts.md.

Shapes: S shapes of the grid, E models of the points' errors, O points that may be off (0: none), G of their
combinations (or of any shapes), N points, P places, K coefficients.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from lrec.laws.intervals import LEVEL, Prediction
from lrec.laws.law import Array
from lrec.laws.mixture import LADDER, Mixture, Part, Prior, of_curve, of_runs, with_one_off
from lrec.laws.table import check_places, has_lengths, naive

AHEAD = 2.0  # beliefs about a curve's fall are for the factor e^2 = 7.4 in x
MEAN_4, SD_4 = np.array([0.0, 0.2, -0.05, 0.0]), np.array([np.inf, 0.6, 0.3, 0.1])
"""Beliefs about ln L at the largest x, its fall over that factor, and the change of both for e times the data. A fall
is expected, but its size is hardly known."""
LENGTH_4, LENGTH_SD_4 = np.array([0.0, 0.2, 0.2, 0.0]), np.array([np.inf, 0.6, 0.6, 0.15])
"""The same for runs of several lengths: ln L, the falls in x and in D, and how much D makes the fall in x steeper."""
DATA_EXPONENTS = (0.5, 1.0, 1.5)  # the values of g in G U^g, the size at which the loss stops falling
STOPS, FIRST_STOP, FARTHEST_STOP = 12, -18.0, 4.0
"""The number of values of G, evenly spaced in the logarithm, from the smallest x to e^4 times the largest x. Below
e^-18 times the largest x, all other points have the same fall to machine precision."""
OFF = 0.1  # the probability that one of the points is off (an outlier); with several columns, there are enough points
NEGLIGIBLE = 1e-4  # shapes with a smaller share of the weight are left out
SAME = 2.0  # amounts of data that differ by less than this factor count as the same amount
LEAST_SIZES = 4


@dataclass(frozen=True)
class Beliefs:
    """Constants of the forecast, fitted to measured curves by benchmarks/forecasts.py."""

    memory: float = 1.2  # a point's weight falls by a factor of e for this much of ln x below the largest x (`of_runs`)
    damping: float = 0.327  # k of a curve that may stop, and of a curve in the length
    size_damping: float = 0.25  # k of a curve in the size of models with the same amount of data, if it may not stop
    steady_damping: float = 0.15  # k of other curves, such as those whose larger models have more data
    damping_sd: float = 0.141  # standard deviation of k
    noise: float = 0.00166  # standard deviation of ln L about a curve
    noise_dof: float = 0.769  # how many points the belief about the noise is worth
    stops: float = 0.213  # probability that a curve that may stop does stop
    caution: float = 0.731  # the quantile that is the forecast
    caution_with_shares: float = 0.6  # the same with data samples or several lengths, which say more
    widening: float = 1.32  # factor by which the noise found from the points is widened
    misfit: float = 0.2  # sd of the error as a share of the predicted fall, at `AHEAD`; its square grows with distance
    least_noise: float = 0.0045  # standard deviation of ln L; its square is added to the square of the noise found
    growth: float = 0.7  # for every e-fold of x, the curve's error grows by this many times the noise


class Forecast:
    """A prediction of the loss at larger x. If the points have data samples (u), it predicts for x and u. If they have
    runs of several lengths (`horizon`), it predicts for larger x and d.

    Attributes:
        points: The points, as `laws.table` returns them.
        columns: The variables of a prediction: x, x and u, or x and d.

    Raises:
        UserError: There are fewer than `LEAST_SIZES` sizes, or all are nearly equal.
    """

    name = "forecast"
    floor = 0.0  # see `Fit`

    def __init__(self, points: pl.DataFrame, beliefs: Beliefs | None = None) -> None:
        check_places("the forecast", points.select("x").to_numpy(), ("x",), LEAST_SIZES)
        self.points, self.beliefs = points, beliefs or Beliefs()
        shares = "u" in points.columns and points["u"].null_count() == 0 and points["u"].n_unique() > 1
        self._lengths = has_lengths(points)
        self.columns = ("x", "d") if self._lengths else ("x", "u") if shares else ("x",)
        self._is_ahead_V = np.array([name != "u" for name in self.columns])  # whether a column is extrapolated
        may_stop = "may_stop" in points.columns and bool(points["may_stop"].any())
        known = "d" in points.columns and points["d"].null_count() == 0
        same_data = self._lengths or (known and points["d"].max() < SAME * points["d"].min())  # type: ignore[operator]
        steady = self.beliefs.size_damping if same_data else self.beliefs.steady_damping
        self._damping = self.beliefs.damping if may_stop else steady
        self._stops = self.beliefs.stops if may_stop or shares else 0.0
        self._largest_V = points.select(pl.col(*self.columns).max()).to_numpy()[0]
        place_NV = np.log(points.select(self.columns).to_numpy() / self._largest_V)
        shape_SH, log_prior_S = self._grid(-float(place_NV[:, 0].min()))
        y_N, k = np.log(points["y"].to_numpy().astype(float)), 2 * len(self.columns)
        mean_4, sd_4 = (LENGTH_4, LENGTH_SD_4) if self._lengths else (MEAN_4, SD_4)
        prior = Prior(mean_4[:k], sd_4[:k], self.beliefs.noise, self.beliefs.noise_dof)
        off = 0.0 if len(self.columns) > 1 else OFF
        long = LADDER < points["x"].n_unique() > len(points) / 2 and off > 0  # more points per size: separate runs
        errors = [of_runs(place_NV @ self._is_ahead_V, self.beliefs.memory)]
        if long:
            t_N, y_N, errors = of_curve(place_NV[:, 0], y_N, self.beliefs.memory)
            place_NV = t_N[:, None]
        basis_SNK, none_S = self._basis(place_NV, shape_SH), np.zeros(len(shape_SH), dtype=int)
        with np.errstate(divide="ignore"):
            log_prior_O = np.log([1 - off, *[off / len(y_N)] * len(y_N)])
        parts = [Part(basis_SNK, each, log_prior_S, none_S) for each in errors]
        log_ESO = np.array([with_one_off(part, y_N, prior) for part in parts]) + log_prior_O
        if long:  # with many points, keep only the likeliest case: a certain point is off, or none is
            log_ESO[..., np.arange(len(y_N) + 1) != np.logaddexp.reduce(log_ESO, axis=(0, 1)).argmax()] = -np.inf
        weight_ESO = np.exp(log_ESO - log_ESO.max())
        error_G, shape_G, off_G = np.nonzero(weight_ESO > NEGLIGIBLE * weight_ESO.sum())
        self._shape_GH, log_prior_G = shape_SH[shape_G], log_prior_S[shape_G] + log_prior_O[off_G]
        rows = [np.flatnonzero(error_G == number) for number in range(len(errors))]
        parts = [Part(basis_SNK[shape_G[of]], errors[e], log_prior_G[of], off_G[of]) for e, of in enumerate(rows)]
        self._mixture = Mixture(parts, y_N, prior, len(points))

    def predict(self, x: ArrayLike) -> list[Prediction]:
        """The loss at each place, with both 90 % intervals. Places are (P,), or have a column for each of `columns`. If
        x lacks the column of u or d, the largest value of the points is used."""
        x_PV, beliefs, mixture = np.asarray(x, dtype=float), self.beliefs, self._mixture
        x_PV = x_PV[:, None] if x_PV.ndim == 1 else x_PV
        if x_PV.shape[1] < len(self.columns):
            x_PV = np.column_stack([x_PV, np.full(len(x_PV), self._largest_V[-1])])
        place_PV = np.log(x_PV / self._largest_V)
        mean_GP, doubt_GP = mixture.at(self._basis(place_PV, self._shape_GH))
        farther_PV = np.maximum(place_PV, 0.0) * self._is_ahead_V
        here_GP, _ = mixture.at(self._basis(place_PV - farther_PV, self._shape_GH))
        noise_G1, distance_P = mixture.variance_G[:, None], farther_PV.sum(1)
        places = [dict(zip(self.columns, row, strict=True)) for row in x_PV.tolist()]
        best_P = np.log([*map(naive(self.points), places)])
        # The caution grows from nothing at the largest x to its full amount at twice the largest x.
        caution = beliefs.caution if len(self.columns) == 1 else beliefs.caution_with_shares
        beyond_P = np.clip(distance_P / np.log(2), 0, 1)
        log_P = mixture.quantile(0.5 + (caution - 0.5) * beyond_P, mean_GP, np.sqrt(noise_G1 * (1 + doubt_GP)))
        log_P = np.where(beyond_P > 0, np.minimum(log_P, best_P), log_P)
        wide_G1 = beliefs.widening**2 * noise_G1
        new_run_G1 = wide_G1 + beliefs.least_noise**2
        misfit_GP = beliefs.misfit**2 * (mean_GP - here_GP) ** 2 * distance_P / AHEAD
        curve_GP = wide_G1 * doubt_GP + new_run_G1 * (beliefs.growth * distance_P) ** 2 + misfit_GP
        ends = []
        for variance_GP in (curve_GP, curve_GP + new_run_G1):
            for share, inner in (((1 - LEVEL) / 2, np.minimum), ((1 + LEVEL) / 2, np.maximum)):
                ends.append(np.exp(inner(mixture.quantile(share, mean_GP, np.sqrt(variance_GP)), log_P)))
        cautious_P = np.maximum(np.exp(log_P), np.minimum((np.exp(log_P) + ends[3]) / 2, np.exp(best_P)))
        names = ("predicted", "mean_low", "mean_high", "low", "high", "cautious")
        losses = np.column_stack([np.exp(log_P), np.transpose(ends), cautious_P]).tolist()
        return [Prediction(**at, **dict(zip(names, row, strict=True))) for at, row in zip(places, losses, strict=True)]

    def curve(self, x: ArrayLike) -> Array:
        return np.array([prediction.predicted for prediction in self.predict(x)])

    def _grid(self, span: float) -> tuple[Array, Array]:
        """The shapes (k, ln G in units of the largest x, g, the k of lengths), and ln of their priors. With an infinite
        G, the loss never stops falling."""
        step_S = np.linspace(-2.2, 2.2, 11)
        log_prior_S = -(step_S**2) / 2

        def around(damping: float) -> list[tuple[float, float]]:
            return list(zip((damping + self.beliefs.damping_sd * step_S).tolist(), log_prior_S.tolist(), strict=True))

        ends = [(np.inf, 1.0, np.log(1 - self._stops))]
        if self._stops:
            exponents = DATA_EXPONENTS if "u" in self.columns else (0.0,)
            log_each = np.log(self._stops / (STOPS * len(exponents)))
            stop_S = np.linspace(max(-span, FIRST_STOP), FARTHEST_STOP, STOPS)
            ends += [(*end, log_each) for end in product(stop_S, exponents)]
        of_lengths = around(self.beliefs.damping) if self._lengths else [(1.0, 0.0)]
        every = product(around(self._damping), ends, of_lengths)
        grid_G5 = np.array([(k, g, e, of_d, a + b + c) for (k, a), (g, e, b), (of_d, c) in every])
        return grid_G5[:, :4], grid_G5[:, 4]

    def _basis(self, place_PV: Array, shape_GH: Array) -> Array:
        """1 and the fall in x, in units of the fall over `AHEAD`. With data samples, also both times ln u. With lengths
        also the fall in d, alone and times ln x: the effect of data on the fall in x does not fade at large x."""
        k_G1, stop_G1, exponent_G1, of_d_G1 = (shape_GH[:, h : h + 1] for h in range(4))
        data_P = place_PV[:, 1] if len(self.columns) > 1 else np.zeros(len(place_PV))
        stop_G1 = np.where(np.isinf(stop_G1), 1e3, stop_G1)
        size_GP = -np.logaddexp(-2 * place_PV[:, 0], -2 * (stop_G1 + exponent_G1 * data_P)) / 2
        fall_GP, largest_G1 = _fall(k_G1, size_GP), _fall(k_G1, -np.logaddexp(0, -2 * stop_G1) / 2)
        # The falls begin at the largest x. If a curve stops long before it, they would else be nearly equal and huge.
        columns = [np.ones_like(fall_GP), largest_G1 - fall_GP]
        if self._lengths:
            of_d_GP = _fall(of_d_G1, np.broadcast_to(data_P, fall_GP.shape))
            columns += [-of_d_GP, -size_GP / AHEAD * of_d_GP]
        elif len(self.columns) > 1:
            columns += [np.broadcast_to(data_P, fall_GP.shape), -fall_GP * data_P]
        return np.stack(columns, axis=-1)


def _fall(k_G1: Array, ahead_GP: Array) -> Array:
    """How much a curve falls up to a distance beyond the largest x, in units of its fall over `AHEAD`."""
    return -np.expm1(-k_G1 * ahead_GP) / -np.expm1(-k_G1 * AHEAD)
