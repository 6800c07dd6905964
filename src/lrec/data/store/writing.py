"""Write ordered interactions as the files of a store. Shape suffixes: N interactions, U users, I items, K ids."""

import io
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from lrec.common.files import file_hash, write_json
from lrec.data.store.encoding import FEATURE, Ranked
from lrec.data.store.ordering import Ordered, again, at
from lrec.data.store.store import SCHEMA, feature_array, sampled_hash


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
        statistics: dict[str, Any] = {
            "users": len(lengths_U),
            "items": n_items,
            "interactions": interactions,
            "density": interactions / (len(lengths_U) * n_items),
            "mean_length": float(lengths_U.mean()),
            "median_length": float(np.median(lengths_U)),
            "max_length": int(lengths_U.max()),
            "repeats": self._repeats,
        }
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
        self._write_table("items", {"raw_id": item_ids, "count": self._counts_I, "domain": domain})
        self._write_table("users", {"raw_id": ids["user"].ids.filter(pl.Series(self._kept_U))})
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

    def _write_table(self, name: str, columns: dict[str, Any]) -> None:
        buffer = io.BytesIO()  # so that a full disk is an OSError, not one of Polars' errors
        pl.DataFrame(columns).write_parquet(buffer)
        (self._folder / f"{name}.parquet").write_bytes(buffer.getbuffer())


def _write_header(file: IO[bytes], dtype: Any, length: int) -> None:
    """Write an array's header; numpy pads it so that its size does not depend on the length."""
    description = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, description)
