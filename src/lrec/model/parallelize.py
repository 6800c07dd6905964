"""The one place that wraps the network: activation checkpointing -> compile -> shard -> materialise and initialise.

A sharded parameter is split by rows (`sharded_table.split`), without padding. FSDP does not gather the item table: all
processes share it, including those of other copies of the network.
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


class Sharding(NamedTuple):
    """How parameters are spread over the processes."""

    mesh: DeviceMesh  # all processes; each row of (replicate, shard) holds a whole network except the item table
    param_dtype: torch.dtype | None = None  # for the blocks; gradients are reduced in float32; None: the parameters'


def build(
    config: TransformerConfig,
    seed: int,
    sharding: Sharding | None = None,
    checkpoint_activations: bool = False,
    compile_blocks: bool = False,
) -> Transformer:
    """Build and initialise the network; with `sharding`, each process never holds more than its own rows."""
    with nullcontext() if sharding is None else torch.device("meta"):
        net = Transformer(config, seed)
    net.checkpoint_activations = checkpoint_activations
    if compile_blocks:
        # A block has graphs for training and evaluation, with and without dropout, for one row, one position, and one
        # position of each row. With more graphs than its limit, torch would stop compiling.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
        _keep_rates_out_of_graphs()
        for block in net.blocks:  # for any shape; all blocks share graphs, whatever their weights and rates
            block.forward = torch.compile(block.forward, dynamic=True)
    if sharding is not None:
        reduce_dtype = torch.float32 if sharding.param_dtype is not None else None
        precision = MixedPrecisionPolicy(sharding.param_dtype, reduce_dtype)
        for block in net.blocks:
            fully_shard(block, mesh=sharding.mesh, mp_policy=precision)
        # On the same mesh as FSDP's own parameters: otherwise torch cannot compute the norm of all gradients.
        placements = [Shard(0)] * sharding.mesh.ndim
        for name, rows in net.items.by_item().items():
            spread = distribute_tensor(rows, sharding.mesh, placements)
            setattr(net.items, name, nn.Parameter(spread, requires_grad=rows.requires_grad))
        ignored = set(net.items.by_item().values())
        fully_shard(net, mesh=sharding.mesh, mp_policy=precision, ignored_params=ignored)
        net.to_empty(device=sharding.mesh.device_type)
        for name, parameter in net.named_parameters():
            net.draw_(local_rows(parameter), name, parameter.shape, seed, local_range(parameter).start)
    return net


@cache
def _keep_rates_out_of_graphs() -> None:
    """Do not compile attention with dropout: torch's kernels would make each block's rate a constant of its graph."""
    softmax_attention.fused_dropping = torch.compiler.disable(softmax_attention.fused_dropping)


@torch.no_grad()
def fill(net: Transformer, values: Mapping[str, Tensor], whole: bool = True) -> None:
    """Set parameters, by name: from whole tensors, or, if `whole` is false, from the rows held here."""
    for name, value in values.items():
        parameter = net.get_parameter(name)
        local_rows(parameter).copy_(value[local_range(parameter)] if whole else value)


def sharded_like(rows: Tensor, parameter: Tensor) -> Tensor:
    """This process's rows as a tensor that is sharded in the same way as `parameter`."""
    if not isinstance(parameter, DTensor):
        return rows
    mesh, placements, shape, stride = parameter.device_mesh, parameter.placements, parameter.shape, parameter.stride()
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=shape, stride=stride)


def drop_gathered(net: nn.Module) -> None:
    """Free the gathered parameters that remain after a forward pass without a backward pass; the shards stay."""
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
