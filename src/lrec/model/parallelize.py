"""The one place that wraps the network: activation checkpointing -> compile -> shard -> materialise and initialise.

A sharded parameter is split by rows, as `sharded_table.split` has it, and nothing is padded that a loss, a rank or a
checkpoint could see. The item table is no part of what FSDP gathers: all processes share it, those of other copies of
the network too, and each computes with the rows that it holds.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from lrec.model import softmax_attention
from lrec.model.config import TransformerConfig
from lrec.model.sharded_table import local_range, local_rows
from lrec.model.transformer import Transformer

MOST_GRAPHS = 32  # of a function that is compiled


class Sharding(NamedTuple):
    """How parameters are spread over the processes."""

    mesh: DeviceMesh  # all processes; of (replicate, shard) each row holds a whole network, but for the item table
    param_dtype: torch.dtype | None = None  # what blocks compute in, gradients being reduced in float32; None: float32


def build(
    config: TransformerConfig,
    seed: int,
    sharding: Sharding | None = None,
    checkpoint_activations: bool = False,
    compile_blocks: bool = False,
) -> Transformer:
    """The network, initialised; with `sharding`, each process only ever holds its own rows of it."""
    with nullcontext() if sharding is None else torch.device("meta"):
        net = Transformer(config, seed)
    net.checkpoint_activations = checkpoint_activations
    if compile_blocks:
        # A block has graphs for training and evaluation, with and without dropout, for one row, one position, and for
        # one position of each row. Beyond its limit torch would stop compiling.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
        _keep_rates_out_of_graphs()
        for block in net.blocks:  # of any shape; blocks share graphs whatever their weights and dropout rates
            block.forward = torch.compile(block.forward, dynamic=True)
    if sharding is not None:
        _shard(net, sharding)
        net.to_empty(device=sharding.mesh.device_type)
        assert not dict(net.named_buffers()), "a buffer has no initial value"
        for name, parameter in net.named_parameters():
            net.draw_(local_rows(parameter), name, parameter.shape, seed, local_range(parameter).start)
    return net


@cache
def _keep_rates_out_of_graphs() -> None:
    """Leave attention with dropout to torch's kernels, which would make each block's rate a constant of its graph."""
    softmax_attention.fused_dropping = torch.compiler.disable(softmax_attention.fused_dropping)


def _shard(net: Transformer, sharding: Sharding) -> None:
    """A group for each block, and one for the rest but for the item table."""
    reduce_dtype = torch.float32 if sharding.param_dtype is not None else None
    precision = MixedPrecisionPolicy(sharding.param_dtype, reduce_dtype)
    for block in net.blocks:
        fully_shard(block, mesh=sharding.mesh, mp_policy=precision)
    # On the same mesh as FSDP's own parameters, or no norm of all gradients could be taken.
    placements = [Shard(0)] * sharding.mesh.ndim
    for name, rows in net.items.by_item().items():
        spread = distribute_tensor(rows, sharding.mesh, placements)
        setattr(net.items, name, nn.Parameter(spread, requires_grad=rows.requires_grad))
    ignored = set(net.items.by_item().values())
    fully_shard(net, mesh=sharding.mesh, mp_policy=precision, ignored_params=ignored)


@torch.no_grad()
def fill(net: Transformer, values: Mapping[str, Tensor], whole: bool = True) -> None:
    """Give parameters their rows of whole values, by name; or values of the rows held here."""
    for name, value in values.items():
        parameter = net.get_parameter(name)
        local_rows(parameter).copy_(value[local_range(parameter)] if whole else value)


def sharded_like(rows: Tensor, parameter: Tensor) -> Tensor:
    """This process's rows as a tensor that is sharded as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return rows
    mesh, placements, shape, stride = parameter.device_mesh, parameter.placements, parameter.shape, parameter.stride()
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=shape, stride=stride)


def drop_gathered(net: nn.Module) -> None:
    """Free the whole parameters that a forward pass without a backward pass has left: the shards are the truth."""
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
