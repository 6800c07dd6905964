"""Dropout, on CPUs from few random bits: `torch.nn.functional.dropout` takes most of its time to draw its mask."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BITS = 16  # of a mask's entry; torch draws 64 at a time


class DropoutLayer(nn.Module):
    """`dropout` in training, and nothing in evaluation or at rate 0.

    In a compiled graph the rate is a tensor, not a constant, so that blocks of different rates share their graphs.

    Attributes:
        rate: The share that is dropped.
        drops: Whether there is any.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.drops = rate, rate > 0
        self._rate = torch.tensor(rate, device="cpu")  # read by graphs on any device, without waiting for it

    def forward(self, x: Tensor) -> Tensor:
        """x, or what is left of it."""
        if not (self.drops and self.training):
            return x
        if torch.compiler.is_compiling():
            kept = torch.rand_like(x, dtype=torch.float32) >= self._rate
            return x * (kept / (1 - self._rate)).to(x.dtype)
        return dropout(x, self.rate)


def dropout(x: Tensor, rate: float) -> Tensor:
    """x with a share `rate` of its entries, drawn in each call, set to 0, and the others scaled to the same mean.

    On CPUs the share is `rate` rounded to a multiple of 2^-16. What is drawn depends on torch's seed alone, not on the
    number of threads.
    """
    return x * _mask_like(x, rate) if x.device.type == "cpu" else F.dropout(x, rate)


def _mask_like(x: Tensor, rate: float) -> Tensor:
    """0 or 1 / (share that is kept)."""
    n, values = x.numel(), 2**BITS
    dropped = min(round(rate * values), values - 1)
    drawn = torch.empty(-(-n * BITS // 64), dtype=torch.int64).random_(-(2**63), None)
    kept = drawn.view(torch.int16)[:n].ge_(dropped - values // 2)
    return kept.to(x.dtype).mul_(values / (values - dropped)).view(x.shape)
