"""Intervals: users are resampled with replacement, the same users for every size, group and metric (paired).

A statistic is kept as its draws: an array with the statistic itself (every user once), and then the statistic of each
resample. A ratio or a slope is computed from draws entry by entry, and so has draws of its own.
scipy.stats.bootstrap would resample again for each statistic, and the statistics would not be paired.

Shape suffixes: R draws (resamples + 1), U distinct users, C cases, M metrics, V catalogue, K list length.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

RESAMPLES = 1000
CONFIDENCE = 0.95
_BLOCK = 50  # draws computed at once, to bound memory


class Estimate(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float

    @property
    def trend(self) -> str:
        """What the interval of a change says."""
        return "gains" if self.low > 0 else "loses" if self.high < 0 else "does not change measurably"

    def signed(self) -> str:
        """The number and its interval, with signs, as for a change."""
        return self.shown("{:+.4f}".format)

    def shown(self, text: Callable[[float], str]) -> str:
        """The number and its interval, as `text` writes numbers."""
        ends = "undefined" if np.isnan(self.low) else f"{text(self.low)}, {text(self.high)}"
        return f"{text(self.value)} [{ends}]"


class UserResamples:
    """Draws of means and of coverage, over the users of a task; the same for the same users and seed."""

    def __init__(self, users_C: np.ndarray, seed: int) -> None:
        self._users_U = np.unique(users_C)
        n, random = len(self._users_U), np.random.default_rng(seed)
        # How often each user is drawn: once on average, so a byte is enough.
        times_RU = np.ones((RESAMPLES + 1, n), dtype=np.uint8)
        for times_U in times_RU[1:]:
            times_U[:] = np.bincount(random.integers(0, n, n), minlength=n)
        self._blocks = np.array_split(times_RU, -(-len(times_RU) // _BLOCK))

    def mean(self, values_C: np.ndarray, users_C: np.ndarray) -> np.ndarray:
        """Draws of the mean over the cases that have a value (are not nan); nan if a draw has no such case."""
        return self.means([{"": values_C}], users_C)[""]

    def means(self, runs: Sequence[dict[str, np.ndarray]], users_C: np.ndarray) -> dict[str, np.ndarray]:
        """The same for several metrics at once, which takes hardly longer. Values are averaged over the runs first."""
        rows_C = np.searchsorted(self._users_U, users_C)
        values_CM = np.stack([np.mean([run[metric] for run in runs], 0) for metric in runs[0]], 1)
        has_CM = ~np.isnan(values_CM)
        of_cases = np.concatenate([np.where(has_CM, values_CM, 0), has_CM], axis=1)
        columns_U2M = np.stack([np.bincount(rows_C, column_C, len(self._users_U)) for column_C in of_cases.T], 1)
        sums_R2M = np.concatenate([times.astype(np.float64) @ columns_U2M for times in self._blocks])
        sums_RM, numbers_RM = np.split(sums_R2M, 2, axis=1)
        with np.errstate(invalid="ignore"):  # without a value, 0 / 0
            draws_RM = sums_RM / numbers_RM
        return dict(zip(runs[0], draws_RM.T, strict=True))

    def coverage(self, top_CK: np.ndarray, users_C: np.ndarray, n_items: int) -> np.ndarray:
        """Draws of the share of the catalogue that is in at least one list; nan if a draw has no list.

        A resample has fewer distinct users than the sample, so it covers fewer items. The draws are shifted so that
        their mean is the coverage itself.
        """
        rows_C = np.repeat(np.searchsorted(self._users_U, users_C), top_CK.shape[1])
        listed_V, columns = np.unique(top_CK, return_inverse=True)
        shape = (len(self._users_U), len(listed_V))
        listed_UV = sparse.csr_matrix((np.ones(len(rows_C), dtype=np.float32), (rows_C, columns.ravel())), shape)
        draws_R = np.concatenate([((times.astype(np.float32) @ listed_UV) > 0).sum(1) for times in self._blocks])
        draws_R = np.where(draws_R > 0, draws_R / n_items, np.nan)
        draws_R[1:] += draws_R[0] - np.nanmean(draws_R[1:])
        return draws_R.clip(0, 1)


def estimate(draws_R: np.ndarray) -> Estimate:
    """The statistic and its percentile interval. The interval is undefined (nan) if the statistic is undefined, or more
    of the draws than a tail has: the others would look too certain."""
    tails = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    undefined_R = np.isnan(draws_R[1:])
    if np.isnan(draws_R[0]) or undefined_R.mean() > tails[0]:
        return Estimate(float(draws_R[0]), np.nan, np.nan)
    # Each percentile is one of the draws, because a number and infinity cannot be interpolated.
    low, high = np.quantile(draws_R[1:][~undefined_R], tails, method="inverted_cdf")
    return Estimate(float(draws_R[0]), float(low), float(high))
