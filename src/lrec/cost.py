"""Parameters and FLOPs of a size: pure functions of the config."""

from lrec.net import TransformerConfig


def n_body(config: TransformerConfig) -> int:
    """Entries of the blocks' matrices, 12 L d²: no biases, norms or embeddings (as in arXiv 2311.11351)."""
    return 12 * config.layers * config.width**2


def n_head(config: TransformerConfig) -> int:
    """Entries of the tied item table, V d."""
    return config.n_items * config.width


def n_total(config: TransformerConfig) -> int:
    """Every trained parameter: body, item table, positions, biases (9 d a block) and norms (4 d a block, 2 d last)."""
    vectors = config.layers * 13 * config.width + 2 * config.width
    return n_body(config) + n_head(config) + config.max_len * config.width + vectors


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
