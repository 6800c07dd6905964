"""The best items of each row, found while their scores come piece by piece. They are kept as integer keys: a larger key
means a higher score or, if scores are equal, a smaller item index.

Shape suffixes: B rows, C items of a piece, K list length, W keys of a row, S pairs of a row and an item, N some of the
pairs; G groups of M items each, L of these groups.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Items per group: of most groups, the lists look only at the largest score.
GROUP_ITEMS = 16

_ITEM_BITS = 31
_MAGNITUDE = 0x7FFFFFFF  # all bits of a float except its sign
_NONE = -(0x7F800000 << _ITEM_BITS)  # the key of a score of -inf


class Pairs(NamedTuple):
    """Pairs of a row and an item, each pair once."""

    rows_S: Tensor
    items_S: Tensor


def places_in_rows(rows_S: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """How many pairs each row has, and each pair's place in its row. `rows_S` must ascend."""
    bounds_B1 = torch.searchsorted(rows_S, torch.arange(n_rows + 1, device=rows_S.device))
    return bounds_B1.diff(), torch.arange(len(rows_S), device=rows_S.device) - bounds_B1[rows_S]


def has_target(pairs: Pairs, targets_B: Tensor) -> Tensor:
    is_target_S = (pairs.items_S == targets_B[pairs.rows_S]).int()
    return torch.zeros_like(targets_B, dtype=torch.int32).index_add_(0, pairs.rows_S, is_target_S) > 0


class TopItems(NamedTuple):
    """The best items of each row, best first, ties by item index; item -1 and score -inf in unused slots."""

    items_BK: Tensor
    scores_BK: Tensor


class Best:
    """The k best pairs so far of each row; a score of -inf is not listed. All sizes follow from the sizes of the
    pieces, so that the host never waits for a device."""

    def __init__(self, n_rows: int, k: int, device: torch.device) -> None:
        self.k = k
        self._keys_BW = torch.full((n_rows, k), _NONE, device=device)

    def add(self, scores_BC: Tensor, start: int) -> None:
        """Add a piece from item `start` on, in the order of items, before any pairs. NaNs are replaced in place."""
        scores_BC.nan_to_num_(-math.inf, math.inf, -math.inf)
        columns_C = torch.arange(scores_BC.shape[1], device=scores_BC.device)
        n_groups = len(columns_C) // GROUP_ITEMS
        in_groups = n_groups * GROUP_ITEMS if n_groups > self.k else 0
        if in_groups:
            # The k best items lie in the k groups with the highest maxima; of equal groups, the first has the first.
            scores_BGM = scores_BC[:, :in_groups].unflatten(1, (n_groups, GROUP_ITEMS))
            groups_BL1 = _keys(scores_BGM.amax(2), columns_C[:n_groups]).topk(self.k, 1).indices[..., None]
            scores_BLM = scores_BGM.gather(1, groups_BL1.expand(-1, -1, GROUP_ITEMS))
            items_BLM = start + groups_BL1 * GROUP_ITEMS + columns_C[:GROUP_ITEMS]
            self._append(_keys(scores_BLM, items_BLM).flatten(1))
        if in_groups < len(columns_C):
            self._append(_keys(scores_BC[:, in_groups:], start + columns_C[in_groups:]))

    def add_pairs(self, rows_S: Tensor, items_S: Tensor, scores_S: Tensor) -> None:
        """Add single items of single rows, in any order, after all pieces."""
        keys_S = _keys(scores_S, items_S)
        order_S = keys_S.argsort(descending=True)
        order_S = order_S[rows_S[order_S].argsort(stable=True)]
        _, place_S = places_in_rows(rows_S[order_S], len(self._keys_BW))
        # Pairs beyond the k best of a row go to a last column, which is dropped.
        keys_BK1 = self._keys_BW.new_full((len(self._keys_BW), self.k + 1), _NONE)
        keys_BK1[rows_S[order_S], place_S.clamp(max=self.k)] = keys_S[order_S]
        self._append(keys_BK1[:, : self.k])

    def keys(self) -> Tensor:
        """The keys of the k best pairs of each row, best first."""
        return self._keys_BW.topk(self.k, 1).values

    def _append(self, keys_BW: Tensor) -> None:
        self._keys_BW = torch.cat([self._keys_BW, keys_BW], 1)
        if self._keys_BW.shape[1] > 2 * self.k:
            self._keys_BW = self.keys()


class BestAboveThreshold:
    """`Best` for a CPU: a threshold leaves out nearly all scores before any are sorted. NumPy finds and sorts few
    scores among many in a fraction of torch's time."""

    def __init__(self, n_rows: int, k: int) -> None:
        self.k = k
        self._negative_BK = np.full((n_rows, k), -_NONE)  # negated keys, best first
        # Later items with a score of at most this are not among the k best: they lose ties.
        self._least_B1 = np.full((n_rows, 1), -math.inf, np.float32)

    def add(self, scores_BC: Tensor, start: int) -> None:
        """See `Best.add`, but the scores are not changed."""
        n_items = scores_BC.shape[1]
        if n_items >= 2 * self.k and np.isneginf(self._least_B1).all():
            # Just below the k-th largest of the maxima of at least 2 k groups, so that few more items exceed it.
            members = n_items // (2 * self.k)
            groups_BMG = scores_BC[:, : n_items // members * members].unflatten(1, (members, -1))
            maxima_BG = groups_BMG.amax(1).numpy()
            maxima_BG[np.isnan(maxima_BG)] = -np.inf
            maxima_BG.partition(-self.k, 1)
            least_B1 = maxima_BG[:, -self.k :].min(1, keepdims=True)
            self._least_B1 = np.nextafter(least_B1, np.float32(-np.inf))
        values_BC = scores_BC.numpy()
        (places_N,) = (values_BC > self._least_B1).reshape(-1).nonzero()
        rows_N, columns_N = np.divmod(places_N, n_items)
        self._keep(rows_N, values_BC.reshape(-1)[places_N], start + columns_N)

    def add_pairs(self, rows_S: Tensor, items_S: Tensor, scores_S: Tensor) -> None:
        (places_N,) = (scores_S.numpy() >= self._least_B1[rows_S, 0]).nonzero()
        places_N = places_N[rows_S.numpy()[places_N].argsort(kind="stable")]
        self._keep(*(values_S.numpy()[places_N] for values_S in (rows_S, scores_S, items_S)))

    def keys(self) -> Tensor:
        return torch.from_numpy(-self._negative_BK)

    def _keep(self, rows_N: np.ndarray, scores_N: np.ndarray, items_N: np.ndarray) -> None:
        if len(rows_N) == 0:
            return
        number_B = np.bincount(rows_N, minlength=len(self._negative_BK))
        more_BW = np.full((len(number_B), number_B.max()), -_NONE)
        keys_N = _keys(torch.from_numpy(scores_N), torch.from_numpy(items_N)).numpy()
        more_BW[np.arange(more_BW.shape[1]) < number_B[:, None]] = -keys_N
        all_BW = np.concatenate([self._negative_BK, more_BW], 1)
        all_BW.sort(1)
        self._negative_BK = all_BW[:, : self.k]
        self._least_B1 = decoded(self.keys()[:, -1:]).scores_BK.numpy()


def decoded(keys_BK: Tensor) -> TopItems:
    items_BK = -keys_BK & (2**_ITEM_BITS - 1)
    ordered_BK = (keys_BK + items_BK) >> _ITEM_BITS
    bits_BK = torch.where(ordered_BK >= 0, ordered_BK, -ordered_BK - 2**31)
    scores_BK = bits_BK.int().view(torch.float32)
    return TopItems(items_BK.masked_fill(scores_BK == -math.inf, -1), scores_BK)


def _keys(scores: Tensor, items: Tensor) -> Tensor:
    """The order of the float32 scores, as integers, in the high bits; the item index, subtracted, in the low bits."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    sign = bits >> 31  # -1 for negative scores, which the next line negates
    return (((bits & _MAGNITUDE) ^ sign) - sign).long() * 2**_ITEM_BITS - items
