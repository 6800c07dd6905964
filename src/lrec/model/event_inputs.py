"""What a network reads of an event beside its item: its type, such as view or buy, its features, and its time, each as
a vector that is added to the item's, and times also as buckets of gaps, for attention's bias.

Times are whole seconds. A batch's times_BT are those of its events and, after each row's last one, of the request:
position l stands at time l and is asked at time l + 1. Shape suffixes: B batch rows, L positions, T = L + 1 times,
C positions that are read, F rows of the table of features that an event has at most, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrec.model.attention_context import Context
from lrec.model.config import TIME_BUCKETS, TransformerConfig

# As in HSTU's code: a bucket is e^0.301 = 1.35 times as far as the one before.
_BUCKET_WIDTH = 0.301
_CACHED = -1  # where a cache keeps times; layers count from 0


class EventInput(nn.Module):
    """A vector per type of event, added to the items; with features a vector per value, of which an event has several.
    No row of the item table has them, so no score does."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.event_types, config.width))

    def forward(self, hidden_BLD: Tensor, events_BL: Tensor) -> Tensor:
        if events_BL.ndim == 2:
            return hidden_BLD + self.weight[events_BL]
        # With features, (B, L, F): rows of all columns in one table, -1 where a column adds nothing.
        rows_BLFD = F.embedding(events_BL.clamp(min=0), self.weight)
        return hidden_BLD + rows_BLFD.masked_fill((events_BL < 0)[..., None], 0.0).sum(2)


class TimeInput(nn.Module):
    """A vector per bucket of the gap since the event before, added to the items; a first event has the last bucket's,
    which no gap reaches."""

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
    """The bucket of a gap, int32: floor(ln(max(1, |seconds|)) / 0.301), at most 128. Source: HSTU's code.

    A second or less is 0, a minute 13, a day 37, a year 57, ten years 65.
    """
    logarithms = seconds.to(torch.float32).abs().clamp(min=1.0).log()
    return (logarithms / _BUCKET_WIDTH).int().clamp(max=TIME_BUCKETS - 1)


def gaps(times_BT: Tensor, context: Context, to_request: bool) -> Tensor:
    """`time_buckets` from each position that is read to each that reads, or to the request after it, (B, L, C)."""
    read_BC = _read_times(times_BT, context, to_request)
    until_BL = times_BT[:, 1:] if to_request else times_BT[:, :-1]
    return time_buckets(until_BL[..., None] - read_BC[:, None])


def _read_times(times_BT: Tensor, context: Context, to_request: bool) -> Tensor:
    """Times of all events that may be read, (B, C), those in the cache included."""
    events_BC, requests_BC = context.with_cached(_CACHED, times_BT[:, :-1], times_BT[:, 1:])
    if context.cache is not None and to_request:
        # The row before was computed with this time, and its keys and values with it.
        first_B1 = context.positions(1, times_BT.device)[:, :1]
        asked_B1 = requests_BC.gather(1, (first_B1 - 1).clamp(min=0))
        assert torch.where(first_B1 > 0, asked_B1 == times_BT[:, :1], True).all(), "an event not at its request's time"
    return events_BC
