"""The additions to scores of seen items against loops over the history, in losses, scores, lists and decoding."""

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lrec.errors import UserError
from lrec.model import losses
from lrec.model.attention_context import KeyValueCache
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.sharded_table import all_scores, among
from lrec.model.transformer import Transformer
from lrec.ranking.scoring import score, top_items
from lrec.serving.recommender import Model
from lrec.training.module import SequentialRecommender

N_ITEMS, LENGTH = 37, 20
LENGTHS = (20, 13, 1, 7, 20)
NOTHING = torch.zeros(0, dtype=torch.int64)
SEEN = Architecture(seen=True)


def network(architecture: Architecture = SEEN) -> Transformer:
    net = Transformer(TransformerConfig(N_ITEMS, LENGTH, 2, 16, 2, architecture=architecture), 0)
    with torch.no_grad():
        assert not net.get_parameter("seen.weight").any()  # a network begins as without the additions
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def histories() -> tuple[Tensor, Tensor, Tensor]:
    """Rows with many repeats, all positions of each history, and targets of which many are in the history."""
    random = torch.Generator().manual_seed(1)
    items_BL = torch.randint(12, (len(LENGTHS), LENGTH), generator=random)
    for row, length in zip(items_BL, LENGTHS, strict=True):
        row[length:] = 0
    positions_M = torch.cat([row * LENGTH + torch.arange(length) for row, length in enumerate(LENGTHS)])
    targets_M = torch.randint(N_ITEMS, (len(positions_M),), generator=random)
    targets_M[::3] = items_BL.flatten()[positions_M][::3]
    return items_BL, positions_M, targets_M


def naive_scores(net: Transformer, items_BL: Tensor, positions_M: Tensor, blank_BL: Tensor | None = None) -> Tensor:
    """hidden @ table.T, and for each item of the history the product with the vector of its age."""
    assert net.seen is not None
    hidden_MD = net(items_BL, lambda hidden, table: hidden, positions_M=positions_M, blank_BL=blank_BL)
    rows = []
    for hidden_D, position in zip(hidden_MD, positions_M.tolist(), strict=True):
        row, last = divmod(position, items_BL.shape[1])
        scores = list(net.items.weight @ hidden_D)
        for item in range(N_ITEMS):
            places = [p for p in range(last + 1) if items_BL[row, p] == item]
            places = [p for p in places if blank_BL is None or not blank_BL[row, p]]
            if places:
                age = last - places[-1]
                scores[item] = scores[item] + hidden_D @ net.seen.weight[int(np.log2(age + 1))]
        rows.append(torch.stack(scores))
    return torch.stack(rows)


def test_full_softmax_and_its_gradients() -> None:
    net, (items_BL, positions_M, targets_M) = network(), histories()
    expected = F.cross_entropy(naive_scores(net, items_BL, positions_M), targets_M, reduction="sum")
    loss = net(items_BL, lambda h, t: losses.full_softmax(h, t, targets_M), positions_M=positions_M)
    torch.testing.assert_close(loss, expected)
    gradients = (torch.autograd.grad(0.5 * each, [*net.parameters()]) for each in (loss, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_other_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negatives that are drawn twice, that are in histories, and that are targets."""
    net, (items_BL, positions_M, targets_M) = network(), histories()
    drawn_N = torch.tensor([4, 4, 17, int(targets_M[0]), 30, 2])
    monkeypatch.setattr(losses, "_draw", lambda *_: drawn_N)
    scores_MV, counts_V = naive_scores(net, items_BL, positions_M), torch.ones(N_ITEMS)
    target_M = scores_MV.gather(1, targets_M[:, None])
    hit_MN = drawn_N == targets_M[:, None]
    corrected_MN = scores_MV[:, drawn_N] - np.log(len(drawn_N) / N_ITEMS)
    softmax = -torch.cat([target_M, corrected_MN.masked_fill(hit_MN, -np.inf)], 1).log_softmax(1)[:, 0].sum()
    share = len(drawn_N) / (N_ITEMS - 1)
    beta = share * (0.75 * (1 - 1 / share) + 1 / share)
    of_negatives = F.softplus(scores_MV[:, drawn_N]).masked_fill(hit_MN, 0.0).sum()
    gbce = (beta * F.softplus(-target_M).sum() + of_negatives) / (len(drawn_N) + 1)
    next_M = targets_M.roll(1)
    mixed = -(0.75 * target_M[:, 0] + 0.25 * scores_MV.gather(1, next_M[:, None])[:, 0] - scores_MV.logsumexp(1)).sum()
    cases = (
        (losses.SampledSoftmax(len(drawn_N)), targets_M, softmax),
        (losses.GBCE(len(drawn_N)), targets_M, gbce),
        (losses.NextItems((3.0, 1.0)), torch.stack([targets_M, next_M], 1), mixed),
    )
    for loss, targets, expected in cases:
        ours = net(items_BL, lambda h, t: loss(h, t, targets, counts_V), positions_M=positions_M)  # noqa: B023
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
        gradients = (
            torch.autograd.grad(each, [*net.parameters()], retain_graph=True, allow_unused=True)
            for each in (ours, expected)
        )
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_scores_ranks_and_lists() -> None:
    net, (items_BL, positions_M, targets_M) = network().eval(), histories()
    blank_BL = torch.rand(items_BL.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    blank_BL[:, 0] = False
    candidates_N = torch.arange(0, N_ITEMS, 2)
    for blank in (None, blank_BL):
        given = {"positions_M": positions_M, "blank_BL": blank}
        expected_MV = naive_scores(net, items_BL, positions_M, blank)
        torch.testing.assert_close(net(items_BL, all_scores, **given), expected_MV, rtol=1e-5, atol=1e-5)
        found = net(items_BL, lambda h, t: score(h, t, targets_M, NOTHING, NOTHING, 5), **given)
        torch.testing.assert_close(found.loss_B, F.cross_entropy(expected_MV, targets_M, reduction="none"))
        above_MV = expected_MV > expected_MV.gather(1, targets_M[:, None])
        assert torch.equal(found.rank_B, 1.0 + above_MV.sum(1))
        assert torch.equal(found.top_BK, expected_MV.topk(5).indices)
        few = net(items_BL, lambda h, t: top_items(h, among(t, candidates_N), NOTHING, NOTHING, 3), **given)
        assert torch.equal(candidates_N[few.items_BK], candidates_N[expected_MV[:, candidates_N].topk(3).indices])


@pytest.mark.parametrize("attention", ["softmax", "hstu"])
@torch.inference_mode()
def test_decoding_with_a_cache_knows_the_whole_history(attention: str) -> None:
    """The cache has the earlier items, for attention with and without a cache of its own."""
    net = network(Architecture(seen=True, attention=attention, positions="rotary", mlp="none")).eval()
    items_BL, lengths_B, rows_B = histories()[0], torch.tensor(LENGTHS).clamp(max=15), torch.arange(len(LENGTHS))
    for row, length in zip(items_BL, lengths_B, strict=True):
        row[length:] = 0
    cache, added = KeyValueCache(len(LENGTHS), LENGTH), torch.randint(12, (5, len(LENGTHS)))
    found = net(items_BL[:, :15], all_scores, cache=cache, positions_M=rows_B * 15 + lengths_B - 1)
    cache.filled_B = lengths_B
    for step in range(6):
        expected = naive_scores(net, items_BL, rows_B * LENGTH + lengths_B - 1 + step)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        if step < 5:
            items_BL[rows_B, lengths_B + step] = added[step]
            found = net(added[step][:, None], all_scores, cache=cache, positions_M=rows_B)


def test_recommendations_and_the_onnx_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    net = network().eval()
    model = Model(net, pl.Series([f"m{item}" for item in range(N_ITEMS)]), {"step": 7})
    items_BL, lengths = histories()[0], np.array(LENGTHS)
    with torch.inference_mode():
        last_B = torch.arange(len(LENGTHS)) * LENGTH + torch.tensor(LENGTHS) - 1
        expected_BV = naive_scores(net, items_BL, last_B)
    lists = [[f"m{item}" for item in row[:n]] for row, n in zip(items_BL.tolist(), LENGTHS, strict=True)]
    for allowed in (None, [f"m{item}" for item in range(20)]):
        found = model.recommend(lists, k=5, exclude_seen=False, allowed=allowed)
        best = expected_BV[:, : 20 if allowed else None].topk(5)
        assert found["items"].to_list() == [[f"m{item}" for item in row] for row in best.indices.tolist()]
        np.testing.assert_allclose(np.array(found["scores"].to_list()), best.values, rtol=0, atol=1e-5)
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` has it")
    from lrec.serving.onnx import write_onnx

    write_onnx(model, tmp_path / "model.onnx", 5)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    scores_BV, *_ = session.run(None, {"items": items_BL.numpy(), "lengths": lengths})
    np.testing.assert_allclose(scores_BV, expected_BV.numpy(), rtol=0, atol=1e-4)


def test_a_loss_that_does_not_add_to_seen_items_is_refused() -> None:
    class Own(losses.FullSoftmax):
        adds_to_seen = False

    with pytest.raises(UserError, match=r"Own does not add to the scores of seen items .*seen to false"):
        SequentialRecommender(size="3k", architecture=SEEN, loss=Own())
