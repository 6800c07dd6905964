"""Make a store from raw interactions: k-core to its fixed point, stable order, integer encoding, statistics. Or append
new rows to those of a store. The result is a store of all rows; the old raw data are not read again. Users, items and
types of event get the same numbers as in a preparation of all rows, so arrays, tables and statistics are the same, bit
for bit.

Reading, ordering and encoding are written by hand and work block by block. For the same arrays of 20 million rows,
Polars' streaming engine and DuckDB need 1.8 and 2.6 times the time and three to four times the memory, and they do not
give the row number of a mistake (benchmarks/prepare.md). Shape suffixes: N interactions, U users, I items.
"""

import errno
import json
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
from lrec.data.store.encoding import REST, Encoder, Ranked, Rows
from lrec.data.store.long_work import Progress, ahead
from lrec.data.store.ordering import Ordered, RowBuffer, at, find_core, in_time_order, ordered, spooled
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
_ANEW = "prepare all rows again"
_READ_BY_COLUMN = ("interactions", "movielens", "parts")  # kinds of sources


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
    interactions of a user with the same item stay. Rows of the store `earlier` come first: see `append_to`."""
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
    """Fill the store's folder. If there is an earlier `store`, its rows come before the rows that are read. Of the
    memory, a quarter is for the rows as read, a quarter for their copy by ranges, a quarter for the range that is being
    ordered, and the rest for the block that is being read and the ids."""
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
        progress.add(len(part.columns["item"]))


def source_hashes(data_dir: Path, files: list[Path]) -> list[str]:
    """SHA-256 of each file. If a preparation noted it in `data_dir` for the same path, size and mtime, the file is not
    read again. Nothing is written."""
    hashed = _hashed[Path(data_dir)]
    remembered = read_json(Path(data_dir) / "sources.json", {}) | hashed
    for file in files:
        path, stat = str(file.resolve()), file.stat()
        *before, digest = remembered.get(path, [""])
        now = [stat.st_size, stat.st_mtime_ns]
        hashed[path] = [*now, digest if before == now else file_hash(file)]
    return [hashed[str(file.resolve())][2] for file in files]


def refuse_append(store: Store) -> None:
    """Raise UserError if the store lacks something that it needs to equal a preparation of all rows."""
    where, kind = f"{store.path} cannot be appended to", store.meta["source"].get("kind")
    if (k := store.meta["options"]["k_core"]) > 1:
        raise UserError(f"{where}: the rows that its k_core {k} dropped may belong to the core of all rows: {_ANEW}")
    if kind not in _READ_BY_COLUMN:
        raise UserError(f"{where}: its rows were not read from columns by name, but by a class of its own: {_ANEW}")
    if (repeats := store.meta["reading"].get("repeats", True)) is not True:
        raise UserError(f"{where}: the rows that its repeats {json.dumps(repeats)} dropped are missing: {_ANEW}")
    if store.meta.get("features"):
        raise UserError(f"{where}: it has features, which new rows cannot get: {_ANEW}")


def refuse_other_unit(store: Store, facts: dict[str, Any], rows: object = "the new rows") -> None:
    """Raise UserError if the times of the new rows, described by `facts`, are in another unit."""
    mine, theirs = (each.get("time_unit") for each in (store.facts, facts))
    if mine != theirs:
        wrong = f"the times of {rows} are in {theirs}: give them in {mine}"
        raise UserError(f"the times of {store.path} are in {mine}, but {wrong}")


class Earlier:
    """The rows of a store, which come before the new ones in the source."""

    def __init__(self, store: Store, encoder: Encoder) -> None:
        """Encode the store's ids first, so that their codes are the store's indices."""
        self.store, self._domain_I, self._duplicates_known = store, None, True
        table = store.item_table
        encoder.ids["user"].encode(store.raw_user_ids, np.diff(store.offsets_U1))
        encoder.ids["item"].encode(table["raw_id"])
        if store.event_types:
            encoder.ids["event"].encode(pl.Series(store.event_types))
        if table["domain"].null_count() == 0:
            self._domain_I = encoder.ids["domain"].encode(table["domain"])

    def look_at(self, frame: pl.DataFrame) -> None:
        """Note what columns a frame of new rows has; raise UserError if they differ from the store's."""
        store, names = self.store, frame.columns
        known = {"time": store.times_N, "event": store.events_N, "domain": self._domain_I}
        for name, values in known.items():
            if (name in names) != (values is not None):
                has = "a" if name in names else "no"
                raise UserError(f"the new rows have {has} {name}, unlike the rows of {store.path}")
        if REST in names and (frame[REST] != 0).any():  # the store does not keep the columns behind the hash
            self._duplicates_known = False

    def followed_by(self, new: Ordered, users: Ranked, items: Ranked) -> Ordered:
        """The store's rows and new rows of the same users, in order. At equal times, the store's rows come first."""
        store = self.store
        place_U = users.rank_K[: store.n_users]  # ascending, because ids are in text order in both
        end = new.first_user + len(new.lengths_U)
        mine = slice(*np.searchsorted(place_U, [new.first_user, end]))
        bounds_U1 = store.offsets_U1[mine.start : mine.stop + 1]
        rows = slice(bounds_U1[0], bounds_U1[-1])
        items_N = store.items_N[rows]
        old = {"user": np.repeat(place_U[mine] - new.first_user, np.diff(bounds_U1)), "item": items.rank_K[items_N]}
        if store.times_N is not None:
            old["time"] = store.times_N[rows]
        if store.events_N is not None:
            old["event"] = store.events_N[rows].astype(np.uint16)  # codes of new types follow the store's
        if self._domain_I is not None:
            old |= {"domain": self._domain_I[items_N], "row": np.full(len(items_N), -1)}  # below all new rows
        added = {"user": new.users_N, **new.columns}
        if "time" in old:  # otherwise, equal rows may be repeats of an item
            added = at(added, self._fresh(old, added))
        both = {name: np.concatenate([column, added[name].astype(column.dtype)]) for name, column in old.items()}
        ordered = at(both, in_time_order(both["user"], both.get("time"), two_runs=True))
        lengths_U = np.bincount(ordered.pop("user"), minlength=len(new.lengths_U))
        return Ordered(new.first_user, lengths_U, ordered)

    def _fresh(self, old: Rows, new: Rows) -> np.ndarray:
        """The places of the new rows that the store does not have; raise UserError if it cannot tell."""
        # Few old rows are as late as the new ones.
        old = at(old, old["time"] >= new["time"].min(initial=np.iinfo(np.int64).max))
        names = [name for name in old if name not in ("domain", "row")]
        one, other = (pl.DataFrame({name: rows[name].astype(np.int64) for name in names}) for rows in (new, old))
        fresh = one.with_row_index().join(other, on=names, how="anti")["index"].sort().to_numpy()
        if not self._duplicates_known and len(fresh) < one.height:
            raise UserError(
                f"at least {one.height - len(fresh):,} of the new rows agree with rows of {self.store.path} in all "
                f"columns that it keeps, but may differ in columns that it does not keep: leave them out, or {_ANEW}"
            )
        return fresh
