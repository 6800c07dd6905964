"""What a Transformer is made of: `Block`, and its parts, each a class that a user's own may replace.

`Attention`, `MLP` and `Positions` say what a part gets and gives. Shape suffixes:
B batch rows, L positions, C positions that are read, D width, H heads, K width per head, J half of it, F inner width,
E several times H K, N entries of a table.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrec.errors import UserError
from lrec.model.attention_context import CAUSAL, Context, at
from lrec.model.config import OWN_PARTS, TIME_BUCKETS, Architecture, TransformerConfig
from lrec.options.class_paths import imported

NORM_EPS = 1e-12
ROTARY_BASE = 10_000.0
BITS = 16  # of an entry of a mask of dropout; torch draws 64 at a time


class Positions(nn.Module, ABC):
    """How a network reads the order of items.

    Attributes:
        where: "input": one instance, which gets the items' vectors (B, L, D). "attention": one instance in each block,
            which gets the queries and keys of the block (B, L, H, K).
    """

    where: Literal["input", "attention"] = "input"

    def __init__(self, config: TransformerConfig) -> None:
        """For a network of this shape."""
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, states: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        """The states, with the position of each; None: 0, 1, 2 ..."""


class Branch(nn.Module, ABC):
    """A branch of a block: the hidden states, normalised, in; what is added to them out.

    It is made once per block, on the meta device where its parameters are sharded or counted, so that it may hold
    parameters and no buffers. Those of two and more dimensions count as N_body and as 2 FLOPs per entry and position;
    the scaled parametrisation has a learning rate for them.
    """

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        """The part of block `layer` (0 is the lowest) of a network."""
        super().__init__()
        self.config = config
        self.layer = layer

    def initial_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        """The parameter `name` of this part before training, float32 on the CPU; None: the usual rule.

        The usual rule: Normal(0, 0.02) for matrices, divided by sqrt(2 L) where the name ends in out.weight; 1 for
        vectors whose name ends in norm.weight; 0 for others.
        """
        return None


class Attention(Branch):
    """The first branch of a block: how positions read each other.

    Attributes:
        caches: Whether `forward` uses `Context.cache`. If not, decoding encodes the whole histories at every step.
        biased: Whether `forward` adds `logit_bias`.
    """

    caches: bool = False
    biased: bool = False

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        """Attention of block `layer`, with the positions that enter here, if any."""
        super().__init__(config, layer)
        self.positions = positions(config, "attention")
        self.bias = AttentionBias(config) if config.architecture.biased else None

    @abstractmethod
    def forward(self, hidden_BLD: Tensor, context: Context = CAUSAL) -> Tensor:
        """What each position adds, (B, L, D), from those that `context` allows it alone."""

    def alone(self, hidden_BLD: Tensor, context: Context, alone_B: Tensor) -> Tensor:
        """The same for one position of each row, by its flat index, (B, 1, D)."""
        return at(self(hidden_BLD, context), alone_B)

    def by_head(self, x_BLE: Tensor, number: int) -> tuple[Tensor, ...]:
        """So many of queries, keys, values ..., (B, L, H, K) each, that lie side by side."""
        return x_BLE.unflatten(-1, (number, self.config.heads, -1)).unbind(-3)

    def placed(self, x_BLHK: Tensor, positions_BL: Tensor | None) -> Tensor:
        """Queries or keys, with their positions where these enter here."""
        return x_BLHK if self.positions is None else self.positions(x_BLHK, positions_BL)

    def flops_per_pair(self) -> int:
        """FLOPs forward for each pair of a position and one it reads: 2 d for its score, 2 d for its value."""
        return 4 * self.config.width

    def logit_bias(self, length: int, context: Context) -> Tensor | None:
        """What the architecture adds to the logits of `length` positions that read, (B or 1, 1, L, C)."""
        return None if self.bias is None else self.bias(length, context)

    def allowed(self, hidden_BLD: Tensor, context: Context) -> Tensor:
        """Which positions each reads, bool, (B or 1, 1, L, C)."""
        if context.allowed_B1LC is not None:
            return context.allowed_B1LC
        length = hidden_BLD.shape[1]
        return torch.ones(length, length, dtype=torch.bool, device=hidden_BLD.device).tril()[None, None]


class AttentionBias(nn.Module):
    """P[l - c] + T[bucket of the gap between l and c], shared by the heads of a block; both begin at 0."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        choice = config.architecture
        self.distances = nn.Parameter(torch.empty(config.max_len)) if choice.position_bias else None
        self.gaps = nn.Parameter(torch.empty(TIME_BUCKETS)) if choice.time_bias else None

    def forward(self, length: int, context: Context) -> Tensor:
        terms = []
        if self.distances is not None:
            positions_BL = context.positions(length, self.distances.device)
            n_read = length if context.allowed_B1LC is None else context.allowed_B1LC.shape[-1]
            distance_BLC = positions_BL[..., None] - torch.arange(n_read, device=positions_BL.device)
            terms.append(_looked_up(self.distances, distance_BLC.clamp(min=0)))  # below 0 nothing is read
        if self.gaps is not None:
            assert context.gaps_BLC is not None
            terms.append(_looked_up(self.gaps, context.gaps_BLC))
        return sum(terms[1:], terms[0])[:, None]


def _looked_up(table_N: Tensor, index_BLC: Tensor) -> Tensor:
    # Of all ways of indexing, this one's gradient takes the least time on a CPU.
    return table_N.index_select(0, index_BLC.flatten()).view(index_BLC.shape)


class MLP(Branch):
    """The second branch of a block: it transforms each position separately."""

    @abstractmethod
    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """What each position adds, (B, L, D), from its own hidden state alone."""


class LearnedPositions(Positions):
    """A vector per position, of max_len, added to the items."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(config.max_len, config.width))

    def forward(self, states: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        return states + self.weight[slice(states.shape[1]) if positions_BL is None else positions_BL]


class RotaryPositions(Positions):
    """Turn the pair (2j, 2j + 1) of position l by the angle l * 10000^(-2j / K). Source: arXiv 2104.09864."""

    where = "attention"

    def forward(self, states: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        length, width = states.shape[1], states.shape[-1]
        dtype = torch.promote_types(states.dtype, torch.float32)  # angles of late positions need more than bfloat16
        if positions_BL is None:
            positions_BL = torch.arange(length, device=states.device)[None]
        speeds_J = ROTARY_BASE ** -(torch.arange(0, width, 2, dtype=dtype, device=states.device) / width)
        angles_BL1J = positions_BL[..., None, None].to(dtype) * speeds_J
        cosine_BL1J, sine_BL1J = angles_BL1J.cos(), angles_BL1J.sin()
        even_BLHJ, odd_BLHJ = states.unflatten(-1, (-1, 2)).unbind(-1)
        turned = (even_BLHJ * cosine_BL1J - odd_BLHJ * sine_BL1J, even_BLHJ * sine_BL1J + odd_BLHJ * cosine_BL1J)
        return torch.stack(turned, -1).flatten(-2).to(states.dtype)


class Gelu(MLP):
    """W2 gelu(W1 x), with biases, of inner width 4 d."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.up = nn.Linear(config.width, config.inner_width)
        self.out = nn.Linear(config.inner_width, config.width)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        return self.out(F.gelu(self.up(hidden_BLD)))


class SwiGLU(MLP):
    """W2 (silu(Wg x) * (W1 x)), with biases, of inner width 8 d / 3. Source: arXiv 2002.05202."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.up = nn.Linear(config.width, 2 * config.inner_width)  # gate, then value
        self.out = nn.Linear(config.inner_width, config.width)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        gate_BLF, value_BLF = self.up(hidden_BLD).chunk(2, -1)
        return self.out(F.silu(gate_BLF) * value_BLF)


class DropoutLayer(nn.Module):
    """`dropout` in training, and nothing in evaluation or at rate 0.

    In a compiled graph the rate is a tensor, not a constant, so that blocks of different rates share their graphs.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.drops = rate, rate > 0
        self._rate = torch.tensor(rate, device="cpu")  # read by graphs on any device, without waiting for it

    def forward(self, x: Tensor) -> Tensor:
        if not (self.drops and self.training):
            return x
        if torch.compiler.is_compiling():
            kept = torch.rand_like(x, dtype=torch.float32) >= self._rate
            return x * (kept / (1 - self._rate)).to(x.dtype)
        return dropout(x, self.rate)


def dropout(x: Tensor, rate: float) -> Tensor:
    """x with a share `rate` of its entries, drawn in each call, set to 0, and the others scaled to the same mean.

    On CPUs from few random bits, as torch takes most of its time to draw its mask: the share is `rate` rounded to a
    multiple of 2^-16. What is drawn depends on torch's seed alone, not on the number of threads.
    """
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    n, values = x.numel(), 2**BITS
    dropped = min(round(rate * values), values - 1)
    drawn = torch.empty(-(-n * BITS // 64), dtype=torch.int64).random_(-(2**63), None)
    kept = drawn.view(torch.int16)[:n].ge_(dropped - values // 2)
    return x * kept.to(x.dtype).mul_(values / (values - dropped)).view(x.shape)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) where there is a perceptron."""

    attention: Attention
    mlp: MLP | None

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.branch_scale = config.branch_scale
        self.dropout = DropoutLayer(config.dropout.residual.of_layer(layer, config.layers))
        mlp = part_class(config.architecture, "mlp")
        self.attention_norm = norm(config)
        self.attention = part_class(config.architecture, "attention")(config, layer)
        self.mlp_norm = norm(config) if mlp else None
        self.mlp = mlp(config, layer) if mlp else None

    def forward(self, hidden_BLD: Tensor, context: Context = CAUSAL, alone_B: Tensor | None = None) -> Tensor:
        """The hidden states after this block; (B, 1, D) where one position of each row is wanted alone."""
        normed_BLD = self.attention_norm(hidden_BLD)
        if alone_B is None:
            hidden_BLD = self._add(hidden_BLD, self.attention(normed_BLD, context))
        else:
            hidden_BLD = self._add(at(hidden_BLD, alone_B), self.attention.alone(normed_BLD, context, alone_B))
        if self.mlp is None or self.mlp_norm is None:
            return hidden_BLD
        return self._add(hidden_BLD, self.mlp(self.mlp_norm(hidden_BLD)))

    def _add(self, hidden_BLD: Tensor, branch_BLD: Tensor) -> Tensor:
        return torch.add(hidden_BLD, self.dropout(branch_BLD), alpha=self.branch_scale)


def norm(config: TransformerConfig) -> nn.Module:
    return part_class(config.architecture, "norm")(config.width, NORM_EPS)


def positions(config: TransformerConfig, where: Literal["input", "attention"]) -> Positions | None:
    """What makes order enter there; None where it enters elsewhere."""
    kind = part_class(config.architecture, "positions")
    return None if kind is None or kind.where != where else kind(config)


# What a class of each part has to inherit from.
PARTS: dict[str, type[nn.Module]] = {"attention": Attention, "norm": nn.Module, "mlp": MLP, "positions": Positions}


def part_class(architecture: Architecture, part: str) -> Any:
    """The class of a part, None where it is left out; UserError where there is none of that name or it does not fit."""
    name: str = getattr(architecture, part)
    own, base = OWN_PARTS[part], PARTS[part]
    option = f"model.architecture.{part}"
    if name not in own and "." not in name:
        raise UserError(f"{option} {name}: choose {', '.join(own)} or a class by its path, such as my_parts.Mine")
    path = own.get(name, name)
    if path is None:
        return None
    found = imported(path, option)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{option} {name} is no subclass of {base.__module__}.{base.__name__}")
    return found


def check_parts(architecture: Architecture) -> None:
    """UserError where a part cannot be found or does not fit."""
    found = {part: part_class(architecture, part) for part in PARTS}
    if architecture.biased and not getattr(found["attention"], "biased", False):
        name = f"model.architecture.attention {architecture.attention}"
        raise UserError(f"{name} adds no bias: set position_bias to false, and time to none or input")
