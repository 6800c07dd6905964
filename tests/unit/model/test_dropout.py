"""Dropout: its rate, the independence of its draws, gradients, and attention with dropout."""

import math

import pytest
import torch

from lrec.model.attention_context import CAUSAL, Context
from lrec.model.blocks import Attention, dropout, part_class
from lrec.model.config import Architecture, Dropout, OverDepth, TransformerConfig

N = 2_000_003  # not a multiple of the number drawn at a time


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_the_share_is_the_rate_and_the_mean_stays(rate: float) -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(N), rate)
    share = (dropped == 0).double().mean().item()
    assert share == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / N) + 2**-17)
    (kept,) = dropped[dropped > 0].unique().tolist()
    assert kept == pytest.approx(1 / (1 - rate), rel=2e-4)
    assert dropped.mean().item() == pytest.approx(1, abs=4 * math.sqrt(rate / (1 - rate) / N))


def test_draws_are_independent_of_their_neighbours_and_of_each_other() -> None:
    torch.manual_seed(1)
    first, second = ((dropout(torch.ones(N), 0.1) == 0).double() for _ in range(2))
    pairs = {f"{lag} apart": (first[:-lag], first[lag:]) for lag in (1, 2, 3, 4, 8, 64, 128, 624, 1248)}
    for name, (one, other) in (pairs | {"the next draw": (first, second)}).items():
        correlation = torch.corrcoef(torch.stack([one, other]))[0, 1].item()
        assert abs(correlation) < 4 / math.sqrt(N), name
    runs = first[: N // 1000 * 1000].view(-1, 1000).sum(1)  # sums of a thousand entries: binomial
    assert runs.var().item() == pytest.approx(90, rel=4 * math.sqrt(2 / len(runs)))


def test_a_seed_draws_the_same_with_any_number_of_threads() -> None:
    drawn, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            torch.manual_seed(5)
            drawn.append(dropout(torch.ones(300, 700), 0.2))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_dropped_gets_no_gradient(dtype: torch.dtype) -> None:
    x = torch.randn(50, 11, dtype=dtype).add_(5).requires_grad_()
    dropped = dropout(x, 0.3)
    dropped.backward(torch.ones_like(dropped))
    assert dropped.dtype == dtype
    torch.testing.assert_close(dropped, x * x.grad, rtol=0, atol=0)
    assert ((x.grad == 0) == (dropped == 0)).all()


ARCHITECTURES = {
    "plain": Architecture(),
    "bias": Architecture(position_bias=True, time="past"),
    "hstu": Architecture(attention="hstu", position_bias=True, time="past"),
}


def made_attention(name: str, length: int, width: int, heads: int, rate: float) -> Attention:
    """An attention with biases that matter."""
    dropout = Dropout(attention=OverDepth(rate, rate))
    config = TransformerConfig(5, length, 1, width, heads, dropout, ARCHITECTURES[name])
    kind = part_class(config.architecture, "attention")
    assert kind is not None
    attention: Attention = kind(config, 0)
    for bias in [] if attention.bias is None else attention.bias.parameters():
        torch.nn.init.normal_(bias, std=2)
    return attention


@pytest.mark.parametrize("context", [CAUSAL, Context(torch.ones(1, 1, 9, 9, dtype=torch.bool).tril(1))])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attention_that_drops_next_to_nothing_is_attention_without_dropout(name: str, context: Context) -> None:
    attention = made_attention(name, 9, 12, 3, 1e-9).double()
    context = context._replace(gaps_BLC=torch.randint(0, 129, (4, 9, 9)))
    hidden_BLD = torch.randn(4, 9, 12, dtype=torch.float64, requires_grad=True)
    given_BLD, results = torch.randn(4, 9, 12, dtype=torch.float64), []
    for training in (True, False):
        read_BLD = attention.train(training)(hidden_BLD, context)
        leaves = [hidden_BLD, *attention.parameters()]
        results.append([read_BLD, *torch.autograd.grad(read_BLD, leaves, given_BLD)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attention_drops_and_keeps_its_mean(name: str) -> None:
    torch.manual_seed(0)
    attention = made_attention(name, 4, 8, 2, 0.25)
    hidden_BLD, gaps_BLC = torch.randn(1, 4, 8).expand(40_000, 4, 8), torch.randint(0, 129, (1, 4, 4))
    read_BLD = attention(hidden_BLD, Context(gaps_BLC=gaps_BLC))
    expected_LD = attention.eval()(hidden_BLD[:1], Context(gaps_BLC=gaps_BLC))[0]
    error_LD = read_BLD.std(0) / math.sqrt(len(read_BLD))
    assert (error_LD > 0).all()
    assert ((read_BLD.mean(0) - expected_LD).abs() < 4.5 * error_LD).all()
