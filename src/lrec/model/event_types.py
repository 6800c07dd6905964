"""How the type of an event enters, such as view or buy: a vector per type, added to the item's.

Shape suffixes: B batch rows, L positions, D width.
"""

import torch
from torch import Tensor, nn

from lrec.model.config import TransformerConfig


class EventInput(nn.Module):
    """A vector per type of event. No row of the item table has it, so no score does."""

    def __init__(self, config: TransformerConfig) -> None:
        """With a vector for each type."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.event_types, config.width))

    def forward(self, hidden_BLD: Tensor, events_BL: Tensor) -> Tensor:
        """Items plus vectors."""
        return hidden_BLD + self.weight[events_BL]
