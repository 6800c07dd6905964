"""The item-to-item graph in closed form against the same scores laid out for every row and item."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrec.evaluation import item_graph
from lrec.evaluation.item_graph import ItemGraph
from lrec.ranking.pairs import Pairs
from lrec.ranking.scoring import score

ITEMS = 8
HISTORY = st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=7)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(HISTORY, min_size=1, max_size=8),
    st.lists(st.sampled_from([1, 1, 1, 2, 5]), min_size=ITEMS, max_size=ITEMS),
    st.lists(st.tuples(HISTORY, st.integers(-1, ITEMS - 1)), min_size=1, max_size=5),
    st.integers(1, ITEMS),
    st.sampled_from([2, 500]),
)
def test_it_equals_a_score_for_every_row_and_item(
    trained: list[list[int]], counts: list[int], rows: list[tuple[list[int], int]], k: int, neighbours: int
) -> None:
    share_V = np.array(counts) / sum(counts)
    users_N = np.repeat(np.arange(len(trained)), [len(items) for items in trained])
    seen = Pairs(
        torch.tensor([row for row, (items, _) in enumerate(rows) for _ in set(items)]),
        torch.tensor([item for items, _ in rows for item in sorted(set(items))]),
    )
    last = [(row, item, back) for row, (items, _) in enumerate(rows) for back, item in enumerate(items[::-1][:5])]
    targets_B = torch.tensor([target for _, target in rows])
    with patch.object(item_graph, "NEIGHBOURS", neighbours):
        graph = ItemGraph(users_N, np.concatenate(trained), share_V, torch.device("cpu"))
    found = graph.score(*map(torch.tensor, zip(*last, strict=True)), targets_B, seen, k)
    edges_VV = np.zeros((ITEMS, ITEMS))
    for items in trained:
        for a, one in enumerate(items):
            for b in range(a + 1, min(a + 6, len(items))):
                edges_VV[one, items[b]] += 625 * 0.8 ** (b - a - 1)
    for row_V in edges_VV:
        strongest = sorted(range(ITEMS), key=lambda item: (-round(row_V[item], 6), item))[:neighbours]
        row_V[[item for item in range(ITEMS) if item not in strongest]] = 0
    reached_BV = np.zeros((len(rows), ITEMS))
    for row, item, back in last:
        reached_BV[row] += 16 * 0.5**back * edges_VV[item]
    prior = min(1, 256 / 10_000 / (2 * share_V.max()))
    scores_BV = torch.from_numpy(np.log(reached_BV.round() / 10_000 + prior * share_V)).float()
    expected = score(scores_BV, torch.eye(ITEMS), targets_B, seen.rows_S, seen.items_S, k)
    for name in ("rank_B", "rank_unseen_B", "top_BK", "top_unseen_BK"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
    assert found.loss_B.tolist() == pytest.approx(expected.loss_B.tolist(), abs=1e-5, nan_ok=True)
