"""What positions read: themselves and all before them, or what `Reading` says; and the cache of what was read before.

Shape suffixes: B batch rows, L positions, C positions that are read, D width, H heads, K width per head.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values that inference has computed, so that one more item costs one position.

    Attributes:
        filled_B: Positions of each row that are in; the row's next item stands at that position.
    """

    def __init__(self, rows: int, capacity: int, device: torch.device | None = None) -> None:
        """Make room for `capacity` positions of each row; those of a Transformer with learned positions are max_len."""
        self.capacity = capacity
        self.filled_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self._reach = 0  # no row is filled beyond; known without asking the device
        self._layers: dict[int, tuple[Tensor, ...]] = {}

    def keep(self, lengths_B: Tensor) -> None:
        """Forget each row's positions from its length on, such as the padding of the histories it was filled with."""
        self.filled_B = lengths_B

    def reading(self, length: int) -> "Reading":
        """Where the next `length` items of each row stand, and what they read: everything up to themselves."""
        self._reach = min(self._reach + length, self.capacity)
        positions_BL = self.filled_B[:, None] + torch.arange(length, device=self.filled_B.device)
        read_C = torch.arange(self._reach, device=self.filled_B.device)
        self.filled_B = self.filled_B + length
        return Reading((read_C <= positions_BL[..., None])[:, None], positions_BL, self)

    def extend(self, layer: int, positions_BL: Tensor, *new: Tensor) -> tuple[Tensor, ...]:
        """Put in what a block has at the positions, such as keys and values (B, L, H, K); return all of it,
        (B, C, H, K)."""
        if layer not in self._layers:
            self._layers[layer] = tuple(each.new_zeros(len(each), self.capacity, *each.shape[2:]) for each in new)
        rows_B1 = torch.arange(len(positions_BL), device=positions_BL.device)[:, None]
        for whole, each in zip(self._layers[layer], new, strict=True):
            whole[rows_B1, positions_BL] = each
        return tuple(whole[:, : self._reach] for whole in self._layers[layer])


class Reading(NamedTuple):
    """What positions read; by default themselves and all before them."""

    allowed_B1LC: Tensor | None = None  # bool: position l reads position c; None: c <= l
    positions_BL: Tensor | None = None  # of those that read; None: from 0
    cache: KeyValueCache | None = None  # where what was read before lies; for an Attention that `caches`
    alone_B: Tensor | None = None  # flat index of the one position of each row that reads; None: all do
    gaps_BLC: Tensor | None = None  # `event_times.gaps` from position c to position l, where the bias needs them

    def of_one(self, length: int) -> "Reading":
        """The same as seen by `alone_B`, of histories of so many positions: all that it names has L = 1."""
        assert self.alone_B is not None
        place_B1 = (self.alone_B % length)[:, None]
        if self.allowed_B1LC is None:
            allowed_BC = torch.arange(length, device=place_B1.device) <= place_B1
        else:
            allowed_BC = self.allowed_B1LC.flatten(0, 2)[self.alone_B]
        gaps_BLC = None if self.gaps_BLC is None else at(self.gaps_BLC, self.alone_B)
        return Reading(allowed_BC[:, None, None], place_B1, gaps_BLC=gaps_BLC)


CAUSAL = Reading()


def at(hidden_BLD: Tensor, alone_B: Tensor) -> Tensor:
    """One position of each row, (B, 1, D)."""
    return hidden_BLD.flatten(0, 1)[alone_B][:, None]
