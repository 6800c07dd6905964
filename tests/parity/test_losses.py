"""Full softmax against the naive one that holds every logit."""

import pytest
import torch
from torch.nn import functional as F

from lrec import losses


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


def test_float64_gradients_pass_gradcheck() -> None:
    hidden_MD = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    table_VD = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    targets_M = torch.tensor([0, 5, 2, 2])
    naive = torch.autograd.grad(
        F.cross_entropy(hidden_MD @ table_VD.T, targets_M, reduction="sum"), (hidden_MD, table_VD)
    )
    ours = torch.autograd.grad(losses.full_softmax(hidden_MD, table_VD, targets_M), (hidden_MD, table_VD))
    for a, b in zip(ours, naive, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_no_targets_give_no_loss_and_no_gradient() -> None:
    hidden_MD = torch.empty(0, 4, requires_grad=True)
    table_VD = torch.randn(6, 4, requires_grad=True)
    loss = losses.full_softmax(hidden_MD, table_VD, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert table_VD.grad is not None
    assert not table_VD.grad.any()


def test_the_logits_are_never_held_at_once() -> None:
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
        losses.full_softmax(hidden_MD, table_VD, targets_M).backward()
    assert largest.numel <= losses.CHUNK_ELEMENTS < 4096 * 8192


def test_bfloat16_autocast_stays_close_and_finite() -> None:
    hidden_MD = torch.randn(300, 32, requires_grad=True)
    table_VD = torch.randn(1000, 32, requires_grad=True)
    targets_M = torch.randint(0, 1000, (300,))
    expected = losses.full_softmax(hidden_MD, table_VD, targets_M)
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses.full_softmax(hidden_MD, table_VD, targets_M)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)
    assert table_VD.grad is not None
    assert torch.isfinite(table_VD.grad).all()
