"""Stores made from rows, and the real data if they are there."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from lrec.data.store.ordering import Repeats
from lrec.data.store.prepare import RawInteractions, prepare_store
from lrec.data.store.store import Store

MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    """Prepare and open a store of (user, item), (user, item, time) or (user, item, time, domain) rows."""

    def make(rows: list[tuple], k_core: int = 0, repeats: Repeats = True) -> Store:
        names = ["user", "item", "time", "domain"][: len(rows[0])]
        frame = pl.DataFrame(rows, schema=names, orient="row")
        folder, reading = tmp_path_factory.mktemp("data"), {"repeats": repeats}
        return Store.open(prepare_store(folder, "rows", {}, k_core, lambda: RawInteractions(frame), reading=reading))

    return make


@pytest.fixture
def make_lengths(make_store: MakeStore) -> Callable[[list[int]], Store]:
    """A store whose user i has lengths[i] interactions; the item at position p of user i is called i-p."""

    def make(lengths: list[int]) -> Store:
        # Zero-padded, so that store indices follow (user, position).
        return make_store([(f"{u:03}", f"{u:03}-{p:04}", p) for u, n in enumerate(lengths) for p in range(n)])

    return make


@pytest.fixture(scope="session")
def interactions_dir() -> Path:
    """The folder of real interaction data next to the checkout."""
    folder = Path(__file__).parents[4] / "shared" / "data" / "interactions"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture
def _no_pool_thread_left() -> Iterator[None]:
    """Check that the test's pool threads end once nothing refers to their work any more."""

    def pools() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}

    before = pools()
    yield
    gc.collect()
    last = time.monotonic() + 10
    while not pools() <= before and time.monotonic() < last:
        time.sleep(0.01)
    assert pools() <= before  # earlier ones may have ended meanwhile
