"""Each baseline against its definition, written out one user at a time."""

import math
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lrec
from lrec.data.batching.eval_batches import EvalBatch
from lrec.data.datamodule import SequenceDataModule
from lrec.errors import UserError
from lrec.evaluation import baselines
from lrec.evaluation.baselines import BASELINES, Baselines, edges_of
from lrec.ranking.best_items import Pairs
from lrec.ranking.common_order import CommonOrder, Leading, newest_first


@pytest.fixture(scope="module")
def data(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> SequenceDataModule:
    columns = {"user_column": "who", "item_column": "what", "time_column": "when"}
    data: SequenceDataModule = lrec.InteractionsDataModule(
        log_csv, **columns, data_dir=tmp_path_factory.mktemp("data"), max_len=6, targets_per_step=64
    )
    data.prepare_data()
    data.setup()
    return data


def expected_scores(name: str, log: dict[str, list[tuple[int, str]]], history: list[str]) -> dict[str, float]:
    """Score of each catalogue item after a history, from everyone's training interactions (time, item)."""
    training = [row for rows in log.values() for row in rows]
    share = {item: n / len(training) for item, n in Counter(item for _, item in training).items()}
    following: Counter[str] = Counter()
    if name == "recent-popularity":
        earliest = sorted(time for time, _ in training)[int(0.9 * len(training))]
        following = Counter(item for time, item in training if time >= earliest)
    if name == "markov":
        pairs = ((one[1], two[1]) for rows in log.values() for one, two in pairwise(rows))
        following = Counter(two for one, two in pairs if one == history[-1])
    prior = 1.0
    if name == "item-graph":
        prior = min(1.0, 0.8**4 * 0.5**4 / (2 * max(share.values())))
        edges: Counter[tuple[str, str]] = Counter()
        for rows in log.values():
            for (a, (_, one)), (b, (_, two)) in combinations(enumerate(rows), 2):
                if b - a <= 5:
                    edges[one, two] += 0.8 ** (b - a - 1)
        for back, last in enumerate(history[::-1][:5]):
            for (one, two), weight in edges.items():
                if one == last:
                    following[two] += 0.5**back * weight
    scores = {item: math.log(following[item] + prior * share[item]) for item in share}
    if name == "repeat-last":
        scores |= {item: 1.0 + place for place, item in enumerate(history)}
    return scores


@pytest.mark.parametrize("name", BASELINES)
def test_ranks_lists_and_losses_match_the_definition(name: str, data: SequenceDataModule, log_csv: Path) -> None:
    rows = pl.read_csv(log_csv).sort("who", "when", maintain_order=True)
    whole = {user: list(zip(t, i, strict=True)) for user, i, t in rows.group_by("who").all().iter_rows()}
    training = {user: row[:-2] if len(row) >= 3 else row for user, row in whole.items()}
    catalogue = data.item_table()["raw_id"].to_list()
    baselines = Baselines(data.cuts, torch.device("cpu"))
    checked = 0
    for batch in data.test_dataloader():
        scores = baselines.score(name, batch)
        for row, user in enumerate(data.store.raw_user_ids.gather(batch.users_M.numpy())[:60]):
            history = [item for _, item in whole[user][:-1] if item in catalogue]
            expected = expected_scores(name, training, history[-6:])
            values = np.array([expected[item] for item in catalogue])
            target = whole[user][-1][1]
            assert catalogue[batch.targets_M[row]] == target
            higher, tied = (values > expected[target] + 1e-6).sum(), (np.abs(values - expected[target]) <= 1e-6).sum()
            assert scores.rank_B[row].item() == 1 + higher + (tied - 1) / 2
            unseen = values[[item not in history for item in catalogue]]
            if target in history:
                assert scores.rank_unseen_B[row].item() == math.inf
            else:
                higher, tied = (unseen > expected[target] + 1e-6).sum(), (np.abs(unseen - expected[target]) <= 1e-6)
                assert scores.rank_unseen_B[row].item() == 1 + higher + (tied.sum() - 1) / 2
            best = values[scores.top_BK[row][:10].numpy()]
            np.testing.assert_allclose(best, np.sort(values)[::-1][:10], atol=1e-6)
            best = values[scores.top_unseen_BK[row][:10].numpy()]
            np.testing.assert_allclose(best, np.sort(unseen)[::-1][:10], atol=1e-6)
            if name == "repeat-last":
                assert math.isnan(scores.loss_B[row].item())
            else:
                share = math.exp(expected[target]) / np.exp(values).sum()
                assert scores.loss_B[row].item() == pytest.approx(-math.log(share), abs=1e-5)
            checked += 1
    assert checked > 50


ITEMS = 12
SOME = st.lists(st.integers(0, ITEMS - 1), unique=True)


@settings(max_examples=70, deadline=None)
@given(
    st.lists(st.sampled_from([-math.inf, 0.0, 1.0, 2.0]), min_size=ITEMS, max_size=ITEMS),
    st.lists(st.tuples(st.integers(-1, ITEMS - 1), SOME, SOME), min_size=1, max_size=4),
    st.integers(1, ITEMS + 2),
)
def test_a_common_order_equals_a_sort_of_each_row(
    scores: list[float], rows: list[tuple[int, list[int], list[int]]], k: int
) -> None:
    # Only items that would be listed in any case lead.
    own = [[item for item in items if scores[item] > -math.inf] for _, items, _ in rows]
    places = {(row, item): float(ITEMS - place) for row, items in enumerate(own) for place, item in enumerate(items)}
    rows_R, items_R = torch.tensor(sorted(places), dtype=torch.int64).reshape(-1, 2).T.contiguous()
    leading = Leading(rows_R, items_R, torch.tensor([places[key] for key in sorted(places)]).double())
    seen = Pairs(torch.tensor([r for r, (_, _, items) in enumerate(rows) for _ in items], dtype=torch.int64),
                 torch.tensor([item for _, _, items in rows for item in items], dtype=torch.int64))  # fmt: skip
    targets_B = torch.tensor([target for target, _, _ in rows])
    order = CommonOrder(torch.tensor(scores))
    for given_leading, given_seen in ((leading, seen), (leading, None), (None, seen), (None, None)):
        found = order.ranked(targets_B, k, given_leading, given_seen)
        for row, (target, _, seen_items) in enumerate(rows):
            listed = {item: score for item, score in enumerate(scores) if score > -math.inf}
            if given_leading is not None:
                listed |= {item: 100.0 - place for place, item in enumerate(own[row])}
            left_out = seen_items if given_seen is not None else []
            unseen = {item: value for item, value in listed.items() if item not in left_out}
            check_row(listed, target, k, found.rank_B[row].item(), found.top_BK[row].tolist())
            check_row(unseen, target, k, found.rank_unseen_B[row].item(), found.top_unseen_BK[row].tolist())


def check_row(values: dict[int, float], target: int, k: int, rank: float, top: list[int]) -> None:
    expected = math.inf
    if target in values:
        others = [value for item, value in values.items() if item != target]
        expected = 1 + sum(v > values[target] for v in others) + sum(v == values[target] for v in others) / 2
    assert rank == expected
    best = sorted(values, key=lambda item: (-values[item], item))[:k]
    assert top == best + [-1] * (k - len(best))


def test_the_newest_item_comes_first_and_once() -> None:
    rows_N, items_N = torch.tensor([0, 0, 0, 0, 2, 2, 2]), torch.tensor([3, 1, 3, 2, 1, 1, 0])
    leading = newest_first(rows_N, items_N, 4)
    assert leading.rows_R.tolist() == [0, 0, 0, 2, 2]
    assert leading.items_R.tolist() == [1, 2, 3, 0, 1]
    assert leading.scores_R.tolist() == [1, 3, 2, 2, 1]


@pytest.mark.parametrize("name", ["recent-popularity", "markov"])
def test_of_equal_counts_the_more_popular_item_is_first(name: str) -> None:
    """Also if their scores are equal in float32. After item 0, items 1 and 2 came 500 times each."""
    items_N = np.tile([0, 1, 0, 2], 500)
    store = SimpleNamespace(items_N=items_N, times_N=np.zeros(2000), offsets_U1=np.array([0, 2000]))
    cut = {"train_U": np.array([2000]), "catalogue_index_I": np.arange(3), "counts_V": np.array([9, 70_000, 70_001])}
    nothing, zeros_M = torch.zeros(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    batch = EvalBatch(zeros_M[:, None], torch.arange(3), torch.arange(3), zeros_M, zeros_M, nothing, nothing)
    found = Baselines(SimpleNamespace(store=store, **cut), torch.device("cpu")).score(name, batch)  # type: ignore[arg-type]
    order = {"recent-popularity": [0, 2, 1], "markov": [2, 1, 0]}[name]
    assert found.rank_B[order].tolist() == [1, 2, 3]
    assert found.top_BK.tolist() == [order] * 3


def test_recent_popularity_counts_a_duration(data: SequenceDataModule) -> None:
    rows = data.store.offsets_U1[:-1, None] + np.arange(data.cuts.train_U.max())
    rows = rows[np.arange(data.cuts.train_U.max()) < data.cuts.train_U[:, None]]
    times, items = data.store.times_N[rows], data.cuts.catalogue_index_I[data.store.items_N[rows]]
    batch = next(iter(data.test_dataloader()))
    for text, seconds in (("3m", 180), ("61s", 61), ("1h", 3600)):
        recent = np.bincount(items[times > times.max() - seconds], minlength=data.n_items)
        best = sorted(range(data.n_items), key=lambda i: (-recent[i], -data.item_counts_V[i], i))
        scores = Baselines(data.cuts, torch.device("cpu"), text).score("recent-popularity", batch)
        assert scores.top_BK[0].tolist() == best[:50]


@pytest.mark.parametrize("wrong", [0.0, 1.5, "a week", "7 d", "d", "0d"])
def test_what_is_recent_is_a_share_or_a_duration(wrong: float | str) -> None:
    with pytest.raises(UserError, match="recent_popularity"):
        lrec.SyntheticDataModule(recent_popularity=wrong)


def test_a_duration_needs_dates(tmp_path: Path) -> None:
    data = lrec.SyntheticDataModule(
        n_users=50, n_items=20, length=8, max_len=6, data_dir=tmp_path, recent_popularity="1d"
    )
    data.prepare_data()
    with pytest.raises(UserError, match="the data's times are no dates"):
        data.setup()


def test_without_times_there_is_nothing_recent(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(
        "".join(f"u{u} {' '.join(str((u + i) % 9) for i in range(5))}\n" for u in range(9))
    )
    data = lrec.InteractionsDataModule(
        tmp_path / "log.txt", data_dir=tmp_path / "data", max_len=4, targets_per_step=64, time_column=None
    )
    data.prepare_data()
    data.setup()
    names = Baselines(data.cuts, torch.device("cpu")).names
    assert names == ["popularity", "repeat-last", "markov", "item-graph"]


def test_only_one_of_several_processes_counts(data: SequenceDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("recent-popularity", "markov", "item-graph")
    batch = next(iter(data.test_dataloader()))
    alone = Baselines(data.cuts, torch.device("cpu"))
    expected = [alone.score(name, batch) for name in names]
    assert not (data.store.path / "made").exists()
    counted = []
    monkeypatch.setattr(baselines, "number", lambda: 2)
    monkeypatch.setattr(baselines, "edges_of", lambda *args: counted.append(args) or edges_of(*args))
    for _ in range(2):
        one_of_two = Baselines(data.cuts, torch.device("cpu"))
        for name, scores in zip(names, expected, strict=True):
            found = one_of_two.score(name, batch)
            assert all(
                torch.allclose(mine, theirs, rtol=0, atol=0, equal_nan=True)
                for mine, theirs in zip(found, scores, strict=True)
            )
    assert len(counted) == 2, "once for each"
