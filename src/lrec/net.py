"""The network: a decoder-only transformer over item IDs, pre-norm. Plain torch, one device, no Lightning.

`SIZES` is the ladder, `Architecture` what a block is made of, `MuP` how it is parametrised over width and depth,
`TransformerConfig` the whole shape, `Transformer` the network. Shape suffixes:
B batch rows, L positions, C positions that are read, D width, H heads, K width per head, J half of it, F inner width,
V catalogue.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lrec.errors import UserError

INIT_STD = 0.02
NORM_EPS = 1e-12
ROTARY_BASE = 10_000.0
_ARCHITECTURE = "architecture."


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
    "74k": Size(6, 32, 1),
    "98k": Size(2, 64, 2),
    "111k": Size(1, 96, 1),
    "221k": Size(2, 96, 2),
    "442k": Size(1, 192, 1),
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
class Architecture:
    """What a block is made of; the default is that of GPT-2 and of arXiv 2311.11351.

    Attributes:
        norm: Normalisation before each branch and at the end; layer (LayerNorm) or rms (RMSNorm, arXiv 1910.07467).
        mlp: Perceptron; gelu with inner width 4 d, or swiglu (arXiv 2002.05202) with 8 d / 3, which has as many
            parameters.
        positions: How order enters; learned adds a vector per position to the items, rotary turns queries and keys
            (arXiv 2104.09864).
        qk_norm: Normalise queries and keys per head (RMSNorm, arXiv 2010.04245).
    """

    norm: Literal["layer", "rms"] = "layer"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    positions: Literal["learned", "rotary"] = "learned"
    qk_norm: bool = False


@dataclass(frozen=True)
class MuP:
    """Maximal-update parametrisation: a learning rate found at the base shape holds at other widths and depths.

    With d0, h0, L0 the base and d, h, L the net, all for Adam (arXiv 2203.03466, table 8):

    - matrices of the blocks: initial standard deviation times sqrt(d0 / d), learning rate times d0 / d;
    - item table (tied) and positions: initialised and trained alike at every width, and logits times d0 / d;
    - attention: query-key products times sqrt(d0 / h0) / (d / h), that is 1 / head width instead of its square root;
    - depth: each residual branch times L0 / L, and the 1/sqrt(2 L) of the initialisation stays at L0 (arXiv 2505.01618
      with alpha = 1).

    At the base shape this is the standard parametrisation, exactly.

    Attributes:
        base_layers: Number of blocks at which the learning rate was found.
        base_width: Width at which it was found.
        base_heads: Attention heads at which it was found.
    """

    base_layers: int = 2
    base_width: int = 64
    base_heads: int = 2

    def __post_init__(self) -> None:
        for name in ("base_layers", "base_width", "base_heads"):
            if getattr(self, name) < 1:
                raise UserError(f"mup.{name} must be at least 1, got {getattr(self, name)}")


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
        architecture: What a block is made of.
        mup: Maximal-update parametrisation; None for the standard one.
    """

    n_items: int
    max_len: int
    layers: int
    width: int
    heads: int
    dropout: Dropout = Dropout()
    architecture: Architecture = Architecture()
    mup: MuP | None = None

    def __post_init__(self) -> None:
        for name in ("n_items", "max_len", "layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise UserError(f"heads must divide width, got width {self.width} and heads {self.heads}")
        if self.architecture.positions == "rotary" and self.head_width % 2:
            raise UserError(
                f"architecture.positions rotary needs an even width per head, got {self.width} / {self.heads} heads"
            )

    @property
    def head_width(self) -> int:
        """Width per attention head, d / h."""
        return self.width // self.heads

    @property
    def inner_width(self) -> int:
        """Width inside the perceptron: 4 d, or 8 d / 3 to the nearest integer for SwiGLU's three matrices."""
        return 4 * self.width if self.architecture.mlp == "gelu" else round(8 * self.width / 3)

    @property
    def width_scale(self) -> float:
        """d0 / d: what muP multiplies logits and the learning rate of the blocks' matrices by."""
        return 1.0 if self.mup is None else self.mup.base_width / self.width

    @property
    def branch_scale(self) -> float:
        """L0 / L: what muP multiplies residual branches by."""
        return 1.0 if self.mup is None else self.mup.base_layers / self.layers

    @property
    def attention_scale(self) -> float:
        """What query-key products are multiplied by."""
        if self.mup is None:
            return self.head_width**-0.5
        return math.sqrt(self.mup.base_width / self.mup.base_heads) / self.head_width

    def to_dict(self) -> dict[str, Any]:
        """What makes two networks differ in more than their weights, as a checkpoint stores it: all but dropout.

        Plain values; those of the architecture are named architecture.norm and so on.
        """
        shape = asdict(self)
        del shape["dropout"]
        architecture = {f"{_ARCHITECTURE}{name}": value for name, value in shape.pop("architecture").items()}
        return shape | architecture

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TransformerConfig":
        """The network that `to_dict` described, without dropout; what else is among the values is left alone."""
        architecture = {
            name.removeprefix(_ARCHITECTURE): value for name, value in values.items() if name.startswith(_ARCHITECTURE)
        }
        return cls(
            **{name: values[name] for name in ("n_items", "max_len", "layers", "width", "heads")},
            architecture=Architecture(**architecture),
            mup=None if values["mup"] is None else MuP(**values["mup"]),
        )


class KeyValueCache:
    """Keys and values that inference has computed, so that one more item costs one position.

    Attributes:
        filled_B: Positions of each row that are in; the row's next item stands at that position.
    """

    def __init__(self, rows: int, capacity: int, device: torch.device | None = None) -> None:
        """Make room for `capacity` positions of each row; those of a Transformer with learned positions are max_len."""
        self.capacity = capacity
        self.filled_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self._reach = 0  # no row is filled beyond; known without asking the device
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, lengths_B: Tensor) -> None:
        """Forget each row's positions from its length on, such as the padding of the histories it was filled with."""
        self.filled_B = lengths_B

    def reading(self, length: int) -> "Reading":
        """Where the next `length` items of each row stand, and what they read: everything up to themselves."""
        self._reach = min(self._reach + length, self.capacity)
        positions_BL = self.filled_B[:, None] + torch.arange(length, device=self.filled_B.device)
        read_C = torch.arange(self._reach, device=self.filled_B.device)
        self.filled_B = self.filled_B + length
        return Reading((read_C <= positions_BL[..., None])[:, None], positions_BL, self)

    def extend(self, layer: int, positions_BL: Tensor, key_BLHK: Tensor, value_BLHK: Tensor) -> tuple[Tensor, Tensor]:
        """Put in a block's keys and values at their positions; return all of them, (B, C, H, K)."""
        if layer not in self._layers:
            shape = (len(self.filled_B), self.capacity, *key_BLHK.shape[2:])
            self._layers[layer] = key_BLHK.new_zeros(shape), value_BLHK.new_zeros(shape)
        rows_B1 = torch.arange(len(positions_BL), device=positions_BL.device)[:, None]
        for whole, new_BLHK in zip(self._layers[layer], (key_BLHK, value_BLHK), strict=True):
            whole[rows_B1, positions_BL] = new_BLHK
        keys, values = self._layers[layer]
        return keys[:, : self._reach], values[:, : self._reach]


class Reading(NamedTuple):
    """What positions read where it is not simply themselves and all before them."""

    allowed_B1LC: Tensor  # bool: position l reads position c
    positions_BL: Tensor | None = None  # of those that read; None: from 0
    cache: KeyValueCache | None = None
    alone_B: Tensor | None = None  # flat index of the one position of each row that reads; None: all do


def _norm(config: TransformerConfig) -> nn.Module:
    kind = nn.LayerNorm if config.architecture.norm == "layer" else nn.RMSNorm
    return kind(config.width, NORM_EPS)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with biases on every matrix."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        """Block `layer` (0 is the lowest) of a net."""
        super().__init__()
        self.config = config
        self.layer = layer
        self.attention_dropout = config.dropout.attention.of_layer(layer, config.layers)
        self.residual_dropout = config.dropout.residual.of_layer(layer, config.layers)
        width, inner, architecture = config.width, config.inner_width, config.architecture
        self.attention_norm = _norm(config)
        self.qkv = nn.Linear(width, 3 * width)
        if architecture.qk_norm:
            self.query_norm = nn.RMSNorm(config.head_width, NORM_EPS)
            self.key_norm = nn.RMSNorm(config.head_width, NORM_EPS)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = _norm(config)
        self.mlp_in = nn.Linear(width, inner if architecture.mlp == "gelu" else 2 * inner)  # swiglu: gate, then value
        self.mlp_out = nn.Linear(inner, width)

    def forward(self, hidden_BLD: Tensor, reading: Reading | None = None) -> Tensor:
        """Attention, causal unless `reading` says otherwise, and the perceptron, each on a residual branch; (B, 1, D)
        where one position of each row reads alone."""
        branch_BLD = self._attend(self.attention_norm(hidden_BLD), reading)
        if reading is not None and reading.alone_B is not None:
            hidden_BLD = _at(hidden_BLD, reading.alone_B)
        hidden_BLD = self._add(hidden_BLD, branch_BLD)
        return self._add(hidden_BLD, self._perceive(self.mlp_norm(hidden_BLD)))

    def _attend(self, hidden_BLD: Tensor, reading: Reading | None) -> Tensor:
        alone_B = None if reading is None else reading.alone_B
        if alone_B is None:
            query_BLHK, key_BLHK, value_BLHK = self.qkv(hidden_BLD).unflatten(-1, (3, self.config.heads, -1)).unbind(-3)
        else:
            of_query, of_rest = slice(self.config.width), slice(self.config.width, None)
            asking_B1D = _at(hidden_BLD, alone_B)
            query_BLHK = F.linear(asking_B1D, self.qkv.weight[of_query], self.qkv.bias[of_query])
            query_BLHK = query_BLHK.unflatten(-1, (self.config.heads, -1))
            rest_BLE = F.linear(hidden_BLD, self.qkv.weight[of_rest], self.qkv.bias[of_rest])
            key_BLHK, value_BLHK = rest_BLE.unflatten(-1, (2, self.config.heads, -1)).unbind(-3)
        if self.config.architecture.qk_norm:
            query_BLHK, key_BLHK = _normalised(query_BLHK, self.query_norm), _normalised(key_BLHK, self.key_norm)
        positions_BL = None if reading is None else reading.positions_BL
        if self.config.architecture.positions == "rotary":
            query_BLHK = rotate(query_BLHK, positions_BL)
            key_BLHK = rotate(key_BLHK, positions_BL if alone_B is None else None)
        if reading is not None and reading.cache is not None:
            assert positions_BL is not None
            key_BLHK, value_BLHK = reading.cache.extend(self.layer, positions_BL, key_BLHK, value_BLHK)
        # Causality is mask enough: windows are padded on the right, so no real position sees a padded one.
        read_BHLK = F.scaled_dot_product_attention(
            query_BLHK.transpose(1, 2),
            key_BLHK.transpose(1, 2),
            value_BLHK.transpose(1, 2),
            attn_mask=None if reading is None else reading.allowed_B1LC,
            dropout_p=self.attention_dropout if self.training else 0.0,
            is_causal=reading is None,
            scale=self.config.attention_scale,
        )
        return self.attention_out(read_BHLK.transpose(1, 2).flatten(-2))

    def _perceive(self, hidden_BLD: Tensor) -> Tensor:
        inner_BLF = self.mlp_in(hidden_BLD)
        if self.config.architecture.mlp == "gelu":
            return self.mlp_out(F.gelu(inner_BLF))
        gate_BLF, value_BLF = inner_BLF.chunk(2, -1)
        return self.mlp_out(F.silu(gate_BLF) * value_BLF)

    def _add(self, hidden_BLD: Tensor, branch_BLD: Tensor) -> Tensor:
        if self.residual_dropout:
            branch_BLD = F.dropout(branch_BLD, self.residual_dropout, self.training)
        return torch.add(hidden_BLD, branch_BLD, alpha=self.config.branch_scale)


def _at(hidden_BLD: Tensor, alone_B: Tensor) -> Tensor:
    """One position of each row, (B, 1, D)."""
    return hidden_BLD.flatten(0, 1)[alone_B][:, None]


def _normalised(x_BLHK: Tensor, norm: nn.RMSNorm) -> Tensor:
    # Under autocast x is bfloat16 and the gains are float32, which the norm's kernels refuse to mix.
    return norm(x_BLHK.to(norm.weight.dtype)).to(x_BLHK.dtype)


def rotate(x_BLHK: Tensor, positions_BL: Tensor | None = None) -> Tensor:
    """Rotary positions: turn the pair (2j, 2j + 1) of position l by the angle l * 10000^(-2j / K); l counts from 0."""
    length, width = x_BLHK.shape[1], x_BLHK.shape[-1]
    dtype = torch.promote_types(x_BLHK.dtype, torch.float32)  # angles of late positions need more than bfloat16
    if positions_BL is None:
        positions_BL = torch.arange(length, device=x_BLHK.device)[None]
    speeds_J = ROTARY_BASE ** -(torch.arange(0, width, 2, dtype=dtype, device=x_BLHK.device) / width)
    angles_BL1J = positions_BL[..., None, None].to(dtype) * speeds_J
    cosine_BL1J, sine_BL1J = angles_BL1J.cos(), angles_BL1J.sin()
    even_BLHJ, odd_BLHJ = x_BLHK.unflatten(-1, (-1, 2)).unbind(-1)
    turned = (even_BLHJ * cosine_BL1J - odd_BLHJ * sine_BL1J, even_BLHJ * sine_BL1J + odd_BLHJ * cosine_BL1J)
    return torch.stack(turned, -1).flatten(-2).to(x_BLHK.dtype)


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
        if config.architecture.positions == "learned":
            self.positions = nn.Embedding(config.max_len, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = _norm(config)
        if not self.items.weight.is_meta:
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Give every parameter its initial value."""
        for name, parameter in self.named_parameters():
            parameter.copy_(self.initial_value(name, parameter.shape, seed))

    def initial_value(self, name: str, shape: torch.Size, seed: int) -> Tensor:
        """The whole parameter `name` before training, float32 on the CPU.

        Normal(0, 0.02) matrices and tables, residual projections scaled by 1/sqrt(2 L), zero biases, unit norms; `MuP`
        says what it changes. A draw depends on the seed and the name alone: not on the device, on how parameters are
        sharded, or on their order.
        """
        if len(shape) == 1:
            return torch.full(shape, 1.0 if name.endswith("norm.weight") else 0.0)
        std = INIT_STD
        if name.startswith("blocks."):
            std *= math.sqrt(self.config.width_scale)
        if name.endswith(("attention_out.weight", "mlp_out.weight")):
            std /= math.sqrt(2 * self.config.layers * self.config.branch_scale)
        digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)

    def lr_multiplier(self, name: str) -> float:
        """Share of the optimizer's learning rate that the parameter `name` gets; not 1 for muP's matrices only."""
        is_matrix = name.startswith("blocks.") and name.endswith(
            ("qkv.weight", "attention_out.weight", "mlp_in.weight", "mlp_out.weight")
        )
        return self.config.width_scale if is_matrix else 1.0

    def sgd_lr_multiplier(self, name: str) -> float:
        """Share of SGD's learning rate that the parameter `name` gets.

        Under muP all gradients shrink with the logits, by d0/d, and those of blocks with their branches too, by L0/L.
        AdamW does not see the size of gradients; SGD does, and makes up for it.
        """
        shrinkage = self.config.width_scale * (self.config.branch_scale if name.startswith("blocks.") else 1.0)
        return self.lr_multiplier(name) / shrinkage

    def forward(
        self,
        items_BL: Tensor,
        head: Callable[[Tensor, Tensor], Result],
        blank_BL: Tensor | None = None,
        cache: KeyValueCache | None = None,
        alone_B: Tensor | None = None,
    ) -> Result:
        """Encode the histories and return `head(hidden_BLD, table_VD)`, or `head(hidden_BD, table_VD)` of `alone_B`.

        Args:
            items_BL: Catalogue indices, right-padded with any.
            head: What is wanted of the hidden states and the item table.
            blank_BL: True where an item is blanked in place: it keeps its position, no other position reads it, and its
                own hidden state knows nothing of it.
            cache: What earlier items of these histories have left; `items_BL` goes on from there, and is put in. For
                inference, without blanks.
            alone_B: Flat index b * L + l of the one position of each row whose hidden state is wanted: the last block
                computes no other. Without a cache.
        """
        assert cache is None or (blank_BL is None and alone_B is None)
        length = items_BL.shape[1]
        hidden_BLD = self.items(items_BL)
        reading = None
        if blank_BL is not None:
            hidden_BLD = hidden_BLD.masked_fill(blank_BL[..., None], 0.0)
            reading = _reading_around(blank_BL)
        if cache is not None:
            reading = cache.reading(length)
        if self.config.architecture.positions == "learned":
            places = slice(length) if cache is None or reading is None else reading.positions_BL
            hidden_BLD = hidden_BLD + self.positions.weight[places]
        hidden_BLD = F.dropout(hidden_BLD, self.config.dropout.embedding, self.training)
        for block in self.blocks:
            if alone_B is not None and block is self.blocks[-1]:
                reading = _reading_alone(alone_B, length, reading)
            if self.checkpoint_activations and self.training:
                hidden_BLD = checkpoint(block, hidden_BLD, reading, use_reentrant=False)
            else:
                hidden_BLD = block(hidden_BLD, reading)
        if alone_B is not None:
            hidden_BLD = hidden_BLD.squeeze(1)
        hidden_BLD = self.norm(hidden_BLD)
        if self.config.mup is not None:
            hidden_BLD = hidden_BLD * self.config.width_scale
        return head(hidden_BLD, self.items.weight)


def _reading_around(blank_BL: Tensor) -> Reading:
    """Each position reads itself, for softmax needs something to read, and what is not blank before it."""
    length = blank_BL.shape[1]
    earlier_LL = torch.ones(length, length, dtype=torch.bool, device=blank_BL.device).tril(-1)
    itself_LL = torch.eye(length, dtype=torch.bool, device=blank_BL.device)
    return Reading((itself_LL | (earlier_LL & ~blank_BL[:, None, :]))[:, None])


def _reading_alone(alone_B: Tensor, length: int, reading: Reading | None) -> Reading:
    """One position of each row reads what it would read among all."""
    place_B1 = (alone_B % length)[:, None]
    if reading is None:
        allowed_BC = torch.arange(length, device=alone_B.device) <= place_B1
    else:
        allowed_BC = reading.allowed_B1LC.flatten(0, 2)[alone_B]
    return Reading(allowed_BC[:, None, None], place_B1, alone_B=alone_B)
