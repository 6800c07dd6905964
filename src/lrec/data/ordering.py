"""Rows of any number, in bounded memory: kept in the order of their source, then handed out user after user.

Rows are records of integers. They stay in memory up to a limit, beyond it they lie in files. Either way they are split
into ranges of users of a size that fits, and each range is ordered by itself: the result is the same.

Shape suffixes: N rows of a range, U users, I items, K ids.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from lrec.data.store import write_array

REST = "rest"
# A domain that is the file's, not the row's: rows that differ in it alone are equal.
FILE_DOMAIN = "file_domain"
_READ = 1 << 18
# Ranges that are ordered at a time; each adds to the peak of memory.
_THREADS = 2


class Ids:
    """Raw ids as codes in the order of first sight; at the end the codes' ranks in text order."""

    def __init__(self) -> None:
        self._type = pl.Categorical(pl.Categories.random())
        # Polars forgets the codes with the last column that has them.
        self._anchor = pl.Series([], dtype=self._type)
        self._counts_K = np.zeros(0, dtype=np.int64)

    def encode(self, ids: pl.Series) -> np.ndarray:
        """Codes of the ids, uint32."""
        codes = ids.cast(pl.String).cast(self._type).to_physical()
        assert codes.null_count() == 0, "null ids must be refused when they are read"
        codes_N = codes.cast(pl.UInt32).to_numpy()
        counts_K = np.bincount(codes_N)
        if len(counts_K) > len(self._counts_K):
            counts_K[: len(self._counts_K)] += self._counts_K
            self._counts_K = counts_K
        else:
            self._counts_K[: len(counts_K)] += counts_K
        return codes_N

    def ranked(self) -> tuple[pl.Series, np.ndarray, np.ndarray]:
        """The ids in text order, each code's place in it (int32), and the rows of each id, in text order."""
        codes = pl.Series("raw_id", np.arange(len(self._counts_K), dtype=np.uint32))
        # Codes of another column's ids may lie between: they have no rows.
        codes = codes.filter(pl.Series(self._counts_K > 0))
        ids = codes.cat.to(self._type).cast(pl.String)
        order = ids.arg_sort().to_numpy()
        rank_K = np.full(len(self._counts_K), -1, dtype=np.int32)
        rank_K[codes.to_numpy()[order]] = np.arange(len(order), dtype=np.int32)
        return ids.gather(order), rank_K, self._counts_K[codes.to_numpy()[order]]


class Rows:
    """Records in the order they came: in memory, or in a file once they exceed `limit` bytes."""

    def __init__(self, file: Path, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._held: list[np.ndarray] = []
        self._type: np.dtype | None = None
        self.size = 0
        self.spilled = False

    def append(self, rows_N: np.ndarray) -> None:
        """Add records."""
        self._type = rows_N.dtype
        self._held.append(rows_N)
        self.size += rows_N.nbytes
        if self.spilled or self.size > self._limit:
            self.spilled = True
            with self._file.open("ab") as file:
                for rows in self._held:
                    write_array(file, rows)
            self._held = []

    def drain(self) -> Iterator[np.ndarray]:
        """The records, in pieces, freed as they go."""
        if self.spilled:
            assert self._type is not None
            with self._file.open("rb") as file:
                while len(rows := np.fromfile(file, dtype=self._type, count=_READ)):
                    yield rows
            self._file.unlink()
        self._held.reverse()
        while self._held:
            yield self._held.pop()


class Ordered(NamedTuple):
    """The interactions of consecutive users, user after user, each in time order.

    Attributes:
        first_user: The first of the users.
        lengths_U: Interactions of each user.
        rows_N: Records with item, and time, domain or FILE_DOMAIN, and row (number in the source) where there are any.
        repeats_dropped: Interactions of these users with an item they had already, where those are dropped.
    """

    first_user: int
    lengths_U: np.ndarray
    rows_N: np.ndarray
    repeats_dropped: int = 0


def ordered(
    rows: Rows,
    folder: Path,
    user_rank_K: np.ndarray,
    item_rank_K: np.ndarray,
    counts_U: np.ndarray,
    range_rows: int,
    repeats: bool,
) -> Iterator[Ordered]:
    """Rows by (user, time, place in the source), without those that are identical to an earlier one.

    Args:
        rows: Records with user and item (codes), and where there are any time, domain, row and REST; they are used up.
        folder: Where ranges of users lie if `rows` spilled.
        user_rank_K: Place of each user code in the order of users.
        item_rank_K: Place of each item code in the order of items.
        counts_U: Rows of each user, in the order of users.
        range_rows: Rows that may be ordered at a time; a user with more is ordered as a whole.
        repeats: Keep all interactions of a user with an item; false keeps the first.
    """
    bounds = _ranges(counts_U, range_rows)
    ranges = [Rows(folder / f"range-{number}", 0 if rows.spilled else 1 << 62) for number in range(len(bounds) - 1)]
    range_of_U = np.repeat(np.arange(len(ranges), dtype=np.uint16), np.diff(bounds))
    for piece in rows.drain():
        users_N = user_rank_K[piece["user"]]
        piece["user"] = users_N
        range_N = range_of_U[users_N]
        if len(ranges) == 1:
            ranges[0].append(piece)
            continue
        piece = piece[np.argsort(range_N, kind="stable")]
        cuts = np.concatenate([[0], np.cumsum(np.bincount(range_N, minlength=len(ranges)))])
        for number in np.flatnonzero(np.diff(cuts)).tolist():
            ranges[number].append(piece[cuts[number] : cuts[number + 1]])
    ahead: deque[Future[Ordered]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, held in enumerate(ranges):
            rows_N = np.concatenate(list(held.drain()))
            users = int(bounds[number]), int(bounds[number + 1])
            ahead.append(pool.submit(_order, rows_N, *users, item_rank_K, repeats))
            if len(ahead) > _THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _ranges(counts_U: np.ndarray, range_rows: int) -> np.ndarray:
    """Bounds of ranges of users with about `range_rows` rows each."""
    ends_U = np.cumsum(counts_U)
    # Ranges are numbered in 16 bits.
    n_ranges = min(math.ceil(int(ends_U[-1]) / max(range_rows, 1)), len(counts_U), 1 << 16)
    targets = np.arange(1, n_ranges) * (int(ends_U[-1]) / n_ranges)
    return np.unique(np.concatenate([[0], np.searchsorted(ends_U, targets, side="left") + 1, [len(counts_U)]]))


def _order(rows_N: np.ndarray, first_user: int, end_user: int, item_rank_K: np.ndarray, repeats: bool) -> Ordered:
    names = rows_N.dtype.names
    assert names is not None
    users_N = rows_N["user"].astype(np.int64) - first_user
    times_N = rows_N["time"] if "time" in names else None
    order_N = _stable_order(users_N, times_N)
    rows_N = rows_N[order_N]
    users_N = users_N[order_N]
    rows_N["item"] = item_rank_K[rows_N["item"]]
    if REST in names:
        fresh_N = _first_of_equal(rows_N)
        if not fresh_N.all():
            rows_N, users_N = rows_N[fresh_N], users_N[fresh_N]
    n_distinct = len(rows_N)
    if not repeats:
        pairs_N = users_N * len(item_rank_K) + rows_N["item"]
        first = np.sort(np.unique(pairs_N, return_index=True)[1])
        rows_N, users_N = rows_N[first], users_N[first]
    lengths_U = np.bincount(users_N, minlength=end_user - first_user)
    kept_N = np.empty(len(rows_N), dtype=[(name, rows_N.dtype[name]) for name in names if name not in ("user", REST)])
    for name in kept_N.dtype.names or ():
        kept_N[name] = rows_N[name]
    return Ordered(first_user, lengths_U, kept_N, n_distinct - len(rows_N))


def _stable_order(users_N: np.ndarray, times_N: np.ndarray | None) -> np.ndarray:
    """Order by (user, time, place)."""
    if times_N is None:
        return np.argsort(users_N, kind="stable")
    least = int(times_N.min())
    span = int(times_N.max()) - least + 1
    if (int(users_N.max()) + 1) * span >= 1 << 63:
        return np.lexsort((times_N, users_N))
    keys_N = users_N * span + (times_N - least)
    # numpy's vectorised sort is several times faster than its stable one; ties are put in order afterwards.
    order_N = np.argsort(keys_N)
    tied = _tied(keys_N[order_N])
    if tied.any():
        groups = np.cumsum(np.diff(keys_N[order_N[tied]], prepend=-1) != 0)
        packed = (groups.astype(np.uint64) << np.uint64(32)) | order_N[tied].astype(np.uint64)
        packed.sort()
        order_N[tied] = (packed & np.uint64(0xFFFFFFFF)).astype(order_N.dtype)
    return order_N


def _tied(sorted_N: np.ndarray) -> np.ndarray:
    """Whether each entry equals a neighbour."""
    equal = sorted_N[1:] == sorted_N[:-1]
    tied = np.zeros(len(sorted_N), dtype=bool)
    tied[1:] = equal
    tied[:-1] |= equal
    return tied


def _first_of_equal(rows_N: np.ndarray) -> np.ndarray:
    """Whether each row, in order, is the first of those that are equal in all but their place and their file."""
    names = [name for name in rows_N.dtype.names or () if name not in ("row", FILE_DOMAIN)]
    fresh_N = np.ones(len(rows_N), dtype=bool)
    suspects = np.arange(len(rows_N))
    if "time" in names:
        same_time = rows_N["time"][1:] == rows_N["time"][:-1]
        same_user = rows_N["user"][1:] == rows_N["user"][:-1]
        tied = np.zeros(len(rows_N), dtype=bool)
        tied[1:] = same_time & same_user
        tied[:-1] |= tied[1:]
        suspects = np.flatnonzero(tied)
    if len(suspects):
        rows = rows_N[suspects]
        frame = pl.DataFrame({name: np.ascontiguousarray(rows[name]) for name in names})
        # Equal hashes only make rows suspect; comparing all rows would cost several times the time and memory.
        equal = frame.hash_rows().is_duplicated().to_numpy()
        suspects = suspects[equal]
        first = frame.filter(equal).select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
        fresh_N[suspects[~first]] = False
    return fresh_N


class Spool:
    """Ordered interactions that are gone over several times: in memory, or in a file."""

    def __init__(self, parts: Iterator[Ordered], file: Path | None) -> None:
        self._file = file
        self._parts: list[Ordered] = []
        for part in parts:
            if file is not None:
                with file.open("ab") as out:
                    write_array(out, part.rows_N)
                part = part._replace(rows_N=part.rows_N[:0])
            self._parts.append(part)

    def __iter__(self) -> Iterator[Ordered]:
        if self._file is None:
            yield from self._parts
            return
        with self._file.open("rb") as file:
            for part in self._parts:
                rows_N = np.fromfile(file, dtype=part.rows_N.dtype, count=int(part.lengths_U.sum()))
                yield part._replace(rows_N=rows_N)


def find_core(
    parts: Callable[[], Iterable[Ordered]], n_users: int, n_items: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which users and which items belong to the largest subset in which each has at least k interactions.

    Args:
        parts: Gives all interactions; called once a round.
        n_users: Number of users.
        n_items: Number of items.
        k: At least 1.
    """
    alive_U, alive_I = np.ones(n_users, dtype=bool), np.ones(n_items, dtype=bool)
    while True:
        counts_U, counts_I = np.zeros(n_users, dtype=np.int64), np.zeros(n_items, dtype=np.int64)
        for part in parts():
            end_user = part.first_user + len(part.lengths_U)
            users_N = np.repeat(np.arange(part.first_user, end_user), part.lengths_U)
            items_N = part.rows_N["item"]
            kept_N = alive_U[users_N] & alive_I[items_N]
            counts_I += np.bincount(items_N[kept_N], minlength=n_items)
            counts_U[part.first_user : end_user] = np.bincount(
                users_N[kept_N] - part.first_user, minlength=len(part.lengths_U)
            )
        enough_U, enough_I = counts_U >= k, counts_I >= k
        if np.array_equal(enough_U, alive_U) and np.array_equal(enough_I, alive_I):
            return alive_U, alive_I
        alive_U, alive_I = enough_U, enough_I
