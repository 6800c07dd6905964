"""An evaluation batch on the meta device, which has shapes but no numbers, so that no number can be read."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from host_waits import HostWaits
from lrec.data.batching.eval_batches import EvalBatch, EvalLoader, EvalTask
from lrec.data.splits.rules import UserSplit
from lrec.evaluation.baselines import Baselines
from lrec.evaluation.evaluation import Evaluation
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
    task = EvalTask(*split.val_targets, True, with_times=config.architecture.time != "none")
    here = next(iter(EvalLoader(split, task, 8)))

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
