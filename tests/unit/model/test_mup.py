"""muP's promise: what a few steps do to activations depends neither on width nor on depth."""

import math

import pytest
import torch
from torch import Tensor

from lrec.errors import UserError
from lrec.model.config import Architecture, MuP, TransformerConfig
from lrec.model.transformer import Transformer
from lrec.training.optim import Optimizer, Switch

WIDTHS = (32, 64, 128, 256)
DEPTHS = (2, 4, 8, 16)
MODERN = Architecture("rms", "swiglu", "rotary", True)


def changes(config: TransformerConfig, sgd: bool = False, steps: int = 5) -> dict[str, float]:
    """Root mean square change of hidden states (last block's output) and logits over a few steps of AdamW or SGD."""
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
    optimizer, _ = Optimizer(lr=2e-3, warmup=0, decay="constant", switch=switch).build(net, steps)

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


def slopes(configs: dict[int, TransformerConfig], sgd: bool = False) -> dict[str, float]:
    """Exponent of each change as a power of the configs' keys: least squares on logarithms."""
    rows = {size: changes(config, sgd) for size, config in configs.items()}
    log_x = torch.tensor([math.log(size) for size in rows])
    result = {}
    for name in ("hidden", "logits"):
        log_y = torch.tensor([math.log(row[name]) for row in rows.values()])
        centred = log_x - log_x.mean()
        result[name] = float((centred * log_y).sum() / (centred**2).sum())
    return result


@pytest.mark.parametrize("architecture", [Architecture(), MODERN], ids=["gpt2", "modern"])
def test_coordinate_check_over_width(architecture: Architecture) -> None:
    def exponents(mup: MuP | None) -> dict[str, float]:
        return slopes(
            {
                width: TransformerConfig(50, 12, 2, width, width // 32, architecture=architecture, mup=mup)
                for width in WIDTHS
            }
        )

    standard, mup = exponents(None), exponents(MuP(2, 32, 1))
    assert min(standard.values()) > 0.5
    assert max(map(abs, mup.values())) < 0.25


def test_coordinate_check_over_depth() -> None:
    def exponents(mup: MuP | None) -> dict[str, float]:
        return slopes({layers: TransformerConfig(50, 12, layers, 32, 1, mup=mup) for layers in DEPTHS})

    standard, mup = exponents(None), exponents(MuP(2, 32, 1))
    assert standard["hidden"] > 0.5  # the last norm hides it from the logits
    assert max(map(abs, mup.values())) < 0.25


@pytest.mark.parametrize("over", ["width", "depth"])
def test_coordinate_check_of_sgd(over: str) -> None:
    def exponents(mup: MuP | None) -> dict[str, float]:
        if over == "width":
            shapes = {width: TransformerConfig(50, 12, 2, width, width // 32, mup=mup) for width in WIDTHS}
        else:
            shapes = {layers: TransformerConfig(50, 12, layers, 32, 1, mup=mup) for layers in DEPTHS}
        return slopes(shapes, sgd=True)

    standard, mup = exponents(None), exponents(MuP(2, 32, 1))
    assert standard["hidden"] > 0.5
    assert max(map(abs, mup.values())) < 0.3


def test_wrong_base_shapes_are_refused() -> None:
    with pytest.raises(UserError, match=r"mup\.base_width must be at least 1, got 0"):
        MuP(base_width=0)
