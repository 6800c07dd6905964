"""Raw interactions in, a store out: k-core to its fixed point, stable order, integer encoding, statistics.

Shape suffixes: N interactions, U users, I items.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lrec.data.store import SCHEMA, write_store
from lrec.errors import UserError
from lrec.files import file_hash, json_hash, locked, write_json


@dataclass(frozen=True)
class RawInteractions:
    """What a data set hands over: its rows in the order of the source, and what it says of itself.

    Attributes:
        frame: Columns user and item (strings or integers), time (int64, absent where the source has none) and
            domain (string, optional), none of them null.
        facts: JSON-able: kept in meta.json, e.g. duplicates_dropped, time_unit ("s", "ms" or "us"), floor.
    """

    frame: pl.DataFrame | pl.LazyFrame
    facts: dict[str, Any] = field(default_factory=dict)


def store_path(data_dir: Path, name: str, source: dict[str, Any], k_core: int) -> Path:
    """Where the store of this source and these options lies."""
    return Path(data_dir) / f"{name}-{json_hash([SCHEMA, source, k_core])[:16]}"


def prepare_store(
    data_dir: Path, name: str, source: dict[str, Any], k_core: int, read: Callable[[], RawInteractions]
) -> Path:
    """Write the store unless it is there, and return its path. Processes that want the same store wait for the first.

    Args:
        data_dir: Folder of all stores.
        name: First part of the store's name.
        source: JSON-able identity of the raw data (file hashes, options of reading).
        k_core: Keep users and items with at least so many interactions among the kept; 0 keeps all.
        read: Reads the raw data; called only if the store is not there.
    """
    path = store_path(data_dir, name, source, k_core)
    if path.exists():
        return path
    with locked(Path(data_dir) / ".lock"):
        if not path.exists():
            print(f"preparing {path}", file=sys.stderr)
            _write(path, name, source, k_core, read())
    return path


def _write(path: Path, name: str, source: dict[str, Any], k_core: int, raw: RawInteractions) -> None:
    frame = raw.frame.lazy().collect()
    if frame.is_empty():
        raise UserError(f"{name}: no interactions are left to prepare")
    users_N, user_ids = _encode(frame["user"])
    items_N, item_ids = _encode(frame["item"])
    kept_N = k_core_rows(users_N, items_N, k_core)
    if len(kept_N) == 0:
        raise UserError(f"{name}: k_core={k_core} leaves no interactions: choose a smaller k_core")
    users_N, kept_users = _compact(users_N[kept_N])
    items_N, kept_items = _compact(items_N[kept_N])
    columns = {"user": users_N, "item": items_N}
    if "time" in frame.columns:
        columns["time"] = frame["time"].to_numpy()[kept_N].astype(np.int64, copy=False)
    if "domain" in frame.columns:
        columns["row"] = kept_N
    # The rows come in the order of the source, so a stable sort leaves ties in that order.
    ordered = pl.DataFrame(columns).sort([c for c in ("user", "time") if c in columns], maintain_order=True)
    items_N = ordered["item"].to_numpy()
    times_N = ordered["time"].to_numpy() if "time" in columns else None
    offsets_U1 = np.concatenate([[0], np.cumsum(np.bincount(users_N, minlength=len(kept_users)))])
    counts_I = np.bincount(items_N, minlength=len(kept_items))
    domains = _item_domains(frame["domain"], ordered) if "domain" in frame.columns else None
    item_table = pl.DataFrame(
        {
            "raw_id": item_ids.gather(kept_items),
            "count": counts_I,
            "domain": pl.Series([None] * len(kept_items), dtype=pl.String) if domains is None else domains,
        }
    )
    statistics = _statistics(ordered["user"].to_numpy(), items_N, times_N, offsets_U1, len(kept_items))
    statistics["duplicates_dropped"] = raw.facts.get("duplicates_dropped", 0)
    if domains is not None:
        statistics["domains"] = domains.n_unique()
    meta = {"name": name, "source": source, "options": {"k_core": k_core}, "statistics": statistics, "facts": raw.facts}
    write_store(path, items_N, offsets_U1, times_N, item_table, user_ids.gather(kept_users), meta)


def _encode(ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Codes of the ids and the ids by code: text order, so that the order of the source's rows does not matter."""
    ids = ids.cast(pl.String).alias("id")
    unique = ids.unique().sort()
    table = pl.DataFrame({"id": unique, "code": np.arange(len(unique), dtype=np.int64)})
    codes = ids.to_frame().join(table, on="id", how="left", maintain_order="left")["code"]
    assert codes.null_count() == 0, "null ids must be refused when they are read"
    return codes.to_numpy(), unique


def k_core_rows(users_N: np.ndarray, items_N: np.ndarray, k: int) -> np.ndarray:
    """Rows, ascending, of the largest subset in which every user and every item has at least k interactions."""
    rows = np.arange(len(users_N))
    while len(rows):
        users, items = users_N[rows], items_N[rows]
        keep = (np.bincount(users)[users] >= k) & (np.bincount(items)[items] >= k)
        if keep.all():
            break
        rows = rows[keep]
    return rows


def _compact(codes_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Renumber codes without gaps, keeping their order; also the old code of each new one."""
    used = np.flatnonzero(np.bincount(codes_N))
    renumber = np.zeros(used[-1] + 1, dtype=np.int64)
    renumber[used] = np.arange(len(used))
    return renumber[codes_N], used


def _item_domains(domains: pl.Series, ordered: pl.DataFrame) -> pl.Series:
    """The domain of each item: that of its first row in the source."""
    first = ordered.group_by("item").agg(pl.col("row").min()).sort("item")
    return domains.cast(pl.String).gather(first["row"])


def _statistics(
    users_N: np.ndarray, items_N: np.ndarray, times_N: np.ndarray | None, offsets_U1: np.ndarray, n_items: int
) -> dict[str, Any]:
    lengths_U = np.diff(offsets_U1)
    pairs = pl.Series(users_N * np.int64(n_items) + items_N).n_unique()
    statistics: dict[str, Any] = {
        "users": len(lengths_U),
        "items": n_items,
        "interactions": len(items_N),
        "density": len(items_N) / (len(lengths_U) * n_items),
        "mean_length": float(lengths_U.mean()),
        "median_length": float(np.median(lengths_U)),
        "max_length": int(lengths_U.max()),
        "repeats": len(items_N) - pairs,
    }
    if times_N is not None:
        tied = (np.diff(times_N) == 0) & (np.diff(users_N) == 0)
        statistics["ties"] = int(tied.sum())
        statistics["first_time"] = int(times_N.min())
        statistics["last_time"] = int(times_N.max())
    return statistics


def source_hashes(data_dir: Path, files: list[Path]) -> list[str]:
    """SHA-256 of each file, remembered in `data_dir` by path, size and mtime."""
    memory = Path(data_dir) / "sources.json"
    try:
        remembered = json.loads(memory.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        remembered = {}
    found: dict[str, list[Any]] = {}
    for file in files:
        path, stat = str(file.resolve()), file.stat()
        entry = remembered.get(path)
        if entry is None or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            entry = [stat.st_size, stat.st_mtime_ns, file_hash(file)]
        found[path] = entry
    if any(remembered.get(path) != entry for path, entry in found.items()):
        write_json(memory, remembered | found)
    return [found[str(file.resolve())][2] for file in files]
