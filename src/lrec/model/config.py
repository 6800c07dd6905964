"""The shape of a network as plain values: everything about a network except its weights."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from lrec.errors import UserError, check_choices, check_range

_ARCHITECTURE = "architecture."

# The short names of classes, for each part of a block; None: the part is left out.
OWN_PARTS: dict[str, dict[str, str | None]] = {
    "attention": {"softmax": "lrec.model.softmax_attention.SoftmaxAttention", "hstu": "lrec.model.hstu.HSTU"},
    "norm": {"layer": "torch.nn.LayerNorm", "rms": "torch.nn.RMSNorm"},
    "mlp": {"gelu": "lrec.model.blocks.Gelu", "swiglu": "lrec.model.blocks.SwiGLU", "none": None},
    "positions": {
        "learned": "lrec.model.blocks.LearnedPositions",
        "rotary": "lrec.model.blocks.RotaryPositions",
        "none": None,
    },
}
Time = Literal["none", "past", "request", "input"]
# Number of buckets for gaps in time (`event_inputs.time_buckets`). No gap reaches the last; the first event has it.
TIME_BUCKETS = 129


@dataclass(frozen=True)
class OverDepth:
    """A dropout rate that changes linearly from the first block to the last.

    Attributes:
        first: Rate in the first (lowest) block.
        last: Rate in the last (highest) block.
    """

    first: float = 0.0
    last: float = 0.0

    def of_layer(self, layer: int, layers: int) -> float:
        """The rate of block `layer` (0 is the lowest) of `layers` blocks; a single block has the rate `first`."""
        return self.first + (self.last - self.first) * layer / max(layers - 1, 1)


@dataclass(frozen=True)
class Dropout:
    """Dropout rates; 0 is off. The rates of the blocks may change with depth: this is layer-wise adaptive dropout,
    arXiv 2311.11351.

    Attributes:
        embedding: Rate after the sum of item and position embeddings.
        attention: Rates of the attention weights.
        residual: Rates of the two residual branches of a block.
    """

    embedding: float = 0.0
    attention: OverDepth = OverDepth()
    residual: OverDepth = OverDepth()

    def __post_init__(self) -> None:
        check_range("dropout.embedding", self.embedding, at_least=0, below=1)
        for name in ("attention", "residual"):
            for end, rate in vars(getattr(self, name)).items():
                check_range(f"dropout.{name}.{end}", rate, at_least=0, below=1)


@dataclass(frozen=True)
class Architecture:
    """Parts of a block. The default is the block of GPT-2 and of arXiv 2311.11351.

    For attention, norm, mlp and positions, you can name a class of your own by its path: my_parts.GatedAttention.

    Attributes:
        attention: How positions read each other; softmax, hstu (gated, pointwise SiLU, arXiv 2402.17152), or a subclass
            of lrec.Attention.
        norm: Normalisation before each branch and at the end; layer (LayerNorm), rms (RMSNorm, arXiv 1910.07467), or a
            torch module that is made by norm(width, eps), whose parameters begin as its class sets them.
        mlp: Perceptron; gelu with inner width 4 d, swiglu (arXiv 2002.05202) with inner width 8 d / 3 (the same number
            of parameters), none (as in HSTU), or a subclass of lrec.MLP.
        positions: How the network reads the order of items; learned adds a vector for each position to the items,
            rotary turns queries and keys (arXiv 2104.09864), none, or a subclass of lrec.Positions.
        qk_norm: Normalise queries and keys of softmax attention in each head (RMSNorm, arXiv 2010.04245).
        position_bias: Add a learned number for each distance to the logits of attention, in each block.
        time: How the network reads the times of events. past: in each block, the logits of attention get a learned
            number for the bucket of the time between two events. request: the same, with the time up to the request; in
            training, the request is the next event, and in serving you must give its time. input: the item gets a
            vector for the bucket of the time since the previous event. none: no times.
        seen: Add a learned number to the score of each item of the history, by how many events ago the item was last.
        hstu_head_width: Width of a head of hstu; null: lrec computes it, so that a block has about 12 d² parameters.
    """

    norm: str = "layer"
    mlp: str = "gelu"
    positions: str = "learned"
    qk_norm: bool = False
    attention: str = "softmax"
    position_bias: bool = False
    time: Time = "none"
    hstu_head_width: int | None = None
    seen: bool = False

    def __post_init__(self) -> None:
        check_range("architecture.hstu_head_width", self.hstu_head_width, at_least=1)
        if self.attention == "hstu" and self.qk_norm:
            raise UserError("architecture.qk_norm does not work with architecture.attention hstu: set it to false")
        if self.attention != "hstu" and self.hstu_head_width is not None:
            raise UserError(f"architecture.hstu_head_width needs architecture.attention hstu, not {self.attention}")
        check_choices(("architecture.time", self.time, Time))

    @property
    def time_bias(self) -> bool:
        """Whether the logits of attention get a learned number for each bucket of time."""
        return self.time in ("past", "request")

    @property
    def biased(self) -> bool:
        """Whether any bias is added to the logits of attention."""
        return self.position_bias or self.time_bias


# How learning rates, residual branches and initial values follow the width d and the depth L; d0 = 32 and L0 = 2.
# standard: one rate for all parameters and all shapes. scaled: the best rate of a small network stays the best.
# - Adam's rates, as shares of optimizer.lr: d0 / d for matrices of the blocks and all vectors; for tables (tied items,
#   positions, types, times) 4 d0 / d with Muon, so that a table's step changes a logit by as much at every width, and
#   8 sqrt(d0 / d) with AdamW alone, because matrices of wide networks then learn too slowly (benchmarks/transfer.md).
#   Muon's rate of the blocks' matrices is multiplied by (d0 / d)^(1/4): without this factor, the best lr of a wide
#   network is lower than that of a narrow one (benchmarks/transfer.md).
#   With Muon and optimizer.touched_rows, the rate of the item table is 4 sqrt(d0 / d): with 4 d0 / d, a row that few
#   steps touch would hardly leave its initial values in a wide network (benchmarks/hours.md).
# - Residual branches are multiplied by L0 / L; initial values have 1/sqrt(2 L0) at all L (arXiv 2505.01618, alpha = 1).
Parametrisation = Literal["scaled", "standard"]
BASE_WIDTH, BASE_LAYERS = 32, 2
TABLE_RATE, TABLE_RATE_BESIDE_MUON, MUON_POWER = 8.0, 4.0, 0.25


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
        architecture: Parts of a block.
        parametrisation: How learning rates and residual branches depend on the shape.
        vector_width: Width of the given item vectors (`item_vectors`); None without vectors.
        event_types: Number of types of event, and of values of features, that the network reads with the items; 0 for
            none.
        own_rows: Whether the item table has trained rows; rows made from vectors, if any, are added to them.
    """

    n_items: int
    max_len: int
    layers: int
    width: int
    heads: int
    dropout: Dropout = Dropout()
    architecture: Architecture = Architecture()
    parametrisation: Parametrisation = "standard"
    vector_width: int | None = None
    own_rows: bool = True
    event_types: int = 0

    def __post_init__(self) -> None:
        assert self.own_rows or self.vector_width is not None, "items without anything"
        for name in ("n_items", "max_len", "layers", "width", "heads"):
            check_range(name, getattr(self, name), at_least=1)
        if self.width % self.heads:
            raise UserError(f"heads must divide width, got width {self.width} and heads {self.heads}")
        if self.architecture.positions == "rotary" and self.head_width % 2:
            got = self.architecture.hstu_head_width or f"{self.width} / {self.heads} heads"
            raise UserError(f"architecture.positions rotary needs an even width per head, got {got}")

    @property
    def head_width(self) -> int:
        """Width of an attention head: d / h, or with HSTU by `architecture.hstu_head_width`."""
        choice = self.architecture
        if choice.attention != "hstu":
            return self.width // self.heads
        if choice.hstu_head_width is not None:
            return choice.hstu_head_width
        # Five matrices of d x (heads x head width) have 12 d² parameters, or the 4 d² that a perceptron of 8 d² leaves.
        ideal = (12 if choice.mlp == "none" else 4) * self.width / 5 / self.heads
        return max(round(ideal / 2), 1) * 2  # rotary positions need an even width, and products are faster with one

    @property
    def inner_width(self) -> int:
        """Width inside the perceptron: 4 d, or 8 d / 3 to the nearest integer for SwiGLU's three matrices."""
        return round(8 * self.width / 3) if self.architecture.mlp == "swiglu" else 4 * self.width

    @property
    def branch_scale(self) -> float:
        """The factor of residual branches: L0 / L in the scaled parametrisation, 1 in the standard one."""
        return 1.0 if self.parametrisation == "standard" else BASE_LAYERS / self.layers

    @property
    def attention_scale(self) -> float:
        """The factor of query-key products: 1 / sqrt(head width). HSTU has none."""
        return self.head_width**-0.5

    def to_dict(self) -> dict[str, Any]:
        """The shape as a checkpoint stores it: plain values of everything except dropout. The values of the
        architecture have names such as architecture.norm."""
        shape = asdict(self)
        del shape["dropout"]
        architecture = {f"{_ARCHITECTURE}{name}": value for name, value in shape.pop("architecture").items()}
        return shape | architecture

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TransformerConfig":
        """The shape that `to_dict` described, without dropout; other entries of `values` are ignored."""
        architecture = {
            name.removeprefix(_ARCHITECTURE): value for name, value in values.items() if name.startswith(_ARCHITECTURE)
        }
        shape = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        return cls(**shape | {"architecture": Architecture(**architecture)})
