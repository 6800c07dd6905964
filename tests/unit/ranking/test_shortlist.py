"""Lists by scores in bfloat16 are those of exact scores."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lrec.ranking import scoring, shortlist
from lrec.ranking.scoring import top_items

K, N_ROWS, N_ITEMS, WIDTH = 10, 400, 3000, 8
NOTHING = torch.empty(0, dtype=torch.int64)


@pytest.fixture(autouse=True)
def by_shortlist(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of 300 items or so, whatever the processor."""
    monkeypatch.setattr(scoring, "pays", lambda n_rows, table_HD, k: True)
    monkeypatch.setattr(scoring, "CPU_PIECE_ROWS", 16)
    monkeypatch.setattr(scoring, "CPU_PIECE_BYTES", 2 * 16 * 300)


def whole_numbers(n: int, most: int, seed: int) -> Tensor:
    """Vectors whose products float32 computes without any error, and bfloat16 with a large one."""
    return torch.randint(-most, most + 1, (n, WIDTH), generator=torch.Generator().manual_seed(seed)).float()


def shifted(by: int) -> Callable[[Tensor, Tensor], None]:
    """Make all scores larger by a thousand times as much."""

    def change(hidden_BD: Tensor, table_VD: Tensor) -> None:
        hidden_BD[:, 0], table_VD[:, 0] = 1000.0, by

    return change


def alike(hidden_BD: Tensor, table_VD: Tensor) -> None:
    """Make many items tie."""
    table_VD[:] = table_VD[torch.arange(N_ITEMS) % 100]


def nothing_to_tell_apart(hidden_BD: Tensor, table_VD: Tensor) -> None:
    """Make all items tie for some rows."""
    hidden_BD[::3] = 0.0


def of_all_sizes(hidden_BD: Tensor, table_VD: Tensor) -> None:
    """Make some items' vectors a thousand times as long."""
    table_VD[::7] *= 1024


@pytest.mark.parametrize("k", [1, K, 40, 200])
@pytest.mark.parametrize(
    "change",
    [None, shifted(800), shifted(-800), alike, nothing_to_tell_apart, of_all_sizes],
    ids=["as they are", "all positive", "all negative", "many alike", "all alike", "of all sizes"],
)
def test_lists_are_exact(change: Callable[[Tensor, Tensor], None] | None, k: int) -> None:
    hidden_BD, table_VD = whole_numbers(N_ROWS, 400, 0), whole_numbers(N_ITEMS, 400, 1)
    if change is not None:
        change(hidden_BD, table_VD)
    rows_S, items_S = torch.arange(N_ROWS).repeat_interleave(20), torch.arange(20 * N_ROWS) * 37 % N_ITEMS
    found = top_items(hidden_BD, table_VD, rows_S, items_S, k)
    scores_BV = hidden_BD.double() @ table_VD.double().T
    scores_BV[rows_S, items_S] = -math.inf
    best = scores_BV.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.items_BK, best.indices[:, :k])
    assert torch.equal(found.scores_BK, best.values[:, :k].float())


def test_few_scores_are_computed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "ALONE", 0)  # all that may be among the best
    computed = []
    exact = shortlist.Shortlist._exact
    monkeypatch.setattr(shortlist.Shortlist, "_exact", lambda *args: computed.append(len(args[1])) or exact(*args))
    generator = torch.Generator().manual_seed(0)
    hidden_BD, table_VD = (torch.randn(n, 64, generator=generator) for n in (N_ROWS, N_ITEMS))
    top_items(hidden_BD, table_VD, NOTHING, NOTHING, K)
    assert N_ROWS * K <= sum(computed) <= N_ROWS * 8 * K


def test_numbers_that_are_none_or_too_large() -> None:
    hidden_BD, table_VD = torch.ones(20, 1), torch.arange(float(N_ITEMS))[:, None].clone()
    hidden_BD[1], hidden_BD[2] = math.nan, math.inf
    table_VD[N_ITEMS - 1] = math.nan
    found = top_items(hidden_BD, table_VD, NOTHING, NOTHING, 3).items_BK.tolist()
    assert found[0] == [N_ITEMS - 2, N_ITEMS - 3, N_ITEMS - 4]
    assert found[1] == [-1, -1, -1]
    assert found[2] == [1, 2, 3]


def test_a_row_s_list_does_not_depend_on_the_other_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_BD, table_VD = (torch.randn(n, 64, generator=generator) for n in (500, N_ITEMS))
    together, apart = (
        top_items(hidden_BD[rows], table_VD, NOTHING, NOTHING, K) for rows in (slice(500), slice(90, 93))
    )
    assert torch.equal(together.items_BK[90:93], apart.items_BK)
    torch.testing.assert_close(together.scores_BK[90:93], apart.scores_BK)
