"""What a Transformer is made of: `Block`, and its parts, each a class that a user's own may replace.

`Attention`, `MLP` and `Positions` say what a part gets and gives. Shape suffixes:
B batch rows, L positions, C positions that are read, D width, H heads, K width per head, J half of it, F inner width.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrec.errors import UserError
from lrec.model.attention_bias import AttentionBias
from lrec.model.attention_mask import CAUSAL, Reading, at
from lrec.model.config import OWN_PARTS, Architecture, TransformerConfig
from lrec.model.dropout import DropoutLayer
from lrec.options.class_paths import imported

NORM_EPS = 1e-12
ROTARY_BASE = 10_000.0


class Positions(nn.Module, ABC):
    """How order enters.

    Attributes:
        where: "input": made once, and gets the items' vectors (B, L, D). "attention": made in each block, and gets its
            queries and its keys (B, L, H, K).
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
    muP scales their learning rate.
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
    """How positions read each other, the first branch of a block.

    Attributes:
        caches: Whether `forward` knows `Reading.cache`. Without, decoding encodes the whole histories at every step.
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
    def forward(self, hidden_BLD: Tensor, reading: Reading = CAUSAL) -> Tensor:
        """What each position adds, (B, L, D), from those that `reading` allows it alone."""

    def alone(self, hidden_BLD: Tensor, reading: Reading) -> Tensor:
        """The same for one position of each row, `reading.alone_B`, (B, 1, D)."""
        assert reading.alone_B is not None
        return at(self(hidden_BLD, reading._replace(alone_B=None)), reading.alone_B)

    def placed(self, x_BLHK: Tensor, positions_BL: Tensor | None) -> Tensor:
        """Queries or keys, with their positions where these enter here."""
        return x_BLHK if self.positions is None else self.positions(x_BLHK, positions_BL)

    def flops_per_pair(self) -> int:
        """FLOPs forward for each pair of a position and one it reads: 2 d for its score, 2 d for its value."""
        return 4 * self.config.width

    def logit_bias(self, length: int, reading: Reading) -> Tensor | None:
        """What the architecture adds to the logits of `length` positions that read, (B or 1, 1, L, C)."""
        if self.bias is None:
            return None
        positions_BL, n_read = reading.positions_BL, length
        if positions_BL is None:
            positions_BL = torch.arange(length, device=next(self.bias.parameters()).device)[None]
        if reading.allowed_B1LC is not None:
            n_read = reading.allowed_B1LC.shape[-1]
        bias_B1LC: Tensor = self.bias(positions_BL, n_read, reading.gaps_BLC)
        return bias_B1LC

    def allowed(self, hidden_BLD: Tensor, reading: Reading) -> Tensor:
        """Which positions each reads, bool, (B or 1, 1, L, C)."""
        if reading.allowed_B1LC is not None:
            return reading.allowed_B1LC
        length = hidden_BLD.shape[1]
        return torch.ones(length, length, dtype=torch.bool, device=hidden_BLD.device).tril()[None, None]


class MLP(Branch):
    """What each position makes of itself, the second branch of a block."""

    @abstractmethod
    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """What each position adds, (B, L, D), from its own hidden state alone."""


class LearnedPositions(Positions):
    """A vector per position, added to the items."""

    def __init__(self, config: TransformerConfig) -> None:
        """One for each of max_len positions."""
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(config.max_len, config.width))

    def forward(self, states: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        """Items plus vectors."""
        return states + self.weight[slice(states.shape[1]) if positions_BL is None else positions_BL]


class RotaryPositions(Positions):
    """Turn the pair (2j, 2j + 1) of position l by the angle l * 10000^(-2j / K). Source: arXiv 2104.09864."""

    where = "attention"

    def forward(self, states: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        """Queries or keys, turned."""
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


class SoftmaxAttention(Attention):
    """softmax(Q K^T * scale + bias) V by heads, with biases on every matrix."""

    caches = True
    biased = True

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        """With dropout of the weights, QK-norm and positions as the config has them."""
        super().__init__(config, layer)
        self.dropout = DropoutLayer(config.dropout.attention.of_layer(layer, config.layers))
        self.qkv = nn.Linear(config.width, 3 * config.width)
        qk_norm = config.architecture.qk_norm
        self.query_norm = nn.RMSNorm(config.head_width, NORM_EPS) if qk_norm else None
        self.key_norm = nn.RMSNorm(config.head_width, NORM_EPS) if qk_norm else None
        self.out = nn.Linear(config.width, config.width)

    def forward(self, hidden_BLD: Tensor, reading: Reading = CAUSAL) -> Tensor:
        """Every position reads what `reading` says."""
        query_BLHK, key_BLHK, value_BLHK = self.qkv(hidden_BLD).unflatten(-1, (3, self.config.heads, -1)).unbind(-3)
        query_BLHK = self.placed(_normed(query_BLHK, self.query_norm), reading.positions_BL)
        key_BLHK = self.placed(_normed(key_BLHK, self.key_norm), reading.positions_BL)
        if reading.cache is not None:
            assert reading.positions_BL is not None
            key_BLHK, value_BLHK = reading.cache.extend(self.layer, reading.positions_BL, key_BLHK, value_BLHK)
        return self._read(query_BLHK, key_BLHK, value_BLHK, reading)

    def alone(self, hidden_BLD: Tensor, reading: Reading) -> Tensor:
        """Keys and values of all positions, everything else of the one."""
        assert reading.alone_B is not None
        of_query, of_rest = slice(self.config.width), slice(self.config.width, None)
        query_B1D = F.linear(at(hidden_BLD, reading.alone_B), self.qkv.weight[of_query], self.qkv.bias[of_query])
        rest_BLE = F.linear(hidden_BLD, self.qkv.weight[of_rest], self.qkv.bias[of_rest])
        key_BLHK, value_BLHK = rest_BLE.unflatten(-1, (2, self.config.heads, -1)).unbind(-3)
        of_one = reading.of_one(hidden_BLD.shape[1])
        query_B1HK = query_B1D.unflatten(-1, (self.config.heads, -1))
        query_B1HK = self.placed(_normed(query_B1HK, self.query_norm), of_one.positions_BL)
        key_BLHK = self.placed(_normed(key_BLHK, self.key_norm), None)
        return self._read(query_B1HK, key_BLHK, value_BLHK, of_one)

    def _read(self, query_BLHK: Tensor, key_BCHK: Tensor, value_BCHK: Tensor, reading: Reading) -> Tensor:
        # Causality is mask enough: windows are padded on the right, so no real position sees a padded one.
        states = (query_BLHK.transpose(1, 2), key_BCHK.transpose(1, 2), value_BCHK.transpose(1, 2))
        drops, on_cpu = self.dropout.drops and self.training, query_BLHK.device.type == "cpu"
        scale, mask_B1LC = self.config.attention_scale, reading.allowed_B1LC
        bias_B1LC = self.logit_bias(query_BLHK.shape[1], reading)
        if drops and on_cpu:
            read_BHLK = _read_dropping(*states, mask_B1LC, bias_B1LC, self.dropout, scale)
        else:
            if bias_B1LC is not None:
                dtype = _dtype_on_cpu(query_BLHK.dtype) if on_cpu else query_BLHK.dtype
                mask_B1LC = bias_B1LC.to(dtype).masked_fill(~self.allowed(query_BLHK, reading), -math.inf)
            options: dict[str, Any] = {"attn_mask": mask_B1LC, "is_causal": mask_B1LC is None, "scale": scale}
            if drops:
                read_BHLK = fused_dropping(*states, self.dropout, **options)
            elif on_cpu:
                read_BHLK = _read_on_cpu(*states, **options)
            else:
                read_BHLK = F.scaled_dot_product_attention(*states, **options)
        return self.out(read_BHLK.transpose(1, 2).flatten(-2))


def fused_dropping(
    query_BHLK: Tensor, key_BHCK: Tensor, value_BHCK: Tensor, dropout: DropoutLayer, **options: Any
) -> Tensor:
    """scaled_dot_product_attention with dropout of the weights. Its kernels take the rate as a number."""
    return F.scaled_dot_product_attention(query_BHLK, key_BHCK, value_BHCK, dropout_p=dropout.rate, **options)


def _dtype_on_cpu(dtype: torch.dtype) -> torch.dtype:
    """In what attention is computed on a CPU; its kernel for bfloat16 takes up to three times as long as for float32,
    and rounds the weights."""
    return torch.promote_types(dtype, torch.float32)


def _read_on_cpu(query_BHLK: Tensor, key_BHCK: Tensor, value_BHCK: Tensor, **options: Any) -> Tensor:
    """scaled_dot_product_attention without rounded weights."""
    dtype = _dtype_on_cpu(query_BHLK.dtype)
    if dtype == query_BHLK.dtype:
        return F.scaled_dot_product_attention(query_BHLK, key_BHCK, value_BHCK, **options)
    states = (query_BHLK.to(dtype), key_BHCK.to(dtype), value_BHCK.to(dtype))
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(*states, **options).to(query_BHLK.dtype)


def _read_dropping(
    query_BHLK: Tensor,
    key_BHCK: Tensor,
    value_BHCK: Tensor,
    allowed_B1LC: Tensor | None,
    bias_B1LC: Tensor | None,
    dropout: DropoutLayer,
    scale: float,
) -> Tensor:
    """What scaled_dot_product_attention gives with dropout of the weights; on CPUs it has no kernel for that, and takes
    a third more time."""
    dtype = _dtype_on_cpu(query_BHLK.dtype)
    with torch.autocast("cpu", enabled=False):
        scores_BHLC = (query_BHLK.to(dtype) * scale) @ key_BHCK.to(dtype).transpose(-1, -2)
        if bias_B1LC is not None:
            scores_BHLC += bias_B1LC
        later_LC = torch.ones(scores_BHLC.shape[-2:], dtype=torch.bool).triu(1)
        forbidden = later_LC if allowed_B1LC is None else ~allowed_B1LC
        weights_BHLC = scores_BHLC.masked_fill_(forbidden, -math.inf).softmax(-1)
        return (dropout(weights_BHLC) @ value_BHCK.to(dtype)).to(query_BHLK.dtype)


def _normed(x_BLHK: Tensor, norm: nn.RMSNorm | None) -> Tensor:
    if norm is None:
        return x_BLHK
    # Under autocast x is bfloat16 and the gains are float32, which the norm's kernels refuse to mix.
    return norm(x_BLHK.to(norm.weight.dtype)).to(x_BLHK.dtype)


class Gelu(MLP):
    """W2 gelu(W1 x), with biases."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        """Of inner width 4 d."""
        super().__init__(config, layer)
        self.up = nn.Linear(config.width, config.inner_width)
        self.out = nn.Linear(config.inner_width, config.width)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Every position by itself."""
        return self.out(F.gelu(self.up(hidden_BLD)))


class SwiGLU(MLP):
    """W2 (silu(Wg x) * (W1 x)), with biases. Source: arXiv 2002.05202."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        """Of inner width 8 d / 3."""
        super().__init__(config, layer)
        self.up = nn.Linear(config.width, 2 * config.inner_width)  # gate, then value
        self.out = nn.Linear(config.inner_width, config.width)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Every position by itself."""
        gate_BLF, value_BLF = self.up(hidden_BLD).chunk(2, -1)
        return self.out(F.silu(gate_BLF) * value_BLF)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) where there is a perceptron."""

    attention: Attention
    mlp: MLP | None

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        """Block `layer` (0 is the lowest) of a net."""
        super().__init__()
        self.branch_scale = config.branch_scale
        self.dropout = DropoutLayer(config.dropout.residual.of_layer(layer, config.layers))
        attention, mlp = (part_class(config.architecture, part) for part in ("attention", "mlp"))
        assert attention is not None
        self.attention_norm = norm(config)
        self.attention = attention(config, layer)
        self.mlp_norm = norm(config) if mlp else None
        self.mlp = mlp(config, layer) if mlp else None

    def forward(self, hidden_BLD: Tensor, reading: Reading = CAUSAL) -> Tensor:
        """The hidden states after this block; (B, 1, D) where one position of each row reads alone."""
        if reading.alone_B is not None:
            branch_B1D = self.attention.alone(self.attention_norm(hidden_BLD), reading)
            hidden_BLD = self._add(at(hidden_BLD, reading.alone_B), branch_B1D)
        else:
            hidden_BLD = self._add(hidden_BLD, self.attention(self.attention_norm(hidden_BLD), reading))
        if self.mlp is None or self.mlp_norm is None:
            return hidden_BLD
        return self._add(hidden_BLD, self.mlp(self.mlp_norm(hidden_BLD)))

    def _add(self, hidden_BLD: Tensor, branch_BLD: Tensor) -> Tensor:
        return torch.add(hidden_BLD, self.dropout(branch_BLD), alpha=self.branch_scale)


def norm(config: TransformerConfig) -> nn.Module:
    """A norm of the hidden states."""
    kind = part_class(config.architecture, "norm")
    assert kind is not None
    made: nn.Module = kind(config.width, NORM_EPS)
    return made


def positions(config: TransformerConfig, where: Literal["input", "attention"]) -> Positions | None:
    """What makes order enter there; None where it enters elsewhere."""
    kind = part_class(config.architecture, "positions")
    return None if kind is None or kind.where != where else kind(config)


# What a class of each part has to inherit from.
PARTS: dict[str, type[nn.Module]] = {"attention": Attention, "norm": nn.Module, "mlp": MLP, "positions": Positions}


def part_class(architecture: Architecture, part: str) -> type[Any] | None:
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
    kind: type[Any] = found
    return kind


def check_parts(architecture: Architecture) -> None:
    """UserError where a part cannot be found or does not fit."""
    found = {part: part_class(architecture, part) for part in PARTS}
    if architecture.biased and not getattr(found["attention"], "biased", False):
        name = f"model.architecture.attention {architecture.attention}"
        raise UserError(f"{name} adds no bias: set position_bias to false, and time to none or input")
