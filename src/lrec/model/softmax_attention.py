"""Softmax attention by heads, with the kernels that are fastest on the device.

Shape suffixes: B batch rows, L positions, C positions that are read, D width, H heads, K width per head.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrec.model.attention_context import CAUSAL, Context, at
from lrec.model.blocks import NORM_EPS, Attention, DropoutLayer
from lrec.model.config import TransformerConfig


class SoftmaxAttention(Attention):
    """softmax(Q K^T * scale + bias) V by heads, with biases on every matrix."""

    caches = True
    biased = True

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.dropout = DropoutLayer(config.dropout.attention.of_layer(layer, config.layers))
        self.qkv = nn.Linear(config.width, 3 * config.width)
        qk_norm = config.architecture.qk_norm
        self.query_norm = nn.RMSNorm(config.head_width, NORM_EPS) if qk_norm else None
        self.key_norm = nn.RMSNorm(config.head_width, NORM_EPS) if qk_norm else None
        self.out = nn.Linear(config.width, config.width)

    def forward(self, hidden_BLD: Tensor, context: Context = CAUSAL) -> Tensor:
        query_BLHK, key_BLHK, value_BLHK = self.by_head(self.qkv(hidden_BLD), 3)
        query_BLHK = self.placed(_normed(query_BLHK, self.query_norm), context.positions_BL)
        key_BLHK = self.placed(_normed(key_BLHK, self.key_norm), context.positions_BL)
        key_BCHK, value_BCHK = context.with_cached(self.layer, key_BLHK, value_BLHK)
        return self._read(query_BLHK, key_BCHK, value_BCHK, context)

    def alone(self, hidden_BLD: Tensor, context: Context, alone_B: Tensor) -> Tensor:
        of_query, of_rest = slice(self.config.width), slice(self.config.width, None)
        weight, bias, context = self.qkv.weight, self.qkv.bias, context.of_one(alone_B, hidden_BLD.shape[1])
        (query_B1HK,) = self.by_head(F.linear(at(hidden_BLD, alone_B), weight[of_query], bias[of_query]), 1)
        key_BLHK, value_BLHK = self.by_head(F.linear(hidden_BLD, weight[of_rest], bias[of_rest]), 2)
        query_B1HK = self.placed(_normed(query_B1HK, self.query_norm), context.positions_BL)
        key_BLHK = self.placed(_normed(key_BLHK, self.key_norm), None)
        return self._read(query_B1HK, key_BLHK, value_BLHK, context)

    def _read(self, query_BLHK: Tensor, key_BCHK: Tensor, value_BCHK: Tensor, context: Context) -> Tensor:
        # The causal mask is enough: windows are padded on the right, so no real position reads padding.
        states = (query_BLHK.transpose(1, 2), key_BCHK.transpose(1, 2), value_BCHK.transpose(1, 2))
        mask_B1LC, bias_B1LC = context.allowed_B1LC, self.logit_bias(query_BLHK.shape[1], context)
        drops, scale = self.dropout.drops and self.training, self.config.attention_scale
        if drops and query_BLHK.device.type == "cpu":
            read_BHLK = _dropping_on_cpu(*states, mask_B1LC, bias_B1LC, self.dropout, scale)
        else:
            if bias_B1LC is not None:
                bias_B1LC = bias_B1LC.to(_computed_in(query_BLHK))
                mask_B1LC = bias_B1LC.masked_fill(~self.allowed(query_BLHK, context), -math.inf)
            options: dict[str, Any] = {"attn_mask": mask_B1LC, "is_causal": mask_B1LC is None, "scale": scale}
            read_BHLK = fused_dropping(*states, self.dropout, **options) if drops else _fused(*states, **options)
        return self.out(read_BHLK.transpose(1, 2).flatten(-2))


def _computed_in(states: Tensor) -> torch.dtype:
    """On a CPU, at least float32: its bfloat16 kernel takes up to three times as long, and rounds the weights."""
    return torch.promote_types(states.dtype, torch.float32) if states.device.type == "cpu" else states.dtype


def _fused(query_BHLK: Tensor, key_BHCK: Tensor, value_BHCK: Tensor, **options: Any) -> Tensor:
    dtype = _computed_in(query_BHLK)
    states = (query_BHLK.to(dtype), key_BHCK.to(dtype), value_BHCK.to(dtype))
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(*states, **options).to(query_BHLK.dtype)


def fused_dropping(
    query_BHLK: Tensor, key_BHCK: Tensor, value_BHCK: Tensor, dropout: DropoutLayer, **options: Any
) -> Tensor:
    """scaled_dot_product_attention with dropout of the weights. Its kernels need the rate as a number."""
    return F.scaled_dot_product_attention(query_BHLK, key_BHCK, value_BHCK, dropout_p=dropout.rate, **options)


def _dropping_on_cpu(
    query_BHLK: Tensor,
    key_BHCK: Tensor,
    value_BHCK: Tensor,
    allowed_B1LC: Tensor | None,
    bias_B1LC: Tensor | None,
    dropout: DropoutLayer,
    scale: float,
) -> Tensor:
    """Attention with dropout on a CPU: torch has no kernel for it, and would take a third more time."""
    dtype = _computed_in(query_BHLK)
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
    # Under autocast, x is bfloat16 and the gains are float32; the norm's kernels do not accept this mix.
    return norm(x_BLHK.to(norm.weight.dtype)).to(x_BLHK.dtype)
