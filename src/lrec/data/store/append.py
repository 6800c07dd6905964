"""Append new rows to those of a store. The result is a store of all rows; the old raw data are not read again.

Users, items and types of event get the same numbers as in a preparation of all rows, so arrays, tables and statistics
are the same, bit for bit. Only the source in meta.json differs: it lists the parts. Shape suffixes: N rows; of the
store, U users and I items.
"""

import json
from typing import Any

import numpy as np
import polars as pl

from lrec.data.store.encoding import REST, Encoder, Ranked, Rows
from lrec.data.store.ordering import Ordered, at, in_time_order
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
        self.store, self._domain_I = store, None
        self._drops_duplicates, self._duplicates_known = False, True
        table = store.item_table
        encoder.ids["user"].encode(store.raw_user_ids, np.diff(store.offsets_U1))
        encoder.ids["item"].encode(table["raw_id"])
        if store.event_types:
            encoder.ids["event"].encode(pl.Series(store.event_types))
        if table["domain"].null_count() == 0:
            self._domain_I = encoder.ids["domain"].encode(table["domain"])

    def look_at(self, frame: pl.DataFrame) -> None:
        """Note what columns a frame of new rows has; raise UserError if they differ from the store's."""
        store, names = self.store, frame.columns
        known = {"time": store.times_N, "event": store.events_N, "domain": self._domain_I}
        for name, values in known.items():
            if (name in names) != (values is not None):
                has = "a" if name in names else "no"
                raise UserError(f"the new rows have {has} {name}, unlike the rows of {store.path}")
        self._drops_duplicates |= REST in names
        if REST in names and (frame[REST] != 0).any():  # the store does not keep the columns behind the hash
            self._duplicates_known = False

    def followed_by(self, new: Ordered, users: Ranked, items: Ranked) -> Ordered:
        """The store's rows and new rows of the same users, in order. At equal times, the store's rows come first."""
        store = self.store
        place_U = users.rank_K[: store.n_users]  # ascending, because ids are in text order in both
        end = new.first_user + len(new.lengths_U)
        mine = slice(*np.searchsorted(place_U, [new.first_user, end]))
        bounds_U1 = store.offsets_U1[mine.start : mine.stop + 1]
        rows = slice(bounds_U1[0], bounds_U1[-1])
        items_N = store.items_N[rows]
        old = {"user": np.repeat(place_U[mine] - new.first_user, np.diff(bounds_U1)), "item": items.rank_K[items_N]}
        if store.times_N is not None:
            old["time"] = store.times_N[rows]
        if store.events_N is not None:
            old["event"] = store.events_N[rows].astype(np.uint16)  # codes of new types follow the store's
        if self._domain_I is not None:
            old |= {"domain": self._domain_I[items_N], "row": np.full(len(items_N), -1)}  # below all new rows
        added = {"user": new.users_N, **new.columns}
        if self._drops_duplicates:
            added = at(added, self._fresh(old, added))
        both = {name: np.concatenate([column, added[name].astype(column.dtype)]) for name, column in old.items()}
        ordered = at(both, in_time_order(both["user"], both.get("time"), two_runs=True))
        lengths_U = np.bincount(ordered.pop("user"), minlength=len(new.lengths_U))
        return Ordered(new.first_user, lengths_U, ordered)

    def _fresh(self, old: Rows, new: Rows) -> np.ndarray:
        """The places of the new rows that the store does not have; raise UserError if it cannot tell."""
        if "time" in old:  # few old rows are as late as the new ones
            old = at(old, old["time"] >= new["time"].min(initial=np.iinfo(np.int64).max))
        names = [name for name in old if name not in ("domain", "row")]
        one, other = (pl.DataFrame({name: rows[name].astype(np.int64) for name in names}) for rows in (new, old))
        fresh = one.with_row_index().join(other, on=names, how="anti")["index"].sort().to_numpy()
        if not self._duplicates_known and len(fresh) < one.height:
            raise UserError(
                f"{one.height - len(fresh):,} of the new rows agree with rows of {self.store.path} in all columns that "
                f"it keeps, but may differ in columns that it does not keep: leave these rows out, or {_ANEW}"
            )
        return fresh
