"""Pairs of a row and an item.

Shape suffixes: B rows, S pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Items of rows, each pair once."""

    rows_S: Tensor
    items_S: Tensor


def places_in_rows(rows_S: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """How many pairs each row has, and each pair's place in its row; rows ascend."""
    bounds_B1 = torch.searchsorted(rows_S, torch.arange(n_rows + 1, device=rows_S.device))
    return bounds_B1.diff(), torch.arange(len(rows_S), device=rows_S.device) - bounds_B1[rows_S]


def has_target(pairs: Pairs, targets_B: Tensor) -> Tensor:
    """Whether each row's target is an item of the row."""
    is_target_S = (pairs.items_S == targets_B[pairs.rows_S]).int()
    return torch.zeros_like(targets_B, dtype=torch.int32).index_add_(0, pairs.rows_S, is_target_S) > 0
