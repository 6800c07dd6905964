"""Raw files in, tables out: decompression, parsing, and the check of every row that is used.

Whatever is wrong with a file ends as a UserError that names the file and the row, counted from 1, header included.
"""

import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import zstandard
from polars.exceptions import PolarsError

from lrec.data.prepare import RawInteractions
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
_COMPRESSIONS = (".gz", ".xz", ".zst")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are used; None: there is none."""

    user: str
    item: str
    time: str | None = None
    domain: str | None = None
    rating: str | None = None


@dataclass(frozen=True)
class Table:
    """A raw file's rows.

    Attributes:
        name: The file, for messages.
        frame: All its columns.
        first_row: Number of the first row of `frame`: 2 after a header.
        domain: The domain of all its rows, where the file as a whole has one. It is no column: rows that differ in
            nothing else are duplicates.
    """

    name: str
    frame: pl.DataFrame
    first_row: int
    domain: str | None = None


def infer_format(name: str) -> Format | None:
    """The format a file's name tells, a compression's ending aside."""
    path = Path(name)
    if path.suffix in _COMPRESSIONS:
        path = path.with_suffix("")
    return _FORMATS.get(path.suffix.lower())


def read_table(path: Path, file_format: Format) -> Table:
    """Read a file, compressed or not, with all its columns."""
    data = read_bytes(path)
    match file_format:
        case "csv":
            return parse_csv(data, str(path), ",")
        case "tsv":
            return parse_csv(data, str(path), "\t")
        case "jsonl":
            return parse_jsonl(data, str(path))
        case "lines":
            return parse_lines(data, str(path))
        case "parquet":
            try:
                return Table(str(path), pl.read_parquet(io.BytesIO(data)), 1)
            except PolarsError as error:
                raise UserError(f"{path} is not a whole Parquet file ({_first_line(error)})") from None


def read_bytes(path: Path) -> bytes:
    """A file's bytes, decompressed as its ending says."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return decompress(data, path.name, str(path))


def decompress(data: bytes, file_name: str, name: str) -> bytes:
    """Decompress by the ending of `file_name`; `name` is for messages."""
    if not data:
        raise UserError(f"{name} is empty")
    try:
        match Path(file_name).suffix:
            case ".gz":
                data = gzip.decompress(data)
            case ".xz":
                data = lzma.decompress(data)
            case ".zst":
                data = _decompress_zst(data)
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise UserError(f"{name} is cut off or damaged: {_first_line(error)}; fetch it again") from None
    if not data.strip():
        raise UserError(f"{name} is empty")
    return data


def _decompress_zst(data: bytes) -> bytes:
    parts = []
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(data))
        if not frame.eof:
            raise EOFError("the stream ends before its end mark")
        data = frame.unused_data
    return b"".join(parts)


def parse_csv(data: bytes, name: str, separator: str, header: list[str] | None = None) -> Table:
    """Parse delimited text into columns of text; `header` names the columns of a file without a header."""
    data = data.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    try:
        frame = pl.read_csv(
            data, separator=separator, has_header=header is None, new_columns=header, infer_schema=False
        )
    except PolarsError as error:
        _refuse_row(data, name, separator, header)
        raise UserError(f"{name} is not delimited text ({_first_line(error)})") from None
    if header is not None and frame.width != len(header):
        raise UserError(f"{name}, row 1: {frame.width} fields where {len(header)} are expected ({', '.join(header)})")
    if frame.is_empty():
        raise UserError(f"{name} has a header but no rows")
    # Polars fills a row that is too short with nulls.
    if frame[frame.columns[-1]].null_count():
        _refuse_row(data, name, separator, header)
    return Table(name, frame, 2 if header is None else 1)


def _refuse_row(data: bytes, name: str, separator: str, header: list[str] | None) -> None:
    """Raise for the first row that is not UTF-8 or has too few or too many fields."""
    text = _decode(data, name)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    width = None if header is None else len(header)
    try:
        for row, fields in enumerate(reader, start=1):
            width = width or len(fields)
            if len(fields) != width:
                raise UserError(f"{name}, row {row}: {len(fields)} fields where {width} are expected")
    except csv.Error as error:
        raise UserError(f"{name}, row {row + 1}: {error}") from None


def parse_jsonl(data: bytes, name: str) -> Table:
    """Parse one JSON object per line into columns of text; nested values become JSON text."""
    try:
        try:
            columns = pl.read_ndjson(data, infer_schema_length=None).columns
        except PolarsError:  # a damaged line, or types of a column that do not go together
            columns = _json_keys(data, name)
        frame = pl.read_ndjson(data, schema=dict.fromkeys(columns, pl.String))
    except PolarsError as error:
        raise UserError(f"{name} is not JSON lines ({_first_line(error)})") from None
    return Table(name, frame, 1)


def _json_keys(data: bytes, name: str) -> list[str]:
    """The keys of all objects; raises for the first line that is not an object."""
    keys: dict[str, None] = {}
    for row, line in enumerate(_decode(data, name).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UserError(f"{name}, row {row}: not one JSON object per line")
        keys |= dict.fromkeys(value)
    return list(keys)


def parse_lines(data: bytes, name: str) -> Table:
    """Parse `user item item ...` per line, in time order, into columns user and item."""
    lines = pl.Series("line", _decode(data, name).rstrip("\r\n").split("\n"))
    words = lines.str.strip_chars().str.replace_all(r"\s+", " ").str.split(" ")
    short = (words.list.len() < 2).arg_true()
    if len(short):
        raise UserError(f"{name}, row {short[0] + 1}: a user and at least one item are expected, between blanks")
    frame = pl.DataFrame({"user": words.list.first(), "item": words.list.slice(1)})
    repeated = frame["user"].is_first_distinct().not_().arg_true()
    if len(repeated):
        row = repeated[0]
        raise UserError(f"{name}, row {row + 1}: user {frame['user'][row]} has a line already")
    return Table(name, frame.explode("item"), 1)


def to_interactions(
    tables: Iterable[Table], columns: Columns, min_rating: float | None = None, duplicates: bool = False
) -> RawInteractions:
    """Check the rows that are used, drop exact duplicates, and keep ratings of at least `min_rating`.

    Args:
        tables: Raw tables with the same columns.
        columns: Which of their columns are used.
        min_rating: Least rating of a row that is kept; None keeps all.
        duplicates: Keep rows that are identical in every column.
    """
    frames: list[pl.DataFrame] = []
    units: dict[str, str] = {}
    first: Table | None = None
    for table in tables:
        first = first or table
        if table.frame.columns != first.frame.columns:
            found = ", ".join(table.frame.columns)
            raise UserError(f"{table.name} has other columns than {first.name}: {found}")
        checked, unit = _check(table, columns, min_rating)
        if unit is not None:
            units.setdefault(unit, table.name)
        frames.append(table.frame.with_columns(column.alias(_mark(key)) for key, column in checked.items()))
    if len(units) > 1:
        listed = ", ".join(f"{name} ({unit})" for unit, name in units.items())
        raise UserError(f"the files' times are in different units: {listed}")
    try:
        frame = pl.concat(frames, how="vertical_relaxed")
    except PolarsError as error:
        raise UserError(f"the files' columns have different types ({_first_line(error)})") from None
    n_rows = len(frame)
    if not duplicates:
        assert first is not None
        frame = frame.filter(_first_of_equal(frame.select(first.frame.columns)))
    facts: dict[str, Any] = {"duplicates_dropped": n_rows - len(frame)}
    if units:
        facts["time_unit"] = next(iter(units))
    if min_rating is not None:
        frame = frame.filter(pl.col(_mark("rating")) >= min_rating)
        if frame.is_empty():
            raise UserError(f"min_rating={min_rating} leaves no interactions: choose a smaller one")
    used = [key for key in ("user", "item", "time", "domain") if _mark(key) in frame.columns]
    return RawInteractions(frame.select(pl.col(_mark(key)).alias(key) for key in used), facts)


def _first_of_equal(frame: pl.DataFrame) -> pl.Series:
    """Whether each row is the first of those identical in every column."""
    suspected = frame.hash_rows().is_duplicated().to_numpy()
    first = ~suspected
    # Equal hashes only make rows suspect; comparing all rows would cost several times the memory.
    first[suspected] = frame.filter(suspected).select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    return pl.Series(first)


def _mark(key: str) -> str:
    return f"\0{key}"


def _check(table: Table, columns: Columns, min_rating: float | None) -> tuple[dict[str, pl.Series], str | None]:
    """The used columns in their final types, and the unit of time."""
    wanted = {"user": columns.user, "item": columns.item, "time": columns.time, "domain": columns.domain}
    if min_rating is not None:
        wanted["rating"] = columns.rating
    checked: dict[str, pl.Series] = {}
    unit = None
    for key, column in wanted.items():
        if column is None:
            continue
        if column not in table.frame.columns:
            found = ", ".join(table.frame.columns)
            raise UserError(f"{table.name} has no column {column} (option {key}_column); its columns are {found}")
        raw = table.frame[column]
        if raw.dtype.is_nested() or raw.dtype in (pl.Binary, pl.Object):
            raise UserError(f"{table.name}: column {column} holds {raw.dtype}, not text or numbers")
        if key == "time":
            checked[key], unit = _times(raw)
            problem = "is neither a whole number of seconds or milliseconds nor an ISO date"
        elif key == "rating":
            checked[key] = raw.cast(pl.Float64, strict=False).fill_nan(None)
            problem = "is not a number"
        else:
            checked[key] = raw.cast(pl.String)
            problem = "is not text"
        blank = (raw.str.strip_chars() == "").fill_null(True) if raw.dtype == pl.String else raw.is_null()
        bad = (blank | checked[key].is_null()).arg_true()
        if len(bad):
            what = "is empty" if blank[bad[0]] else f"{problem}: {raw[bad[0]]}"
            raise UserError(f"{table.name}, row {bad[0] + table.first_row}: {column} {what}")
    if table.domain is not None:
        checked["domain"] = pl.repeat(table.domain, len(table.frame), dtype=pl.String, eager=True)
    return checked, unit


def _times(raw: pl.Series) -> tuple[pl.Series, str]:
    """Times as int64, null where they cannot be read, and their unit: s, ms, us or ns."""
    if raw.dtype.is_temporal():
        return raw.cast(pl.Datetime("us"), strict=False).dt.epoch("us"), "us"
    if raw.dtype == pl.String:
        text = raw.str.strip_chars()
        numbers = text.cast(pl.Int64, strict=False)
        if numbers.null_count():
            dates = _iso_times(text)
            if dates.null_count() < numbers.null_count():
                return dates, "us"
            numbers = numbers.fill_null(_whole(text.cast(pl.Float64, strict=False)))
    elif raw.dtype.is_float():
        numbers = _whole(raw)
    elif raw.dtype.is_integer():
        numbers = raw.cast(pl.Int64, strict=False)
    else:
        numbers = pl.Series([None] * len(raw), dtype=pl.Int64)
    size = numbers.abs().cast(pl.Float64).quantile(0.5) or 0.0
    return numbers, "s" if size < 1e11 else "ms" if size < 1e14 else "us" if size < 1e17 else "ns"


def _whole(numbers: pl.Series) -> pl.Series:
    """Numbers without a fraction as int64, null for others."""
    return pl.select(pl.when(numbers == numbers.floor()).then(numbers)).to_series().cast(pl.Int64, strict=False)


def _iso_times(text: pl.Series) -> pl.Series:
    """Microseconds since 1970 of ISO 8601 dates, with or without a time and an offset; null for others."""
    spaced = text.str.replace("T", " ", literal=True).str.replace(r"Z$", "+00:00")
    dates = spaced.str.to_datetime("%Y-%m-%d", time_unit="us", strict=False)
    for pattern in ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"):
        dates = dates.fill_null(spaced.str.to_datetime(pattern, time_unit="us", strict=False))
    offsets = spaced.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%#z", time_unit="us", time_zone="UTC", strict=False)
    return dates.dt.epoch("us").fill_null(offsets.dt.epoch("us"))


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}, row {row}: not UTF-8 text") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
