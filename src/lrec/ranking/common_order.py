"""Ranks and lists where all rows have the same scores, but for a few items of each.

Shape suffixes: B rows, V catalogue, N interactions, S pairs of a row and an item, K list length.
"""

import torch
from torch import Tensor

from lrec.ranking.pairs import Pairs, has_target, places_in_rows


def newest_first(rows_N: Tensor, items_N: Tensor, n_items: int) -> Pairs:
    """The distinct items of each row, the last one first; rows ascend, and their items come oldest first."""
    keys_S, which_N = (rows_N * n_items + items_N).unique(return_inverse=True)
    places_N = torch.arange(len(rows_N), device=rows_N.device)
    last_S = torch.zeros_like(keys_S).scatter_reduce(0, which_N, places_N, "amax")
    order_S = (keys_S // n_items * len(rows_N) - last_S).argsort()
    return Pairs(keys_S[order_S] // n_items, keys_S[order_S] % n_items)


class CommonOrder:
    """Exact ranks and lists of a scorer whose scores are those of all rows, but for items that a row lists first.

    In closed form, without a score for every row and item. As in `scoring.score`, a tie is half a rank, and lists break
    ties by item index. Where no row lists items first, the host never waits for a device.

    Attributes:
        rank_V: Rank of each item.
        place_V: Its place in the order of scores, from 0; ties by index.
        first_place_V: The first place of those that tie with it ...
        end_place_V: ... and the place after their last one.
    """

    def __init__(self, scores_V: Tensor) -> None:
        """Order the items; those with a score of -inf are not listed, and as a target they are a miss."""
        self._scores_V = scores_V
        self._order_V = scores_V.argsort(descending=True, stable=True)
        self.place_V = self._order_V.argsort()
        ascending_V = scores_V.sort().values
        self.first_place_V = len(scores_V) - torch.searchsorted(ascending_V, scores_V, right=True)
        self.end_place_V = len(scores_V) - torch.searchsorted(ascending_V, scores_V)
        rank_V = 1 + (self.first_place_V + self.end_place_V - 1).double() / 2
        self.rank_V = rank_V.masked_fill(scores_V == -torch.inf, torch.inf)
        self._n_listed = (scores_V > -torch.inf).sum()

    def ranked(
        self, targets_B: Tensor, k: int, first: Pairs | None = None, without: Pairs | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rank of each row's target, inf for a miss, and each row's best k items, -1 in unused slots.

        Args:
            targets_B: Item of each row, -1 outside the catalogue.
            k: Length of the lists.
            first: Items that a row lists before all others, in this order, row after row.
            without: Items that are left out of a row.
        """
        own, off = self._off_the_order(first, without)
        rank_B = self._ranks(targets_B, own, off)
        if without is not None:
            rank_B = rank_B.masked_fill(has_target(without, targets_B), torch.inf)
        return rank_B, self._lists(len(targets_B), k, own, off)

    def lists(self, n_rows: int, k: int, first: Pairs | None = None, without: Pairs | None = None) -> Tensor:
        """Only the lists of `ranked`."""
        return self._lists(n_rows, k, *self._off_the_order(first, without))

    def _off_the_order(self, first: Pairs | None, without: Pairs | None) -> tuple[Pairs, Pairs]:
        """What a row lists first, and all that is off the common order: that, and what the row leaves out."""
        none_S = torch.zeros(0, dtype=torch.int64, device=self._scores_V.device)
        nothing = Pairs(none_S, none_S)
        if first is None:
            return nothing, without or nothing
        without = without or nothing
        n_items = len(self._scores_V)
        keys_S, without_S = (pairs.rows_S * n_items + pairs.items_S for pairs in (first, without))
        kept_S = (self._scores_V[first.items_S] > -torch.inf) & ~_is_among(keys_S, without_S)
        own = Pairs(first.rows_S[kept_S], first.items_S[kept_S])
        return own, Pairs(torch.cat([own.rows_S, without.rows_S]), torch.cat([own.items_S, without.items_S]))

    def _ranks(self, targets_B: Tensor, own: Pairs, off: Pairs) -> Tensor:
        item_B = targets_B.clamp(min=0)
        own_B, place_S = places_in_rows(own.rows_S, len(targets_B))
        score_S, target_score_S = self._scores_V[off.items_S], self._scores_V[item_B][off.rows_S]
        above_S = (score_S > target_score_S) + (score_S == target_score_S).double() / 2
        rank_B = (self.rank_V[item_B] + own_B).index_add(0, off.rows_S, -above_S)
        own_rank_S = (1 + place_S).double() * (own.items_S == targets_B[own.rows_S])
        own_rank_B = torch.zeros_like(rank_B).index_add_(0, own.rows_S, own_rank_S)
        return torch.where(own_rank_B > 0, own_rank_B, rank_B).masked_fill(targets_B < 0, torch.inf)

    def _lists(self, n_rows: int, k: int, own: Pairs, off: Pairs) -> Tensor:
        n_items = len(self._scores_V)
        own_B, place_S = places_in_rows(own.rows_S, n_rows)
        keys_S = off.rows_S * n_items + self.place_V[off.items_S]
        if len(own.rows_S) > 0:
            keys_S = keys_S[own_B[off.rows_S] < k]  # only rows whose own items leave room for others
        keys_S = keys_S.sort().values
        rows_S, places_S = keys_S // n_items, keys_S % n_items
        # In front of the j-th item of the rest are off the order those that have at most j of the rest in front.
        rest_in_front_S = places_S - places_in_rows(rows_S, n_rows)[1]
        off_BK = _counted(rows_S, rest_in_front_S, n_rows, k)
        columns_K = torch.arange(k, device=keys_S.device)
        places_BK = columns_K + off_BK.cumsum(1)
        rest_BK = self._order_V[places_BK.clamp(max=n_items - 1)].masked_fill(places_BK >= self._n_listed, -1)
        top_BK = rest_BK.gather(1, (columns_K - own_B[:, None]).clamp(min=0))
        if len(own.rows_S) > 0:
            near_S = place_S < k
            top_BK[own.rows_S[near_S], place_S[near_S]] = own.items_S[near_S]
        return top_BK


def _counted(rows_S: Tensor, columns_S: Tensor, n_rows: int, k: int) -> Tensor:
    """How often each row has each of the first k columns."""
    places_S = rows_S * (k + 1) + columns_S.clamp(max=k)  # a last column for all others
    counts_N = torch.zeros(n_rows * (k + 1), dtype=torch.int64, device=rows_S.device)
    return counts_N.index_add_(0, places_S, torch.ones_like(places_S)).view(n_rows, k + 1)[:, :k]


def _is_among(keys_N: Tensor, some_S: Tensor) -> Tensor:
    """Which keys are among some; faster than torch.isin where both are many."""
    if len(some_S) == 0:
        return torch.zeros_like(keys_N, dtype=torch.bool)
    sorted_S = some_S.sort().values
    return sorted_S[torch.searchsorted(sorted_S, keys_N).clamp(max=len(sorted_S) - 1)] == keys_N
