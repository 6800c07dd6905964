"""The shape of a network: plain values, which say all but its weights.

`Architecture` is what a block is made of, `Dropout` its rates over depth, `Parametrisation` what follows the shape,
`TransformerConfig` all of it for a catalogue.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from lrec.errors import UserError, check_range

_ARCHITECTURE = "architecture."

# The classes of each part of a block that have a short name; None: the part is left out.
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
# Buckets of gaps in time (`event_inputs.time_buckets`); the last, which no gap reaches, is that of the first event.
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
        """The rate of block `layer` (0 is the lowest) among `layers`; the first block's where there is one only."""
        return self.first + (self.last - self.first) * layer / max(layers - 1, 1)


@dataclass(frozen=True)
class Dropout:
    """Dropout rates; 0 is off. The rates of the blocks change with depth: layer-wise adaptive dropout, arXiv
    2311.11351.

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

    Each part except qk_norm may be a class of your own, named by its path, such as my_parts.GatedAttention.

    Attributes:
        attention: How positions read each other; softmax, hstu (gated, pointwise SiLU, arXiv 2402.17152), or a subclass
            of lrec.Attention.
        norm: Normalisation before each branch and at the end; layer (LayerNorm), rms (RMSNorm, arXiv 1910.07467), or a
            module made as norm(width, eps).
        mlp: Perceptron; gelu with inner width 4 d, swiglu (arXiv 2002.05202) with 8 d / 3 (equally many parameters),
            none (as in HSTU), or a subclass of lrec.MLP.
        positions: How the network reads the order of items; learned adds a vector for each position to the items,
            rotary turns queries and keys (arXiv 2104.09864), none, or a subclass of lrec.Positions.
        qk_norm: Normalise queries and keys of softmax attention in each head (RMSNorm, arXiv 2010.04245).
        position_bias: Add a learned number for each distance to the logits of attention, in each block.
        time: How the network reads the times of events. past: in each block, the logits of attention get a learned
            number for the bucket of the time between two events. request: the same, with the time up to the request; in
            training, the request is the next event, and in serving you must give its time. input: the item gets a
            vector for the bucket of the time since the previous event. none: no times.
        hstu_head_width: Width of a head of hstu; null: the width with which a block has about 12 d² parameters.
    """

    norm: str = "layer"
    mlp: str = "gelu"
    positions: str = "learned"
    qk_norm: bool = False
    attention: str = "softmax"
    position_bias: bool = False
    time: Time = "none"
    hstu_head_width: int | None = None

    def __post_init__(self) -> None:
        check_range("architecture.hstu_head_width", self.hstu_head_width, at_least=1)
        if self.attention == "hstu" and self.qk_norm:
            raise UserError("architecture.qk_norm normalises softmax attention: hstu has none")
        if self.attention != "hstu" and self.hstu_head_width is not None:
            raise UserError(f"architecture.hstu_head_width is hstu's, architecture.attention is {self.attention}")
        if self.time not in get_args(Time):
            raise UserError(f"architecture.time {self.time}: choose {', '.join(get_args(Time))}")

    @property
    def time_bias(self) -> bool:
        """Whether attention's logits have a number per gap in time."""
        return self.time in ("past", "request")

    @property
    def biased(self) -> bool:
        """Whether anything is added to attention's logits."""
        return self.position_bias or self.time_bias


# How learning rates, residual branches and initial values follow the shape, width d and depth L, with d0 = 32, L0 = 2.
# standard: one rate for all parameters, whatever the shape. scaled: the best rate of a small network stays the best,
# - rates, as shares of optimizer.lr, for Adam: matrices of the blocks and all vectors d0 / d; tables (items, tied;
#   positions, types, times) 4 d0 / d beside Muon, with which a table's step changes a logit as much at every width.
#   With AdamW alone 8 sqrt(d0 / d), as wide networks then learn too slowly by their matrices (benchmarks/transfer.md);
# - each residual branch times L0 / L, and the 1/sqrt(2 L) of initial values stays at L0 (arXiv 2505.01618, alpha = 1).
Parametrisation = Literal["scaled", "standard"]
BASE_WIDTH, BASE_LAYERS = 32, 2
TABLE_RATE, TABLE_RATE_BESIDE_MUON = 8.0, 4.0


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
        own_rows: Whether the item table has trained rows, to which the rows made from vectors are added.
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
            raise UserError(
                f"architecture.positions rotary needs an even width per head, got {self.width} / {self.heads} heads"
            )

    @property
    def head_width(self) -> int:
        """Width per attention head: d / h; of HSTU what `architecture.hstu_head_width` says."""
        choice = self.architecture
        if choice.attention != "hstu":
            return self.width // self.heads
        if choice.hstu_head_width is not None:
            return choice.hstu_head_width
        # Five matrices of d x (heads x head width): 12 d², or what a perceptron of 8 d² leaves of them.
        ideal = (12 if choice.mlp == "none" else 4) * self.width / 5 / self.heads
        return max(round(ideal / 2), 1) * 2  # rotary positions need an even width, and products are faster with one

    @property
    def inner_width(self) -> int:
        """Width inside the perceptron: 4 d, or 8 d / 3 to the nearest integer for SwiGLU's three matrices."""
        return round(8 * self.width / 3) if self.architecture.mlp == "swiglu" else 4 * self.width

    @property
    def branch_scale(self) -> float:
        """L0 / L of the scaled parametrisation: what residual branches are multiplied by."""
        return 1.0 if self.parametrisation == "standard" else BASE_LAYERS / self.layers

    @property
    def attention_scale(self) -> float:
        """What query-key products are multiplied by; HSTU has no root of its head width."""
        return 1.0 if self.architecture.attention == "hstu" else self.head_width**-0.5

    def to_dict(self) -> dict[str, Any]:
        """What makes two networks differ in more than their weights, as a checkpoint stores it: all but dropout, as
        plain values, of which those of the architecture are named architecture.norm and so on."""
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
        shape = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        return cls(**shape | {"architecture": Architecture(**architecture)})
