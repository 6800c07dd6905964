"""Scores of the baselines `markov` and `item-graph`, from what followed the last items of a history in training.

Shape suffixes: V catalogue, N interactions, T edges, B rows, M last items of all rows (or edges of an item), R items
that rows reach.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from lrec.ranking.best_items import Pairs
from lrec.ranking.common_order import CommonOrder, Leading
from lrec.ranking.scoring import Scores


class Followers:
    """Scores log(g_j + c p_j): g_j adds up the edges from the last items to j, p_j is j's share of all interactions.

    An edge leads from an item to each item that followed it. Items that an edge reaches score above all others, so a
    list has the reached items by score, and then the other items by popularity.
    """

    def __init__(
        self,
        edges_VV: csr_array,
        share_V: np.ndarray,
        device: torch.device,
        prior: float = 1.0,
        one: int = 1,
        weights_back: Sequence[int] = (1,),
    ) -> None:
        """`prior` is c. `weights_back` has the weights of a history's last item, the item before it, and so on. g is
        the sum of item weight * edge weight / `one`. Weights are whole numbers, so that ties are exact."""
        self._edges_VV, self._one, self._weights_back = edges_VV, one, np.array(weights_back)
        self._prior, self._device = prior, device
        self._prior_V = torch.from_numpy(prior * share_V).to(device)
        self._popular = CommonOrder(torch.from_numpy(share_V).to(device))

    def score(self, items_BL: Tensor, last_M: Tensor, targets_M: Tensor, seen: Pairs, k: int) -> Scores:
        """Score every catalogue item for every target; last_M is the flat index of the last item before each target."""
        rows_R, items_R, weights_R = self._reached(items_BL, last_M)
        values_R = weights_R + self._prior_V[items_R]
        value_M = self._prior_V[targets_M.clamp(min=0)]
        hit_R = items_R == targets_M[rows_R]
        value_M[rows_R[hit_R]] = values_R[hit_R]
        total_M = torch.full_like(value_M, self._prior).index_add_(0, rows_R, weights_R)
        loss_M = total_M.log() - value_M.log().float()
        ranked = self._popular.ranked(targets_M, k, Leading(rows_R, items_R, values_R), seen)
        return Scores(loss_M.masked_fill(targets_M < 0, torch.nan), *ranked)

    def _reached(self, items_BL: Tensor, last_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The items that edges reach from the last items before each target: rows and items, ascending, and their g."""
        items_N, last_N = items_BL.flatten().cpu().numpy(), last_M.cpu().numpy()
        back = np.arange(len(self._weights_back))
        rows_M, back_M = np.nonzero(back <= (last_N % items_BL.shape[1])[:, None])
        read = self._weights_back[back_M], (rows_M, items_N[last_N[rows_M] - back_M])
        shape = len(last_N), self._edges_VV.shape[0]
        reached_BV = coo_array(read, shape=shape).tocsr() @ self._edges_VV
        reached_BV.sort_indices()
        rows_R = np.repeat(np.arange(len(last_N)), np.diff(reached_BV.indptr))
        found = rows_R, reached_BV.indices.astype(np.int64), reached_BV.data / self._one
        rows, items, weights = (torch.from_numpy(values_R).to(self._device) for values_R in found)
        return rows, items, weights


def edges_of(
    users_N: np.ndarray, items_N: np.ndarray, n_items: int, weights: Sequence[int] = (1,), most: int | None = None
) -> csr_array:
    """The edges between items of the same user; `users_N` and `items_N` are in the order of the interactions. `weights`
    has the weight of an edge to the next item, to the item after it, and so on. An item keeps its `most` strongest."""
    edges_VV = csr_array((n_items, n_items), dtype=np.int64)
    for step, weight in enumerate(weights, start=1):
        together_N = users_N[:-step] == users_N[step:]
        pairs = items_N[:-step][together_N], items_N[step:][together_N]
        edges_VV += coo_array((np.full(len(pairs[0]), weight), pairs), shape=edges_VV.shape).tocsr()
    return edges_VV if most is None else _strongest(edges_VV, most)


def bytes_to_count(n_rows: int, n_items: int, steps: int) -> int:
    """The most memory that counting takes: measured bytes for each row, and for each edge that `edges_of` can find."""
    return 64 * n_rows + 36 * min(steps * n_rows, n_items**2)


def _strongest(edges_VV: csr_array, most: int) -> csr_array:
    """At most `most` edges of each item: those with the largest weights, ties by index."""
    starts_V1, kept_T = edges_VV.indptr, np.ones(edges_VV.nnz, dtype=bool)
    for item in np.flatnonzero(np.diff(starts_V1) > most):
        row = slice(starts_V1[item], starts_V1[item + 1])
        weights_M = edges_VV.data[row]
        least = np.partition(weights_M, -most)[-most]
        kept_T[row] = weights_M > least
        ties_M = starts_V1[item] + np.flatnonzero(weights_M == least)
        kept_T[ties_M[: most - np.count_nonzero(kept_T[row])]] = True
    starts_V1 = np.append(0, np.cumsum(kept_T))[starts_V1]
    return csr_array((edges_VV.data[kept_T], edges_VV.indices[kept_T], starts_V1), shape=edges_VV.shape)
