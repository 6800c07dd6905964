"""Preparation against a slow reference in plain Python."""

import multiprocessing
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrec.data.store.ordering import Ordered, find_core
from lrec.data.store.prepare import RawInteractions, prepare_store, source_hashes
from lrec.data.store.store import Store
from lrec.errors import UserError

FIXTURE_ONCE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
IDS = st.sampled_from(["1", "01", "10", "2", "a", "A", "é", "日", " x"])
ROWS = st.lists(st.tuples(IDS, IDS, st.integers(-3, 3)), min_size=1, max_size=40)


def reference(rows: list[tuple], k: int) -> dict[str, list[tuple]]:
    """Per raw user, in text order: (time, raw item) of the k-core, in order."""
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        kept = [row for row in rows if users[row[0]] >= k and items[row[1]] >= k]
        if len(kept) == len(rows):
            break
        rows = kept
    sequences: dict[str, list[tuple]] = {user: [] for user in sorted({row[0] for row in rows})}
    for user, item, time in rows:
        sequences[user].append((time, item))
    return {user: sorted(sequence, key=lambda pair: pair[0]) for user, sequence in sequences.items()}


@FIXTURE_ONCE
@given(ROWS, st.integers(0, 4))
def test_store_equals_the_reference(make_store, rows: list[tuple], k: int) -> None:
    expected = reference(rows, k)
    if not expected:
        with pytest.raises(UserError, match="k_core"):
            make_store(rows, k)
        return
    store = make_store(rows, k)
    assert store.raw_user_ids.to_list() == list(expected)
    raw_items = store.item_table["raw_id"].to_list()
    assert raw_items == sorted({item for sequence in expected.values() for _, item in sequence})
    for user, sequence in enumerate(expected.values()):
        span = slice(store.offsets_U1[user], store.offsets_U1[user + 1])
        assert [raw_items[i] for i in store.items_N[span]] == [item for _, item in sequence]
        assert store.times_N[span].tolist() == [time for time, _ in sequence]
    assert store.item_table["count"].to_list() == np.bincount(store.items_N).tolist()
    pairs = [(user, item) for user, sequence in expected.items() for _, item in sequence]
    assert store.statistics["interactions"] == len(pairs)
    assert store.statistics["repeats"] == len(pairs) - len(set(pairs))
    assert store.statistics["density"] == len(set(pairs)) / (len(expected) * len(raw_items))
    ties = sum(a[0] == b[0] for s in expected.values() for a, b in pairwise(s))
    assert store.statistics["ties"] == ties


@FIXTURE_ONCE
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("wxyz"), st.integers(0, 9)), min_size=1, max_size=60),
    st.integers(0, 4),
)
def test_without_repeats_in_a_row(make_store, rows: list[tuple[str, str, int]], k: int) -> None:
    """Of an item twice in a row the first stays. What k-core removes may bring equal items next to each other."""
    expected = sorted(rows, key=lambda row: (row[0], row[2]))
    before = None
    while expected != before:
        before = expected
        users = Counter(user for user, _, _ in expected)
        expected = [row for row in expected if users[row[0]] >= k]
        items = Counter(item for _, item, _ in expected)
        expected = [row for row in expected if items[row[1]] >= k]
        expected = [row for last, row in zip([("", ""), *expected], expected, strict=False) if row[:2] != last[:2]]
    if not expected:
        with pytest.raises(UserError, match="k_core"):
            make_store(rows, k, "not_in_a_row")
        return
    store = make_store(rows, k, "not_in_a_row")
    users_N = np.repeat(store.raw_user_ids.to_list(), np.diff(store.offsets_U1)).tolist()
    items_N = store.item_table["raw_id"].gather(store.items_N).to_list()
    assert list(zip(users_N, items_N, store.times_N.tolist(), strict=True)) == expected
    assert store.item_table["count"].to_list() == np.bincount(store.items_N).tolist()


@FIXTURE_ONCE
@given(ROWS, st.randoms())
def test_order_of_users_in_the_source_does_not_matter(make_store, rows: list[tuple], random) -> None:
    rows = [(user, item, place) for place, (user, item, _) in enumerate(rows)]
    shuffled = random.sample(rows, len(rows))
    first, second = make_store(rows), make_store(shuffled)
    assert first.items_N.tolist() == second.items_N.tolist()
    assert first.item_table.equals(second.item_table)


def test_without_times_the_order_is_that_of_the_source(make_store) -> None:
    store = make_store([("u", "b"), ("v", "a"), ("u", "a"), ("u", "b")])
    assert store.times_N is None
    assert store.items_N.tolist() == [1, 0, 1, 0]
    assert "ties" not in store.statistics


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=60), st.integers(1, 5))
def test_k_core_is_the_largest_subset(pairs: list[tuple[int, int]], k: int) -> None:
    pairs = sorted(pairs)
    parts = []
    for first, end in ((0, 2), (2, 6)):
        part = [(user, item) for user, item in pairs if first <= user < end]
        lengths = np.bincount([user - first for user, _ in part], minlength=end - first)
        parts.append(Ordered(first, lengths, {"item": np.array([item for _, item in part], dtype=np.int32)}))
    users, items = find_core(lambda: parts, 6, 6, k)
    kept = [(user, item) for user, item in pairs if users[user] and items[item]]
    expected = reference([(user, item, row) for row, (user, item) in enumerate(pairs)], k)
    assert kept == [(user, item) for user, sequence in expected.items() for _, item in sequence]
    assert set(np.flatnonzero(users)) == set(expected)


def test_domains_of_items(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": ["u", "u", "v"], "item": ["b", "a", "b"], "domain": ["books", "films", "other"]})
    store = Store.open(prepare_store(tmp_path, "d", {}, 0, lambda: RawInteractions(frame, {"floor": 1.5})))
    assert store.item_table.rows() == [("a", 1, "films"), ("b", 2, "books")]
    assert store.statistics["domains"] == 2
    assert store.facts == {"floor": 1.5}


def _prepare_and_count(folder: Path, barrier) -> None:
    def read() -> RawInteractions:
        with (folder / "reads").open("a") as file:
            file.write("x")
        return RawInteractions(pl.DataFrame({"user": ["u"] * 1000, "item": list(range(1000))}))

    barrier.wait()
    Store.open(prepare_store(folder / "stores", "d", {}, 0, read))


def test_processes_that_want_the_same_store_prepare_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_prepare_and_count, args=(tmp_path, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "reads").read_text() == "x"
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "stores").iterdir()) == [".lock", "d"]


def test_a_failed_preparation_leaves_no_store(tmp_path: Path) -> None:
    def read() -> RawInteractions:
        raise UserError("bad row")

    with pytest.raises(UserError, match="bad row"):
        prepare_store(tmp_path, "d", {}, 0, read)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_source_and_k_core_name_the_store(tmp_path: Path) -> None:
    def read() -> RawInteractions:
        return RawInteractions(pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"]}))

    paths = [prepare_store(tmp_path, "d", {"file": file}, k, read) for file in "ab" for k in (0, 1)]
    assert len(set(paths)) == 4
    assert len({Store.open(path).hash for path in paths}) == 4


def test_source_hashes_follow_the_content(tmp_path: Path) -> None:
    file = tmp_path / "raw"
    file.write_text("one")
    first = source_hashes(tmp_path, [file])
    assert source_hashes(tmp_path, [file]) == first
    file.write_text("two!")
    assert source_hashes(tmp_path, [file]) != first
