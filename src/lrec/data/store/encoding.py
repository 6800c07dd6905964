"""Encode raw ids, and so whole rows, as integers. Shape suffixes: N rows, K ids."""

from typing import NamedTuple

import numpy as np
import polars as pl

from lrec.data.store.store import MOST_EVENT_TYPES, MOST_FEATURE_VALUES
from lrec.errors import UserError

Rows = dict[str, np.ndarray]  # columns of consecutive rows, by name
REST = "rest"  # a hash of all other columns of the source: only rows that are equal in it too are duplicates
FEATURE = "feature."  # prefix of feature columns, before the column's own name
SEPARATOR = "|"  # between the values of an entry that has several

# Integers below this are looked up in an array; others are encoded as text. On 3 million rows like MovieLens's, the
# array takes a seventh of the time of text.
_DIRECT = 1 << 24
_UNKNOWN = np.uint32(0xFFFFFFFF)


class Ranked(NamedTuple):
    """Ids in text order."""

    ids: pl.Series
    rank_K: np.ndarray  # each code's place in ids, int32
    counts: np.ndarray  # rows of each id


class RankedIds(NamedTuple):
    """All ids and texts of some rows."""

    users: Ranked
    items: Ranked
    domains: Ranked
    events: Ranked
    features: dict[str, Ranked | None]  # by column; None: a column of numbers


class Ids:
    """Raw ids as codes in the order in which they appear. An integer and the text that spells it are the same id."""

    def __init__(self) -> None:
        self._type = pl.Categorical(pl.Categories.random())
        # Polars drops the codes with the last column that uses them.
        self._anchor = pl.Series([], dtype=self._type)
        self._counts_K = np.zeros(0, dtype=np.int64)
        self._code_of_integer = np.zeros(0, dtype=np.uint32)

    def encode(self, ids: pl.Series, rows_N: np.ndarray | None = None) -> np.ndarray:
        """The code of each id. An id counts as one row, or as the number in `rows_N`."""
        if ids.dtype.is_integer() and len(ids) and 0 <= ids.min() <= ids.max() < _DIRECT:  # type: ignore[operator]
            codes_N = self._encode_integers(ids.cast(pl.Int64).to_numpy())
        else:
            codes_N = self._encode_text(ids)
        counts_K = np.bincount(codes_N, rows_N, minlength=len(self._counts_K)).astype(np.int64)
        counts_K[: len(self._counts_K)] += self._counts_K
        self._counts_K = counts_K
        return codes_N

    def ranked(self) -> Ranked:
        codes = np.flatnonzero(self._counts_K).astype(np.uint32)
        ids = pl.Series("raw_id", codes).cat.to(self._type).cast(pl.String)
        order = ids.arg_sort().to_numpy()
        rank_K = np.full(len(self._counts_K), -1, dtype=np.int32)
        rank_K[codes[order]] = np.arange(len(order), dtype=np.int32)
        return Ranked(ids.gather(order), rank_K, self._counts_K[codes[order]])

    def _encode_text(self, ids: pl.Series) -> np.ndarray:
        return ids.cast(pl.String).cast(self._type).to_physical().cast(pl.UInt32).to_numpy()

    def _encode_integers(self, values_N: np.ndarray) -> np.ndarray:
        end = int(values_N.max()) + 1
        if end > len(self._code_of_integer):
            longer = np.full(min(max(end, 2 * len(self._code_of_integer)), _DIRECT), _UNKNOWN)
            longer[: len(self._code_of_integer)] = self._code_of_integer
            self._code_of_integer = longer
        codes_N = self._code_of_integer[values_N]
        unknown_N = codes_N == _UNKNOWN
        if unknown_N.any():
            met = np.zeros(end, dtype=bool)
            met[values_N[unknown_N]] = True
            new = np.flatnonzero(met)
            self._code_of_integer[new] = self._encode_text(pl.Series(new))
            codes_N = self._code_of_integer[values_N]
        return codes_N


class Encoder:
    """Encodes frames of raw interactions as rows of numbers; keeps the ids of users, items, domains, types of event."""

    def __init__(self, name: str) -> None:
        self._name = name  # of the data set, for messages
        self.n_rows = 0
        self.users, self.items, self.domains, self.events = Ids(), Ids(), Ids(), Ids()
        self.features: dict[str, Ids | None] = {}  # by column; None: a column of numbers

    def encode(self, frame: pl.DataFrame) -> Rows:
        self._refuse_unfit(frame)
        rows = {"user": narrow(self.users.encode(frame["user"])), "item": narrow(self.items.encode(frame["item"]))}
        if "time" in frame.columns:
            rows["time"] = narrow(frame["time"].cast(pl.Int64).to_numpy())
        if "event" in frame.columns:
            rows["event"] = narrow(self.events.encode(frame["event"]))
        if "domain" in frame.columns:
            rows["row"] = np.arange(self.n_rows, self.n_rows + frame.height, dtype=np.int64)
            rows["domain"] = narrow(self.domains.encode(frame["domain"]))
        for name in (each for each in frame.columns if each.startswith(FEATURE)):
            is_text = frame[name].dtype == pl.String
            ids = self.features.setdefault(name, Ids() if is_text else None)
            values = frame[name].cast(pl.Float64).to_numpy() if ids is None else ids.encode(frame[name].fill_null(""))
            rows[name] = values.copy() if ids is None else narrow(values)
        if REST in frame.columns:
            rows[REST] = frame[REST].to_numpy().copy()
        self.n_rows += frame.height
        return rows

    def ranked(self) -> RankedIds:
        if self.n_rows == 0:
            raise UserError(f"{self._name}: no interactions are left to prepare")
        events = self.events.ranked()
        if len(events.ids) > MOST_EVENT_TYPES:
            raise UserError(
                f"{self._name}: {len(events.ids):,} types of event, such as {events.ids[0]}; at most "
                f"{MOST_EVENT_TYPES} are possible: event_column must name what was done, such as view or buy"
            )
        features = {name: None if ids is None else ids.ranked() for name, ids in self.features.items()}
        for name, ranked in features.items():
            if ranked is not None and len(ranked.ids) > MOST_FEATURE_VALUES:
                raise UserError(
                    f"the feature {name.removeprefix(FEATURE)} has {len(ranked.ids):,} different texts; at most "
                    f"{MOST_FEATURE_VALUES:,} are possible: group them, or name it under numbers"
                )
        return RankedIds(self.users.ranked(), self.items.ranked(), self.domains.ranked(), events, features)

    def _refuse_unfit(self, frame: pl.DataFrame) -> None:
        """Raise UserError if a data set's `read` returns a frame that `RawInteractions` does not allow."""
        name = self._name
        if missing := {"user", "item"} - set(frame.columns):
            found = ", ".join(frame.columns)
            raise UserError(f"{name}: read() gives no column {min(missing)}; its columns are {found}")
        for column, dtype in frame.schema.items():
            is_id = dtype == pl.String or dtype.is_integer()
            fits = {"user": is_id, "item": is_id, "event": is_id, "time": dtype.is_integer()}
            fits["domain"] = dtype == pl.String
            if not fits.get(column, True):
                raise UserError(f"{name}: read() gives {column} as {dtype}; ids are text or integers, times integers")
            if column in fits and frame[column].null_count():
                row = self.n_rows + int(frame[column].is_null().arg_max() or 0) + 1
                raise UserError(f"{name}, row {row}: read() gives no {column}")


def narrow(values_N: np.ndarray) -> np.ndarray:
    """A copy of the integers, in 2 or 4 bytes each if these suffice for all of them."""
    if len(values_N) == 0 or values_N.min() < 0:
        return values_N.copy()
    most = values_N.max()
    return values_N.astype(np.uint16 if most < 1 << 16 else np.uint32 if most < 1 << 32 else values_N.dtype)
