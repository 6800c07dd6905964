"""The LightningModule as a Lightning user meets it: called with histories, it gives scores."""

import torch

from lrec import SequentialRecommender
from lrec.model.transformer import Transformer


def test_called_with_histories_it_gives_every_item_s_score() -> None:
    model = SequentialRecommender(size="3k")
    model.net = Transformer(model.network_config(n_items=11, max_len=6), seed=1)
    model.eval()
    histories = [[3, 1, 4], [1, 5, 9, 2, 6], [10]]
    items_BL = torch.tensor([history + [0] * (5 - len(history)) for history in histories])
    scores_BV = model(items_BL, torch.tensor([3, 5, 1]))
    assert scores_BV.shape == (3, 11)
    table_VD = model.net.items.weight
    for history, scores_V in zip(histories, scores_BV, strict=True):
        hidden_LD = model.net(torch.tensor([history]), lambda hidden_BLD, table: hidden_BLD[0])
        torch.testing.assert_close(scores_V, hidden_LD[-1] @ table_VD.T)
        torch.testing.assert_close(scores_V, model(torch.tensor([history]))[0])
