"""Full softmax against the naive one that holds every logit; the sampled losses against it and their formulas."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lrec.data.batching.train_batches import TrainBatch
from lrec.errors import UserError
from lrec.model import losses, memory


@pytest.mark.parametrize(("targets", "items"), [(1, 1), (5, 7), (700, 90), (513, 20_000)])
def test_loss_and_gradients_equal_the_naive_ones(targets: int, items: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_MD = torch.randn(targets, 16, generator=generator, requires_grad=True)
    table_VD = torch.randn(items, 16, generator=generator, requires_grad=True)
    targets_M = torch.randint(0, items, (targets,), generator=generator)
    expected = F.cross_entropy(hidden_MD @ table_VD.T, targets_M, reduction="sum")
    expected_grads = torch.autograd.grad(expected * 0.5, (hidden_MD, table_VD))
    loss = losses.full_softmax(hidden_MD, table_VD, targets_M)
    grads = torch.autograd.grad(loss * 0.5, (hidden_MD, table_VD))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-4)


def test_the_example_of_an_own_loss_is_label_smoothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    from smoothed_softmax import SmoothedSoftmax

    torch.manual_seed(0)
    hidden_MD, table_VD, targets_M = torch.randn(9, 4), torch.randn(30, 4), torch.randint(30, (9,))
    expected = F.cross_entropy(hidden_MD @ table_VD.T, targets_M, reduction="sum", label_smoothing=0.2)
    loss = SmoothedSoftmax(share=0.2)(hidden_MD, table_VD, targets_M, torch.ones(30))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_float64_gradients_equal_the_naive_ones() -> None:
    hidden_MD = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    table_VD = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    targets_M = torch.tensor([0, 5, 2, 2])
    naive = torch.autograd.grad(
        F.cross_entropy(hidden_MD @ table_VD.T, targets_M, reduction="sum"), (hidden_MD, table_VD)
    )
    ours = torch.autograd.grad(losses.full_softmax(hidden_MD, table_VD, targets_M), (hidden_MD, table_VD))
    for a, b in zip(ours, naive, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 0.3, 0.3), (0.5,), (1.0, 0.0, 2.0, 1.0)])
def test_next_items_are_a_distribution_of_targets(weights: tuple[float, ...]) -> None:
    """Rows of five, two and one targets: at the end of a row, the weights are those of the items that are there."""
    rows = [[3, 1, 4, 1, 5], [9, 2], [6]]
    items = torch.zeros(3, 5, dtype=torch.int32)
    positions = torch.tensor([5 * row + place for row, items in enumerate(rows) for place in range(len(items))])
    targets_M = torch.tensor([item for items in rows for item in items])
    batch = TrainBatch(items, positions, targets_M, 8, 8, 8, 8)
    generator = torch.Generator().manual_seed(0)
    hidden_MD = torch.randn(8, 6, generator=generator, requires_grad=True)
    table_VD = torch.randn(10, 6, generator=generator, requires_grad=True)
    expected_MV = torch.zeros(8, 10)
    places = [(row, place) for row in rows for place in range(len(row))]
    for m, (row, place) in enumerate(places):
        following = list(zip(row[place:], weights, strict=False))
        for item, weight in following:
            expected_MV[m, item] += weight / sum(w for _, w in following)
    naive = F.cross_entropy(hidden_MD @ table_VD.T, expected_MV, reduction="sum")
    loss = losses.NextItems(weights)
    ours = loss(hidden_MD, table_VD, batch.next_targets(loss.ahead), torch.ones(10))
    torch.testing.assert_close(ours, naive, rtol=1e-5, atol=1e-5)
    gradients = (torch.autograd.grad(each, (hidden_MD, table_VD)) for each in (ours, naive))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [(), (0.0, 1.0), (1.0, -0.1), (math.nan,), (1.0, math.inf)])
def test_weights_of_next_items(weights: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="above 0 for the next item"):
        losses.NextItems(weights)


@pytest.mark.parametrize("loss", [losses.FullSoftmax(), losses.NextItems(), losses.SampledSoftmax(), losses.GBCE()])
def test_no_targets_give_no_loss_and_no_gradient(loss: losses.Loss) -> None:
    hidden_MD = torch.empty(0, 4, requires_grad=True)
    table_VD = torch.randn(6, 4, requires_grad=True)
    total = loss(hidden_MD, table_VD, torch.empty((0, loss.ahead), dtype=torch.int64).squeeze(1), torch.ones(6))
    total.backward()
    assert total.item() == 0
    assert table_VD.grad is not None
    assert not table_VD.grad.any()


@pytest.mark.parametrize("loss", [losses.FullSoftmax(), losses.SampledSoftmax(8192), losses.GBCE(8192)])
def test_the_logits_are_never_held_at_once(loss: losses.Loss) -> None:
    """Largest tensor made in forward and backward, seen through torch's dispatcher."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numel = max(self.numel, result.numel())
            return result

    hidden_MD = torch.randn(4096, 8, requires_grad=True)
    table_VD = torch.randn(8192, 8, requires_grad=True)
    targets_M = torch.randint(0, 8192, (4096,))
    with Largest() as largest:
        loss(hidden_MD, table_VD, targets_M, torch.ones(8192)).backward()
    assert largest.numel <= memory.chunk_rows(8192, 8, "cpu") * 8192 <= memory.CPU_CACHE_ELEMENTS < 4096 * 8192


@pytest.mark.parametrize("n_items", [1, 100, 12_101, 26_744, 100_000, 1_000_000, 10**9])
@pytest.mark.parametrize("width", [8, 64, 512, 4096])
def test_logits_held_at_once_are_bounded_whatever_the_catalogue(n_items: int, width: int) -> None:
    for device in ("cpu", "cuda"):
        rows = memory.chunk_rows(n_items, width, device)
        assert rows == 1 or 4 * rows * n_items <= memory.MAX_CHUNK_BYTES


@pytest.mark.parametrize("loss", [losses.FullSoftmax(), losses.SampledSoftmax(500), losses.GBCE(500)])
def test_bfloat16_autocast_stays_close_and_finite(loss: losses.Loss) -> None:
    hidden_MD = torch.randn(300, 32, requires_grad=True)
    table_VD = torch.randn(1000, 32, requires_grad=True)
    targets_M, counts_V = torch.randint(0, 1000, (300,)), torch.ones(1000)
    torch.manual_seed(0)
    expected = loss(hidden_MD, table_VD, targets_M, counts_V)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        lower = loss(hidden_MD, table_VD, targets_M, counts_V)
    lower.backward()
    assert lower.item() == pytest.approx(expected.item(), rel=5e-3)
    assert table_VD.grad is not None
    assert torch.isfinite(table_VD.grad).all()


def loss_case(targets: int = 60, items: int = 90) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    hidden_MD = torch.randn(targets, 16, generator=generator, requires_grad=True)
    table_VD = torch.randn(items, 16, generator=generator, requires_grad=True)
    targets_M = torch.randint(0, items, (targets,), generator=generator)
    counts_V = torch.randint(1, 50, (items,), generator=generator)
    return hidden_MD, table_VD, targets_M, counts_V


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_sampled_softmax_with_logq_tends_to_full_softmax(power: float) -> None:
    hidden_MD, table_VD, targets_M, counts_V = loss_case()
    expected = losses.full_softmax(hidden_MD, table_VD, targets_M)
    torch.manual_seed(0)
    sampled = losses.SampledSoftmax(200_000, power)(hidden_MD, table_VD, targets_M, counts_V)
    assert sampled.item() == pytest.approx(expected.item(), rel=5e-3)
    gradients = (torch.autograd.grad(loss, (hidden_MD, table_VD)) for loss in (sampled, expected))
    for a, b in zip(*gradients, strict=True):
        assert torch.linalg.norm(a - b) < 0.05 * torch.linalg.norm(b)


def test_without_logq_popular_negatives_weigh_more() -> None:
    """Without the correction logQ, the loss of many popular negatives is far from full softmax."""
    hidden_MD, table_VD, targets_M, counts_V = loss_case()
    expected = losses.full_softmax(hidden_MD, table_VD, targets_M).item()
    torch.manual_seed(0)
    sampled = losses.SampledSoftmax(20_000, 1.0, logq=False)(hidden_MD, table_VD, targets_M, counts_V).item()
    assert abs(sampled - expected) > 0.3 * expected


def test_sampled_losses_equal_their_formulas_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_MD, table_VD, targets_M, counts_V = loss_case()
    drawn_N = torch.tensor([4, 4, 17, int(targets_M[0]), 88])
    log_q_V = (counts_V.double() ** 0.5 / (counts_V.double() ** 0.5).sum()).log()
    monkeypatch.setattr(losses, "_draw", lambda *_: drawn_N)
    softmax, with_target, gbce = torch.zeros(3, dtype=torch.float64)
    share = 5 / 89
    beta = share * (0.75 * (1 - 1 / share) + 1 / share)
    scores_MV = (hidden_MD @ table_VD.T).double()
    for scores_V, target in zip(scores_MV, targets_M.tolist(), strict=True):
        others = [n for n in range(5) if drawn_N[n] != target]
        corrected_V = scores_V - log_q_V - math.log(5)
        rest_N = corrected_V[drawn_N[others]]
        softmax = softmax - torch.cat([scores_V[target, None], rest_N]).log_softmax(0)[0]
        with_target = with_target - torch.cat([corrected_V[target, None], rest_N]).log_softmax(0)[0]
        negative = (1 - scores_V[drawn_N[others]].sigmoid()).log().sum()
        gbce = gbce - (beta * scores_V[target].sigmoid().log() + negative) / 6
    sampled = losses.SampledSoftmax(5, 0.5), losses.SampledSoftmax(5, 0.5, target_logq=True)
    for loss, expected in zip((*sampled, losses.GBCE(5)), (softmax, with_target, gbce), strict=True):
        ours = loss(hidden_MD, table_VD, targets_M, counts_V)
        assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
        grads, expected_grads = (
            torch.autograd.grad(sum_ * 0.5, (hidden_MD, table_VD), retain_graph=True) for sum_ in (ours, expected)
        )
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_negatives_that_are_all_the_target_cost_nothing() -> None:
    hidden_MD, table_VD = torch.randn(4, 3, requires_grad=True), torch.randn(1, 3, requires_grad=True)
    targets_M, counts_V = torch.zeros(4, dtype=torch.int64), torch.ones(1)
    loss = losses.SampledSoftmax(7)(hidden_MD, table_VD, targets_M, counts_V)
    loss.backward()
    assert loss.item() == 0
    assert hidden_MD.grad is not None
    assert not hidden_MD.grad.any()


def test_negatives_are_drawn_by_count_to_the_power() -> None:
    counts_V = torch.tensor([1, 4, 9, 0])
    torch.manual_seed(0)
    for power, shares in ((0.0, [0.25] * 4), (0.5, [1 / 6, 2 / 6, 3 / 6, 0]), (1.0, [1 / 14, 4 / 14, 9 / 14, 0])):
        drawn_N = losses._draw(60_000, counts_V, power)
        found = torch.bincount(drawn_N, minlength=4) / 60_000
        torch.testing.assert_close(found, torch.tensor(shares), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "options", [{"negatives": 0}, {"power": -1.0}, {"power": math.inf}, {"target_logq": True, "logq": False}], ids=str
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"loss.{next(iter(options))}"):
        losses.SampledSoftmax(**options)  # type: ignore[arg-type]
