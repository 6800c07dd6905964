"""What a network reads of an event besides its item: its type, such as view or buy, its features, and its time. Each
is a vector that is added to the item's vector. Times can also be a bias of attention, by buckets of gaps.

Times are whole seconds; the event at position l has time l of times_BT, and the request after it has time l + 1. Shape
suffixes: B rows, L positions, T = L + 1 times, C positions read, F most feature values of an event, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrec.model.attention_context import Context
from lrec.model.config import TIME_BUCKETS, TransformerConfig


class EventInput(nn.Module):
    """A vector for each type of event, added to the item's vector. With features, each value has a vector, and an event
    may have several values. The vectors are not in the item table, so they are in no score."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.event_types, config.width))

    def forward(self, hidden_BLD: Tensor, events_BL: Tensor) -> Tensor:
        if events_BL.ndim == 2:
            return hidden_BLD + self.weight[events_BL]
        # With features, (B, L, F): indices of rows in one table for all columns; -1 if a column adds nothing.
        rows_BLFD = F.embedding(events_BL.clamp(min=0), self.weight)
        return hidden_BLD + rows_BLFD.masked_fill((events_BL < 0)[..., None], 0.0).sum(2)


class TimeInput(nn.Module):
    """A vector for each bucket of the gap since the previous event, added to the item's vector. A first event has the
    vector of the last bucket, which no gap reaches."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(TIME_BUCKETS, config.width))

    def forward(self, hidden_BLD: Tensor, times_BT: Tensor, context: Context) -> Tensor:
        read_BC = _read_times(times_BT, context, to_request=False)
        positions_BL = context.positions(hidden_BLD.shape[1], hidden_BLD.device).expand(hidden_BLD.shape[:2])
        since_BL = times_BT[:, :-1] - read_BC.gather(1, (positions_BL - 1).clamp(min=0))
        bucket_BL = time_buckets(since_BL).masked_fill(positions_BL == 0, TIME_BUCKETS - 1)
        return hidden_BLD + self.weight[bucket_BL.long()]


def time_buckets(seconds: Tensor) -> Tensor:
    """The bucket of a gap, int32: floor(ln(max(1, |seconds|)) / 0.301), at most 128. Source: HSTU's code. One second or
    less is in bucket 0, a minute in 13, a day in 37, a year in 57, ten years in 65."""
    logarithms = seconds.to(torch.float32).abs().clamp(min=1.0).log()
    return (logarithms / 0.301).int().clamp(max=TIME_BUCKETS - 1)


def gaps(times_BT: Tensor, context: Context, to_request: bool) -> Tensor:
    """`time_buckets` of the gaps from each position c to each position l, or to the request after l, (B, L, C)."""
    read_BC = _read_times(times_BT, context, to_request)
    until_BL = times_BT[:, 1:] if to_request else times_BT[:, :-1]
    return time_buckets(until_BL[..., None] - read_BC[:, None])


def _read_times(times_BT: Tensor, context: Context, to_request: bool) -> Tensor:
    """The times of all events that may be read, (B, C), including those in the cache."""
    events_BC, requests_BC = context.with_cached("times", times_BT[:, :-1], times_BT[:, 1:])
    if context.cache is not None and to_request:
        # The position before was computed with this time as its request's, and so were its keys and values.
        first_B1 = context.positions(1, times_BT.device)[:, :1]
        asked_B1 = requests_BC.gather(1, (first_B1 - 1).clamp(min=0))
        assert torch.where(first_B1 > 0, asked_B1 == times_BT[:, :1], True).all(), "an event not at its request's time"
    return events_BC
