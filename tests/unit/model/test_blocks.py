"""A user's own part of a block keeps the promises of lrec's own: causality, blanks, decoding, counts, first values."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lrec.errors import UserError
from lrec.model import cost
from lrec.model.attention_context import KeyValueCache
from lrec.model.blocks import MLP, Positions
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.transformer import Transformer
from lrec.training.module import SequentialRecommender

EXAMPLES = Path(__file__).parents[3] / "examples"
HERE = __name__


class Sines(Positions):
    """Vaswani et al. 2017: no parameters."""

    def forward(self, states: Tensor, positions_BL: Tensor | None = None) -> Tensor:
        if positions_BL is None:
            positions_BL = torch.arange(states.shape[1])[None]
        angles = positions_BL[..., None] / 100 ** (torch.arange(states.shape[-1]) / states.shape[-1])
        return states + angles.sin()


class Squared(MLP):
    """W relu(x)²; its gains begin at 0.5."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.gain = torch.nn.Parameter(torch.empty(config.width))
        self.out = torch.nn.Linear(config.width, config.width, bias=False)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        return self.out((self.gain * hidden_BLD).relu() ** 2)

    def initial_value(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        return torch.full(shape, 0.5) if name == "gain" else None


class DyT(torch.nn.Module):
    """Zhu et al. 2025, arXiv 2503.10622: a norm without statistics, and without `weight`."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.alpha = torch.nn.Parameter(torch.full((1,), 0.5))
        self.gain, self.bias = torch.nn.Parameter(torch.ones(width)), torch.nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * torch.tanh(self.alpha * x) + self.bias


class Gated(Squared):
    """Its gate has no dimension."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.gate = torch.nn.Parameter(torch.tensor(0.5))


class Scalar(DyT):
    """Its alpha has no dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps)
        self.alpha = torch.nn.Parameter(torch.tensor(0.5))


class Masked(Squared):
    """Its mask is a buffer."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.register_buffer("mask", torch.ones(config.max_len), persistent=False)


class Sloped(Squared):
    """Its slopes are a plain tensor."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.slopes = torch.ones(config.heads)


OWN = {
    "attention": Architecture(attention="gated_attention.GatedAttention"),
    "attention, rotary": Architecture(attention="gated_attention.GatedAttention", positions="rotary"),
    "mlp": Architecture(mlp=f"{HERE}.Squared", norm="torch.nn.RMSNorm"),
    "positions": Architecture(positions=f"{HERE}.Sines", qk_norm=True),
    "norm": Architecture(norm=f"{HERE}.DyT"),
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def scores(hidden_BLD: Tensor, table_VD: Tensor) -> Tensor:
    return hidden_BLD @ table_VD.T


def network(architecture: Architecture, layers: int = 2) -> Transformer:
    net = Transformer(
        TransformerConfig(50, 9, layers, 16, 2, architecture=architecture, parametrisation="scaled")
    ).eval()
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


@pytest.mark.parametrize("name", OWN)
def test_no_position_sees_a_later_or_a_blanked_item(name: str) -> None:
    net = network(OWN[name])
    items_BL = torch.randint(0, 50, (4, 9))
    blank_BL = torch.rand(4, 9) < 0.4
    blank_BL[:, 6:] = False
    changed_BL = torch.where(blank_BL, 49 - items_BL, items_BL)
    changed_BL[:, 6:] = 49 - items_BL[:, 6:]
    before, after = (net(items, scores, blank_BL=blank_BL)[:, :6] for items in (items_BL, changed_BL))
    torch.testing.assert_close(before, after)
    assert not torch.allclose(before, net(items_BL, scores)[:, :6])


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("blanks", [False, True])
def test_a_position_computed_alone_gives_the_same(name: str, blanks: bool) -> None:
    net = network(OWN[name])
    items_BL = torch.randint(0, 50, (4, 9))
    blank_BL = torch.rand(4, 9) < 0.4 if blanks else None
    alone_B = torch.tensor([8, 3, 0, 5]) + 9 * torch.arange(4)
    among_all = net(items_BL, scores, blank_BL=blank_BL).flatten(0, 1)[alone_B]
    torch.testing.assert_close(net(items_BL, scores, blank_BL=blank_BL, positions_M=alone_B), among_all)


@pytest.mark.parametrize("name", OWN)
@torch.inference_mode()
def test_decoding_gives_the_scores_of_whole_histories(name: str) -> None:
    net = network(OWN[name])
    items_BL, lengths_B = torch.randint(0, 50, (3, 9)), torch.tensor([6, 2, 4])
    whole_BLV = net(items_BL, scores)
    cache = KeyValueCache(3, 9)
    net(items_BL[:, :6], scores, cache=cache)
    cache.filled_B = lengths_B
    rows_B = torch.arange(3)
    for step in range(3):
        at_B = lengths_B + step
        found_BLV = net(items_BL[rows_B, at_B][:, None], scores, cache=cache)
        torch.testing.assert_close(found_BLV[:, 0], whole_BLV[rows_B, at_B], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OWN)
def test_parameters_and_flops_are_counted(name: str) -> None:
    config = TransformerConfig(64, 16, 2, 48, 2, architecture=OWN[name])
    net, rows = Transformer(config), 4
    assert cost.n_total(config) == sum(parameter.numel() for parameter in net.parameters())
    assert cost.n_body(config) == sum(p.numel() for p in net.blocks.parameters() if p.ndim >= 2)
    gated = 5 + 8  # queries, keys, values, gate, out; and the perceptron
    assert cost.n_body(config) == 2 * 48**2 * {"mlp": 5, "positions": 12, "norm": 12}.get(name, gated)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(rows, 16, dtype=torch.int64), scores)
    # On a CPU torch counts all pairs of positions, but those of softmax attention in some versions only.
    by_operation = counter.get_flop_counts()["Global"]
    counted = sum(flops for operation, flops in by_operation.items() if "scaled_dot_product" not in str(operation))
    pairs = 16 if "attention" in name else 0
    assert counted == rows * 16 * cost.flops_per_interaction(config, pairs).forward


def test_initial_values_are_the_part_s_own_or_the_usual_ones() -> None:
    config = TransformerConfig(50, 9, 8, 64, 2, architecture=OWN["mlp"])
    net = Transformer(config, seed=3)
    assert (net.blocks[0].mlp.gain == 0.5).all()
    assert net.blocks[0].mlp.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert (net.blocks[0].mlp_norm.weight == 1).all()
    gated = Transformer(TransformerConfig(50, 9, 8, 64, 2, architecture=OWN["attention"], parametrisation="scaled"))
    assert gated.blocks[0].attention.qkvu.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (gated.blocks[0].attention.read_norm.weight == 1).all()
    multipliers = {name: gated.lr_multiplier(name) for name, _ in gated.named_parameters()}
    assert multipliers["blocks.0.attention.qkvu.weight"] == multipliers["blocks.7.mlp.up.weight"] == 0.5
    assert multipliers["blocks.0.attention.qkvu.bias"] == 0.5
    assert multipliers["items.weight"] == pytest.approx(8 * 0.5**0.5)


def test_a_norm_begins_with_the_values_of_its_class_wherever_it_is_made() -> None:
    config = TransformerConfig(50, 9, 2, 16, 2, architecture=OWN["norm"])
    net = Transformer(config, seed=3)
    with torch.device("meta"):
        filled = Transformer(config)
    filled.to_empty(device="cpu")
    for made in (net, filled):
        for name, parameter in made.named_parameters():
            if made is filled:
                made.draw_(parameter, name, parameter.shape, 3)
            assert torch.equal(parameter, net.get_parameter(name))
        for norm in (made.norm, made.blocks[1].attention_norm, made.blocks[0].mlp_norm):
            assert (norm.alpha == 0.5).all()
            assert (norm.gain == 1).all()
            assert (norm.bias == 0).all()


@pytest.mark.parametrize(
    ("choice", "name"),
    [({"norm": f"{HERE}.Scalar"}, "attention_norm.alpha"), ({"mlp": f"{HERE}.Gated"}, "mlp.gate")],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_parameter_without_a_dimension_is_refused(choice: dict[str, str], name: str, device: str) -> None:
    config = TransformerConfig(50, 9, 2, 16, 2, architecture=Architecture(**choice))
    with torch.device(device), pytest.raises(UserError, match=rf"parameter blocks\.0\.{name} has no dimension"):
        Transformer(config)


@pytest.mark.parametrize(("part", "name"), [("Masked", "mask"), ("Sloped", "slopes")])
def test_a_tensor_that_is_no_parameter_is_refused(part: str, name: str) -> None:
    config = TransformerConfig(50, 9, 2, 16, 2, architecture=Architecture(mlp=f"{HERE}.{part}"))
    with pytest.raises(UserError, match=rf"blocks\.0\.mlp\.{name} is a tensor but no parameter"):
        cost.n_body(config)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"norm": "batch"}, "norm batch: choose layer, rms or a class by its path"),
        ({"attention": "gated_attention.Missing"}, "module 'gated_attention' has no attribute 'Missing'"),
        ({"attention": "no_such_file.Missing"}, "No module named 'no_such_file'"),
        (
            {"attention": "torch.nn.Linear"},
            r"torch\.nn\.Linear is no subclass of lrec\.model\.blocks\.Attention",
        ),
        ({"mlp": "gated_attention.GatedAttention"}, r"is no subclass of lrec\.model\.blocks\.MLP"),
        ({"norm": "torch.nn.Module"}, r"torch\.nn\.Module has no method forward"),
        ({"attention": "lrec.model.blocks.Attention"}, "has no method forward"),
        ({"norm": "torch.nn.ReLU"}, "its __init__ is called with self and 2 arguments: too many"),
        ({"norm": "torch.nn.Bilinear"}, "its __init__ is called with self and 2 arguments: missing"),
        ({"positions": "math.pi"}, r"positions math\.pi is no subclass of lrec\.model\.blocks\.Positions"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(choice: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=rf"model\.architecture\..*{says}"):
        SequentialRecommender(size="3k", architecture=Architecture(**choice))
