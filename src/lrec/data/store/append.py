"""Append new rows to those of a store. The result is a store of all rows; the old raw data are not read again.

Users, items and types of event get the same numbers as in a preparation of all rows, so arrays, tables and statistics
are the same, bit for bit. Only the source in meta.json differs: it lists the parts.

Shape suffixes: N rows, U users of the store, I items of the store.
"""

import json
from typing import Any

import numpy as np
import polars as pl

from lrec.data.store.encoding import REST, Encoder, Ranked, Rows
from lrec.data.store.ordering import Ordered, in_time_order
from lrec.data.store.store import Store
from lrec.errors import UserError

_ANEW = "prepare all rows again"
_READ_BY_COLUMN = ("interactions", "movielens", "parts")  # kinds of sources


def refuse_append(store: Store) -> None:
    """Raise UserError if the store lacks something that it needs to equal a preparation of all rows."""
    where, kind = f"{store.path} cannot be appended to", store.meta["source"].get("kind")
    if (k := store.meta["options"]["k_core"]) > 1:
        raise UserError(f"{where}: the rows that its k_core {k} dropped may belong to the core of all rows: {_ANEW}")
    if kind not in _READ_BY_COLUMN:
        raise UserError(f"{where}: its rows were not read from columns by name, but by a class of its own: {_ANEW}")
    if (repeats := store.meta["reading"].get("repeats", True)) is not True:
        raise UserError(f"{where}: the rows that its repeats {json.dumps(repeats)} dropped are missing: {_ANEW}")
    if store.meta.get("features"):
        raise UserError(f"{where}: it has features, which new rows cannot get: {_ANEW}")


def refuse_other_unit(store: Store, facts: dict[str, Any]) -> None:
    """Raise UserError if the times of the new rows, described by `facts`, are in another unit."""
    mine, theirs = (each.get("time_unit") for each in (store.facts, facts))
    if mine != theirs:
        raise UserError(f"the times of {store.path} are in {mine}, but the times of the new rows are in {theirs}")


class Earlier:
    """The rows of a store, which come before the new ones in the source."""

    def __init__(self, store: Store, encoder: Encoder) -> None:
        """Encode the store's ids first, so that their codes are the store's indices."""
        self.store = store
        self._drops_duplicates, self._duplicates_known = False, True
        table, lengths_U = store.item_table, np.diff(store.offsets_U1)
        encoder.users.encode(store.raw_user_ids, lengths_U)
        encoder.items.encode(table["raw_id"])
        encoder.events.encode(pl.Series(store.event_types, dtype=pl.String))
        self._domain_I = None
        if table["domain"].null_count() == 0:
            self._domain_I = encoder.domains.encode(table["domain"])

    def look_at(self, frame: pl.DataFrame) -> None:
        """Note what columns a frame of new rows has; raise UserError if they differ from the store's."""
        store, names = self.store, frame.columns
        known = {"time": store.times_N is not None, "event": store.events_N is not None}
        for name, has in (known | {"domain": self._domain_I is not None}).items():
            if (name in names) != has:
                raise UserError(f"the new rows have {'no' if has else 'a'} {name}, unlike the rows of {store.path}")
        self._drops_duplicates |= REST in names
        if REST in names and (frame[REST] != 0).any():  # the store does not keep the columns behind the hash
            self._duplicates_known = False

    def followed_by(self, new: Ordered, users: Ranked, items: Ranked) -> Ordered:
        """The store's rows and new rows of the same users, in order. At equal times, the store's rows come first."""
        place_U = users.rank_K[: self.store.n_users]  # ascending, because ids are in text order in both
        end = new.first_user + len(new.lengths_U)
        mine = slice(*np.searchsorted(place_U, [new.first_user, end]))
        bounds_U1 = self.store.offsets_U1[mine.start : mine.stop + 1]
        old = {"user": np.repeat(place_U[mine] - new.first_user, np.diff(bounds_U1))}
        old |= self._columns(slice(bounds_U1[0], bounds_U1[-1]), items)
        added = {"user": new.users_N, **new.columns}
        if self._drops_duplicates:
            fresh_N = self._fresh(old, added)
            added = {name: column[fresh_N] for name, column in added.items()}
        rows = {name: np.concatenate([column, added[name].astype(column.dtype)]) for name, column in old.items()}
        order_N = in_time_order(rows["user"], rows.get("time"), two_runs=True)
        lengths_U = np.bincount(rows.pop("user"), minlength=len(new.lengths_U))
        return Ordered(new.first_user, lengths_U, {name: column[order_N] for name, column in rows.items()})

    def _columns(self, rows: slice, items: Ranked) -> Rows:
        """Columns of the store's rows, as `Ordered` has them. Their `row` is -1, below that of all new rows."""
        items_N = self.store.items_N[rows]
        columns = {"item": items.rank_K[items_N]}
        if self.store.times_N is not None:
            columns["time"] = self.store.times_N[rows]
        if self.store.events_N is not None:
            columns["event"] = self.store.events_N[rows].astype(np.uint16)  # codes of new types follow the store's
        if self._domain_I is not None:
            columns |= {"domain": self._domain_I[items_N], "row": np.full(len(items_N), -1)}
        return columns

    def _fresh(self, old: Rows, new: Rows) -> np.ndarray:
        """Which new rows the store does not have; raise UserError if it cannot tell."""
        fresh_N = np.ones(len(new["item"]), dtype=bool)
        if "time" in old and len(fresh_N):  # few old rows are as late as the new ones
            recent_N = old["time"] >= new["time"].min()
            old = {name: column[recent_N] for name, column in old.items()}
        names = [name for name in old if name not in ("domain", "row")]
        one, other = (pl.DataFrame({name: rows[name].astype(np.int64) for name in names}) for rows in (new, old))
        fresh_N[one.with_row_index().join(other, on=names, how="semi")["index"].to_numpy()] = False
        if not (self._duplicates_known or fresh_N.all()):
            count = np.count_nonzero(~fresh_N)
            raise UserError(
                f"{count:,} of the new rows agree with rows of {self.store.path} in all columns that it keeps, but "
                f"may differ in columns that it does not keep: leave these rows out, or {_ANEW}"
            )
        return fresh_N
