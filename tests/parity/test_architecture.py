"""Every choice of architecture and muP against a net written out from the papers' formulas, trained side by side."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lrec.model import cost
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.network_sizes import SIZES
from lrec.model.transformer import Transformer
from lrec.training.optim import Optimizer

MODERN = Architecture("rms", "swiglu", "rotary", True)
CHOICES = {
    "gpt2": Architecture(),
    "rms": Architecture(norm="rms"),
    "swiglu": Architecture(mlp="swiglu"),
    "rotary": Architecture(positions="rotary"),
    "qk_norm": Architecture(qk_norm=True),
    "modern": MODERN,
}
CONFIGS = {name: TransformerConfig(13, 9, 2, 24, 3, architecture=choice) for name, choice in CHOICES.items()}
CONFIGS["scaled"] = replace(CONFIGS["gpt2"], parametrisation="scaled", layers=3)
CONFIGS["modern, scaled"] = replace(CONFIGS["modern"], parametrisation="scaled", layers=3)


def rms(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x**2).mean(-1, keepdim=True).sqrt() * gain


def turned(x_BLHK: Tensor, positions_L: Tensor) -> Tensor:
    """RoFormer, eq. 13: multiply the complex number x_2j + i x_2j+1 by exp(i l theta_j)."""
    length, width = x_BLHK.shape[1], x_BLHK.shape[3]
    theta_J = torch.tensor([10_000.0 ** (-2 * j / width) for j in range(width // 2)], dtype=torch.float64)
    turns_LJ = torch.polar(torch.ones(length, width // 2).double(), positions_L[:, None] * theta_J)
    complex_BLHJ = torch.view_as_complex(x_BLHK.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(complex_BLHJ * turns_LJ[:, None]).flatten(-2).to(x_BLHK.dtype)


def logits_of(
    parameters: dict[str, Tensor], config: TransformerConfig, items_BL: Tensor, positions_L: Tensor | None = None
) -> Tensor:
    """(B, L, V) from the parameters alone; items stand at 0, 1, 2 ... or at the given positions."""
    choice = config.architecture
    branch = 2 / config.layers if config.parametrisation == "scaled" else 1
    length = items_BL.shape[1]
    if positions_L is None:
        positions_L = torch.arange(length)

    def norm(x: Tensor, name: str) -> Tensor:
        if choice.norm == "rms":
            return rms(x, parameters[f"{name}.weight"])
        centred = x - x.mean(-1, keepdim=True)
        return rms(centred, parameters[f"{name}.weight"]) + parameters[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]

    x_BLD = parameters["items.weight"][items_BL]
    if choice.positions == "learned":
        x_BLD = x_BLD + parameters["positions.weight"][positions_L]
    for layer in range(config.layers):
        block = f"blocks.{layer}"
        qkv = linear(norm(x_BLD, f"{block}.attention_norm"), f"{block}.attention.qkv")
        query, key, value = (part.unflatten(-1, (config.heads, -1)) for part in qkv.split(config.width, -1))
        if choice.qk_norm:
            query = rms(query, parameters[f"{block}.attention.query_norm.weight"])
            key = rms(key, parameters[f"{block}.attention.key_norm.weight"])
        if choice.positions == "rotary":
            query, key = turned(query, positions_L), turned(key, positions_L)
        head_width = config.width / config.heads
        scores_BHLL = torch.einsum("blhk,bmhk->bhlm", query, key) / math.sqrt(head_width)
        later_LL = torch.ones(length, length).triu(1).bool()
        weights_BHLL = scores_BHLL.masked_fill(later_LL, -math.inf).softmax(-1)
        read = torch.einsum("bhlm,bmhk->blhk", weights_BHLL, value).flatten(-2)
        x_BLD = x_BLD + branch * linear(read, f"{block}.attention.out")
        inner = linear(norm(x_BLD, f"{block}.mlp_norm"), f"{block}.mlp.up")
        if choice.mlp == "gelu":
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        else:
            gate, value = inner.tensor_split(2, -1)
            inner = gate / (1 + torch.exp(-gate)) * value
        x_BLD = x_BLD + branch * linear(inner, f"{block}.mlp.out")
    return norm(x_BLD, "norm") @ parameters["items.weight"].T


def logits_head(hidden_BLD: Tensor, table_VD: Tensor) -> Tensor:
    return hidden_BLD @ table_VD.T


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_the_formulas(name: str) -> None:
    config = CONFIGS[name]
    torch.manual_seed(0)
    net = Transformer(config).double()
    for parameter in net.parameters():  # large values, so that every term counts
        torch.nn.init.normal_(parameter, std=0.5)
    items_BL = torch.randint(0, 13, (3, 7))
    expected_BLV = logits_of(dict(net.named_parameters()), config, items_BL)
    torch.testing.assert_close(net(items_BL, logits_head), expected_BLV, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_blanked_item_is_as_if_it_had_left_a_gap(name: str) -> None:
    config = CONFIGS[name]
    torch.manual_seed(0)
    net = Transformer(config).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    items_BL = torch.randint(0, 13, (3, 9))
    blank_L = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 0]).bool()
    kept_L = (~blank_L).nonzero().squeeze(1)
    logits_BLV = net(items_BL, logits_head, blank_BL=blank_L.expand(3, -1))
    expected_BLV = logits_of(dict(net.named_parameters()), config, items_BL[:, kept_L], kept_L)
    torch.testing.assert_close(logits_BLV[:, kept_L], expected_BLV, rtol=1e-9, atol=1e-9)
    other_BL = torch.where(blank_L, 12 - items_BL, items_BL)
    torch.testing.assert_close(net(other_BL, logits_head, blank_BL=blank_L.expand(3, -1)), logits_BLV)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_equals_the_formulas_trained(name: str) -> None:
    config = CONFIGS[name]
    torch.manual_seed(0)
    items_BL, targets_N = torch.randint(0, 13, (4, 9)), torch.randint(0, 13, (36,))
    net = Transformer(config, seed=1).double()  # Adam magnifies the rounding of gradients near zero
    copies = {key: parameter.detach().clone().requires_grad_() for key, parameter in net.named_parameters()}
    optimizer, _ = Optimizer(lr=0.01, warmup=0, decay="constant", weight_decay=0.0, muon=None).build(net, 10)
    narrower = 32 / config.width if config.parametrisation == "scaled" else 1
    tables = [p for key, p in copies.items() if not key.startswith("blocks") and p.ndim == 2]
    others = [p for key, p in copies.items() if key.startswith("blocks") or p.ndim == 1]
    of_tables = 0.01 * 8 * narrower**0.5 if config.parametrisation == "scaled" else 0.01
    groups = [{"params": tables, "lr": of_tables}, {"params": others, "lr": 0.01 * narrower}]
    reference = torch.optim.Adam(groups, betas=(0.9, 0.98))
    losses = []
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(net(items_BL, logits_head).flatten(0, 1), targets_N)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected = torch.nn.functional.cross_entropy(logits_of(copies, config, items_BL).flatten(0, 1), targets_N)
        reference.zero_grad()
        expected.backward()
        reference.step()
        losses.append((loss.item(), expected.item()))
    ours, theirs = zip(*losses, strict=True)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert ours[-1] < ours[0] - 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_equal_the_net_s_parameters(name: str) -> None:
    config = CONFIGS[name]
    net = Transformer(config)
    assert cost.n_body(config) == sum(p.numel() for p in net.blocks.parameters() if p.ndim == 2)
    assert cost.n_body(config) == 12 * config.layers * config.width**2  # 3 divides 24
    assert cost.n_total(config) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_swiglu_keeps_the_body_of_every_size(size: tuple[int, int, int]) -> None:
    config = TransformerConfig(10, 50, *size, architecture=MODERN)
    assert cost.n_body(config) == pytest.approx(12 * config.layers * config.width**2, rel=1 / (8 * config.width))
