"""Heads for evaluation: `score` gives cross-entropy, exact ranks and lists of the best items, `top_items` lists alone.

Both go over the scores once, a piece of some rows and some items at a time that stays in the processor's cache. What is
kept of a piece can be added to what is kept of others: a log-sum, a number of items above the target, the best items.
So it is where processes share the table: each scores the rows of all processes against its part of the catalogue.
Lists alone need few exact scores, and some processors find out faster which ones (`shortlist`).

On a device other than a CPU the host never waits for a number: it knows all sizes from the batch. On a CPU each thread
scores blocks of its own; before and after that, all is done on one core, because threads that share an operation spin
for milliseconds when it has ended, on the cores that score.

Shape suffixes: B rows, D width, V catalogue, H rows of the table that are held here, C items of a piece, F all scores
of a piece and one more, K list length, S seen pairs, W pairs kept of a row, R processes, G rows of all processes.
"""

import math
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lrec.common import cpu_threads
from lrec.model.sharded_table import Shard, Table, shard_of
from lrec.ranking.best_items import GROUP_ITEMS, Best, BestAboveThreshold, Pairs, TopItems, decoded, has_target
from lrec.ranking.shortlist import Shortlist, pays

R = TypeVar("R", bound=tuple[Tensor, ...])

# Scores of a piece. On a CPU they should lie in the cache; elsewhere few large pieces cost least, and those of many
# items: lists are found among the best of groups of them.
CPU_PIECE_BYTES, PIECE_BYTES = 2**22, 2**26
CPU_PIECE_ROWS, PIECE_ROWS = 256, 4096


class Scores(NamedTuple):
    """What `score` returns, a row per target; the `_unseen` fields leave out the items the user has seen.

    A target outside the catalogue has loss nan and rank inf; a seen target has rank_unseen inf (it cannot be listed).
    """

    loss_B: Tensor
    rank_B: Tensor
    rank_unseen_B: Tensor
    top_BK: Tensor
    top_unseen_BK: Tensor


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
    with cpu_threads.one_core():
        target_score_G = asked.target_scores(targets_B)
    targets_G = asked.of_all(targets_B, -1)

    def of_block(block: _Block, pieces: _Pieces) -> _Found:
        rows = block.rows
        return _score_rows(pieces.hidden_BD[rows], targets_G[rows], target_score_G[rows], block.seen, k, pieces)

    found = _Found(*asked.answers(of_block))
    with cpu_threads.one_core():
        log_sum_B = found.log_sum_RB.logsumexp(0)
        rank_B = 1 + found.above_RB.sum(0)
        unknown_B = targets_B < 0
        target_seen_B = has_target(Pairs(seen_rows_S, seen_items_S), targets_B)
        rank_unseen_B = rank_B - found.seen_above_RB.sum(0)
        return Scores(
            loss_B=(log_sum_B - asked.own(target_score_G)).masked_fill(unknown_B, math.nan),
            rank_B=rank_B.masked_fill(unknown_B, math.inf),
            rank_unseen_B=rank_unseen_B.masked_fill(unknown_B | target_seen_B, math.inf),
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
    shard = shard_of(table_VD)
    asked = _Asked(hidden_BD, shard, seen_rows_S, seen_items_S)

    def of_block(block: _Block, pieces: _Pieces) -> tuple[Tensor]:
        return (_list_rows(pieces.hidden_BD[block.rows], block.seen, k, pieces),)

    on_cpu = cpu_threads.is_cpu(hidden_BD.device)
    (keys_RBK,) = asked.answers(of_block, by_shortlist=on_cpu and pays(len(hidden_BD), shard.rows_HD, k))
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
        targets_G = self.of_all(targets_B, -1)
        here_G, _ = self._shard.places(targets_G)
        scores_G = (self._hidden_GD * self._shard.rows_here(targets_G)).sum(1)
        return self._shard.summed(scores_G.masked_fill(~here_G, 0.0))

    def answers(self, of_block: Callable[["_Block", "_Pieces"], R], by_shortlist: bool = False) -> list[Tensor]:
        """What is made of each block of rows, its fields joined to those of all rows; of this process's rows, from each
        process."""
        # Half precision, as in an autocast region, would tie scores that differ.
        with torch.autocast(self._hidden_GD.device.type, enabled=False):
            pieces = _Pieces(self._hidden_GD, self._shard, by_shortlist)
            blocks = pieces.mapped(of_block, *self._seen)
        with cpu_threads.one_core():
            return [self._shard.exchanged(torch.cat(parts), self._n_rows) for parts in zip(*blocks, strict=True)]

    def _seen_here(self, rows_S: Tensor, items_S: Tensor) -> tuple[Tensor, Tensor]:
        """All processes' seen pairs, with places among all rows; on a CPU only those whose items are held here."""
        most = self._shard.most(len(rows_S))
        rows_G = self._shard.gathered(rows_S + self._shard.rank * self._most, most)
        items_G = self._shard.gathered(items_S, most, self._shard.n_items)
        if not cpu_threads.is_cpu(items_G.device):
            return rows_G, items_G
        here_G, _ = self._shard.places(items_G)
        return rows_G[here_G], items_G[here_G]


def _merged(keys_RBK: Tensor) -> TopItems:
    """The best of the lists that processes have found."""
    if len(keys_RBK) == 1:
        return decoded(keys_RBK[0])
    keys_BW = keys_RBK.transpose(0, 1).flatten(1)
    return decoded(keys_BW.topk(keys_RBK.shape[2], 1).values)


def _list_rows(hidden_BD: Tensor, seen: "_Seen", k: int, pieces: "_Pieces") -> Tensor:
    best = pieces.best(hidden_BD, k)
    for piece in pieces.of(hidden_BD):
        seen.leave_out(piece)
        best.add(piece.scores_BC, piece.start)
    return best.keys()


def _score_rows(
    hidden_BD: Tensor, targets_B: Tensor, target_score_B: Tensor, seen: "_Seen", k: int, pieces: "_Pieces"
) -> _Found:
    n_rows, targets_B1, target_score_B1 = len(hidden_BD), targets_B[:, None], target_score_B[:, None]
    counted_B1 = target_score_B1  # the target's score as it is counted, which may differ in its last digits
    log_sums = [hidden_BD.new_full((n_rows,), -math.inf)]
    sign_B = torch.zeros(n_rows, dtype=torch.float64, device=hidden_BD.device)
    best = pieces.best(hidden_BD, k)
    for piece in pieces.of(hidden_BD):
        scores_BC = piece.scores_BC
        work_BC = pieces.work_like(scores_BC)
        # The most likely item's share is 1 / (sum of e^(score - max)), and softmax takes fewer passes.
        share_BC = torch.softmax(scores_BC, 1, out=work_BC)
        log_sums.append(scores_BC.amax(1) - share_BC.amax(1).log_())
        sign_B += torch.sub(scores_BC, target_score_B1, out=work_BC).sign_().sum(1)
        column_B1 = targets_B1 - piece.start
        inside_B1 = column_B1.clamp(0, scores_BC.shape[1] - 1)
        counted_B1 = torch.where(column_B1 == inside_B1, scores_BC.gather(1, inside_B1), counted_B1)
        seen.leave_out(piece)
        best.add(scores_BC, piece.start)
    # The sum of what `above` gives for each item, without what it gives for the target.
    above_B = (sign_B + pieces.n_here) / 2 - (above(counted_B1, target_score_B1) * pieces.has(targets_B1))[:, 0]
    seen_above_B = torch.zeros_like(above_B)
    seen_above_B.index_add_(0, seen.rows_S, above(seen.scores_S, target_score_B[seen.rows_S]).double())
    unseen_keys_BK = best.keys()
    best.add_pairs(seen.rows_S, seen.items_S, seen.scores_S)
    return _Found(torch.stack(log_sums).logsumexp(0), above_B, seen_above_B, best.keys(), unseen_keys_BK)


def above(scores: Tensor, target_scores: Tensor) -> Tensor:
    """What each score adds to the rank of a target: 1 if it is higher, a half if it is tied."""
    return (scores - target_scores).sign_().add_(1).div_(2)


class _Pieces:
    """How rows and catalogue are cut into pieces, and the memory that all pieces use one after the other."""

    def __init__(self, hidden_BD: Tensor, shard: Shard, by_shortlist: bool) -> None:
        self._on_cpu = cpu_threads.is_cpu(hidden_BD.device)
        self.hidden_BD, self.n_items = hidden_BD, shard.n_items
        self._table_HD, self._first = shard.rows_HD, shard.start
        self._by_shortlist = by_shortlist
        self._dtype = torch.bfloat16 if by_shortlist else hidden_BD.dtype
        self._n_rows = len(hidden_BD)
        self._n_block = max(self._n_rows, 1)
        n_scores = (CPU_PIECE_BYTES if self._on_cpu else PIECE_BYTES) // self._dtype.itemsize
        n_here = max(len(self._table_HD), 1)
        most = CPU_PIECE_ROWS if self._on_cpu else PIECE_ROWS
        most = max(n_scores // n_here, most)  # where a piece holds the catalogue, as many as fit
        if self._n_rows > most:
            alike = 4 if self._on_cpu else 1  # 2 or 4 threads have as many each
            if by_shortlist:  # each block rounds the table, and its scores do not depend on its size
                alike, most = torch.get_num_threads(), max(n_scores // n_here, 2 * CPU_PIECE_ROWS)
            n_blocks = -(-self._n_rows // (alike * most)) * alike
            self._n_block = -(-self._n_rows // n_blocks)
        self._n_chunk = min(max(n_scores // self._n_block, GROUP_ITEMS), n_here)
        self._of_thread = threading.local()

    @property
    def n_here(self) -> int:
        """Items whose rows of the table are here."""
        return len(self._table_HD)

    def has(self, items: Tensor) -> Tensor:
        """Which of these items are among them."""
        return (items >= self._first) & (items < self._first + self.n_here)

    def mapped(self, of_block: Callable[["_Block", "_Pieces"], R], rows_S: Tensor, items_S: Tensor) -> list[R]:
        """What is made of each block of rows, on a CPU by a thread for each core."""
        blocks = self._blocks(rows_S, items_S) if self._on_cpu else self._blocks_of_all(rows_S, items_S)
        if self._on_cpu and self._n_rows > self._n_block:
            return cpu_threads.mapped(lambda block: of_block(block, self), blocks)
        return [of_block(block, self) for block in blocks]

    def best(self, hidden_BD: Tensor, k: int) -> Best | BestAboveThreshold:
        """The best items of a block of rows, none yet."""
        k = min(k, self.n_items)
        if self._by_shortlist:
            return Shortlist(hidden_BD, self._table_HD, self._first, k)
        return BestAboveThreshold(len(hidden_BD), k) if self._on_cpu else Best(len(hidden_BD), k, hidden_BD.device)

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
            seen = _SeenInOrder(rows_S[pairs] - start, items_S[pairs], starts, self._n_chunk, self._first)
            yield _Block(slice(start, start + self._n_block), seen)

    def _blocks_of_all(self, rows_S: Tensor, items_S: Tensor) -> Iterator["_Block"]:
        """Each block with all pairs: how many are its own, only the device knows. The others get an item that no piece
        has."""
        for start in range(0, max(self._n_rows, 1), self._n_block):
            row_S = rows_S - start
            other_S = (row_S < 0) | (row_S >= self._n_block)
            seen = _Seen(row_S.masked_fill(other_S, 0), items_S.masked_fill(other_S, self.n_items))
            yield _Block(slice(start, start + self._n_block), seen)

    def of(self, hidden_BD: Tensor) -> Iterator["_Piece"]:
        """The pieces of a block of rows, each of which the thread's next one overwrites."""
        hidden_BD = hidden_BD.to(self._dtype)
        for start in range(0, len(self._table_HD), self._n_chunk):
            table_CD = self._table_HD[start : start + self._n_chunk].to(self._dtype)
            scores_F = self._memory("scores")[: len(hidden_BD) * len(table_CD) + 1]
            scores_BC = scores_F[:-1].view(len(hidden_BD), len(table_CD))
            yield _Piece(self._first + start, torch.mm(hidden_BD, table_CD.T, out=scores_BC), scores_F)

    def work_like(self, scores_BC: Tensor) -> Tensor:
        """Memory of the same shape."""
        return self._memory("work")[: scores_BC.numel()].view_as(scores_BC)

    def _memory(self, name: str) -> Tensor:
        """Memory of this thread, the same every time: allocating takes longer than computing the scores."""
        if not hasattr(self._of_thread, name):
            n_scores = self._n_block * self._n_chunk
            setattr(self._of_thread, name, self.hidden_BD.new_empty(n_scores + 1, dtype=self._dtype))
        memory: Tensor = getattr(self._of_thread, name)
        return memory


class _Piece(NamedTuple):
    """Scores of some rows and some items."""

    start: int  # the first item
    scores_BC: Tensor
    scores_F: Tensor  # the same, row after row, and one more element, for what lies outside


class _Seen:
    """Items that the rows of a block have seen, each pair once.

    Attributes:
        scores_S: Score of each once its piece has come; -inf where its item is in none.
    """

    def __init__(self, rows_S: Tensor, items_S: Tensor) -> None:
        self.rows_S, self.items_S = rows_S, items_S
        self.scores_S = torch.full(rows_S.shape, -math.inf, dtype=torch.float32, device=rows_S.device)

    def leave_out(self, piece: _Piece) -> None:
        """Keep the scores of the pairs that lie in the piece, and put -inf in their places."""
        n_items = piece.scores_BC.shape[1]
        column_S = self.items_S - piece.start
        outside_S = (column_S < 0) | (column_S >= n_items)
        place_S = (self.rows_S * n_items + column_S).masked_fill(outside_S, len(piece.scores_F) - 1)
        self.scores_S = torch.where(outside_S, self.scores_S, piece.scores_F[place_S])
        piece.scores_F.index_fill_(0, place_S, -math.inf)


class _SeenInOrder(_Seen):
    """The same, one piece of the catalogue after the other: a CPU has many, and each has few pairs."""

    def __init__(self, rows_S: Tensor, items_S: Tensor, starts: list[int], n_chunk: int, first: int) -> None:
        """Name where the pairs of each piece begin, the number of items of a piece, and the first item of all."""
        super().__init__(rows_S, items_S)
        self._starts, self._n_chunk, self._first = starts, n_chunk, first

    def leave_out(self, piece: _Piece) -> None:
        """See `_Seen.leave_out`."""
        number = (piece.start - self._first) // self._n_chunk
        pairs = slice(self._starts[number], self._starts[number + 1])
        places = self.rows_S[pairs], self.items_S[pairs] - piece.start
        self.scores_S[pairs] = piece.scores_BC[places].float()
        piece.scores_BC[places] = -math.inf


class _Block(NamedTuple):
    """Rows that are scored at once, and what they have seen."""

    rows: slice
    seen: _Seen
