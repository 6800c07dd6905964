"""Compilation: shapes and depth make no new graphs, and results stay."""

import functools

import pytest
import torch
from torch._dynamo.utils import counters

from lrec import parallel
from lrec.losses import full_softmax
from lrec.shape import Dropout, OverDepth, TransformerConfig

FALLING = OverDepth(0.2, 0.1)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are traced and guarded as ever, but run by torch: making kernels takes minutes."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize(("residual", "graphs"), [(OverDepth(), 1), (FALLING, 12)], ids=["one rate", "a rate a block"])
def test_no_batch_shape_compiles_again(residual: OverDepth, graphs: int) -> None:
    config = TransformerConfig(40, 50, 12, 16, 2, Dropout(0.1, residual=residual))
    net = parallel.build(config, 0, compile_blocks=True)
    for rows, length in ((8, 10), (7, 13), (20, 50), (3, 7), (64, 49)):
        net(torch.randint(40, (rows, length)), lambda hidden, table: (hidden @ table.T).sum()).backward()
        assert counters["stats"]["unique_graphs"] == graphs
    net.eval()
    evaluated = []
    for rows, length in ((8, 10), (7, 13), (20, 50), (3, 7), (64, 49)):
        with torch.no_grad():
            alone_B = torch.arange(rows) * length + length - 1
            net(torch.randint(40, (rows, length)), lambda hidden, table: hidden @ table.T, positions_M=alone_B)
        evaluated.append(counters["stats"]["unique_graphs"])
    assert len(set(evaluated)) == 1, evaluated


@pytest.mark.usefixtures("captured")
def test_compiled_blocks_compute_the_same() -> None:
    config = TransformerConfig(40, 50, 3, 16, 2)
    items_BL, targets_M = torch.randint(40, (4, 9)), torch.randint(40, (36,))
    results = []
    for compiled in (False, True):
        net = parallel.build(config, 0, compile_blocks=compiled)
        loss = net(items_BL, lambda hidden, table: full_softmax(hidden.flatten(0, 1), table, targets_M))
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in net.parameters())])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_kernels_made_by_inductor_compute_the_same() -> None:
    config = TransformerConfig(40, 50, 2, 16, 2)
    items_BL = torch.randint(40, (4, 9))
    plain, compiled = (
        parallel.build(config, 0, compile_blocks=compiled)(items_BL, lambda hidden, table: hidden)
        for compiled in (False, True)
    )
    torch.testing.assert_close(plain, compiled, rtol=1e-5, atol=1e-5)
