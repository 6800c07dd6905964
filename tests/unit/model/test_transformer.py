"""Sizes, shape rules, initialisation and dropout of the network."""

import hashlib

import pytest
import torch

from lrec.errors import UserError
from lrec.model import cost, transformer
from lrec.model.config import Architecture, Dropout, OverDepth, TransformerConfig
from lrec.model.network_sizes import SIZES, find_size
from lrec.model.transformer import Transformer

LSRM = {"98k": 98_304, "786k": 786_432, "1.6m": 1_572_864, "9.4m": 9_437_184, "75m": 75_497_472, "829m": 829_440_000}


def hidden(hidden_BLD: torch.Tensor, table_VD: torch.Tensor) -> torch.Tensor:
    return hidden_BLD


@pytest.mark.parametrize("name", SIZES)
def test_every_size_is_named_by_its_body(name: str) -> None:
    config = TransformerConfig(10, 50, *SIZES[name])
    number, unit = (float(name[:-1]), {"k": 1e3, "m": 1e6}[name[-1]])
    assert cost.n_body(config) == pytest.approx(number * unit, rel=0.06)
    if name in LSRM:
        assert cost.n_body(config) == LSRM[name]


@pytest.mark.parametrize("name", ["0.8k", "3k", "98k", "786k"])
def test_counts_equal_the_network_s_parameters(name: str) -> None:
    config = TransformerConfig(123, 20, *SIZES[name])
    net = Transformer(config)
    matrices = sum(p.numel() for key, p in net.blocks.named_parameters() if p.ndim == 2)
    assert cost.n_body(config) == matrices
    assert cost.n_head(config) == net.items.weight.numel()
    assert cost.n_total(config) == sum(p.numel() for p in net.parameters())


def test_no_position_sees_a_later_item() -> None:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(50, 10, 2, 16, 2))
    items_BL = torch.randint(0, 50, (2, 10))
    changed_BL = items_BL.clone()
    changed_BL[:, 6:] = (changed_BL[:, 6:] + 1) % 50
    before, after = net(items_BL, hidden), net(changed_BL, hidden)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("blanks", [False, True])
@pytest.mark.parametrize(
    "architecture", [Architecture(), Architecture(norm="rms", mlp="swiglu", positions="rotary", qk_norm=True)]
)
def test_a_position_computed_alone_gives_the_same(architecture: Architecture, blanks: bool, layers: int) -> None:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(50, 9, layers, 16, 2, architecture=architecture, parametrisation="scaled"))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases too, which begin at 0
    items_BL = torch.randint(0, 50, (4, 9))
    blank_BL = torch.rand(4, 9) < 0.4 if blanks else None
    alone_B = torch.tensor([8, 3, 0, 5]) + 9 * torch.arange(4)
    among_all = net(items_BL, hidden, blank_BL=blank_BL).flatten(0, 1)[alone_B]
    torch.testing.assert_close(net(items_BL, hidden, blank_BL=blank_BL, positions_M=alone_B), among_all)


def test_initialisation_scales_residual_projections_by_depth() -> None:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(500, 10, 8, 64, 2))
    assert net.items.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for block in net.blocks:
        assert block.mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.mlp.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
        assert block.attention.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
        assert not block.attention.qkv.bias.any()
        assert (block.mlp_norm.weight == 1).all()


def test_rows_of_a_large_table_are_drawn_without_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "ONE_STREAM", 100)
    monkeypatch.setattr(transformer, "DRAWN_AT_ONCE", 64)
    made, net, shape = [], Transformer(TransformerConfig(99, 4, 1, 8, 2)), torch.Size((99, 8))
    whole_VD = net.draw_(torch.empty(shape), "items.weight", shape, seed=3)
    assert len({tuple(row) for row in whole_VD.tolist()}) == 99
    generator = transformer._generator
    monkeypatch.setattr(transformer, "_generator", lambda key: made.append(key) or generator(key))
    for start, rows in ((0, 5), (50, 17), (90, 9), (99, 0)):
        made.clear()
        rows_HD = net.draw_(torch.empty(rows, 8), "items.weight", shape, 3, start)
        assert torch.equal(rows_HD, whole_VD[start : start + rows])
        assert len(made) <= 2 + rows * 8 / 64 + 1, "a generator for each block that has some of the rows, and one more"


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    config = TransformerConfig(30, 10, 2, 16, 2)
    torch.manual_seed(1)
    one = Transformer(config, seed=5).state_dict()
    torch.manual_seed(2)
    same, other = Transformer(config, seed=5).state_dict(), Transformer(config, seed=6).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["blocks.0.attention.qkv.weight"], other["blocks.0.attention.qkv.weight"])
    assert not torch.equal(one["blocks.0.attention.qkv.weight"], one["blocks.1.attention.qkv.weight"])


def test_a_matrix_is_drawn_by_the_name_it_had_when_its_block_held_it() -> None:
    net = Transformer(TransformerConfig(30, 10, 2, 16, 2), seed=5)
    for name, parameter in (("qkv", net.blocks[1].attention.qkv.weight), ("mlp_in", net.blocks[1].mlp.up.weight)):
        digest = hashlib.blake2b(f"5/blocks.1.{name}.weight".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        drawn = torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator)
        assert torch.equal(parameter, drawn)


def test_recomputed_activations_change_nothing() -> None:
    items_BL = torch.arange(20).view(2, 10)
    gradients = []
    for recompute in (False, True):
        net = Transformer(TransformerConfig(30, 10, 2, 16, 2, Dropout(0.1, OverDepth(0.1, 0.1), OverDepth(0.1, 0.1))))
        net.checkpoint_activations = recompute
        torch.manual_seed(0)
        net(items_BL, hidden).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in net.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=0)


def test_dropout_runs_linearly_from_first_to_last_block() -> None:
    net = Transformer(TransformerConfig(5, 5, 5, 8, 1, Dropout(0.5, OverDepth(0.4, 0.0), OverDepth(0.1, 0.3))))
    assert [block.attention.dropout.rate for block in net.blocks] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    assert [block.dropout.rate for block in net.blocks] == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3])
    assert OverDepth(first=0.2, last=0.1).of_layer(0, 1) == 0.2


@pytest.mark.parametrize(
    "dropout", [Dropout(embedding=0.3), Dropout(attention=OverDepth(0.3, 0.3)), Dropout(residual=OverDepth(0.0, 0.3))]
)
def test_every_dropout_acts_in_training_only(dropout: Dropout) -> None:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(5, 5, 2, 8, 1, dropout))
    items_BL = torch.zeros(1, 5, dtype=torch.int64)
    assert not torch.equal(net(items_BL, hidden), net(items_BL, hidden))
    net.eval()
    assert torch.equal(net(items_BL, hidden), net(items_BL, hidden))


def test_wrong_shapes_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"unknown size '99k': choose one of .*98k"):
        find_size("99k")
    with pytest.raises(UserError, match="heads must divide width, got width 10 and heads 3"):
        TransformerConfig(5, 5, 1, 10, 3)
    with pytest.raises(UserError, match="layers must be at least 1"):
        TransformerConfig(5, 5, 0, 8, 1)
    with pytest.raises(UserError, match=r"dropout\.attention\.first must be at least 0 and below 1, got 1"):
        Dropout(attention=OverDepth(first=1.0))
    with pytest.raises(UserError, match=r"dropout\.embedding must be at least 0 and below 1, got -0\.1"):
        Dropout(embedding=-0.1)
