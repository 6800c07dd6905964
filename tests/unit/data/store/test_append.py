"""A store with appended parts equals the store of all rows, byte for byte."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.store.prepare import RawInteractions, append_to, prepare_store
from lrec.data.store.store import Store
from lrec.errors import UserError

FIXTURE_ONCE = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
IDS = st.sampled_from(["1", "01", "10", "2", "30", "a", "A", "é", "日"])
NUMBERS = st.integers(0, 12)
WRITE = {
    ".csv": pl.DataFrame.write_csv,
    ".tsv": lambda frame, path: frame.write_csv(path, separator="\t"),
    ".parquet": pl.DataFrame.write_parquet,
    ".jsonl": pl.DataFrame.write_ndjson,
}


@st.composite
def parts(draw: st.DrawFn) -> tuple[list[pl.DataFrame], dict[str, Any]]:
    """Five parts of a log with ties and repeats, and the options to read them."""
    ids = NUMBERS if draw(st.booleans()) else IDS
    times = st.integers(1_600_000_000, 1_600_000_004)
    columns = {"user": ids, "item": ids, "timestamp": times}
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        columns["done"] = st.sampled_from(["view", "buy", "add"])
        options["event_column"] = "done"
    if draw(st.booleans()):
        columns["stars"] = st.integers(1, 5)
        options |= draw(st.sampled_from([{}, {"rating_column": "stars", "min_rating": 2}]))
    if draw(st.booleans()):
        columns["kind"] = st.sampled_from(["x", "y"])
        options["domain_column"] = "kind"
    row = st.tuples(*columns.values())
    rows = draw(st.lists(st.lists(row, min_size=1, max_size=12), min_size=5, max_size=5))
    if "stars" in columns:  # a part from which nothing is kept is refused
        place = list(columns).index("stars")
        rows = [[(*some[0][:place], 5, *some[0][place + 1 :]), *some] for some in rows]
    kinds = pl.DataFrame([each for some in rows for each in some], schema=list(columns), orient="row").schema
    return [pl.DataFrame(some, schema=kinds, orient="row") for some in rows], options


def prepared(folder: Path, file: Path, **options: Any) -> Store:
    data = InteractionsDataModule(file, data_dir=folder, **options)
    data.prepare_data()
    return data.open_store()


def append_file(store: Store, file: Path, folder: Path, **options: Any) -> Store:
    data = InteractionsDataModule(file, data_dir=folder, **options)
    memory_gib = options.get("memory_gib")
    return Store.open(append_to(store, data.source(), data.read, folder, memory_gib))


def same(one: Store, other: Store) -> None:
    """Check that every file is the same; in meta.json, all but the source and the times of the preparation."""
    names = {path.name for path in one.path.iterdir()}
    assert names == {path.name for path in other.path.iterdir()}
    for name in names - {"meta.json"}:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name
    for part in ("name", "options", "reading", "statistics", "facts"):
        assert json.dumps(one.meta[part]) == json.dumps(other.meta[part]), part


def ambiguous(frames: list[pl.DataFrame], options: dict[str, Any]) -> bool:
    """Whether a row equals one of an earlier part in the columns that a store keeps, and the log has more columns."""
    kept = ["user", "item", "timestamp", *(["done"] if "done" in frames[0].columns else [])]
    if frames[0].columns == kept:
        return False
    if "min_rating" in options:
        frames = [frame.filter(pl.col("stars") >= options["min_rating"]) for frame in frames]
    text = [frame.select(pl.col(kept).cast(pl.String)) for frame in frames]
    later = [(pl.concat(text[:n]), text[n]) for n in range(1, len(text))]
    return any(len(new.join(old, on=kept, how="semi")) for old, new in later)


@FIXTURE_ONCE
@given(parts(), st.sampled_from(list(WRITE)), st.sampled_from([None, 1e-9]))
def test_five_parts_make_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    log: tuple[list[pl.DataFrame], dict[str, Any]],
    ending: str,
    memory_gib: float | None,
) -> None:
    frames, options = log
    folder = tmp_path_factory.mktemp("parts")
    options = options | {"memory_gib": memory_gib}
    for name, frame in {"log": pl.concat(frames), **{f"p{n}": each for n, each in enumerate(frames)}}.items():
        (folder / name).mkdir()
        WRITE[ending](frame, folder / name / f"log{ending}")
    whole = prepared(folder / "whole", folder / "log" / f"log{ending}", **options)
    store = prepared(folder / "stores", folder / "p0" / f"log{ending}", **options)
    refusals = pytest.raises(UserError, match="agree with rows of") if ambiguous(frames, options) else nullcontext()
    with refusals:
        for part in range(1, 5):
            store = append_file(store, folder / f"p{part}" / f"log{ending}", folder / "stores", **options)
        same(store, whole)
        assert [part["kind"] for part in store.meta["source"]["parts"]] == ["interactions"] * 5


def test_many_users_and_nanoseconds_are_ordered(tmp_path: Path) -> None:
    """Users and times together do not fit into 64 bits, and some ranges of users have no new row."""
    rows = [(f"u{n:05}", f"i{n % 7}", n * 10**14 + 1) for n in range(50_000)]
    new = [("u00001", "i8", 3), ("u49999", "i0", 6 * 10**18), ("v", "i9", 4)]
    schema = ["user", "item", "time"]

    def read(some: list[tuple]) -> RawInteractions:
        return RawInteractions(pl.DataFrame(some, schema=schema, orient="row"), {"time_unit": "ns"})

    reading = {"user_column": "user", "repeats": True}
    whole = Store.open(
        prepare_store(tmp_path, "r", {"kind": "interactions", "of": "all"}, 0, lambda: read(rows + new), 0.002, reading)
    )
    first = Store.open(prepare_store(tmp_path, "r", {"kind": "interactions"}, 0, lambda: read(rows), None, reading))
    same(Store.open(append_to(first, {}, lambda: read(new), tmp_path, 0.002)), whole)


def test_rows_without_times_come_after_those_of_the_store(tmp_path: Path) -> None:
    def read(some: list[tuple]) -> RawInteractions:
        return RawInteractions(pl.DataFrame(some, schema=["user", "item"], orient="row"))

    rows, new = [("u", "b"), ("v", "a"), ("u", "a")], [("u", "0"), ("w", "a"), ("u", "b")]
    reading = {"user_column": "user"}
    whole = Store.open(
        prepare_store(tmp_path, "r", {"kind": "interactions", "of": "all"}, 0, lambda: read(rows + new), None, reading)
    )
    first = Store.open(prepare_store(tmp_path, "r", {"kind": "interactions"}, 0, lambda: read(rows), None, reading))
    same(Store.open(append_to(first, {}, lambda: read(new), tmp_path)), whole)


def test_rows_from_a_user_s_own_class_are_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": ["u"], "item": ["i"]})
    store = Store.open(prepare_store(tmp_path, "own", {"tables": 1}, 0, lambda: RawInteractions(frame)))
    with pytest.raises(UserError, match="a class of its own"):
        append_to(store, {}, lambda: RawInteractions(frame), tmp_path)


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
@pytest.mark.parametrize("dtype", [pl.Datetime("us"), pl.Date, pl.Float64])
def test_a_store_keeps_dates_and_numbers_whole(tmp_path: Path, dtype: pl.DataType, ending: str) -> None:
    path = tmp_path / f"log{ending}"
    WRITE[ending](LOG.with_columns(timestamp=pl.int_range(6).cast(dtype)), path)
    store = append_file(prepared(tmp_path, path), path, tmp_path)
    assert (store.statistics["interactions"], store.statistics["duplicates_dropped"]) == (6, 6)


LOG = pl.DataFrame({"user": ["u", "v"] * 3, "item": list("abcabc"), "timestamp": range(1_600_000_000, 1_600_000_006)})


@pytest.mark.parametrize(
    ("store", "new", "says"),
    [
        ({"k_core": 2}, LOG, "k_core 2"),
        ({}, LOG.rename({"item": "thing"}), "no column item"),
        ({"time_column": None}, LOG.rename({"timestamp": "when"}), "have a time|has no column"),
        ({}, LOG.with_columns(pl.col("timestamp") * 1000), "are in s, but the times of the new rows are in ms"),
        ({}, LOG.clear(), "no interactions"),
        ({}, LOG.with_columns(price=pl.lit(1.0)), "at least 6 of the new rows agree"),
        ({"memory_gib": 1e-9}, LOG.with_columns(price=pl.lit(1.0)), "at least 3 of the new rows agree"),  # user by user
    ],
)
def test_parts_that_do_not_make_a_whole_are_refused_and_leave_nothing(
    tmp_path: Path, store: dict[str, Any], new: pl.DataFrame, says: str
) -> None:
    LOG.write_parquet(tmp_path / "log.parquet")
    new.write_parquet(tmp_path / "new.parquet")
    opened = prepared(tmp_path / "stores", tmp_path / "log.parquet", **store)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=says):
        append_file(opened, tmp_path / "new.parquet", tmp_path / "stores", memory_gib=store.get("memory_gib"))
    assert sorted(tmp_path.rglob("*")) == before
