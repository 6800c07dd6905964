"""The item table: trained rows, rows made from given item vectors, or the sum of both.

Shape suffixes: V catalogue, H rows held here, D width, W width of the given vectors.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lrec.model.config import TransformerConfig
from lrec.model.sharded_table import Table, fetch, local_rows, processes_of

# The parameters' names in a network.
OWN_ROWS, VECTORS, PROJECTION = "items.weight", "items.vectors", "items.projection"


class ItemTable(nn.Module):
    """The rows with which hidden states begin and with which they are compared at the end (tied, no bias)."""

    weight: nn.Parameter  # trained rows of the items (V, D); None if the rows are made from vectors only
    vectors: nn.Parameter | None  # given vectors of the items (V, W), not trained; None if none are given
    projection: nn.Parameter  # makes rows from vectors (W, D)

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        n_items, width, given = config.n_items, config.width, config.vector_width
        self.register_parameter("weight", nn.Parameter(torch.empty(n_items, width)) if config.own_rows else None)
        self.vectors = None
        if given is not None:
            self.vectors = nn.Parameter(torch.empty(n_items, given), requires_grad=False)
            self.projection = nn.Parameter(torch.empty(given, width))

    def by_item(self) -> dict[str, nn.Parameter]:
        """The parameters that have a row for each item, by name: trained rows and vectors."""
        return {name: rows for name, rows in self.named_parameters() if name != "projection"}

    def fetch(self, items: Tensor) -> tuple[Tensor, Table]:
        """The rows of some items, and the table for a head; see `sharded_table.fetch`."""
        if self.vectors is None:
            return fetch(self.weight, items)
        vectors_HW, processes = local_rows(self.vectors), processes_of(self.vectors)
        with torch.autocast(vectors_HW.device.type, enabled=False):
            rows_HD = vectors_HW @ self.projection.to(vectors_HW.dtype)
        if processes > 1 and rows_HD.requires_grad:
            # Each process has the gradient of its own rows. The projection's is their sum, but FSDP takes the average.
            rows_HD.register_hook(lambda grad_HD: grad_HD * processes)
        if self.weight is not None:
            rows_HD = rows_HD + local_rows(self.weight)
        return fetch(self.vectors, items, rows_HD)


def rows_of_vectors(parameters: Mapping[str, Tensor], vectors_VW: Tensor) -> Tensor:
    """The rows (V, D) that a network's projection makes from vectors."""
    return vectors_VW.float() @ parameters[PROJECTION].float()


def whole_table(parameters: Mapping[str, Tensor]) -> Tensor:
    """All rows (V, D) of a network's item table, from its parameters by name."""
    if VECTORS not in parameters:
        return parameters[OWN_ROWS]
    rows_VD = rows_of_vectors(parameters, parameters[VECTORS])
    return rows_VD + parameters[OWN_ROWS].float() if OWN_ROWS in parameters else rows_VD
