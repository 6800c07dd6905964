"""Ranks and lists if all rows have the same scores, except for a few items in each row. Shape suffixes: B rows, V
catalogue, N interactions, R items that lead in rows, S pairs of a row and an item, K list length."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lrec.ranking.best_items import Pairs, has_target, places_in_rows
from lrec.ranking.scoring import Scores


class Leading(NamedTuple):
    """Items that rows list before all others, in the order of these scores. Rows ascend, and so do the items in a row.
    All other items of a row rank below its leading items."""

    rows_R: Tensor
    items_R: Tensor
    scores_R: Tensor  # float64, 0 or more


def newest_first(rows_N: Tensor, items_N: Tensor, n_items: int) -> Leading:
    """Let the items of each row lead, the newest first. Rows ascend, and the items of a row come oldest first."""
    keys_R, which_N = (rows_N * n_items + items_N).unique(return_inverse=True)
    number_B = torch.bincount(rows_N)
    place_N = torch.arange(len(rows_N), device=rows_N.device) - (number_B.cumsum(0) - number_B)[rows_N]
    last_R = torch.zeros_like(keys_R).scatter_reduce(0, which_N, place_N, "amax")
    return Leading(keys_R // n_items, keys_R % n_items, last_R.double())


class CommonOrder:
    """Exact ranks and lists of a scorer that gives all rows the same scores, except for the items that lead in a row.

    They have a closed form, without a score for every row and item. As in `scoring.score`, a tie adds half a rank, and
    lists break ties by item index. If nothing leads, the host never waits for a device.
    """

    def __init__(self, scores_V: Tensor) -> None:
        """Order the items. An item with a score of -inf is not listed, and it is a miss if it is the target."""
        n_items = len(scores_V)
        self._order_V = scores_V.argsort(descending=True, stable=True)
        self._place_V = self._order_V.argsort()
        ascending_V = scores_V.sort().values
        higher_V = n_items - torch.searchsorted(ascending_V, scores_V, right=True)
        as_high_V = n_items - torch.searchsorted(ascending_V, scores_V)
        listed_V = scores_V > -torch.inf
        self._n_listed = listed_V.sum()
        self._rank_V = (1 + (higher_V + as_high_V - 1).double() / 2).masked_fill(~listed_V, torch.inf)

    def ranked(self, targets_B: Tensor, k: int, leading: Leading | None = None, seen: Pairs | None = None) -> Scores:
        """Rank each row's target, -1 if outside the catalogue, and list the row's best k items; losses are nan."""
        nothing = torch.zeros(0, dtype=torch.int64, device=self._rank_V.device)
        none = Pairs(nothing, nothing)
        seen, n_rows = seen or none, len(targets_B)
        ranks = self._ranks(targets_B, leading or Leading(nothing, nothing, nothing.double()), seen)
        if leading is None:
            lists = self._list(n_rows, k, none, none), self._list(n_rows, k, none, seen)
        else:
            lists = self._lists_with(leading, n_rows, k, seen)
        return Scores(torch.full_like(ranks[0], torch.nan), *ranks, *lists)

    def _ranks(self, targets_B: Tensor, leading: Leading, seen: Pairs) -> tuple[Tensor, Tensor]:
        rows_R, items_R, value_R = leading
        n_rows, n_items = len(targets_B), len(self._rank_V)
        value_V = -self._rank_V  # -1 or less, below all leading items
        target_B1 = F.pad(value_V[targets_B.clamp(min=0)], (0, 1))
        target_B1[torch.where(items_R == targets_B[rows_R], rows_R, n_rows)] = value_R
        target_B = target_B1[:-1]
        # A leading target starts at 0.5: below, it adds another 0.5 itself, like every leading item that ties with it.
        rank_B = torch.where(target_B >= 0, 0.5, -target_B)
        # Leading items have risen from their places in the common order.
        target_R = target_B[rows_R]
        risen_R = (value_R - target_R).sign_() - (value_V[items_R] - target_R).sign_()
        rank_B.index_add_(0, rows_R, risen_R.div_(2))
        keys_R, keys_S = (rows * n_items + items for rows, items in ((rows_R, items_R), seen))
        place_S = torch.searchsorted(keys_R, keys_S)
        leads_S = F.pad(keys_R, (0, 1), value=-1)[place_S] == keys_S
        value_S = torch.where(leads_S, F.pad(value_R, (0, 1))[place_S], value_V[seen.items_S])
        above_S = (value_S - target_B[seen.rows_S]).sign_().add_(1).div_(2)
        unseen_rank_B = rank_B.index_add(0, seen.rows_S, -above_S)
        missed_B = (targets_B < 0) | (target_B == -torch.inf)
        unlisted_B = missed_B | has_target(seen, targets_B)
        return rank_B.masked_fill(missed_B, torch.inf), unseen_rank_B.masked_fill(unlisted_B, torch.inf)

    def _lists_with(self, leading: Leading, n_rows: int, k: int, seen: Pairs) -> tuple[Tensor, Tensor]:
        """The best k items of each row: among all items, and among those that the row has not seen."""
        rows_R, items_R, scores_R = leading
        # One sort by row and score, in the bits that the rows leave: two sorts would take twice the time.
        bits = 62 - n_rows.bit_length()
        whole_R = (scores_R * (2**bits / F.pad(scores_R, (0, 1), value=1.0).max())).long()
        items_R = items_R[(rows_R * 2**bits - whole_R).argsort(stable=True)]
        place_R = places_in_rows(rows_R, n_rows)[1]
        enough_B = torch.bincount(seen.rows_S, minlength=n_rows) + k  # the items that the row has seen are left out
        first, enough = (Pairs(rows_R[some_R], items_R[some_R]) for some_R in (place_R < k, place_R < enough_B[rows_R]))
        keys_R, keys_S = (rows * len(self._rank_V) + items for rows, items in (enough, seen))
        unseen_R = ~torch.isin(keys_R, keys_S)
        unseen = Pairs(enough.rows_S[unseen_R], enough.items_S[unseen_R])
        moved = Pairs(*(torch.cat(values) for values in zip(unseen, seen, strict=True)))
        return self._list(n_rows, k, first, first), self._list(n_rows, k, unseen, moved)

    def _list(self, n_rows: int, k: int, first: Pairs, moved: Pairs) -> Tensor:
        """Each row's `first` items, in their order, and then the common order without the `moved` items."""
        n_items = len(self._order_V)
        first_B, place_S = places_in_rows(first.rows_S, n_rows)
        keys_S = moved.rows_S * n_items + self._place_V[moved.items_S]
        if len(first.rows_S) > 0:
            keys_S = keys_S[first_B[moved.rows_S] < k]  # only rows that have room for other items
        keys_S = keys_S.sort().values
        rows_S, places_S = keys_S // n_items, keys_S % n_items
        # A moved item was in front of the j-th item of the rest if at most j items of the rest were in front of it.
        rest_in_front_S = places_S - places_in_rows(rows_S, n_rows)[1]
        keys_S = rows_S * (k + 1) + rest_in_front_S.clamp(max=k)  # a last column for items with more in front
        moved_N = torch.zeros(n_rows * (k + 1), dtype=torch.int64, device=keys_S.device)
        moved_BK = moved_N.index_add_(0, keys_S, torch.ones_like(keys_S)).view(n_rows, k + 1)[:, :k]
        columns_K = torch.arange(k, device=keys_S.device)
        places_BK = columns_K + moved_BK.cumsum(1)
        rest_BK = self._order_V[places_BK.clamp(max=n_items - 1)].masked_fill(places_BK >= self._n_listed, -1)
        top_BK = rest_BK.gather(1, (columns_K - first_B[:, None]).clamp(min=0))
        if len(first.rows_S) > 0:
            near_S = place_S < k
            top_BK[first.rows_S[near_S], place_S[near_S]] = first.items_S[near_S]
        return top_BK
