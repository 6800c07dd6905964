"""Parameters and FLOPs of a size: pure functions of the config."""

from typing import NamedTuple

from lrec.net import TransformerConfig


def n_body(config: TransformerConfig) -> int:
    """Entries of the blocks' matrices: no biases, norms or embeddings (as in arXiv 2311.11351).

    12 L d², exactly; with SwiGLU where 3 divides d, and otherwise to 1 / (8 d) for the rounding of its inner width.
    """
    perceptron = {"gelu": 2, "swiglu": 3}[config.architecture.mlp] * config.width * config.inner_width
    return config.layers * (4 * config.width**2 + perceptron)


def n_head(config: TransformerConfig) -> int:
    """Entries of the tied item table, V d."""
    return config.n_items * config.width


class Parameters(NamedTuple):
    """Trained parameters by group."""

    body: int
    items: int
    positions: int
    biases: int
    norms: int


def parameters(config: TransformerConfig) -> Parameters:
    """Every trained parameter: N_body, N_head, learned positions, biases of the matrices, gains and biases of norms."""
    choice, d = config.architecture, config.width
    mlp_in = config.inner_width * (2 if choice.mlp == "swiglu" else 1)
    norm = 2 * d if choice.norm == "layer" else d
    qk_norm = 2 * config.head_width if choice.qk_norm else 0
    return Parameters(
        body=n_body(config),
        items=n_head(config),
        positions=config.max_len * d if choice.positions == "learned" else 0,
        biases=config.layers * (3 * d + d + mlp_in + d),
        norms=config.layers * (2 * norm + qk_norm) + norm,
    )


def n_total(config: TransformerConfig) -> int:
    """Every trained parameter."""
    return sum(parameters(config))


def flops_per_target(config: TransformerConfig) -> int:
    """Training FLOPs per target: 6 per matrix entry of body and head, and 6 d (max_len + 1) a block for attention.

    A position of a full window attends to (max_len + 1) / 2 keys on average; each costs 4 d FLOPs forward (query-key
    and weight-value products) and twice that backward. Shorter windows cost less: this is an upper bound for them.
    """
    attention = 6 * config.layers * config.width * (config.max_len + 1)
    return 6 * (n_body(config) + n_head(config)) + attention


def training_flops(config: TransformerConfig, targets: int, pairs: int, head_flops_per_target: int) -> int:
    """Training FLOPs of windows as they are, forward and backward.

    Args:
        config: The network.
        targets: Positions with a target.
        pairs: Pairs of a position and one it attends to: 4 d FLOPs each in every block forward, twice that backward.
        head_flops_per_target: What the loss costs (`Loss.flops_per_target`).
    """
    return targets * (6 * n_body(config) + head_flops_per_target) + 12 * config.layers * config.width * pairs
