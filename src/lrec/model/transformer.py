"""The network: a decoder-only transformer over item IDs, pre-norm. Plain torch, one device, no Lightning. Shape
suffixes: B rows, L positions, M chosen positions, T = L + 1 times, C positions read, D width, V catalogue."""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrec.errors import UserError
from lrec.model.attention_context import CAUSAL, Context, KeyValueCache
from lrec.model.blocks import Attention, Block, Branch, DropoutLayer, norm, positions
from lrec.model.config import BASE_WIDTH, MUON_POWER, TABLE_RATE, TABLE_RATE_BESIDE_MUON, TransformerConfig
from lrec.model.event_inputs import EventInput, TimeInput, gaps
from lrec.model.seen_items import Additions, SeenItems
from lrec.model.sharded_table import OWN_ROWS, VECTORS, ItemTable, shard_of

INIT_STD = 0.02
SEEN = "seen.weight"
DRAWN_AT_ONCE, ONE_STREAM = 2**20, 2**28  # numbers: drawn in a block, and at most in a tensor of one stream
# Parameters of lrec's own parts are drawn under the names that they had in earlier versions, so that a seed still gives
# the same network.
_DRAWN_AS = {
    "attention.qkv": "qkv",
    "attention.query_norm": "query_norm",
    "attention.key_norm": "key_norm",
    "attention.out": "attention_out",
    "mlp.up": "mlp_in",
    "mlp.out": "mlp_out",
}

Result = TypeVar("Result")


class Transformer(nn.Module):
    """The network: it reads items and returns the result of a head: losses, ranks and top-k lists are functions of
    (hidden_BLD, table_VD), and only they use the table for scores. It is the item embedding (tied, no bias)."""

    def __init__(self, config: TransformerConfig, seed: int = 0) -> None:
        """Build and initialise the network; on the meta device nothing is drawn. UserError for a parameter without a
        dimension, or for another tensor that a part holds."""
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # keep only the blocks' inputs for the backward pass
        self.items = ItemTable(config)
        self.positions = positions(config, "input")
        self.events = EventInput(config) if config.event_types else None
        self.times = TimeInput(config) if config.architecture.time == "input" else None
        self.dropout = DropoutLayer(config.dropout.embedding)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = norm(config)
        self.seen = SeenItems(config) if config.architecture.seen else None
        for name, parameter in self.named_parameters():
            if parameter.ndim == 0:  # processes share parameters row by row
                raise UserError(
                    f"model.architecture: the parameter {name} has no dimension: give it one, as in torch.ones(1)"
                )
            if not parameter.is_meta:
                self.draw_(parameter, name, parameter.shape, seed)
        for part, module in self.named_modules():
            for name, value in (vars(module) | module._buffers).items():  # on the meta device, they have no values
                if isinstance(value, Tensor) and (value.is_meta or name in module._buffers):
                    raise UserError(
                        f"model.architecture: {part}.{name} is a tensor but no parameter: make it in forward"
                    )

    @torch.no_grad()
    def draw_(self, rows: Tensor, name: str, shape: torch.Size, seed: int, start: int = 0) -> Tensor:
        """Set `rows`, the rows from `start` on of the parameter `name`, to their values before training.

        Matrices and tables are Normal(0, 0.02), residual projections (out.weight) Normal(0, 0.02 / sqrt(2 L)), biases
        0, norms as their class sets them, unless a part has an `initial_value`. In the scaled parametrisation, L is the
        depth of the base. With given vectors, trained rows begin at 0, and so do the vectors until they are filled in.
        So do the vectors of seen items.
        A draw depends only on the seed and the name: not on the device, the sharding or the order of parameters.
        """
        if name == SEEN or (self.config.vector_width is not None and name in (OWN_ROWS, VECTORS)):
            return rows.zero_()
        drawn_as = re.sub(r"(?<=\d\.)\w+\.\w+(?=\.)", lambda part: _DRAWN_AS.get(part[0], part[0]), name)
        own: Tensor | None = None
        if found := re.fullmatch(r"(blocks\.\d+\.(?:attention|mlp))\.(.+)", name):
            branch = self.get_submodule(found[1])
            assert isinstance(branch, Branch)
            own = branch.initial_value(found[2], shape, _generator(f"{seed}/{drawn_as}"))
        elif found := re.fullmatch(r"(?:blocks\.\d+\.(?:attention|mlp)_)?norm\.(.+)", name):
            with torch.device("cpu"):  # made again, because the values are lost if the network was made on meta
                own = norm(self.config).get_parameter(found[1])
        if own is not None:
            return rows.copy_(own[start : start + len(rows)])
        if len(shape) == 1:
            return rows.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        std = INIT_STD
        if name.endswith(".out.weight"):
            std /= math.sqrt(2 * self.config.layers * self.config.branch_scale)
        return _draw_normal_(rows, shape, std, f"{seed}/{drawn_as}", start)

    def lr_multiplier(self, name: str, beside_muon: bool = False, by_rows: bool = False) -> float:
        """Share of the optimizer's learning rate that the parameter `name` gets; see `Parametrisation`. `beside_muon`:
        Muon updates the matrices of the blocks, and their share is that of Muon's rate. `by_rows`: a step updates only
        the rows of this table that it uses."""
        if self.config.parametrisation == "standard":
            return 1.0
        narrower, parameter = BASE_WIDTH / self.config.width, self.get_parameter(name)
        if beside_muon and is_for_muon(name, parameter):
            return narrower**MUON_POWER
        if parameter.ndim < 2 or name.startswith("blocks."):
            return narrower
        if not beside_muon:
            return TABLE_RATE * narrower**0.5
        return TABLE_RATE_BESIDE_MUON * narrower ** (0.5 if by_rows else 1.0)

    def sgd_lr_multiplier(self, name: str) -> float:
        """The same for SGD, which must make up for the gradients of blocks: they shrink by L0/L, as their branches."""
        return 1 / self.config.branch_scale if name.startswith("blocks.") else 1.0

    def forward(
        self,
        items_BL: Tensor,
        head: Callable[[Tensor, Any], Result],
        blank_BL: Tensor | None = None,
        cache: KeyValueCache | None = None,
        positions_M: Tensor | None = None,
        times_BT: Tensor | None = None,
        events_BL: Tensor | None = None,
    ) -> Result:
        """Encode the histories; return `head(hidden_BLD, table_VD)`, or `head(hidden_MD, table_VD)` of `positions_M`.

        Args:
            items_BL: Catalogue indices, padded on the right with any item.
            head: Function of the hidden states and the item table. The table is a tensor. It is a
                `sharded_table.Shard` if several processes share it, or if the network has `architecture.seen`.
            blank_BL: True for a blanked item: it keeps its position, but no position reads it, not even its own.
            cache: Keys and values of the earlier items of these histories. `items_BL` are the next items, and are
                added. For inference, without blanks.
            positions_M: Flat index b * L + l of each position whose hidden state the head gets, row after row. For
                inference without a cache, at least one in each row; with one, the last block computes only these.
            times_BT: Times of the items, and then the time of the request (L + 1), in whole seconds; for networks with
                `architecture.time`. With a cache, the time of an item is the time of the previous request.
            events_BL: Type of the event of each item, padded on the right with any type; for networks with
                `event_types`. With features (B, L, F), see `EventInput`.
        """
        assert cache is None or blank_BL is None
        assert (times_BT is not None) == self.reads_times, "times are missing, or given to a network without times"
        assert (events_BL is not None) == self.reads_events, "types are missing, or given to a network without types"
        context = CAUSAL if cache is None else cache.next(items_BL.shape[1])
        if cache is not None and not all(attention.caches for attention in self.attentions):
            inputs = {"items_BL": items_BL, "times_BT": times_BT, "events_BL": events_BL}
            return self._decode_again(head, context, positions_M, inputs)
        if blank_BL is not None:
            context = _around(blank_BL)
        hidden_BLD, table = self.items.fetch(items_BL)
        if self.events is not None:
            hidden_BLD = self.events(hidden_BLD, events_BL)
        if blank_BL is not None:
            hidden_BLD = hidden_BLD.masked_fill(blank_BL[..., None], 0.0)
        if self.positions is not None:
            hidden_BLD = self.positions(hidden_BLD, context.positions_BL)
        if self.times is not None:
            hidden_BLD = self.times(hidden_BLD, times_BT, context)
        elif times_BT is not None:
            context = context._replace(gaps_BLC=gaps(times_BT, context, self.reads_request))
        hidden_BLD = self.dropout(hidden_BLD)
        alone_B = None
        if positions_M is not None and len(positions_M) == len(items_BL) and cache is None and not self.training:
            alone_B = positions_M
        for block in self.blocks:
            given = (hidden_BLD, context, alone_B if block is self.blocks[-1] else None)
            again = self.checkpoint_activations and self.training
            hidden_BLD = checkpoint(block, *given, use_reentrant=False) if again else block(*given)
        hidden = self.norm(hidden_BLD)
        if positions_M is not None:
            hidden = hidden.flatten(0, 1)[slice(None) if alone_B is not None else positions_M]
        if self.seen is not None:
            table = replace(shard_of(table), added=self._additions(hidden, items_BL, positions_M, blank_BL, context))
        return head(hidden, table)

    def _additions(
        self, hidden: Tensor, items_BL: Tensor, positions_M: Tensor | None, blank_BL: Tensor | None, context: Context
    ) -> Additions:
        """What is added to the scores of the hidden states that the head gets."""
        assert self.seen is not None
        (n_rows, length), device = items_BL.shape, items_BL.device
        rows_BL = torch.arange(n_rows, device=device)[:, None].expand(n_rows, length)
        at_BL = context.positions(length, device).expand(n_rows, length)
        chosen = slice(None) if positions_M is None else positions_M
        rows_M, at_M = (each_BL.flatten()[chosen] for each_BL in (rows_BL, at_BL))
        (items_BC,) = context.with_cached("items", items_BL)
        if blank_BL is not None:
            items_BC = items_BC.masked_fill(blank_BL, -1)
        return self.seen(hidden.reshape(-1, hidden.shape[-1]), items_BC, rows_M, at_M)

    @property
    def reads_times(self) -> bool:
        """Whether `forward` needs the times of events."""
        return self.config.architecture.time != "none"

    @property
    def reads_request(self) -> bool:
        """Whether these times include that of the request."""
        return self.config.architecture.time == "request"

    @property
    def reads_events(self) -> bool:
        """Whether `forward` needs the types of events."""
        return self.config.event_types > 0

    @property
    def attentions(self) -> list[Attention]:
        return [block.attention for block in self.blocks if isinstance(block, Block)]

    def _decode_again(
        self,
        head: Callable[[Tensor, Any], Result],
        context: Context,
        positions_M: Tensor | None,
        inputs: dict[str, Tensor | None],
    ) -> Result:
        """Put the items into the cache, and encode the whole histories again."""
        whole: dict[str, Any] = {}
        for name, new in inputs.items():
            if name == "times_BT" and new is not None:
                events_BC, requests_BC = context.with_cached(name, new[:, :-1], new[:, 1:])
                whole[name] = torch.cat([events_BC[:, :1], requests_BC], 1)
            elif new is not None:
                (whole[name],) = context.with_cached(name, new)
        n_rows, n_read = whole["items_BL"].shape
        new_BL = torch.arange(n_rows, device=whole["items_BL"].device)[:, None] * n_read + context.positions_BL
        if positions_M is not None:
            return self.forward(**whole, head=head, positions_M=new_BL.flatten()[positions_M])
        of_rows = (n_rows, -1)
        return self.forward(
            **whole,
            head=lambda hidden_MD, table: head(hidden_MD.unflatten(0, of_rows), table),
            positions_M=new_BL.flatten(),
        )


def is_for_muon(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter of a network is a matrix inside a block: neither a table nor a vector."""
    return name.startswith("blocks.") and parameter.ndim == 2


def _generator(key: str) -> torch.Generator:
    digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def _draw_normal_(rows: Tensor, shape: torch.Size, std: float, key: str, start: int) -> Tensor:
    """Set rows of a tensor of this shape to the values that `normal_` would draw for them, one block at a time. In a
    tensor larger than ONE_STREAM, each block has a stream of its own, so that blocks without these rows are not drawn.

    torch draws groups of 16 numbers, and the last 16 again if a tensor is not a multiple of 16. So blocks of whole
    groups draw the same numbers; the last block takes the rest.
    """
    total, flat, generator = shape.numel(), rows.view(-1), _generator(key)
    first, begin = start * (total // max(shape[0], 1)), 0
    while begin < min(total, first + len(flat)):
        size = DRAWN_AT_ONCE if begin + DRAWN_AT_ONCE + 16 <= total else total - begin
        if total <= ONE_STREAM or begin + size > first:
            if total > ONE_STREAM:
                generator = _generator(f"{key}/{begin}")
            block = torch.empty(size).normal_(0.0, std, generator=generator)
            mine = block[max(first - begin, 0) : first + len(flat) - begin]
            flat[max(begin - first, 0) :][: len(mine)] = mine
        begin += size
    return rows


def _around(blank_BL: Tensor) -> Context:
    """Each position reads itself, because softmax needs something to read, and the earlier items that are not blank."""
    length = blank_BL.shape[1]
    earlier_LL = torch.ones(length, length, dtype=torch.bool, device=blank_BL.device).tril(-1)
    itself_LL = torch.eye(length, dtype=torch.bool, device=blank_BL.device)
    return Context((itself_LL | (earlier_LL & ~blank_BL[:, None, :]))[:, None])
