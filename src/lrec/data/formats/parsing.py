"""Read text and Parquet as tables, block by block. Every row arrives, or a UserError names the file and the row."""

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
from polars.exceptions import PanicException, PolarsError

from lrec.data.formats.streams import BYTE_ORDER_MARK, Block, first_line, outside_quotes, row_blocks
from lrec.data.store.long_work import map_ahead
from lrec.errors import UserError

_BATCH = 500_000
_MOST_KEYS = 1000
_SHORTEST_INTEGER = re.compile(rb"0|[1-9][0-9]{0,17}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE_RETURN = "a carriage return without a line feed"


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
            there = ", ".join(each if each == each.strip() else repr(each) for each in self.frame.columns)
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
    `header` names the columns of a file without a header. With a separator of several bytes, no field has a tab."""
    blocks = row_blocks(parts, name, quotes=True)
    if header is None:
        header, rest = _split_header(next(blocks), separator)
        first = rest if rest.text else next(blocks, None)
        if first is None:
            raise UserError(f"{name} has a header but no rows")
        blocks = chain([first], blocks)
    frame_of = partial(_csv_frame, separator=separator, header=header, integers=integers)
    yield from map_ahead(lambda block: Table(name, frame_of(block), block.row, text=True), blocks)


def _split_header(block: Block, separator: str) -> tuple[list[str], Block]:
    """The names of the columns, and the block without the header."""
    line, _, rest = block.text.partition(b"\n")
    text = replace(block, text=line.removesuffix(b"\r")).decoded()
    if "\r" in text:
        block.refuse(0, _LONE_RETURN)
    try:
        header = next(csv.reader([text], delimiter=separator, strict=True), [])
    except csv.Error as error:
        block.refuse(0, str(error))
    if twice := [column for place, column in enumerate(header) if column in header[:place]]:
        block.refuse(0, f"two columns are named {twice[0]}")
    return header, replace(block, row=2, text=rest)


def _csv_frame(block: Block, separator: str, header: list[str], integers: Collection[str]) -> pl.DataFrame:
    if len(separator) > 1:  # Polars takes a single byte
        block, separator = replace(block, text=block.text.replace(separator.encode(), b"\t")), "\t"
    _refuse_stray(block, separator)
    quoted = b'"' in block.text
    if not quoted and b"\r" in block.text:
        block = replace(block, text=block.text.replace(b"\r\n", b"\n"))
    rows = block.rows
    whole = block.count(separator) == rows * (len(header) - 1)
    if whole and not quoted and (frame := _integer_block(block, separator, header, integers)) is not None:
        return frame
    # Polars removes a byte order mark from any text. The mark of the file is already gone; any other mark is data.
    text = BYTE_ORDER_MARK + block.text if block.text.startswith(BYTE_ORDER_MARK) else block.text
    problem = ""
    try:
        quote, types = '"' if quoted else None, dict.fromkeys(header, pl.String)
        frame = pl.read_csv(text, separator=separator, has_header=False, schema=types, quote_char=quote)
        # Polars refuses rows that are too long, but fills short rows with nulls: the number of separators finds these.
        if whole and frame.height == rows:
            return frame
    except PolarsError as error:
        problem = f" ({first_line(error)})"
    _refuse_row(block, separator, len(header))
    raise UserError(f"{block.name}, rows {block.row} to {block.row + rows - 1}: not delimited text{problem}")


def _integer_block(block: Block, separator: str, header: list[str], integers: Collection[str]) -> pl.DataFrame | None:
    """The block with integers in those columns of `integers` that have an integer in the shortest form in the first
    row. Until ids are encoded, integers take a third of the time of text. None if there is no such column, or if
    another row has something else in one of them."""
    first = dict(zip(header, block.text.partition(b"\n")[0].split(separator.encode()), strict=False))
    chosen = [column for column in integers if _SHORTEST_INTEGER.fullmatch(first.get(column, b""))]
    if not chosen:
        return None
    types = {column: pl.Int64 if column in chosen else pl.String for column in header}
    try:
        frame = pl.read_csv(block.text, separator=separator, has_header=False, schema=types, quote_char=None)
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


def _refuse_stray(block: Block, separator: str) -> None:
    """Refuse a quote that neither begins nor ends a field, and outside quotes a carriage return without a line feed."""
    if b'"' in block.text:
        framed = np.frombuffer(b"\n" + block.text + b"\n", dtype=np.uint8)  # so that each quote has neighbours
        quotes, edges = np.flatnonzero(framed == ord('"')), [ord(separator), ord("\n"), ord('"')]
        opening, closing = quotes[0::2], quotes[1::2]
        bad_open = opening[~np.isin(framed[opening - 1], edges)]
        bad_close = closing[~np.isin(framed[closing + 1], [*edges, ord("\r")])]
        bad = np.concatenate([bad_open, bad_close, quotes[-1:] if len(quotes) % 2 else quotes[:0]])
        if len(bad):
            block.refuse(bad.min() - 1, "a quote that does not enclose a whole field")
    if b"\r" in block.text:
        returns = outside_quotes(block.text, "\r")
        lone = returns[np.frombuffer(block.text, dtype=np.uint8)[returns + 1] != ord("\n")]
        if len(lone):
            block.refuse(lone[0], _LONE_RETURN)


def _refuse_row(block: Block, separator: str, width: int) -> None:
    """Raise for the first row that is not UTF-8 or has too few or too many fields."""
    row = block.row
    try:
        for fields in csv.reader(io.StringIO(block.decoded(), newline=""), delimiter=separator):
            if len(fields) != width:
                raise UserError(f"{block.name}, row {row}: {len(fields)} fields where {width} are expected")
            row += 1
    except csv.Error as error:
        raise UserError(f"{block.name}, row {row}: {error}") from None


def jsonl_tables(parts: Iterable[bytes], name: str) -> Iterator[Table]:
    """Parse one JSON object per line into columns of text; nested values become JSON text."""
    for block in row_blocks(parts, name):
        _refuse_half_pairs(block)
        frame, problem = pl.DataFrame(), ""
        try:
            frame = pl.read_ndjson(block.text, schema=dict.fromkeys(_keys(block), pl.String))
        except PolarsError as error:
            problem = f" ({first_line(error)})"
        if frame.height != block.rows:
            _json_keys(block)
            raise UserError(f"{name}, rows {block.row} to {block.row + block.rows - 1}: not JSON lines{problem}")
        yield Table(name, frame, block.row, keys_vary=True)


def _keys(block: Block) -> list[str]:
    """The keys of all objects. Polars reads the block in pieces: with many keys, it needs minutes for a whole block."""
    keys, text = dict[str, None](), io.BytesIO(block.text)
    while len(keys) <= _MOST_KEYS and (lines := text.readlines(1 << 16)):
        try:
            keys |= dict.fromkeys(pl.scan_ndjson(b"".join(lines), infer_schema_length=None).collect_schema())
        except PolarsError:  # a damaged line, or a column of incompatible types
            return _json_keys(block)
    return list(keys) if len(keys) <= _MOST_KEYS else _json_keys(block)


def _json_keys(block: Block) -> list[str]:
    keys: dict[str, None] = {}
    for row, line in enumerate(block.decoded().split("\n"), start=block.row):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise UserError(f"{block.name}, row {row}: not one JSON object per line")
        keys |= dict.fromkeys(value)
        if len(keys) > _MOST_KEYS:
            many = f"more than {_MOST_KEYS:,} different keys up to here"
            raise UserError(f"{block.name}, row {row}: {many}: write text that differs from row to row as a value")
    return list(keys)


def _refuse_half_pairs(block: Block) -> None:
    text = block.text
    for match in _SURROGATE.finditer(text):
        start, end = text.rfind(b"\n", 0, match.start()) + 1, text.find(b"\n", match.start())
        try:
            json.dumps(json.loads(text[start : end if end >= 0 else None]), ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            block.refuse(start, "not JSON text (half a surrogate pair)")


def lines_tables(parts: Iterable[bytes], name: str) -> Iterator[Table]:
    """Parse lines of `user item item ...`, items in time order, into columns user and item."""
    met = set()
    for block in row_blocks(parts, name):
        lines = pl.Series("line", block.decoded().split("\n"))
        words = lines.str.strip_chars().str.replace_all(r"\s+", " ").str.split(" ")
        if len(short := (words.list.len() < 2).arg_true()):
            raise UserError(
                f"{name}, row {short[0] + block.row}: a user and at least one item are expected, separated by blanks "
                "(format lines; for csv and others, set the option format)"
            )
        users = words.list.first()
        for row, user in enumerate(users.to_list(), start=block.row):
            if user in met:
                raise UserError(f"{name}, row {row}: user {user} has a line already")
            met.add(user)
        yield Table(name, pl.DataFrame({"user": users, "item": words.list.slice(1)}).explode("item"), block.row)


def parquet_tables(source: Path | io.BytesIO, name: str) -> Iterator[Table]:
    """Read a Parquet file batch by batch, with the types of its columns."""
    try:
        if isinstance(source, Path):
            name.encode()  # the error of Polars does not say that the name is not UTF-8
        rows = pl.scan_parquet(source, hive_partitioning=False, glob=False)
        rows = rows.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
        # Engines that write in parallel leave files without rows, whose columns are still checked.
        yield Table(name, rows.head(0).collect(), 1)
        batch = 50_000 if any(dtype.is_nested() for dtype in rows.collect_schema().dtypes()) else _BATCH
        # Slice by slice: collect_batches decodes up to 128 row groups ahead, which is the whole of most files.
        for start in range(0, rows.select(pl.len()).collect().item(), batch):
            yield Table(name, rows.slice(start, batch).collect(), start + 1)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except UnicodeEncodeError:
        raise UserError(f"{name!a} is not a name in UTF-8, as Parquet files need: rename it") from None
    except (PolarsError, PanicException, OSError) as error:
        raise UserError(f"{name} is not a whole Parquet file ({first_line(error)})") from None
