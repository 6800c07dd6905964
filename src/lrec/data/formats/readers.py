"""Raw files in, checked interactions out, block by block.

Any mistake in a file is a UserError that names the file and the row, counted from 1 with the header.
"""

import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from lrec.data.formats.parsing import Table, csv_tables, jsonl_tables, lines_tables, parquet_tables
from lrec.data.formats.streams import COMPRESSIONS, pieces
from lrec.data.formats.times import UNIT_BOUNDS, UNITS, not_a_time, parse_times
from lrec.data.store.encoding import FILE_DOMAIN, REST
from lrec.data.store.prepare import RawInteractions
from lrec.errors import UserError

Format = Literal["csv", "tsv", "jsonl", "parquet", "lines"]

_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".inter": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "lines",
}
# A smaller number may be a time in any unit: a year from 1970 on has 3e7 seconds.
_ANY_UNIT = 10**8
_IN_WORDS = ("seconds", "milliseconds", "microseconds", "nanoseconds")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are used; None where there is no such column."""

    user: str
    item: str
    time: str | None = None
    domain: str | None = None
    rating: str | None = None
    event: str | None = None

    @property
    def integers(self) -> tuple[str, ...]:
        """Columns that are read as integers where their text allows it."""
        return (self.user, self.item) if self.time is None else (self.user, self.item, self.time)


def infer_format(name: str) -> Format | None:
    """The format that a file's ending tells, apart from that of a compression."""
    path = Path(name)
    if path.suffix in COMPRESSIONS:
        path = path.with_suffix("")
    return _FORMATS.get(path.suffix.lower())


def read_table(path: Path, file_format: Format, columns: Columns) -> Iterator[Table]:
    """Read a file, compressed or not, with all its columns, block by block."""
    match file_format:
        case "csv":
            yield from csv_tables(pieces(path), str(path), ",", integers=columns.integers)
        case "tsv":
            yield from csv_tables(pieces(path), str(path), "\t", integers=columns.integers)
        case "jsonl":
            yield from jsonl_tables(pieces(path), str(path))
        case "lines":
            yield from lines_tables(pieces(path), str(path))
        case "parquet":
            compressed = path.suffix in COMPRESSIONS
            yield from parquet_tables(io.BytesIO(read_bytes(path)) if compressed else path, str(path))


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, decompressed according to its ending."""
    data = b"".join(pieces(path))
    if not data.strip():
        raise UserError(f"{path} is empty")
    return data


def to_interactions(
    tables: Iterable[Table], columns: Columns, min_rating: float | None = None, duplicates: bool = False
) -> RawInteractions:
    """Check the rows that are used and keep ratings of at least `min_rating`.

    Args:
        tables: Raw tables with the same columns; the rows of a file are consecutive.
        columns: Which of their columns are used.
        min_rating: Least rating of a row that is kept; None keeps all.
        duplicates: Keep rows that are identical in every column.
    """
    facts: dict[str, Any] = {}
    return RawInteractions(_checked_frames(tables, columns, min_rating, duplicates, facts), facts)


def _checked_frames(
    tables: Iterable[Table], columns: Columns, min_rating: float | None, duplicates: bool, facts: dict[str, Any]
) -> Iterator[pl.DataFrame]:
    """Frames of user, item, time, event, domain or FILE_DOMAIN, and REST unless duplicates are kept.

    Notes the unit of time in `facts`.
    """
    wanted = {name: getattr(columns, name) for name in ("user", "item", "time", "event", "domain")}
    exact = [column for key, column in wanted.items() if column is not None and key != "time"]
    if min_rating is not None:
        wanted["rating"] = columns.rating
    agreement = _Agreement()
    units = _Units()
    kept = 0
    for table in tables:
        agreement.check(table)
        if table.frame.is_empty():
            continue
        dates = units.dates(table.name)
        checked, was_dates = _check(table, wanted, dates)
        if "time" in checked:
            assert columns.time is not None
            units.note(table, columns.time, checked["time"], was_dates)
        if not duplicates:
            checked[REST] = _rest(table, exact, columns.time, checked.get("time"))
        frame = pl.DataFrame([series.alias(key) for key, series in checked.items()])
        if min_rating is not None:
            frame = frame.filter(pl.col("rating") >= min_rating).drop("rating")
        kept += frame.height
        yield frame
    if min_rating is not None and kept == 0:
        raise UserError(f"min_rating={min_rating} leaves no interactions: choose a smaller one")
    if (unit := units.unit()) is not None:
        facts["time_unit"] = unit


class _Agreement:
    """Whether all tables have the same columns, of types that can be compared."""

    def __init__(self) -> None:
        self._first: Table | None = None
        self._types: dict[str, str] = {}

    def check(self, table: Table) -> None:
        frame = table.frame
        if self._first is None:
            self._first = Table(table.name, frame.clear(), 1)
        elif not table.keys_vary and set(frame.columns) != set(self._first.frame.columns):
            found = ", ".join(frame.columns)
            raise UserError(f"{table.name} has other columns than {self._first.name}: {found}")
        for column, dtype in frame.schema.items():
            kind = "number" if dtype.is_numeric() else str(dtype)
            if table.text and dtype.is_integer():
                kind = "String"
            if dtype != pl.Null and self._types.setdefault(column, kind) != kind:
                raise UserError(f"{table.name}: the files' columns have different types ({column} is {dtype})")


class _Units:
    """The unit of each file's times: microseconds for dates; for numbers, the median decides.

    A time below 1e8 in size may be of any unit. Any other one that is a date in another unit than the median's is
    refused, for it would be put in order as if it were of the median's.
    """

    def __init__(self) -> None:
        self._dates: dict[str, bool] = {}
        self._counts: dict[str, np.ndarray] = {}
        # Of each file, for each unit: the first row with such a time.
        self._first: dict[str, dict[int, str]] = {}

    def dates(self, name: str) -> bool | None:
        return self._dates.get(name)

    def note(self, table: Table, column: str, times: pl.Series, dates: bool) -> None:
        name = table.name
        self._dates[name] = dates
        sizes_N = np.abs(times.to_numpy())
        below = np.array([0, *(np.count_nonzero(sizes_N < bound) for bound in UNIT_BOUNDS), len(sizes_N)])
        counts = np.diff(below)
        self._counts[name] = self._counts.get(name, np.zeros(len(UNITS), dtype=np.int64)) + counts
        first = self._first.setdefault(name, {})
        for unit in np.flatnonzero(counts).tolist():
            least = UNIT_BOUNDS[unit - 1] if unit else _ANY_UNIT
            if unit not in first and (found := np.flatnonzero((sizes_N >= least) & _below(sizes_N, unit))).size:
                first[unit] = f"{name}, row {table.first_row + found[0]}: {column} {times[int(found[0])]}"

    def unit(self) -> str | None:
        found: dict[str, str] = {}
        for name, counts in self._counts.items():
            unit = int(np.searchsorted(np.cumsum(counts), (counts.sum() + 1) // 2))
            if not self._dates[name]:
                for other, where in self._first[name].items():
                    if other != unit:
                        raise UserError(
                            f"{where} is a time in {_IN_WORDS[other]}, most of the file's are in {_IN_WORDS[unit]}: "
                            "give all of them in one unit"
                        )
            found.setdefault("us" if self._dates[name] else UNITS[unit], name)
        if len(found) > 1:
            listed = ", ".join(f"{name} ({unit})" for unit, name in found.items())
            raise UserError(f"the files' times are in different units: {listed}")
        return next(iter(found), None)


def _below(sizes_N: np.ndarray, unit: int) -> np.ndarray | bool:
    return sizes_N < UNIT_BOUNDS[unit] if unit < len(UNIT_BOUNDS) else True


def _rest(table: Table, exact: list[str], time_column: str | None, times: pl.Series | None) -> pl.Series:
    """A hash of 64 bits of each row's columns apart from `exact`, to find rows that are identical in every column.

    It is a sum over columns, so that a missing key of a JSON object equals null and the order of keys does not matter.
    """
    total = np.zeros(table.frame.height, dtype=np.uint64)
    for column, raw in table.frame.to_dict().items():
        if column in exact or raw.dtype == pl.Null:
            continue
        if column == time_column and times is not None:
            if raw.dtype.is_integer():
                continue
            if raw.dtype == pl.String:
                # Text that spells a number unusually differs from another spelling of the same number.
                unusual = _unusual_numbers(raw, times)
                if len(unusual) == 0:
                    continue
                odd = np.zeros(len(raw), dtype=bool)
                odd[unusual] = True
                raw = raw.zip_with(pl.Series(odd), pl.Series([None], dtype=pl.String))
        if raw.dtype in (pl.Int8, pl.Int16, pl.Int32, pl.UInt8, pl.UInt16, pl.UInt32):
            raw = raw.cast(pl.Int64)
        elif raw.dtype.is_float():
            raw = raw.cast(pl.Float64)
        hashes = raw.hash(zlib.crc32(column.encode())).to_numpy()
        total += np.where(raw.is_null().to_numpy(), np.uint64(0), hashes) if raw.null_count() else hashes
    return pl.Series(total)


def _unusual_numbers(raw: pl.Series, numbers: pl.Series) -> np.ndarray:
    """Rows whose text is not the usual spelling of its number."""
    lengths = raw.str.len_bytes().to_numpy()
    # A text of n characters whose value has n digits consists of those digits.
    least = np.concatenate([[0], 10 ** np.arange(1, 19, dtype=np.int64)])[np.minimum(lengths, 19) - 1]
    rows = np.flatnonzero((numbers.to_numpy() < least) | (lengths > 19))
    return rows[(raw.gather(rows) != numbers.gather(rows).cast(pl.String)).to_numpy()]


def _blank(raw: pl.Series) -> np.ndarray:
    """Rows that are null or consist of blanks."""
    blank = raw.is_null().to_numpy().copy()
    if raw.dtype == pl.String:
        # Every blank sorts before "!" or after ASCII; this spares most rows the slow test.
        rows = ((raw < "!") | (raw > "~")).fill_null(False).arg_true()
        blank[rows.to_numpy()] = (raw.gather(rows).str.strip_chars() == "").to_numpy()
    return blank


def _check(table: Table, wanted: dict[str, str | None], dates: bool | None) -> tuple[dict[str, pl.Series], bool]:
    """The used columns in their final types, and whether times were dates."""
    checked: dict[str, pl.Series] = {}
    was_dates = False
    for key, column in wanted.items():
        if column is None:
            continue
        if column not in table.frame.columns and table.keys_vary and table.first_row > 1:
            raise UserError(f"{table.name}, row {table.first_row}: {column} is empty")
        if column not in table.frame.columns:
            found = ", ".join(table.frame.columns)
            raise UserError(f"{table.name} has no column {column} (option {key}_column); its columns are {found}")
        raw = table.frame[column]
        if raw.dtype.is_nested() or raw.dtype in (pl.Binary, pl.Object, pl.Duration, pl.Time):
            raise UserError(f"{table.name}: column {column} holds {raw.dtype}, not text or numbers")
        if key == "time":
            if table.text and dates and raw.dtype.is_integer():
                raw = raw.cast(pl.String)
            checked[key], was_dates = parse_times(raw, dates)
            problem = ""
        elif key == "rating":
            checked[key] = raw.cast(pl.Float64, strict=False).fill_nan(None)
            problem = "is not a number"
        else:
            checked[key] = raw if raw.dtype.is_integer() and key != "domain" else raw.cast(pl.String)
            problem = "is not text"
        # A blank is text, but not a number.
        is_text = key not in ("time", "rating") and raw.dtype == pl.String
        if not is_text and checked[key].null_count() == 0:
            continue
        bad_rows = checked[key].is_null().to_numpy()
        if is_text:
            bad_rows = bad_rows | _blank(raw)
        bad = np.flatnonzero(bad_rows).tolist()
        if bad:
            blank = _blank(raw)
            problem = problem or not_a_time(raw, bad[0])
            what = "is empty" if blank[bad[0]] else f"{problem}: {' '.join(str(raw[bad[0]]).split())[:80]}"
            raise UserError(f"{table.name}, row {bad[0] + table.first_row}: {column} {what}")
    if table.domain is not None:
        assert "domain" not in checked
        checked[FILE_DOMAIN] = pl.repeat(table.domain, table.frame.height, dtype=pl.String, eager=True)
    return checked, was_dates
