"""Parameters, FLOPs and memory of a size: pure functions of the config.

Of lrec's own parts by formula, without torch, which takes longer to import than all of it to compute; a network with a
user's own parts is made, and counted.
"""

from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from lrec.model.config import OWN_PARTS, TIME_BUCKETS, TransformerConfig

if TYPE_CHECKING:
    from lrec.model.transformer import Transformer

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]

# Logits held at once. On a CPU, a chunk stays in the cache where products of that few rows are still fast (they want
# twice as many as the width); where not, more rows make faster products. MAX bounds memory, in float32: every chunk
# passes over all rows of the table that a process holds, so that where these are many, more processes, which hold fewer
# each, pass over less.
CPU_CACHE_ELEMENTS = 2**21
CPU_ROWS = 1024
MAX_CHUNK_BYTES = 400 * 2**20


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


def entry_bytes(precision: Precision) -> tuple[int, int]:
    """Bytes of an entry of a parameter, and of what matrix products take and give."""
    return 2 if precision == "bf16-true" else 4, 4 if precision == "32-true" else 2


class Memory(NamedTuple):
    """Bytes of one rank at the peak of a training step.

    Attributes:
        parameters: Its share of the parameters, with the vectors given for items.
        gradients: Its share of the gradients, which are made while activations go.
        optimizer: Its share of AdamW's two moments.
        copies: Whole parameters it holds beside its share: gathered ones, and their bfloat16 copies under autocast.
        activations: What the forward pass keeps for the backward pass.
        transient: The most that a head or a block's backward pass holds for a moment, the table's gradient included.
        at_the_end: All gradients but those of the first block, which goes backward last, and what it holds then.
    """

    parameters: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    transient: int
    at_the_end: int

    @property
    def total(self) -> int:
        """The most at once."""
        passing = max(self.gradients, self.activations + self.transient, self.at_the_end)
        return self.parameters + self.optimizer + self.copies + passing


def memory(
    config: TransformerConfig,
    positions: int,
    precision: Precision = "32-true",
    shards: int = 1,
    checkpointing: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    ranks: int | None = None,
) -> Memory:
    """Memory of a training step with AdamW and full softmax; attention dropout is counted as the CPU computes it.

    A part of your own is taken to keep what softmax attention or a perceptron of inner width 4 d keeps. Where
    parameters are sharded, the item table is split over all ranks, and each scores the positions of all against its own
    rows.

    Args:
        config: The network.
        positions: Positions of a rank's micro-batch, each with a target.
        precision: That of Trainer(precision=...). With several shards bf16-mixed is FSDP2's param_dtype=bfloat16, in
            which the residual stream is bfloat16 too.
        shards: Ranks that share the blocks' parameters, gradients and moments; 1 where each holds all (one rank, DDP).
        checkpointing: Whether blocks keep only their inputs.
        device: Decides how many logits full softmax holds at once, and in what precision attention is computed.
        ranks: All ranks of a step, which share the item table where shards is not 1; `shards` by default.
    """
    assert positions >= 1
    assert shards >= 1
    ranks = shards if ranks is None or shards == 1 else ranks
    parameter, product = entry_bytes(precision)
    stream = product if shards > 1 else parameter  # the residual stream
    rows = -(-config.n_items // ranks)  # of the table
    table = rows * config.width * parameter
    vectors = rows * (config.vector_width or 0) * parameter
    rest = n_total(config) - parameters(config).items
    share = (table if config.own_rows else 0) + -(-rest * parameter // shards)
    if shards > 1:
        # All but the item table for the whole step; of the blocks two, the next being fetched, and a gradient.
        block = n_body(config) // config.layers
        copies = (rest - n_body(config) + 2 * block) * product + block * parameter
        everyone = ranks * positions * config.width * (product + 4)  # hidden states of all, and their gradients
    else:
        copies = n_body(config) * 2 if precision == "bf16-mixed" else 0
        everyone = 0
    if vectors:
        copies += table  # made of them
    in_block = positions * _block_activations(config, stream, product, device)
    hidden = positions * config.width * stream
    activations = config.layers * (hidden if checkpointing else in_block) + hidden  # the last norm keeps its input
    in_head = 3 * hidden + everyone + _head(config, rows, ranks * positions, product, device)
    backward = positions * _block_backward(config, stream, product)
    transient = max(in_head, 2 * hidden + table + (in_block if checkpointing else backward))
    of_a_block = n_body(config) // config.layers * parameter // shards
    at_the_end = share - of_a_block + in_block + backward // 2  # what it keeps goes while its gradients come
    return Memory(share + vectors, share, 2 * share, copies, activations, transient, at_the_end)


def chunk_rows(n_items: int, width: int, device_type: str) -> int:
    """Rows of a chunk of full softmax: targets whose scores of the `n_items` that a process holds are held at once."""
    at_most = max(MAX_CHUNK_BYTES // (4 * n_items), 1)
    if device_type != "cpu":
        return at_most
    rows = max(CPU_CACHE_ELEMENTS // n_items, 2 * width)
    return rows if rows * n_items <= 4 * CPU_CACHE_ELEMENTS else min(at_most, CPU_ROWS)


def _block_activations(config: TransformerConfig, stream: int, product: int, device: str) -> int:
    """Bytes a position leaves in a block for its backward pass."""
    choice, d = config.architecture, config.width
    branches = 1 if choice.mlp == "none" else 2
    kept = branches * (stream + product) * d + 16  # each norm's input and output; statistics
    if choice.norm == "rms":
        kept += branches * d * (4 if stream == 4 else 6)  # normalised, in float32
    if config.dropout.residual.first or config.dropout.residual.last:
        kept += branches * product * d
    if choice.attention == "hstu":
        kept += _hstu_activations(config, product)
    else:
        kept += _softmax_activations(config, product, device)
    return kept + product * {"gelu": 2, "swiglu": 4, "none": 0}.get(choice.mlp, 2) * config.inner_width


def _softmax_activations(config: TransformerConfig, product: int, device: str) -> int:
    choice, d = config.architecture, config.width
    kept = product * 4 * d + 4 * config.heads  # queries, keys, values; what is read; statistics
    if choice.qk_norm or choice.positions == "rotary":
        kept += product * 2 * d
    if choice.qk_norm:
        kept += 2 * d * (4 if product == 4 else 8)  # normalised, and the input, in float32
    has_dropout = config.dropout.attention.first or config.dropout.attention.last
    if has_dropout or choice.biased:
        kept += (12 if has_dropout else 8) * config.heads * config.max_len  # the weights, in float32
        kept += 3 * (4 - product) * d
    elif device == "cpu" and product < 4:
        kept += 3 * (4 - product) * d + 4 * d  # queries, keys, values and what is read, in float32
    return kept


def _hstu_activations(config: TransformerConfig, product: int) -> int:
    inner = config.heads * config.head_width
    has_dropout = config.dropout.attention.first or config.dropout.attention.last
    # U, V, Q and K before and after SiLU, copies of three of them by heads; what is read, normalised (both in float32),
    # gated, and a mask of dropout; logits and weights.
    kept = product * (4 + 4 + 3 + 1 + (1 if has_dropout else 0)) * inner + 2 * 4 * inner
    return kept + product * 2 * config.heads * config.max_len


def _head(config: TransformerConfig, n_items: int, positions: int, product: int, device: str) -> int:
    """Bytes of full softmax over `n_items` beside hidden states: the table's gradient, and a chunk's logits."""
    rows = chunk_rows(n_items, config.width, device)
    logits, table = n_items * min(rows, positions), n_items * config.width
    if product == 4:
        return 4 * table + 4 * logits
    # The gradient in float32, a copy of the table, then the logits with their softmax in float32, or a product to add.
    return 6 * table + max(6 * logits, 2 * logits + 2 * table)


def _block_backward(config: TransformerConfig, stream: int, product: int) -> int:
    """Bytes a position holds while the last block goes backward through its perceptron."""
    return product * (4 if config.architecture.mlp == "swiglu" else 2) * config.inner_width + stream * config.width
