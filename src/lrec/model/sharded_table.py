"""The item table: trained rows, rows made from given item vectors, or the sum of both.

If several processes share the table, it is a DTensor, split by rows over every dimension of its mesh. Each process
computes with the rows that it holds. Processes exchange little: item indices, hidden states, sums for each target.

To fetch rows, each process looks up the items of all processes, with zeros for the rows that it does not hold. Then a
reduce-scatter brings every process its own rows. An exchange of only the needed rows would wait for their number.

Shape suffixes: V catalogue, H rows held here, D width, M items or hidden states of this process, P the largest M of any
process, G = R P those of all processes, N items that all processes ask for, R processes, W width of given vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lrec.model.config import TransformerConfig
from lrec.model.seen_items import Additions

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor  # its import takes longer than loading a network

# How long processes wait for one that may be lost. No process makes the others wait as long as this, even for a save.
PATIENCE_MINUTES = 10.0
# The parameters' names in a network.
OWN_ROWS, VECTORS, PROJECTION = "items.weight", "items.vectors", "items.projection"


class ItemTable(nn.Module):
    """The rows with which hidden states begin and with which they are compared at the end (tied, no bias)."""

    weight: nn.Parameter  # trained rows of the items (V, D); None if the rows are made from vectors only
    vectors: nn.Parameter | None  # given vectors of the items (V, W), not trained; None if none are given
    projection: nn.Parameter  # makes rows from vectors (W, D)

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        n_items, width, given = config.n_items, config.width, config.vector_width
        self.register_parameter("weight", nn.Parameter(torch.empty(n_items, width)) if config.own_rows else None)
        self.vectors = None
        if given is not None:
            self.vectors = nn.Parameter(torch.empty(n_items, given), requires_grad=False)
            self.projection = nn.Parameter(torch.empty(given, width))

    def by_item(self) -> dict[str, nn.Parameter]:
        """The parameters that have a row for each item, by name: trained rows and vectors."""
        return {name: rows for name, rows in self.named_parameters() if name != "projection"}

    def fetch(self, items: Tensor) -> "tuple[Tensor, Table]":
        """The rows of some items, and the table for a head; see `fetch` below."""
        if self.vectors is None:
            return fetch(self.weight, items)
        vectors_HW, processes = local_rows(self.vectors), processes_of(self.vectors)
        with torch.autocast(vectors_HW.device.type, enabled=False):
            rows_HD = vectors_HW @ self.projection.to(vectors_HW.dtype)
        if processes > 1 and rows_HD.requires_grad:
            # Each process has the gradient of its own rows. The projection's is their sum, but FSDP takes the average.
            rows_HD.register_hook(lambda grad_HD: grad_HD * processes)
        if self.weight is not None:
            rows_HD = rows_HD + local_rows(self.weight)
        return fetch(self.vectors, items, rows_HD)


def rows_of_vectors(parameters: Mapping[str, Tensor], vectors_VW: Tensor) -> Tensor:
    """The rows (V, D) that a network's projection makes from vectors."""
    return vectors_VW.float() @ parameters[PROJECTION].float()


def whole_table(parameters: Mapping[str, Tensor]) -> Tensor:
    """All rows (V, D) of a network's item table, from its parameters by name."""
    if VECTORS not in parameters:
        return parameters[OWN_ROWS]
    rows_VD = rows_of_vectors(parameters, parameters[VECTORS])
    return rows_VD + parameters[OWN_ROWS].float() if OWN_ROWS in parameters else rows_VD


@dataclass(eq=False)
class Shard:
    """The rows of the item table that this process holds, and exchanges that all processes make in the same order. For
    a head, also what is added to the scores of items of its hidden states' histories."""

    rows_HD: Tensor
    start: int  # index of the first of these rows in the catalogue
    n_items: int  # rows of the whole table
    processes: int  # that share the table
    gradient: "Gradient | None" = None  # to which a backward pass adds; None: autograd adds it up
    added: Additions | None = None  # to the scores of this process's hidden states

    @cached_property
    def rank(self) -> int:
        return distributed.get_rank() if self.processes > 1 else 0

    def places(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each item's row is here, and its place among the rows held here; 0 if it is not here."""
        places = items - self.start
        here = (places >= 0) & (places < len(self.rows_HD))
        return here, places.masked_fill(~here, 0)

    def rows_here(self, items_G: Tensor) -> Tensor:
        """Each item's row; zeros if it is not here."""
        if len(self.rows_HD) == 0:
            return self.rows_HD.new_zeros(len(items_G), self.rows_HD.shape[1])
        return self.only_here(items_G, self.rows_HD[self.places(items_G)[1]])

    def only_here(self, items_G: Tensor, values_GD: Tensor) -> Tensor:
        """In place: zeros for items whose rows are not here. Selecting the others would wait for a GPU."""
        return values_GD.masked_fill_(~self.places(items_G)[0][:, None], 0.0)

    def most(self, n: int) -> int:
        """The largest n of all processes, exchanged without waiting for a GPU."""
        if self.processes == 1:
            return n
        largest = torch.tensor(n)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX, _host_group())
        return int(largest)

    def gathered(self, values_M: Tensor, most: int, filler: float = 0) -> Tensor:
        """The values of all processes, one process after the other, each padded to `most` values."""
        if self.processes == 1:
            return values_M
        padded_P = values_M.new_full((most, *values_M.shape[1:]), filler)
        padded_P[: len(values_M)] = values_M
        values_G = values_M.new_empty((self.processes * most, *values_M.shape[1:]))
        distributed.all_gather_single(values_G, padded_P)
        return values_G

    def additions_here(self, added: Additions, most: int) -> Additions:
        """The additions for the hidden states of all processes, each process's part padded to `most` states. Instead of
        items, they have places among the rows held here."""
        if self.processes == 1:
            return added
        rows, length = map(self.most, added.items_BC.shape)
        missing = length - added.items_BC.shape[1]
        items_BC, gaps_BC = (self.gathered(F.pad(each, (0, missing)), rows) for each in added[:2])
        of_row_G = self.gathered(added.rows_M + self.rank * rows, most)
        of_all = Additions(items_BC, gaps_BC, of_row_G, *(self.gathered(each, most) for each in added[3:]))

        def place(items_BC: Tensor) -> Tensor:
            here_BC, places_BC = self.places(items_BC)
            return places_BC.masked_fill(~here_BC, -1)

        return of_all.mapped(place)

    def returned(self, parts_G: Tensor, n: int) -> Tensor:
        """This process's first n values, each the sum of the parts that all processes have for it."""
        if self.processes == 1:
            return parts_G
        sum_P = parts_G.new_empty((len(parts_G) // self.processes, *parts_G.shape[1:]))
        distributed.reduce_scatter_single(sum_P, parts_G.contiguous())
        return sum_P[:n]

    def exchanged(self, found_G: Tensor, n: int) -> Tensor:
        """What each process has found for this process's first n values, (R, n, ...)."""
        if self.processes == 1:
            return found_G[None]
        of_all_RP = torch.empty_like(found_G)
        distributed.all_to_all_single(of_all_RP, found_G.contiguous())
        return of_all_RP.unflatten(0, (self.processes, -1))[:, :n]

    def summed(self, values: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.processes > 1:
            distributed.all_reduce(values)
        return values

    def of_first(self, values: Tensor) -> Tensor:
        """The values of the first process, in place."""
        if self.processes > 1:
            distributed.broadcast(values, 0)
        return values


# What a head gets: the whole table, or a shard of it.
Table = Tensor | Shard


@dataclass
class Gradient:
    """The gradient of the rows held here, which one backward pass adds up, in place: a dense part, and some rows with
    their places; a row is zero if its place is outside the rows held here."""

    dense_HD: Tensor | None = None
    touched: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add_dense(self, grad_HD: Tensor) -> None:
        self.dense_HD = grad_HD if self.dense_HD is None else self.dense_HD.add_(grad_HD)

    def total(self, like_HD: Tensor) -> Tensor:
        """The whole gradient as one tensor; it is then forgotten."""
        total_HD = torch.zeros_like(like_HD) if self.dense_HD is None else self.dense_HD
        for places_N, grad_ND in self.touched if len(total_HD) else []:
            # Zeros for rows of other processes may go to any row, but not all to one: additions to a row take turns.
            total_HD.index_add_(0, places_N.remainder(len(total_HD)), grad_ND.to(total_HD.dtype))
        self.dense_HD, self.touched = None, []
        return total_HD


@dataclass
class TouchedRows(Gradient):
    """The gradient of a table of which only some rows have one: its attribute `touched`, which lasts until cleared."""

    _sum: tuple[Tensor, Tensor] | None = None

    def clear(self) -> None:
        self.touched, self._sum = [], None

    def coalesced(self) -> tuple[Tensor, Tensor] | None:
        """The places, each once and in order, and their gradients, which may be changed in place; None if none."""
        if self.touched:
            parts = self.touched if self._sum is None else [self._sum, *self.touched]
            places_N, grad_ND = (torch.cat(each) for each in zip(*parts, strict=True))
            places_U, index_N = places_N.unique(return_inverse=True)
            grad_UD = grad_ND.new_zeros(len(places_U), grad_ND.shape[1]).index_add_(0, index_N, grad_ND)
            self._sum, self.touched = (places_U, grad_UD), []
        return self._sum


def shard_of(table: Table) -> Shard:
    """The shard that a head got; a whole table becomes the only shard."""
    return table if isinstance(table, Shard) else Shard(table, 0, len(table), 1, getattr(table, "gradient", None))


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    return hasattr(tensor, "placements")


def processes_of(tensor: Tensor) -> int:
    return tensor.device_mesh.size() if is_sharded(tensor) else 1


def local_rows(tensor: Tensor) -> Tensor:
    """The rows of a tensor, sharded or not, that this process holds, as a plain tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def local_range(tensor: Tensor) -> slice:
    """The range of the rows that this process holds."""
    if not is_sharded(tensor):
        return slice(0, len(tensor))
    mesh = tensor.device_mesh
    dimensions = [dimension for dimension, placement in enumerate(tensor.placements) if placement.is_shard(0)]
    return split(len(tensor), [(mesh.get_local_rank(each), mesh.size(each)) for each in dimensions])


def split(n: int, parts: list[tuple[int, int]]) -> slice:
    """Part i of k of n rows: ceil(n / k) rows, fewer or none in the last parts. The next (i, k) splits that part."""
    start, stop = 0, n
    for part, number in parts:
        each = -(-(stop - start) // number)
        start, stop = min(start + part * each, stop), min(start + (part + 1) * each, stop)
    return slice(start, stop)


def is_first_copy(tensor: "DTensor") -> bool:
    """Whether this process has the first copy of its rows."""
    replicated = [dimension for dimension, placement in enumerate(tensor.placements) if not placement.is_shard(0)]
    return all(tensor.device_mesh.get_local_rank(each) == 0 for each in replicated)


def fetch(table_VD: Tensor, items: Tensor, rows_HD: Tensor | None = None) -> tuple[Tensor, Table]:
    """The rows of some items, and the table for a head: the table's gradient flows only through these two. With
    `rows_HD`, the rows held here are these instead of those of `table_VD`, and are spread in the same way.

    The gradient of a sharded table is the average of the gradients of the processes' losses, as with FSDP for every
    other parameter. All processes must multiply their losses by the same number.
    """
    here_HD = local_rows(table_VD) if rows_HD is None else rows_HD
    gradient = getattr(table_VD, "touched", None) or Gradient()
    here = Shard(here_HD, local_range(table_VD).start, len(table_VD), processes_of(table_VD), gradient)
    if here.processes == 1 and not torch.is_grad_enabled():
        return F.embedding(items, here_HD), here_HD
    table_HD = _Whole.apply(here_HD, here)
    table = replace(here, rows_HD=table_HD)
    rows_BLD = rows_of(table, items.flatten()).unflatten(0, items.shape)
    if here.processes > 1:
        return rows_BLD, table
    table_HD.gradient = gradient  # a head gets a plain tensor; `shard_of` finds the `Gradient` in its attribute
    return rows_BLD, table_HD


def rows_of(shard: Shard, items_M: Tensor, shared: bool = False) -> Tensor:
    """The rows of the items that this process asks for; with `shared`, all processes ask for the same items."""
    return _Rows.apply(shard.rows_HD, items_M, shard, shared)


def among(table: Table, candidates_N: Tensor) -> Table:
    """The table of these items only, ascending; for one process."""
    shard = shard_of(table)
    rows_ND = shard.rows_HD[candidates_N]
    if shard.added is None:
        return rows_ND
    place_V = torch.full((shard.n_items,), -1, device=candidates_N.device)
    place_V[candidates_N] = torch.arange(len(candidates_N), device=candidates_N.device)
    return Shard(rows_ND, 0, len(rows_ND), 1, added=shard.added.mapped(place_V.__getitem__))


def all_scores(hidden_MD: Tensor, table: Table) -> Tensor:
    """The scores of all items, (M, V)."""
    scores_MV = hidden_MD @ whole(table).T
    if isinstance(table, Shard) and table.added is not None:
        table.added.slots().add_(scores_MV)
    return scores_MV


def whole(table: Table) -> Tensor:
    """The whole table on every process, for a head that cannot use shards."""
    if not isinstance(table, Shard):
        return table
    return rows_of(table, torch.arange(table.n_items, device=table.rows_HD.device), shared=True)


class _Whole(torch.autograd.Function):
    """See `fetch`. Its backward pass comes after those of all uses of its result, and so has the whole gradient."""

    @staticmethod
    def forward(ctx: Any, rows_HD: Tensor, here: Shard) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.here = here
        return rows_HD.view_as(rows_HD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_HD: Tensor | None) -> tuple[Tensor | None, ...]:
        here: Shard = ctx.here
        gradient = here.gradient
        assert gradient is not None
        if isinstance(gradient, TouchedRows):
            assert grad_HD is gradient.dense_HD is None, "this loss gives every row a gradient"
            return None, None
        if grad_HD is not None:
            gradient.add_dense(grad_HD.clone())  # a copy: others may use autograd's
        total_HD = gradient.total(here.rows_HD)
        return total_HD if here.processes == 1 else total_HD.div_(here.processes), None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_HD: Tensor, items_M: Tensor, shard: Shard, shared: bool) -> Tensor:
        ctx.shard, ctx.shared, ctx.items_G, ctx.most = shard, shared, items_M, 0
        if shard.processes == 1:
            return F.embedding(items_M, rows_HD)
        if not shared:
            ctx.most = shard.most(len(items_M))
            ctx.items_G = shard.gathered(items_M, ctx.most, -1)
        items_G = ctx.items_G
        found_GD = shard.rows_here(items_G)
        return shard.summed(found_GD) if shared else shard.returned(found_GD, len(items_M))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor | None, ...]:
        shard: Shard = ctx.shard
        gradient, places_N, grad_ND = shard.gradient or Gradient(), ctx.items_G, grad_MD
        if shard.processes > 1:
            grad_ND = shard.summed(grad_MD.clone()) if ctx.shared else shard.gathered(grad_MD, ctx.most)
            places_N, grad_ND = ctx.items_G - shard.start, shard.only_here(ctx.items_G, grad_ND)
            if isinstance(gradient, TouchedRows):
                mine_N = shard.places(ctx.items_G)[0]
                places_N, grad_ND = places_N[mine_N], grad_ND[mine_N] / shard.processes
        gradient.touched.append((places_N, grad_ND))
        return None if shard.gradient else gradient.total(shard.rows_HD), None, None, None


@cache
def _host_group() -> Any:
    """A gloo group of all processes; None if the default group uses gloo."""
    return None if distributed.get_backend() == "gloo" else gloo_group()


def gloo_group() -> Any:
    """A gloo group of all processes, which waits for no GPU. It has the default group's timeout, not half an hour."""
    device = torch.device("cpu" if distributed.get_backend() == "gloo" else "cuda")
    assert distributed.group.WORLD is not None
    patience = distributed.group.WORLD._get_backend(device).options._timeout
    return distributed.new_group(backend="gloo", timeout=patience)
