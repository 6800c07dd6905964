"""Write ordered interactions as the files of a store. Shape suffixes: N interactions, U users, I items, K ids."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lrec.common.files import file_hash, write_json
from lrec.data.store.encoding import FEATURE, RankedIds
from lrec.data.store.ordering import Ordered
from lrec.data.store.statistics import Counter
from lrec.data.store.store import SCHEMA, feature_array, sampled_hash, write_array

_TYPES: dict[str, Any] = {"items": np.int32, "offsets": np.int64, "times": np.int64, "events": np.uint8}
_TYPES |= {"feature_text_": np.int32, "feature_number_": np.float64}  # followed by a number


class StoreWriter:
    """Writes a store into an empty folder, one range of users after the other. The store is complete once `finish` has
    returned. Only the kept users and items are written."""

    def __init__(self, folder: Path, ids: RankedIds, kept_U: np.ndarray, kept_I: np.ndarray) -> None:
        self._folder, self._ids, self._kept_U, self._kept_I = folder, ids, kept_U, kept_I
        self._all_are_kept = bool(kept_U.all() and kept_I.all())
        self._index_I = np.cumsum(kept_I, dtype=np.int32) - 1  # of an item among the kept items
        n_items = int(kept_I.sum())
        self._counter = Counter(n_items)
        self._lengths: dict[str, int] = {}  # of the arrays
        self._n_distinct = self._repeats_dropped = 0
        # An item has the domain of its first row in the source. It is in the least row * n_domains + domain.
        self._first_I = np.full(n_items, np.iinfo(np.int64).max)

    def append(self, part: Ordered) -> None:
        """Write the interactions of the next users."""
        self._n_distinct += part.n_rows + part.repeats_dropped
        self._repeats_dropped += part.repeats_dropped
        lengths_U, columns = part.lengths_U, part.columns
        if not self._all_are_kept:
            kept_N, lengths_U = part.those_kept(self._kept_U, self._kept_I)
            lengths_U = lengths_U[lengths_U > 0]
            columns = {name: column[kept_N] for name, column in columns.items()}
        items_N, times_N = self._index_I[columns["item"]], columns.get("time")
        self._extend("items", items_N)
        if times_N is not None:
            self._extend("times", times_N)
        if "event" in columns:
            self._extend("events", self._ids.events.rank_K[columns["event"]])
        for place, (name, ranked) in enumerate(self._ids.features.items()):
            values_N = columns[name] if ranked is None else ranked.rank_K[columns[name]]
            self._extend(feature_array(place, None if ranked is None else []), values_N)
        if n_domains := len(self._ids.domains.ids):
            domain_N = self._ids.domains.rank_K[columns["domain"]]
            np.minimum.at(self._first_I, items_N, columns["row"] * n_domains + domain_N)
        self._counter.add(lengths_U, items_N, times_N)

    def finish(self, meta: dict[str, Any], facts: dict[str, Any], n_rows: int) -> None:
        """Write the tables of ids, and meta.json: `meta`, statistics and facts. The source had `n_rows` rows."""
        ids, counter = self._ids, self._counter
        self._extend("offsets", counter.offsets_U1())
        statistics = counter.statistics() | {"duplicates_dropped": n_rows - self._n_distinct}
        domain = pl.Series([None] * len(counter.counts_I), dtype=pl.String)
        if n_domains := len(ids.domains.ids):
            domain = ids.domains.ids.gather(self._first_I % n_domains)
            statistics["domains"] = domain.n_unique()
        if meta["reading"].get("repeats", True) is not True:
            facts = facts | {"repeats_dropped": self._repeats_dropped}
        if len(ids.events.ids):
            facts = facts | {"event_types": ids.events.ids.to_list()}
        if ids.features:
            texts = {
                name.removeprefix(FEATURE): None if ranked is None else ranked.ids.to_list()
                for name, ranked in ids.features.items()
            }
            meta = meta | {"features": texts}
        for name, length in self._lengths.items():
            with (self._folder / f"{name}.npy").open("r+b") as file:
                file.write(_header(name, length))
        item_ids = ids.items.ids.filter(pl.Series(self._kept_I))
        self._write_table("items", {"raw_id": item_ids, "count": counter.counts_I, "domain": domain})
        self._write_table("users", {"raw_id": ids.users.ids.filter(pl.Series(self._kept_U))})
        about = {"schema": SCHEMA, **meta, "statistics": statistics, "facts": facts}
        write_json(self._folder / "meta.json", {**about, "files": self._hashed()})

    def _extend(self, name: str, values_N: np.ndarray) -> None:
        """Append values to an array."""
        path = self._folder / f"{name}.npy"
        if name not in self._lengths:
            self._lengths[name] = 0
            path.write_bytes(_header(name, 0))
        self._lengths[name] += len(values_N)
        with path.open("ab") as file:
            write_array(file, np.ascontiguousarray(values_N, dtype=_type(name)))

    def _write_table(self, name: str, columns: dict[str, Any]) -> None:
        buffer = io.BytesIO()  # so that a full disk is an OSError, not one of Polars' errors
        pl.DataFrame(columns).write_parquet(buffer)
        (self._folder / f"{name}.parquet").write_bytes(buffer.getbuffer())

    def _hashed(self) -> dict[str, dict[str, Any]]:
        """Size, mtime and hashes of every file."""
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(self._folder.iterdir()):
            files[path.name] = {"size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
            files[path.name] |= {"blocks": sampled_hash(path, path.stat().st_size), "sha256": file_hash(path)}
        return files


def _type(name: str) -> np.dtype:
    return np.dtype(_TYPES[name.rstrip("0123456789")])


def _header(name: str, length: int) -> bytes:
    """The header of an array; numpy pads it so that its size does not depend on the length."""
    header = io.BytesIO()
    description = {"descr": _type(name).str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()
