"""Peak memory of a training step, computed from the config, and the number of scores that full softmax holds."""

from typing import Literal, NamedTuple

from lrec.model.config import TransformerConfig
from lrec.model.cost import Precision, entry_bytes, n_body, n_total, parameters

# Logits held at once. On a CPU, a chunk stays in the cache if that leaves enough rows for fast products (twice the
# width); if not, more rows make products faster. MAX_CHUNK_BYTES limits the memory of float32 logits. Each chunk passes
# over all rows of the table that a process holds; with many rows, more processes help, because each then holds fewer.
CPU_CACHE_ELEMENTS = 2**21
CPU_ROWS = 1024
MAX_CHUNK_BYTES = 400 * 2**20


class Memory(NamedTuple):
    """Bytes of one rank at the peak of a training step."""

    parameters: int  # its share, and the given item vectors
    gradients: int  # its share, which is computed while activations are freed
    optimizer: int  # its share of AdamW's two moments
    copies: int  # gathered parameters, bfloat16 copies under autocast, and a table made from item vectors
    activations: int  # what the forward pass keeps for the backward pass
    transient: int  # the most that a head or a block's backward pass holds for a moment, the table's gradient included
    at_the_end: int  # gradients of all but the first block, whose backward pass is last, and what that pass holds

    @property
    def total(self) -> int:
        passing = max(self.gradients, self.activations + self.transient, self.at_the_end)
        return self.parameters + self.optimizer + self.copies + passing


def of_step(
    config: TransformerConfig,
    positions: int,
    precision: Precision = "32-true",
    shards: int = 1,
    checkpointing: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    ranks: int | None = None,
) -> Memory:
    """Memory of a training step with AdamW and full softmax, for a micro-batch of `positions` positions, each with a
    target. Attention dropout is counted as the CPU computes it.

    A part of your own counts as softmax attention or as a perceptron of inner width 4 d. If `shards` > 1 ranks share
    the blocks' parameters, all `ranks` split the item table, and each scores the positions of all ranks against its own
    rows; bf16-mixed is then FSDP2's param_dtype bfloat16, with a residual stream in bfloat16 too.
    """
    ranks = shards if ranks is None or shards == 1 else ranks
    parameter, product = entry_bytes(precision)
    stream = product if shards > 1 else parameter  # the residual stream
    rows = -(-config.n_items // ranks)  # rows of the table
    table = rows * config.width * parameter
    vectors = rows * (config.vector_width or 0) * parameter
    rest = n_total(config) - parameters(config).items
    share = (table if config.own_rows else 0) + -(-rest * parameter // shards)
    if shards > 1:
        # For the whole step, all but blocks and item table; of blocks, this one, the next one, and one gradient.
        block = n_body(config) // config.layers
        copies = (rest - n_body(config) + 2 * block) * product + block * parameter
        everyone = ranks * positions * config.width * (product + 4)  # hidden states of all ranks, and their gradients
    else:
        copies = n_body(config) * 2 if precision == "bf16-mixed" else 0
        everyone = 0
    if vectors:
        copies += table  # made from the vectors
    in_block = positions * _block_activations(config, stream, product, device)
    hidden = positions * config.width * stream
    activations = config.layers * (hidden if checkpointing else in_block) + hidden  # the last norm keeps its input
    in_head = 3 * hidden + everyone + _head(config, rows, ranks * positions, product, device)
    into = 4 if config.architecture.mlp == "swiglu" else 2
    backward = positions * (product * into * config.inner_width + stream * config.width)  # of a perceptron
    transient = max(in_head, 2 * hidden + table + (in_block if checkpointing else backward))
    of_a_block = n_body(config) // config.layers * parameter // shards
    at_the_end = share - of_a_block + in_block + backward // 2  # a block frees activations while it computes gradients
    return Memory(share + vectors, share, 2 * share, copies, activations, transient, at_the_end)


def chunk_rows(n_items: int, width: int, device_type: str) -> int:
    """Rows of a chunk of full softmax: targets whose scores for a process's `n_items` items are in memory at once."""
    at_most = max(MAX_CHUNK_BYTES // (4 * n_items), 1)
    if device_type != "cpu":
        return at_most
    rows = max(CPU_CACHE_ELEMENTS // n_items, 2 * width)
    return rows if rows * n_items <= 4 * CPU_CACHE_ELEMENTS else min(at_most, CPU_ROWS)


def _block_activations(config: TransformerConfig, stream: int, product: int, device: str) -> int:
    """Bytes per position that a block keeps for its backward pass."""
    choice, d = config.architecture, config.width
    branches = 1 if choice.mlp == "none" else 2
    kept = branches * (stream + product) * d + 16  # each norm's input and output; statistics
    if choice.norm == "rms":
        kept += branches * d * (4 if stream == 4 else 6)  # normalised, in float32
    if config.dropout.residual.first or config.dropout.residual.last:
        kept += branches * product * d
    kept += product * {"gelu": 2, "swiglu": 4, "none": 0}.get(choice.mlp, 2) * config.inner_width
    drops = bool(config.dropout.attention.first or config.dropout.attention.last)
    if choice.attention == "hstu":
        # U, V, Q and K before and after SiLU, and copies of three of them by heads; what is read, before and after the
        # norm (in float32) and after the gate, and a dropout mask; logits and weights.
        inner = config.heads * config.head_width
        return kept + product * ((4 + 4 + 3 + 1 + drops) * inner + 2 * config.heads * config.max_len) + 2 * 4 * inner
    kept += product * 4 * d + 4 * config.heads  # queries, keys, values; what is read; statistics
    if choice.qk_norm or choice.positions == "rotary":
        kept += product * 2 * d
    if choice.qk_norm:
        kept += 2 * d * (4 if product == 4 else 8)  # normalised, and the input, in float32
    if drops or choice.biased:
        kept += (12 if drops else 8) * config.heads * config.max_len  # the weights, in float32
        kept += 3 * (4 - product) * d
    elif device == "cpu" and product < 4:
        kept += 3 * (4 - product) * d + 4 * d  # queries, keys, values and what is read, in float32
    return kept


def _head(config: TransformerConfig, n_items: int, positions: int, product: int, device: str) -> int:
    """Bytes of full softmax over `n_items`, without hidden states: the table's gradient, and a chunk's logits and
    histories."""
    rows = min(chunk_rows(n_items, config.width, device), positions)
    logits, table = n_items * rows, n_items * config.width
    # Items (int64), whether they count, what is added, and two tensors of gradients.
    seen = 21 * rows * config.max_len if config.architecture.seen else 0
    if product == 4:
        return 4 * table + 4 * logits + seen
    # The gradient in float32, a copy of the table, and then the logits and their float32 softmax, or a product to add.
    return 6 * table + max(6 * logits + seen, 2 * logits + 2 * table)
