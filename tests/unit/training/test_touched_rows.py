"""Updates of the touched rows alone against torch's AdamW and SGD on all rows."""

import pytest
import torch
from torch import Tensor

from lrec.model.config import TransformerConfig
from lrec.model.losses import GBCE, Loss, SampledSoftmax
from lrec.model.transformer import Transformer
from lrec.training.optim import Optimizer, Switch
from lrec.training.touched_rows import clip_by_norm

CONFIG = TransformerConfig(40, 6, 1, 8, 2)


def trained(
    loss: Loss, n_touched: int, touched_rows: bool, switch: Switch | None = None, steps: int = 6
) -> Transformer:
    """A network after some steps on the first `n_touched` items, and negatives among all."""
    net = Transformer(CONFIG, 0)
    optimizer, _ = Optimizer(lr=0.02, weight_decay=0.1, switch=switch, touched_rows=touched_rows).build(net, steps)
    random = torch.Generator().manual_seed(5)
    for step in range(steps):
        if switch is not None and step == switch.at:
            optimizer.begin_sgd(step)
        for micro in range(2):
            torch.manual_seed(2 * step + micro)
            items_BL, targets_M = (torch.randint(n_touched, shape, generator=random) for shape in ((30, 6), (180,)))

            def head(hidden_BLD: Tensor, table_VD: Tensor, targets_M: Tensor = targets_M) -> Tensor:
                return loss(hidden_BLD.flatten(0, 1), table_VD, targets_M, torch.ones(40))

            (net(items_BL, head) / 180).backward()
        clip_by_norm(list(net.parameters()), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return net


@pytest.mark.parametrize("switch", [None, Switch(at=3, lr=0.1, weight_decay=0.02)], ids=["adamw", "then sgd"])
@pytest.mark.parametrize("loss", [SampledSoftmax(300), GBCE(300)], ids=["softmax", "gBCE"])
def test_if_every_row_is_touched_it_is_the_same_optimizer(loss: Loss, switch: Switch | None) -> None:
    rows, dense = (trained(loss, 40, touched_rows, switch) for touched_rows in (True, False))
    for (name, mine), theirs in zip(rows.named_parameters(), dense.parameters(), strict=True):
        if name.endswith("qkv.bias"):  # scores do not depend on the keys' biases: their gradients are rounding alone
            mine, theirs = (torch.cat([bias[: CONFIG.width], bias[2 * CONFIG.width :]]) for bias in (mine, theirs))
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_rows_that_no_step_touches_stay_as_they_were() -> None:
    loss = SampledSoftmax(3)  # not all 40 are drawn
    before = Transformer(CONFIG, 0).items.weight.detach()
    after = trained(loss, 10, touched_rows=True).items.weight.detach()
    moved_V = (after != before).any(1)
    assert moved_V[:10].all()
    assert 0 < (~moved_V).sum() < 30


def test_no_gradient_of_the_tables_size_is_made() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            # Views of a table and operations in place return a table that exists already.
            old = {each.data_ptr() for each in args if isinstance(each, Tensor)}
            if isinstance(result, Tensor) and result.data_ptr() not in old:
                self.numel = max(self.numel, result.numel())
            return result

    net = Transformer(TransformerConfig(50_000, 6, 1, 8, 2))
    optimizer, _ = Optimizer(touched_rows=True).build(net, 3)
    items_BL, targets_M = torch.randint(50_000, (30, 6)), torch.randint(50_000, (180,))
    counts_V = torch.ones(50_000)
    largest = []
    for _ in range(2):  # the first step creates the moments
        with Largest() as seen:
            net(items_BL, lambda h_BLD, t: SampledSoftmax(64)(h_BLD.flatten(0, 1), t, targets_M, counts_V)).backward()
            optimizer.step()
            optimizer.zero_grad()
        largest.append(seen.numel)
    assert largest[0] == 50_000 * 8
    assert largest[1] < 50_000
