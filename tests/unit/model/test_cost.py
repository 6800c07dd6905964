"""FLOPs against the count of torch, and memory against every allocation of real training steps."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lrec.model import cost, memory
from lrec.model.blocks import PARTS, part_class
from lrec.model.config import OWN_PARTS, Architecture, Dropout, OverDepth, TransformerConfig
from lrec.model.losses import full_softmax
from lrec.model.network_sizes import SIZES
from lrec.model.transformer import Transformer

MODERN = Architecture("rms", "swiglu", "rotary", True)
HSTU = Architecture(attention="hstu", mlp="none", position_bias=True)


def step(net: Transformer, rows: int) -> Tensor:
    """Mean loss of a batch of full windows."""
    items_BL = torch.randint(0, net.config.n_items, (rows, net.config.max_len))
    targets_M, positions_M = torch.randint(0, net.config.n_items, (items_BL.numel(),)), torch.arange(items_BL.numel())
    return net(items_BL, lambda h_BLD, t_VD: full_softmax(h_BLD.flatten(0, 1)[positions_M], t_VD, targets_M)) / len(
        targets_M
    )


def allocation_peak(config: TransformerConfig, rows: int, precision: str, checkpointing: bool) -> int:
    """The most bytes that torch held at once, from building the net to the end of its third step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        net = Transformer(config)
        if precision == "bf16-true":
            net = net.bfloat16()
        net.checkpoint_activations = checkpointing
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = step(net, rows)
            loss.backward()
            optimizer.step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return int(held.max())


DROPOUT = Dropout(0.1, OverDepth(0.1, 0.1), OverDepth(0.1, 0.1))
CHOICES = [dict(zip(OWN_PARTS, own, strict=True)) for own in product(*OWN_PARTS.values())]
# What may be added, each with all combinations above.
ADDED = [
    {},
    {"qk_norm": True},
    {"position_bias": True},
    {"time": "past", "position_bias": True},
    {"time": "request"},
    {"time": "input", "seen": True},
]


@pytest.mark.parametrize("part", PARTS)
def test_every_short_name_is_a_part_that_fits(part: str) -> None:
    for name in OWN_PARTS[part]:
        kind = part_class(Architecture(**{part: name}), part)
        assert (kind is None) == (name == "none")


@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: "-".join(choices.values()))
def test_parameters_by_group_equal_those_of_the_network(choices: dict[str, str]) -> None:
    for added in ADDED:
        if not (choices["attention"] == "hstu" and "qk_norm" in added):
            check_parameters(Architecture(**choices, **added))


def check_parameters(architecture: Architecture) -> None:
    config = TransformerConfig(70, 9, 3, 20, 2, architecture=architecture)
    net = Transformer(config)
    matrices = [p.numel() for p in net.blocks.parameters() if p.ndim > 1]
    norms = [p.numel() for name, p in net.named_parameters() if "norm" in name]
    in_blocks = [(name, p) for name, p in net.blocks.named_parameters() if p.ndim == 1]
    biases = [p.numel() for name, p in in_blocks if "norm" not in name]
    tables = [part for part in (net.positions, net.times, net.seen) if part is not None]
    positions = sum(p.numel() for part in tables for p in part.parameters())
    expected = cost.Parameters(sum(matrices), net.items.weight.numel(), positions, sum(biases), sum(norms))
    assert cost.parameters(config) == expected
    assert sum(expected) == sum(p.numel() for p in net.parameters())


SHAPES = {
    "deep": (TransformerConfig(500, 50, 6, 128, 4), 20),
    "deep modern": (TransformerConfig(500, 50, 6, 128, 4, architecture=MODERN), 20),
    "large catalogue": (TransformerConfig(20_000, 50, 2, 64, 2), 10),
    "dropout": (TransformerConfig(500, 50, 4, 96, 4, DROPOUT), 20),
    "small": (TransformerConfig(300, 50, 1, 48, 2), 40),
    "hstu": (TransformerConfig(500, 50, 6, 128, 4, architecture=HSTU), 20),
    "seen": (TransformerConfig(500, 400, 1, 48, 2, architecture=Architecture(seen=True)), 4),
    "hstu, dropout": (TransformerConfig(500, 50, 4, 96, 4, DROPOUT, HSTU), 20),
}


# On a processor without instructions for bfloat16, a step in bfloat16 takes tens of seconds.
BF16 = [pytest.param(precision, marks=pytest.mark.slow) for precision in ("bf16-mixed", "bf16-true")]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("precision", ["32-true", *BF16])
@pytest.mark.parametrize("shape", SHAPES)
def test_memory_is_within_ten_percent_of_real_steps(
    shape: str, precision: memory.Precision, checkpointing: bool
) -> None:
    config, rows = SHAPES[shape]
    estimate = memory.of_step(config, rows * config.max_len, precision, checkpointing=checkpointing)
    assert estimate.total == pytest.approx(allocation_peak(config, rows, precision, checkpointing), rel=0.1)


def test_shards_share_what_each_rank_held() -> None:
    config = TransformerConfig(10_000, 50, 24, 512, 8)
    whole, half = memory.of_step(config, 512), memory.of_step(config, 512, shards=2)
    assert half.parameters == -(-whole.parameters // 2)
    assert half.optimizer == 2 * half.parameters
    assert half.activations == whole.activations
    assert whole.copies == 0 < half.copies < whole.parameters / 4
    assert half.total < 0.75 * whole.total


def test_copies_of_the_network_share_one_item_table() -> None:
    config = TransformerConfig(10_000, 50, 24, 512, 8)
    two, four = memory.of_step(config, 512, shards=2), memory.of_step(config, 512, shards=2, ranks=4)
    assert two.parameters - four.parameters == 4 * cost.n_head(config) // 4
    assert four.copies == two.copies


@pytest.mark.parametrize(("layers", "width", "heads"), SIZES.values(), ids=SIZES)
def test_hstu_has_the_body_of_every_size(layers: int, width: int, heads: int) -> None:
    plain = TransformerConfig(10, 50, layers, width, heads)
    for mlp, positions in (("none", "learned"), ("gelu", "rotary")):
        config = replace(plain, architecture=replace(HSTU, mlp=mlp, positions=positions))
        rounding = 5 * heads / 12 / width
        assert cost.n_body(config) == pytest.approx(cost.n_body(plain), rel=rounding)
        net = cost._net(config)
        assert cost.n_body(config) == sum(p.numel() for p in net.blocks.parameters() if p.ndim >= 2)


@pytest.mark.parametrize("architecture", [HSTU, replace(HSTU, mlp="swiglu", hstu_head_width=7)], ids=["alone", "mlp"])
def test_flops_of_hstu_equal_torch_s_count(architecture: Architecture) -> None:
    config = TransformerConfig(64, 16, 2, 48, 2, architecture=architecture)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Transformer(config)(torch.zeros(4, 16, dtype=torch.int64), lambda h_BLD, t_VD: h_BLD @ t_VD.T)
    # torch counts all pairs of positions.
    assert counter.get_total_flops() == 4 * 16 * cost.flops_per_interaction(config, pairs=16).forward


@pytest.mark.parametrize("architecture", [Architecture(), MODERN], ids=["gpt2", "modern"])
def test_flops_equal_torch_s_count(architecture: Architecture) -> None:
    config = TransformerConfig(64, 16, 2, 48, 2, architecture=architecture)
    net, rows = Transformer(config), 4
    positions = rows * config.max_len
    counts = []
    for checkpointing in (False, True):
        net.checkpoint_activations = checkpointing
        with FlopCounterMode(display=False) as counter:
            loss = net(torch.zeros(rows, config.max_len, dtype=torch.int64), lambda h_BLD, t_VD: (h_BLD @ t_VD.T).sum())
            forward = _products(counter)
            loss.backward()
        counts.append((forward, _products(counter) - forward))
    # torch counts attention over all pairs, lrec over those attended to: compare only the matrix products.
    flops = cost.flops_per_interaction(config, pairs=0)
    assert counts[0] == (flops.forward * positions, flops.backward * positions)
    recomputed = counts[1][1] - counts[0][1]
    expected = cost.flops_per_interaction(config, pairs=0, checkpointing=True).recomputed * positions
    # The last product of a block is not computed again, because no gradient needs it.
    last = 2 * config.layers * config.width * config.inner_width * positions
    assert recomputed in (expected, expected - last)


def _products(counter: FlopCounterMode) -> int:
    counts = counter.get_flop_counts().get("Global", {})
    return sum(count for operator, count in counts.items() if "mm" in str(operator))


def test_flops_of_attention_count_the_pairs_of_each_window() -> None:
    config = TransformerConfig(64, 16, 3, 48, 2)
    lengths = [16, 5, 1]
    pairs = sum(length * (length + 1) / 2 for length in lengths) / sum(lengths)
    without = cost.flops_per_interaction(config, pairs=0)
    flops = cost.flops_per_interaction(config, pairs)
    by_hand = config.layers * sum(2 * 2 * config.width * seen for length in lengths for seen in range(1, length + 1))
    assert (flops.forward - without.forward) * sum(lengths) == pytest.approx(by_hand, rel=1e-3)
    assert sum(flops) == pytest.approx(
        cost.training_flops(config, 22, round(pairs * 22), 6 * cost.n_head(config)) / 22, rel=1e-3
    )
    full = cost.flops_per_interaction(config)
    assert full.forward - without.forward == 4 * 3 * 48 * 17 // 2
