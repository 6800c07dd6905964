"""The item-to-item graph of `baselines`: what followed the last items, by distance, in closed form from counts.

Shape suffixes: V catalogue, N interactions, T edges, B rows, M last items of all rows, S pairs of a row and an item,
K list length.
"""

import numpy as np
import torch
from torch import Tensor

from lrec.common_order import CommonOrder, Pairs
from lrec.scoring import Scores, places_in_rows

# An edge leads from an item to each of the five that follow it, and weighs 0.8 times as much for each further step; an
# item of the history weighs half for each step back. Whole numbers, so that ties are exact; the two firsts make 1.
EDGES = (625, 500, 400, 320, 256)
STEPS_BACK = (16, 8, 4, 2, 1)
ONE = EDGES[0] * STEPS_BACK[0]
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
        n_items = len(share_V)
        keys_T, weights_T = _edges(users_N, items_N, n_items)
        starts_V1 = np.searchsorted(keys_T, np.arange(n_items + 1) * n_items)
        self._prior = min(1.0, EDGES[-1] * STEPS_BACK[-1] / ONE / (2 * float(share_V.max())))
        self._n_items, self._starts_V1 = n_items, torch.from_numpy(starts_V1).to(device)
        self._to_T = torch.from_numpy(keys_T % n_items).to(device)
        self._weights_T = torch.from_numpy(weights_T).to(device)
        self._share_V = torch.from_numpy(share_V).to(device)
        self._popular = CommonOrder(self._share_V.log().float())

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
        number_M = self._starts_V1[items_M + 1] - self._starts_V1[items_M]
        edge_M = torch.repeat_interleave(number_M)
        edges = self._starts_V1[items_M[edge_M]] + places_in_rows(edge_M, len(items_M))[1]
        weights = self._weights_T[edges] * torch.tensor(STEPS_BACK, device=edges.device)[back_M[edge_M]]
        keys_S, place = (rows_M[edge_M] * self._n_items + self._to_T[edges]).unique(return_inverse=True)
        reached_S = torch.zeros_like(keys_S).index_add_(0, place, weights).double() / ONE
        rows_S, items_S = keys_S // self._n_items, keys_S % self._n_items
        total_B = torch.zeros(len(targets_B), dtype=torch.float64, device=weights.device)
        total_B = total_B.index_add_(0, rows_S, reached_S) + self._prior
        scores_S = (reached_S + self._prior * self._share_V[items_S]).log().float()
        order_S = scores_S.argsort(descending=True, stable=True)
        order_S = order_S[rows_S[order_S].argsort(stable=True)]
        own, scores_S = Pairs(rows_S[order_S], items_S[order_S]), scores_S[order_S]
        target_B = (self._prior * self._share_V[targets_B.clamp(min=0)]).log().float()
        hit_S = own.items_S == targets_B[own.rows_S]
        target_B[own.rows_S[hit_S]] = scores_S[hit_S]
        outside_B = targets_B < 0
        rank_B, top_BK = self._popular.ranked(targets_B, k, own)
        unseen_rank_B, top_unseen_BK = self._popular.ranked(targets_B, k, own, seen)
        n_rows = len(targets_B)
        is_seen_S = torch.isin(own.rows_S * self._n_items + own.items_S, seen.rows_S * self._n_items + seen.items_S)
        ties_B = _half_of_ties(own.rows_S, scores_S, hit_S, n_rows)
        unseen_ties_B = _half_of_ties(own.rows_S[~is_seen_S], scores_S[~is_seen_S], hit_S[~is_seen_S], n_rows)
        return Scores(
            loss_B=(total_B.log() - target_B).masked_fill(outside_B, torch.nan),
            rank_B=rank_B + ties_B,
            rank_unseen_B=unseen_rank_B + unseen_ties_B,
            top_BK=top_BK,
            top_unseen_BK=top_unseen_BK,
        )


def _edges(users_N: np.ndarray, items_N: np.ndarray, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges as from * V + to, ascending, with their weights: the strongest of each item, ties by index."""
    keys_T = weights_T = np.zeros(0, dtype=np.int64)
    for step, weight in enumerate(EDGES, start=1):
        together_N = users_N[:-step] == users_N[step:]
        new_T, counts_T = np.unique(
            items_N[:-step][together_N] * n_items + items_N[step:][together_N], return_counts=True
        )
        both_T, place_T = np.unique(np.concatenate([keys_T, new_T]), return_inverse=True)
        added_T = np.zeros(len(both_T), dtype=np.int64)
        np.add.at(added_T, place_T, np.concatenate([weights_T, counts_T * weight]))
        keys_T, weights_T = both_T, added_T
    from_T = keys_T // n_items
    order_T = np.lexsort((keys_T, -weights_T, from_T))
    place_T = np.arange(len(order_T)) - np.searchsorted(from_T, from_T)
    kept_T = np.sort(order_T[place_T < NEIGHBOURS])
    return keys_T[kept_T], weights_T[kept_T]


def _half_of_ties(rows_S: Tensor, scores_S: Tensor, hit_S: Tensor, n_rows: int) -> Tensor:
    """What turns the place of a target among those that tie with it into its rank: ties count half."""
    half_B = torch.zeros(n_rows, dtype=torch.float64, device=scores_S.device)
    target_B = torch.full((n_rows,), torch.nan, device=scores_S.device)
    place_B = torch.zeros(n_rows, dtype=torch.int64, device=scores_S.device)
    places_S = places_in_rows(rows_S, n_rows)[1]
    target_B[rows_S[hit_S]], place_B[rows_S[hit_S]] = scores_S[hit_S], places_S[hit_S]
    ties_S = scores_S == target_B[rows_S]
    after_S = places_S - place_B[rows_S]
    return half_B.index_add_(0, rows_S, ties_S * after_S.sign().double() / 2)
