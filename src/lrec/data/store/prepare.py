"""Make a store from raw interactions: k-core to its fixed point, stable order, integer encoding, statistics.

Reading, ordering and encoding are written by hand and work block by block. For the same arrays of 20 million rows,
Polars' streaming engine and DuckDB need 1.8 and 2.6 times the time and three to four times the memory, and they do not
give the row number of a mistake (benchmarks/prepare.md).

Shape suffixes: N interactions, U users, I items.
"""

import errno
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lrec.common.files import file_hash, json_hash, locked, read_json, replacing, write_json
from lrec.common.hardware import available_gib
from lrec.data.store.append import Earlier, refuse_append, refuse_other_unit
from lrec.data.store.encoding import Encoder
from lrec.data.store.long_work import Progress, ahead
from lrec.data.store.ordering import Ordered, RowBuffer, find_core, ordered, spooled
from lrec.data.store.store import SCHEMA, Store
from lrec.data.store.writing import StoreWriter
from lrec.errors import UserError

_GIB = 1 << 30
_ORDERING_BYTES = 512  # memory per row while a range of users is ordered, including all copies
# For each data_dir: size, mtime and SHA-256 of each source that this process has looked at, by its path.
_hashed: dict[Path, dict[str, list[Any]]] = defaultdict(dict)
_REFUSED = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "has no room for the store")
_NO_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
_REFUSED |= dict.fromkeys(_NO_FOLDER, "cannot be used for stores")


@dataclass(frozen=True)
class RawInteractions:
    """What a data set returns: its rows in the order of the source, and facts about itself.

    Attributes:
        frame: A frame, or consecutive frames, which are made in a thread. The columns are user and item (strings or
            integers), time (integers; absent if the source has none), event (strings or integers, optional), domain
            (strings, optional) and REST (uint64, optional), all without nulls, and features (strings or floats, null if
            missing), whose names begin with FEATURE. If there is REST, only the first of the rows that are equal in all
            columns except domain is kept.
        facts: JSON-able facts for meta.json, such as time_unit ("s", "ms" or "us") and floor, or a function that
            returns them after the last frame.
    """

    frame: pl.DataFrame | Iterable[pl.DataFrame]
    facts: dict[str, Any] | Callable[[], dict[str, Any]] = field(default_factory=dict)

    def all_facts(self) -> dict[str, Any]:
        """The facts, once the last frame has been read."""
        return self.facts() if callable(self.facts) else self.facts


def store_path(data_dir: Path, name: str, source: dict[str, Any], k_core: int) -> Path:
    """The path of the store of this source and these options; UserError if `name` or `source` is not valid."""
    if not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"store_name {name!r}: letters, digits, _ and - are allowed")
    try:
        return Path(data_dir) / f"{name}-{json_hash([SCHEMA, source, k_core])[:16]}"
    except TypeError as error:
        raise UserError(f"{name}: source() must hold plain values ({error})") from None


def prepare_store(
    data_dir: Path,
    name: str,
    source: dict[str, Any],
    k_core: int,
    read: Callable[[], RawInteractions],
    memory_gib: float | None = None,
    reading: dict[str, Any] | None = None,
    earlier: Store | None = None,
) -> Path:
    """Write the store unless it exists, and return its path. Processes that want the same store wait for the first one.

    The store does not depend on `memory_gib` (None: half of the available memory): rows that do not fit go to a
    temporary folder inside the store. `reading` records how the raw data were read; its entry `repeats` decides which
    interactions of a user with the same item stay. Rows of the store `earlier` come first: see `append_to`.
    """
    data_dir, path = Path(data_dir), store_path(data_dir, name, source, k_core)
    if not path.exists():
        memory = int((available_gib() / 2 if memory_gib is None else memory_gib) * _GIB)
        meta = {"name": name, "source": source, "options": {"k_core": k_core}, "reading": reading or {}}
        _make(path, lambda folder: _write(folder, meta, read(), memory, earlier))
    remembered = read_json(data_dir / "sources.json", {})
    if earlier is None and (known := remembered | _hashed[data_dir]) != remembered:
        with suppress(OSError):  # the next process hashes them again
            write_json(data_dir / "sources.json", known)
    return path


def append_to(
    store: Store,
    source: dict[str, Any],
    read: Callable[[], RawInteractions],
    data_dir: Path,
    memory_gib: float | None = None,
) -> Path:
    """Write a store with the rows of a store and then new rows, as `prepare_store` would from all rows at once. Only
    the source in meta.json differs: it lists the parts. UserError if the store lacks rows that it needs (k_core dropped
    them), or the new rows have other columns."""
    refuse_append(store)
    first = store.meta["source"]
    parts = [*first.get("parts", [first]), source]  # oldest first
    name, k_core, reading = store.meta["name"], store.meta["options"]["k_core"], store.meta["reading"]
    return prepare_store(data_dir, name, {"kind": "parts", "parts": parts}, k_core, read, memory_gib, reading, store)


def _make(path: Path, write: Callable[[Path], None]) -> None:
    """Make the store's folder unless another process does, and remove what killed processes left. Raise UserError if
    the folder of stores has no room or cannot be used."""
    data_dir = path.parent
    try:
        with locked(data_dir / ".lock"):
            if path.exists():
                return
            # Left by processes that were killed: a running one would hold the lock.
            for left in data_dir.glob(f".*-{'[0-9a-f]' * 16}.*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
            print(f"preparing {path}", file=sys.stderr)
            with replacing(path) as folder:
                folder.mkdir()
                write(folder)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise UserError(f"{data_dir} {_REFUSED[error.errno]} ({error.strerror}; option data_dir)") from None


def _write(folder: Path, meta: dict[str, Any], raw: RawInteractions, memory: int, store: Store | None) -> None:
    """Fill the store's folder. If there is an earlier `store`, its rows come before the rows that are read.

    Of the memory, a quarter is for the rows as read, a quarter for their copy by ranges, a quarter for the range that
    is being ordered, and the rest for the block that is being read and the ids.
    """
    progress, work, k = Progress(), folder / "work", meta["options"]["k_core"]
    work.mkdir()
    rows, encoder = RowBuffer(work / "rows", memory // 4), Encoder(meta["name"])
    earlier = None if store is None else Earlier(store, encoder)
    progress.stage("read")
    for frame in ahead([raw.frame] if isinstance(raw.frame, pl.DataFrame) else raw.frame):
        if earlier is not None:
            earlier.look_at(frame)
        rows.append(encoder.encode(frame))
        progress.add(frame.height)
    facts, ids, n_rows = raw.all_facts(), encoder.ranked(), encoder.n_rows
    users, items = ids["user"], ids["item"]

    progress.stage("order" if k > 1 else "order and write")
    # Ranges that fit the cache are fastest, unless there are more than a few hundred of them.
    range_rows = min(memory // 4 // _ORDERING_BYTES, max(1 << 17, n_rows >> 10))
    parts = ordered(rows, work, users, items, range_rows, meta["reading"].get("repeats", True))
    if earlier is not None:
        refuse_other_unit(earlier.store, facts)
        parts = (earlier.followed_by(part, users, items) for part in parts)
        n_rows += sum(earlier.store.statistics[each] for each in ("interactions", "duplicates_dropped"))

    kept_U, kept_I = np.ones(len(users.ids), dtype=bool), np.ones(len(items.ids), dtype=bool)
    if k > 1:
        again = spooled(_counted(parts, progress), work / "ordered", rows.spilled)
        progress.stage(f"{k}-core")
        kept_U, kept_I = find_core(lambda: _counted(again(), progress), len(kept_U), len(kept_I), k)
        parts = again()
        if not kept_U.any():
            raise UserError(f"{meta['name']}: k_core={k} leaves no interactions: choose a smaller k_core")
        progress.stage("write")

    writer = StoreWriter(folder, ids, list(encoder.features), kept_U, kept_I)
    for part in ahead(_counted(parts, progress)):
        writer.append(part)
    shutil.rmtree(work)
    writer.finish(meta, facts, n_rows)
    progress.finish()


def _counted(parts: Iterable[Ordered], progress: Progress) -> Iterator[Ordered]:
    for part in parts:
        yield part
        progress.add(part.n_rows)


def source_hashes(data_dir: Path, files: list[Path]) -> list[str]:
    """SHA-256 of each file, as noted in `data_dir` by a preparation if path, size and mtime agree. Writes nothing."""
    hashed = _hashed[Path(data_dir)]
    remembered = read_json(Path(data_dir) / "sources.json", {}) | hashed
    for file in files:
        path, stat = str(file.resolve()), file.stat()
        *before, digest = remembered.get(path, [""])
        now = [stat.st_size, stat.st_mtime_ns]
        hashed[path] = [*now, digest if before == now else file_hash(file)]
    return [hashed[str(file.resolve())][2] for file in files]
