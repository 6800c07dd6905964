"""Heads for evaluation: `score` gives cross-entropy, exact ranks and lists of the best items, `top_items` lists alone.

Both go over the scores once, a piece of some rows and some items at a time that stays in the processor's cache. What is
kept of a piece can be added to what is kept of others: a log-sum, a number of items above the target, the best items.
So it is where processes share the table: each scores the rows of all processes against its part of the catalogue.

Shape suffixes: B rows, D width, V catalogue, H rows of the table that are held here, C items of a piece, K list length,
S seen pairs, N listed pairs of a row and an item, W pairs kept of a row, R processes; G rows of all processes, or, of
a piece, groups of items, with M items each.
"""

import math
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lrec import cpu_threads
from lrec.shards import Shard, Table, shard_of

R = TypeVar("R", bound=tuple[Tensor, ...])

# Scores of a piece. On a CPU they should lie in the cache; elsewhere few large pieces cost least.
CPU_PIECE_BYTES, PIECE_BYTES = 2**22, 2**26
CPU_PIECE_ROWS = 128
# Of most items, the lists look at no more than the largest score of so many.
GROUP_ITEMS = 16


class Scores(NamedTuple):
    """What `score` returns, a row per target; the `_unseen` fields leave out the items the user has seen.

    A target outside the catalogue has loss nan and rank inf; a seen target has rank_unseen inf (it cannot be listed).
    """

    loss_B: Tensor
    rank_B: Tensor
    rank_unseen_B: Tensor
    top_BK: Tensor
    top_unseen_BK: Tensor


class TopItems(NamedTuple):
    """The best items of each row, best first, ties by item index; item -1 and score -inf in unused slots."""

    items_BK: Tensor
    scores_BK: Tensor


@torch.no_grad()
def score(
    hidden_BD: Tensor, table_VD: Table, targets_B: Tensor, seen_rows_S: Tensor, seen_items_S: Tensor, k: int
) -> Scores:
    """Score every item of the catalogue for every row.

    rank = 1 + (number scored higher) + (number tied) / 2, the target not counted; lists break ties by item index.

    Args:
        hidden_BD: Hidden state of the position before each row's target.
        table_VD: Item table; where processes share it, all of them score at the same time, each rows of its own.
        targets_B: Catalogue index of each row's target, -1 where it is outside the catalogue.
        seen_rows_S: Row of each seen pair.
        seen_items_S: Item of each seen pair.
        k: Length of the lists; capped at the catalogue's size.
    """
    asked = _Asked(hidden_BD, shard_of(table_VD), seen_rows_S, seen_items_S)
    target_score_G = asked.target_scores(targets_B)
    targets_G = asked.of_all(targets_B, -1)

    def of_block(block: _Block, pieces: _Pieces) -> _Found:
        rows = block.rows
        return _score_rows(pieces.hidden_BD[rows], targets_G[rows], target_score_G[rows], block.seen, k, pieces)

    found = _Found(*asked.answers(of_block))
    log_sum_B = found.log_sum_RB.logsumexp(0)
    rank_B = 1 + found.above_RB.sum(0)
    known_B = targets_B >= 0
    target_seen_B = torch.zeros_like(known_B)
    target_seen_B[seen_rows_S[seen_items_S == targets_B[seen_rows_S]]] = True
    rank_unseen_B = rank_B - found.seen_above_RB.sum(0)
    return Scores(
        loss_B=torch.where(known_B, log_sum_B - asked.own(target_score_G), math.nan),
        rank_B=torch.where(known_B, rank_B, math.inf),
        rank_unseen_B=torch.where(known_B & ~target_seen_B, rank_unseen_B, math.inf),
        top_BK=_merged(found.keys_RBK).items_BK,
        top_unseen_BK=_merged(found.unseen_keys_RBK).items_BK,
    )


@torch.no_grad()
def top_items(hidden_BD: Tensor, table_VD: Table, seen_rows_S: Tensor, seen_items_S: Tensor, k: int) -> TopItems:
    """Only the lists of `score`: exact, over every item that is not among the row's seen pairs.

    Args:
        hidden_BD: Hidden state of the last position of each row's history.
        table_VD: Item table; see `score`.
        seen_rows_S: Row of each seen pair.
        seen_items_S: Item of each seen pair.
        k: Length of the lists; capped at the catalogue's size.
    """
    asked = _Asked(hidden_BD, shard_of(table_VD), seen_rows_S, seen_items_S)

    def of_block(block: _Block, pieces: _Pieces) -> tuple[Tensor]:
        return (_list_rows(pieces.hidden_BD[block.rows], block.seen, k, pieces),)

    (keys_RBK,) = asked.answers(of_block)
    return _merged(keys_RBK)


class _Found(NamedTuple):
    """What is found in the rows of the table that are held here; what processes find can be added up."""

    log_sum_RB: Tensor
    above_RB: Tensor
    seen_above_RB: Tensor
    keys_RBK: Tensor
    unseen_keys_RBK: Tensor


class _Asked:
    """The rows that are to be scored, those of all processes, against the part of the table that is held here."""

    def __init__(self, hidden_BD: Tensor, shard: Shard, seen_rows_S: Tensor, seen_items_S: Tensor) -> None:
        self._shard, self._n_rows = shard, len(hidden_BD)
        self._most = shard.most(self._n_rows)
        self._hidden_GD = self.of_all(hidden_BD.float())
        if shard.processes > 1:
            seen_rows_S, seen_items_S = self._seen_here(seen_rows_S, seen_items_S)
        self._seen = seen_rows_S, seen_items_S

    def of_all(self, values_B: Tensor, filler: float = 0) -> Tensor:
        """The values of all processes' rows."""
        return self._shard.gathered(values_B, self._most, filler)

    def own(self, values_G: Tensor) -> Tensor:
        """Those of this process's rows."""
        return values_G[self._shard.rank * self._most :][: self._n_rows]

    def target_scores(self, targets_B: Tensor) -> Tensor:
        """The score of each row's target."""
        here_G, places_G = self._shard.places(self.of_all(targets_B, -1))
        scores_G = self._hidden_GD.new_zeros(len(here_G))
        rows_ND = self._shard.rows_HD[places_G[here_G]].float()
        scores_G[here_G] = (self._hidden_GD[here_G] * rows_ND).sum(1)
        return self._shard.summed(scores_G)

    def answers(self, of_block: Callable[["_Block", "_Pieces"], R]) -> list[Tensor]:
        """What is made of each block of rows, its fields joined to those of all rows; of this process's rows, from each
        process."""
        # Half precision, as in an autocast region, would tie scores that differ.
        with torch.autocast(self._hidden_GD.device.type, enabled=False):
            pieces = _Pieces(self._hidden_GD, self._shard)
            blocks = pieces.mapped(of_block, *self._seen)
            return [self._shard.exchanged(torch.cat(parts), self._n_rows) for parts in zip(*blocks, strict=True)]

    def _seen_here(self, rows_S: Tensor, items_S: Tensor) -> tuple[Tensor, Tensor]:
        """All processes' seen pairs whose items are held here, with places among all rows."""
        most = self._shard.most(len(rows_S))
        rows_G = self._shard.gathered(rows_S + self._shard.rank * self._most, most)
        items_G = self._shard.gathered(items_S, most, -1)
        here_G, _ = self._shard.places(items_G)
        return rows_G[here_G], items_G[here_G]


def _merged(keys_RBK: Tensor) -> TopItems:
    """The best of the lists that processes have found."""
    keys_BW = keys_RBK.transpose(0, 1).flatten(1)
    return _decoded(keys_BW.topk(keys_RBK.shape[2], 1).values)


def _list_rows(hidden_BD: Tensor, seen: "_Seen", k: int, pieces: "_Pieces") -> Tensor:
    best = _Best(len(hidden_BD), min(k, pieces.n_items), hidden_BD.device)
    for start, scores_BC in pieces.of(hidden_BD):
        _, places = seen.inside(start, scores_BC)
        scores_BC[places] = -math.inf
        best.add(scores_BC, start)
    return best.keys()


def _score_rows(
    hidden_BD: Tensor, targets_B: Tensor, target_score_B: Tensor, seen: "_Seen", k: int, pieces: "_Pieces"
) -> _Found:
    n_rows, target_score_B1 = len(hidden_BD), target_score_B[:, None]
    counted_B1 = target_score_B1.clone()  # the target's score as it was counted, which may differ in its last digits
    target_here_B1 = torch.zeros_like(counted_B1, dtype=torch.bool)
    log_sum_B = hidden_BD.new_full((n_rows,), -math.inf)
    above_B = torch.zeros(n_rows, dtype=torch.float64, device=hidden_BD.device)
    seen_scores_S = hidden_BD.new_empty(len(seen.items_S))
    best = _Best(n_rows, min(k, pieces.n_items), hidden_BD.device)
    for start, scores_BC in pieces.of(hidden_BD):
        work_BC = pieces.work_like(scores_BC)
        # The most likely item's share is 1 / (sum of e^(score - max)), and softmax takes fewer passes.
        share_BC = torch.softmax(scores_BC, 1, out=work_BC)
        log_sum_B = torch.logaddexp(log_sum_B, scores_BC.amax(1) - share_BC.amax(1).log())
        # The sum of what `above` gives, in fewer passes.
        above_B += (torch.sub(scores_BC, target_score_B1, out=work_BC).sign_().sum(1) + scores_BC.shape[1]) / 2
        column_B1 = targets_B[:, None] - start
        inside_B1 = (column_B1 >= 0) & (column_B1 < scores_BC.shape[1])
        target_BC1 = scores_BC.gather(1, column_B1.clamp(0, scores_BC.shape[1] - 1))
        counted_B1 = torch.where(inside_B1, target_BC1, counted_B1)
        target_here_B1 |= inside_B1
        inside, places = seen.inside(start, scores_BC)
        seen_scores_S[inside] = scores_BC[places]
        scores_BC[places] = -math.inf
        best.add(scores_BC, start)
    above_B -= (above(counted_B1, target_score_B1) * target_here_B1)[:, 0]
    seen_above_B = torch.zeros_like(above_B)
    seen_above_B.index_add_(0, seen.rows_S, above(seen_scores_S, target_score_B1[seen.rows_S, 0]).double())
    unseen_keys_BK = best.keys()
    best.add_pairs(seen.rows_S, seen.items_S, seen_scores_S)
    return _Found(log_sum_B, above_B, seen_above_B, best.keys(), unseen_keys_BK)


def above(scores: Tensor, target_scores: Tensor) -> Tensor:
    """What each score adds to the rank of a target: 1 if it is higher, a half if it is tied."""
    return (scores - target_scores).sign_().add_(1).div_(2)


class _Pieces:
    """How rows and catalogue are cut into pieces, and the memory that all pieces use one after the other."""

    def __init__(self, hidden_BD: Tensor, shard: Shard) -> None:
        self._on_cpu = hidden_BD.device.type == "cpu"
        self.hidden_BD, self.n_items = hidden_BD, shard.n_items
        self._table_HD, self._first = shard.rows_HD, shard.start
        self._n_rows = len(hidden_BD)
        self._n_block = max(self._n_rows, 1)
        n_scores = (CPU_PIECE_BYTES if self._on_cpu else PIECE_BYTES) // hidden_BD.element_size()
        n_here = max(len(self._table_HD), 1)
        most = max(n_scores // n_here, CPU_PIECE_ROWS)  # where a piece holds the catalogue, as many as fit
        if self._on_cpu and self._n_rows > most:
            n_blocks = -(-self._n_rows // (4 * most)) * 4  # 2 or 4 threads have as many each
            self._n_block = -(-self._n_rows // n_blocks)
        self._n_chunk = min(max(n_scores // self._n_block, GROUP_ITEMS), n_here)
        self._of_thread = threading.local()

    def mapped(self, of_block: Callable[["_Block", "_Pieces"], R], rows_S: Tensor, items_S: Tensor) -> list[R]:
        """What is made of each block of rows, on a CPU by a thread for each core."""
        blocks = self._blocks(rows_S, items_S)
        if self._on_cpu and self._n_rows > self._n_block:
            return cpu_threads.mapped(lambda block: of_block(block, self), blocks)
        return [of_block(block, self) for block in blocks]

    def _blocks(self, rows_S: Tensor, items_S: Tensor) -> Iterator["_Block"]:
        n_chunks = -(-len(self._table_HD) // self._n_chunk)
        n_blocks = -(-max(self._n_rows, 1) // self._n_block)
        piece_S = rows_S // self._n_block * n_chunks + (items_S - self._first) // self._n_chunk
        order_S = piece_S.argsort()
        rows_S, items_S = rows_S[order_S], items_S[order_S]
        bounds = [0, *torch.bincount(piece_S, minlength=n_blocks * n_chunks).cumsum(0).tolist()]
        for block in range(n_blocks):
            of_block = bounds[block * n_chunks : (block + 1) * n_chunks + 1]
            pairs, start = slice(of_block[0], of_block[-1]), block * self._n_block
            starts = [bound - of_block[0] for bound in of_block]
            seen = _Seen(rows_S[pairs] - start, items_S[pairs], starts, self._n_chunk, self._first)
            yield _Block(slice(start, start + self._n_block), seen)

    def of(self, hidden_BD: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The pieces of a block of rows: first item, scores (B, C), which the thread's next piece overwrites."""
        for start in range(0, len(self._table_HD), self._n_chunk):
            table_CD = self._table_HD[start : start + self._n_chunk].float()
            scores_BC = self._memory("scores", len(hidden_BD), len(table_CD))
            yield self._first + start, torch.mm(hidden_BD, table_CD.T, out=scores_BC)

    def work_like(self, scores_BC: Tensor) -> Tensor:
        """Memory of the same shape."""
        return self._memory("work", *scores_BC.shape)

    def _memory(self, name: str, n_rows: int, n_items: int) -> Tensor:
        """Memory of this thread, the same every time: allocating takes longer than computing the scores."""
        if not hasattr(self._of_thread, name):
            setattr(self._of_thread, name, self.hidden_BD.new_empty(self._n_block * self._n_chunk))
        memory: Tensor = getattr(self._of_thread, name)
        return memory[: n_rows * n_items].view(n_rows, n_items)


class _Block(NamedTuple):
    """Rows that are scored at once, and what they have seen."""

    rows: slice
    seen: "_Seen"


class _Seen(NamedTuple):
    """Items that the rows of a block have seen, each pair once, one piece of the catalogue after the other."""

    rows_S: Tensor
    items_S: Tensor
    starts: list[int]  # where the pairs of each piece begin
    n_chunk: int  # items of a piece
    first: int  # first item of the first piece

    def inside(self, start: int, scores_BC: Tensor) -> tuple[slice, tuple[Tensor, Tensor]]:
        """Which pairs lie in the piece that begins with item `start`, and where."""
        piece = (start - self.first) // self.n_chunk
        pairs = slice(self.starts[piece], self.starts[piece + 1])
        return pairs, (self.rows_S[pairs], self.items_S[pairs] - start)


class _Best:
    """The k best pairs so far of each row, as keys: integers in the order of score and then of falling item index.

    A score of -inf is not listed.
    """

    def __init__(self, n_rows: int, k: int, device: torch.device) -> None:
        self.k = k
        self._keys_BW = torch.zeros((n_rows, 0), dtype=torch.int64, device=device)
        self._in_order = True  # whether they are no more than k, best first
        # Later items with no more than that are not among the k best: they lose ties.
        self._least_B1 = torch.full((n_rows, 1), -math.inf, device=device)

    def add(self, scores_BC: Tensor, start: int) -> None:
        """Add a piece whose first item is `start`; pieces come in the order of items, before any pairs."""
        n_items = scores_BC.shape[1]
        if self._keys_BW.shape[1] == 0 and n_items < GROUP_ITEMS * self.k:
            # So few that no threshold would leave much out.
            items_C = torch.arange(start, start + n_items, device=scores_BC.device)
            self._append(_keys(scores_BC, items_C))
            return
        whole = n_items // GROUP_ITEMS * GROUP_ITEMS
        if whole:
            self._add_groups(scores_BC[:, :whole].unflatten(1, (GROUP_ITEMS, -1)), start)
        if whole < n_items:
            self._add_groups(scores_BC[:, whole:, None], start + whole)

    def _add_groups(self, scores_BMG: Tensor, start: int) -> None:
        n_groups = scores_BMG.shape[2]
        maxima_BG = scores_BMG.amax(1)
        above = torch.gt
        if self._keys_BW.shape[1] == 0 and n_groups >= self.k:
            self._least_B1, above = _at_most_kth(maxima_BG, self.k), torch.ge
        rows_N, groups_N = above(maxima_BG, self._least_B1).nonzero(as_tuple=True)
        scores_NM = scores_BMG[rows_N, :, groups_N]
        places_N, members_N = above(scores_NM, self._least_B1[rows_N]).nonzero(as_tuple=True)
        items_N = start + members_N * n_groups + groups_N[places_N]
        self._keep(rows_N[places_N], _keys(scores_NM[places_N, members_N], items_N))

    def add_pairs(self, rows_S: Tensor, items_S: Tensor, scores_S: Tensor) -> None:
        """Add single items of single rows, in any order, after all pieces."""
        least_B = self.keys()[:, -1]
        keys_S = _keys(scores_S, items_S)
        (above_N,) = (keys_S > least_B[rows_S]).nonzero(as_tuple=True)
        rows_N, order_N = rows_S[above_N].sort()
        self._keep(rows_N, keys_S[above_N[order_N]])

    def _keep(self, rows_N: Tensor, keys_N: Tensor) -> None:
        """Append keys to their rows, which ascend."""
        if len(rows_N) == 0:
            return
        number_B, place_N = places_in_rows(rows_N, len(self._keys_BW))
        keys_BW = self._keys_BW.new_full((len(number_B), int(number_B.max())), _NONE)
        keys_BW[rows_N, place_N] = keys_N
        self._append(keys_BW)

    def _append(self, keys_BW: Tensor) -> None:
        self._keys_BW = torch.cat([self._keys_BW, keys_BW], 1)
        self._in_order = False
        if self._keys_BW.shape[1] > 2 * self.k:
            self._shorten()
            self._least_B1 = _decoded(self._keys_BW[:, -1:]).scores_BK

    def _shorten(self) -> None:
        if not self._in_order:
            self._keys_BW = self._keys_BW.topk(min(self.k, self._keys_BW.shape[1]), 1).values
            self._in_order = True

    def keys(self) -> Tensor:
        """Those of the k best, best first."""
        self._shorten()
        unused_BK = self._keys_BW.new_full((len(self._keys_BW), self.k - self._keys_BW.shape[1]), _NONE)
        return torch.cat([self._keys_BW, unused_BK], 1)


def _at_most_kth(maxima_BG: Tensor, k: int) -> Tensor:
    """A finite score that k items of each row reach, if so many do: the k-th largest of some groups' maxima."""
    merged = maxima_BG.shape[1] // (2 * k)  # fewer groups are sorted faster, and two for each of k leave little above
    if merged > 1:
        maxima_BG = maxima_BG[:, : maxima_BG.shape[1] // merged * merged].unflatten(1, (merged, -1)).amax(1)
    kth_B1 = maxima_BG.topk(k, sorted=False).values.amin(1, keepdim=True)
    return kth_B1.clamp(min=torch.finfo(kth_B1.dtype).min)


_ITEM_BITS = 31
_MAGNITUDE = 0x7FFFFFFF  # the bits of a float but for its sign
_NONE = -(0x7F800000 << _ITEM_BITS)  # a score of -inf


def as_integers(scores: Tensor) -> Tensor:
    """Integers of 32 bits, int64, in the order of float32 scores; they take less time to sort."""
    bits = (scores + 0.0).view(torch.int32).long()  # + 0.0 turns -0.0 into 0.0
    return torch.where(bits >= 0, bits, -(bits & _MAGNITUDE))


def _keys(scores: Tensor, items: Tensor) -> Tensor:
    """Score in the high bits, and the item's index, reversed, in the low ones."""
    return as_integers(scores) * 2**_ITEM_BITS - items


def _decoded(keys_BK: Tensor) -> TopItems:
    items_BK = -keys_BK & (2**_ITEM_BITS - 1)
    ordered_BK = (keys_BK + items_BK) >> _ITEM_BITS
    bits_BK = torch.where(ordered_BK >= 0, ordered_BK, -ordered_BK - 2**31)
    scores_BK = bits_BK.int().view(torch.float32)
    return TopItems(items_BK.masked_fill(scores_BK == -math.inf, -1), scores_BK)


def places_in_rows(rows_N: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """How many pairs each row has, and each pair's place in its row; rows ascend."""
    number_B = torch.bincount(rows_N, minlength=n_rows)
    return number_B, torch.arange(len(rows_N), device=rows_N.device) - (number_B.cumsum(0) - number_B)[rows_N]
