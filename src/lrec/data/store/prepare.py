"""Raw interactions in, a store out: k-core to its fixed point, stable order, integer encoding, statistics.

Reading, ordering and encoding are written by hand, block by block: Polars' streaming engine and DuckDB make the same
arrays of 20 million rows in 1.8 and 2.6 times the time and three to four times the memory, without the row number of a
mistake (benchmarks/prepare.md).

Shape suffixes: N interactions, U users, I items.
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

from lrec.common.files import file_hash, json_hash, locked, replacing, write_json
from lrec.common.hardware import available_gib
from lrec.data.store.append import Earlier, refuse_append, refuse_other_unit
from lrec.data.store.encoding import FEATURE, FILE_DOMAIN, Encoder, Ranked
from lrec.data.store.long_work import Progress, ahead
from lrec.data.store.ordering import Ordered, RowBuffer, Spool, find_core, ordered
from lrec.data.store.statistics import Counter
from lrec.data.store.store import MOST_FEATURE_VALUES, SCHEMA, Store, StoreWriter, feature_array
from lrec.errors import UserError

_GIB = 1 << 30
_ORDERING_BYTES = 512  # a row of a range of users while it is ordered, including all copies
_TEMPORARY = re.compile(r"\..+-[0-9a-f]{16}\..+\.[0-9a-f]{8}\.tmp")
# Size, mtime and SHA-256 of each source that this process has looked at, by its path; for each data_dir.
_hashed: dict[Path, dict[str, list[Any]]] = defaultdict(dict)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class RawInteractions:
    """What a data set hands over: its rows in the order of the source, and facts about itself.

    Attributes:
        frame: A frame, or consecutive ones, with columns user and item (strings or integers), time (integers, absent
            where the source has none), event (string or integers, optional), domain or FILE_DOMAIN (string, optional)
            and REST (uint64, optional), none of them null, and columns that are read beside these (their names after
            FEATURE; strings or floats, null where missing). Where there is REST, of rows that are equal in all columns
            but FILE_DOMAIN the first is kept. Consecutive frames are made in a thread.
        facts: JSON-able: kept in meta.json, e.g. time_unit ("s", "ms" or "us"), floor. Or what tells them
            after the last frame.
    """

    frame: pl.DataFrame | Iterable[pl.DataFrame]
    facts: dict[str, Any] | Callable[[], dict[str, Any]] = field(default_factory=dict)

    def all_facts(self) -> dict[str, Any]:
        """The facts, once the last frame has been read."""
        return self.facts() if callable(self.facts) else self.facts


def store_path(data_dir: Path, name: str, source: dict[str, Any], k_core: int) -> Path:
    """Where the store of this source and these options lies; UserError where these cannot name one."""
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
    """Write the store unless it is there, and return its path. Processes that want the same store wait for the first.

    The store does not depend on `memory_gib` (None: half of what is available): rows that do not fit go to a temporary
    folder in it. `reading` says how the raw data were read, to those who have only the store; of it, `repeats` decides
    which interactions of a user with an item stay. The rows of the store `earlier` come before those that are read: see
    `append_to`.
    """
    data_dir, path = Path(data_dir), store_path(data_dir, name, source, k_core)
    if not path.exists():
        memory = int((available_gib() / 2 if memory_gib is None else memory_gib) * _GIB)
        meta = {"name": name, "source": source, "options": {"k_core": k_core}, "reading": reading or {}}
        _make(path, lambda folder: _write(folder, meta, k_core, read(), memory, earlier))
    remembered, hashed = _remembered(data_dir), _hashed[data_dir]
    if earlier is None and any(remembered.get(file) != entry for file, entry in hashed.items()):
        with suppress(OSError):  # the next process hashes them again
            write_json(data_dir / "sources.json", remembered | hashed)
    return path


def append_to(
    store: Store,
    source: dict[str, Any],
    read: Callable[[], RawInteractions],
    data_dir: Path,
    memory_gib: float | None = None,
) -> Path:
    """Write the store of a store's rows and new ones after them, as `prepare_store` would from all rows at once; only
    what meta.json says of the source differs: it lists the parts.

    Raises:
        UserError: What dropped rows of the store has left no trace (k_core); the new rows have other columns.
    """
    refuse_append(store)
    first = store.meta["source"]
    parts = [*(first["parts"] if first["kind"] == "parts" else [first]), source]  # oldest first
    name, k_core, reading = store.meta["name"], store.meta["options"]["k_core"], store.meta["reading"]
    return prepare_store(data_dir, name, {"kind": "parts", "parts": parts}, k_core, read, memory_gib, reading, store)


def _make(path: Path, write: Callable[[Path], None]) -> None:
    """Make the store's folder unless another process does, and remove what killed processes left; UserError where the
    folder of stores has no room or cannot be used."""
    data_dir = path.parent
    try:
        with locked(data_dir / ".lock"):
            if path.exists():
                return
            for left in data_dir.iterdir():
                # Left by a process that was killed: a running one would hold the lock.
                if _TEMPORARY.fullmatch(left.name):
                    shutil.rmtree(left, ignore_errors=True)
            print(f"preparing {path}", file=sys.stderr)
            with replacing(path) as folder:
                folder.mkdir()
                write(folder)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise UserError(f"{data_dir} has no room for the store ({error.strerror}; option data_dir)") from None
        if error.errno in _NO_FOLDER:
            raise UserError(f"{data_dir} cannot be used for stores ({error.strerror}; option data_dir)") from None
        raise


def _write(
    folder: Path, meta: dict[str, Any], k: int, raw: RawInteractions, memory: int, store: Store | None = None
) -> None:
    """Fill the store's folder, with the rows of a store before those as read where there is one.

    Of the memory, a quarter is for the rows as read, a quarter for their copy by ranges, a quarter for the range that
    is being ordered, and the rest for the block that is being read and the ids.
    """
    progress, work, repeats = Progress(), folder / "work", meta["reading"].get("repeats", True)
    work.mkdir()
    rows, encoder = RowBuffer(work / "rows", memory // 4), Encoder(meta["name"])
    earlier = None if store is None else Earlier(store, encoder)
    progress.stage("read")
    for frame in ahead([raw.frame] if isinstance(raw.frame, pl.DataFrame) else raw.frame):
        if earlier is not None:
            earlier.look_at(frame)
        rows.append(encoder.encode(frame))
        progress.add(frame.height)
    facts = raw.all_facts()
    users, items, domains, events = encoder.ranked()
    features = {name: None if ids is None else ids.ranked() for name, ids in encoder.features.items()}
    texts = {name.removeprefix(FEATURE): _texts(name, each) for name, each in features.items()}

    progress.stage("order" if k > 1 else "order and write")
    # Ranges that fit the cache are fastest, unless there are more than a few hundred of them.
    range_rows = min(memory // 4 // _ORDERING_BYTES, max(1 << 17, encoder.n_rows >> 10))
    parts = ordered(rows, work, users, items, range_rows, repeats)
    n_rows = encoder.n_rows
    if earlier is not None:
        refuse_other_unit(earlier.store, facts)
        parts = (earlier.followed_by(part, users, items) for part in parts)
        n_rows += earlier.n_rows
    kept_U, kept_I = np.ones(len(users.ids), dtype=bool), np.ones(len(items.ids), dtype=bool)
    if k > 1:
        spool = Spool(_counted(parts, progress), work / "ordered", rows.spilled)
        progress.stage(f"{k}-core")
        kept_U, kept_I = find_core(lambda: _counted(spool, progress), len(users.ids), len(items.ids), k)
        if not kept_U.any():
            raise UserError(f"{meta['name']}: k_core={k} leaves no interactions: choose a smaller k_core")
        parts = iter(spool)
        progress.stage("write")

    code_I = np.cumsum(kept_I, dtype=np.int32) - 1
    n_items, n_domains = int(kept_I.sum()), len(domains.ids)
    writer, counter = StoreWriter(folder), Counter(n_items)
    # An item's domain is that of its first row in the source: the least row * n_domains + domain.
    first_I = np.full(n_items, np.iinfo(np.int64).max)
    n_distinct = repeats_dropped = 0
    for part in ahead(_counted(parts, progress)):
        n_distinct += part.n_rows + part.repeats_dropped
        repeats_dropped += part.repeats_dropped
        lengths_U, columns = part.lengths_U, part.columns
        if k > 1:
            kept_N, lengths_U = part.those_kept(kept_U, kept_I)
            lengths_U = lengths_U[lengths_U > 0]
            columns = {name: column[kept_N] for name, column in columns.items()}
        items_N, times_N = code_I[columns["item"]], columns.get("time")
        writer.append("items", items_N)
        if times_N is not None:
            writer.append("times", times_N)
        if "event" in columns:
            writer.append("events", events.rank_K[columns["event"]])
        for place, (name, ranked) in enumerate(features.items()):
            values_N = columns[name] if ranked is None else ranked.rank_K[columns[name]]
            writer.append(feature_array(place, None if ranked is None else []), values_N)
        if n_domains:
            domain_N = domains.rank_K[columns[FILE_DOMAIN if FILE_DOMAIN in columns else "domain"]]
            np.minimum.at(first_I, items_N, columns["row"] * n_domains + domain_N)
        counter.add(lengths_U, items_N, times_N)
    writer.append("offsets", counter.offsets_U1())

    statistics = counter.statistics() | {"duplicates_dropped": n_rows - n_distinct}
    domain = pl.Series([None] * n_items, dtype=pl.String)
    if n_domains:
        domain = domains.ids.gather(first_I % n_domains)
        statistics["domains"] = domain.n_unique()
    if repeats is not True:
        facts = facts | {"repeats_dropped": repeats_dropped}
    if len(events.ids):
        facts = facts | {"event_types": events.ids.to_list()}
    item_ids, user_ids = items.ids.filter(pl.Series(kept_I)), users.ids.filter(pl.Series(kept_U))
    item_table = pl.DataFrame({"raw_id": item_ids, "count": counter.counts_I, "domain": domain})
    shutil.rmtree(work)
    meta = meta | ({"features": texts} if texts else {})
    writer.finish(item_table, user_ids, {**meta, "statistics": statistics, "facts": facts})
    progress.finish()


def _texts(name: str, ranked: Ranked | None) -> list[str] | None:
    """The different texts of a feature; None where it has numbers."""
    if ranked is not None and len(ranked.ids) > MOST_FEATURE_VALUES:
        raise UserError(
            f"the feature {name.removeprefix(FEATURE)} has {len(ranked.ids):,} different texts; at most "
            f"{MOST_FEATURE_VALUES:,} are possible: group them, or name it under numbers"
        )
    return None if ranked is None else ranked.ids.to_list()


def _counted(parts: Iterable[Ordered], progress: Progress) -> Iterator[Ordered]:
    for part in parts:
        yield part
        progress.add(part.n_rows)


def source_hashes(data_dir: Path, files: list[Path]) -> list[str]:
    """SHA-256 of each file, known by path, size and mtime where preparation has noted it in `data_dir`; nothing is
    written."""
    hashed = _hashed[Path(data_dir)]
    remembered = _remembered(Path(data_dir)) | hashed
    for file in files:
        path, stat = str(file.resolve()), file.stat()
        size, mtime, digest = remembered.get(path, (0, 0, ""))
        if not digest or (size, mtime) != (stat.st_size, stat.st_mtime_ns):
            digest = file_hash(file)
        hashed[path] = [stat.st_size, stat.st_mtime_ns, digest]
    return [hashed[str(file.resolve())][2] for file in files]


def _remembered(data_dir: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((data_dir / "sources.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return {}
