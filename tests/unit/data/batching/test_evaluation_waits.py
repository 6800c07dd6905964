"""Batches on the meta device, which has shapes but no numbers, so that no number can be read."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from host_waits import HostWaits
from lrec.data.batching.eval_batches import EvalBatch, EvalBatches
from lrec.data.splits.rules import UserSplit
from lrec.evaluation.baselines import Baselines
from lrec.evaluation.evaluator import Evaluation
from lrec.model import losses
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.transformer import Transformer
from lrec.ranking.scoring import Scores, score

META = torch.device("meta")
ARCHITECTURES = {
    "softmax": Architecture(),
    "hstu": Architecture(attention="hstu", mlp="none", position_bias=True, time="past"),
    "times": Architecture(time="input"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_is_evaluated_without_asking_the_device(  # type: ignore[no-untyped-def]
    make_store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    rows = [(f"{user:02}", str(random.integers(300)), place) for user in range(90) for place in range(12)]
    split = UserSplit(validation=0.4, test=0.2)(make_store(rows))
    config = TransformerConfig(len(split.catalogue_V), 8, 2, 12, 3, architecture=ARCHITECTURES[name])
    with_times = config.architecture.time != "none"
    here = next(iter(EvalBatches(split, split.val_targets, 8, with_times=with_times)))

    net = Transformer(config).to(META)
    batch = EvalBatch(*(None if part is None else part.to(META) for part in here))
    baselines, evaluation = Baselines(split, META), Evaluation(torch.as_tensor(split.counts_V).to(META))
    baselines.score("popularity", batch)  # the first batch brings the order of the items to the device

    def head(hidden_MD: Tensor, table_VD: Tensor) -> Scores:
        return score(hidden_MD, table_VD, batch.targets_M, batch.seen_targets_S, batch.seen_items_S, 10)

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # the meta device has none
    with HostWaits() as waits, torch.inference_mode():
        scores = net(batch.items_BL, head, positions_M=batch.positions_M, times_BT=batch.times_BT)
        evaluation.update(scores, batch)
        evaluation.update(baselines.score("popularity", batch), batch)
    assert scores.rank_B.device == META
    assert waits.operators > 100
    assert not waits.seen


class Deterministic(TorchFunctionMode):
    """Refuses what `torch.use_deterministic_algorithms` refuses on a GPU, here the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            return torch.ones_like(args[0], device="cpu")
        assert func is not Tensor.cumsum or args[0].device != META or not args[0].is_floating_point()
        return func(*args, **(kwargs or {}))


def test_no_device_adds_up_floats_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    one_M, pairs_P = torch.ones(3, device=META), torch.zeros(4, dtype=torch.int64, device=META)
    targets_M, counts_V = pairs_P[:3], torch.ones(9, dtype=torch.int64, device=META)
    batch = EvalBatch(
        pairs_P, pairs_P, targets_M, one_M, pairs_P, pairs_P, pairs_P, None, None, pairs_P, pairs_P, targets_M
    )
    scores = Scores(one_M, one_M, one_M, torch.zeros(3, 9, dtype=torch.int64, device=META), targets_M[:, None])
    with Deterministic():
        losses.SampledSoftmax(5, power=0.5)(
            torch.ones(3, 2, device=META), counts_V[:, None].float().expand(9, 2), targets_M, counts_V
        )
        Evaluation(counts_V, sets=True).update(scores, batch)
