"""A part of a block of your own: gated attention without softmax, as in HSTU (arXiv 2402.17152).

Try it from this folder: lrec fit --model.architecture.attention gated_attention.GatedAttention ...
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrec import Attention
from lrec.model.attention_context import CAUSAL, Context
from lrec.model.config import TransformerConfig


class GatedAttention(Attention):
    """W (U * norm(silu(Q K^T * scale) V / number of positions read)): U is a gate; weights need not sum to 1."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.qkvu = nn.Linear(config.width, 4 * config.width)
        self.read_norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, hidden_BLD: Tensor, context: Context = CAUSAL) -> Tensor:
        query_BLHK, key_BLHK, value_BLHK, gate_BLHK = (
            self.qkvu(hidden_BLD).unflatten(-1, (4, self.config.heads, -1)).unbind(-3)
        )
        query_BLHK, key_BLHK = (self.placed(x_BLHK, context.positions_BL) for x_BLHK in (query_BLHK, key_BLHK))
        allowed_B1LC = self.allowed(hidden_BLD, context)
        scores_BHLC = torch.einsum("blhk,bchk->bhlc", query_BLHK, key_BLHK) * self.config.attention_scale
        weights_BHLC = F.silu(scores_BHLC) * allowed_B1LC / allowed_B1LC.sum(-1, keepdim=True)
        read_BLD = torch.einsum("bhlc,bchk->blhk", weights_BHLC, value_BLHK).flatten(-2)
        return self.out(gate_BLHK.flatten(-2) * self.read_norm(read_BLD))
