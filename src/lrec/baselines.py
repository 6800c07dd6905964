"""What scores without a network, from the unreduced training part alone; it stands beside every model.

    popularity          log p_j, with p_j the item's share of the training interactions
    recent-popularity   log(n_j + p_j), n_j counting the last tenth of them in time; absent where there are no times
    repeat-last         the items of the input, the last one first, then all others by popularity
    markov              log(n_ij + p_j), n_ij counting how often j followed the last item i

The softmax of a score is a share (with one observation more, which is shared out as popularity), so each has a
cross-entropy; repeat-last has none. Ranks and lists obey the rules of `metrics.score`, ties included. Those of all but
markov come in closed form, bit for bit the same: on Beauty in 0.3 to 0.5 s where the head takes 6 (one core).

Shape suffixes: B rows, L positions, V catalogue, N interactions, T distinct transitions, S (row, item) pairs.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrec.data.batches import EvalBatch
from lrec.data.splits import Split, ranges
from lrec.metrics import CHUNK_ITEMS, KS, Overrides, Scores, score

BASELINES = ("popularity", "recent-popularity", "repeat-last", "markov")
RECENT_SHARE = 0.1


class Pairs(NamedTuple):
    """Items of rows, each pair once."""

    rows_S: Tensor
    items_S: Tensor


def newest_first(rows_N: Tensor, items_N: Tensor, n_items: int) -> Pairs:
    """The distinct items of each row, the last one first; rows ascend, and their items come oldest first."""
    keys_S, which_N = (rows_N * n_items + items_N).unique(return_inverse=True)
    places_N = torch.arange(len(rows_N), device=rows_N.device)
    last_S = torch.zeros_like(keys_S).scatter_reduce(0, which_N, places_N, "amax")
    order_S = (keys_S // n_items * len(rows_N) - last_S).argsort()
    return Pairs(keys_S[order_S] // n_items, keys_S[order_S] % n_items)


class CommonOrder:
    """Exact ranks and lists of a scorer whose scores are those of all rows, but for items that a row lists first.

    In closed form, without a score for every row and item. As in `metrics.score`, a tie is half a rank, and lists break
    ties by item index.
    """

    def __init__(self, scores_V: Tensor) -> None:
        """Order the items; those with a score of -inf are not listed, and as a target they are a miss."""
        self._scores_V = scores_V
        self._order_V = scores_V.argsort(descending=True, stable=True)
        self._place_V = self._order_V.argsort()
        ascending_V = scores_V.sort().values
        lower_V = torch.searchsorted(ascending_V, scores_V)
        up_to_V = torch.searchsorted(ascending_V, scores_V, right=True)
        rank_V = 1 + (len(scores_V) - up_to_V) + (up_to_V - lower_V - 1).double() / 2
        self._rank_V = rank_V.masked_fill(scores_V == -torch.inf, torch.inf)
        self._n_listed = int((scores_V > -torch.inf).sum())

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
        nothing = torch.zeros(0, dtype=torch.int64, device=targets_B.device)
        first, without = first or Pairs(nothing, nothing), without or Pairs(nothing, nothing)
        n_items = len(self._scores_V)
        keys_S, without_S = (pairs.rows_S * n_items + pairs.items_S for pairs in (first, without))
        kept_S = (self._scores_V[first.items_S] > -torch.inf) & ~torch.isin(keys_S, without_S)
        own = Pairs(first.rows_S[kept_S], first.items_S[kept_S])
        # What a row lists first or leaves out is off the common order.
        off = Pairs(torch.cat([own.rows_S, without.rows_S]), torch.cat([own.items_S, without.items_S]))
        rank_B = self._ranks(targets_B, own, off)
        rank_B[without.rows_S[without.items_S == targets_B[without.rows_S]]] = torch.inf
        return rank_B, self._lists(len(targets_B), k, own, off)

    def _ranks(self, targets_B: Tensor, own: Pairs, off: Pairs) -> Tensor:
        item_B = targets_B.clamp(min=0)
        own_B, place_S = _places_in_rows(own.rows_S, len(targets_B))
        score_S, target_score_S = self._scores_V[off.items_S], self._scores_V[item_B][off.rows_S]
        above_S = (score_S > target_score_S) + (score_S == target_score_S).double() / 2
        rank_B = (self._rank_V[item_B] + own_B).index_add(0, off.rows_S, -above_S)
        is_target_S = own.items_S == targets_B[own.rows_S]
        rank_B[own.rows_S[is_target_S]] = 1 + place_S[is_target_S].double()
        return rank_B.masked_fill(targets_B < 0, torch.inf)

    def _lists(self, n_rows: int, k: int, own: Pairs, off: Pairs) -> Tensor:
        n_items = len(self._scores_V)
        keys_S = (off.rows_S * n_items + self._place_V[off.items_S]).sort().values
        rows_S, places_S = keys_S // n_items, keys_S % n_items
        # In front of the j-th item of the rest are off the order those that have at most j of the rest in front.
        rest_in_front_S = places_S - _places_in_rows(rows_S, n_rows)[1]
        near_S = rest_in_front_S < k
        off_BK = torch.bincount(rows_S[near_S] * k + rest_in_front_S[near_S], minlength=n_rows * k).view(n_rows, k)
        columns_K = torch.arange(k, device=keys_S.device)
        places_BK = columns_K + off_BK.cumsum(1)
        rest_BK = self._order_V[places_BK.clamp(max=n_items - 1)].masked_fill(places_BK >= self._n_listed, -1)
        own_B, place_S = _places_in_rows(own.rows_S, n_rows)
        top_BK = rest_BK.gather(1, (columns_K - own_B[:, None]).clamp(min=0))
        near_S = place_S < k
        top_BK[own.rows_S[near_S], place_S[near_S]] = own.items_S[near_S]
        return top_BK


def _places_in_rows(rows_S: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """How many pairs each row has, and each pair's place in its row; rows ascend."""
    number_B = torch.bincount(rows_S, minlength=n_rows)
    return number_B, torch.arange(len(rows_S), device=rows_S.device) - (number_B.cumsum(0) - number_B)[rows_S]


class Baselines:
    """The baselines of a split. What they count, they count when they are first asked to score.

    Attributes:
        names: Those of BASELINES that the data allow.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self._split, self._device = split, device
        self._share_V = split.counts_V / split.counts_V.sum()
        self.names = [name for name in BASELINES if name != "recent-popularity" or split.store.times_N is not None]

    def score(self, name: str, batch: EvalBatch) -> Scores:
        """Score every item of the catalogue for every row, by one of `names`."""
        if name == "markov":
            return self._markov(batch)
        order, loss_V = self._recent if name == "recent-popularity" else self._popularity
        first = self._inputs(batch) if name == "repeat-last" else None
        seen = Pairs(batch.seen_rows_S, batch.seen_items_S)
        k = min(max(KS), len(loss_V))
        rank_B, top_BK = order.ranked(batch.targets_B, k, first)
        rank_unseen_B, top_unseen_BK = order.ranked(batch.targets_B, k, first, seen)
        has_loss_B = (batch.targets_B >= 0) & (name != "repeat-last")
        loss_B = loss_V[batch.targets_B.clamp(min=0)].masked_fill(~has_loss_B, torch.nan)
        return Scores(loss_B, rank_B, rank_unseen_B, top_BK, top_unseen_BK)

    def _inputs(self, batch: EvalBatch) -> Pairs:
        """The items of each row's input, the last one first."""
        length = batch.items_BL.shape[1]
        real_BL = torch.arange(length, device=self._device) <= (batch.positions_B % length)[:, None]
        return newest_first(real_BL.nonzero()[:, 0], batch.items_BL[real_BL], len(self._share_V))

    def _markov(self, batch: EvalBatch) -> Scores:
        """A network of one feature, hidden state 1 and popularity as its table, but for what followed the last item."""
        last_B = batch.items_BL.flatten()[batch.positions_B].cpu().numpy()
        starts_V1, next_T, scores_T = self._transitions
        numbers_B = starts_V1[last_B + 1] - starts_V1[last_B]
        places_S = ranges(starts_V1[last_B], numbers_B)
        rows_S = np.repeat(np.arange(len(last_B)), numbers_B)
        followers = (torch.from_numpy(a).to(self._device) for a in (rows_S, next_T[places_S], scores_T[places_S]))
        return score(
            torch.ones(len(batch.users_B), 1, device=self._device),
            self._logarithm(self._share_V)[:, None],
            batch.targets_B,
            batch.seen_rows_S,
            batch.seen_items_S,
            overrides=Overrides(*followers),
        )

    @cached_property
    def _popularity(self) -> tuple[CommonOrder, Tensor]:
        return self._common(self._share_V)

    @cached_property
    def _recent(self) -> tuple[CommonOrder, Tensor]:
        assert self._split.store.times_N is not None
        rows_N = self._training_rows()
        times_N = self._split.store.times_N[rows_N]
        earliest = np.partition(times_N, place := int((1 - RECENT_SHARE) * len(times_N)))[place]
        items_N = self._split.catalogue_index_I[self._split.store.items_N[rows_N[times_N >= earliest]]]
        return self._common(np.bincount(items_N, minlength=len(self._share_V)) + self._share_V)

    def _common(self, values_V: np.ndarray) -> tuple[CommonOrder, Tensor]:
        """The order of the logarithms, and each item's cross-entropy, computed as `metrics.score` does."""
        scores_V = self._logarithm(values_V)
        log_sum = scores_V.new_tensor(-torch.inf)
        for scores_C in scores_V.split(CHUNK_ITEMS):
            log_sum = torch.logaddexp(log_sum, scores_C.amax() - torch.softmax(scores_C, 0).amax().log())
        return CommonOrder(scores_V), log_sum - scores_V

    @cached_property
    def _transitions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each item's transitions begin, what follows, and its score."""
        split, n_items = self._split, len(self._share_V)
        items_N = split.catalogue_index_I[split.store.items_N[self._training_rows()]]
        goes_on_N = np.ones(len(items_N), dtype=bool)
        goes_on_N[np.cumsum(split.train_U)[split.train_U > 0] - 1] = False  # a user's last item
        pairs_N = items_N[:-1][goes_on_N[:-1]] * n_items + items_N[1:][goes_on_N[:-1]]
        pairs_T, counts_T = np.unique(pairs_N, return_counts=True)
        next_T = pairs_T % n_items
        starts_V1 = np.searchsorted(pairs_T, np.arange(n_items + 1) * n_items)
        return starts_V1, next_T, np.log(counts_T + self._share_V[next_T]).astype(np.float32)

    def _training_rows(self) -> np.ndarray:
        return ranges(self._split.store.offsets_U1[:-1], self._split.train_U)

    def _logarithm(self, values_V: np.ndarray) -> Tensor:
        return torch.from_numpy(np.log(values_V)).float().to(self._device)
