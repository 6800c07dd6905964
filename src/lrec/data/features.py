"""Features of events, users and items: columns of the log, or of a file by id, as what a network reads.

    a column -> its Vocabulary, from the training part alone -> codes: rows of a table, of events and of users
                                                             -> vectors of ones and numbers, of items

Shape suffixes: N interactions, U users, V catalogue, K distinct values, S values that an entry of a column may have,
F those of all columns, W width of an item's vector.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from lrec.common.files import file_hash
from lrec.data.formats.readers import Columns, infer_format, listed_as_text, numbers_of, read_table
from lrec.data.splits.rules import Split, blocks_of_users, ranges
from lrec.data.store.encoding import SEPARATOR
from lrec.data.store.store import Store
from lrec.errors import UserError, check_range

Kind = Literal["categories", "numbers", "lists"]
MOST_SLOTS, MOST_WIDTH = 32, 4096
MOST_NUMBERS = 2**20  # of training, whose quantiles bound the buckets


@dataclass(frozen=True)
class Features:
    """Columns that a network reads beside the ids, of the log or of a file with a row for each id.

    Args:
        categories: Columns of which each value is one of several, such as a device.
        numbers: Columns of numbers, such as a price: cut into buckets of the training part for events and users,
            standardised on the catalogue for items.
        lists: Columns of several values each, with | between them, such as genres.
        path: File (CSV, TSV, JSON lines, Parquet) of the columns, by id; null: columns of the log, of which an item or
            a user has the first value in the training part. Events have the log's alone.
        id_column: Its column of ids; the first one by default.
        buckets: Most buckets of a column of numbers.
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
        kinds: tuple[Kind, ...] = ("categories", "numbers", "lists")
        return {column: kind for kind in kinds for column in getattr(self, kind)}

    def read(self, option: str) -> pl.DataFrame:
        """The file: `id` and the columns, text or numbers, null where a value is missing; UserError where it cannot be
        used."""
        assert self.path is not None
        file_format = infer_format(self.path.name)
        if file_format in (None, "lines") or not self.path.is_file():
            raise UserError(f"{option}.path {self.path}: no .csv, .tsv, .jsonl or .parquet file is there")
        found = []
        for table in read_table(self.path, file_format, Columns("", "")):
            names = {"id": self.id_column or table.frame.columns[0], **{name: name for name in self.kinds}}
            for key, name in names.items():
                if name not in table.frame.columns:
                    where = f"{option}.id_column" if key == "id" else option
                    there = ", ".join(table.frame.columns)
                    raise UserError(f"{table.name} has no column {name} ({where}); its columns are {there}")
            columns = {"id": table.frame[names["id"]].cast(pl.String)}
            for name, kind in self.kinds.items():
                raw = table.frame[name]
                if kind == "numbers":
                    columns[name] = numbers_of(raw, table.name, table.first_row)
                else:
                    columns[name] = listed_as_text(raw)
            found.append(pl.DataFrame([series.alias(name) for name, series in columns.items()]))
        frame = pl.concat(found, how="vertical_relaxed").drop_nulls("id")
        if (twice := frame["id"].is_duplicated()).any():
            raise UserError(f"{option}.path {self.path}: {frame['id'][int(twice.arg_max() or 0)]} is in it twice")
        return frame


@dataclass(frozen=True)
class Vocabulary:
    """What the training part has of a column: a row of a table for each value, or for each bucket of numbers.

    Missing values are a value too, the last row, where training had some. What training had not, such as a value that
    is new, has no row (-1) and adds nothing.

    Attributes:
        values: Of categories and lists, in text order.
        edges: Of numbers: bucket b holds edges[b - 1] <= x < edges[b].
        centre: Of numbers, their mean and their standard deviation in training.
        missing: Whether training had missing ones.
        slots: Most values of an entry.
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
        """That of a column's values in the training part."""
        missing = _is_missing(values)
        values = values.filter(~missing)
        if kind == "numbers":
            numbers = np.sort(values.to_numpy())
            distinct = np.unique(numbers)
            if len(distinct) > buckets:
                places = np.arange(1, buckets) * len(numbers) // buckets
                distinct = np.unique(np.append(numbers[0], numbers[places]))
            centre = (float(numbers.mean()), float(numbers.std()) or 1.0) if len(numbers) else (0.0, 1.0)
            return cls(column, of, kind, [], distinct[1:].tolist(), centre, bool(missing.any()))
        entries = [_parts(text, kind) for text in values.unique()]
        slots = max(map(len, entries), default=1)
        if slots > MOST_SLOTS:
            raise UserError(f"{of}_features.lists {column}: an entry has {slots} values; at most {MOST_SLOTS} are read")
        known = sorted({part for entry in entries for part in entry})
        return cls(column, of, kind, known, missing=bool(missing.any()), slots=slots)

    @property
    def size(self) -> int:
        """Rows of the table."""
        return (len(self.edges) + 1 if self.kind == "numbers" else len(self.values)) + self.missing

    @property
    def row_names(self) -> list[str]:
        """What tells each row from all others."""
        values = range(len(self.edges) + 1) if self.kind == "numbers" else self.values
        return [f"{self.of} {self.column}={value}" for value in (*values, *["\0missing"] * self.missing)]

    def codes(self, values: pl.Series) -> np.ndarray:
        """The rows of each entry's values, int64 (N, S); -1 where there is none."""
        if self.kind == "numbers":
            return self.buckets(self._numbers(values))
        values = values.cast(pl.String).fill_null("")
        distinct = values.unique()
        places_KS = np.full((len(distinct), self.slots), -1)
        for place, text in enumerate(distinct):
            known = [self._row_of[part] for part in _parts(text, self.kind) if part in self._row_of]
            places_KS[place, : len(known)] = known[: self.slots]
        places_KS[_is_missing(distinct).to_numpy(), 0] = self._of_missing
        return places_KS[values.cast(pl.Enum(distinct)).to_physical().to_numpy()]

    def buckets(self, numbers_N: np.ndarray) -> np.ndarray:
        """The rows of numbers, int64 (N, 1). Without Polars, whose threads a process of a loader does not have."""
        rows_N = np.searchsorted(np.asarray(self.edges), numbers_N, side="right")
        return np.where(np.isnan(numbers_N), self._of_missing, rows_N)[:, None]

    @property
    def _of_missing(self) -> int:
        return self.size - 1 if self.missing else -1

    def vectors(self, values: pl.Series) -> np.ndarray:
        """Each entry as numbers, (N, W): a one for each of its values; or a number, standardised, and whether it is
        missing."""
        if self.kind == "numbers":
            numbers_N = (self._numbers(values) - self.centre[0]) / self.centre[1]
            return np.stack([np.nan_to_num(numbers_N), np.isnan(numbers_N)], 1)[:, : 1 + self.missing]
        codes_NS = self.codes(values)
        ones_NW = np.zeros((len(codes_NS), self.size + 1), dtype=np.float32)  # the last column for what has no row
        np.put_along_axis(ones_NW, codes_NS, 1, axis=1)
        return ones_NW[:, :-1]

    def _numbers(self, values: pl.Series) -> np.ndarray:
        """The numbers, nan where a value is missing."""
        return numbers_of(values.alias(self.column), "features", 1).to_numpy()

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {value: row for row, value in enumerate(self.values)}


def _is_missing(values: pl.Series) -> pl.Series:
    if values.dtype == pl.String:
        return values.fill_null("").str.strip_chars() == ""
    return values.is_null() | values.is_nan() if values.dtype.is_float() else values.is_null()


def _parts(text: str, kind: Kind) -> list[str]:
    """The values of an entry, each once."""
    found = text.split(SEPARATOR) if kind == "lists" else [text]
    return [part for part in dict.fromkeys(each.strip() for each in found) if part]


def codes_of(vocabularies: list[Vocabulary], values: Mapping[str, pl.Series], n: int) -> Iterator[np.ndarray]:
    """The codes of `n` entries' values, a column after the other; a column that is not given is missing."""
    for vocabulary in vocabularies:
        yield vocabulary.codes(values.get(vocabulary.column, pl.Series([None] * n, dtype=pl.Float64)))


def one_table(codes: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """Codes of several columns, each (N, S), as rows of one table in which their rows follow on each other, (N, F)."""
    starts = np.cumsum([0, *sizes[:-1]])
    moved = [np.where(codes_NS < 0, -1, codes_NS + start) for codes_NS, start in zip(codes, starts, strict=True)]
    return np.concatenate(moved, axis=1).astype(np.int64)


class EventCodes:
    """What a network reads of interactions beside item and time: rows of its table of types of event, features of
    events and features of users."""

    def __init__(self, store: Store, events: list[Vocabulary], users: list[Vocabulary], codes_UF: np.ndarray) -> None:
        """`codes_UF` are those of each user, in the columns' own tables."""
        self._store, self._events, self._codes_UF, self._users = store, events, codes_UF, users
        # What is stored of text are places among the column's distinct values.
        self._of_text = {each.column: each.codes(store.feature_texts(each.column)) for each in events if _text(each)}

    def __call__(self, rows_N: np.ndarray) -> np.ndarray:
        """The rows of the table of these interactions, (N, F)."""
        store, codes, sizes = self._store, [], []
        if store.events_N is not None:
            codes, sizes = [store.events_N[rows_N].astype(np.int64)[:, None]], [len(store.event_types)]
        for each in self._events:
            stored_N = store.features[each.column][rows_N]
            codes.append(self._of_text[each.column][stored_N] if _text(each) else each.buckets(stored_N))
            sizes.append(each.size)
        users_N = np.searchsorted(store.offsets_U1, rows_N, side="right") - 1
        first = 0
        for each in self._users:
            codes.append(self._codes_UF[users_N, first : first + each.slots])
            sizes.append(each.size)
            first += each.slots
        return one_table(codes, sizes)


def _text(vocabulary: Vocabulary) -> bool:
    return vocabulary.kind != "numbers"


class Learned(NamedTuple):
    """What the features of a data set are to a network."""

    vocabularies: list[Vocabulary]  # of events, users and items
    event_codes: EventCodes | None
    item_vectors: tuple[pl.Series, np.ndarray] | None  # raw ids, those of the catalogue first, and their vectors


class Chosen(NamedTuple):
    """The options event_features, user_features and item_features; None: there are none."""

    event: Features | None
    user: Features | None
    item: Features | None

    def columns_of_log(self) -> dict[str, bool]:
        """The columns that are read of the log, and whether they are numbers."""
        if self.event is not None and self.event.path is not None:
            raise UserError("data.event_features.path: features of events are columns of the log")
        chosen = [each.kinds for each in self if each is not None and each.path is None]
        found = {column: kind == "numbers" for kinds in chosen for column, kind in kinds.items()}
        if any(found[column] != (kind == "numbers") for kinds in chosen for column, kind in kinds.items()):
            raise UserError("data: a column is a number in one of event_features, user_features and item_features only")
        names = [name for each in (self.event, self.user) if each is not None for name in each.kinds]
        if len(set(names)) < len(names):
            raise UserError("data: event_features and user_features have a column of the same name")
        return found

    def identity(self) -> list[Any]:
        """What tells these features from others: options, and contents of files."""
        return [
            None
            if each is None
            else [repr(replace(each, path=None)), None if each.path is None else file_hash(each.path)]
            for each in self
        ]

    def learn(self, split: Split) -> Learned:
        """Vocabularies of the split's training part, and what they make of its interactions and items."""
        store, of_events, of_users, codes = split.store, [], [], []
        if self.event is not None:
            for column, kind in self.event.kinds.items():
                values = _trained_values(split, column)
                of_events.append(Vocabulary.learned(column, "event", kind, values, self.event.buckets))
        if self.user is not None:
            trains_U = pl.Series(split.train_U > 0)
            frame = _by_id(split, self.user, "user", store.raw_user_ids)
            for column, kind in self.user.kinds.items():
                values = frame[column].filter(trains_U)
                of_users.append(Vocabulary.learned(column, "user", kind, values, self.user.buckets))
                codes.append(of_users[-1].codes(frame[column]))
        event_codes = None
        if of_events or of_users:
            codes_UF = np.concatenate(codes, axis=1) if codes else np.zeros((0, 0), dtype=np.int64)
            event_codes = EventCodes(store, of_events, of_users, codes_UF)
        if self.item is None:
            return Learned(of_events + of_users, event_codes, None)
        raw_ids = store.item_table["raw_id"].gather(split.catalogue_V)
        frame = _by_id(split, self.item, "item", raw_ids)
        of_items = [
            Vocabulary.learned(column, "item", kind, frame[column].head(len(raw_ids)), self.item.buckets)
            for column, kind in self.item.kinds.items()
        ]
        return Learned(of_events + of_users + of_items, event_codes, (frame["id"], item_vectors(of_items, frame)))


def item_vectors(vocabularies: list[Vocabulary], frame: pl.DataFrame) -> np.ndarray:
    """A vector for each row of a frame of items, float32 (N, W)."""
    parts = [each.vectors(frame[each.column]) for each in vocabularies]
    if (width := sum(part.shape[1] for part in parts)) > MOST_WIDTH:
        raise UserError(f"data.item_features: {width:,} values, where at most {MOST_WIDTH:,} can be read: group them")
    return np.concatenate(parts, axis=1).astype(np.float32)


def vectors_of_file(path: Path, about: Mapping[str, Any], raw_ids: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """Vectors of the items of another file, by what a trained network says of its features: those of `raw_ids` first,
    then those that are new."""
    vocabularies = [each for each in vocabularies_of(about) if each.of == "item"]
    frame = _completed(read_again(path, vocabularies, "item_vectors"), raw_ids)
    return frame["id"], item_vectors(vocabularies, frame)


def read_again(path: Path, vocabularies: list[Vocabulary], option: str) -> pl.DataFrame:
    """`id`, the first column, and the columns of a trained network in another file."""
    if not vocabularies:
        raise UserError(f"{option} {path}: the network was trained without such features")
    columns: dict[str, Any] = defaultdict(list)
    for each in vocabularies:
        columns[each.kind].append(each.column)
    return Features(path=path, **columns).read(option)


def vocabularies_of(about: Mapping[str, Any]) -> list[Vocabulary]:
    """The features of a trained network, from what it says of itself; none where it has none."""
    return [Vocabulary(**each) for each in about.get("features", [])]


def as_plain(vocabularies: list[Vocabulary]) -> dict[str, Any]:
    """What `vocabularies_of` reads; nothing where there are none."""
    return {"features": [asdict(each) for each in vocabularies]} if vocabularies else {}


def _trained_values(split: Split, column: str) -> pl.Series:
    """A column's values in the training part: each distinct text, or evenly spaced numbers."""
    store, step = split.store, -(-max(int(split.train_U.sum()), 1) // MOST_NUMBERS)
    stored_N, found = store.features[column], []
    is_text = stored_N.dtype.kind == "i"
    for users in blocks_of_users(split.train_U):
        rows_N = ranges(store.offsets_U1[:-1][users], split.train_U[users])
        found.append(np.unique(stored_N[rows_N]) if is_text else stored_N[rows_N[::step]])
    values = np.concatenate(found)
    return store.feature_texts(column).gather(np.unique(values)) if is_text else pl.Series(values)


def _by_id(split: Split, features: Features, of: str, raw_ids: pl.Series) -> pl.DataFrame:
    """`id` and the columns of users or items: `raw_ids` first, then others that a file has."""
    if features.path is not None:
        frame = features.read(f"data.{of}_features")
        if not frame["id"].is_in(raw_ids.implode()).any():
            raise UserError(f"data.{of}_features.path {features.path} has none of the {len(raw_ids):,} {of}s' ids")
        return _completed(frame, raw_ids)
    store = split.store
    first_K = np.full(len(raw_ids), -1)
    for users in reversed(list(blocks_of_users(split.train_U))):
        rows_N = ranges(store.offsets_U1[:-1][users], split.train_U[users])[::-1]
        keys_N = split.catalogue_index_I[store.items_N[rows_N]]
        if of == "user":
            keys_N = np.searchsorted(store.offsets_U1, rows_N, side="right") - 1
        first_K[keys_N] = rows_N  # of equal keys numpy keeps the last, which is the first row
    columns = {"id": raw_ids}
    for column in features.kinds:
        values = store.feature_values(column, np.maximum(first_K, 0))
        columns[column] = pl.select(pl.when(pl.Series(first_K >= 0)).then(values)).to_series()
    return pl.DataFrame([series.alias(name) for name, series in columns.items()])


def _completed(frame: pl.DataFrame, raw_ids: pl.Series) -> pl.DataFrame:
    """A row for each of `raw_ids`, nulls where the frame has none, then the frame's other rows."""
    mine = pl.DataFrame({"id": raw_ids}).join(frame, on="id", how="left", maintain_order="left")
    return pl.concat([mine, frame.filter(~pl.col("id").is_in(raw_ids.implode()))], how="vertical_relaxed")
