"""Parameters, FLOPs and traffic of a network: pure functions of the config.

For lrec's own parts, these are formulas without torch, because importing torch would take longer than computing them.
A network with a user's own parts is built on the meta device, and its parameters are counted.
"""

from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from lrec.model.config import OWN_PARTS, TIME_BUCKETS, TransformerConfig

if TYPE_CHECKING:
    from lrec.model.transformer import Transformer

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]
ITEM, TARGET, SUM = 4, 8, 4  # bytes: an item's index as an input, an item's index as a target, a float32


class Parameters(NamedTuple):
    """Trained parameters by group."""

    body: int  # the blocks' matrices
    items: int  # the items' own rows
    positions: int  # other tables: positions, buckets of time, types of event, projection of item vectors, seen items
    biases: int  # vectors of the blocks, except those of norms
    norms: int


@cache
def parameters(config: TransformerConfig) -> Parameters:
    if not _has_own_parts(config):
        return _counted(config)
    choice, d, inner = config.architecture, config.width, config.inner_width
    if choice.attention == "hstu":
        attention, attention_biases = 5 * d * config.heads * config.head_width, d
    else:
        attention, attention_biases = 4 * d * d, 4 * d
    attention_biases += (config.max_len if choice.position_bias else 0) + (TIME_BUCKETS if choice.time_bias else 0)
    into = {"gelu": inner, "swiglu": 2 * inner, "none": 0}[choice.mlp]
    mlp, mlp_biases = ((into + inner) * d, into + d) if into else (0, 0)
    norm = (2 if choice.norm == "layer" else 1) * d
    head_norms = 2 * config.head_width if choice.qk_norm else 0
    positions = config.max_len if choice.positions == "learned" else 0
    times = TIME_BUCKETS if choice.time == "input" else 0
    ages = config.max_len.bit_length() if choice.seen else 0
    return Parameters(
        body=config.layers * (attention + mlp),
        items=n_head(config) if config.own_rows else 0,
        positions=(positions + times + ages + config.event_types + (config.vector_width or 0)) * d,
        biases=config.layers * (attention_biases + mlp_biases),
        norms=config.layers * ((2 if into else 1) * norm + head_norms) + norm,
    )


def _has_own_parts(config: TransformerConfig) -> bool:
    return all(getattr(config.architecture, part) in own for part, own in OWN_PARTS.items())


def _counted(config: TransformerConfig) -> Parameters:
    count = dict.fromkeys(Parameters._fields, 0)
    for name, parameter in _net(config).named_parameters():
        if name == "items.weight":
            group = "items"
        elif name.startswith(("positions.", "times.", "events.", "items.", "seen.")):
            group = "positions"
        elif name.startswith("blocks.") and parameter.ndim >= 2:
            group = "body"
        else:
            group = "norms" if "norm" in name else "biases"
        count[group] += parameter.numel() * parameter.requires_grad
    return Parameters(**count)


def _net(config: TransformerConfig) -> "Transformer":
    import torch

    from lrec.model.transformer import Transformer

    with torch.device("meta"):
        return Transformer(config)


def n_body(config: TransformerConfig) -> int:
    """Entries of the blocks' matrices: no biases, norms or embeddings (as in arXiv 2311.11351).

    12 L d² for lrec's own blocks, or 4 L d² for softmax attention without a perceptron. Rounding changes it by a share
    of at most 1 / (8 d) with SwiGLU, unless 3 divides d, and of 5 h / (12 d) with HSTU, if lrec chooses its head width.
    """
    return parameters(config).body


def n_head(config: TransformerConfig) -> int:
    """Entries of the tied item table, V d, whether its rows are trained or made from vectors."""
    return config.n_items * config.width


def n_total(config: TransformerConfig) -> int:
    """Every trained parameter."""
    return sum(parameters(config))


@cache
def flops_per_pair(config: TransformerConfig) -> int:
    """Forward FLOPs, in all blocks, of a pair of a position and one that it attends to."""
    if _has_own_parts(config):
        return 4 * config.layers * config.heads * config.head_width
    return sum(attention.flops_per_pair() for attention in _net(config).attentions)


class Flops(NamedTuple):
    """FLOPs per interaction with full softmax: those of the step, and those that checkpointing computes again."""

    forward: int
    backward: int
    recomputed: int


def flops_per_interaction(config: TransformerConfig, pairs: float | None = None, checkpointing: bool = False) -> Flops:
    """FLOPs of a position with a target: 2 per matrix entry forward, 4 backward, and those of attention's products. It
    attends to `pairs` positions on average, itself included; by default (max_len + 1) / 2, as in a full window."""
    if pairs is None:
        pairs = (config.max_len + 1) / 2
    blocks = 2 * n_body(config) + round(flops_per_pair(config) * pairs)
    forward = blocks + 2 * n_head(config)
    return Flops(forward, 2 * forward, blocks if checkpointing else 0)


def training_flops(
    config: TransformerConfig, targets: int, pairs: int, head_flops_per_target: int, positions: int | None = None
) -> int:
    """Training FLOPs, forward and backward, of windows with these numbers of targets and `pairs` of a position and one
    that it attends to. Give `positions` if some have no target. The head's FLOPs are `Loss.flops_per_target`."""
    positions = targets if positions is None else positions
    return 6 * n_body(config) * positions + head_flops_per_target * targets + 3 * flops_per_pair(config) * pairs


def projection_flops(config: TransformerConfig) -> int:
    """FLOPs of a step for given vectors: 2 V W d to make the item table, and as many for the projection's gradient."""
    return 4 * config.n_items * (config.vector_width or 0) * config.width


def entry_bytes(precision: Precision) -> tuple[int, int]:
    """Bytes of an entry of a parameter, and of an entry of the inputs and results of matrix products."""
    return 2 if precision == "bf16-true" else 4, 4 if precision == "32-true" else 2


class Traffic(NamedTuple):
    """Bytes that a rank receives in a step."""

    parameters: int  # parameters of other ranks, gathered for each pass over the blocks
    gradients: int  # gradients of its own share, from the ranks that share parameters and from other copies
    muon: int  # the other ranks' shares of the steps of the blocks' matrices; 0 with AdamW alone
    embeddings: int  # the other ranks' items, table rows for its own items, and the other ranks' gradients of rows
    hidden: int  # hidden states of the other ranks, and the gradients of its own
    scores: int  # log-sums and targets' scores for every target


def traffic(
    config: TransformerConfig,
    positions: int,
    precision: Precision = "32-true",
    shards: int = 1,
    ranks: int = 1,
    accumulation: int = 1,
) -> Traffic:
    """Traffic of a step as in `memory.of_step`. Gathers and scatters go in a ring: each rank receives what it lacks."""
    parameter, product = entry_bytes(precision)
    if shards == 1:
        return Traffic(0, round(2 * (ranks - 1) / ranks * n_total(config) * parameter), 0, 0, 0, 0)
    rest = n_total(config) - parameters(config).items
    lacking = (shards - 1) / shards
    copies = ranks // shards
    others = positions * (ranks - 1)  # positions of all other ranks
    reduced = rest * SUM * lacking * accumulation + 2 * (copies - 1) / copies * rest / shards * SUM
    return Traffic(
        parameters=round(2 * rest * product * lacking) * accumulation,
        gradients=round(reduced),
        muon=round(n_body(config) * SUM * lacking),
        embeddings=others * (ITEM + config.width * 2 * parameter) * accumulation,
        hidden=others * config.width * (product + SUM) * accumulation,
        scores=others * (TARGET + 2 * 3 * SUM) * accumulation,
    )
