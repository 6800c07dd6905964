"""The best items of each row by scores in bfloat16, and still exact: these say which items may be among the best, and
float32 says which ones are.

Processors with instructions for bfloat16 compute its products in half the time, and nearly all of a list's time goes
into products of items that are nowhere near its end.

Shape suffixes: B rows, D width, C items of a piece, H rows of the table that are held here, N pairs of a row and an
item.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lrec.ranking.best_items import BestAboveThreshold, below_kth

# With fewer rows, rounding the table takes longer than bfloat16 saves; with fewer items for each place of a list,
# scoring those of the shortlist does.
LEAST_ROWS, LEAST_ITEMS = 64, 1000
# Computing a score alone takes so many times as long as one among all of a piece.
ALONE = 16
# Numbers of the rows that are read to compute some alone: as many as fit into a cache.
GATHERED = 2**16
# A half of the distance from one number to the next, as a share of the number.
_ROUNDING = 2.0**-8


def pays(n_rows: int, table_HD: Tensor, k: int) -> bool:
    """Whether this processor finds lists of k items faster so."""
    large = n_rows >= LEAST_ROWS and len(table_HD) >= LEAST_ITEMS * k
    return large and table_HD.dtype == torch.float32 and _has_instructions()


class Shortlist(BestAboveThreshold):
    """The same of scores in bfloat16; it may change them."""

    def __init__(self, hidden_BD: Tensor, table_HD: Tensor, first: int, k: int) -> None:
        """Name what is scored, in float32, and the first item of the table."""
        super().__init__(len(hidden_BD), k)
        self._hidden_BD, self._table_HD, self._first = hidden_BD, table_HD, first
        # Each of two factors is rounded; beside that float32 rounds as many sums as there are products.
        largest_error = 2 * _ROUNDING * 1.01 + hidden_BD.shape[1] * 2.0**-22
        self._error_of_unit_B1 = torch.linalg.vector_norm(hidden_BD, dim=1, keepdim=True).numpy() * largest_error

    def add(self, scores_BC: Tensor, start: int) -> None:
        """See `Best.add`; an item to be left out has -inf."""
        n_items = scores_BC.shape[1]
        table_CD = self._table_HD[start - self._first :][:n_items]
        error_B1 = self._error_of_unit_B1 * float(torch.linalg.vector_norm(table_CD, dim=1).max())
        places_N = self._may_be_listed(scores_BC, error_B1) if np.isfinite(error_B1).all() else None
        if places_N is None or len(places_N) * ALONE > scores_BC.numel():
            exact_BC = self._hidden_BD @ table_CD.T
            super().add(exact_BC.masked_fill_(scores_BC == -math.inf, -math.inf), start)
            return
        rows_N, columns_N = np.divmod(places_N, n_items)
        scores_N = self._exact(rows_N, columns_N, table_CD)
        (above_N,) = (scores_N > self._least_B1[rows_N, 0]).nonzero()
        self.keep(rows_N[above_N], scores_N[above_N], start + columns_N[above_N])

    def _may_be_listed(self, scores_BC: Tensor, error_B1: np.ndarray) -> np.ndarray:
        """Places, row after row, of the scores that may be above the threshold, where they are wrong by so much."""
        if self.is_empty and scores_BC.shape[1] >= 2 * self.k:
            least_B1 = below_kth(scores_BC.float(), self.k)
            self._least_B1 = least_B1 - np.abs(least_B1) * _ROUNDING - error_B1
        # Rounding keeps order: what is no less rounds to no less.
        least = torch.from_numpy(self._least_B1 - error_B1).bfloat16()
        if bool((least > 0).all()):  # the bits of such numbers are in their order, and NumPy compares integers faster
            may_be_BC = scores_BC.view(torch.int16).numpy() >= least.view(torch.int16).numpy()
        else:
            may_be_BC = ((scores_BC > -math.inf) & (scores_BC >= least)).numpy()
        (places_N,) = may_be_BC.reshape(-1).nonzero()
        return places_N

    def _exact(self, rows_N: np.ndarray, columns_N: np.ndarray, table_CD: Tensor) -> np.ndarray:
        """Scores in float32, each computed in the same way whatever is beside it."""
        hidden_BD, rows_CD, scores_N = self._hidden_BD.numpy(), table_CD.numpy(), np.empty(len(rows_N), np.float32)
        step = max(GATHERED // hidden_BD.shape[1], 1)
        for start in range(0, len(rows_N), step):
            some = slice(start, start + step)
            np.einsum("nd,nd->n", hidden_BD.take(rows_N[some], 0), rows_CD.take(columns_N[some], 0), out=scores_N[some])
        return scores_N


@cache
def _has_instructions() -> bool:
    """Whether the processor has some for products in bfloat16."""
    return any(value is True and "bf16" in name for name, value in torch.cpu.get_capabilities().items())
