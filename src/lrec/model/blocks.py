"""The blocks of a Transformer: `Block` and its parts. You can replace each part with a class of your own, a subclass of
`Attention`, `MLP` or `Positions`. Shape suffixes: B batch rows, L positions, C positions that are read, D width, H
heads, K width per head, J half of it, F inner width, E a multiple of H K, N entries of a table.
"""

from abc import ABC, abstractmethod
from inspect import isabstract, signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrec.errors import UserError
from lrec.model.attention_context import CAUSAL, Context, at
from lrec.model.config import OWN_PARTS, TIME_BUCKETS, Architecture, TransformerConfig
from lrec.options.class_paths import imported

NORM_EPS = 1e-12


class Positions(nn.Module, ABC):
    """How a network reads the order of items.

    Attributes:
        where: "input": the network has one instance, which gets the items' vectors (B, L, D). "attention": each block
            has one instance, which gets the queries, and then the keys, of the block (B, L, H, K).
    """

    where: Literal["input", "attention"] = "input"

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, states: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        """The states after their positions have been applied; None means the positions 0, 1, 2 ..."""


class Branch(nn.Module, ABC):
    """A branch of a block: it gets the normalised hidden states, and returns what the block adds to them.

    Each block has its own instance. It may hold parameters but no other tensors, because it is made on the meta device
    if parameters are sharded, loaded or only counted. Parameters of two or more dimensions count as N_body and as 2
    FLOPs per entry and position; the scaled parametrisation sets their learning rate.
    """

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        """Make the branch of block `layer` (0 is the lowest)."""
        super().__init__()
        self.config = config
        self.layer = layer

    def initial_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        """The values of the parameter `name` before training, float32 on the CPU; None means the usual rule.

        The usual rule: matrices are Normal(0, 0.02), or Normal(0, 0.02 / sqrt(2 L)) if the name ends in out.weight;
        vectors are 1 if the name ends in norm.weight, and 0 otherwise.
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
        """Make the attention of block `layer`, with its `Positions` if these enter in attention."""
        super().__init__(config, layer)
        self.positions = positions(config, "attention")
        self.bias = AttentionBias(config) if config.architecture.biased else None

    @abstractmethod
    def forward(self, hidden_BLD: Tensor, context: Context = CAUSAL) -> Tensor:
        """What is added to each position, (B, L, D): it depends only on positions that `context` lets it read."""

    def alone(self, hidden_BLD: Tensor, context: Context, alone_B: Tensor) -> Tensor:
        """What is added to one position of each row, (B, 1, D), given by its flat index."""
        return at(self(hidden_BLD, context), alone_B)

    def by_head(self, x_BLE: Tensor, number: int) -> tuple[Tensor, ...]:
        """Split x into `number` tensors (B, L, H, K), such as queries, keys and values."""
        return x_BLE.unflatten(-1, (number, self.config.heads, -1)).unbind(-3)

    def placed(self, x_BLHK: Tensor, positions_BL: Tensor | None) -> Tensor:
        """Queries or keys, with their positions applied if these enter in attention."""
        return x_BLHK if self.positions is None else self.positions(x_BLHK, positions_BL)

    def flops_per_pair(self) -> int:
        """Forward FLOPs for each pair of a position and one that it reads, in all heads together: 2 for each entry of
        the key, and 2 for each entry of the value."""
        return 4 * self.config.heads * self.config.head_width

    def logit_bias(self, length: int, context: Context) -> Tensor | None:
        """What is added to the logits of the `length` positions that read, (B or 1, 1, L, C); None if nothing is."""
        return None if self.bias is None else self.bias(length, context)

    def allowed(self, hidden_BLD: Tensor, context: Context) -> Tensor:
        """Which positions each position may read, bool, (B or 1, 1, L, C)."""
        if context.allowed_B1LC is not None:
            return context.allowed_B1LC
        length = hidden_BLD.shape[1]
        return torch.ones(length, length, dtype=torch.bool, device=hidden_BLD.device).tril()[None, None]


class AttentionBias(nn.Module):
    """The bias P[l - c] + T[bucket of the time from c to l]. The heads of a block share it; P and T begin at 0."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        choice = config.architecture
        self.distances = nn.Parameter(torch.empty(config.max_len)) if choice.position_bias else None
        self.gaps = nn.Parameter(torch.empty(TIME_BUCKETS)) if choice.time_bias else None

    def forward(self, length: int, context: Context) -> Tensor:
        read: list[tuple[Tensor, Tensor]] = []
        if self.distances is not None:
            positions_BL = context.positions(length, self.distances.device)
            n_read = length if context.allowed_B1LC is None else context.allowed_B1LC.shape[-1]
            distance_BLC = positions_BL[..., None] - torch.arange(n_read, device=positions_BL.device)
            read.append((self.distances, distance_BLC.clamp(min=0)))  # at negative distances nothing is read
        if self.gaps is not None:
            assert context.gaps_BLC is not None
            read.append((self.gaps, context.gaps_BLC))
        # Of all ways to index, index_select has the fastest gradient on a CPU.
        terms = [table_N.index_select(0, index_BLC.flatten()).view(index_BLC.shape) for table_N, index_BLC in read]
        return sum(terms[1:], terms[0])[:, None]


class MLP(Branch):
    """The second branch of a block: it transforms each position separately."""

    @abstractmethod
    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """What is added to each position, (B, L, D): it depends only on the position's own hidden state."""


class LearnedPositions(Positions):
    """A vector for each of max_len positions, added to the vector of the item there."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(config.max_len, config.width))

    def forward(self, states: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        return states + self.weight[slice(states.shape[1]) if positions_BL is None else positions_BL]


class RotaryPositions(Positions):
    """Rotate the entries 2j and 2j + 1 at position l by the angle l * 10000^(-2j / K). Source: arXiv 2104.09864."""

    where = "attention"

    def forward(self, states: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        length, width = states.shape[1], states.shape[-1]
        dtype = torch.promote_types(states.dtype, torch.float32)  # angles of late positions need more than bfloat16
        if positions_BL is None:
            positions_BL = torch.arange(length, device=states.device)[None]
        speeds_J = 10_000.0 ** -(torch.arange(0, width, 2, dtype=dtype, device=states.device) / width)
        angles_BL1J = positions_BL[..., None, None].to(dtype) * speeds_J
        cosine_BL1J, sine_BL1J = angles_BL1J.cos(), angles_BL1J.sin()
        even_BLHJ, odd_BLHJ = states.unflatten(-1, (-1, 2)).unbind(-1)
        turned = (even_BLHJ * cosine_BL1J - odd_BLHJ * sine_BL1J, even_BLHJ * sine_BL1J + odd_BLHJ * cosine_BL1J)
        return torch.stack(turned, -1).flatten(-2).to(states.dtype)


class Gelu(MLP):
    """W2 gelu(W1 x), with biases; the inner width is 4 d."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.up = nn.Linear(config.width, config.inner_width)
        self.out = nn.Linear(config.inner_width, config.width)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        return self.out(F.gelu(self.up(hidden_BLD)))


class SwiGLU(MLP):
    """W2 (silu(Wg x) * (W1 x)), with biases; the inner width is 8 d / 3. Source: arXiv 2002.05202."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.up = nn.Linear(config.width, 2 * config.inner_width)  # gate, then value
        self.out = nn.Linear(config.inner_width, config.width)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        gate_BLF, value_BLF = self.up(hidden_BLD).chunk(2, -1)
        return self.out(F.silu(gate_BLF) * value_BLF)


class DropoutLayer(nn.Module):
    """`dropout` in training; no change in evaluation or at rate 0. In a compiled graph, the rate is a tensor, not a
    constant, so that blocks with different rates share their graphs."""

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
    """Set a random share `rate` of the entries of x to 0, and scale the others so that the mean stays the same.

    On a CPU, torch's own dropout spends most of its time on drawing the mask. This one draws 16 bits per entry, which
    rounds `rate` to a multiple of 2^-16. The draw depends only on torch's seed, not on the number of threads.
    """
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    n, values = x.numel(), 2**16
    dropped = min(round(rate * values), values - 1)
    drawn = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None)  # torch draws 64 bits at a time
    kept = drawn.view(torch.int16)[:n].ge_(dropped - values // 2)
    return x * kept.to(x.dtype).mul_(values / (values - dropped)).view(x.shape)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) if there is a perceptron."""

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
        """The hidden states after this block; with the flat indices `alone_B`, of one position per row, (B, 1, D)."""
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
    """The norm before a branch or at the end."""
    made: nn.Module = part_class(config.architecture, "norm")(config.width, NORM_EPS)
    return made


def positions(config: TransformerConfig, where: Literal["input", "attention"]) -> Positions | None:
    """The `Positions` that enter at `where`; None if there are none or they enter elsewhere."""
    kind = part_class(config.architecture, "positions")
    return None if kind is None or kind.where != where else kind(config)


# The base class of each part, and the numbers of arguments with which a network calls its __init__ and forward.
PARTS: dict[str, tuple[type[nn.Module], int, int]] = {
    "attention": (Attention, 2, 2),
    "norm": (nn.Module, 2, 1),
    "mlp": (MLP, 2, 1),
    "positions": (Positions, 1, 2),
}


def part_class(architecture: Architecture, part: str) -> Any:
    """The class of a part, None if the part is left out; UserError if there is no such class or it does not fit."""
    name: Any = getattr(architecture, part)
    own, base, option = OWN_PARTS[part], PARTS[part][0], f"model.architecture.{part}"
    if name not in own and not (isinstance(name, str) and "." in name):
        raise UserError(f"{option} {name}: choose {', '.join(own)} or a class by its path, such as my_parts.Mine")
    path = own.get(name, name)
    if path is None:
        return None
    found = imported(path, option)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{option} {name} is no subclass of {base.__module__}.{base.__name__}")
    return found


def check_parts(architecture: Architecture) -> None:
    """UserError if a part cannot be found, made or called, or if the attention cannot add the chosen biases."""
    for part, (_, of_init, of_forward) in PARTS.items():
        kind, option = part_class(architecture, part), f"model.architecture.{part} {getattr(architecture, part)}"
        if kind is None:
            continue
        if isabstract(kind) or kind.forward is nn.Module.forward:
            raise UserError(f"{option} has no method forward")
        for method, number in (("__init__", of_init), ("forward", of_forward)):
            try:
                signature(getattr(kind, method)).bind(kind, *range(number))
            except TypeError as error:
                called = f"its {method} is called with self and {number} arguments"
                raise UserError(f"{option}: {called}: {error}") from error
        if part == "attention" and architecture.biased and not getattr(kind, "biased", False):
            raise UserError(f"{option} adds no bias: set position_bias to false, and time to none or input")
