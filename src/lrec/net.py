"""The network: a decoder-only transformer over item IDs (GPT-2 style, pre-LN). Plain torch, one device, no Lightning.

`SIZES` is the ladder, `TransformerConfig` the shape, `Transformer` the network. Shape suffixes:
B batch rows, L positions, D width, H heads, K width per head, F inner width (4 D), V catalogue.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lrec.errors import UserError

INIT_STD = 0.02
LAYER_NORM_EPS = 1e-12


class Size(NamedTuple):
    """An entry of the ladder: number of blocks, width and heads."""

    layers: int
    width: int
    heads: int


# Named by N_body = 12 * layers * width^2. 98k, 786k, 1.6m, 9.4m, 75m and 829m are the sizes of arXiv 2311.11351; the
# others are for a laptop.
SIZES: dict[str, Size] = {
    "0.8k": Size(1, 8, 1),
    "1.7k": Size(1, 12, 1),
    "3k": Size(1, 16, 1),
    "4.8k": Size(1, 20, 1),
    "6.9k": Size(1, 24, 1),
    "9.4k": Size(1, 28, 1),
    "12k": Size(1, 32, 1),
    "25k": Size(2, 32, 1),
    "49k": Size(1, 64, 1),
    "55k": Size(2, 48, 2),
    "98k": Size(2, 64, 2),
    "111k": Size(1, 96, 1),
    "221k": Size(2, 96, 2),
    "786k": Size(4, 128, 4),
    "1.6m": Size(8, 128, 4),
    "9.4m": Size(12, 256, 8),
    "75m": Size(24, 512, 8),
    "829m": Size(48, 1200, 24),
}


def find_size(name: str) -> Size:
    """The ladder's entry of that name; UserError listing the names where there is none."""
    if name not in SIZES:
        raise UserError(f"unknown size {name!r}: choose one of {', '.join(SIZES)}, or give layers, width and heads")
    return SIZES[name]


@dataclass(frozen=True)
class OverDepth:
    """A dropout rate that runs linearly from the first block to the last.

    Attributes:
        first: Rate in the first (lowest) block.
        last: Rate in the last (highest) block.
    """

    first: float = 0.0
    last: float = 0.0

    def of_layer(self, layer: int, layers: int) -> float:
        """The rate of block `layer` (0 is the lowest) among `layers`; the first block's where there is one only."""
        return self.first + (self.last - self.first) * layer / max(layers - 1, 1)


@dataclass(frozen=True)
class Dropout:
    """Dropout rates; 0 is off. Those of the blocks run over depth: layer-wise adaptive dropout, arXiv 2311.11351.

    Attributes:
        embedding: Rate after the sum of item and position embeddings.
        attention: Rates of the attention weights.
        residual: Rates of the two residual branches of a block.
    """

    embedding: float = 0.0
    attention: OverDepth = OverDepth()
    residual: OverDepth = OverDepth()

    def __post_init__(self) -> None:
        rates = {"embedding": self.embedding}
        for name in ("attention", "residual"):
            rates |= {f"{name}.{end}": getattr(getattr(self, name), end) for end in ("first", "last")}
        for name, rate in rates.items():
            if not 0 <= rate < 1:
                raise UserError(f"dropout.{name} must be at least 0 and below 1, got {rate}")


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a Transformer.

    Attributes:
        n_items: Catalogue size V.
        max_len: Longest history in items; the number of learned positions.
        layers: Number of blocks L.
        width: Width d of the hidden states and of the item table.
        heads: Attention heads; must divide width.
        dropout: Dropout rates.
    """

    n_items: int
    max_len: int
    layers: int
    width: int
    heads: int
    dropout: Dropout = Dropout()

    def __post_init__(self) -> None:
        for name in ("n_items", "max_len", "layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise UserError(f"heads must divide width, got width {self.width} and heads {self.heads}")


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); GELU, inner width 4 d, biases on every matrix."""

    def __init__(self, width: int, heads: int, attention_dropout: float, residual_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.residual_dropout = residual_dropout
        self.attention_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Causal attention and the perceptron, each on a residual branch."""
        hidden_BLD = hidden_BLD + self._drop(self._attend(self.attention_norm(hidden_BLD)))
        inner_BLF = F.gelu(self.mlp_in(self.mlp_norm(hidden_BLD)))
        return hidden_BLD + self._drop(self.mlp_out(inner_BLF))

    def _attend(self, hidden_BLD: Tensor) -> Tensor:
        # Causality is mask enough: windows are padded on the right, so no real position sees a padded one.
        query_BHLK, key_BHLK, value_BHLK = (
            self.qkv(hidden_BLD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        rate = self.attention_dropout if self.training else 0.0
        read_BHLK = F.scaled_dot_product_attention(query_BHLK, key_BHLK, value_BHLK, dropout_p=rate, is_causal=True)
        return self.attention_out(read_BHLK.transpose(1, 2).flatten(-2))

    def _drop(self, branch_BLD: Tensor) -> Tensor:
        return F.dropout(branch_BLD, self.residual_dropout, self.training) if self.residual_dropout else branch_BLD


Result = TypeVar("Result")


class Transformer(nn.Module):
    """Items in, a head's result out; the output table is the item embedding (tied, no bias).

    Nothing but a head touches the table: losses, ranks and top-k are all functions of (hidden_BLD, table_VD).

    Attributes:
        checkpoint_activations: Keep only the blocks' inputs for the backward pass and compute the rest again.
    """

    def __init__(self, config: TransformerConfig, seed: int = 0) -> None:
        """Build and initialise the network; on the meta device nothing is drawn."""
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.items = nn.Embedding(config.n_items, config.width)
        self.positions = nn.Embedding(config.max_len, config.width)
        attention, residual, layers = config.dropout.attention, config.dropout.residual, config.layers
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, attention.of_layer(layer, layers), residual.of_layer(layer, layers))
            for layer in range(layers)
        )
        self.norm = nn.LayerNorm(config.width, LAYER_NORM_EPS)
        if not self.items.weight.is_meta:
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Give every parameter its initial value."""
        for name, parameter in self.named_parameters():
            parameter.copy_(self.initial_value(name, parameter.shape, seed))

    def initial_value(self, name: str, shape: torch.Size, seed: int) -> Tensor:
        """The whole parameter `name` before training, float32 on the CPU.

        Normal(0, 0.02) matrices and tables, residual projections scaled by 1/sqrt(2 L), zero biases, unit norms. A draw
        depends on the seed and the name alone: not on the device, on how parameters are sharded, or on their order.
        """
        if len(shape) == 1:
            return torch.full(shape, 1.0 if name.endswith("norm.weight") else 0.0)
        into_residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
        std = INIT_STD / math.sqrt(2 * self.config.layers) if into_residual else INIT_STD
        digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        return torch.empty(shape).normal_(0.0, std, generator=generator)

    def lr_multiplier(self, name: str) -> float:
        """Share of the optimizer's learning rate that the parameter `name` gets."""
        return 1.0

    def forward(self, items_BL: Tensor, head: Callable[[Tensor, Tensor], Result]) -> Result:
        """Encode the histories and return `head(hidden_BLD, table_VD)`."""
        length = items_BL.shape[1]
        hidden_BLD = self.items(items_BL) + self.positions.weight[:length]
        hidden_BLD = F.dropout(hidden_BLD, self.config.dropout.embedding, self.training)
        for block in self.blocks:
            if self.checkpoint_activations and self.training:
                hidden_BLD = checkpoint(block, hidden_BLD, use_reentrant=False)
            else:
                hidden_BLD = block(hidden_BLD)
        return head(self.norm(hidden_BLD), self.items.weight)
