"""What a network adds to the scores of the items of a history: products of its hidden state with learned vectors.

A small network without these vectors cannot tell whether an item of the history comes again: it would have to read each
item of the history and lower, or raise, exactly this item's score. Related: RepeatNet, AAAI 2019; pointer networks,
arXiv 1506.03134.

Shape suffixes: B rows, L positions, C positions of the whole history, M hidden states, K ages, D width, N columns of
scores, T targets of a hidden state.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrec.model.config import TransformerConfig

# More than the places of any history.
PLACES = 2**31


class Additions(NamedTuple):
    """What is added to scores, a row for each hidden state. Each item is in a row at most once."""

    items_MC: Tensor  # int64, catalogue index of each item of the history; -1 in slots that do not count
    added_MC: Tensor  # float32, what is added to this item's score

    def rows(self, chosen: slice | Tensor) -> Self:
        return type(self)(self.items_MC[chosen], self.added_MC[chosen])

    def mapped(self, of: Callable[[Tensor], Tensor]) -> Self:
        """The same with places instead of items: `of` returns the place of each item, or -1 if it has none."""
        return type(self)(torch.where(self.items_MC >= 0, of(self.items_MC.clamp(min=0)), -1), self.added_MC)

    def of(self, items_MT: Tensor) -> Tensor:
        """What is added to the scores of these items, (M, T); 0 for an item that the history does not have."""
        each = [(self.added_MC * _is(self.items_MC, items_M)).sum(1) for items_M in items_MT.unbind(1)]
        return torch.stack(each, 1)

    def add_(self, scores_MN: Tensor, first_N: Tensor | None = None) -> None:
        """Add to the scores in place; the items are columns. If an item has several columns, it is the first of them,
        and `first_N` is the first one of each column's item."""
        added_MC = self.added_MC.masked_fill(self.items_MC < 0, 0.0).to(scores_MN.dtype)
        if first_N is None:
            scores_MN.scatter_add_(1, self.items_MC.clamp(min=0), added_MC)
        else:
            of_first_MN = torch.zeros_like(scores_MN).scatter_add_(1, self.items_MC.clamp(min=0), added_MC)
            scores_MN += of_first_MN[:, first_N]

    def gradient(self, grad_MN: Tensor, first_N: Tensor | None = None) -> Tensor:
        """The gradient of what is added, (M, C), from that of the scores to which `add_` has added it."""
        if first_N is not None:
            grad_MN = torch.zeros_like(grad_MN).index_add_(1, first_N, grad_MN)
        return grad_MN.gather(1, self.items_MC.clamp(min=0)).masked_fill(self.items_MC < 0, 0.0)


def _is(items_MC: Tensor, items_M: Tensor) -> Tensor:
    return (items_MC == items_M[:, None]) & (items_MC >= 0)


class SeenItems(nn.Module):
    """A vector for each age of an item: its age is the number of positions since it was last in the history, in buckets
    0, 1 to 2, 3 to 6, 7 to 14 ... The addition to the item's score is the product of the hidden state and the vector
    of its age."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.max_len.bit_length(), config.width))

    def forward(self, hidden_MD: Tensor, items_BC: Tensor, rows_M: Tensor, at_M: Tensor) -> Additions:
        """The additions of hidden states: `rows_M` has the row of each, and `at_M` its position in the row. An item of
        -1 is blanked."""
        places_C = torch.arange(items_BC.shape[1], device=items_BC.device)
        ages_MC = at_M[:, None] - places_C
        items_MC, again_MC = items_BC[rows_M], _next_again(items_BC)[rows_M]
        last_MC = (ages_MC >= 0) & (again_MC > at_M[:, None])  # each item counts where it was last
        with torch.autocast(hidden_MD.device.type, enabled=False):
            of_ages_MK = hidden_MD.float() @ self.weight.float().T
        starts_K = 2 ** torch.arange(1, len(self.weight), device=items_BC.device)  # age + 1 at which a bucket begins
        buckets_MC = torch.bucketize(ages_MC.clamp(min=0) + 1, starts_K, right=True)
        return Additions(items_MC.long().masked_fill(~last_MC, -1), of_ages_MK.gather(1, buckets_MC))


def _next_again(items_BC: Tensor) -> Tensor:
    """The place where each item is the next time in its row; the length of the row if it does not come again."""
    n = items_BC.shape[1]
    # By item, then by place. ONNX has no stable sort, so one number has both.
    sorted_BC = (items_BC.long() * PLACES + torch.arange(n, device=items_BC.device)).sort(1).values
    places_BC = sorted_BC % PLACES
    following_BC = F.pad(sorted_BC[:, 1:], (0, 1), value=-2 * PLACES)  # of no item
    same_BC = following_BC // PLACES == sorted_BC // PLACES
    next_BC = (following_BC % PLACES).masked_fill(~same_BC, n)
    return torch.zeros_like(places_BC).scatter(1, places_BC, next_BC)
