"""What is added to attention's logits: a learned number per distance, and one per gap in time.

Shape suffixes: B batch rows, L positions that read, C positions that are read, N entries of a table.
"""

import torch
from torch import Tensor, nn

from lrec.model.config import TIME_BUCKETS, TransformerConfig


class AttentionBias(nn.Module):
    """P[l - c] + T[bucket of the gap between l and c], shared by the heads of a block; both begin at 0."""

    def __init__(self, config: TransformerConfig) -> None:
        """With the tables that the architecture asks for."""
        super().__init__()
        choice = config.architecture
        self.distances = nn.Parameter(torch.empty(config.max_len)) if choice.position_bias else None
        self.gaps = nn.Parameter(torch.empty(TIME_BUCKETS)) if choice.time_bias else None

    def forward(self, positions_BL: Tensor, n_read: int, gaps_BLC: Tensor | None) -> Tensor:
        """The sum, (B or 1, 1, L, C), for positions that read positions 0 .. n_read - 1.

        Args:
            positions_BL: Where those that read stand.
            n_read: C.
            gaps_BLC: `event_times.gaps` of each pair; used where there is a table of gaps.
        """
        terms = []
        if self.distances is not None:
            distance_BLC = positions_BL[..., None] - torch.arange(n_read, device=positions_BL.device)
            terms.append(_looked_up(self.distances, distance_BLC.clamp(min=0)))  # below 0 nothing is read
        if self.gaps is not None:
            assert gaps_BLC is not None
            terms.append(_looked_up(self.gaps, gaps_BLC))
        return sum(terms[1:], terms[0])[:, None]


def _looked_up(table_N: Tensor, index_BLC: Tensor) -> Tensor:
    # Of all ways of indexing, this one's gradient takes the least time on a CPU.
    return table_N.index_select(0, index_BLC.flatten()).view(index_BLC.shape)
