"""HSTU's attention: pointwise SiLU weights with a bias of position and time, and a gated output.

Source: Zhai et al. 2024, arXiv 2402.17152, eq. 1 to 3, as in its code. Shape suffixes: B batch rows, L positions,
C positions that are read, D width, H heads, K width per head, I = H * K.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrec.model.attention_context import CAUSAL, Context, at
from lrec.model.blocks import Attention, DropoutLayer
from lrec.model.config import TransformerConfig

NORM_EPS = 1e-6
NEVER = -1e9  # the logit of a position that must not be read


class HSTU(Attention):
    """W (U * LN(sum over the positions read of SiLU(Q K^T + bias) / n V)), with U, V, Q, K = SiLU(W' x).

    n is max_len, not the number of positions read, so that a row does not depend on its batch. The weights need not sum
    to one. LN has no parameters. dropout.attention applies to U * LN(...).
    """

    caches = True
    biased = True

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        inner = config.heads * config.head_width
        self.dropout = DropoutLayer(config.dropout.attention.of_layer(layer, config.layers))
        self.uvqk = nn.Linear(config.width, 4 * inner, bias=False)
        self.out = nn.Linear(inner, config.width)

    def initial_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        """Glorot's normal values for uvqk, of variance 2 / (rows + columns): LN's epsilon would hide smaller ones."""
        if name != "uvqk.weight":
            return None
        std = (2 / sum(shape)) ** 0.5
        return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)

    def forward(self, hidden_BLD: Tensor, context: Context = CAUSAL) -> Tensor:
        gate_BLHK, value_BLHK, query_BLHK, key_BLHK = self._made(self.uvqk.weight, hidden_BLD, 4)
        query_BLHK, key_BLHK = (self.placed(x_BLHK, context.positions_BL) for x_BLHK in (query_BLHK, key_BLHK))
        key_BCHK, value_BCHK = context.with_cached(self.layer, key_BLHK, value_BLHK)
        return self._read(gate_BLHK, query_BLHK, key_BCHK, value_BCHK, context)

    def alone(self, hidden_BLD: Tensor, context: Context, alone_B: Tensor) -> Tensor:
        of_gate, of_value, of_query, of_key = self.uvqk.weight.chunk(4)
        context = context.of_one(alone_B, hidden_BLD.shape[1])
        gate_B1HK, query_B1HK = self._made(torch.cat([of_gate, of_query]), at(hidden_BLD, alone_B), 2)
        value_BLHK, key_BLHK = self._made(torch.cat([of_value, of_key]), hidden_BLD, 2)
        query_B1HK = self.placed(query_B1HK, context.positions_BL)
        return self._read(gate_B1HK, query_B1HK, self.placed(key_BLHK, None), value_BLHK, context)

    def _made(self, weight_ID: Tensor, hidden_BLD: Tensor, number: int) -> tuple[Tensor, ...]:
        return self.by_head(F.silu(F.linear(hidden_BLD, weight_ID)), number)

    def _read(
        self, gate_BLHK: Tensor, query_BLHK: Tensor, key_BCHK: Tensor, value_BCHK: Tensor, context: Context
    ) -> Tensor:
        scores_BHLC = query_BLHK.transpose(1, 2) @ key_BCHK.permute(0, 2, 3, 1)
        never = max(NEVER, torch.finfo(scores_BHLC.dtype).min / 2)  # SiLU of it is 0; of minus infinity it would be nan
        bias_B1LC = self.logit_bias(query_BLHK.shape[1], context)
        if bias_B1LC is None:
            bias_B1LC = torch.zeros((), device=query_BLHK.device)
        scores_BHLC += bias_B1LC.to(scores_BHLC.dtype).where(self.allowed(query_BLHK, context), never)
        read_BHLK = F.silu(scores_BHLC) @ (value_BCHK / self.config.max_len).transpose(1, 2)
        read_BLI = read_BHLK.transpose(1, 2).flatten(-2)
        precise = torch.promote_types(read_BLI.dtype, torch.float32)
        normed_BLI = F.layer_norm(read_BLI.to(precise), read_BLI.shape[-1:], eps=NORM_EPS).to(read_BLI.dtype)
        return self.out(self.dropout(gate_BLHK.flatten(-2) * normed_BLI))
