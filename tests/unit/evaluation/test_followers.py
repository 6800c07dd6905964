"""Scores from the items that followed: the closed form against scores computed for every row and item."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrec.evaluation.baselines import EDGES, STEPS_BACK, Followers, edges_of
from lrec.ranking.best_items import Pairs
from lrec.ranking.scoring import score

ITEMS = 9
COUNTS = st.lists(st.sampled_from([1, 1, 1, 2, 5]), min_size=ITEMS, max_size=ITEMS)
HISTORY = st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=7)
Row = tuple[list[int], int, set[int]]  # a history, its target, and the seen items
ROWS = st.lists(
    st.tuples(HISTORY, st.integers(-1, ITEMS - 1), st.sets(st.integers(0, ITEMS - 1))), min_size=1, max_size=5
)


def check(followers: Followers, rows: list[Row], scores_BV: np.ndarray, k: int, seen: list[set[int]]) -> None:
    """Check ranks, lists and losses against these scores."""
    length = max(len(items) for items, _, _ in rows)
    items_BL = torch.tensor([items + [0] * (length - len(items)) for items, _, _ in rows])
    last_B = torch.tensor([row * length + len(items) - 1 for row, (items, _, _) in enumerate(rows)])
    targets_B = torch.tensor([target for _, target, _ in rows])
    pairs = Pairs(
        torch.tensor([row for row, items in enumerate(seen) for _ in items], dtype=torch.int64),
        torch.tensor([item for items in seen for item in sorted(items)], dtype=torch.int64),
    )
    found = followers.score(items_BL, last_B, targets_B, pairs, k)
    expected = score(torch.from_numpy(scores_BV).float(), torch.eye(ITEMS), targets_B, *pairs, k)
    for name in ("rank_B", "rank_unseen_B", "top_BK", "top_unseen_BK"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
    assert found.loss_B.tolist() == pytest.approx(expected.loss_B.tolist(), abs=1e-5, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, ITEMS - 1), st.integers(0, ITEMS - 1)), min_size=1, max_size=60),
    COUNTS,
    ROWS,
    st.integers(1, ITEMS),
)
def test_the_next_item_equals_a_score_for_every_row_and_item(
    transitions: list[tuple[int, int]], counts: list[int], rows: list[Row], k: int
) -> None:
    share_V = np.array(counts) / sum(counts)
    users_N = np.arange(len(transitions)).repeat(2)
    chain = Followers(edges_of(users_N, np.array(transitions).flatten(), ITEMS), share_V, torch.device("cpu"))
    followed_VV = np.zeros((ITEMS, ITEMS))
    np.add.at(followed_VV, tuple(np.array(transitions).T), 1)
    scores_BV = np.log(followed_VV[[items[-1] for items, _, _ in rows]] + share_V)
    check(chain, rows, scores_BV, k, [seen for _, _, seen in rows])


@settings(max_examples=50, deadline=None)
@given(st.lists(HISTORY, min_size=1, max_size=8), COUNTS, ROWS, st.integers(1, ITEMS), st.sampled_from([2, 500]))
def test_the_graph_equals_a_score_for_every_row_and_item(
    trained: list[list[int]], counts: list[int], rows: list[Row], k: int, neighbours: int
) -> None:
    share_V = np.array(counts) / sum(counts)
    users_N = np.repeat(np.arange(len(trained)), [len(items) for items in trained])
    prior = min(1, 256 / 10_000 / (2 * share_V.max()))
    cpu = torch.device("cpu")
    edges = edges_of(users_N, np.concatenate(trained), ITEMS, EDGES, neighbours)
    graph = Followers(edges, share_V, cpu, prior, EDGES[0] * STEPS_BACK[0], STEPS_BACK)
    edges_VV = np.zeros((ITEMS, ITEMS))
    for items in trained:
        for a, one in enumerate(items):
            for b in range(a + 1, min(a + 6, len(items))):
                edges_VV[one, items[b]] += 625 * 0.8 ** (b - a - 1)
    for row_V in edges_VV:
        strongest = sorted(range(ITEMS), key=lambda item: (-round(row_V[item], 6), item))[:neighbours]
        row_V[[item for item in range(ITEMS) if item not in strongest]] = 0
    reached_BV = np.zeros((len(rows), ITEMS))
    for row, (items, _, _) in enumerate(rows):
        for back, item in enumerate(items[::-1][:5]):
            reached_BV[row] += 16 * 0.5**back * edges_VV[item]
    scores_BV = np.log(reached_BV.round() / 10_000 + prior * share_V)
    check(graph, rows, scores_BV, k, [set(items) for items, _, _ in rows])
