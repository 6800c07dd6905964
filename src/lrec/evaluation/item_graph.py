"""The item-to-item graph of `baselines`: what followed the last items, by distance, in closed form from counts.

Shape suffixes: V catalogue, N interactions, T edges, B rows, M last items of all rows (or edges of an item), R items
that rows reach, S pairs of a row and an item, K list length.
"""

import math

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor
from torch.nn import functional as F

from lrec.ranking.best_items import as_integers
from lrec.ranking.common_order import CommonOrder
from lrec.ranking.pairs import Pairs, has_target, places_in_rows
from lrec.ranking.scoring import Scores, above

# An edge leads from an item to each of the five that follow it, and weighs 0.8 times as much for each further step; an
# item of the history weighs half for each step back. Whole numbers, so that ties are exact; the two firsts make 1.
EDGES = (625, 500, 400, 320, 256)
STEPS_BACK = (16, 8, 4, 2, 1)
ONE = EDGES[0] * STEPS_BACK[0]
LEAST = EDGES[-1] * STEPS_BACK[-1] / ONE
LAST = len(STEPS_BACK)  # items of the history that count
NEIGHBOURS = 500  # the strongest edges of an item that are kept


class ItemGraph:
    """Scores log(g_j + c p_j): g_j adds up the edges to j of the last items, p_j is j's share of all interactions.

    c is 1, or less where it takes that for every item that is reached to score above all others: so a list is what is
    reached by its scores, and then what is popular.
    """

    def __init__(self, users_N: np.ndarray, items_N: np.ndarray, share_V: np.ndarray, device: torch.device) -> None:
        """Count the edges.

        Args:
            users_N: Whose interactions they are; a user's follow on each other, in order.
            items_N: Their items, catalogue indices.
            share_V: Each item's share of the interactions, above 0.
            device: Where rows will be scored.
        """
        self._edges_VV = _edges(users_N, items_N, len(share_V))
        self._prior = min(1.0, LEAST / (2 * float(share_V.max())))
        self._share_V = torch.from_numpy(share_V).to(device)
        self._popular = CommonOrder(self._share_V.log().float())
        # What is not reached is in the order of popularity, below all that is.
        self._not_reached_V = math.log(LEAST) - self._popular.rank_V

    def score(self, rows_M: Tensor, items_M: Tensor, back_M: Tensor, targets_B: Tensor, seen: Pairs, k: int) -> Scores:
        """Score every item of the catalogue for every row.

        Args:
            rows_M: The row of each of the last items.
            items_M: The items.
            back_M: Steps from the end of the history, 0 for the last item, below LAST.
            targets_B: The item of each row, -1 outside the catalogue.
            seen: Items that each row has seen.
            k: Length of the lists.
        """
        reached, weights_R = self._reached(rows_M, items_M, back_M, len(targets_B))
        scores_R = (weights_R + self._prior * self._share_V[reached.items_S]).log().float()
        total_B = torch.full(targets_B.shape, self._prior, dtype=torch.float64, device=targets_B.device)
        total_B.index_add_(0, reached.rows_S, weights_R)
        score_B = (self._prior * self._share_V[targets_B.clamp(min=0)]).log().float()
        hit_R = reached.items_S == targets_B[reached.rows_S]
        score_B[reached.rows_S[hit_R]] = scores_R[hit_R]
        rank_B, unseen_rank_B = self._ranks(reached, scores_R, targets_B, seen)
        top_BK, top_unseen_BK = self._lists(reached, scores_R, len(targets_B), seen, k)
        loss_B = (total_B.log() - score_B).masked_fill(targets_B < 0, torch.nan)
        return Scores(loss_B, rank_B, unseen_rank_B, top_BK, top_unseen_BK)

    def _ranks(self, reached: Pairs, scores_R: Tensor, targets_B: Tensor, seen: Pairs) -> tuple[Tensor, Tensor]:
        """Rank of each row's target, among all items and among those that the row has not seen."""
        item_B, rows_R, values_R = targets_B.clamp(min=0), reached.rows_S, scores_R.double()
        hit_R = reached.items_S == targets_B[rows_R]
        target_B, rank_B = self._not_reached_V[item_B], self._popular.rank_V[item_B]
        target_B[rows_R[hit_R]] = values_R[hit_R]
        rank_B[rows_R[hit_R]] = 0.5  # to which it adds a half itself, as what ties does
        # Items that are reached rise above those that are not: the difference of what `above` gives, in fewer passes.
        target_R = target_B[rows_R]
        risen_R = (values_R - target_R).sign_() - (self._not_reached_V[reached.items_S] - target_R).sign_()
        rank_B.index_add_(0, rows_R, risen_R.div_(2))
        keys_R, keys_S = (pairs.rows_S * len(self._share_V) + pairs.items_S for pairs in (reached, seen))
        places_S = torch.searchsorted(keys_R, keys_S)
        is_reached_S = F.pad(keys_R, (0, 1), value=-1)[places_S] == keys_S
        values_S = torch.where(is_reached_S, F.pad(values_R, (0, 1))[places_S], self._not_reached_V[seen.items_S])
        unseen_rank_B = rank_B.index_add(0, seen.rows_S, -above(values_S, target_B[seen.rows_S]))
        outside_B = targets_B < 0
        left_out_B = outside_B | has_target(seen, targets_B)
        return rank_B.masked_fill(outside_B, torch.inf), unseen_rank_B.masked_fill(left_out_B, torch.inf)

    def _lists(self, reached: Pairs, scores_R: Tensor, n_rows: int, seen: Pairs, k: int) -> tuple[Tensor, Tensor]:
        """The best k of each row, of all items and of those that the row has not seen."""
        order_R = (reached.rows_S * 2**33 - as_integers(scores_R)).argsort(stable=True)
        nth_R = places_in_rows(reached.rows_S, n_rows)[1]
        enough_B = torch.bincount(seen.rows_S, minlength=n_rows) + k  # those that the row has seen are left out
        best, enough = (
            Pairs(reached.rows_S[kept_R], reached.items_S[order_R[kept_R]])
            for kept_R in (nth_R < k, nth_R < enough_B[reached.rows_S])
        )
        return self._popular.lists(n_rows, k, best), self._popular.lists(n_rows, k, enough, seen)

    def _reached(self, rows_M: Tensor, items_M: Tensor, back_M: Tensor, n_rows: int) -> tuple[Pairs, Tensor]:
        """The items that the edges of each row's last items lead to, rows and items ascending, and g of each."""
        last = np.array(STEPS_BACK)[back_M.cpu().numpy()], (rows_M.cpu().numpy(), items_M.cpu().numpy())
        reached_BV = coo_array(last, shape=(n_rows, len(self._share_V))).tocsr() @ self._edges_VV
        reached_BV.sort_indices()
        arrays = np.repeat(np.arange(n_rows), np.diff(reached_BV.indptr)), reached_BV.indices, reached_BV.data / ONE
        rows_R, items_R, weights_R = (torch.from_numpy(array).to(rows_M.device) for array in arrays)
        return Pairs(rows_R, items_R.long()), weights_R


def _edges(users_N: np.ndarray, items_N: np.ndarray, n_items: int) -> csr_array:
    """Weights of the edges from each item (row) to others: the strongest of each, ties by index."""
    edges_VV = csr_array((n_items, n_items), dtype=np.int64)
    for step, weight in enumerate(EDGES, start=1):
        together_N = users_N[:-step] == users_N[step:]
        pairs = items_N[:-step][together_N], items_N[step:][together_N]
        edges_VV += coo_array((np.full(len(pairs[0]), weight), pairs), shape=edges_VV.shape).tocsr()
    return _strongest(edges_VV)


def _strongest(edges_VV: csr_array) -> csr_array:
    """No more than NEIGHBOURS edges of each item, those of the largest weights."""
    starts_V1, kept_T = edges_VV.indptr, np.ones(edges_VV.nnz, dtype=bool)
    for item in np.flatnonzero(np.diff(starts_V1) > NEIGHBOURS):
        row = slice(starts_V1[item], starts_V1[item + 1])
        weights_M = edges_VV.data[row]
        least = np.partition(weights_M, -NEIGHBOURS)[-NEIGHBOURS]
        kept_T[row] = weights_M > least
        ties_M = starts_V1[item] + np.flatnonzero(weights_M == least)
        kept_T[ties_M[: NEIGHBOURS - np.count_nonzero(kept_T[row])]] = True
    starts_V1 = np.append(0, np.cumsum(kept_T))[starts_V1]
    return csr_array((edges_VV.data[kept_T], edges_VV.indices[kept_T], starts_V1), shape=edges_VV.shape)
