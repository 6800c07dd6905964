"""Learning rate by step, parameter groups, and the switch from AdamW to SGD against torch's own two optimizers."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from lrec.errors import UserError
from lrec.model.config import TransformerConfig
from lrec.model.transformer import Transformer
from lrec.training.muon import orthogonal
from lrec.training.optim import AdamWThenSGD, Optimizer, OptimizerConfig, Switch, build

CONFIG = TransformerConfig(7, 5, 2, 8, 1)


def test_rate_rises_linearly_and_falls_to_the_final_share() -> None:
    optimizer = Optimizer(warmup=0.1, decay="cosine", final_lr=0.1)
    factors = [optimizer.lr_factor(step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[10:]))


@pytest.mark.parametrize(("decay", "half"), [("linear", 0.5), ("constant", 1.0), ("cosine", 0.5), ("wsd", 1.0)])
def test_half_way(decay: str, half: float) -> None:
    assert Optimizer(warmup=0, decay=decay).lr_factor(50, 100) == pytest.approx(half)  # type: ignore[arg-type]


def test_wsd_falls_at_the_end_alone_by_one_minus_root() -> None:
    rates = [Optimizer(warmup=0, decay="wsd", final_lr=0.1).lr_factor(step, 2000) for step in range(2001)]
    assert set(rates[:1701]) == {1.0}
    assert rates[1775] == pytest.approx(0.1 + 0.9 * (1 - 0.25**0.5))
    assert rates[2000] == 0.1
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("steps", [20, 100, 399, 2000])
def test_wsd_shares_its_first_steps_with_every_longer_run(steps: int) -> None:
    short = Optimizer(warmup=0.2, decay="wsd")
    stable = short.stable_steps(steps)
    assert stable is not None
    for times in (2, 3, 10):
        long = Optimizer(warmup=0.2 / times, decay="wsd")
        ours, theirs = (
            [each.lr_factor(step, n) for step in range(steps)] for each, n in ((short, steps), (long, times * steps))
        )
        assert ours[: stable + 1] == theirs[: stable + 1]
        assert ours[stable + 1] < 1 == theirs[stable + 1]


@pytest.mark.parametrize("optimizer", [Optimizer(), Optimizer(decay="wsd", switch=Switch(at=50))])
def test_other_schedules_share_nothing(optimizer: Optimizer) -> None:
    assert optimizer.stable_steps(100) is None


def test_norms_and_biases_have_no_weight_decay() -> None:
    net = Transformer(TransformerConfig(5, 5, 2, 8, 1))
    adamw, _ = Optimizer(weight_decay=0.3, muon=None).build(net, 10)
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


def test_an_optimizer_of_torch_has_a_constant_rate_times_the_parametrisation_s_share() -> None:
    net = Transformer(TransformerConfig(7, 5, 2, 128, 4, parametrisation="scaled"))
    adagrad, scheduler = build(partial(torch.optim.Adagrad, lr=0.1), net, 10)
    rates = {id(parameter): group["lr"] for group in adagrad.param_groups for parameter in group["params"]}
    for _ in range(3):
        adagrad.step()
        scheduler.step()
    for name, parameter in net.named_parameters():
        is_table = name in ("items.weight", "positions.weight")
        assert rates[id(parameter)] == pytest.approx(0.1 * 4 if is_table else 0.1 / 4)
    assert {group["lr"] for group in adagrad.param_groups} == set(rates.values())


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_an_optimizer_that_needs_other_gradients_is_refused(kind: type[torch.optim.Optimizer]) -> None:
    with pytest.raises(UserError, match=f"model.optimizer {kind.__name__}: a step of lrec has one dense gradient"):
        build(kind, Transformer(TransformerConfig(7, 5, 2, 8, 1)), 10)


def test_an_optimizer_of_ones_own_makes_a_pair() -> None:
    class Alone(OptimizerConfig):
        def build(self, net: Transformer, total_steps: int) -> Any:
            return torch.optim.SGD(net.parameters(), lr=0.1)

    with pytest.raises(UserError, match=r"model\.optimizer Alone: build returns no optimizer and scheduler"):
        build(Alone(), Transformer(TransformerConfig(7, 5, 2, 8, 1)), 10)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr must be above 0 and finite, got inf"):
        Optimizer(lr=math.inf)
    with pytest.raises(UserError, match=r"optimizer\.lr must be above 0, got 0"):
        Optimizer(lr=0)
    with pytest.raises(UserError, match=r"optimizer\.warmup must be at least 0 and at most 1, got 2"):
        Optimizer(warmup=2)
    with pytest.raises(UserError, match=r"optimizer\.muon must be above 0, got 0"):
        Optimizer(muon=0)


def gradients(net: Transformer, seed: int) -> Iterator[None]:
    """Give every parameter a new gradient, endlessly."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        yield


def train(net: Transformer, optimizer: torch.optim.Optimizer, scheduler: object, steps: range, switch_at: int) -> None:
    """Take these steps, each with a gradient that depends on its number alone; switch before step `switch_at`."""
    for step in steps:
        if step == switch_at and isinstance(optimizer, AdamWThenSGD):
            optimizer.begin_sgd(step)
        next(gradients(net, step))
        optimizer.step()
        scheduler.step()  # type: ignore[attr-defined]


def assert_equal_weights(one: Transformer, other: Transformer) -> None:
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-7, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")


SWITCHING = Optimizer(
    lr=0.01,
    weight_decay=0.1,
    warmup=0.2,
    decay="linear",
    switch=Switch(lr=0.5, momentum=0.8, weight_decay=0.01, decay="cosine", final_lr=0.1),
    muon=None,
)


def test_before_the_switch_it_is_torch_s_adamw() -> None:
    net, reference = Transformer(CONFIG, seed=1), Transformer(CONFIG, seed=1)
    optimizer, scheduler = SWITCHING.build(net, 20)
    matrices = [p for p in reference.parameters() if p.ndim == 2]
    vectors = [p for p in reference.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01,
        betas=SWITCHING.betas,
    )
    linear = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: SWITCHING.lr_factor(step, 20))
    train(net, optimizer, scheduler, range(12), switch_at=12)
    train(reference, adamw, linear, range(12), switch_at=12)
    assert_equal_weights(net, reference)
    assert optimizer.phase_of(12) == "adamw"


def test_from_the_switch_on_it_is_torch_s_sgd_with_momentum_and_its_own_schedule() -> None:
    net = Transformer(CONFIG, seed=1)
    optimizer, scheduler = SWITCHING.build(net, 20)
    train(net, optimizer, scheduler, range(8), switch_at=8)
    reference = copy.deepcopy(net)
    matrices = [p for p in reference.parameters() if p.ndim == 2]
    vectors = [p for p in reference.parameters() if p.ndim == 1]
    sgd = torch.optim.SGD(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}], lr=0.5, momentum=0.8
    )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=12, eta_min=0.05)
    train(net, optimizer, scheduler, range(8, 20), switch_at=8)
    train(reference, sgd, cosine, range(8, 20), switch_at=8)
    assert_equal_weights(net, reference)
    assert optimizer.sgd_from == 8
    assert [optimizer.phase_of(steps) for steps in (8, 9, 20)] == ["adamw", "sgd", "sgd"]
    for buffer, parameter in zip(
        sgd.state.values(), [p for g in optimizer.param_groups for p in g["params"]], strict=True
    ):
        torch.testing.assert_close(buffer["momentum_buffer"], optimizer.state[parameter]["exp_avg"])


def test_rates_over_warm_up_decay_switch_and_end() -> None:
    net = Transformer(CONFIG)
    options = Optimizer(lr=0.4, warmup=0.2, decay="linear", switch=Switch(lr=2.0, decay="linear", final_lr=0.5))
    optimizer, scheduler = options.build(net, 10)
    seen = []
    for step in range(10):
        if step == 6:
            optimizer.begin_sgd(step)
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.2, 0.4, 0.4, 0.35, 0.3, 0.25, 2.0, 1.75, 1.5, 1.25])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0)


@pytest.mark.parametrize("products", [torch.bfloat16, torch.float32])
def test_matrices_of_the_blocks_are_moved_by_torch_s_muon_and_all_else_by_its_adamw(products: torch.dtype) -> None:
    config = replace(CONFIG, width=128, parametrisation="scaled")
    net, reference = Transformer(config, seed=1), Transformer(config, seed=1)
    options = Optimizer(lr=0.01, weight_decay=0.1, warmup=0.2, muon=3.0)
    matrices = [p for name, p in reference.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    tables = [p for name, p in reference.named_parameters() if not name.startswith("blocks.") and p.ndim == 2]
    vectors = [p for p in reference.parameters() if p.ndim == 1]
    of_matrix, of_table = 3 * 0.25**0.25, 4 * 0.25
    muon = torch.optim.Muon(matrices, lr=0.01 * of_matrix, weight_decay=0.1 / of_matrix)
    adamw = torch.optim.AdamW(
        [
            {"params": tables, "lr": 0.01 * of_table, "weight_decay": 0.1 / of_table},
            {"params": vectors, "lr": 0.01 / 4, "weight_decay": 0.0},
        ],
        betas=options.betas,
    )
    schedules = [LambdaLR(each, lambda step: options.lr_factor(step, 12)) for each in (muon, adamw)]
    train(net, *build(options, net, 12, products), range(12), switch_at=12)
    for step in range(12):
        next(gradients(reference, step))
        for each in (muon, adamw, *schedules):
            each.step()
    assert len(matrices) == 8
    for (name, mine), theirs in zip(net.named_parameters(), reference.parameters(), strict=True):
        # torch computes a step of Muon in bfloat16, as in bf16-mixed training, but takes squares from the other side of
        # square matrices. The sum of the rates is 0.2.
        differs = products == torch.float32 or mine.shape[0] == mine.shape[-1]
        moved_by_muon = any(theirs is matrix for matrix in matrices)
        torch.testing.assert_close(mine, theirs, rtol=2e-7, atol=1e-3 if moved_by_muon and differs else 1e-7, msg=name)


@pytest.mark.parametrize("shape", [(96, 32), (32, 96), (32, 32)])
def test_a_step_of_muon_has_the_singular_vectors_of_the_momentum(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ orthogonal(matrix) @ right.T
    torch.testing.assert_close(inside, inside.diag().diag(), rtol=0, atol=1e-4)
    large = values > 0.01 * matrix.norm()
    assert large.sum() > 25
    assert ((inside.diag()[large] > 0.6) & (inside.diag()[large] < 1.3)).all()


@pytest.mark.parametrize("rank", [3, 32])
@pytest.mark.parametrize("shape", [(32, 32), (128, 32), (32, 128)])
def test_orthogonal_is_the_published_iteration(shape: tuple[int, int], rank: int) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape[0], rank) @ torch.logspace(0, -4, rank).diag() @ torch.randn(rank, shape[1])
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        squares = x @ x.T
        x = 3.4445 * x + (-4.7750 * squares + 2.0315 * squares @ squares) @ x
    torch.testing.assert_close(orthogonal(matrix).double(), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("muon", [None, 2.0])
@pytest.mark.parametrize("saved_after", [3, 8, 11], ids=["before", "at", "after"])
def test_a_checkpoint_of_either_phase_goes_on_bitwise(saved_after: int, muon: float | None) -> None:
    options = replace(SWITCHING, muon=muon)
    undisturbed = Transformer(CONFIG, seed=1)
    train(undisturbed, *options.build(undisturbed, 20), range(20), switch_at=8)

    first = Transformer(CONFIG, seed=1)
    optimizer, scheduler = options.build(first, 20)
    train(first, optimizer, scheduler, range(saved_after), switch_at=8)
    saved = copy.deepcopy([first.state_dict(), optimizer.state_dict(), scheduler.state_dict()])

    resumed = Transformer(CONFIG, seed=2)
    optimizer, scheduler = options.build(resumed, 20)
    for thing, state in zip((resumed, optimizer, scheduler), saved, strict=True):
        thing.load_state_dict(state)
    train(resumed, optimizer, scheduler, range(saved_after, 20), switch_at=8)
    for a, b in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": 0}, r"optimizer\.switch\.at must be at least 1, got 0"),
        ({"patience": 0}, r"optimizer\.switch\.patience must be at least 1, got 0"),
        ({"lr": 0.0}, r"optimizer\.switch\.lr must be above 0, got 0"),
        ({"min_improvement": -0.1}, r"optimizer\.switch\.min_improvement must be at least 0, got -0\.1"),
        ({"weight_decay": -1.0}, r"optimizer\.switch\.weight_decay must be at least 0"),
        ({"latest": 0.0}, r"optimizer\.switch\.latest must be above 0 and at most 1, got 0"),
        ({"momentum": 1.0}, r"optimizer\.switch\.momentum must be at least 0 and below 1, got 1"),
        ({"final_lr": 1.5}, r"optimizer\.switch\.final_lr must be at least 0 and at most 1, got 1\.5"),
    ],
)
def test_wrong_switches_are_refused(options: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=message):
        Switch(**options)


def test_a_switch_after_the_end_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.switch\.at 10: the run has only 10 steps"):
        Optimizer(switch=Switch(at=10)).build(Transformer(CONFIG), 10)
