"""The network against a GPT-2 block written out by hand, and its attention in bfloat16 against float64."""

import copy
import math

import pytest
import torch
from torch import Tensor

from lrec.model.attention_context import Context
from lrec.model.blocks import Block
from lrec.model.config import TIME_BUCKETS, Architecture, TransformerConfig
from lrec.model.softmax_attention import SoftmaxAttention
from lrec.model.transformer import Transformer


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-12) * norm.weight + norm.bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gpt2_block(x_LD: Tensor, block: Block, heads: int) -> Tensor:
    """One sequence, one head and one position at a time."""
    length, width = x_LD.shape
    head_width = width // heads
    qkv = layer_norm(x_LD, block.attention_norm) @ block.attention.qkv.weight.T + block.attention.qkv.bias
    query, key, value = qkv.split(width, -1)
    read = torch.zeros(length, width, dtype=x_LD.dtype)
    for head in range(heads):
        columns = slice(head * head_width, (head + 1) * head_width)
        for position in range(length):
            weights = [
                float((query[position, columns] @ key[past, columns]).detach()) / math.sqrt(head_width)
                for past in range(position + 1)
            ]
            top = max(weights)
            exponentials = [math.exp(w - top) for w in weights]
            for past, exponential in enumerate(exponentials):
                read[position, columns] += exponential / sum(exponentials) * value[past, columns]
    x_LD = x_LD + read @ block.attention.out.weight.T + block.attention.out.bias
    inner = gelu(layer_norm(x_LD, block.mlp_norm) @ block.mlp.up.weight.T + block.mlp.up.bias)
    return x_LD + inner @ block.mlp.out.weight.T + block.mlp.out.bias


@pytest.mark.parametrize(("layers", "width", "heads"), [(1, 8, 1), (2, 12, 3), (3, 8, 2)])
def test_forward_equals_gpt2_written_out(layers: int, width: int, heads: int) -> None:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(n_items=11, max_len=7, layers=layers, width=width, heads=heads)).double()
    for parameter in net.parameters():  # large values, so that every term counts
        torch.nn.init.normal_(parameter, std=0.5)
    items_BL = torch.randint(0, 11, (3, 6))
    logits_BLV = net(items_BL, lambda hidden_BLD, table_VD: hidden_BLD @ table_VD.T)
    for row in range(3):
        x_LD = net.items.weight[items_BL[row]] + net.positions.weight[:6]
        for block in net.blocks:
            x_LD = gpt2_block(x_LD, block, heads)
        expected = layer_norm(x_LD, net.norm) @ net.items.weight.T
        torch.testing.assert_close(logits_BLV[row], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", [Architecture(), Architecture(position_bias=True, time="past")])
@pytest.mark.parametrize("length", [9, 70])
def test_attention_weights_are_not_rounded_to_bfloat16(architecture: Architecture, length: int) -> None:
    """If bfloat16 holds queries, keys and values exactly, only the result is rounded, once."""
    torch.manual_seed(0)
    config = TransformerConfig(11, length, 1, 64, 2, architecture=architecture)
    exact = SoftmaxAttention(config, 0).double()
    one = torch.eye(64)
    exact.qkv.weight.data = torch.cat([one, one[torch.randperm(64)], one[torch.randperm(64)]]).double()
    exact.out.weight.data = one.double()
    for linear in (exact.qkv, exact.out):
        torch.nn.init.zeros_(linear.bias)
    for table in [] if exact.bias is None else exact.bias.parameters():
        torch.nn.init.normal_(table)
    mixed = copy.deepcopy(exact).float()
    hidden_BLD = (2 * torch.randn(4, length, 64)).bfloat16()
    context = Context(gaps_BLC=torch.randint(TIME_BUCKETS, (4, length, length)))
    with torch.autocast("cpu", torch.bfloat16):
        read_BLD = mixed(hidden_BLD, context)
    assert read_BLD.dtype == torch.bfloat16
    torch.testing.assert_close(read_BLD.double(), exact(hidden_BLD.double(), context), rtol=2**-8, atol=1e-5)
