"""Equivalent parameters: how many times the parameters would lower the loss as much as another change does.

The curve of a ladder gives the loss of each size. Between trained sizes, it interpolates the measured losses in ln N.
If a larger size did worse than a smaller one, it has the smaller size's loss. Beyond the largest size, it falls as the
forecast does. A change that lowers the loss of size N0 to the loss of size N is worth N / N0 times the parameters. Two
changes together are expected to be worth the product: their logarithms add.

Shapes: S sizes, G places of the grid, A places from the largest size on, C curves: middle and both ends.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy.special import stdtrit

from lrec.laws.forecast import Beliefs, Forecast
from lrec.laws.intervals import LEVEL
from lrec.laws.law import Array

REACH = 10.0  # the curve ends at this many times the largest trained size
PLACES = 1000


class Noise(NamedTuple):
    """The standard deviation of ln L between runs that differ only in their seed, and its degrees of freedom."""

    sd: float
    dof: float

    @property
    def quantile(self) -> float:
        """How many standard deviations a 90 % interval has on each side, by Student's t."""
        return float(stdtrit(self.dof, (1 + LEVEL) / 2))


def noise_of(groups: Sequence[Sequence[float]]) -> Noise:
    """The noise, from groups of losses that differ only in the seed and from the belief about it (`Beliefs.noise`)."""
    believed, logs = Beliefs(), [np.log(group) for group in groups]
    dof = believed.noise_dof + sum(len(log_R) - 1 for log_R in logs)
    squares = believed.noise_dof * believed.noise**2 + sum(float(((log_R - log_R.mean()) ** 2).sum()) for log_R in logs)
    return Noise(math.sqrt(squares / dof), dof)


class Worth(NamedTuple):
    """The worth in times the parameters, with its 90 % interval; inf beyond the curve, 0 below the smallest size."""

    times: float
    low: float
    high: float


class LadderCurve:
    """The loss of a ladder by size, up to `REACH` times the largest size. x_S are the trained sizes, ascending, and
    loss_S the loss of each, in nats. `may_stop`: whether larger sizes may stop lowering the loss, for example because
    runs saw their data many times. UserError if there are too few sizes for a forecast (four)."""

    def __init__(self, x_S: Array, loss_S: Array, may_stop: bool = False) -> None:
        points = pl.DataFrame({"x": x_S, "y": loss_S}).with_columns(may_stop=may_stop, d=1.0)  # all have the same data
        largest = float(x_S[-1])
        evenly_G = np.linspace(math.log(x_S[0]), math.log(REACH * largest), PLACES)
        self._t_G = np.union1d(evenly_G, np.log(x_S))
        known_G = np.interp(self._t_G, np.log(x_S), np.minimum.accumulate(loss_S))
        # The forecast's fall from the largest size on. Smaller sizes share the place of the largest: there, it is zero.
        t_A, of_G = np.unique(np.maximum(self._t_G, math.log(largest)), return_inverse=True)
        expected_AC = np.array([(p.predicted, p.mean_low, p.mean_high) for p in Forecast(points).predict(np.exp(t_A))])
        middle_G, low_G, high_G = (expected_AC - expected_AC[0])[of_G].T
        ends = middle_G, np.minimum(middle_G, low_G), np.maximum(middle_G, high_G)
        self._middle_G, self._low_G, self._high_G = (np.minimum.accumulate(known_G + fall_G) for fall_G in ends)

    def loss(self, x: float) -> float:
        """The expected loss at a size. A size beyond the curve (also 0 and inf) has the loss at the curve's end."""
        return float(np.interp(math.log(x) if x > 0 else -math.inf, self._t_G, self._middle_G))

    def worth(self, x: float, loss: float, error: float) -> Worth:
        """The worth of lowering the loss of size x to `loss`, which is known up to ± `error` (90 %)."""
        middle = self._place(self._middle_G, loss)
        least = self._place(self._middle_G, loss + error), self._place(self._low_G, loss)
        most = self._place(self._middle_G, loss - error), self._place(self._high_G, loss)
        low, high = (math.hypot(*(end - middle for end in ends)) for ends in (least, most))
        return Worth(*(self._times(t, x) for t in (middle, middle - low, middle + high)))

    def together(self, x: float, worths: Sequence[Worth]) -> Worth:
        """The expected worth of several changes together: the product. In logarithms, the distance from it to each end
        of its interval is the root of the sum of the squares of the changes' distances."""
        t, start, end = math.log(x), float(self._t_G[0]), float(self._t_G[-1])
        logs = [[min(max(t + math.log(n) if n > 0 else start, start), end) - t for n in worth] for worth in worths]
        total = sum(times for times, _, _ in logs)
        low = math.hypot(*(times - low for times, low, _ in logs))
        high = math.hypot(*(high - times for times, _, high in logs))
        return Worth(*(self._times(t + each, x) for each in (total, total - low, total + high)))

    def _place(self, curve_G: Array, loss: float) -> float:
        """ln of the smallest size that reaches a loss; the end of the curve if no size does."""
        return float(self._t_G[min(int(np.searchsorted(-curve_G, -loss)), len(curve_G) - 1)])

    def _times(self, t: float, x: float) -> float:
        if t >= self._t_G[-1]:
            return math.inf
        return 0.0 if t <= self._t_G[0] else math.exp(t) / x
