"""Encode raw ids, and so whole rows, as integers. Shape suffixes: N rows, K ids."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import polars as pl

from lrec.errors import UserError

Rows = dict[str, np.ndarray]  # columns of consecutive rows, by name
REST = "rest"  # a hash of all other columns of the source: only rows that are equal in it too are duplicates
FEATURE = "feature."  # prefix of feature columns, before the column's own name
_IDS = ("user", "item", "event", "domain")  # columns
_MOST_TYPES, _MOST_TEXTS = 256, 2**16  # types of event, and different texts of a feature
SEPARATOR = "|"  # between the values of an entry that has several

# Integers below this are looked up in an array; others are encoded as text. On 3 million rows like MovieLens's, the
# array takes a seventh of the time of text.
_DIRECT = 1 << 24


class Ranked(NamedTuple):
    """Ids in text order."""

    ids: pl.Series
    rank_K: np.ndarray  # each code's place in ids, int32
    counts: np.ndarray  # rows of each id


class Ids:
    """Raw ids as codes in the order in which they appear. An integer and the text that spells it are the same id."""

    def __init__(self) -> None:
        self._type = pl.Categorical(pl.Categories.random())
        # Polars drops the codes with the last column that uses them.
        self._anchor = pl.Series([], dtype=self._type)
        self._counts_K = np.zeros(0, dtype=np.int64)
        self._code_plus_1 = np.zeros(_DIRECT, dtype=np.uint32)  # by integer; 0: not met yet, and takes no memory

    def encode(self, ids: pl.Series, rows_N: np.ndarray | None = None) -> np.ndarray:
        """The code of each id. An id counts as one row, or as the number in `rows_N`."""
        if ids.dtype.is_integer() and len(ids) and 0 <= ids.min() <= ids.max() < _DIRECT:  # type: ignore[operator]
            values_N = ids.cast(pl.Int64).to_numpy()
            if len(new := np.unique(values_N[self._code_plus_1[values_N] == 0])):
                self._code_plus_1[new] = self._encode_text(pl.Series(new)) + 1
            codes_N = self._code_plus_1[values_N] - 1
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


class Encoder:
    """Encodes frames of raw interactions as rows of numbers; keeps the ids and texts of each column that has some."""

    def __init__(self, name: str) -> None:
        self._name = name  # of the data set, for messages
        self.n_rows = 0
        self.ids = defaultdict[str, Ids](Ids)  # by column
        self.features: dict[str, bool] = {}  # columns of features, and whether they are text, as in the first frame

    def encode(self, frame: pl.DataFrame) -> Rows:
        self._refuse_unfit(frame)
        rows: Rows = {}
        for name in frame.columns:
            column = frame[name]
            if name.startswith(FEATURE) and not self.features.setdefault(name, column.dtype == pl.String):
                rows[name] = column.cast(pl.Float64).to_numpy().copy()
            elif name in _IDS or name in self.features:
                rows[name] = narrow(self.ids[name].encode(column.fill_null("") if name in self.features else column))
            elif name == "time":
                rows[name] = narrow(column.cast(pl.Int64).to_numpy())
            elif name == REST:
                rows[name] = column.to_numpy().copy()
        if "domain" in rows:
            rows["row"] = np.arange(self.n_rows, self.n_rows + frame.height, dtype=np.int64)
        self.n_rows += frame.height
        return rows

    def ranked(self) -> dict[str, Ranked]:
        """The ids and texts of each column in text order; UserError if there are none, or too many."""
        if self.n_rows == 0:
            raise UserError(f"{self._name}: no interactions are left to prepare")
        ranked = {name: ids.ranked() for name, ids in self.ids.items()}
        for name, (texts, *_) in ranked.items():
            if name == "event" and len(texts) > _MOST_TYPES:
                raise UserError(
                    f"{self._name}: {len(texts):,} types of event, such as {texts[0]}; at most {_MOST_TYPES} are "
                    "possible: event_column must name what was done, such as view or buy"
                )
            if name in self.features and len(texts) > _MOST_TEXTS:
                raise UserError(
                    f"the feature {name.removeprefix(FEATURE)} has {len(texts):,} different texts; at most "
                    f"{_MOST_TEXTS:,} are possible: group them, or name it under numbers"
                )
        return ranked

    def _refuse_unfit(self, frame: pl.DataFrame) -> None:
        """Raise UserError if a data set's `read` returns a frame that `RawInteractions` does not allow."""
        name = self._name
        if missing := {"user", "item"} - set(frame.columns):
            found = ", ".join(frame.columns)
            raise UserError(f"{name}: read() gives no column {min(missing)}; its columns are {found}")
        for column, dtype in frame.schema.items():
            is_integer, is_text = dtype.is_integer(), dtype == pl.String
            fits = dict.fromkeys(_IDS, is_integer or is_text) | {"time": is_integer, "domain": is_text}
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
