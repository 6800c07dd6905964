"""Order any number of rows in bounded memory: they come in the order of the source and leave user after user.

Rows come in pieces, which stay in memory up to a limit; beyond it they go to a file. Either way, every piece is split
into ranges of users that fit into memory, and each range is ordered by itself. So the result is the same. Shape
suffixes: N rows of a range, U users, I items, K ids.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from lrec.data.store.encoding import REST, Ranked, Rows
from lrec.data.store.long_work import map_ahead

# Which interactions of a user with the same item stay: all (True), the first in time (False), or all that do not come
# directly after another one, also after the k-core has dropped users and items.
Repeats = bool | Literal["not_in_a_row"]


class RowBuffer:
    """Rows in the order they came, piece by piece: in memory, or in a file whenever they reach `limit` bytes."""

    def __init__(self, file: Path, limit: float) -> None:
        self._file, self._limit, self._size, self.spilled = file, limit, 0, False
        self._held: list[Rows] = []
        # For each piece in the file: its number of rows, and the place and type of its columns.
        self._written: list[tuple[int, dict[str, tuple[int, np.dtype]]]] = []

    def append(self, piece: Rows) -> None:
        self._held.append(piece)
        self._size += sum(column.nbytes for column in piece.values())
        if self._size < self._limit:
            return
        with self._file.open("ab") as file:
            columns = {}
            for name in piece:
                held = [each[name] for each in self._held]
                columns[name] = file.tell(), np.result_type(*(column.dtype for column in held))
                for column in held:
                    # numpy's tofile does not say why it fails.
                    file.write(column.astype(columns[name][1], copy=False).data)
        self._written.append((sum(map(len, held)), columns))
        self._held, self._size, self.spilled = [], 0, True

    def part(self, number: int, start: int = 0, end: int | None = None) -> Rows:
        """Rows start .. end - 1 of a piece."""
        if not self.spilled:
            return at(self._held[number], slice(start, end))
        length, columns = self._written[number]
        count = (length if end is None else end) - start
        return {
            name: np.fromfile(self._file, dtype, count, offset=place + start * dtype.itemsize)
            for name, (place, dtype) in columns.items()
        }

    def drain(self) -> Iterator[Rows]:
        """The pieces in order; the buffer frees each one when it returns it."""
        if self.spilled:
            yield from map(self.part, range(len(self._written)))
            self._file.unlink()
        self._held.reverse()
        while self._held:
            yield self._held.pop()


class Ordered(NamedTuple):
    """The interactions of consecutive users, user after user, each in time order."""

    first_user: int
    lengths_U: np.ndarray  # interactions of each user
    columns: Rows  # item, and if there are any: time, event, features, domain, row (number in source)
    repeats_dropped: int = 0  # interactions that `Repeats` does not allow
    in_a_row: bool = True  # whether a user may have an item twice in a row

    @property
    def users_N(self) -> np.ndarray:
        """The user of each interaction, counted from `first_user`."""
        return np.repeat(np.arange(len(self.lengths_U)), self.lengths_U)

    def those_kept(self, kept_U: np.ndarray, kept_I: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which interactions of kept users with kept items stay, and how many these are for each user. If `in_a_row` is
        False, an item that would then come twice in a row is dropped too."""
        mine_U, users_N, items_N = kept_U[self.first_user :][: len(self.lengths_U)], self.users_N, self.columns["item"]
        kept_N = mine_U[users_N] & kept_I[items_N]
        if not self.in_a_row:
            rows = np.flatnonzero(kept_N)
            kept_N[rows[again(users_N[rows], items_N[rows])]] = False
        return kept_N, np.bincount(users_N[kept_N], minlength=len(mine_U))


def at(rows: Rows, places: np.ndarray | slice) -> Rows:
    """Some of the rows: their places, or a mask."""
    return {name: column[places] for name, column in rows.items()}


def again(users_N: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """Which interactions have the same user and the same value (item or time) as the one before."""
    return np.append(False, (users_N[1:] == users_N[:-1]) & (values_N[1:] == values_N[:-1]))[: len(users_N)]


def ordered(
    rows: RowBuffer, folder: Path, users: Ranked, items: Ranked, range_rows: int, repeats: Repeats
) -> Iterator[Ordered]:
    """Rows by (user, time, place in the source); with REST, without rows that are identical to an earlier one. `rows`,
    which are consumed, have codes of users and items. If they spilled, the ranges of users lie in `folder`. Each has
    about `range_rows` rows, and is ordered when it is needed. The rows are split at once, in the thread of the caller,
    because freed memory is reused by the thread that allocated it."""
    rows_before_U = np.cumsum(users.counts) - users.counts
    # Ranges are numbered in 16 bits, so there are at most 65,536.
    range_rows = max(range_rows, 1, math.ceil(users.counts.sum() / (1 << 16)))
    first_users = np.flatnonzero(np.diff(rows_before_U // range_rows, prepend=-1))
    n_ranges, bounds = len(first_users), np.append(first_users, len(rows_before_U))
    range_of_U = np.repeat(np.arange(n_ranges, dtype=np.uint16), np.diff(bounds))
    split, cuts = RowBuffer(folder / "ranges", 0 if rows.spilled else math.inf), list[np.ndarray]()
    for piece in rows.drain():
        piece["user"] = users.rank_K[piece["user"]]
        range_N = range_of_U[piece["user"]]
        order_N = np.argsort(range_N, kind="stable")
        for name in piece:  # one after the other, to need less memory
            piece[name] = piece[name][order_N]
        split.append(piece)
        cuts.append(np.append(0, np.cumsum(np.bincount(range_N, minlength=n_ranges))))

    def order(number: int) -> Ordered:
        parts = [split.part(place, *cut[number : number + 2]) for place, cut in enumerate(cuts)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return _order(joined, range(*bounds[number : number + 2]), items.rank_K, repeats)

    return map_ahead(order, range(n_ranges))


def _order(rows: Rows, users: range, item_rank_K: np.ndarray, repeats: Repeats) -> Ordered:
    rows["user"] = rows["user"].astype(np.int64) - users.start
    order_N, rest_N = in_time_order(rows["user"], rows.get("time")), rows.pop(REST, None)
    rows = at(rows, order_N)
    rows["item"] = item_rank_K[rows["item"]]
    if "time" in rows:
        rows["time"] = rows["time"].astype(np.int64)
    if rest_N is not None:
        rows = at(rows, _first_of_equal(rows, rest_N, order_N))
    n_distinct = len(rows["item"])
    if repeats == "not_in_a_row":
        rows = at(rows, ~again(rows["user"], rows["item"]))
    elif not repeats:
        pairs_N = rows["user"] * len(item_rank_K) + rows["item"]
        rows = at(rows, np.sort(np.unique(pairs_N, return_index=True)[1]))
    lengths_U = np.bincount(rows.pop("user"), minlength=len(users))
    return Ordered(users.start, lengths_U, rows, n_distinct - len(rows["item"]), repeats != "not_in_a_row")


def in_time_order(users_N: np.ndarray, times_N: np.ndarray | None, two_runs: bool = False) -> np.ndarray:
    """Indices that sort by (user, time), or by user if there are no times; equal rows keep their order. `two_runs`: the
    rows are two pieces, and each piece is in order."""
    keys_N = users_N.astype(np.int64)
    if times_N is not None and len(keys_N):
        least = int(times_N.min())
        span = int(times_N.max()) - least + 1
        if (int(users_N.max()) + 1) * span >= 1 << 63:
            return np.lexsort((times_N, users_N))
        keys_N = keys_N * span + (times_N.astype(np.int64) - least)
    return np.argsort(keys_N, kind="stable") if two_runs else stable_argsort(keys_N)  # numpy's Timsort merges runs


def stable_argsort(keys_N: np.ndarray) -> np.ndarray:
    """Indices that sort integers of at least 0; equal ones keep their order. This is a radix sort, least significant
    digits first. numpy's stable argsort of 16-bit integers is a radix sort too."""
    order_N = np.argsort(keys_N.astype(np.uint16), kind="stable")
    for shift in range(16, int(keys_N.max(initial=0)).bit_length(), 16):
        digits_N = (keys_N >> shift).astype(np.uint16)[order_N]
        order_N = order_N[np.argsort(digits_N, kind="stable")]
    return order_N


def _first_of_equal(rows: Rows, rest_N: np.ndarray, order_N: np.ndarray) -> np.ndarray:
    """Whether each row, in order, is the first of all rows that are equal except in row and domain. `rest_N` is still
    in the order of the source, because only few of its entries are needed."""
    fresh_N = np.ones(len(order_N), dtype=bool)
    suspects = np.arange(len(order_N))
    if "time" in rows:
        same_N = again(rows["user"], rows["time"])
        suspects = np.flatnonzero(same_N | np.append(same_N[1:], False)[: len(same_N)])
    if len(suspects):
        compared = {name: column[suspects] for name, column in rows.items() if name not in ("row", "domain")}
        frame = pl.DataFrame({**compared, REST: rest_N[order_N[suspects]]})
        # Equal hashes only select the rows to compare; comparing all would take several times the time and memory.
        equal = frame.hash_rows().is_duplicated().to_numpy()
        first = frame.filter(equal).select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
        fresh_N[suspects[equal][~first]] = False
    return fresh_N


def spooled(parts: Iterable[Ordered], file: Path, in_file: bool) -> Callable[[], Iterator[Ordered]]:
    """A function that gives the same parts each time. Their rows are in memory, or in a file."""
    rows, heads = RowBuffer(file, 0 if in_file else math.inf), list[Ordered]()
    for part in parts:
        rows.append(part.columns)
        heads.append(part._replace(columns={}))
    return lambda: (head._replace(columns=rows.part(number)) for number, head in enumerate(heads))


def find_core(
    parts: Callable[[], Iterable[Ordered]], n_users: int, n_items: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which users and items belong to the largest subset in which each has at least k interactions. `parts` gives all
    interactions, once per round. Dropped interactions may bring equal items next to each other, and then a repeat
    may be dropped too. Counts never grow in this way, so a largest subset always exists."""
    alive_U, alive_I = np.ones(n_users, dtype=bool), np.ones(n_items, dtype=bool)
    while True:
        counts_U, counts_I = np.zeros(n_users, dtype=np.int64), np.zeros(n_items, dtype=np.int64)
        for part in parts():
            kept_N, lengths_U = part.those_kept(alive_U, alive_I)
            counts_I += np.bincount(part.columns["item"][kept_N], minlength=n_items)
            counts_U[part.first_user : part.first_user + len(lengths_U)] = lengths_U
        enough_U, enough_I = counts_U >= k, counts_I >= k
        if np.array_equal(enough_U, alive_U) and np.array_equal(enough_I, alive_I):
            return alive_U, alive_I
        alive_U, alive_I = enough_U, enough_I
