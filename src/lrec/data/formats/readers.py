"""Read raw files as checked interactions, block by block. Any mistake in a file is a UserError that names the file and
the row, counted from 1 with the header."""

import io
import json
import math
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from lrec.data.formats.parsing import Table, csv_tables, jsonl_tables, lines_tables, parquet_tables
from lrec.data.formats.streams import COMPRESSIONS, unpacked
from lrec.data.formats.times import TimeUnits, not_a_time, parse_times
from lrec.data.store.encoding import FEATURE, REST, SEPARATOR
from lrec.data.store.prepare import RawInteractions
from lrec.errors import UserError

Format = Literal["csv", "tsv", "jsonl", "parquet", "lines"]

_FORMATS: dict[str, Format] = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet", ".txt": "lines"}
_FORMATS |= {".tab": "tsv", ".inter": "tsv", ".ndjson": "jsonl", ".json": "jsonl"}


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are used; None if there is no such column."""

    user: str
    item: str
    time: str | None = None
    domain: str | None = None
    rating: str | None = None
    event: str | None = None

    @property
    def integers(self) -> tuple[str, ...]:
        return (self.user, self.item) if self.time is None else (self.user, self.item, self.time)


def infer_format(name: str) -> Format | None:
    """The format that belongs to a file's ending (without the ending of a compression); None if it is unknown."""
    path = Path(name)
    ending = Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    return _FORMATS.get(ending.lower())


def format_of(path: Path, chosen: Format | None) -> Format:
    """The chosen format, or else the format that belongs to the name; UserError if there is none."""
    if (found := chosen or infer_format(path.name)) is None:
        raise UserError(f"the name of {path} does not tell its format: set the option format")
    return found


def read_table(
    path: Path, file_format: Format, integers: Collection[str] = (), header: list[str] | None = None
) -> Iterator[Table]:
    parts, name = unpacked(path), str(path)
    match file_format:
        case "csv" | "tsv":
            return csv_tables(parts, name, "," if file_format == "csv" else "\t", header, integers)
        case "jsonl":
            return jsonl_tables(parts, name)
        case "lines":
            return lines_tables(parts, name)
        case "parquet":
            return parquet_tables(io.BytesIO(b"".join(parts)) if path.suffix in COMPRESSIONS else path, name)


def read_columns(
    path: Path, file_format: Format, wanted: Mapping[str, tuple[str | None, str, bool | None]]
) -> pl.DataFrame:
    """Some columns of a file. `wanted` holds, for each key, the name of a column (None: the first of the file), what
    tells the user why it is needed, and whether it is a feature of numbers; None: ids."""
    known, found = dict[str, None](), []

    def name_or_first(name: str | None) -> str:
        return name or next(iter(known), "of ids")  # a file without any column is refused: it has no column of ids

    for table in read_table(path, file_format):
        known |= dict.fromkeys(table.frame.columns)
        columns = {}
        for key, (name, said, is_number) in wanted.items():
            raw = table.column_or_nulls(name_or_first(name), said)
            if is_number is None:
                refuse_types(raw, table.name)
                columns[key] = ids_of(raw)
            else:
                columns[key] = feature_of(raw, is_number, table.name, table.first_row)
        found.append(pl.DataFrame(columns))
    for name, said, _ in wanted.values():
        _refuse_absent(name_or_first(name), said, known, str(path))
    return pl.concat(found, how="vertical_relaxed")


def to_interactions(
    tables: Iterable[Table], columns: Columns, min_rating: float | None = None, features: Mapping[str, bool] = {}
) -> RawInteractions:
    """Check the columns that are used, and keep rows with a rating of at least `min_rating`. Rows that are identical in
    every column become one; without times, they stay, because they may be repeats of an item. The tables have the same
    columns, and the rows of a file are consecutive. `features` names further columns, in which values may be missing,
    and says whether they are numbers."""
    units = TimeUnits()
    keys = ["user", "item", "time", "event", "domain", *["rating"] * (min_rating is not None)]
    wanted = {key: getattr(columns, key) for key in keys if getattr(columns, key) is not None}
    exact = [wanted[key] for key in ("user", "item", "event", "time") if key in wanted]

    def frames() -> Iterator[pl.DataFrame]:
        kept, known = 0, dict[str, None]()
        for table in _agreeing(tables):
            known |= dict.fromkeys(table.frame.columns)
            if table.frame.is_empty():
                continue
            checked = _check(table, wanted, units)
            for name, is_number in features.items():
                raw = table.column_or_nulls(name, "that is named as a feature")
                checked[f"{FEATURE}{name}"] = feature_of(raw, is_number, table.name, table.first_row)
            if "time" in checked:
                checked[REST] = _rest(table, exact)
            frame = pl.DataFrame([series.alias(key) for key, series in checked.items()])
            if min_rating is not None:
                frame = frame.filter(pl.col("rating") >= min_rating).drop("rating")
            kept += frame.height
            yield frame
        if min_rating is not None and kept == 0:
            raise UserError(f"min_rating={min_rating:g} leaves no interactions: choose a smaller one")
        for name in features if kept else ():
            _refuse_absent(name, "that is named as a feature", known, table.name)

    return RawInteractions(frames(), units.facts)


def _refuse_absent(column: str, said: str, known: Iterable[str], file: str) -> None:
    """UserError if none of a file's tables has the column: `column_or_nulls` accepts that some lack it."""
    Table(file, pl.DataFrame(schema=dict.fromkeys(known, pl.Null)), 1).column(column, said)


def _agreeing(tables: Iterable[Table]) -> Iterator[Table]:
    """The tables; UserError if a table has other columns than the first, or other types in the same columns."""
    first, columns, types = "", set[str](), dict[str, str]()
    for table in tables:
        frame = table.frame
        if not first:
            first, columns = table.name, set(frame.columns)
        elif not table.keys_vary and set(frame.columns) != columns:
            raise UserError(f"{table.name} has other columns than {first}: {', '.join(frame.columns)}")
        for column, dtype in frame.schema.items():
            kind = "text" if table.text or dtype == pl.String else "numbers" if dtype.is_numeric() else str(dtype)
            if dtype != pl.Null and (other := types.setdefault(column, kind)) != kind:
                wrong = f"{column} holds {kind} here, {other} before"
                raise UserError(f"{table.name}: the files' columns have different types ({wrong})")
        yield table


def _rest(table: Table, exact: list[str]) -> pl.Series:
    """A 64-bit hash of each row's columns except `exact`, to find rows that are equal in every column. The hash is a
    sum over columns: a missing key of a JSON object equals null, and the order of keys does not matter."""
    total = np.zeros(table.frame.height, dtype=np.uint64)
    for column, raw in table.frame.to_dict().items():
        if column in exact or raw.dtype == pl.Null:
            continue
        seed = zlib.crc32(column.encode())
        hashes = (raw.cast(pl.Float64) if raw.dtype.is_float() else raw).hash(seed)
        if raw.dtype.is_numeric() and raw.dtype != pl.Int64:
            # 5 and 5.0 have the same hash, because the files of a log may hold a column in different types.
            whole = raw.cast(pl.Int64, strict=False)
            hashes = whole.hash(seed).zip_with((whole == raw).fill_null(False), hashes)
        total += hashes.set(raw.is_null(), 0).to_numpy()
    return pl.Series(total)


def _blank(raw: pl.Series) -> np.ndarray:
    blank = raw.str.strip_chars() == "" if raw.dtype == pl.String else raw.is_null()
    return blank.fill_null(True).to_numpy()


def _check(table: Table, wanted: dict[str, str], units: TimeUnits) -> dict[str, pl.Series]:
    """The columns that are wanted, by their keys; UserError if a value is missing or cannot be read."""
    checked: dict[str, pl.Series] = {}
    for key, column in wanted.items():
        find = table.column if table.first_row == 1 else table.column_or_nulls
        raw = find(column, f"(option {key}_column)")
        refuse_types(raw, table.name, pl.Duration, pl.Time)
        if key == "time":
            known = units.kinds.get(table.name)
            if table.text and known not in (None, "number") and raw.dtype.is_integer():
                raw = raw.cast(pl.String)
            checked[key], kind = parse_times(raw, known)
        elif key == "rating":
            checked[key] = raw.cast(pl.Float64, strict=False).fill_nan(None)
        else:
            checked[key] = raw if raw.dtype.is_integer() and key != "domain" else ids_of(raw)
        bad_N = _blank(checked[key])
        if bad_N.any():
            row = int(bad_N.argmax())
            problem = not_a_time(raw, row, kind) if key == "time" else "is not a number"
            is_empty = key not in ("time", "rating") or _blank(raw)[row]
            what = "is empty" if is_empty else f"{problem}: {' '.join(str(raw[row]).split())[:80]}"
            raise UserError(f"{table.name}, row {row + table.first_row}: {column} {what}")
        if key == "time":
            units.note(table.name, table.first_row, column, checked[key], kind)
    if table.domain is not None:
        checked["domain"] = pl.repeat(table.domain, table.frame.height, dtype=pl.String, eager=True)
    return checked


def refuse_types(raw: pl.Series, name: str, *others: type[pl.DataType]) -> None:
    """UserError if a column of the file `name` holds lists, structs, bytes or values of one of the `others`."""
    if raw.dtype.is_nested() or raw.dtype in (pl.Binary, pl.Object, *others):
        raise UserError(f"{name}: column {raw.name} holds {raw.dtype}, not text or numbers")


def id_of(raw: Any, expected: str) -> str | None:
    """A raw id of Python as text, as in `ids_of`; UserError that begins with `expected` if it holds other values."""
    if not isinstance(raw, str | int) and isinstance(raw, Iterable):
        raise UserError(f"{expected}, not {raw!r:.50}")
    if raw is None or (isinstance(raw, float | np.floating) and math.isnan(raw)):
        return None
    return str(int(raw) if isinstance(raw, float | np.floating) and raw.is_integer() else raw)


def ids_of(raw: pl.Series) -> pl.Series:
    """The ids as text, null if an id is missing or nan. A whole number becomes the text of an integer, because a column
    of integers with a missing value often arrives as floats, and one of a database as decimals."""
    if raw.dtype.is_integer() or not raw.dtype.is_numeric():
        return raw.cast(pl.String)
    raw = raw.fill_nan(None) if raw.dtype.is_float() else raw
    whole = raw.cast(pl.Int64, strict=False)
    return whole.cast(pl.String).zip_with((whole == raw).fill_null(False), raw.cast(pl.String))


def feature_of(raw: pl.Series, is_number: bool, name: str, first_row: int) -> pl.Series:
    """The values of a column of the file `name`: finite numbers, null if missing, or text. In text, a list, also one as
    JSON, becomes its values with | between them."""
    if not is_number and isinstance(raw.dtype, pl.List | pl.Array):
        refuse_types(pl.Series(raw.name, dtype=raw.dtype.inner), name)
        texts = raw.cast(pl.List(raw.dtype.inner)).list.eval(pl.element().map_batches(ids_of, pl.String))
        return texts.list.join(SEPARATOR, ignore_nulls=True)
    refuse_types(raw, name)
    if not is_number:
        texts = ids_of(raw)
        lists = texts.filter(texts.str.starts_with("[")).unique()
        return texts.replace(lists, pl.Series([_joined(text) for text in lists], dtype=pl.String))
    numbers = raw.cast(pl.Float64, strict=False)
    bad_N = (numbers.is_null() | numbers.is_infinite().fill_null(False)).to_numpy() & ~_blank(raw)
    if bad_N.any():
        row = int(bad_N.argmax())
        kind = "a" if numbers[row] is None else "a finite"
        raise UserError(f"{name}, row {row + first_row}: {raw.name} is not {kind} number: {str(raw[row])[:80]}")
    return numbers.fill_nan(None)


def _joined(text: str) -> str:
    """The values of a JSON list with | between them; the text itself if it is no JSON list of texts and numbers."""
    try:
        values = json.loads(text, parse_float=lambda number: f"{Decimal(repr(float(number))).normalize():f}")
        if any(isinstance(value, dict | list) for value in values):
            return text
        parts = [value if isinstance(value, str) else json.dumps(value) for value in values if value is not None]
        return SEPARATOR.join(parts).encode().decode()  # ValueError for half a surrogate pair
    except (ValueError, RecursionError):
        return text


def read_titles(path: Path, item_column: str | None = None, title_column: str = "title") -> pl.DataFrame:
    """The first title of each item, in text columns item (raw id) and title. Ids are in the first column of the file
    unless `item_column` names another."""
    if re.search(r"movies\.dat(\.\w+)?$", path.name):
        rows = re.findall(r"^(\d+)::(.*)::[^:]*$", b"".join(unpacked(path)).decode("latin-1"), re.MULTILINE)
        return pl.DataFrame(rows, schema={"item": pl.String, "title": pl.String}, orient="row")
    file_format = infer_format(path.name)
    if file_format in (None, "lines"):
        raise UserError(f"{path}: titles are read from .csv, .tsv, .jsonl and .parquet files and from movies.dat")
    items, titles = (item_column, "(option title_item_column)", None), (title_column, "(option title_column)", None)
    found = read_columns(path, file_format, {"item": items, "title": titles}).drop_nulls()
    return found.unique("item", keep="first", maintain_order=True)
