"""Preparation in little memory, on a full disk, killed, and by several processes."""

import os
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrec.data.store.encoding import REST, narrow
from lrec.data.store.long_work import Progress
from lrec.data.store.ordering import RowBuffer
from lrec.data.store.prepare import RawInteractions, prepare_store
from lrec.data.store.store import Store
from lrec.errors import UserError

IDS = st.sampled_from(["1", "01", "10", "2", "a", "A", "é", "日", " x"])
ROWS = st.lists(
    st.tuples(IDS, IDS, st.integers(-3, 3) | st.sampled_from([-(2**62), 2**62]), IDS, st.integers(0, 1)),
    min_size=1,
    max_size=60,
)
LINES = 60_000


def with_integers(piece: pl.DataFrame) -> pl.DataFrame:
    """The same ids, as integers if all ids of a column are written as integers."""
    numbers = {name: piece[name].cast(pl.Int64, strict=False) for name in ("user", "item")}
    return piece.with_columns(
        *(values.alias(name) for name, values in numbers.items() if piece[name].equals(values.cast(pl.String)))
    )


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "meta.json"}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.integers(0, 3), st.integers(1, 7), st.sets(st.sampled_from(["time", "domain", REST])))
def test_the_store_does_not_depend_on_memory(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple], k: int, size: int, columns: set[str]
) -> None:
    frame = pl.DataFrame(rows, schema=["user", "item", "time", "domain", REST], orient="row")
    frame = frame.select("user", "item", *sorted(columns)).cast({REST: pl.UInt64} if REST in columns else {})
    folder = tmp_path_factory.mktemp("stores")
    found = []
    for place, memory in enumerate((1.0, 1e-7, 1e-9)):
        pieces = [frame] if place == 0 else [with_integers(piece) for piece in frame.iter_slices(size)]
        pieces += [frame.clear()] * place  # all rows of a block may have too low a rating

        def read(pieces: list[pl.DataFrame] = pieces) -> RawInteractions:
            return RawInteractions(iter(pieces))

        try:
            store = Store.open(prepare_store(folder / str(place), "d", {}, k, read, memory))
        except UserError as error:
            found.append(str(error))
        else:
            found.append((files(store.path), store.statistics))
    assert found[1:] == found[:1] * 2
    if isinstance(found[0], tuple) and REST in columns and k <= 1:
        # Equal rows have the same user, so one of each is left. In a log, REST is a hash of the domain too.
        assert found[0][1]["interactions"] == frame.drop("domain", strict=False).n_unique()


@pytest.mark.parametrize("limit", [0, 3_000_000])
def test_pieces_that_lie_in_a_file_take_no_memory(tmp_path: Path, limit: int) -> None:
    pieces = RowBuffer(tmp_path / "pieces", limit)
    tracemalloc.start()
    for number in range(40):
        pieces.append({"a": np.full(100_000, number), "b": np.arange(100_000, dtype=np.uint16)})
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pieces.spilled
    assert held < limit + 100_000, "forty pieces are as many million bytes"
    if limit == 0:
        part = pieces.part(39, 10, 20)
        assert part["a"].tolist() == [39] * 10
        assert part["b"].tolist() == list(range(10, 20))
    drained = list(pieces.drain())
    assert len(drained) == (40 if limit == 0 else 14)
    assert np.array_equal(np.concatenate([piece["a"] for piece in drained]), np.repeat(np.arange(40), 100_000))


def test_pieces_with_columns_of_several_types_are_joined(tmp_path: Path) -> None:
    pieces = RowBuffer(tmp_path / "pieces", 9)
    for values in ([1, 2], [70_000], [3]):
        pieces.append({"a": narrow(np.array(values))})
    assert [piece["a"].tolist() for piece in pieces.drain()] == [[1, 2, 70_000, 3]]


def log(folder: Path) -> Path:
    """A CSV file of LINES interactions."""
    file = folder / "log.csv"
    pl.DataFrame(
        {
            "user": [f"u{n * 7919 % 1000}" for n in range(LINES)],
            "item": [f"i{n * 31 % 997}" for n in range(LINES)],
            "timestamp": [n // 3 for n in range(LINES)],
        }
    ).write_csv(file)
    return file


PREPARE = """
import sys
from pathlib import Path
from lrec.data.store.prepare import prepare_store
from lrec.data.formats.readers import Columns, read_table, to_interactions
from lrec.errors import UserError
columns = Columns("user", "item", "timestamp")
try:
    prepare_store(Path(sys.argv[2]), "log", {}, int(sys.argv[3]),
                  lambda: to_interactions(read_table(Path(sys.argv[1]), "csv", columns.integers), columns),
                  float(sys.argv[4]))
except UserError as error:
    sys.exit(f"error: {error}")
"""


def start(file: Path, stores: Path, k: int, memory: float, limit: int | None = None) -> subprocess.Popen[str]:
    def prevent_large_files() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-c", PREPARE, str(file), str(stores), str(k), str(memory)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=prevent_large_files)


def stores_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.exists() else []


@pytest.mark.parametrize(
    ("memory", "limit"),
    [(1e-6, 200_000), *(pytest.param(1.0, limit, marks=pytest.mark.slow) for limit in (200_000, 300_000)), (1.0, 3000)],
)
def test_a_full_disk_leaves_nothing_and_the_next_attempt_succeeds(tmp_path: Path, memory: float, limit: int) -> None:
    file, stores = log(tmp_path), tmp_path / "stores"
    process = start(file, stores, 2, memory, limit)
    _, message = process.communicate()
    assert process.returncode == 1
    assert "has no room for the store" in message.splitlines()[-1], message
    assert stores_in(stores) == []
    assert start(file, stores, 2, memory).wait() == 0
    (path,) = stores_in(stores)
    assert Store.open(path, verify=True).statistics["interactions"] == LINES


def test_a_kill_leaves_no_store_and_the_next_attempt_cleans_up(tmp_path: Path) -> None:
    file, stores = log(tmp_path), tmp_path / "stores"
    os.mkfifo(tmp_path / "pipe")
    process = start(tmp_path / "pipe", stores, 0, 1e-6)
    with (tmp_path / "pipe").open("wb") as pipe:
        # More than a block, so that rows lie on disk when the kill comes; the reader then waits for the rest.
        text = file.read_bytes()
        body = text[text.index(b"\n") + 1 :]
        pipe.write(text)
        for _ in range(2 * (1 << 24) // len(body) + 1):
            pipe.write(body)
        pipe.flush()
        deadline = time.monotonic() + 60
        while not list(stores.glob(".*.tmp/work/rows")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (left,) = stores_in(stores)
    assert left.name.endswith(".tmp")
    with pytest.raises(UserError, match="not a store"):
        Store.open(left)
    assert start(file, stores, 2, 1e-6).wait() == 0
    (path,) = stores_in(stores)
    assert Store.open(path, verify=True).statistics["interactions"] == LINES


def test_two_processes_prepare_different_stores_of_one_folder(tmp_path: Path) -> None:
    file, stores = log(tmp_path), tmp_path / "stores"
    processes = [start(file, stores, k, memory) for k, memory in ((0, 1e-6), (0, 1.0), (2, 1e-6))]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [Store.open(path, verify=True).n_users for path in stores_in(stores)] == [1000, 1000]


def test_progress_is_silent_unless_it_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = Progress(lambda: now[0])
    progress.stage("read")
    for _ in range(4):
        progress.add(1_000_000)
        now[0] += 0.4
    assert capsys.readouterr().err == ""
    now[0] = 5.0
    progress.add(1_000_000)
    progress.stage("write")
    now[0] = 8.0
    progress.finish()
    assert capsys.readouterr().err.splitlines() == [
        "  read: 5,000,000 rows, 5.0 s",
        "  read: 5,000,000 rows, 5.0 s",
        "  write: 0 rows, 3.0 s",
    ]
