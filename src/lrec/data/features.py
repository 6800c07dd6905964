"""Features of events and items: columns of the log, or of a file with ids of items, as a network reads them.

    a column -> its Vocabulary, from the training part alone -> events: codes, which are rows of a table
                                                             -> items: vectors of ones and numbers

Shape suffixes: N interactions or entries, K items or distinct values, S values that an entry of a column may have, F
values that the entries of all columns may have, W width of an item's vector.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import polars as pl

from lrec.common.files import file_hash
from lrec.data.formats.readers import feature_of, infer_format, read_columns
from lrec.data.splits.rules import Split
from lrec.data.store.encoding import SEPARATOR
from lrec.data.store.store import Store
from lrec.errors import UserError, check_range

Kind = Literal["categories", "numbers", "lists"]
MOST_SLOTS = 32
ID = ""  # a column of ids; no feature has this name
MOST_WIDTH = 4096
MOST_NUMBERS = 2**20  # numbers of the training part, whose quantiles bound the buckets


@dataclass(frozen=True)
class Vocabulary:
    """The values of a column in the training part: a table row for each value, or for each bucket of numbers. If the
    training part has missing values, they have a row too, the last one. A value that is not in the training part has no
    row (-1) and adds nothing."""

    column: str
    of: str  # event or item
    kind: Kind
    values: list[str] = field(default_factory=list)  # of categories and lists, in text order
    edges: list[float] = field(default_factory=list)  # of numbers: bucket b holds edges[b - 1] <= x < edges[b]
    centre: tuple[float, float] = (0.0, 1.0)  # mean and standard deviation of numbers in training
    missing: bool = False  # whether training had missing values
    slots: int = 1  # largest number of values in an entry of the training part
    id_column: str | None = None  # of the file that it comes from; None: the first one, or there is no file

    @classmethod
    def learned(cls, column: str, of: str, kind: Kind, values: pl.Series, buckets: int) -> "Vocabulary":
        """The vocabulary of a column, from its values in the training part."""
        is_number = kind == "numbers"
        blank = values.fill_null(np.nan).is_nan() if is_number else values.fill_null("").str.strip_chars() == ""
        values, missing = values.filter(~blank), bool(blank.any())
        if is_number:
            numbers = np.sort(values.to_numpy())
            distinct = np.unique(numbers)
            deviation = float(numbers.std()) if len(distinct) > 1 else 0.0  # of equal numbers, it may be rounded up
            if len(distinct) > buckets:
                places = np.arange(1, buckets) * len(numbers) // buckets
                distinct = np.unique(np.append(numbers[0], numbers[places]))
            centre = (float(numbers.mean()) if len(numbers) else 0.0, deviation or 1.0)
            return cls(column, of, kind, [], distinct[1:].tolist(), centre, missing)
        entries = [_parts(text, kind) for text in values.unique()]
        known = sorted({part for entry in entries for part in entry})
        return cls(column, of, kind, known, missing=missing, slots=_slots(entries, of, column))

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
        """The table rows of each entry's values, int64 (N, S), S >= `slots`; -1 without a row, and in unused slots."""
        read = self._as_trained(values)
        if self.kind == "numbers":
            return self.buckets(read.to_numpy())
        distinct = read.unique()
        rows = [self._rows_in(text) for text in distinct]
        slots = max(self.slots, _slots(rows, self.of, self.column))
        rows_KS = np.array([[*each, *[-1] * slots][:slots] for each in rows], dtype=np.int64).reshape(-1, slots)
        return rows_KS[read.cast(pl.Enum(distinct)).to_physical().to_numpy()]

    def buckets(self, numbers_N: np.ndarray) -> np.ndarray:
        """The table rows of numbers, int64 (N, 1). Not with Polars, whose threads a data loader's process lacks."""
        rows_N = np.searchsorted(np.asarray(self.edges), numbers_N, side="right")
        return np.where(np.isnan(numbers_N), self.size - 1 if self.missing else -1, rows_N)[:, None]

    def vectors(self, values: pl.Series) -> np.ndarray:
        """Each entry as a vector, (N, W): a one for each value; or the standardised number, and if training had missing
        ones, whether it is missing."""
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


def _slots(entries: list[list[Any]], of: str, column: str) -> int:
    """The largest number of values in an entry, at least 1; UserError if it is more than MOST_SLOTS."""
    if (most := max([1, *map(len, entries)])) > MOST_SLOTS:
        raise UserError(f"{of}_features.lists {column}: an entry has {most} values; at most {MOST_SLOTS} are read")
    return most


def codes_of(vocabularies: list[Vocabulary], values: Mapping[str, pl.Series], n: int) -> np.ndarray:
    """The codes of `n` entries, (N, F), as rows of one table. Of a column that is not given, all values are missing."""
    nothing = pl.Series([None] * n, dtype=pl.Float64)
    codes = [vocabulary.codes(values.get(vocabulary.column, nothing)) for vocabulary in vocabularies]
    return one_table(codes, [vocabulary.size for vocabulary in vocabularies])


def one_table(codes: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """Codes of columns, each (N, S), as rows of one table, (N, F): the columns' tables, of these sizes, in order."""
    starts = [0, *accumulate(sizes)]
    moved = [np.where(codes_NS < 0, -1, codes_NS + start) for codes_NS, start in zip(codes, starts, strict=False)]
    return np.concatenate(moved, axis=1).astype(np.int64)


def vocabularies_of(about: Mapping[str, Any]) -> list[Vocabulary]:
    """The vocabularies of a trained network, from its description; empty if it has no features."""
    return [Vocabulary(**each) for each in about.get("features", [])]


def as_plain(vocabularies: list[Vocabulary]) -> dict[str, Any]:
    """The part of the description that `vocabularies_of` reads; empty without vocabularies."""
    return {"features": [asdict(each) for each in vocabularies]} if vocabularies else {}


@dataclass(frozen=True)
class Features:
    """Columns that a network reads in addition to the ids, from the log or from a file with a row for each id.

    Args:
        categories: Columns with one of several values in each row, such as a device.
        numbers: Columns of numbers, such as a price: cut into buckets of the training part for events, standardised on
            the catalogue for items.
        lists: Columns with several values in each row, separated by |, such as genres.
        path: File (CSV, TSV, JSON lines, Parquet) with the columns and a column of ids. null: columns of the log, from
            which an item gets the first value in the training part. For events, only columns of the log are possible.
        id_column: Column of ids in this file; by default the first column.
        buckets: Largest number of buckets of a column of numbers.
    """

    categories: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    path: Path | None = None
    id_column: str | None = None
    buckets: int = 16

    def __post_init__(self) -> None:
        check_range("features.buckets", self.buckets, at_least=2)
        names = [*self.categories, *self.numbers, *self.lists]
        if not names or len(set(names)) < len(names):
            raise UserError("features: name at least one column, and each once, in categories, numbers or lists")

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each column."""
        return {column: kind for kind in get_args(Kind) for column in getattr(self, kind)}

    def read(self, option: str, again: bool = False) -> pl.DataFrame:
        """Read the file: `ID` and the columns, text or numbers, null if a value is missing; UserError if the file
        cannot be used. `again`: the option is only a path, and the columns are those of the training."""
        assert self.path is not None
        file_format, given = infer_format(self.path.name), f"{option}{'' if again else '.path'} {self.path}"
        if file_format in (None, "lines") or not self.path.is_file():
            raise UserError(f"{given}: no .csv, .tsv, .jsonl or .parquet file is there")
        of_ids = "(the column of ids in training)" if again else f"({option}.id_column)"
        wanted: dict[str, tuple[str | None, str, bool | None]] = {ID: (self.id_column, of_ids, None)}
        wanted |= {name: (name, f"({option})", kind == "numbers") for name, kind in self.kinds.items()}
        frame = read_columns(self.path, file_format, wanted).filter(pl.col(ID).str.strip_chars() != "")
        if (twice := frame[ID].is_duplicated()).any():
            raise UserError(f"{given}: {frame[ID][int(twice.arg_max() or 0)]} is in it twice")
        return frame

    def of_items(self, split: Split, raw_ids: pl.Series) -> pl.DataFrame:
        """`ID` and the columns of items: first those of the catalogue, `raw_ids`, then others that a file has."""
        if self.path is not None:
            return _completed(self.read("data.item_features"), raw_ids, f"data.item_features.path {self.path}")
        store = split.store
        first_K = np.full(len(raw_ids), len(store.items_N))
        for rows_N in split.training_rows():
            np.minimum.at(first_K, split.catalogue_index_I[store.items_N[rows_N]], rows_N)
        return pl.DataFrame({ID: raw_ids} | {name: store.feature_values(name, first_K) for name in self.kinds})

    def learned(self, of: str, values: Mapping[str, pl.Series]) -> list[Vocabulary]:
        """The vocabularies of the columns, from their values in training."""
        found = (Vocabulary.learned(name, of, kind, values[name], self.buckets) for name, kind in self.kinds.items())
        return [replace(each, id_column=self.id_column) for each in found]


class EventCodes:
    """What a network reads of interactions besides item and time: rows of one table, which has one for each type of
    event and each value of the features of events."""

    def __init__(self, store: Store, events: list[Vocabulary]) -> None:
        self._store, self._events = store, events
        # For text, the store has places in the list of the column's distinct values.
        self._of_text = {e.column: e.codes(store.feature_texts(e.column)) for e in events if e.kind != "numbers"}
        self._sizes = [len(store.event_types)] * (store.events_N is not None) + [each.size for each in events]

    def __call__(self, rows_N: np.ndarray) -> np.ndarray:
        """The rows of the table that these interactions have, (N, F)."""
        store = self._store
        codes = [] if store.events_N is None else [store.events_N[rows_N].astype(np.int64)[:, None]]
        for each in self._events:
            stored_N = store.features[each.column][rows_N]
            codes.append(each.buckets(stored_N) if each.kind == "numbers" else self._of_text[each.column][stored_N])
        return one_table(codes, self._sizes)


class Learned(NamedTuple):
    """The features of a data set, as a network reads them."""

    vocabularies: list[Vocabulary]  # of events and items
    event_codes: EventCodes | None
    item_vectors: tuple[pl.Series, np.ndarray] | None  # raw ids, those of the catalogue first, and their vectors
    identity: list[Any]  # what distinguishes them from other features: options, and hashes of files


class Chosen(NamedTuple):
    """The options event_features and item_features; None if an option is not set."""

    event: Features | None
    item: Features | None

    def columns_of_log(self) -> dict[str, bool]:
        """The columns that are read from the log, and whether they are numbers."""
        if self.event is not None and self.event.path is not None:
            raise UserError("data.event_features.path: features of events are columns of the log")
        chosen = [kind for each in self if each is not None and each.path is None for kind in each.kinds.items()]
        found = {column: kind == "numbers" for column, kind in chosen}
        if any(found[column] != (kind == "numbers") for column, kind in chosen):
            raise UserError("data: event_features and item_features must agree whether a column is numbers")
        return found

    def learn(self, split: Split) -> Learned:
        """Learn the vocabularies from the split's training part, and encode its interactions and items with them."""
        store, raw_items = split.store, split.store.item_table["raw_id"].gather(split.catalogue_V)
        of_items, events, items = pl.DataFrame(), list[Vocabulary](), list[Vocabulary]()
        if self.event is not None:
            events = self.event.learned("event", {name: _trained_values(split, name) for name in self.event.kinds})
        if self.item is not None:
            of_items = self.item.of_items(split, raw_items)
            items = self.item.learned("item", of_items.head(len(raw_items)).to_dict())
        codes = EventCodes(store, events) if events else None
        vectors = (of_items[ID], item_vectors(items, of_items)) if items else None
        # A None between the two keeps the hash of data without features, which runs and committed points have.
        chosen = (self.event, None, self.item)
        identity = [each and [repr(replace(each, path=None)), each.path and file_hash(each.path)] for each in chosen]
        return Learned([*events, *items], codes, vectors, identity)


def item_vectors(vocabularies: list[Vocabulary], frame: pl.DataFrame) -> np.ndarray:
    """A vector for each row of a frame of items, float32 (N, W)."""
    width = sum(1 + each.missing if each.kind == "numbers" else each.size for each in vocabularies)
    if width > MOST_WIDTH:
        raise UserError(f"data.item_features: {width:,} values; at most {MOST_WIDTH:,} are read: group them")
    return np.concatenate([each.vectors(frame[each.column]) for each in vocabularies], axis=1).astype(np.float32)


def vectors_of_file(path: Path, about: Mapping[str, Any], raw_ids: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """Ids and vectors of another file's items, first `raw_ids`, then new ones; `about` describes a trained network."""
    vocabularies = [each for each in vocabularies_of(about) if each.of == "item"]
    columns: Any = {kind: [each.column for each in vocabularies if each.kind == kind] for kind in get_args(Kind)}
    trained = Features(path=path, id_column=vocabularies[0].id_column, **columns)
    frame = _completed(trained.read("item_vectors", again=True), raw_ids, f"item_vectors {path}")
    return frame[ID], item_vectors(vocabularies, frame)


def _trained_values(split: Split, column: str) -> pl.Series:
    """A column's values in the training part: each distinct text, or evenly spaced numbers."""
    stored_N, step = split.store.features[column], -(-int(split.train_U.sum()) // MOST_NUMBERS)
    if stored_N.dtype.kind == "f":
        return pl.Series(np.concatenate([stored_N[rows_N[::step]] for rows_N in split.training_rows()]))
    texts = np.concatenate([np.unique(stored_N[rows_N]) for rows_N in split.training_rows()])
    return split.store.feature_texts(column).gather(np.unique(texts))


def _completed(frame: pl.DataFrame, raw_ids: pl.Series, given: str) -> pl.DataFrame:
    """A row for each of `raw_ids` (nulls if the frame has no such id), then the other rows of the frame."""
    if not frame[ID].is_in(raw_ids.implode()).any():
        raise UserError(f"{given} has none of the {len(raw_ids):,} items' ids")
    mine = pl.DataFrame({ID: raw_ids}).join(frame, on=ID, how="left", maintain_order="left")
    return pl.concat([mine, frame.filter(~pl.col(ID).is_in(raw_ids.implode()))], how="vertical_relaxed")
