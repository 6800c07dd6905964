"""Step-by-step decoding with the key/value cache: the scores of full recomputation, in a fraction of the time."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lrec.model.attention_context import KeyValueCache
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.transformer import Transformer

STEPS = 10
CHOICES = {
    "gpt2": {},
    "rotary": {"architecture": Architecture(positions="rotary")},
    "modern": {"architecture": Architecture("rms", "swiglu", "rotary", True)},
    "scaled": {"parametrisation": "scaled"},
}


def last(positions_B: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Scores of every item after each row's last position."""
    return lambda hidden_BLD, table_VD: hidden_BLD[torch.arange(len(positions_B)), positions_B] @ table_VD.T


def decode_again(net: Transformer, items_BL: Tensor, lengths_B: Tensor) -> list[Tensor]:
    """Scores of each step of greedy decoding, which encodes the whole histories again at every step."""
    room_BL = torch.cat([items_BL, items_BL.new_zeros(len(items_BL), STEPS)], 1)
    scores = []
    for step in range(STEPS):
        scores.append(net(room_BL[:, : items_BL.shape[1] + step], last(lengths_B + step - 1)))
        room_BL[torch.arange(len(room_BL)), lengths_B + step] = scores[-1].argmax(1)
    return scores


def decode_cached(net: Transformer, items_BL: Tensor, lengths_B: Tensor) -> list[Tensor]:
    """The same, one position at a time."""
    cache = KeyValueCache(len(items_BL), net.config.max_len)
    scores = [net(items_BL, last(lengths_B - 1), cache=cache)]
    cache.filled_B = lengths_B
    for _ in range(STEPS - 1):
        scores.append(net(scores[-1].argmax(1)[:, None], last(torch.zeros_like(lengths_B)), cache=cache))
    return scores


@pytest.mark.parametrize("name", CHOICES)
@torch.inference_mode()
def test_cached_decoding_equals_full_recomputation(name: str) -> None:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(70, 60, 3, 32, 2, **CHOICES[name])).eval()  # type: ignore[arg-type]
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    lengths_B = torch.tensor([50, 1, 17, 49, 33])
    items_BL = torch.randint(0, 70, (5, 50))
    again, cached = decode_again(net, items_BL, lengths_B), decode_cached(net, items_BL, lengths_B)
    for step in range(STEPS):
        torch.testing.assert_close(cached[step], again[step], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(again[0], again[-1], atol=1e-2)


@torch.inference_mode()
def test_several_items_may_be_put_in_at_once() -> None:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(30, 12, 2, 16, 2, architecture=Architecture(positions="rotary"))).eval()
    items_BL = torch.randint(0, 30, (3, 12))
    whole_BLV = net(items_BL, lambda hidden_BLD, table_VD: hidden_BLD @ table_VD.T)
    cache = KeyValueCache(3, 12)
    pieces = [
        net(piece_BL, lambda hidden_BLD, table_VD: hidden_BLD @ table_VD.T, cache=cache)
        for piece_BL in items_BL.split([5, 1, 4, 2], 1)
    ]
    torch.testing.assert_close(torch.cat(pieces, 1), whole_BLV)
    assert cache.filled_B.tolist() == [12, 12, 12]


@pytest.mark.slow
@torch.inference_mode()
def test_cached_decoding_is_five_times_faster() -> None:
    net = Transformer(TransformerConfig(500, 60, 4, 128, 4)).eval()
    items_BL, lengths_B = torch.randint(0, 500, (64, 50)), torch.full((64,), 50)

    def seconds(decode: Callable[[Transformer, Tensor, Tensor], list[Tensor]]) -> float:
        spent = []
        for _ in range(3):
            started = time.process_time()
            decode(net, items_BL, lengths_B)
            spent.append(time.process_time() - started)
        return min(spent)

    seconds(decode_cached)
    assert seconds(decode_again) > 5 * seconds(decode_cached)
