"""Histories that recommendations continue: from a table in memory, or from a file, block by block. Shape suffixes:
B histories."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from lrec.common.files import temporary
from lrec.data.features import ID
from lrec.data.formats.parsing import Table
from lrec.data.formats.readers import Columns, Format, format_of, id_of, ids_of, read_table, to_interactions
from lrec.data.formats.times import in_seconds
from lrec.data.sources.download import url_of
from lrec.data.store.encoding import FEATURE
from lrec.data.store.ordering import Repeats
from lrec.data.store.prepare import RawInteractions, prepare_store
from lrec.data.store.store import Store
from lrec.errors import UserError

# Enough to batch histories of similar length; few enough that their lists take little memory.
BLOCK = 8192


class Histories(NamedTuple):
    """Users and their interactions, one user after the other, each user's oldest first."""

    users: pl.Series  # raw ids
    lengths_B: np.ndarray
    rows: pl.DataFrame  # item (raw id) and, if asked for, time (whole seconds), event and features (FEATURE + name)

    @property
    def starts_B(self) -> np.ndarray:
        """The row of each user's first interaction."""
        return np.cumsum(self.lengths_B) - self.lengths_B

    def blocks(self, size: int = BLOCK) -> Iterator["Histories"]:
        ends_B = np.cumsum(self.lengths_B)
        for start in range(0, len(self.users), size):
            lengths_B = self.lengths_B[start : start + size]
            rows = self.rows.slice(int(ends_B[start] - lengths_B[0]), int(lengths_B.sum()))
            yield Histories(self.users[start : start + size], lengths_B, rows)

    def of_users(self, frame: pl.DataFrame) -> "Histories":
        """The same histories with the features of `frame`, which has a row for each user `ID`."""
        ids = pl.DataFrame({ID: ids_of(self.users)})
        mine = ids.join(frame, on=ID, how="left", maintain_order="left")
        of_rows = mine.drop(ID)[np.repeat(np.arange(len(mine)), self.lengths_B)]
        return self._replace(rows=self.rows.with_columns(of_rows.rename(lambda name: f"{FEATURE}{name}")))


def histories_of(
    table: Any, with_times: bool = False, with_events: bool = False, features: Collection[str] = ()
) -> Histories:
    """Histories in memory. `table` is a list of lists, or a Polars or pandas table with a row per user (columns items,
    which are lists, and user, which may be absent) or a row per interaction in time order (columns user and item).
    If asked for and present, times and types of event come from the columns times and events (lists), or time and
    event. Features come from columns of their names: a list or a single value in each row of a user. A list of
    dictionaries is a table with a row per user."""
    of_rows = ["item"] + ["time"] * with_times + ["event"] * with_events
    of_users = {"user", *(f"{name}s" for name in of_rows), *features}
    table = table.collect() if isinstance(table, pl.LazyFrame) else table
    if isinstance(table, list) and table and all(isinstance(row, dict) and "items" in row for row in table):
        given: dict[str, Any] = {name: [row.get(name) for row in table] for name in set().union(*table)}
    else:
        given = {str(name): table[name] for name in table.columns} if hasattr(table, "columns") else {"items": table}
    if "items" in given:
        columns = {name: _column(given[name]) for name in (of_users - {"items"}) & given.keys()}
        return _of_lists({"items": given["items"], **columns}, features)
    if not {"user", "item"} <= given.keys():
        there = ", ".join(given)
        raise UserError(f"histories has the columns {there}: user and items (lists), or user and item, are expected")
    mine = [name for name in features if name in given]
    columns = {name: _column(given[name]) for name in {"user", *of_rows, *mine} & given.keys()}
    users = pl.DataFrame(columns).group_by("user", maintain_order=True)
    return _of_lists(users.agg(pl.exclude("user", *mine).name.suffix("s"), *mine).to_dict(), features)


def histories_in(
    path: Path,
    file_format: Format | None,
    columns: Columns,
    otherwise: Columns,
    min_rating: float | None = None,
    repeats: Repeats = True,
    features: Mapping[str, bool] | None = None,
    with_times: bool = False,
    with_events: bool = False,
) -> Iterator[Histories]:
    """Histories in a file, in blocks, read like the training data. `otherwise` names columns to use if the file lacks
    those of `columns`. `min_rating` counts if there is a column of ratings. `features` names the columns that a network
    reads, and says whether they are numbers.

    A row may be a user (Parquet or JSON lines with a column `items` of lists; or the format `lines`). Then the blocks
    come in the file's order, times and types of event are lists in the columns times and events, and features are in
    columns of their names. Or a row may be an interaction. Then the file is ordered first, like training data, in
    bounded memory and a temporary folder, and the blocks come in the order of the users' ids.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name one file")
    if (url := url_of(path)) is not None:
        raise UserError(f"{url} is not on this machine: fetch it, and name the file")
    file_format = format_of(path, file_format)
    tables = read_table(path, file_format, columns.integers)
    first = next(tables)
    tables = chain([first], tables)
    found, names = first.frame.columns, vars(columns)
    others = {key: name for key, name in vars(otherwise).items() if name in found and names[key] not in found}
    min_rating = min_rating if columns.rating in found else None
    columns = replace(columns, **others)
    features = {name: is_number for name, is_number in (features or {}).items() if name in found}
    if file_format == "lines":
        for table in tables:
            runs = table.frame["user"].rle().struct.unnest()  # the rows of a user are adjacent
            yield Histories(runs["value"], runs["len"].to_numpy().astype(np.int64), table.frame.select("item"))
    elif "items" in found and (_is_list(first.frame["items"]) or _is_json_list(first.frame["items"])):
        wanted = ["times"] * with_times + ["events"] * with_events
        for table in tables:
            yield from _of_table(table, columns.user, wanted, features).blocks()
    else:
        yield from _in_order(path, to_interactions(tables, columns, min_rating, features), repeats)


def _column(values: Any) -> pl.Series:
    if isinstance(values, pl.Series | list):
        return pl.Series(values, strict=False)
    plain = values.tolist()
    return pl.Series([None if gone else value for value, gone in zip(plain, values.isna(), strict=True)])


def _lists(histories: Any) -> pl.Series:
    if isinstance(histories, pl.Series) and isinstance(histories.dtype, pl.Null | pl.List | pl.Array):
        inner = getattr(histories.dtype, "inner", pl.String)
        if inner.is_nested():
            raise UserError(f"histories: a table or a list of lists is expected, of raw ids, not of {inner}")
        return histories.cast(pl.List(inner))
    expected = "histories: a table or a list of lists is expected, of raw ids"
    try:
        rows = list(histories)
        if any(isinstance(row, str | dict) for row in rows):
            raise UserError("histories: a table or a list of lists is expected; a single history is [[item, item]]")
        return pl.Series([[id_of(item, expected) for item in row] for row in rows], dtype=pl.List(pl.String))
    except TypeError:
        raise UserError(f"histories: a table or a list of lists is expected, not {type(histories).__name__}") from None


def _of_lists(columns: Mapping[str, Any], features: Collection[str] = ()) -> Histories:
    """Histories from a column items of lists and, if present, user, times and events (lists), and features."""
    items = _lists(columns["items"])
    lengths = items.list.len().fill_null(0)
    rows = {"item": ids_of(items.filter(lengths > 0).explode())}

    def laid(name: str) -> pl.Series:
        """The entries of a column of lists, one list after the other, as many as there are items."""
        lists = columns[name]
        lists = lists if _is_list(lists) else pl.Series(lists.to_list())
        if len(lists) and not (_is_list(lists) and (lists.list.len().fill_null(0) == lengths).all()):
            raise UserError(f"histories: {name} has not as many entries as items in every row")
        return lists.filter(lengths > 0).explode()

    if "times" in columns:
        rows["time"] = pl.Series(in_seconds(laid("times"), "histories: times"))
    if "events" in columns:
        rows["event"] = laid("events").cast(pl.String)
    for name in columns.keys() & set(features):
        if _is_list(columns[name]) or columns[name].dtype == pl.Object:
            rows[f"{FEATURE}{name}"] = laid(name)
        else:  # a single value per user
            rows[f"{FEATURE}{name}"] = columns[name].gather(np.repeat(np.arange(len(items)), lengths))
    users = columns.get("user", pl.Series(np.arange(len(items))))
    return Histories(users, lengths.to_numpy().astype(np.int64), pl.DataFrame(rows))


def _is_list(values: pl.Series) -> bool:
    return isinstance(values.dtype, pl.List | pl.Array)


def _is_json_list(values: pl.Series) -> bool:
    """Whether the values are lists as JSON text: this is how nested values of JSON lines arrive."""
    return values.dtype == pl.String and bool(values.drop_nulls().head(1).str.starts_with("[").any())


def _of_table(table: Table, user_column: str, beside: list[str], features: Collection[str]) -> Histories:
    columns = {"user": table.column(user_column, "(option user_column)")}
    for name in ("items", *(each for each in (*beside, *features) if each in table.frame.columns)):
        columns[name] = table.column_or_nulls(name, "")
        if _is_json_list(columns[name]) if name in features else columns[name].dtype == pl.String:
            try:
                columns[name] = columns[name].str.json_decode(pl.List(pl.String))
            except pl.exceptions.PolarsError:
                raise UserError(f"{table.name}: {name} are not a list in every row from {table.first_row} on") from None
    return _of_lists(columns, features)


def _in_order(path: Path, raw: RawInteractions, repeats: Repeats) -> Iterator[Histories]:
    with temporary(Path(tempfile.gettempdir()) / "lrec-histories") as folder:
        folder.mkdir(mode=0o700)
        source, reading = {"path": str(path)}, {"repeats": repeats}
        store = Store.open(prepare_store(folder, "histories", source, 0, lambda: raw, reading=reading))
        raw_items = store.item_table["raw_id"]
        for start in range(0, store.n_users, BLOCK):
            offsets_B1 = store.offsets_U1[start : start + BLOCK + 1]
            first, last = int(offsets_B1[0]), int(offsets_B1[-1])
            rows = {"item": raw_items.gather(store.items_N[first:last])}
            if store.times_N is not None:
                rows["time"] = pl.Series(store.seconds(np.arange(first, last)))
            if store.events_N is not None:
                rows["event"] = pl.Series(store.event_types, dtype=pl.String).gather(store.events_N[first:last])
            for name in store.features:
                rows[f"{FEATURE}{name}"] = store.feature_values(name, slice(first, last))
            users = store.raw_user_ids[start : start + BLOCK]
            yield Histories(users, np.diff(offsets_B1), pl.DataFrame(rows))
