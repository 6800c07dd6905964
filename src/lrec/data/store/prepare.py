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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lrec.common.files import file_hash, json_hash, locked, replacing, write_json
from lrec.common.hardware import available_gib
from lrec.data.store.ids import Ids
from lrec.data.store.ordering import FILE_DOMAIN, REST, Ordered, Piece, Pieces, Spool, find_core, narrow, ordered
from lrec.data.store.progress import Progress
from lrec.data.store.statistics import Counter, ItemDomains
from lrec.data.store.store import MOST_EVENT_TYPES, SCHEMA, StoreWriter
from lrec.data.store.threads import ahead
from lrec.errors import UserError

_GIB = 1 << 30
# Bytes per row of a range of users while it is ordered, including all copies.
_ORDERING_BYTES = 512
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
            and REST (uint64, optional), none of them null. Where there is REST, of rows that are equal in all columns
            but FILE_DOMAIN the first is kept. Consecutive frames are made in a thread.
        facts: JSON-able: kept in meta.json, e.g. time_unit ("s", "ms" or "us"), floor. Read after the last frame.
        repeats: Keep all interactions of a user with an item; false keeps the first in time.
    """

    frame: pl.DataFrame | pl.LazyFrame | Iterable[pl.DataFrame]
    facts: dict[str, Any] = field(default_factory=dict)
    repeats: bool = True

    def frames(self) -> Iterable[pl.DataFrame]:
        """The frames; they can be read once."""
        if isinstance(self.frame, pl.DataFrame | pl.LazyFrame):
            return [self.frame.lazy().collect()]
        return self.frame


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
) -> Path:
    """Write the store unless it is there, and return its path. Processes that want the same store wait for the first.

    Args:
        data_dir: Folder of all stores.
        name: First part of the store's name.
        source: JSON-able identity of the raw data (file hashes, options of reading).
        k_core: Keep users and items with at least so many interactions among the kept; 0 keeps all.
        read: Reads the raw data; called only if the store is not there.
        memory_gib: Memory for the rows, in GiB; what does not fit goes to a temporary folder beside the store. None:
            half of the available memory. The store does not depend on it.
    """
    path = store_path(data_dir, name, source, k_core)
    _remember_hashes(Path(data_dir))
    if path.exists():
        return path
    with _writing_to(data_dir), locked(Path(data_dir) / ".lock"):
        if path.exists():
            return path
        for left in Path(data_dir).iterdir():
            # Left by a process that was killed: a running one would hold the lock.
            if _TEMPORARY.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)
        print(f"preparing {path}", file=sys.stderr)
        memory = int((available_gib() / 2 if memory_gib is None else memory_gib) * _GIB)
        with replacing(path) as folder:
            folder.mkdir()
            meta = {"name": name, "source": source, "options": {"k_core": k_core}}
            _write(folder, meta, k_core, read(), memory)
    return path


@contextmanager
def _writing_to(data_dir: Path) -> Iterator[None]:
    """Raise a UserError where the folder of stores has no room or cannot be used."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise UserError(f"{data_dir} has no room for the store ({error.strerror}; option data_dir)") from None
        if error.errno in _NO_FOLDER:
            raise UserError(f"{data_dir} cannot be used for stores ({error.strerror}; option data_dir)") from None
        raise


def _write(folder: Path, meta: dict[str, Any], k: int, raw: RawInteractions, memory: int) -> None:
    """Fill the store's folder.

    Of the memory, a quarter is for the rows as read, a quarter for their copy by ranges, a quarter for the range that
    is being ordered, and the rest for the block that is being read and the ids.
    """
    progress = Progress()
    work = folder / "work"
    work.mkdir()
    rows = Pieces(work / "rows", memory // 4)
    users, items, domains, events = Ids(), Ids(), Ids(), Ids()
    n_rows = 0
    progress.stage("read")
    for frame in ahead(raw.frames()):
        _refuse_unfit(frame, meta["name"], n_rows)
        rows.append(_piece(frame, n_rows, users, items, domains, events))
        n_rows += frame.height
        progress.add(frame.height)
    if n_rows == 0:
        raise UserError(f"{meta['name']}: no interactions are left to prepare")
    user_ids, user_rank_K, counts_U = users.ranked()
    item_ids, item_rank_K, _ = items.ranked()
    domain_ids, domain_rank_K, _ = domains.ranked()
    event_types, event_rank_K, _ = events.ranked()
    if len(event_types) > MOST_EVENT_TYPES:
        raise UserError(
            f"{meta['name']}: {len(event_types):,} types of event, such as {event_types[0]}; at most "
            f"{MOST_EVENT_TYPES} are possible: event_column must name what was done, such as view or buy"
        )
    # Ranges that fit the cache are fastest, unless there are more than a few hundred of them.
    range_rows = min(memory // 4 // _ORDERING_BYTES, max(1 << 17, n_rows >> 10))
    progress.stage("order" if k > 1 else "order and write")
    parts = ordered(rows, work, user_rank_K, item_rank_K, counts_U, range_rows, raw.repeats)
    kept_U, kept_I = np.ones(len(user_ids), dtype=bool), np.ones(len(item_ids), dtype=bool)
    if k > 1:
        spool = Spool(_counted(parts, progress), work / "ordered", rows.spilled)
        progress.stage(f"{k}-core")
        kept_U, kept_I = find_core(lambda: _counted(spool, progress), len(user_ids), len(item_ids), k)
        if not kept_U.any():
            raise UserError(f"{meta['name']}: k_core={k} leaves no interactions: choose a smaller k_core")
        parts = iter(spool)
        progress.stage("write")
    code_I = np.cumsum(kept_I, dtype=np.int32) - 1
    n_items = int(kept_I.sum())
    counter = Counter(n_items)
    item_domains = ItemDomains(n_items) if len(domain_ids) else None
    writer: StoreWriter | None = None
    n_distinct = repeats_dropped = 0
    for part in ahead(_counted(parts, progress)):
        domain_name = FILE_DOMAIN if FILE_DOMAIN in part.columns else "domain"
        writer = writer or StoreWriter(folder, times="time" in part.columns, events=len(event_types) > 0)
        n_distinct += part.n_rows + part.repeats_dropped
        repeats_dropped += part.repeats_dropped
        part = _select(part, kept_U, kept_I) if k > 1 else part
        items_N = code_I[part.columns["item"]]
        times_N = part.columns.get("time")
        events_N = event_rank_K[part.columns["event"]] if "event" in part.columns else None
        writer.append(items_N, times_N, events_N)
        counter.add(part.lengths_U, items_N, times_N)
        if item_domains is not None:
            item_domains.add(items_N, part.columns["row"], domain_rank_K[part.columns[domain_name]])
    assert writer is not None
    statistics = counter.statistics()
    statistics["duplicates_dropped"] = n_rows - n_distinct
    domain = pl.Series([None] * n_items, dtype=pl.String)
    if item_domains is not None:
        domain = domain_ids.gather(item_domains.domain_I)
        statistics["domains"] = domain.n_unique()
    table = {"raw_id": item_ids.filter(pl.Series(kept_I)), "count": counter.counts_I, "domain": domain}
    shutil.rmtree(work)
    facts = raw.facts if raw.repeats else raw.facts | {"repeats_dropped": repeats_dropped}
    if len(event_types):
        facts = facts | {"event_types": event_types.to_list()}
    meta = {**meta, "statistics": statistics, "facts": facts}
    writer.finish(counter.offsets_U1(), pl.DataFrame(table), user_ids.filter(pl.Series(kept_U)), meta)
    progress.finish()


def _counted(parts: Iterable[Ordered], progress: Progress) -> Iterator[Ordered]:
    for part in parts:
        yield part
        progress.add(part.n_rows)


def _refuse_unfit(frame: pl.DataFrame, name: str, first_row: int) -> None:
    """Raise UserError where a data set's `read` gives a frame that is not as `RawInteractions` says."""
    if missing := {"user", "item"} - set(frame.columns):
        raise UserError(f"{name}: read() gives no column {min(missing)}; its columns are {', '.join(frame.columns)}")
    for column, dtype in frame.schema.items():
        is_text, is_whole = dtype == pl.String, dtype.is_integer()
        is_id = is_text or is_whole
        fits = {"user": is_id, "item": is_id, "time": is_whole, "event": is_id, "domain": is_text}
        if not fits.get(column, True):
            raise UserError(f"{name}: read() gives {column} as {dtype}; ids are text or integers, times integers")
        if column in fits and frame[column].null_count():
            row = first_row + int(frame[column].is_null().arg_max() or 0) + 1
            raise UserError(f"{name}, row {row}: read() gives no {column}")


def _piece(frame: pl.DataFrame, first_row: int, users: Ids, items: Ids, domains: Ids, events: Ids) -> Piece:
    """A frame's rows as integers; `row`, the number in the source, where there are domains.

    Everything is copied from the frame: memory that Polars frees is not available to numpy.
    """
    piece = {"user": narrow(users.encode(frame["user"])), "item": narrow(items.encode(frame["item"]))}
    if "time" in frame.columns:
        piece["time"] = narrow(frame["time"].cast(pl.Int64).to_numpy())
    if "event" in frame.columns:
        piece["event"] = narrow(events.encode(frame["event"]))
    for name in ("domain", FILE_DOMAIN):
        if name in frame.columns:
            piece["row"] = np.arange(first_row, first_row + frame.height, dtype=np.int64)
            piece[name] = narrow(domains.encode(frame[name]))
    if REST in frame.columns:
        piece[REST] = frame[REST].to_numpy().copy()
    return piece


def _select(part: Ordered, kept_U: np.ndarray, kept_I: np.ndarray) -> Ordered:
    """The interactions of kept users with kept items, and the lengths of kept users."""
    n_users = len(part.lengths_U)
    users_N = np.repeat(np.arange(n_users), part.lengths_U)
    kept_here_U = kept_U[part.first_user : part.first_user + n_users]
    kept_N = kept_here_U[users_N] & kept_I[part.columns["item"]]
    if kept_N.all() and kept_here_U.all():
        return part
    lengths_U = np.bincount(users_N[kept_N], minlength=n_users)[kept_here_U]
    columns = {name: column[kept_N] for name, column in part.columns.items()}
    return part._replace(lengths_U=lengths_U, columns=columns)


def source_hashes(data_dir: Path, files: list[Path]) -> list[str]:
    """SHA-256 of each file, known by path, size and mtime where preparation has noted it in `data_dir`; nothing is
    written."""
    hashed = _hashed[Path(data_dir)]
    remembered = _remembered(Path(data_dir)) | hashed
    for file in files:
        path, stat = str(file.resolve()), file.stat()
        entry = remembered.get(path)
        if not isinstance(entry, list) or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            entry = [stat.st_size, stat.st_mtime_ns, file_hash(file)]
        hashed[path] = entry
    return [hashed[str(file.resolve())][2] for file in files]


def _remembered(data_dir: Path) -> dict[str, Any]:
    try:
        found = json.loads((data_dir / "sources.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember_hashes(data_dir: Path) -> None:
    remembered, hashed = _remembered(data_dir), _hashed[data_dir]
    if any(remembered.get(path) != entry for path, entry in hashed.items()):
        with suppress(OSError):  # the next process hashes them again
            write_json(data_dir / "sources.json", remembered | hashed)
