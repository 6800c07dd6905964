"""Ranks and lists against a sort in plain Python, metrics against scikit-learn and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score
from torch.nn import functional as F
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_reciprocal_rank

from lrec.common import cpu_threads
from lrec.data.batching.eval_batches import EvalBatch
from lrec.evaluation.evaluator import Evaluation
from lrec.evaluation.metrics import KS
from lrec.ranking import scoring
from lrec.ranking.scoring import Scores, score, top_items

B, D = 40, 6


def make_case(n_items: int, levels: int | None, seed: int = 0):  # type: ignore[no-untyped-def]
    """Hidden states, a table (with many tied scores if `levels` is small), targets and seen pairs."""
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        hidden_BD, table_VD = torch.randn(B, D, generator=generator), torch.randn(n_items, D, generator=generator)
    else:
        hidden_BD = torch.randint(-1, 2, (B, D), generator=generator).float()
        table_VD = torch.randint(-levels, levels + 1, (n_items, D), generator=generator).float()
    targets_B = torch.randint(-1, n_items, (B,), generator=generator)
    seen_BV = torch.rand(B, n_items, generator=generator) < 0.3
    rows_S, items_S = seen_BV.nonzero(as_tuple=True)
    return hidden_BD, table_VD, targets_B, rows_S, items_S, seen_BV


def batch_of(targets_B: torch.Tensor, weights_B: torch.Tensor) -> EvalBatch:
    """A batch of targets that are already scored."""
    nothing = torch.empty(0, dtype=torch.int64)
    return EvalBatch(nothing, nothing, targets_B, weights_B, nothing, nothing, nothing)


def naive_rank(scores: list[float], target: int, candidates: list[int]) -> float:
    above = sum(scores[item] > scores[target] for item in candidates if item != target)
    tied = sum(scores[item] == scores[target] for item in candidates if item != target)
    return 1 + above + tied / 2


@pytest.fixture(params=["on a CPU", "elsewhere"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compute on the path of a CPU, or on the path that never asks a device for a number."""
    if request.param == "elsewhere":
        monkeypatch.setattr(cpu_threads, "is_cpu", lambda device: False)
    place: str = request.param
    return place


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize(
    ("n_items", "chunk", "k", "rows"),
    [
        (3, 16384, 10, 128),
        (70, 16384, 10, 7),
        (70, 16, 10, 128),
        (130, 64, 1, 9),
        (331, 16384, 5, 128),
        (2100, 999, 3, 7),
    ],
)
def test_scores_equal_a_naive_sort(  # type: ignore[no-untyped-def]
    n_items: int, chunk: int, k: int, rows: int, levels: int | None, place: str, monkeypatch
) -> None:
    monkeypatch.setattr(scoring, "PIECE_BYTES", 4 * chunk * min(rows, B))
    monkeypatch.setattr(scoring, "PIECE_ROWS", rows)
    monkeypatch.setattr(scoring, "CPU_PIECE_BYTES", 4 * chunk * min(rows, B))
    monkeypatch.setattr(scoring, "CPU_PIECE_ROWS", rows)
    hidden_BD, table_VD, targets_B, rows_S, items_S, seen_BV = make_case(n_items, levels)
    result = score(hidden_BD, table_VD, targets_B, rows_S, items_S, k)
    lists = top_items(hidden_BD, table_VD, rows_S, items_S, k)
    assert torch.equal(lists.items_BK, result.top_unseen_BK)
    logits_BV = hidden_BD @ table_VD.T
    for row in range(B):
        used_K = lists.items_BK[row] >= 0
        torch.testing.assert_close(lists.scores_BK[row][used_K], logits_BV[row][lists.items_BK[row][used_K]])
        assert (lists.scores_BK[row][~used_K] == -math.inf).all()
        scores, target = logits_BV[row].tolist(), int(targets_B[row])
        everything = list(range(n_items))
        unseen = [item for item in everything if not seen_BV[row, item]]
        for candidates, top_K in ((everything, result.top_BK[row]), (unseen, result.top_unseen_BK[row])):
            best = sorted(candidates, key=lambda item: (-scores[item], item))[:k]
            assert top_K.tolist() == best + [-1] * (len(top_K) - len(best))
        if target < 0:
            assert math.isnan(result.loss_B[row])
            assert result.rank_B[row] == result.rank_unseen_B[row] == math.inf
            continue
        assert result.rank_B[row] == naive_rank(scores, target, everything)
        expected = naive_rank(scores, target, unseen) if target in unseen else math.inf
        assert result.rank_unseen_B[row] == expected
        naive_loss = F.cross_entropy(logits_BV[row : row + 1], targets_B[row : row + 1])
        assert result.loss_B[row].item() == pytest.approx(naive_loss.item(), abs=1e-5)


def test_lists_of_many_pieces_find_what_rises_towards_the_end(place: str) -> None:
    """Every piece has better items than all before it, so that nothing found early may stop the search."""
    table_VD = torch.arange(40_000.0)[:, None]
    seen_rows_S, seen_items_S = torch.tensor([1, 1]), torch.tensor([39_999, 7])
    result = top_items(torch.tensor([[1.0], [1.0], [-1.0], [0.0]]), table_VD, seen_rows_S, seen_items_S, 3)
    assert result.items_BK.tolist() == [[39_999, 39_998, 39_997], [39_998, 39_997, 39_996], [0, 1, 2], [0, 1, 2]]


def test_scores_that_are_not_numbers_are_not_listed(place: str) -> None:
    hidden_BD, table_VD = torch.ones(2, 1), torch.arange(100.0)[:, None]
    hidden_BD[1] = math.nan
    empty = torch.empty(0, dtype=torch.int64)
    result = score(hidden_BD, table_VD, torch.tensor([99, 99]), empty, empty, 5)
    assert result.top_BK.tolist() == [[99, 98, 97, 96, 95], [-1] * 5]
    assert result.rank_B[0] == 1
    assert math.isnan(result.loss_B[1])
    assert not result.rank_B[1] <= 50


@pytest.mark.parametrize(("distinct", "n_items", "width"), [(1, 1000, 64), (5, 1000, 64), (7, 20_003, 16)])
def test_equal_rows_of_the_table_share_their_rank(distinct: int, n_items: int, width: int) -> None:
    """Whatever the last digits of their scores are, which depend on the place in a matrix product."""
    torch.manual_seed(0)
    kinds = torch.arange(n_items) % distinct
    table, hidden = torch.randn(distinct, width)[kinds], torch.randn(400, width)
    targets = torch.randint(n_items, (400,))
    none = torch.zeros(0, dtype=torch.int64)
    found = score(hidden, table, targets, none, none, 10)
    scores = hidden.double() @ table[:distinct].double().T
    count = kinds.bincount().double()
    higher = (scores > scores.gather(1, kinds[targets][:, None])).double() @ count.diag()
    expected = 1 + higher.sum(1) + (count[kinds[targets]] - 1) / 2
    torch.testing.assert_close(found.rank_B.double(), expected, rtol=0, atol=1e-6)


def test_a_constant_scorer_gets_the_middle_rank() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    result = score(torch.zeros(2, 3), torch.zeros(101, 3), torch.tensor([0, 77]), empty, empty, 50)
    assert result.rank_B.tolist() == [51, 51]
    assert result.top_BK[0].tolist() == list(range(50))


def test_metrics_equal_scikit_learn_and_torchmetrics() -> None:
    hidden_BD, table_VD, targets_B, *_ = make_case(80, None)
    targets_B = targets_B.clamp(min=0)
    empty = torch.empty(0, dtype=torch.int64)
    result = score(hidden_BD, table_VD, targets_B, empty, empty, 50)
    evaluation = Evaluation(torch.ones(80))
    evaluation.update(result, batch_of(targets_B, torch.ones(B)))
    figures = evaluation.compute()
    logits_BV = (hidden_BD @ table_VD.T).double().exp()  # torchmetrics takes scores <= 0 for misses
    relevance_BV = F.one_hot(targets_B, 80)
    for k in KS:
        expected = ndcg_score(relevance_BV.numpy(), logits_BV.numpy(), k=k)
        assert figures[f"NDCG@{k}"] == pytest.approx(expected, abs=1e-9)
        hits = [retrieval_hit_rate(s, r, top_k=k) for s, r in zip(logits_BV, relevance_BV, strict=True)]
        assert figures[f"HR@{k}"] == pytest.approx(np.mean(hits), abs=1e-7)
        mrr = [retrieval_reciprocal_rank(s, r, top_k=k) for s, r in zip(logits_BV, relevance_BV, strict=True)]
        assert figures[f"MRR@{k}"] == pytest.approx(np.mean(mrr), abs=1e-7)


def test_standard_errors_are_those_of_the_rows() -> None:
    hidden_BD, table_VD, targets_B, rows_S, items_S, _ = make_case(80, None)
    scores = score(hidden_BD, table_VD, targets_B, rows_S, items_S, 10)
    weights_B = torch.ones(B)
    weights_B[:5] = 0
    evaluation = Evaluation(torch.ones(80))
    for part in (slice(0, 17), slice(17, B)):
        evaluation.update(Scores(*(field[part] for field in scores)), batch_of(targets_B[part], weights_B[part]))
    figures = evaluation.compute()
    counted_B = weights_B.bool()
    loss_B = scores.loss_B[counted_B & (targets_B >= 0)].double().numpy()
    assert figures["targets"] == B - 5
    assert figures["loss_se"] == pytest.approx(loss_B.std() / math.sqrt(len(loss_B)))
    for suffix, rank_B in (("", scores.rank_B), ("_unseen", scores.rank_unseen_B)):
        rank_B = rank_B[counted_B].numpy()
        for k in KS:
            gain_B = np.where(rank_B <= k, 1 / np.log2(1 + rank_B), 0)
            assert figures[f"NDCG@{k}{suffix}_se"] == pytest.approx(gain_B.std() / math.sqrt(B - 5))


def test_coverage_and_popularity_equal_their_definitions() -> None:
    hidden_BD, table_VD, targets_B, rows_S, items_S, _ = make_case(70, None)
    counts_V = torch.arange(70)
    result = score(hidden_BD, table_VD, targets_B, rows_S, items_S, 50)
    evaluation = Evaluation(counts_V)
    evaluation.update(result, batch_of(targets_B, torch.ones(B)))
    figures = evaluation.compute()
    for k in KS:
        listed = [item for row in result.top_unseen_BK.tolist() for item in row[:k] if item >= 0]
        assert figures[f"coverage@{k}_unseen"] == pytest.approx(len(set(listed)) / 70)
        assert figures[f"popularity@{k}_unseen"] == pytest.approx(np.mean(listed))


def test_batches_and_filler_rows_change_nothing() -> None:
    case = make_case(60, 1)
    hidden_BD, table_VD, targets_B, rows_S, items_S, _ = case

    def evaluate(parts: list[torch.Tensor], filler: int) -> dict[str, float]:
        evaluation = Evaluation(torch.arange(60))
        for part in parts:
            keep_S = torch.isin(rows_S, part)
            local_S = torch.searchsorted(part, rows_S[keep_S])
            padded = torch.cat([part, part[:1].repeat(filler)])
            weights = torch.cat([torch.ones(len(part)), torch.zeros(filler)])
            scores = score(hidden_BD[padded], table_VD, targets_B[padded], local_S, items_S[keep_S], 50)
            evaluation.update(scores, batch_of(targets_B[padded], weights))
        return evaluation.compute()

    whole = evaluate([torch.arange(B)], 0)
    assert whole["targets_outside_catalogue"] == (targets_B < 0).sum()
    assert evaluate([torch.arange(0, 7), torch.arange(7, 30), torch.arange(30, B)], 3) == pytest.approx(whole, rel=1e-6)


def test_popularity_is_the_share_of_the_training_part() -> None:
    counts_V = torch.tensor([4.0, 1.0, 3.0])
    empty = torch.empty(0, dtype=torch.int64)
    result = score(torch.ones(3, 1), counts_V.log()[:, None], torch.arange(3), empty, empty, 50)
    assert result.loss_B.tolist() == pytest.approx([-math.log(share) for share in (0.5, 0.125, 0.375)], abs=1e-6)
    assert result.top_BK[0].tolist() == [0, 2, 1]
