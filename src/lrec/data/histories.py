"""Histories that are to be gone on with: from a table in memory, or from a file, block by block.

Shape suffixes: B histories.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from lrec.data.parsing import Table
from lrec.data.prepare import prepare_store
from lrec.data.readers import Columns, Format, infer_format, read_table, to_interactions
from lrec.data.store import Store
from lrec.errors import UserError

# Enough to find histories of like length that are encoded together; few enough that their lists take little memory.
BLOCK = 8192


class Histories(NamedTuple):
    """Raw ids of users and of the items of each, oldest first."""

    users: pl.Series
    items: pl.Series  # text, laid end to end
    lengths_B: np.ndarray

    def blocks(self, size: int = BLOCK) -> Iterator["Histories"]:
        """The same, so many at a time."""
        ends_B = np.cumsum(self.lengths_B)
        for start in range(0, len(self.users), size):
            lengths_B = self.lengths_B[start : start + size]
            first = int(ends_B[start] - self.lengths_B[start])
            yield Histories(self.users[start : start + size], self.items.slice(first, int(lengths_B.sum())), lengths_B)


def histories_of(table: Any) -> Histories:
    """Histories in memory.

    Args:
        table: A Polars or pandas table, with a row per user (columns user, which may be absent, and items, lists) or
            with a row per interaction in time order (columns user and item); or a list of histories. Without user ids,
            users are numbered from 0.

    Raises:
        UserError: it is none of these.
    """
    if not hasattr(table, "columns"):
        try:
            histories = list(table)
            if any(isinstance(history, str) for history in histories):
                raise UserError("histories: a table or a list of lists is expected; a single history is [[item, item]]")
            lists = pl.Series([[str(item) for item in history] for history in histories], dtype=pl.List(pl.String))
        except TypeError:
            raise UserError(f"histories: a table or a list of lists is expected, not {type(table).__name__}") from None
        return _of_lists(None, lists)
    frame = table if isinstance(table, pl.DataFrame) else pl.DataFrame({name: list(table[name]) for name in table})
    if "items" in frame.columns and isinstance(frame["items"].dtype, pl.List):
        return _of_lists(frame["user"] if "user" in frame.columns else None, frame["items"])
    if {"user", "item"} <= set(frame.columns):
        rows = frame.group_by("user", maintain_order=True).agg(pl.col("item").alias("items"))
        return _of_lists(rows["user"], rows["items"])
    raise UserError(
        f"histories has the columns {', '.join(frame.columns)}: user and items (lists), or user and item, are expected"
    )


def histories_in(path: Path, file_format: Format | None, columns: Columns, otherwise: Columns) -> Iterator[Histories]:
    """Histories in a file, in blocks.

    A row may be a user (Parquet or JSON lines with a column `items` of lists; or the format `lines`): blocks then come
    in the file's order. Or it is an interaction: the file is put in order first, as training data are, in bounded
    memory and a temporary folder; blocks then come in the order of the users' ids.

    Args:
        path: The file, plain or compressed.
        file_format: Its format; None for what its name tells.
        columns: Names of its columns; `time` None where interactions are in time order.
        otherwise: Each name is taken where the file has it and does not have that of `columns`.

    Raises:
        UserError: the file is damaged, or does not have these columns.
    """
    file_format = file_format or infer_format(path.name)
    if file_format is None:
        raise UserError(f"the name of {path} does not tell its format: set the option format")
    tables = read_table(path, file_format, columns)
    first = next(tables)
    tables = chain([first], tables)
    found, names = first.frame.columns, vars(columns)
    others = {key: name for key, name in vars(otherwise).items() if name in found and names[key] not in found}
    columns = replace(columns, **others)
    if file_format == "lines":
        yield from (_of_rows(table.frame) for table in tables)
    elif _has_lists(first.frame):
        yield from (block for table in tables for block in _of_table(table, columns.user).blocks())
    else:
        yield from _in_order(path, tables, columns)


def _of_lists(users: pl.Series | None, lists: pl.Series) -> Histories:
    lengths = lists.list.len().fill_null(0)
    items = lists.filter(lengths > 0).explode().cast(pl.String)
    if users is None:
        users = pl.Series("user", range(len(lists)), dtype=pl.Int64)
    return Histories(users.alias("user"), items, lengths.to_numpy().astype(np.int64))


def _of_rows(frame: pl.DataFrame) -> Histories:
    """From user and item, the rows of a user beside each other."""
    runs = frame["user"].rle()
    return Histories(runs.struct.field("value"), frame["item"], runs.struct.field("len").to_numpy().astype(np.int64))


def _has_lists(frame: pl.DataFrame) -> bool:
    if "items" not in frame.columns:
        return False
    lists = frame["items"]
    # In JSON lines, nested values arrive as their text.
    return isinstance(lists.dtype, pl.List) or (lists.dtype == pl.String and (lists.head(1).str.starts_with("[").any()))


def _of_table(table: Table, user_column: str) -> Histories:
    if user_column not in table.frame.columns:
        raise UserError(f"{table.name} has no column {user_column} (option user_column)")
    lists = table.frame["items"]
    if lists.dtype == pl.String:
        try:
            lists = lists.str.json_decode(pl.List(pl.String))
        except pl.exceptions.PolarsError:
            raise UserError(f"{table.name}: items are not a list in every row from {table.first_row} on") from None
    return _of_lists(table.frame[user_column], lists)


def _in_order(path: Path, tables: Iterable[Table], columns: Columns) -> Iterator[Histories]:
    with tempfile.TemporaryDirectory(prefix="lrec-histories-") as folder:
        store = Store.open(
            prepare_store(Path(folder), "histories", {"path": str(path)}, 0, lambda: to_interactions(tables, columns))
        )
        raw_items = store.item_table["raw_id"]
        for start in range(0, store.n_users, BLOCK):
            offsets_B1 = store.offsets_U1[start : start + BLOCK + 1]
            items = raw_items.gather(store.items_N[offsets_B1[0] : offsets_B1[-1]])
            yield Histories(store.raw_user_ids[start : start + BLOCK].alias("user"), items, np.diff(offsets_B1))
