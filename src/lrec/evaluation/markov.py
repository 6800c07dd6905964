"""The Markov chain of `baselines`, in closed form: no pass over the catalogue for a row.

Shape suffixes: V catalogue, T distinct transitions, B rows, S pairs of a row and an item, K list length.
"""

import numpy as np
import torch
from torch import Tensor

from lrec.ranking.common_order import CommonOrder
from lrec.ranking.pairs import Pairs, has_target, places_in_rows
from lrec.ranking.scoring import Scores, above


class MarkovChain:
    """Scores log(n_ij + p_j): how often j followed i, and j's share of all interactions.

    Whatever followed i once scores above 0, and everything else below: so a list is i's followers by their scores, and
    then what is popular. The shares and counts after i add up to 1 + n_i.
    """

    def __init__(self, from_N: np.ndarray, to_N: np.ndarray, share_V: np.ndarray, device: torch.device) -> None:
        """Count the transitions.

        Args:
            from_N: Item of each transition, a catalogue index.
            to_N: The item that followed.
            share_V: Each item's share of the interactions, above 0.
            device: Where rows will be scored.
        """
        n_items = len(share_V)
        pairs_T, counts_T = np.unique(from_N * n_items + to_N, return_counts=True)
        scores_T = np.log(counts_T + share_V[pairs_T % n_items]).astype(np.float32)
        self._n_items = n_items
        self._pairs_T, self._scores_T = (torch.from_numpy(array).to(device) for array in (pairs_T, scores_T))
        from_T, next_T = self._pairs_T // n_items, self._pairs_T % n_items
        self._number_V = torch.bincount(from_T, minlength=n_items)
        self._starts_V = self._number_V.cumsum(0) - self._number_V
        shares_V = torch.from_numpy(np.log(share_V)).float().to(device)
        self._popularity_V, self._popular = shares_V, CommonOrder(shares_V)
        counted_V = torch.from_numpy(np.bincount(from_N, minlength=n_items)).to(device)
        self._log_sum_V = counted_V.double().log1p()
        # Each item's followers, the best first; ties by index, since a stable sort keeps their order.
        order_T = self._scores_T.argsort(descending=True, stable=True)
        order_T = order_T[from_T[order_T].argsort(stable=True)]
        self._best_T, self._rank_T = next_T[order_T], _ranks_in_rows(from_T, self._scores_T, order_T)
        # The places of each item's followers in the order of popularity, ascending.
        self._places_T = (from_T * n_items + self._popular.place_V[next_T]).sort().values

    def score(self, last_B: Tensor, targets_B: Tensor, seen: Pairs, k: int) -> Scores:
        """Score every item of the catalogue for every row, after each row's last item."""
        n_rows, item_B = len(last_B), targets_B.clamp(min=0)
        target_B, place_B = self._of_pairs(last_B, item_B)
        rank_B = torch.where(place_B >= 0, self._rank_T[place_B], self._rank_among_the_rest(last_B, item_B))
        seen_scores_S, _ = self._of_pairs(last_B[seen.rows_S], seen.items_S)
        above_S = above(seen_scores_S, target_B[seen.rows_S]).double()
        unseen_rank_B = rank_B.index_add(0, seen.rows_S, -above_S)
        seen_B = torch.bincount(seen.rows_S, minlength=n_rows)
        outside_B = targets_B < 0
        followers = self._best(last_B, torch.full_like(last_B, k))
        enough = self._best(last_B, seen_B + k)  # those that the row has seen are left out
        return Scores(
            loss_B=(self._log_sum_V[last_B] - target_B).masked_fill(outside_B, torch.nan),
            rank_B=rank_B.masked_fill(outside_B, torch.inf),
            rank_unseen_B=unseen_rank_B.masked_fill(outside_B | has_target(seen, targets_B), torch.inf),
            top_BK=self._popular.lists(n_rows, k, followers),
            top_unseen_BK=self._popular.lists(n_rows, k, enough, seen),
        )

    def _of_pairs(self, last_S: Tensor, items_S: Tensor) -> tuple[Tensor, Tensor]:
        """Score of each item after another, and the transition's place, -1 where there is none."""
        keys_S = last_S * self._n_items + items_S
        places_S = torch.searchsorted(self._pairs_T, keys_S).clamp(max=len(self._pairs_T) - 1)
        places_S = places_S.masked_fill(self._pairs_T[places_S] != keys_S, -1)
        scores_S = torch.where(places_S >= 0, self._scores_T[places_S], self._popularity_V[items_S])
        return scores_S, places_S

    def _rank_among_the_rest(self, last_B: Tensor, item_B: Tensor) -> Tensor:
        """The rank of an item that never followed: after all followers, and without those among the more popular."""
        more_B, as_much_B = (
            torch.searchsorted(self._places_T, last_B * self._n_items + places_V[item_B]) - self._starts_V[last_B]
            for places_V in (self._popular.first_place_V, self._popular.end_place_V)
        )
        return self._number_V[last_B] + self._popular.rank_V[item_B] - (more_B + as_much_B).double() / 2

    def _best(self, last_B: Tensor, at_most_B: Tensor) -> Pairs:
        """The best followers of each row's last item, at most so many."""
        rows_S = torch.repeat_interleave(torch.minimum(self._number_V[last_B], at_most_B))
        places_S = self._starts_V[last_B[rows_S]] + places_in_rows(rows_S, len(last_B))[1]
        return Pairs(rows_S, self._best_T[places_S])


def _ranks_in_rows(rows_T: Tensor, scores_T: Tensor, order_T: Tensor) -> Tensor:
    """The rank of each score in its row, ties half; `order_T` puts rows one after the other, the best scores first."""
    rows_T, ordered_T = rows_T[order_T], scores_T[order_T]
    changes_T = torch.ones_like(rows_T, dtype=torch.bool)
    changes_T[1:] = (rows_T[1:] != rows_T[:-1]) | (ordered_T[1:] != ordered_T[:-1])
    group_T = changes_T.cumsum(0) - 1
    size_G = torch.bincount(group_T)
    places_T = places_in_rows(rows_T, int(rows_T.max()) + 1 if len(rows_T) else 0)[1]
    rank_G = 1 + places_T[changes_T].double() + (size_G - 1).double() / 2
    return torch.empty_like(rank_G[group_T]).scatter_(0, order_T, rank_G[group_T])
