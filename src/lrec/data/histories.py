"""Histories that recommendations continue: from a table in memory, or from a file, block by block. B: histories."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from lrec.common.files import temporary
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
        starts_B = self.starts_B
        for start in range(0, len(self.users), size):
            lengths_B = self.lengths_B[start : start + size]
            rows = self.rows.slice(int(starts_B[start]), int(lengths_B.sum()))
            yield Histories(self.users[start : start + size], lengths_B, rows)


def histories_of(
    table: Any, with_times: bool = False, with_events: bool = False, features: Collection[str] = ()
) -> Histories:
    """Histories in memory. `table` is a list of lists, or a Polars or pandas table with a row per user (columns items,
    which are lists, and user, which may be absent) or a row per interaction in time order (columns user and item).
    If asked for and present, times and types of event come from the columns times and events (lists), or time and
    event. Features come from columns of their names: a list or a single value in each row of a user. A list of
    dictionaries is a table with a row per user."""
    own = ["item"] + ["time"] * with_times + ["event"] * with_events
    table = table.collect() if isinstance(table, pl.LazyFrame) else table
    if isinstance(table, list) and table and all(isinstance(row, dict) and "items" in row for row in table):
        given: dict[str, Any] = {name: [row.get(name) for row in table] for name in set().union(*table)}
    else:
        is_table = hasattr(table, "columns")
        given = {str(name): _plain(table[name]) for name in table.columns} if is_table else {"items": table}
    by_name = {name: _column(given[name]) for name in features if name in given}
    if "items" in given:
        users = _column(given["user"]) if "user" in given else None
        lists = {name: _column(given[f"{name}s"]) for name in own[1:] if f"{name}s" in given}
        return _of_lists(users, {"item": given["items"], **lists}, by_name)
    if not {"user", "item"} <= given.keys():
        there = ", ".join(given)
        raise UserError(f"histories has the columns {there}: user and items (lists), or user and item, are expected")
    columns = {name: _column(given[name]) for name in ("user", *own) if name in given}
    columns |= {f"{FEATURE}{name}": values for name, values in by_name.items()}
    lists = pl.DataFrame(columns).group_by("user", maintain_order=True).agg(pl.all()).to_dict()
    by_name = {name: lists.pop(f"{FEATURE}{name}") for name in by_name}
    return _of_lists(lists.pop("user"), lists, by_name)


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
        own = ["item"] + ["time"] * with_times + ["event"] * with_events
        for table in tables:
            yield from _of_table(table, columns.user, own, features).blocks()
    else:
        yield from _in_order(path, to_interactions(tables, columns, min_rating, features), repeats)


def _plain(values: Any) -> Any:
    """A column of Polars as it is, and one of pandas as a list, None where a value is missing."""
    if isinstance(values, pl.Series):
        return values
    return [None if gone else value for value, gone in zip(values.tolist(), values.isna(), strict=True)]


def _column(values: Any) -> pl.Series:
    return pl.Series([_plain_dates(each) for each in values] if isinstance(values, list) else values, strict=False)


def _plain_dates(times: Any) -> Any:
    """A list or an array of numpy's dates as dates of Python, because Polars makes numbers of them or refuses them."""
    if isinstance(times, list) and times and isinstance(times[0], np.datetime64):
        times = np.array(times)
    is_dates = isinstance(times, np.ndarray) and times.dtype.kind == "M"
    return times.astype("datetime64[us]").tolist() if is_dates else times


def _lists(histories: Any) -> pl.Series:
    if isinstance(histories, pl.Series) and isinstance(histories.dtype, pl.Null | pl.List | pl.Array):
        inner = getattr(histories.dtype, "inner", pl.String)
        if inner.is_nested():
            raise UserError(f"histories: a table or a list of lists is expected, of raw ids, not of {inner}")
        return histories.cast(pl.List(inner))
    expected = "histories: a table or a list of lists is expected, of raw ids"
    try:
        rows = [() if row is None else row for row in histories]
        if any(isinstance(row, str | dict) for row in rows):
            raise UserError("histories: a table or a list of lists is expected; a single history is [[item, item]]")
        return pl.Series([[id_of(item, expected) for item in row] for row in rows], dtype=pl.List(pl.String))
    except TypeError:
        raise UserError(f"histories: a table or a list of lists is expected, not {type(histories).__name__}") from None


def _of_lists(users: pl.Series | None, lists: Mapping[str, Any], features: Mapping[str, pl.Series]) -> Histories:
    """Histories from lists by name (item, time, event) and features by name: a list or a single value for each user."""
    items = _lists(lists["item"])
    lengths = items.list.len().fill_null(0)
    rows = {"item": ids_of(items.filter(lengths > 0).explode())}

    def laid(name: str, column: pl.Series) -> pl.Series:
        """The entries of a column of lists, one list after the other, as many as there are items."""
        column = column if _is_list(column) else pl.Series(column.to_list())
        column = column.arr.to_list() if isinstance(column.dtype, pl.Array) else column
        if len(column) and not (_is_list(column) and (column.list.len().fill_null(0) == lengths).all()):
            raise UserError(f"histories: {name} has not as many entries as items in every row")
        return column.filter(lengths > 0).explode()

    if "time" in lists:
        rows["time"] = pl.Series(in_seconds(laid("times", lists["time"]), "histories: times"))
    if "event" in lists:
        rows["event"] = laid("events", lists["event"]).cast(pl.String)
    for name, values in features.items():
        if _is_list(values) or values.dtype == pl.Object:
            if isinstance(values.dtype, pl.List):  # a missing list has as many missing values as there are items
                none = pl.lit(None, values.dtype.inner)
                values = pl.select(pl.coalesce(values, none.repeat_by(pl.lit(lengths)))).to_series()
            rows[f"{FEATURE}{name}"] = laid(name, values)
        else:  # a single value per user
            rows[f"{FEATURE}{name}"] = values.gather(np.repeat(np.arange(len(items)), lengths))
    users = pl.Series(np.arange(len(items))) if users is None else users
    return Histories(users, lengths.to_numpy().astype(np.int64), pl.DataFrame(rows))


def _is_list(values: pl.Series) -> bool:
    return isinstance(values.dtype, pl.List | pl.Array)


def _is_json_list(values: pl.Series) -> bool:
    """Whether the values are lists as JSON text: this is how nested values of JSON lines arrive."""
    return values.dtype == pl.String and bool(values.drop_nulls().head(1).str.starts_with("[").any())


def _of_table(table: Table, user_column: str, own: list[str], features: Collection[str]) -> Histories:
    users, there = table.column(user_column, "(option user_column)"), table.frame.columns

    def decoded(name: str, is_feature: bool) -> pl.Series:
        column = table.column_or_nulls(name, "")
        if not (_is_json_list(column) if is_feature else column.dtype == pl.String):
            return column
        for of_entry in [pl.String(), *[pl.List(pl.String)] * is_feature]:  # an item may have a list of values
            with suppress(pl.exceptions.PolarsError):
                return column.str.json_decode(pl.List(of_entry))
        raise UserError(f"{table.name}: {name} are not a list in every row from {table.first_row} on")

    lists = {name: decoded(f"{name}s", False) for name in own if name == "item" or f"{name}s" in there}
    return _of_lists(users, lists, {name: decoded(name, True) for name in features if name in there})


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
