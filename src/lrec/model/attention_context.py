"""What attention gets besides the hidden states: which positions each may read, their indices, and the cache. Shape
suffixes: B batch rows, L positions, C positions that are read, D width, H heads, K width per head."""

from typing import NamedTuple

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values that inference has computed. With them, a new item needs the computation of one position only."""

    def __init__(self, rows: int, capacity: int, device: torch.device | None = None) -> None:
        """Make room for `capacity` positions in each row. With learned positions, it can be at most max_len."""
        self.capacity = capacity
        # The number of filled positions of each row, and the position of its next item. A smaller number forgets the
        # positions from there on, such as the padding of the first histories.
        self.filled_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self._reach = 0  # no row is filled beyond this; a Python number, so that nothing waits for the device
        self._values: dict[int | str, tuple[Tensor, ...]] = {}

    def next(self, length: int) -> "Context":
        """The context of the next `length` items of each row. Each reads itself and all items before it."""
        self._reach = min(self._reach + length, self.capacity)
        positions_BL = self.filled_B[:, None] + torch.arange(length, device=self.filled_B.device)
        read_C = torch.arange(self._reach, device=self.filled_B.device)
        self.filled_B = self.filled_B + length
        return Context((read_C <= positions_BL[..., None])[:, None], positions_BL, cache=self)

    def extend(self, name: int | str, positions_BL: Tensor, *new: Tensor) -> tuple[Tensor, ...]:
        """Store a block's values at these positions, such as keys (B, L, H, K); return all of them, (B, C, H, K)."""
        if name not in self._values:
            self._values[name] = tuple(each.new_zeros(len(each), self.capacity, *each.shape[2:]) for each in new)
        rows_B1 = torch.arange(len(positions_BL), device=positions_BL.device)[:, None]
        for whole, each in zip(self._values[name], new, strict=True):
            whole[rows_B1, positions_BL] = each
        return tuple(whole[:, : self._reach] for whole in self._values[name])


class Context(NamedTuple):
    """What each position may read: by default, itself and all positions before it."""

    allowed_B1LC: Tensor | None = None  # bool: whether position l may read position c; None: if c <= l
    positions_BL: Tensor | None = None  # indices of the positions that read; None: 0, 1, 2 ...
    gaps_BLC: Tensor | None = None  # `event_inputs.gaps` from position c to position l, if the bias needs them
    cache: KeyValueCache | None = None  # values of the earlier positions; for an Attention that `caches`

    def positions(self, length: int, device: torch.device) -> Tensor:
        """The indices of the `length` positions that read, (B or 1, L)."""
        return torch.arange(length, device=device)[None] if self.positions_BL is None else self.positions_BL

    def with_cached(self, name: int | str, *new: Tensor) -> tuple[Tensor, ...]:
        """The values at these positions, (B, L, ...), of a block or of an input; with a cache, store them, and return
        those of all positions."""
        if self.cache is None:
            return new
        assert self.positions_BL is not None
        return self.cache.extend(name, self.positions_BL, *new)

    def of_one(self, alone_B: Tensor, length: int) -> "Context":
        """The context of one position of each row of `length` positions, given by flat indices; in it, L is 1."""
        place_B1 = (alone_B % length)[:, None]
        if self.allowed_B1LC is None:
            allowed_BC = torch.arange(length, device=place_B1.device) <= place_B1
        else:
            allowed_BC = self.allowed_B1LC.flatten(0, 2)[alone_B]
        gaps_BLC = None if self.gaps_BLC is None else at(self.gaps_BLC, alone_B)
        return Context(allowed_BC[:, None, None], place_B1, gaps_BLC)


CAUSAL = Context()


def at(hidden_BLD: Tensor, alone_B: Tensor) -> Tensor:
    """One position of each row, (B, 1, D), by its flat index."""
    return hidden_BLD.flatten(0, 1)[alone_B][:, None]
