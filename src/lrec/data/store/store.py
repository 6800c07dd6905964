"""The store: a folder of flat memory-mapped sequences that ranks and workers share through the page cache; and its
statistics in words, which `lrec data describe` shows. docs/data-reference.md lists its files: an array for each kind of
value of the interactions, user after user, each in time order; tables of the items and users; and meta.json. Shape
suffixes: N interactions, U users, I items."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from lrec.common.files import file_hash, json_hash, read_json
from lrec.errors import UserError

SCHEMA = 1
# Units of time in the facts of meta.json, and how many of each make a second.
TIME_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DURATION = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_ANOTHER = "prepare another store from the raw data"
_BLOCK, _BLOCKS = 4096, 16  # bytes of a sampled block, and blocks of a file


def seconds_in(duration: str) -> int | None:
    """Seconds of a duration such as 90s, 30m, 12h, 7d or 2w; None for other text."""
    number, unit = duration[:-1], duration[-1:]
    return int(number) * _DURATION[unit] if number.isdecimal() and unit in _DURATION else None


@dataclass(frozen=True)
class Store:
    """An opened store; made by `Store.open`."""

    path: Path
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: Path, verify: bool = False) -> Self:
        """Open the store in a folder after checking each file's size, mtime and sampled blocks against meta.json. Files
        whose mtime differs (a copied store), or with `verify` all files, are hashed as a whole. UserError if there is
        no store, or if a file was truncated, edited or removed."""
        path = Path(path)
        meta = read_json(path / "meta.json")
        if meta is None:
            raise UserError(f"{path} is not a store (it has no meta.json): prepare it with `lrec data prepare`")
        if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
            raise UserError(f"{path} is not a store of this version of lrec: delete it and prepare it again")
        remedy = "delete the store and prepare it again"
        for name, recorded in meta["files"].items():
            if not (file := path / name).exists():
                raise UserError(f"{file} is missing: {remedy}")
            if (size := file.stat().st_size) != recorded["size"]:
                raise UserError(f"{file} has {size} bytes instead of {recorded['size']}: {remedy}")
            whole = verify or file.stat().st_mtime_ns != recorded["mtime_ns"]
            if sampled_hash(file) != recorded["blocks"] or (whole and file_hash(file) != recorded["sha256"]):
                raise UserError(f"{file} was edited after it was written: {remedy}")
        return cls(path, meta)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process reopens the arrays; pickling them would copy them.
        return type(self), tuple(getattr(self, each.name) for each in fields(self))

    @cached_property
    def items_N(self) -> np.ndarray:
        """Store index of each interaction's item, int32."""
        return self._map("items.npy")

    @cached_property
    def offsets_U1(self) -> np.ndarray:
        """Where each user's interactions begin, int64: user u has those from offsets_U1[u] to offsets_U1[u + 1] - 1."""
        return self._map("offsets.npy")

    @cached_property
    def times_N(self) -> np.ndarray | None:
        """Time of each interaction, int64; None if the source has no times."""
        return self._map("times.npy") if "times.npy" in self.meta["files"] else None

    @property
    def time_unit(self) -> str | None:
        """Unit of the times, one of TIME_UNITS if they are dates; None if the source does not say."""
        return self.facts.get("time_unit")

    @cached_property
    def events_N(self) -> np.ndarray | None:
        """Type of each interaction, uint8, by its place in `event_types`; None if the data have no types."""
        return self._map("events.npy") if "events.npy" in self.meta["files"] else None

    @property
    def event_types(self) -> list[str]:
        """Names of the types of event, in text order."""
        return list(self.facts.get("event_types", []))

    def of_types(self, types: list[str]) -> np.ndarray:
        """Which interactions are events of these types; UserError if the data have no such type."""
        if self.events_N is None:
            raise UserError("data.target_events: the data have no types of event (--data.event_column)")
        if unknown := [each for each in types if each not in self.event_types]:
            raise UserError(f"data.target_events {unknown[0]}: the data have {', '.join(self.event_types)}")
        return np.isin(self.events_N, [self.event_types.index(each) for each in types])

    def prepared_with(self, asked: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
        """The options of the preparation; UserError if `asked` has a value that is neither this nor the default."""
        stored = default | self.meta["reading"] | self.meta["options"]
        for option, value in asked.items():
            if value not in (stored.get(option, value), default.get(option)):
                way_out = f"leave the option out, or {_ANOTHER}"
                raise UserError(f"data.{option}={value}: {self.path} was prepared with {stored[option]}; {way_out}")
        return stored

    def check_features(self, columns: dict[str, bool]) -> None:
        """Raise UserError if a feature column is missing, or has texts instead of numbers or the reverse. `columns`
        says for each column whether it has numbers."""
        stored = {column: texts is None for column, texts in self.meta.get("features", {}).items()}
        if unlike := [column for column, is_number in columns.items() if stored.get(column) is not is_number]:
            wrong = f"without the feature {unlike[0]}, or with one of another kind"
            raise UserError(f"data: {self.path} was prepared {wrong}: {_ANOTHER}")

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Values of each feature column: float64, or int32 places in `feature_texts`."""
        columns = enumerate(self.meta.get("features", {}).items())
        return {column: self._map(f"{feature_array(n, texts is not None)}.npy") for n, (column, texts) in columns}

    def feature_texts(self, column: str) -> pl.Series:
        """The different texts of a feature column, in text order; an empty text is a missing value."""
        return pl.Series(self.meta["features"][column], dtype=pl.String)

    def feature_values(self, column: str, rows_N: np.ndarray | slice) -> pl.Series:
        """A feature column's values of these interactions, text or numbers."""
        stored_N = self.features[column][rows_N]
        is_number = self.meta["features"][column] is None
        return pl.Series(stored_N) if is_number else self.feature_texts(column).gather(stored_N)

    def seconds(self, rows_N: np.ndarray) -> np.ndarray:
        """Times of these interactions in whole seconds, int64; unchanged if the times are not dates."""
        assert self.times_N is not None
        return self.times_N[rows_N] // TIME_UNITS.get(str(self.time_unit), 1)

    @cached_property
    def item_table(self) -> pl.DataFrame:
        """raw_id, count and domain (null without domains) of each item, by store index."""
        return pl.read_parquet(self.path / "items.parquet", glob=False)

    @cached_property
    def raw_user_ids(self) -> pl.Series:
        """Raw id of each user, by store index."""
        return pl.read_parquet(self.path / "users.parquet", glob=False)["raw_id"]

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.offsets_U1) - 1

    @property
    def n_items(self) -> int:
        """Number of items."""
        return int(self.meta["statistics"]["items"])

    @property
    def statistics(self) -> dict[str, Any]:
        """Statistics from the preparation."""
        return self.meta["statistics"]

    @property
    def facts(self) -> dict[str, Any]:
        """Facts about the source beyond its rows, such as the floor of a synthetic set."""
        return self.meta["facts"]

    @property
    def hash(self) -> str:
        """Hash of the options, the source and the arrays."""
        arrays = {name: entry["sha256"] for name, entry in self.meta["files"].items() if name.endswith(".npy")}
        return json_hash([self.meta["source"], self.meta["options"], arrays])

    def _map(self, name: str) -> np.ndarray:
        # numpy cannot map an empty array, but a store is never empty.
        return np.load(self.path / name, mmap_mode="r", allow_pickle=False)


def feature_array(place: int, is_text: bool) -> str:
    """The name of a feature's array."""
    return f"feature_{'text' if is_text else 'number'}_{place}"


def sampled_hash(path: Path) -> str:
    """SHA-256 of blocks spread evenly over the file, first and last included."""
    digest = sha256()
    with path.open("rb") as file:
        for start in np.linspace(0, max(path.stat().st_size - _BLOCK, 0), _BLOCKS, dtype=np.int64):
            file.seek(int(start))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def describe(store: Path, verify: bool = False) -> None:
    """Print a store's statistics.

    Args:
        store: The store's folder.
        verify: Hash every file of the store as a whole.
    """
    opened = Store.open(store, verify)
    about = [("store", str(store)), ("k_core", str(opened.meta["options"]["k_core"]))]
    rows = [*about, *in_words(opened.statistics, opened.facts)]
    for name, texts in opened.meta.get("features", {}).items():
        rows.append((f"values of {name}", "numbers" if texts is None else f"{len(texts) - ('' in texts):,}"))
    print_rows(rows)


def print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def in_words(counted: Mapping[str, Any], about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The statistics and facts of a store, each with its name."""
    facts = dict(about)
    unit = facts.pop("time_unit", None)
    lengths = f"mean {counted['mean_length']:.1f}, median {counted['median_length']:g}, max {counted['max_length']:,}"
    rows = [(name, f"{counted[name]:,}") for name in ("users", "items", "interactions")]
    rows += [("density", f"{counted['density']:.4%}"), ("length", lengths)]
    if "first_time" in counted:
        first, last = (time_text(counted[name], unit) for name in ("first_time", "last_time"))
        rows += [("time", f"{first} to {last}"), ("ties in time", _share(counted["ties"], counted["interactions"]))]
    else:
        rows.append(("time", "none: rows are in time order"))
    rows.append(("repeats of an item", _share(counted["repeats"], counted["interactions"])))
    shown = {name: counted[name] for name in ("duplicates_dropped", "domains") if name in counted} | facts
    for name, value in shown.items():
        text = ", ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else str(value)
        rows.append((name.replace("_", " "), text))
    return rows


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"


def time_text(value: int, unit: Any) -> str:
    """A time of this unit as a date, or as a plain number if that is not possible."""
    if unit not in TIME_UNITS:
        return f"{value:,}"
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=value // TIME_UNITS[unit])
    except OverflowError:  # the year is not from 1 to 9999
        return f"{value:,} {unit}"
    return f"{moment:%Y-%m-%d %H:%M}"
