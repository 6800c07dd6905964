"""Make a store from raw interactions: k-core to its fixed point, stable order, integer encoding, statistics. Or append
new rows to those of a store. The result is a store of all rows, the same as one prepared from them all, bit for bit,
although the old raw data are not read again.

Reading, ordering and encoding are written by hand and work block by block: Polars' streaming engine and DuckDB need
more time and memory and do not give the row number of a mistake (benchmarks/prepare.md). Shape suffixes: N
interactions, U users, I items, K ids."""

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
from typing import IO, Any

import numpy as np
import polars as pl

from lrec.common.files import file_hash, json_hash, locked, read_json, replacing, write_json
from lrec.common.hardware import available_gib
from lrec.data.store.encoding import FEATURE, REST, Encoder, Ranked, Rows
from lrec.data.store.long_work import Progress, ahead
from lrec.data.store.ordering import Ordered, RowBuffer, again, at, find_core, in_time_order, ordered, spooled
from lrec.data.store.store import SCHEMA, Store, feature_array, sampled_hash
from lrec.errors import UserError

_ORDERING_BYTES = 512  # memory per row while a range of users is ordered, including all copies
# For each data_dir: size, mtime and SHA-256 of each source that this process has looked at, by its path.
_hashed: dict[Path, dict[str, list[Any]]] = defaultdict(dict)
_REFUSED = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "has no room for the store")
_NO_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
_REFUSED |= dict.fromkeys(_NO_FOLDER, "cannot be used for stores")
_ANEW = "prepare all rows again"


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
        memory = int((available_gib() / 2 if memory_gib is None else memory_gib) * 2**30)
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
        stored = spooled(_counted(parts, progress), work / "ordered", rows.spilled)
        progress.stage(f"{k}-core")
        kept_U, kept_I = find_core(lambda: _counted(stored(), progress), len(kept_U), len(kept_I), k)
        parts = stored()
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
    if kind not in ("interactions", "movielens", "parts"):
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
        self.store, self._duplicates_known = store, True
        table, ids = store.item_table, encoder.ids
        ids["user"].encode(store.raw_user_ids, np.diff(store.offsets_U1))
        ids["item"].encode(table["raw_id"])
        if store.event_types:
            ids["event"].encode(pl.Series(store.event_types))
        domain_I = None if table["domain"].null_count() else ids["domain"].encode(table["domain"])
        self._known = {"time": store.times_N, "event": store.events_N, "domain": domain_I}

    def look_at(self, frame: pl.DataFrame) -> None:
        """Note what columns a frame of new rows has; raise UserError if they differ from the store's."""
        for name, values in self._known.items():
            if (name in frame.columns) != (values is not None):
                has = "a" if name in frame.columns else "no"
                raise UserError(f"the new rows have {has} {name}, unlike the rows of {self.store.path}")
        if REST in frame.columns and (frame[REST] != 0).any():  # the store does not keep the columns behind the hash
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
        for name in ("time", "event"):
            if (values_N := self._known[name]) is not None:
                old[name] = values_N[rows]
        if (domain_I := self._known["domain"]) is not None:
            old |= {"domain": domain_I[items_N], "row": np.full(len(items_N), -1)}  # below all new rows
        added = {"user": new.users_N, **new.columns}
        if "time" in old:  # otherwise, equal rows may be repeats of an item
            added = at(added, self._fresh(old, added))
        both = {name: np.concatenate([column, added[name]]) for name, column in old.items()}
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
            some = f"at least {one.height - len(fresh):,} of the new rows agree with rows of {self.store.path}"
            way_out = f"but may differ in columns that it does not keep: leave them out, or {_ANEW}"
            raise UserError(f"{some} in all columns that it keeps, {way_out}")
        return fresh


class StoreWriter:
    """Writes a store into an empty folder, one range of users after the other, and counts its statistics. The store is
    complete once `finish` has returned. Only the kept users and items are written."""

    def __init__(
        self, folder: Path, ids: dict[str, Ranked], features: list[str], kept_U: np.ndarray, kept_I: np.ndarray
    ) -> None:
        self._folder, self._ids, self._features, self._kept_U, self._kept_I = folder, ids, features, kept_U, kept_I
        # The array that each column of `Ordered` becomes, and its type.
        self._arrays: dict[str, tuple[str, Any]]
        self._arrays = {"item": ("items", np.int32), "time": ("times", np.int64), "event": ("events", np.uint8)}
        for place, name in enumerate(features):
            self._arrays[name] = feature_array(place, name in ids), np.int32 if name in ids else np.float64
        # What the array has in place of each number of a column.
        self._stored = {name: ranked.rank_K for name, ranked in ids.items()}
        self._stored["item"] = np.cumsum(kept_I, dtype=np.int32) - 1  # place among the kept items
        self._counts_I = np.zeros(int(kept_I.sum()), dtype=np.int64)
        # An item has the domain of its first row in the source. It is in the least row * n_domains + domain.
        self._first_I = np.full(len(self._counts_I), np.iinfo(np.int64).max)
        self._lengths: list[np.ndarray] = []  # of the histories
        self._times: list[int] = []  # the first and last ones of each range
        self._n_distinct = self._repeats_dropped = self._repeats = self._ties = 0

    def append(self, part: Ordered) -> None:
        """Write the interactions of the next users."""
        self._n_distinct += len(part.columns["item"]) + part.repeats_dropped
        self._repeats_dropped += part.repeats_dropped
        kept_N, lengths_U = part.those_kept(self._kept_U, self._kept_I)
        columns = at(part.columns, kept_N)
        columns |= {name: self._stored[name][columns[name]] for name in self._stored.keys() & columns.keys()}
        for name in self._arrays.keys() & columns.keys():
            self._extend(*self._arrays[name], columns[name])
        items_N, users_N = columns["item"], np.repeat(np.arange(len(lengths_U)), lengths_U)
        self._lengths.append(lengths_U[lengths_U > 0])
        self._counts_I += np.bincount(items_N, minlength=len(self._counts_I))
        pairs_N = np.sort(users_N * len(self._counts_I) + items_N)
        self._repeats += int(np.count_nonzero(pairs_N[1:] == pairs_N[:-1]))
        if "time" in columns and len(items_N):
            self._ties += int(np.count_nonzero(again(users_N, columns["time"])))
            self._times += [int(columns["time"].min()), int(columns["time"].max())]
        if "domain" in columns:
            np.minimum.at(self._first_I, items_N, columns["row"] * len(self._ids["domain"].ids) + columns["domain"])

    def finish(self, meta: dict[str, Any], facts: dict[str, Any], n_rows: int) -> None:
        """Write the tables of ids, and meta.json: `meta`, statistics and facts. The source had `n_rows` rows."""
        ids, lengths_U, n_items = self._ids, np.concatenate(self._lengths), len(self._counts_I)
        interactions = int(lengths_U.sum())
        self._extend("offsets", np.int64, np.append(0, np.cumsum(lengths_U)))
        for name, dtype in (*self._arrays.values(), ("offsets", np.int64)):
            if (path := self._folder / f"{name}.npy").exists():
                with path.open("r+b") as file:
                    _write_header(file, dtype, len(lengths_U) + 1 if name == "offsets" else interactions)
        statistics: dict[str, Any] = {"users": len(lengths_U), "items": n_items, "interactions": interactions}
        statistics["density"] = (interactions - self._repeats) / (len(lengths_U) * n_items)
        statistics |= {"mean_length": float(lengths_U.mean()), "median_length": float(np.median(lengths_U))}
        statistics |= {"max_length": int(lengths_U.max()), "repeats": self._repeats}
        if self._times:
            statistics |= {"ties": self._ties, "first_time": min(self._times), "last_time": max(self._times)}
        statistics["duplicates_dropped"] = n_rows - self._n_distinct
        domain = pl.Series([None] * n_items, dtype=pl.String)
        if "domain" in ids:
            domain = ids["domain"].ids.gather(self._first_I % len(ids["domain"].ids))
            statistics["domains"] = domain.n_unique()
        if meta["reading"].get("repeats", True) is not True:
            facts = facts | {"repeats_dropped": self._repeats_dropped}
        if "event" in ids:
            facts = facts | {"event_types": ids["event"].ids.to_list()}
        if self._features:
            texts = {name: ids[name].ids.to_list() if name in ids else None for name in self._features}
            meta = meta | {"features": {name.removeprefix(FEATURE): each for name, each in texts.items()}}
        item_ids = ids["item"].ids.filter(pl.Series(self._kept_I))
        table = pl.DataFrame({"raw_id": item_ids, "count": self._counts_I, "domain": domain})
        table.write_parquet(self._folder / "items.parquet")
        users = pl.DataFrame({"raw_id": ids["user"].ids.filter(pl.Series(self._kept_U))})
        users.write_parquet(self._folder / "users.parquet")
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(self._folder.iterdir()):
            files[path.name] = {"size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
            files[path.name] |= {"blocks": sampled_hash(path), "sha256": file_hash(path)}
        about = {"schema": SCHEMA, **meta, "statistics": statistics, "facts": facts, "files": files}
        write_json(self._folder / "meta.json", about)

    def _extend(self, name: str, dtype: Any, values_N: np.ndarray) -> None:
        """Append values to an array. Its header says so only after `finish`."""
        with (self._folder / f"{name}.npy").open("ab") as file:
            if file.tell() == 0:
                _write_header(file, dtype, 0)
            file.write(np.ascontiguousarray(values_N, dtype=dtype).data)


def _write_header(file: IO[bytes], dtype: Any, length: int) -> None:
    """Write an array's header; numpy pads it so that its size does not depend on the length."""
    description = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, description)
