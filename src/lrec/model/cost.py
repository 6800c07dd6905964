"""Parameters and FLOPs of a network: pure functions of the config.

Of lrec's own parts by formula, without torch, which takes longer to import than all of it to compute; a network with a
user's own parts is made, and counted.
"""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from lrec.model.config import OWN_PARTS, TIME_BUCKETS, TransformerConfig

if TYPE_CHECKING:
    from lrec.model.transformer import Transformer


class Parameters(NamedTuple):
    """Trained parameters by group: the blocks' matrices, the items' own rows, what else enters with the items
    (positions, buckets of time, types of event, the projection of item vectors), other vectors of the blocks, norms."""

    body: int
    items: int
    positions: int
    biases: int
    norms: int


@cache
def parameters(config: TransformerConfig) -> Parameters:
    """Every trained parameter."""
    return _of_own_parts(config) if _has_own_parts(config) else _counted(config)


def _has_own_parts(config: TransformerConfig) -> bool:
    """Whether all parts of the blocks are lrec's own."""
    return all(getattr(config.architecture, part) in own for part, own in OWN_PARTS.items())


def _of_own_parts(config: TransformerConfig) -> Parameters:
    choice, d, inner = config.architecture, config.width, config.inner_width
    read = config.heads * config.head_width
    if choice.attention == "hstu":
        attention, attention_biases = 5 * d * read, d
    else:
        attention, attention_biases = 4 * d * d, 4 * d
    if choice.position_bias:
        attention_biases += config.max_len
    if choice.time_bias:
        attention_biases += TIME_BUCKETS
    into = {"gelu": inner, "swiglu": 2 * inner, "none": 0}[choice.mlp]
    mlp, mlp_biases = ((into + inner) * d, into + d) if into else (0, 0)
    norm = (2 if choice.norm == "layer" else 1) * d
    head_norms = 2 * config.head_width if choice.qk_norm else 0
    branches = 2 if into else 1
    positions = config.max_len if choice.positions == "learned" else 0
    times = TIME_BUCKETS if choice.time == "input" else 0
    return Parameters(
        body=config.layers * (attention + mlp),
        items=n_head(config) if config.own_rows else 0,
        positions=(positions + times + config.event_types + (config.vector_width or 0)) * d,
        biases=config.layers * (attention_biases + mlp_biases),
        norms=config.layers * (branches * norm + head_norms) + norm,
    )


def _counted(config: TransformerConfig) -> Parameters:
    count = dict.fromkeys(Parameters._fields, 0)
    for name, parameter in _net(config).named_parameters():
        if not parameter.requires_grad:
            continue
        if name == "items.weight":
            group = "items"
        elif name.startswith(("positions.", "times.", "events.", "items.")):
            group = "positions"
        elif name.startswith("blocks.") and parameter.ndim >= 2:
            group = "body"
        else:
            group = "norms" if "norm" in name else "biases"
        count[group] += parameter.numel()
    return Parameters(**count)


def _net(config: TransformerConfig) -> "Transformer":
    """The network, without memory."""
    import torch

    from lrec.model.transformer import Transformer

    with torch.device("meta"):
        return Transformer(config)


def n_body(config: TransformerConfig) -> int:
    """Entries of the blocks' matrices: no biases, norms or embeddings (as in arXiv 2311.11351).

    12 L d² of lrec's own blocks, exactly; with SwiGLU where 3 divides d, and otherwise to 1 / (8 d) for the rounding of
    its inner width; with HSTU to 5 h / (12 d) for the rounding of its heads' width.
    """
    return parameters(config).body


def n_head(config: TransformerConfig) -> int:
    """Entries of the tied item table, V d, whether items have rows of their own or vectors make them."""
    return config.n_items * config.width


def n_total(config: TransformerConfig) -> int:
    """Every trained parameter."""
    return sum(parameters(config))


@cache
def flops_per_pair(config: TransformerConfig) -> int:
    """FLOPs forward, in all blocks, of a pair of a position and one it attends to: 4 L d of softmax attention, and of
    HSTU's 4 L (heads x head width)."""
    if _has_own_parts(config):
        return 4 * config.layers * config.heads * config.head_width
    return sum(attention.flops_per_pair() for attention in _net(config).attentions)


class Flops(NamedTuple):
    """FLOPs per interaction with full softmax: what the step computes, and what checkpointing computes again."""

    forward: int
    backward: int
    recomputed: int


def flops_per_interaction(config: TransformerConfig, pairs: float | None = None, checkpointing: bool = False) -> Flops:
    """FLOPs of a position with a target: 2 per matrix entry forward and 4 backward, and attention's products.

    Args:
        config: The network.
        pairs: Positions that one attends to on average, itself included; by default (max_len + 1) / 2, a full window's.
        checkpointing: Whether the blocks are computed again in the backward pass.
    """
    if pairs is None:
        pairs = (config.max_len + 1) / 2
    blocks = 2 * n_body(config) + round(flops_per_pair(config) * pairs)
    forward = blocks + 2 * n_head(config)
    return Flops(forward, 2 * forward, blocks if checkpointing else 0)


def training_flops(
    config: TransformerConfig, targets: int, pairs: int, head_flops_per_target: int, positions: int | None = None
) -> int:
    """Training FLOPs of windows as they are, forward and backward.

    Args:
        config: The network.
        targets: Positions with a target.
        pairs: Pairs of a position and one it attends to: 4 d FLOPs each in a block of softmax attention forward, twice
            that backward.
        head_flops_per_target: What the loss costs (`Loss.flops_per_target`).
        positions: All of them, where some have no target.
    """
    positions = targets if positions is None else positions
    return 6 * n_body(config) * positions + head_flops_per_target * targets + 3 * flops_per_pair(config) * pairs


def projection_flops(config: TransformerConfig) -> int:
    """FLOPs of a step to make the item table of vectors, 2 V W d, and of the projection's gradient, as many."""
    return 4 * config.n_items * (config.vector_width or 0) * config.width
