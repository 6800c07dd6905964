"""What the wire carries: bytes that a rank receives in a training step, from the config alone."""

from typing import NamedTuple

from lrec.model import cost
from lrec.model.config import TransformerConfig
from lrec.model.memory import Precision, entry_bytes

ITEM, TARGET = 4, 8  # bytes of an item's index as an input, and as a target
SUM = 4  # of a float32


class Traffic(NamedTuple):
    """Bytes that a rank receives in a step.

    Attributes:
        parameters: Blocks' parameters of other ranks, gathered for each pass over the blocks.
        gradients: Gradients of its own share, from the ranks that share parameters and from other copies.
        embeddings: Items of all ranks, the rows that are here for them, and the gradients of those rows.
        hidden: Hidden states of all ranks, and the gradients of its own.
        scores: Log-sums and targets' scores of every target.
    """

    parameters: int
    gradients: int
    embeddings: int
    hidden: int
    scores: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def of_step(
    config: TransformerConfig,
    positions: int,
    precision: Precision = "32-true",
    shards: int = 1,
    ranks: int = 1,
    accumulation: int = 1,
) -> Traffic:
    """Traffic of a step with full softmax: gathers and scatters in a ring, where each rank receives what it lacks.

    Args:
        config: The network.
        positions: Positions of a rank's micro-batch, each with a target.
        precision: That of Trainer(precision=...), as in `memory.of_step`.
        shards: Ranks that share the blocks; 1: each holds the whole network (DDP).
        ranks: All of them.
        accumulation: Micro-batches of a step; each gathers the parameters again.
    """
    parameter, product = entry_bytes(precision)
    if shards == 1:
        return Traffic(0, round(2 * (ranks - 1) / ranks * cost.n_total(config) * parameter), 0, 0, 0)
    rest = cost.n_total(config) - cost.parameters(config).items
    lacking = (shards - 1) / shards
    copies = ranks // shards
    others = positions * (ranks - 1)  # positions of all other ranks
    reduced = rest * SUM * lacking * accumulation + 2 * (copies - 1) / copies * rest / shards * SUM
    return Traffic(
        parameters=round(2 * rest * product * lacking) * accumulation,
        gradients=round(reduced),
        embeddings=others * (ITEM + config.width * 2 * parameter) * accumulation,
        hidden=others * config.width * (product + SUM) * accumulation,
        scores=round(others * (TARGET + 2 * 3 * SUM)) * accumulation,
    )
