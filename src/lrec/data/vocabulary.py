"""The vocabulary of a feature: a column's values in training, each with a row of a table that a network learns.

Shape suffixes: N entries, K distinct ones, S values of an entry, F values in all columns, W vector width.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import polars as pl

from lrec.data.formats.readers import feature_of
from lrec.data.store.encoding import SEPARATOR
from lrec.errors import UserError

Kind = Literal["categories", "numbers", "lists"]
MOST_SLOTS = 32


@dataclass(frozen=True)
class Vocabulary:
    """The values of a column in the training part: a table row for each value, or for each bucket of numbers.

    If the training part has missing values, they have a row too, the last one. A value that is not in the training part
    has no row (-1) and adds nothing.

    Attributes:
        values: Values of categories and lists, in text order.
        edges: Edges of the buckets of numbers: bucket b holds edges[b - 1] <= x < edges[b].
        centre: Mean and standard deviation of numbers in training.
        missing: Whether training had missing values.
        slots: Largest number of values in an entry.
    """

    column: str
    of: str  # event, user or item
    kind: Kind
    values: list[str] = field(default_factory=list)
    edges: list[float] = field(default_factory=list)
    centre: tuple[float, float] = (0.0, 1.0)
    missing: bool = False
    slots: int = 1

    @classmethod
    def learned(cls, column: str, of: str, kind: Kind, values: pl.Series, buckets: int) -> "Vocabulary":
        """The vocabulary of a column, from its values in the training part."""
        is_number = kind == "numbers"
        blank = values.fill_null(np.nan).is_nan() if is_number else values.fill_null("").str.strip_chars() == ""
        values, missing = values.filter(~blank), bool(blank.any())
        if is_number:
            numbers = np.sort(values.to_numpy())
            distinct = np.unique(numbers)
            if len(distinct) > buckets:
                places = np.arange(1, buckets) * len(numbers) // buckets
                distinct = np.unique(np.append(numbers[0], numbers[places]))
            centre = (float(numbers.mean()), float(numbers.std()) or 1.0) if len(numbers) else (0.0, 1.0)
            return cls(column, of, kind, [], distinct[1:].tolist(), centre, missing)
        entries = [_parts(text, kind) for text in values.unique()]
        slots = max([1, *map(len, entries)])
        if slots > MOST_SLOTS:
            raise UserError(f"{of}_features.lists {column}: an entry has {slots} values; at most {MOST_SLOTS} are read")
        known = sorted({part for entry in entries for part in entry})
        return cls(column, of, kind, known, missing=missing, slots=slots)

    @property
    def size(self) -> int:
        """Rows of the table."""
        return (len(self.edges) + 1 if self.kind == "numbers" else len(self.values)) + self.missing

    @property
    def row_names(self) -> list[str]:
        """A name for each row that no other row has."""
        values = range(len(self.edges) + 1) if self.kind == "numbers" else self.values
        return [f"{self.of} {self.column}={value}" for value in (*values, *["\0missing"] * self.missing)]

    def codes(self, values: pl.Series) -> np.ndarray:
        """The table rows of each entry's values, int64 (N, S); -1 if a value has no row or a slot is unused."""
        read = self._as_trained(values)
        if self.kind == "numbers":
            return self.buckets(read.to_numpy())
        distinct, unused = read.unique(), [-1] * self.slots
        rows = [[*self._rows_in(text), *unused][: self.slots] for text in distinct]
        rows_KS = np.array(rows, dtype=np.int64).reshape(-1, self.slots)
        return rows_KS[read.cast(pl.Enum(distinct)).to_physical().to_numpy()]

    def buckets(self, numbers_N: np.ndarray) -> np.ndarray:
        """The table rows of numbers, int64 (N, 1). Not with Polars, whose threads a data loader's process lacks."""
        rows_N = np.searchsorted(np.asarray(self.edges), numbers_N, side="right")
        return np.where(np.isnan(numbers_N), self.size - 1 if self.missing else -1, rows_N)[:, None]

    def vectors(self, values: pl.Series) -> np.ndarray:
        """Each entry as a vector, (N, W): a one for each of its values; or the standardised number and, if training had
        missing values, whether it is missing."""
        read = self._as_trained(values)
        if self.kind == "numbers":
            numbers_N = (read.to_numpy() - self.centre[0]) / self.centre[1]
            return np.stack([np.nan_to_num(numbers_N), np.isnan(numbers_N)], 1)[:, : 1 + self.missing]
        ones_NW = np.zeros((len(values), self.size), dtype=np.float32)
        for place, text in enumerate(read):
            ones_NW[place, self._rows_in(text)] = 1
        return ones_NW

    def _as_trained(self, values: pl.Series) -> pl.Series:
        """The values as training read them: numbers, nan if missing; or text, empty if missing."""
        is_number = self.kind == "numbers"
        if is_number or values.dtype != pl.String:
            values = feature_of(values.alias(self.column), is_number, "features", 1)
        return values.fill_null(np.nan if is_number else "")

    def _rows_in(self, text: str) -> list[int]:
        """The table rows of an entry's values."""
        return [self._row_of[part] for part in _parts(text, self.kind) if part in self._row_of]

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {value: row for row, value in enumerate([*self.values, *[""] * self.missing])}


def _parts(text: str, kind: Kind) -> list[str]:
    """The values of an entry, each once; an empty text for a missing entry."""
    if not text.strip():
        return [""]
    found = text.split(SEPARATOR) if kind == "lists" else [text]
    return [part for part in dict.fromkeys(each.strip() for each in found) if part]


def codes_of(vocabularies: list[Vocabulary], values: Mapping[str, pl.Series], n: int) -> np.ndarray:
    """The codes of `n` entries, (N, F), as rows of one table. Of a column that is not given, all values are missing."""
    nothing = pl.Series([None] * n, dtype=pl.Float64)
    codes = [vocabulary.codes(values.get(vocabulary.column, nothing)) for vocabulary in vocabularies]
    return one_table(codes, [vocabulary.size for vocabulary in vocabularies])


def one_table(codes: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """Codes of several columns, each (N, S), as rows of one table, (N, F), which joins the columns' tables in order.
    The size of the last table is not needed."""
    starts = [0, *accumulate(sizes)]
    moved = [np.where(codes_NS < 0, -1, codes_NS + start) for codes_NS, start in zip(codes, starts, strict=False)]
    return np.concatenate(moved, axis=1).astype(np.int64)


def vocabularies_of(about: Mapping[str, Any]) -> list[Vocabulary]:
    """The vocabularies of a trained network, from its description; empty if it has no features."""
    return [Vocabulary(**each) for each in about.get("features", [])]


def as_plain(vocabularies: list[Vocabulary]) -> dict[str, Any]:
    """The part of the description that `vocabularies_of` reads; empty without vocabularies."""
    return {"features": [asdict(each) for each in vocabularies]} if vocabularies else {}
