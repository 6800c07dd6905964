"""Compilation: shapes and depth make no new graphs, and results stay the same."""

import functools

import pytest
import torch
from torch._dynamo.utils import counters

from lrec.model import parallelize
from lrec.model.blocks import DropoutLayer
from lrec.model.config import Dropout, OverDepth, TransformerConfig
from lrec.model.losses import full_softmax
from lrec.model.transformer import Transformer

FALLING = OverDepth(0.2, 0.1)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are traced and guarded as usual, but torch runs them, because making kernels takes minutes."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


SHAPES = ((8, 10), (7, 13), (20, 50))


def net_of(layers: int, dropout: Dropout, device: str = "cpu") -> Transformer:
    """A network of compiled blocks."""
    torch._dynamo.reset()
    counters.clear()
    return parallelize.build(TransformerConfig(40, 50, layers, 16, 2, dropout), 0, compile_blocks=True).to(device)


def graphs_of_training(net: Transformer, device: str) -> int:
    """The number of graphs that batches of all shapes make. The first two shapes must make all of them."""
    made = []
    for shape in SHAPES:
        net(torch.zeros(shape, dtype=torch.int32, device=device), lambda hidden, table: hidden.sum()).backward()
        made.append(counters["stats"]["unique_graphs"])
    assert made[1] == made[2], made
    return made[2]


@pytest.mark.slow
@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta takes the code path of GPUs
def test_neither_shape_nor_depth_nor_rates_compile_again(device: str) -> None:
    one_rate = net_of(2, Dropout(0.1, OverDepth(0.2, 0.2), OverDepth(0.2, 0.2)), device)
    expected = graphs_of_training(one_rate, device)
    assert graphs_of_training(net_of(3, Dropout(0.1, FALLING, FALLING), device), device) == expected


@pytest.mark.usefixtures("captured")
def test_no_batch_shape_of_an_evaluation_compiles_again() -> None:
    net = net_of(3, Dropout(0.1, FALLING, FALLING)).eval()
    made = []
    for rows, length in SHAPES:
        alone_B = torch.arange(rows) * length + length - 1
        with torch.no_grad():
            net(torch.zeros(rows, length, dtype=torch.int64), lambda hidden, table: hidden, positions_M=alone_B)
        made.append(counters["stats"]["unique_graphs"])
    assert len(set(made)) == 1, made


@pytest.mark.usefixtures("captured")
def test_compiled_blocks_compute_the_same() -> None:
    config = TransformerConfig(40, 50, 3, 16, 2)
    items_BL, targets_M = torch.randint(40, (4, 9)), torch.randint(40, (36,))
    results = []
    for compiled in (False, True):
        net = parallelize.build(config, 0, compile_blocks=compiled)
        loss = net(items_BL, lambda hidden, table: full_softmax(hidden.flatten(0, 1), table, targets_M))
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in net.parameters())])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("captured")
def test_compiled_dropout_drops_at_the_rate_of_each_layer() -> None:
    """From ones, the entries that are left become 1 / (1 - rate), and so does their gradient."""
    forward = torch.compile(DropoutLayer.forward)
    for rate in (0.1, 0.5):
        layer, x = DropoutLayer(rate), torch.ones(200_000, requires_grad=True)
        left = forward(layer, x)
        left.sum().backward()
        assert torch.equal(x.grad, left.detach())
        assert (left == 0).double().mean().item() == pytest.approx(rate, abs=5e-3)
        assert left.max().item() == pytest.approx(1 / (1 - rate))
        assert torch.equal(layer.eval()(x), x)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_kernels_made_by_inductor_compute_the_same() -> None:
    config = TransformerConfig(40, 50, 2, 16, 2)
    items_BL = torch.randint(40, (4, 9))
    plain, compiled = (
        parallelize.build(config, 0, compile_blocks=compiled)(items_BL, lambda hidden, table: hidden)
        for compiled in (False, True)
    )
    torch.testing.assert_close(plain, compiled, rtol=1e-5, atol=1e-5)
