"""HSTU's block, and attention's bias, against loops over single numbers in float64 that share no code with them.

Source: arXiv 2402.17152, eq. 1 to 3, as Meta's code has them.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lrec.model import hstu
from lrec.model.attention_context import Context, KeyValueCache
from lrec.model.blocks import Block
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.event_inputs import gaps, time_buckets
from lrec.model.transformer import Transformer

YEAR = 365 * 86_400
HSTU = Architecture(attention="hstu", mlp="none", position_bias=True, time="past", hstu_head_width=5)
CONFIG = TransformerConfig(n_items=31, max_len=11, layers=2, width=12, heads=3, architecture=HSTU)
CASES = {
    "past": HSTU,
    "request": replace(HSTU, time="request"),
    "no time": replace(HSTU, time="none"),
    "no bias": replace(HSTU, time="none", position_bias=False),
    "wide": replace(HSTU, hstu_head_width=None),
    "with perceptron": replace(HSTU, mlp="gelu", hstu_head_width=None),
}


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def standardised(x_D: list[float], eps: float) -> list[float]:
    mean = sum(x_D) / len(x_D)
    variance = sum((x - mean) ** 2 for x in x_D) / len(x_D)
    return [(x - mean) / math.sqrt(variance + eps) for x in x_D]


def times_matrix(x_D: list[float], weight_ED: list[list[float]]) -> list[float]:
    return [sum(w * x for w, x in zip(row, x_D, strict=True)) for row in weight_ED]


def bucket(seconds: int) -> int:
    return min(int(math.log(max(1, abs(seconds))) / 0.301), 128)


def branch_by_hand(block: Block, x_LD: list[list[float]], times_T: list[int], config: TransformerConfig) -> list:
    """What HSTU's branch adds to one row."""
    weights = {name: parameter.tolist() for name, parameter in block.attention.named_parameters()}
    gain_D, shift_D = block.attention_norm.weight.tolist(), block.attention_norm.bias.tolist()
    heads, width = config.heads, config.head_width
    each = heads * width
    rows = []
    for x_D in x_LD:
        z_D = [z * gain + shift for z, gain, shift in zip(standardised(x_D, 1e-12), gain_D, shift_D, strict=True)]
        rows.append([silu(y) for y in times_matrix(z_D, weights["uvqk.weight"])])
    added = []
    to_request = config.architecture.time == "request"
    for i in range(len(rows)):
        read = []
        for head in range(heads):
            columns = range(head * width, (head + 1) * width)
            total = [0.0] * width
            for j in range(i + 1):
                logit = sum(rows[i][2 * each + c] * rows[j][3 * each + c] for c in columns)
                if "bias.distances" in weights:
                    logit += weights["bias.distances"][i - j]
                if "bias.gaps" in weights:
                    logit += weights["bias.gaps"][bucket(times_T[i + to_request] - times_T[j])]
                weight = silu(logit) / config.max_len
                total = [t + weight * rows[j][each + c] for t, c in zip(total, columns, strict=True)]
            read += total
        gated = [u * y for u, y in zip(rows[i][:each], standardised(read, 1e-6), strict=True)]
        out = times_matrix(gated, weights["out.weight"])
        added.append([o + b for o, b in zip(out, weights["out.bias"], strict=True)])
    return added


def drawn(config: TransformerConfig, std: float = 1.0) -> Transformer:
    net = Transformer(config).double().eval()
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return net


def scores(hidden_BLD: Tensor, table_VD: Tensor) -> Tensor:
    return hidden_BLD @ table_VD.T


def some_times(config: TransformerConfig, rows: int, length: int) -> Tensor | None:
    """Ascending, with equal times, and up to years apart; None if the network reads none."""
    if config.architecture.time == "none":
        return None
    torch.manual_seed(1)
    steps = torch.tensor([0, 0, 3, 61, 3601, 90_001, YEAR + 7])
    return 1_500_000_000 + steps[torch.randint(0, 7, (rows, length + 1))].cumsum(1)


TIMES = {
    "rising": lambda length: [1_000_000_000 + 12_345 * step * step for step in range(length + 1)],
    "equal": lambda length: [77] * (length + 1),
    "falling": lambda length: [5_000_003 * (length - step) for step in range(length + 1)],
    "a request after all": lambda length: [0] * length + [1_700_000_000],
}


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("name", CASES)
def test_a_block_equals_the_equations(name: str, when: str) -> None:
    config = replace(CONFIG, architecture=CASES[name])
    net = drawn(config)
    block = net.blocks[0]
    for length in (1, 4, config.max_len):
        x_BLD = torch.randn(2, length, config.width, dtype=torch.float64)
        times_T = TIMES[when](length)
        times_BT = torch.tensor([times_T, times_T])
        gaps_BLC = gaps(times_BT, Context(), config.architecture.time == "request")
        found_BLD = block.attention(block.attention_norm(x_BLD), Context(gaps_BLC=gaps_BLC))
        expected_BLD = torch.tensor(
            [branch_by_hand(block, x_LD, times_T, config) for x_LD in x_BLD.tolist()], dtype=torch.float64
        )
        torch.testing.assert_close(found_BLD, expected_BLD, rtol=1e-9, atol=1e-9)
        found32_BLD = block.float()(x_BLD.float(), Context(gaps_BLC=gaps_BLC))
        block.double()
        if block.mlp is None:
            expected32_BLD = (x_BLD + expected_BLD).float()
            torch.testing.assert_close(found32_BLD, expected32_BLD, rtol=1e-5, atol=1e-5)


class OwnHSTU(hstu.HSTU):
    """A subclass that the user names by its path."""


def test_a_subclass_by_its_path_computes_the_same() -> None:
    plain = replace(HSTU, time="none", hstu_head_width=CONFIG.width // CONFIG.heads)
    own = replace(plain, attention="test_hstu.OwnHSTU", hstu_head_width=None)
    attentions = [Block(replace(CONFIG, architecture=each), 0).attention for each in (plain, own)]
    with torch.no_grad():
        for parameter in attentions[0].parameters():
            parameter.normal_()
        attentions[1].load_state_dict(attentions[0].state_dict())
        x_BLD = torch.randn(2, 5, CONFIG.width)
        assert torch.equal(attentions[0](x_BLD), attentions[1](x_BLD))


def test_buckets_are_those_of_the_formula() -> None:
    seconds = [0, 1, 2, 59, 60, 3600, 86_400, 7 * 86_400, YEAR, 10 * YEAR, 1_700_000_000, -86_400]
    assert time_buckets(torch.tensor(seconds)).tolist() == [bucket(each) for each in seconds]
    assert time_buckets(torch.tensor([1, 60, 86_400, YEAR])).tolist() == [0, 13, 37, 57]
    assert time_buckets(torch.tensor([1e30])).item() == 128


SOFTMAX = {
    "softmax, past": Architecture(position_bias=True, time="past"),
    "softmax, request": Architecture("rms", "swiglu", "rotary", True, position_bias=True, time="request"),
    "softmax, input": Architecture(time="input"),
    "softmax, no positions": Architecture(positions="none", position_bias=True),
    "hstu, input": replace(HSTU, time="input", position_bias=False),
    "hstu, rotary": replace(HSTU, positions="rotary", hstu_head_width=6),
    "hstu, no positions": replace(HSTU, positions="none"),
}
ALL = CASES | SOFTMAX


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("name", ["softmax, past", "softmax, request", "softmax, no positions"])
def test_softmax_attention_adds_the_same_bias(name: str, when: str) -> None:
    architecture = replace(ALL[name], positions="none", qk_norm=False)
    config = replace(CONFIG, architecture=architecture)
    attention = drawn(config).blocks[1].attention
    length = 7
    times_T = TIMES[when](length)
    x_BLD = torch.randn(1, length, config.width, dtype=torch.float64)
    to_request = architecture.time == "request"
    found_BLD = attention(x_BLD, Context(gaps_BLC=gaps(torch.tensor([times_T]), Context(), to_request)))
    query, key, value = (part[0].unflatten(-1, (3, -1)) for part in attention.qkv(x_BLD).split(config.width, -1))
    read = torch.zeros_like(value)
    for i in range(length):
        for head in range(3):
            logits = []
            for j in range(i + 1):
                logit = (query[i, head] @ key[j, head]).item() / 2 + attention.bias.distances[i - j].item()
                if architecture.time != "none":
                    logit += attention.bias.gaps[bucket(times_T[i + to_request] - times_T[j])].item()
                logits.append(logit)
            weights = [math.exp(logit - max(logits)) for logit in logits]
            for j, weight in enumerate(weights):
                read[i, head] += weight / sum(weights) * value[j, head]
    torch.testing.assert_close(found_BLD[0], attention.out(read.flatten(-2)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["softmax, input", "hstu, input"])
def test_a_vector_for_the_gap_before_is_added_to_each_item(name: str) -> None:
    config = replace(CONFIG, architecture=ALL[name])
    net = drawn(config)
    items_BL, times_BT = torch.randint(0, 31, (2, 6)), some_times(config, 2, 6)
    assert times_BT is not None
    plain = Transformer(replace(config, architecture=replace(config.architecture, time="none"))).double().eval()
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if not name.startswith("times")})
    for row in range(2):
        # As if each event were an item of its own.
        vectors_LD = net.items.weight[items_BL[row]].clone()
        for i in range(6):
            which = bucket(int(times_BT[row, i] - times_BT[row, i - 1])) if i else 128
            vectors_LD[i] += net.times.weight[which]
        plain.items.weight.data[:6] = vectors_LD.detach()
        expected_LD = plain(torch.arange(6)[None], lambda hidden_BLD, _: hidden_BLD[0])
        found_LD = net(items_BL[row : row + 1], lambda hidden_BLD, _: hidden_BLD[0], times_BT=times_BT[row : row + 1])
        torch.testing.assert_close(found_LD, expected_LD)


@pytest.mark.parametrize("name", ALL)
def test_no_row_sees_a_later_event_and_only_request_sees_its_time(name: str) -> None:
    config = replace(CONFIG, architecture=ALL[name])
    net = drawn(config, 0.3)
    items_BL, times_BT = torch.randint(0, 31, (3, 9)), some_times(config, 3, 9)
    before = net(items_BL, scores, times_BT=times_BT)
    other_BL = items_BL.clone()
    other_BL[:, 5:] = 30 - items_BL[:, 5:]
    torch.testing.assert_close(net(other_BL, scores, times_BT=times_BT)[:, :5], before[:, :5])
    if times_BT is None:
        return
    later_BT = times_BT.clone()
    later_BT[:, 5:] += 3 * YEAR
    after = net(items_BL, scores, times_BT=later_BT)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert torch.allclose(after[:, 4], before[:, 4]) == (config.architecture.time != "request")
    assert not torch.allclose(after[:, 5], before[:, 5])


@pytest.mark.parametrize("name", ALL)
def test_padding_changes_nothing(name: str) -> None:
    config = replace(CONFIG, architecture=ALL[name])
    net = drawn(config, 0.3)
    items_BL, times_BT = torch.randint(0, 31, (2, 11)), some_times(config, 2, 11)
    whole = net(items_BL, scores, times_BT=times_BT)
    for length in (1, 4, 11):
        cut_BT = None if times_BT is None else times_BT[:, : length + 1]
        torch.testing.assert_close(net(items_BL[:, :length], scores, times_BT=cut_BT), whole[:, :length])


@pytest.mark.parametrize("blanks", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_a_position_alone_is_what_it_is_among_all(name: str, blanks: bool) -> None:
    config = replace(CONFIG, architecture=ALL[name])
    net = drawn(config, 0.3)
    items_BL, times_BT = torch.randint(0, 31, (4, 9)), some_times(config, 4, 9)
    blank_BL = torch.rand(4, 9) < 0.4 if blanks else None
    alone_B = torch.tensor([8, 3, 0, 5]) + 9 * torch.arange(4)
    among_all = net(items_BL, scores, blank_BL=blank_BL, times_BT=times_BT).flatten(0, 1)[alone_B]
    alone = net(items_BL, scores, blank_BL=blank_BL, positions_M=alone_B, times_BT=times_BT)
    torch.testing.assert_close(alone, among_all)


@pytest.mark.parametrize("name", ALL)
def test_a_blanked_item_is_read_by_none(name: str) -> None:
    config = replace(CONFIG, architecture=ALL[name])
    net = drawn(config, 0.3)
    items_BL, times_BT = torch.randint(0, 31, (3, 9)), some_times(config, 3, 9)
    blank_BL = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 0]).bool().expand(3, -1)
    other_BL = torch.where(blank_BL, 30 - items_BL, items_BL)
    before = net(items_BL, scores, blank_BL=blank_BL, times_BT=times_BT)
    torch.testing.assert_close(net(other_BL, scores, blank_BL=blank_BL, times_BT=times_BT), before)
    assert not torch.allclose(net(items_BL, scores, times_BT=times_BT), before)


OWN = {"own attention": Architecture(attention="gated_attention.GatedAttention", time="input")}


@pytest.mark.parametrize("name", ALL | OWN)
@torch.inference_mode()
def test_decoding_equals_the_whole_history(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("examples")
    config = replace(CONFIG, architecture=(ALL | OWN)[name])
    net = drawn(config, 0.3)
    items_BL, times_BT, lengths_B = torch.randint(0, 31, (3, 11)), some_times(config, 3, 11), torch.tensor([6, 2, 4])
    whole_BLV = net(items_BL, scores, times_BT=times_BT)
    cache = KeyValueCache(3, 11)
    net(items_BL[:, :6], scores, cache=cache, times_BT=None if times_BT is None else times_BT[:, :7])
    cache.filled_B = lengths_B
    rows_B = torch.arange(3)
    for step in range(5):
        at_B = lengths_B + step
        times_B2 = None if times_BT is None else torch.stack([times_BT[rows_B, at_B], times_BT[rows_B, at_B + 1]], 1)
        found_BLV = net(items_BL[rows_B, at_B][:, None], scores, cache=cache, times_BT=times_B2)
        torch.testing.assert_close(found_BLV[:, 0], whole_BLV[rows_B, at_B])


@torch.inference_mode()
def test_an_event_that_comes_at_another_time_than_the_request_is_refused_by_the_cache() -> None:
    net = drawn(replace(CONFIG, architecture=CASES["request"]))
    cache = KeyValueCache(1, 11)
    net(torch.tensor([[1, 2]]), scores, cache=cache, times_BT=torch.tensor([[10, 20, 30]]))
    with pytest.raises(AssertionError, match="an event not at its request's time"):
        net(torch.tensor([[3]]), scores, cache=cache, times_BT=torch.tensor([[31, 40]]))


def test_a_network_without_time_is_what_it_was_to_the_last_digit() -> None:
    """Parameters are drawn by name, so a new one changes no other."""
    plain = Transformer(TransformerConfig(31, 11, 2, 12, 3), seed=3)
    biased = Transformer(
        TransformerConfig(31, 11, 2, 12, 3, architecture=Architecture(position_bias=True, time="past")), seed=3
    )
    own = dict(biased.named_parameters())
    assert all(torch.equal(parameter, own[name]) for name, parameter in plain.named_parameters())
    items_BL, times_BT = torch.randint(0, 31, (2, 11)), torch.arange(12).expand(2, -1) * 1000
    # The bias begins at 0.
    torch.testing.assert_close(plain(items_BL, scores), biased(items_BL, scores, times_BT=times_BT))
