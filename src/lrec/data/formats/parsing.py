"""Read text and Parquet as tables, block by block. Every row arrives, or a UserError names the file and the row."""

import io
import json
import re
from collections.abc import Collection, Iterable, Iterator
from csv import Error as CsvError
from csv import reader as csv_reader
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import polars as pl
from polars.exceptions import PanicException, PolarsError

from lrec.data.formats.streams import BYTE_ORDER_MARK, count_byte, first_line, outside_quotes, row_blocks
from lrec.data.store.long_work import map_ahead
from lrec.errors import UserError

_BATCH = 500_000
_MOST_KEYS = 1000
_KEYS_PIECE = 1 << 16  # bytes of JSON that are searched for keys at once
_NESTED_BATCH = 50_000  # for rows that contain lists
_SHORTEST_INTEGER = re.compile(rb"0|[1-9][0-9]{0,17}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Table:
    """Some consecutive rows of a raw file, with all its columns."""

    name: str  # of the file, for messages
    frame: pl.DataFrame
    first_row: int  # counted from 1, header included
    keys_vary: bool = False  # a column of the file may be absent if all of its values in these rows are null
    domain: str | None = None  # of the whole file; not a column, because rows that differ only in it are duplicates
    text: bool = False  # from text, in which all values of integer columns are in the shortest form

    def column(self, name: str, said: str) -> pl.Series:
        """One of its columns; UserError if it has none of that name. `said` tells the user what needs the column."""
        if name not in self.frame.columns:
            there = ", ".join(self.frame.columns)
            raise UserError(f"{self.name} has no column {name} {said}; its columns are {there}")
        return self.frame[name]

    def column_or_nulls(self, name: str, said: str) -> pl.Series:
        """`column`; if the table may lack a column of the file, nulls in its place."""
        if name not in self.frame.columns and self.keys_vary:
            return pl.repeat(None, self.frame.height, dtype=pl.String, eager=True).alias(name)
        return self.column(name, said)


def csv_tables(
    parts: Iterable[bytes], name: str, separator: str, header: list[str] | None = None, integers: Collection[str] = ()
) -> Iterator[Table]:
    """Parse delimited text into columns of text. The columns in `integers` become integers if that loses nothing.
    `header` names the columns of a file without a header."""
    blocks = row_blocks(parts, name, quotes=True)
    row = 1
    if header is None:
        header, first = _split_header(next(blocks), name, separator)
        row, blocks = 2, chain([first] if first else [], blocks)

    def table(block: _Block) -> Table:
        return Table(name, _csv_block(block, name, separator, header, integers), block.row, text=True)

    last: Table | None = None
    for last in map_ahead(table, _measured(blocks, name, separator, row)):
        yield last
    if last is None:
        raise UserError(f"{name} has a header but no rows")


class _Block(NamedTuple):
    """Some consecutive rows of a delimited file, without the last line end."""

    text: bytes
    row: int  # number of the first row
    rows: int
    separators: int  # number of separators outside quotes
    quoted: bool


def _measured(blocks: Iterable[bytes], name: str, separator: str, row: int) -> Iterator[_Block]:
    """Blocks of text with their rows counted; UserError for characters that no row may contain."""
    for text in blocks:
        _refuse_nul(text, name, row)
        if quoted := b'"' in text:
            rows, separators = _count_quoted(text, name, row, separator)
        else:
            text = text.replace(b"\r\n", b"\n") if b"\r" in text else text
            if (place := text.find(b"\r")) >= 0:
                _refuse_return(name, row + text.count(b"\n", 0, place))
            rows, separators = count_byte(text, "\n") + 1, count_byte(text, separator)
        yield _Block(text, row, rows, separators, quoted)
        row += rows


def _split_header(block: bytes, name: str, separator: str) -> tuple[list[str], bytes]:
    _refuse_nul(block, name, 1)
    first, _, rest = block.partition(b"\n")
    line = decode(first, name, 1).removesuffix("\r")
    if "\r" in line:
        _refuse_return(name, 1)
    try:
        header = next(csv_reader([line], delimiter=separator, strict=True), [])
    except CsvError as error:
        raise UserError(f"{name}, row 1: {error}") from None
    for place, column in enumerate(header):
        if column in header[:place]:
            raise UserError(f"{name}, row 1: two columns are named {column}")
    return header, rest


def _csv_block(block: _Block, name: str, separator: str, header: list[str], integers: Collection[str]) -> pl.DataFrame:
    whole = block.separators == block.rows * (len(header) - 1)
    if whole and not block.quoted and (frame := _integer_block(block, separator, header, integers)) is not None:
        return frame
    # Polars removes a byte order mark from any text. The mark of the file is already gone; any other mark is data.
    text = BYTE_ORDER_MARK + block.text if block.text.startswith(BYTE_ORDER_MARK) else block.text
    problem = ""
    try:
        frame = _read_csv(text, separator, dict.fromkeys(header, pl.String), block.quoted)
        # Polars refuses rows that are too long, but fills short rows with nulls: the number of separators finds these.
        if whole and frame.height == block.rows:
            return frame
    except PolarsError as error:
        problem = f" ({first_line(error)})"
    _refuse_row(block.text, name, block.row, separator, len(header))
    raise UserError(f"{name}, rows {block.row} to {block.row + block.rows - 1}: not delimited text{problem}")


def _read_csv(text: bytes, separator: str, schema: dict[str, Any], quoted: bool) -> pl.DataFrame:
    quote = '"' if quoted else None
    return pl.read_csv(text, separator=separator, has_header=False, schema=schema, quote_char=quote)


def _integer_block(block: _Block, separator: str, header: list[str], integers: Collection[str]) -> pl.DataFrame | None:
    """The block with integers in those columns of `integers` that have an integer in the shortest form in the first
    row. Until ids are encoded, integers take a third of the time of text. None if there is no such column, or if
    another row has something else in one of them."""
    first = dict(zip(header, block.text.partition(b"\n")[0].split(separator.encode()), strict=False))
    chosen = [column for column in integers if _SHORTEST_INTEGER.fullmatch(first.get(column, b""))]
    if not chosen:
        return None
    types = {column: pl.Int64 if column in chosen else pl.String for column in header}
    try:
        frame = _read_csv(block.text, separator, types, quoted=False)
    except PolarsError:
        return None
    length = block.rows * len(header) - 1  # length of the text if all numbers are in the shortest form
    for column in frame:
        if column.dtype == pl.String:
            length += int(column.str.len_bytes().sum())
        elif column.null_count() or (numbers := column.to_numpy()).min() < 0:
            return None
        else:
            least, most = len(str(numbers.min())), len(str(numbers.max()))
            length += len(numbers) * least + sum(int((numbers >= 10**n).sum()) for n in range(least, most))
    return frame if frame.height == block.rows and length == len(block.text) else None


def _count_quoted(block: bytes, name: str, row: int, separator: str) -> tuple[int, int]:
    """Count rows and separators outside quotes; refuse the first quote that neither begins nor ends a field."""
    framed = np.frombuffer(b"\n" + block + b"\n", dtype=np.uint8)  # so that each character has neighbours
    text = framed[1:-1]
    quotes, ends = np.flatnonzero(text == ord('"')), outside_quotes(text, "\n")
    opening, closing, edges = quotes[0::2], quotes[1::2], [ord(separator), ord("\n"), ord('"')]
    bad_open = opening[~np.isin(framed[opening], edges)]
    bad_close = closing[~np.isin(framed[closing + 2], [*edges, ord("\r")])]
    bad = np.concatenate([bad_open, bad_close, quotes[-1:] if len(quotes) % 2 else quotes[:0]])
    if len(bad):
        # A row whose quote is never closed has no end, so only the row ends before the bad quote count.
        number = row + int(np.searchsorted(ends, bad.min()))
        raise UserError(f"{name}, row {number}: a quote that does not enclose a whole field")
    returns = outside_quotes(text, "\r")
    lone = returns[framed[returns + 2] != ord("\n")]
    if len(lone):
        _refuse_return(name, row + int(np.searchsorted(ends, lone[0])))
    return len(ends) + 1, len(outside_quotes(text, separator))


def _refuse_return(name: str, row: int) -> NoReturn:
    raise UserError(f"{name}, row {row}: a carriage return without a line feed")


def _refuse_nul(block: bytes, name: str, row: int) -> None:
    if (place := block.find(b"\0")) >= 0:
        # A file in another encoding has NULs too: if bytes before the NUL are not UTF-8, that is the clearer message.
        decode(block[:place], name, row)
        number = row + block.count(b"\n", 0, place)
        raise UserError(f"{name}, row {number}: a NUL byte")


def _refuse_row(block: bytes, name: str, row: int, separator: str, width: int) -> None:
    """Raise for the first row that is not UTF-8 or has too few or too many fields."""
    text = decode(block, name, row)
    reader = csv_reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for number, fields in enumerate(reader, start=row):
            row = number + 1
            if len(fields) != width:
                raise UserError(f"{name}, row {number}: {len(fields)} fields where {width} are expected")
    except CsvError as error:
        raise UserError(f"{name}, row {row}: {error}") from None


def jsonl_tables(parts: Iterable[bytes], name: str) -> Iterator[Table]:
    """Parse one JSON object per line into columns of text; nested values become JSON text."""
    row = 1
    for block in row_blocks(parts, name):
        _refuse_nul(block, name, row)
        _refuse_half_pairs(block, name, row)
        rows, frame, problem = count_byte(block, "\n") + 1, None, ""
        try:
            frame = pl.read_ndjson(block, schema=dict.fromkeys(_keys(block, name, row), pl.String))
        except PolarsError as error:
            problem = f" ({first_line(error)})"
        if frame is None or frame.height != rows:
            _json_keys(block, name, row)
            raise UserError(f"{name}, rows {row} to {row + rows - 1}: not JSON lines{problem}")
        yield Table(name, frame, row, keys_vary=True)
        row += rows


def _keys(block: bytes, name: str, row: int) -> list[str]:
    """The keys of all objects. Polars reads the block in pieces: with many keys, it needs minutes for a whole block."""
    keys: dict[str, None] = {}
    start = 0
    while start < len(block) and len(keys) <= _MOST_KEYS:
        end = block.find(b"\n", start + _KEYS_PIECE) + 1 or len(block)
        try:
            keys |= dict.fromkeys(pl.scan_ndjson(block[start:end], infer_schema_length=None).collect_schema())
        except PolarsError:  # a damaged line, or a column of incompatible types
            return _json_keys(block, name, row)
        start = end
    return list(keys) if len(keys) <= _MOST_KEYS else _json_keys(block, name, row)


def _json_keys(block: bytes, name: str, row: int) -> list[str]:
    keys: dict[str, None] = {}
    for number, line in enumerate(decode(block, name, row).split("\n"), start=row):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise UserError(f"{name}, row {number}: not one JSON object per line")
        keys |= dict.fromkeys(value)
        if len(keys) > _MOST_KEYS:
            many = f"more than {_MOST_KEYS:,} different keys up to here"
            raise UserError(f"{name}, row {number}: {many}: write text that differs from row to row as a value")
    return list(keys)


def _refuse_half_pairs(block: bytes, name: str, row: int) -> None:
    for match in _SURROGATE.finditer(block):
        start, end = block.rfind(b"\n", 0, match.start()) + 1, block.find(b"\n", match.start())
        try:
            json.dumps(json.loads(block[start : end if end >= 0 else None]), ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            number = row + block.count(b"\n", 0, start)
            raise UserError(f"{name}, row {number}: not JSON text (half a surrogate pair)") from None


def lines_tables(parts: Iterable[bytes], name: str) -> Iterator[Table]:
    """Parse lines of `user item item ...`, items in time order, into columns user and item."""
    row, met = 1, set()
    for block in row_blocks(parts, name):
        _refuse_nul(block, name, row)
        lines = pl.Series("line", decode(block, name, row).split("\n"))
        words = lines.str.strip_chars().str.replace_all(r"\s+", " ").str.split(" ")
        if len(short := (words.list.len() < 2).arg_true()):
            raise UserError(
                f"{name}, row {short[0] + row}: a user and at least one item are expected, separated by blanks "
                "(format lines; for csv and others, set the option format)"
            )
        users = words.list.first()
        for number, user in enumerate(users.to_list(), start=row):
            if user in met:
                raise UserError(f"{name}, row {number}: user {user} has a line already")
            met.add(user)
        yield Table(name, pl.DataFrame({"user": users, "item": words.list.slice(1)}).explode("item"), row)
        row += len(lines)


def parquet_tables(source: Path | io.BytesIO, name: str) -> Iterator[Table]:
    """Read a Parquet file batch by batch, with the types of its columns."""
    try:
        if isinstance(source, Path):
            name.encode()  # the error of Polars does not say that the name is not UTF-8
        rows = pl.scan_parquet(source, hive_partitioning=False, glob=False)
        rows = rows.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
        # Engines that write in parallel leave files without rows, whose columns are still checked.
        yield Table(name, rows.head(0).collect(), 1)
        nested = any(dtype.is_nested() for dtype in rows.collect_schema().dtypes())
        batch = _NESTED_BATCH if nested else _BATCH
        # Slice by slice: collect_batches decodes up to 128 row groups ahead, which is the whole of most files.
        for start in range(0, rows.select(pl.len()).collect().item(), batch):
            yield Table(name, rows.slice(start, batch).collect(), start + 1)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except UnicodeEncodeError:
        raise UserError(f"{name!a} is not a name in UTF-8, as Parquet files need: rename it") from None
    except (PolarsError, PanicException, OSError) as error:
        raise UserError(f"{name} is not a whole Parquet file ({first_line(error)})") from None


def decode(data: bytes, name: str, row: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        number = row + data.count(b"\n", 0, error.start)
        raise UserError(f"{name}, row {number}: not UTF-8 text") from None
