"""Learning rate by step and parameter groups."""

from itertools import pairwise

import pytest

from lrec.errors import UserError
from lrec.net import Transformer, TransformerConfig
from lrec.optim import Optimizer


def test_rate_rises_linearly_and_falls_to_the_final_share() -> None:
    optimizer = Optimizer(warmup=0.1, decay="cosine", final_lr=0.1)
    factors = [optimizer.lr_factor(step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[10:]))


@pytest.mark.parametrize(("decay", "half"), [("linear", 0.5), ("constant", 1.0), ("cosine", 0.5)])
def test_half_way(decay: str, half: float) -> None:
    assert Optimizer(warmup=0, decay=decay).lr_factor(50, 100) == pytest.approx(half)  # type: ignore[arg-type]


def test_norms_and_biases_have_no_weight_decay() -> None:
    net = Transformer(TransformerConfig(5, 5, 2, 8, 1))
    adamw, _ = Optimizer(weight_decay=0.3).build(net, 10)
    decayed, plain = sorted(adamw.param_groups, key=lambda group: -group["weight_decay"])
    assert decayed["weight_decay"] == 0.3
    assert plain["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    assert len(decayed["params"]) + len(plain["params"]) == len(list(net.parameters()))


def test_scheduler_steps_with_the_optimizer() -> None:
    net = Transformer(TransformerConfig(5, 5, 1, 8, 1))
    adamw, scheduler = Optimizer(lr=0.4, warmup=0.5, decay="linear").build(net, 4)
    seen = []
    for _ in range(4):
        seen.append(adamw.param_groups[0]["lr"])
        adamw.step()
        scheduler.step()
    assert seen == pytest.approx([0.2, 0.4, 0.4, 0.2])


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr must be above 0, got 0"):
        Optimizer(lr=0)
    with pytest.raises(UserError, match=r"optimizer\.warmup must lie in 0\.\.1, got 2"):
        Optimizer(warmup=2)
