"""The type of an event as an input of the network."""

import pytest
import torch
from torch import Tensor

from lrec.model import cost
from lrec.model.attention_context import KeyValueCache
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.softmax_attention import SoftmaxAttention
from lrec.model.transformer import Transformer

V, TYPES, LENGTH, WIDTH = 13, 3, 7, 8
ARCHITECTURES = {"softmax": Architecture(), "hstu": Architecture(attention="hstu", mlp="none", time="past")}


def network(name: str) -> Transformer:
    net = Transformer(TransformerConfig(V, LENGTH, 2, WIDTH, 2, architecture=ARCHITECTURES[name], event_types=TYPES))
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def batch(net: Transformer) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    given = {"items_BL": torch.randint(V, (3, LENGTH), generator=random)}
    given["events_BL"] = torch.randint(TYPES, (3, LENGTH), generator=random)
    if net.reads_times:
        given["times_BT"] = torch.randint(10_000, (3, LENGTH + 1), generator=random).cumsum(1)
    return given


def scores(hidden_BLD: Tensor, table_VD: Tensor) -> Tensor:
    return hidden_BLD @ table_VD.T


def hidden(hidden_BLD: Tensor, table_VD: Tensor) -> Tensor:
    return hidden_BLD


@torch.inference_mode()
def test_an_item_of_a_type_is_read_as_another_item() -> None:
    """Like an item of a network without types whose catalogue has all pairs. The table that scores has no types."""
    net = network("softmax")
    assert net.events is not None
    pairs = Transformer(TransformerConfig(V * TYPES, LENGTH, 2, WIDTH, 2)).eval()
    rows_VTD = net.items.weight[:, None] + net.events.weight
    shared = {name: each for name, each in net.state_dict().items() if not name.startswith(("items.", "events."))}
    pairs.load_state_dict(shared | {"items.weight": rows_VTD.flatten(0, 1)})
    given = batch(net)
    expected_BLD = pairs(given["items_BL"] * TYPES + given["events_BL"], hidden)
    torch.testing.assert_close(net(**given, head=hidden), expected_BLD)
    torch.testing.assert_close(net(**given, head=scores), expected_BLD @ net.items.weight.T)


@pytest.mark.parametrize("caches", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_decoding_with_the_cache_gives_the_same(name: str, caches: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SoftmaxAttention, "caches", caches)
    net = network(name)
    given, cache = batch(net), KeyValueCache(3, LENGTH)
    pieces = []
    for start, end in ((0, 4), (4, 5), (5, 7)):
        piece = {key: value[:, start : end + (key == "times_BT")] for key, value in given.items()}
        pieces.append(net(**piece, head=scores, cache=cache))
    torch.testing.assert_close(torch.cat(pieces, 1), net(**given, head=scores))


@torch.inference_mode()
def test_the_type_of_a_blanked_item_is_not_read() -> None:
    net = network("softmax")
    given = batch(net)
    blank_BL = torch.zeros(3, LENGTH, dtype=torch.bool)
    blank_BL[:, 2] = True
    before = net(**given, head=scores, blank_BL=blank_BL)
    given["events_BL"][:, 2] = (given["events_BL"][:, 2] + 1) % TYPES
    torch.testing.assert_close(net(**given, head=scores, blank_BL=blank_BL), before, rtol=0, atol=0)
    assert not torch.allclose(net(**given, head=scores), before)


def test_vectors_of_types_are_counted() -> None:
    net, plain = network("softmax"), TransformerConfig(V, LENGTH, 2, WIDTH, 2)
    assert cost.n_total(net.config) == sum(each.numel() for each in net.parameters())
    assert cost.n_total(net.config) - cost.n_total(plain) == TYPES * WIDTH
    assert cost.n_body(net.config) == cost.n_body(plain)
    # A position without a target costs its blocks, but no scores.
    all_of_them, half = (cost.training_flops(plain, targets, 50, 1000, positions=10) for targets in (10, 5))
    assert all_of_them == cost.training_flops(plain, 10, 50, 1000)
    assert all_of_them - half == 5 * 1000
