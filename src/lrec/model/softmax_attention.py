"""Softmax attention by heads, with the kernels that are fastest on the device. Shape suffixes: B batch rows, L
positions, C positions that are read, D width, H heads, K width per head."""

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
        query_BLHK = self._ready(query_BLHK, self.query_norm, context.positions_BL)
        key_BLHK = self._ready(key_BLHK, self.key_norm, context.positions_BL)
        key_BCHK, value_BCHK = context.with_cached(self.layer, key_BLHK, value_BLHK)
        return self._read(query_BLHK, key_BCHK, value_BCHK, context)

    def alone(self, hidden_BLD: Tensor, context: Context, alone_B: Tensor) -> Tensor:
        of_query, of_rest = slice(self.config.width), slice(self.config.width, None)
        weight, bias, context = self.qkv.weight, self.qkv.bias, context.of_one(alone_B, hidden_BLD.shape[1])
        (query_B1HK,) = self.by_head(F.linear(at(hidden_BLD, alone_B), weight[of_query], bias[of_query]), 1)
        key_BLHK, value_BLHK = self.by_head(F.linear(hidden_BLD, weight[of_rest], bias[of_rest]), 2)
        query_B1HK = self._ready(query_B1HK, self.query_norm, context.positions_BL)
        return self._read(query_B1HK, self._ready(key_BLHK, self.key_norm, None), value_BLHK, context)

    def _ready(self, x_BLHK: Tensor, norm: nn.RMSNorm | None, positions_BL: Tensor | None) -> Tensor:
        """Queries or keys, with their norm and positions."""
        if norm is not None:
            # Under autocast, x is bfloat16 and the gains are float32; the norm's kernels do not accept this mix.
            x_BLHK = norm(x_BLHK.to(norm.weight.dtype)).to(x_BLHK.dtype)
        return self.placed(x_BLHK, positions_BL)

    def _read(self, query_BLHK: Tensor, key_BCHK: Tensor, value_BCHK: Tensor, context: Context) -> Tensor:
        # The causal mask is enough: windows are padded on the right, so no real position reads padding.
        states = (query_BLHK.transpose(1, 2), key_BCHK.transpose(1, 2), value_BCHK.transpose(1, 2))
        drops, on_cpu, dtype = self.dropout.drops and self.training, query_BLHK.device.type == "cpu", query_BLHK.dtype
        # On a CPU, at least float32: its bfloat16 kernel takes up to three times as long, and rounds the weights.
        precise = torch.promote_types(dtype, torch.float32) if on_cpu else dtype
        scale, bias_B1LC = self.config.attention_scale, self.logit_bias(query_BLHK.shape[1], context)
        if bias_B1LC is not None:
            bias_B1LC = bias_B1LC.to(precise).masked_fill(~self.allowed(query_BLHK, context), -math.inf)
        mask_B1LC = context.allowed_B1LC if bias_B1LC is None else bias_B1LC
        options: dict[str, Any] = {"attn_mask": mask_B1LC, "is_causal": mask_B1LC is None, "scale": scale}
        if drops and not on_cpu:
            read_BHLK = fused_dropping(*states, self.dropout, **options)
        else:
            with torch.autocast("cpu", enabled=False):
                query_BHLK, key_BHCK, value_BHCK = (each.to(precise) for each in states)
                if drops:  # torch has no kernel for dropout on a CPU, and would take a third more time
                    scores_BHLC = (query_BHLK * scale) @ key_BHCK.transpose(-1, -2)
                    if bias_B1LC is None:
                        scores_BHLC.masked_fill_(~self.allowed(query_BLHK, context), -math.inf)
                    else:
                        scores_BHLC += bias_B1LC
                    read_BHLK = self.dropout(scores_BHLC.softmax(-1)) @ value_BHCK
                else:
                    read_BHLK = F.scaled_dot_product_attention(query_BHLK, key_BHCK, value_BHCK, **options)
        return self.out(read_BHLK.to(dtype).transpose(1, 2).flatten(-2))


def fused_dropping(
    query_BHLK: Tensor, key_BHCK: Tensor, value_BHCK: Tensor, dropout: DropoutLayer, **options: Any
) -> Tensor:
    """scaled_dot_product_attention with dropout of the weights. Its kernels need the rate as a number."""
    return F.scaled_dot_product_attention(query_BHLK, key_BHCK, value_BHCK, dropout_p=dropout.rate, **options)
