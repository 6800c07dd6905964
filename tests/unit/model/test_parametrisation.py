"""The scaled parametrisation: how far a few steps change hidden states does not depend on width or depth."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lrec.model.config import Architecture, Parametrisation, TransformerConfig
from lrec.model.transformer import Transformer, is_for_muon
from lrec.training.optim import Optimizer, Switch

WIDTHS = (32, 64, 128, 256)
DEPTHS = (2, 4, 8, 16)
MODERN = Architecture("rms", "swiglu", "rotary", True)


def changes(
    config: TransformerConfig, sgd: bool = False, muon: float | None = None, steps: int = 5
) -> dict[str, float]:
    """Root mean square change of hidden states (last block's output) and logits over a few steps of AdamW (with or
    without Muon) or SGD."""
    generator = torch.Generator().manual_seed(0)
    items_BL = torch.randint(0, config.n_items, (16, 12), generator=generator)
    net = Transformer(config)
    activations: dict[str, Tensor] = {}
    net.blocks[-1].register_forward_hook(lambda block, inputs, output: activations.update(hidden=output))

    def head(hidden_BLD: Tensor, table_VD: Tensor) -> Tensor:
        activations["logits"] = hidden_BLD @ table_VD.T
        targets_N = items_BL.roll(-1, 1).flatten()
        return torch.nn.functional.cross_entropy(activations["logits"].flatten(0, 1), targets_N)

    switch = Switch(lr=0.05, momentum=0.0) if sgd else None
    optimizer, _ = Optimizer(lr=2e-3, warmup=0, decay="constant", switch=switch, muon=muon).build(net, steps)

    def step() -> None:
        optimizer.zero_grad()
        net(items_BL, head).backward()
        optimizer.step()

    if sgd:
        step()
        optimizer.begin_sgd(1)
    net(items_BL, head)
    before = {name: value.detach() for name, value in activations.items()}
    for _ in range(steps):
        step()
    net(items_BL, head)
    return {name: (activations[name] - before[name]).square().mean().sqrt().item() for name in before}


def slopes(configs: dict[int, TransformerConfig], sgd: bool = False, muon: float | None = None) -> dict[str, float]:
    """Exponent of each change as a power of the configs' keys: least squares on logarithms."""
    rows = {size: changes(config, sgd, muon) for size, config in configs.items()}
    log_x = torch.tensor([math.log(size) for size in rows])
    result = {}
    for name in ("hidden", "logits"):
        log_y = torch.tensor([math.log(row[name]) for row in rows.values()])
        centred = log_x - log_x.mean()
        result[name] = float((centred * log_y).sum() / (centred**2).sum())
    return result


def over_width(parametrisation: Parametrisation, muon: float | None = None, **options: Any) -> dict[str, float]:
    nets = {w: TransformerConfig(50, 12, 2, w, w // 32, parametrisation=parametrisation, **options) for w in WIDTHS}
    return slopes(nets, muon=muon)


def over_depth(parametrisation: Parametrisation, sgd: bool = False, muon: float | None = None) -> dict[str, float]:
    nets = {layers: TransformerConfig(50, 12, layers, 32, 1, parametrisation=parametrisation) for layers in DEPTHS}
    return slopes(nets, sgd, muon)


@pytest.mark.parametrize("architecture", [Architecture(), MODERN], ids=["gpt2", "modern"])
def test_coordinate_check_over_width(architecture: Architecture) -> None:
    standard, scaled = (over_width(each, architecture=architecture) for each in ("standard", "scaled"))
    print(standard, scaled)
    assert min(standard.values()) > 0.5
    assert abs(scaled["hidden"]) < 0.25
    assert scaled["logits"] < standard["logits"] - 0.25


@pytest.mark.parametrize(("architecture", "most"), [(Architecture(), 0.22), (MODERN, 0.15)], ids=["gpt2", "modern"])
def test_coordinate_check_of_muon(architecture: Architecture, most: float) -> None:
    width, depth = over_width("scaled", muon=2.0, architecture=architecture), over_depth("scaled", muon=2.0)
    print(width, depth)
    assert max(map(abs, width.values())) < most
    assert max(map(abs, depth.values())) < 0.15


@pytest.mark.parametrize("sgd", [False, True])
def test_coordinate_check_over_depth(sgd: bool) -> None:
    standard, scaled = (over_depth(each, sgd) for each in ("standard", "scaled"))
    print(standard, scaled)
    assert standard["hidden"] > 0.5  # the last norm hides it from the logits
    assert max(map(abs, scaled.values())) < 0.3


def test_rates_by_group() -> None:
    net = Transformer(TransformerConfig(50, 12, 2, 128, 4, parametrisation="scaled"))
    shares = {name: net.lr_multiplier(name) for name, _ in net.named_parameters()}
    assert shares["items.weight"] == shares["positions.weight"] == 4.0
    assert {share for name, share in shares.items() if name.startswith(("blocks.", "norm."))} == {0.25}
    adamw, _ = Optimizer(lr=0.01, weight_decay=0.1, warmup=0, decay="constant", muon=None).build(net, 5)
    rates = {id(parameter): group["lr"] for group in adamw.param_groups for parameter in group["params"]}
    assert {name: rates[id(parameter)] for name, parameter in net.named_parameters()} == {
        name: pytest.approx(0.01 * share) for name, share in shares.items()
    }
    beside, _ = Optimizer(lr=0.01, muon=2.0, warmup=0, decay="constant").build(net, 5)
    rates = {id(parameter): group["lr"] for group in beside.param_groups for parameter in group["params"]}
    by_name = {name: rates[id(parameter)] for name, parameter in net.named_parameters()}
    assert by_name["items.weight"] == by_name["positions.weight"] == pytest.approx(0.01 * 4 * 0.25)
    matrices = [name for name, parameter in net.named_parameters() if is_for_muon(name, parameter)]
    assert [by_name[name] for name in matrices] == pytest.approx([0.01 * 2 * 0.25**0.25] * len(matrices))
    assert by_name["norm.weight"] == pytest.approx(0.01 * 0.25)
    by_rows, _ = Optimizer(lr=0.01, muon=2.0, touched_rows=True, warmup=0, decay="constant").build(net, 5)
    rates = {id(parameter): group["lr"] for group in by_rows.param_groups for parameter in group["params"]}
    assert rates.pop(id(net.items.weight)) == pytest.approx(0.01 * 4 * 0.25**0.5)
    assert rates == {id(net.get_parameter(name)): rate for name, rate in by_name.items() if name != "items.weight"}
    decays = {group["lr"] * group["weight_decay"] for group in adamw.param_groups} - {0.0}
    assert list(decays) == pytest.approx([0.001] * len(decays)), "all decay alike"


def test_at_two_blocks_of_width_32_only_tables_learn_faster() -> None:
    shape = TransformerConfig(50, 12, 2, 32, 1)
    standard, scaled = Transformer(shape), Transformer(replace(shape, parametrisation="scaled"))
    assert all(torch.equal(a, b) for a, b in zip(standard.parameters(), scaled.parameters(), strict=True))
    items_BL = torch.arange(12)[None]
    head = lambda hidden_BLD, table_VD: hidden_BLD @ table_VD.T  # noqa: E731
    assert torch.equal(standard(items_BL, head), scaled(items_BL, head))
    assert {scaled.lr_multiplier(name) for name, _ in scaled.named_parameters()} == {1.0, 8.0}
