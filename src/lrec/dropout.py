"""Dropout, on CPUs from few random bits: `torch.nn.functional.dropout` takes most of its time to draw its mask."""

import torch
from torch import Tensor
from torch.nn import functional as F

BITS = 16  # of a mask's entry; torch draws 64 at a time


def dropout(x: Tensor, rate: float) -> Tensor:
    """x with a share `rate` of its entries, drawn anew, set to zero, and the others scaled to the same expectation.

    On CPUs the share is `rate` rounded to a multiple of 2^-16. What is drawn depends on torch's seed alone, not on the
    number of threads.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    return x * _mask_like(x, rate)


def _mask_like(x: Tensor, rate: float) -> Tensor:
    """0 or 1 / (share that is kept)."""
    n, values = x.numel(), 2**BITS
    dropped = min(round(rate * values), values - 1)
    drawn = torch.empty(-(-n * BITS // 64), dtype=torch.int64).random_(-(2**63), None)
    kept = drawn.view(torch.int16)[:n].ge_(dropped - values // 2)
    return kept.to(x.dtype).mul_(values / (values - dropped)).view(x.shape)
