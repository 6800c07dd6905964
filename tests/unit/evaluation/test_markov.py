"""The Markov chain in closed form against the same scores laid out for every row and item."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrec.evaluation.markov import MarkovChain
from lrec.ranking.pairs import Pairs
from lrec.ranking.scoring import score

ITEMS = 9


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, ITEMS - 1), st.integers(0, ITEMS - 1)), min_size=1, max_size=60),
    st.lists(st.sampled_from([1, 1, 1, 2, 5]), min_size=ITEMS, max_size=ITEMS),
    st.lists(
        st.tuples(st.integers(0, ITEMS - 1), st.integers(-1, ITEMS - 1), st.sets(st.integers(0, ITEMS - 1))),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, ITEMS),
)
def test_it_equals_a_score_for_every_row_and_item(
    transitions: list[tuple[int, int]], counts: list[int], rows: list[tuple[int, int, set[int]]], k: int
) -> None:
    from_N, to_N = np.array(transitions).T
    share_V = np.array(counts) / sum(counts)
    seen = Pairs(
        torch.tensor([row for row, (_, _, items) in enumerate(rows) for _ in items], dtype=torch.int64),
        torch.tensor([item for _, _, items in rows for item in sorted(items)], dtype=torch.int64),
    )
    last_B, targets_B = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    found = MarkovChain(from_N, to_N, share_V, torch.device("cpu")).score(last_B, targets_B, seen, k)
    followed_VV = np.zeros((ITEMS, ITEMS))
    np.add.at(followed_VV, (from_N, to_N), 1)
    scores_BV = torch.from_numpy(np.log(followed_VV[last_B.numpy()] + share_V)).float()
    expected = score(scores_BV, torch.eye(ITEMS), targets_B, seen.rows_S, seen.items_S, k)
    for name in ("rank_B", "rank_unseen_B", "top_BK", "top_unseen_BK"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
    assert found.loss_B.tolist() == pytest.approx(expected.loss_B.tolist(), abs=1e-5, nan_ok=True)
