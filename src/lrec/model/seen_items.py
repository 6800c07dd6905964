"""What a network adds to the scores of items of a history: products of its hidden state with learned vectors.

A small network without these vectors cannot tell whether an item of the history comes again: it would have to read each
item of the history and lower, or raise, exactly this item's score. Related: RepeatNet, AAAI 2019; pointer networks,
arXiv 1506.03134.

Shape suffixes: B rows, C positions of the whole history, M hidden states, K ages, D width, N columns of scores, T items
asked for of each hidden state.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrec.model.config import TransformerConfig

# More than the places of any history.
PLACES = 2**31


class Additions(NamedTuple):
    """What is added to scores, for each hidden state. No tensor has an entry for each state and each of its items."""

    items_BC: Tensor  # int64, catalogue indices of the histories' items; or their columns in the scores
    gaps_BC: Tensor  # number of positions until the item is next in the history; 0 if it does not count
    rows_M: Tensor  # the history of each hidden state
    at_M: Tensor  # the position of each hidden state in its history
    of_ages_MK: Tensor  # float32, what is added to the score of an item of each age

    def rows(self, chosen: slice | Tensor) -> Self:
        return self._replace(rows_M=self.rows_M[chosen], at_M=self.at_M[chosen], of_ages_MK=self.of_ages_MK[chosen])

    def mapped(self, of: Callable[[Tensor], Tensor]) -> Self:
        """The same with columns instead of items: `of` returns an item's column, or -1 if it has none."""
        columns_BC = of(self.items_BC)
        return self._replace(items_BC=columns_BC.clamp(min=0), gaps_BC=self.gaps_BC.masked_fill(columns_BC < 0, 0))

    def slots(self) -> "Slots":
        n, n_ages = self.items_BC.shape[1], self.of_ages_MK.shape[1]
        ages_C = torch.arange(n, device=self.items_BC.device).flip(0)
        starts_K = 2 ** torch.arange(1, n_ages, device=ages_C.device)  # of the buckets of age + 1
        added_MC = self.of_ages_MK[:, torch.bucketize(ages_C + 1, starts_K, right=True)]

        starts_M = self.rows_M * (2 * n - 1) + self.at_M

        def until(values_BC: Tensor) -> Tensor:
            """Of each hidden state, the n values up to its position; 0 before the first one."""
            padded_X = F.pad(values_BC, (n - 1, 0)).flatten()
            if torch.compiler.is_exporting():  # ONNX takes n, the length of the histories, for a constant of unfold
                return padded_X[starts_M[:, None] + torch.arange(n)]
            return padded_X.unfold(0, n, 1).index_select(0, starts_M)

        # An item counts where it was last: there, it does not come again before the position of the hidden state.
        counts_MC = until(self.gaps_BC) > ages_C
        return Slots(until(self.items_BC), counts_MC, added_MC.where(counts_MC, 0.0), n_ages)

    def of(self, items_MT: Tensor) -> Tensor:
        """What is added to the scores of these items, (M, T); 0 for an item that the history does not have."""
        items_MC, _, added_MC, _ = self.slots()
        return torch.stack(
            [added_MC.where(items_MC == items_M[:, None], 0.0).sum(1) for items_M in items_MT.unbind(1)], 1
        )


class Slots(NamedTuple):
    """The histories of hidden states, each up to its position: the last slot is the item at age 0."""

    items_MC: Tensor  # int64
    counts_MC: Tensor  # bool, whether something is added for this slot; an item has only one such slot
    added_MC: Tensor  # float32, what is added to the item's score; 0 if the slot does not count
    n_ages: int

    def add_(self, scores_MN: Tensor, first_N: Tensor | None = None) -> None:
        """Add to the scores in place; the items are columns. If an item has several columns, it is the first of them,
        and `first_N` is the first one of each column's item."""
        added_MC = self.added_MC.to(scores_MN.dtype)
        if first_N is None:
            scores_MN.scatter_add_(1, self.items_MC, added_MC)
        else:
            scores_MN += torch.zeros_like(scores_MN).scatter_add_(1, self.items_MC, added_MC)[:, first_N]

    def part(self, start: int, n: int) -> Self:
        """The same for a piece of the scores: n columns from `start` on."""
        columns_MC = self.items_MC - start
        here_MC = (columns_MC >= 0) & (columns_MC < n)
        return self._replace(items_MC=columns_MC.clamp(0, n - 1), added_MC=self.added_MC.where(here_MC, 0.0))

    def gradient(self, grad_MN: Tensor, first_N: Tensor | None = None) -> Tensor:
        """The gradient of `of_ages_MK` from that of the scores to which `add_` has added."""
        if first_N is not None:
            grad_MN = torch.zeros_like(grad_MN).index_add_(1, first_N, grad_MN)
        grad_MC, n = grad_MN.gather(1, self.items_MC).where(self.counts_MC, 0.0), self.items_MC.shape[1]
        ends = [n - min(2**age - 1, n) for age in range(self.n_ages)] + [0]
        return torch.stack([grad_MC[:, start:end].sum(1) for end, start in pairwise(ends)], 1)


class SeenItems(nn.Module):
    """A vector for each age of an item: its age is the number of positions since it was last in the history, in buckets
    0, 1 to 2, 3 to 6, 7 to 14 ... The addition to the item's score is the product of the hidden state and the vector
    of its age."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.max_len.bit_length(), config.width))

    def forward(self, hidden_MD: Tensor, items_BC: Tensor, rows_M: Tensor, at_M: Tensor) -> Additions:
        """The additions of hidden states: `rows_M` has the row of each, and `at_M` its position in the row. An item of
        -1 does not count."""
        with torch.autocast(hidden_MD.device.type, enabled=False):
            of_ages_MK = hidden_MD.float() @ self.weight.float().T
        gaps_BC = _gaps(items_BC).masked_fill(items_BC < 0, 0)
        return Additions(items_BC.long().clamp(min=0), gaps_BC, rows_M, at_M, of_ages_MK)


def _gaps(items_BC: Tensor) -> Tensor:
    """The number of positions until each item is next in its row; the length of the row if it does not come again."""
    n = items_BC.shape[1]
    # By item, then by place. ONNX has no stable sort, so one number has both.
    sorted_BC = (items_BC.long() * PLACES + torch.arange(n, device=items_BC.device)).sort(1).values
    places_BC, following_BC = sorted_BC % PLACES, F.pad(sorted_BC[:, 1:], (0, 1), value=-2 * PLACES)  # of no item
    again_BC = following_BC // PLACES == sorted_BC // PLACES
    gaps_BC = torch.where(again_BC, following_BC % PLACES - places_BC, n)
    return torch.zeros_like(places_BC).scatter(1, places_BC, gaps_BC).int()
