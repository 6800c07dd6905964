"""Heads for evaluation: `score` gives cross-entropy, exact ranks and lists of the best items; `top_items` gives lists.

Both go over the scores once, in pieces of some rows and some items; on a CPU a piece stays in the cache. What a piece
gives (a log-sum, a number of items above the target, the best items) can be combined with that of other pieces. So
processes that share the table each score all rows against their part of it. Except on a CPU, the host never waits for a
number. On a CPU, each thread scores its own blocks, and all other work runs on one core, because threads that share an
operation spin for milliseconds after its end.

Shape suffixes: B rows, D width, V catalogue, H table rows of this process, C items of a piece, F all scores of a piece
and one more, K list length, S seen pairs, W pairs kept of a row, R processes, G rows of all processes.
"""

import math
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lrec.common import cpu_threads
from lrec.model.sharded_table import Shard, Table, shard_of
from lrec.ranking.best_items import GROUP_ITEMS, Best, BestAboveThreshold, Pairs, TopItems, decoded, has_target

# Size of a piece. On a CPU its scores should fit into the cache. Elsewhere, few large pieces cost least, because lists
# are found among the best of groups of items.
CPU_PIECE_BYTES, PIECE_BYTES = 2**22, 2**26
CPU_PIECE_ROWS, PIECE_ROWS = 256, 4096
# Scores are equal if they differ by less than this share of the product of the vectors' lengths: the last digits of a
# product of two vectors differ from one matrix product to another.
EQUAL = 4 * torch.finfo(torch.float32).eps


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

    rank = 1 + (items scored higher) + (other items with the same score) / 2; lists order equal scores by item index.

    Args:
        hidden_BD: Hidden state of the position before each row's target.
        table_VD: Item table; if processes share it, all processes call this at the same time, each with its own rows.
        targets_B: Catalogue index of each row's target; -1 for a target outside the catalogue.
        seen_rows_S: Row of each seen pair.
        seen_items_S: Item of each seen pair.
        k: Length of the lists, at most the size of the catalogue.
    """
    search = _Search(hidden_BD, shard_of(table_VD), seen_rows_S, seen_items_S, k)
    targets_G = search.of_all(targets_B, -1)
    with cpu_threads.one_core():
        score_G, near_G = search.target_scores(targets_G)
    of_targets = (targets_G, score_G, near_G)
    found = _Found(*search.results(lambda block: _score_block(block, *(each_G[block.rows] for each_G in of_targets))))
    with cpu_threads.one_core():
        unknown_B, rank_B = targets_B < 0, 1 + found.above_RB.sum(0)
        unlisted_B = unknown_B | has_target(Pairs(seen_rows_S, seen_items_S), targets_B)
        return Scores(
            loss_B=(found.log_sum_RB.logsumexp(0) - search.own(score_G)).masked_fill(unknown_B, math.nan),
            rank_B=rank_B.masked_fill(unknown_B, math.inf),
            rank_unseen_B=(rank_B - found.seen_above_RB.sum(0)).masked_fill(unlisted_B, math.inf),
            top_BK=_merged(found.keys_RBK).items_BK,
            top_unseen_BK=_merged(found.unseen_keys_RBK).items_BK,
        )


@torch.no_grad()
def top_items(hidden_BD: Tensor, table_VD: Table, seen_rows_S: Tensor, seen_items_S: Tensor, k: int) -> TopItems:
    """Only the lists of unseen items of `score`, with scores: exact, over every item that the row has not seen."""

    def of_block(block: _Block) -> tuple[Tensor]:
        for start, scores_BC, _ in block.pieces():
            block.add_unseen(start, scores_BC)
        return (block.best.keys(),)

    (keys_RBK,) = _Search(hidden_BD, shard_of(table_VD), seen_rows_S, seen_items_S, k).results(of_block)
    return _merged(keys_RBK)


class _Found(NamedTuple):
    """What a process finds in its rows of the table. The results of several processes can be combined."""

    log_sum_RB: Tensor
    above_RB: Tensor
    seen_above_RB: Tensor
    keys_RBK: Tensor
    unseen_keys_RBK: Tensor


def _score_block(block: "_Block", targets_B: Tensor, target_score_B: Tensor, near_B: Tensor) -> _Found:
    low_B, high_B = target_score_B - near_B, target_score_B + near_B
    found_B1 = target_score_B[:, None]  # the target's score in its piece, which may differ in the last digits
    log_sums = [torch.full_like(target_score_B, -math.inf)]
    sign_B = torch.zeros_like(target_score_B, dtype=torch.float64)
    for start, scores_BC, work_BC in block.pieces():
        # The most likely item's share is 1 / (sum of e^(score - max)), and softmax takes fewer passes.
        share_BC = torch.softmax(scores_BC, 1, out=work_BC)
        log_sums.append(scores_BC.amax(1) - share_BC.amax(1).log_())
        for end_B in (low_B, high_B):
            sign_B += torch.sub(scores_BC, end_B[:, None], out=work_BC).sign_().sum(1) / 2
        column_B1 = targets_B[:, None] - start
        inside_B1 = column_B1.clamp(0, scores_BC.shape[1] - 1)
        found_B1 = torch.where(column_B1 == inside_B1, scores_BC.gather(1, inside_B1), found_B1)
        block.add_unseen(start, scores_BC)
    # The sum of `_above` over all items except the target.
    of_target_B = _above(found_B1[:, 0], low_B, high_B) * block.search.shard.places(targets_B)[0]
    above_B = (sign_B + block.n_items) / 2 - of_target_B
    rows_S, seen_scores_S = block.seen.rows_S, block.seen_scores_S
    of_seen_S = _above(seen_scores_S, low_B[rows_S], high_B[rows_S]).double()
    seen_above_B = torch.zeros_like(above_B).index_add_(0, rows_S, of_seen_S)
    unseen_keys_BK = block.best.keys()
    block.best.add_pairs(*block.seen, seen_scores_S)
    return _Found(torch.stack(log_sums).logsumexp(0), above_B, seen_above_B, block.best.keys(), unseen_keys_BK)


def _above(scores: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """What each score adds to the rank of a target: 1 if it is higher, a half if it is tied, which is low to high."""
    return ((scores - low).sign_() + (scores - high).sign_()).add_(2).div_(4)


def _merged(keys_RBK: Tensor) -> TopItems:
    if len(keys_RBK) == 1:
        return decoded(keys_RBK[0])
    keys_BW = keys_RBK.transpose(0, 1).flatten(1)
    return decoded(keys_BW.topk(keys_RBK.shape[2], 1).values)


class _Search:
    """Scores the rows of all processes, one block at a time, against this process's part of the table."""

    def __init__(self, hidden_BD: Tensor, shard: Shard, seen_rows_S: Tensor, seen_items_S: Tensor, k: int) -> None:
        self.shard, self.k = shard, min(k, shard.n_items)
        self.on_cpu = cpu_threads.is_cpu(hidden_BD.device)
        self._n_rows = len(hidden_BD)
        self._most = shard.most(self._n_rows)
        self.hidden_GD = self.of_all(hidden_BD.float())
        if shard.processes > 1:
            most = shard.most(len(seen_rows_S))
            seen_rows_S = shard.gathered(seen_rows_S + shard.rank * self._most, most)
            seen_items_S = shard.gathered(seen_items_S, most, shard.n_items)
        self.seen = Pairs(seen_rows_S, seen_items_S)
        self.added = None if shard.added is None else shard.additions_here(shard.added, self._most)
        n_rows, n_items = len(self.hidden_GD), max(len(shard.rows_HD), 1)
        # On a CPU, a multiple of 4 blocks, so that 2 or 4 threads get as many each.
        size, rows, alike = (CPU_PIECE_BYTES, CPU_PIECE_ROWS, 4) if self.on_cpu else (PIECE_BYTES, PIECE_ROWS, 1)
        n_scores = size // torch.float32.itemsize
        most = max(n_scores // n_items, rows)  # if all items fit into a piece, the piece takes as many rows as fit
        self.n_block = -(-n_rows // (-(-n_rows // (alike * most)) * alike)) if n_rows > most else max(n_rows, 1)
        self.n_chunk = min(max(n_scores // self.n_block, GROUP_ITEMS), n_items)
        self.memory = _Memory(self.n_block * self.n_chunk, hidden_BD.device)

    def of_all(self, values_B: Tensor, filler: float = 0) -> Tensor:
        return self.shard.gathered(values_B, self._most, filler)

    def own(self, values_G: Tensor) -> Tensor:
        return values_G[self.shard.rank * self._most :][: self._n_rows]

    def target_scores(self, targets_G: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of the targets, and how far from them another score still counts as equal."""
        here_G, places_G = self.shard.places(targets_G)
        rows_GD = self.shard.rows_here(targets_G)
        found = [(self.hidden_GD * rows_GD).sum(1), rows_GD.float().norm(dim=1)]
        if self.added is not None:
            found.append(self.added.of(places_G[:, None])[:, 0])
        found_XG = self.shard.summed(torch.stack(found).masked_fill_(~here_G, 0.0))
        near_G = EQUAL * self.hidden_GD.norm(dim=1) * found_XG[1]
        if self.added is None:
            return found_XG[0], near_G
        return found_XG[0] + found_XG[2], near_G + EQUAL * found_XG[2].abs()

    def results(self, of_block: "Callable[[_Block], tuple[Tensor, ...]]") -> list[Tensor]:
        """Apply `of_block` to each block, on a CPU in a thread for each core, and join each field over all blocks.
        Return for each field what each process has found about this process's rows, (R, B, ...)."""
        starts = range(0, max(len(self.hidden_GD), 1), self.n_block)
        for_each = cpu_threads.mapped if self.on_cpu and len(starts) > 1 else map
        # Half precision, as in an autocast region, would tie scores that differ.
        with torch.autocast(self.hidden_GD.device.type, enabled=False):
            found = list(for_each(of_block, (_Block(self, start) for start in starts)))
        with cpu_threads.one_core():
            return [self.shard.exchanged(torch.cat(parts), self._n_rows) for parts in zip(*found, strict=True)]


class _Memory(threading.local):
    """Memory that a thread uses again for each piece: allocating takes longer than computing the scores."""

    def __init__(self, n_scores: int, device: torch.device) -> None:
        # Not the default dtype, which is bfloat16 if the parameters are.
        self.scores_F, self.work_F = torch.empty(2, n_scores + 1, dtype=torch.float32, device=device)


class _Block:
    """Rows that are scored together, the items that they have seen, and their best items so far."""

    def __init__(self, search: _Search, start: int) -> None:
        self.search, self.rows = search, slice(start, start + search.n_block)
        self._hidden_BD, self._table_HD = search.hidden_GD[self.rows], search.shard.rows_HD
        self._added = None if search.added is None else search.added.rows(self.rows).slots()
        self.n_items, n_rows = len(self._table_HD), len(self._hidden_BD)
        rows_S, items_S = search.seen.rows_S - start, search.seen.items_S
        own_S = (rows_S >= 0) & (rows_S < search.n_block)
        if search.on_cpu:
            self.best: Best | BestAboveThreshold = BestAboveThreshold(n_rows, search.k)
            order_S = items_S[own_S].argsort()
            rows_S, items_S = rows_S[own_S][order_S], items_S[own_S][order_S]
        else:  # only the device knows how many pairs belong here: all others get an item that no piece has
            self.best = Best(n_rows, search.k, rows_S.device)
            rows_S, items_S = rows_S.masked_fill(~own_S, 0), items_S.masked_fill(~own_S, search.shard.n_items)
        self.seen = Pairs(rows_S, items_S)
        # The score of each seen pair after its piece; -inf if its item is in none.
        self.seen_scores_S = torch.full(rows_S.shape, -math.inf, dtype=torch.float32, device=rows_S.device)

    def pieces(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each piece: its first item, scores (B, C), and working memory of the same size, until the next piece."""
        memory, hidden_BD = self.search.memory, self._hidden_BD
        for start in range(0, self.n_items, self.search.n_chunk):
            table_CD = self._table_HD[start : start + self.search.n_chunk].float()
            shape = len(hidden_BD), len(table_CD)
            scores_BC, work_BC = (of_all[: math.prod(shape)].view(shape) for of_all in (memory.scores_F, memory.work_F))
            torch.mm(hidden_BD, table_CD.T, out=scores_BC)
            if self._added is not None:
                self._added.part(start, len(table_CD)).add_(scores_BC)
            yield self.search.shard.start + start, scores_BC, work_BC

    def add_unseen(self, start: int, scores_BC: Tensor) -> None:
        """Look for the best items in a piece. Keep the scores of the seen pairs in it, and put -inf in their places."""
        n_items, some = scores_BC.shape[1], slice(None)
        scores_F = self.search.memory.scores_F[: scores_BC.numel() + 1]  # the last element is for pairs outside
        if self.search.on_cpu:  # there, the pairs are in the order of items
            bounds = torch.tensor([start, start + n_items])
            some = slice(*torch.searchsorted(self.seen.items_S, bounds).tolist())
        column_S = self.seen.items_S[some] - start
        outside_S = (column_S < 0) | (column_S >= n_items)
        place_S = (self.seen.rows_S[some] * n_items + column_S).masked_fill(outside_S, scores_BC.numel())
        self.seen_scores_S[some] = torch.where(outside_S, self.seen_scores_S[some], scores_F[place_S])
        scores_F.index_fill_(0, place_S, -math.inf)
        self.best.add(scores_BC, start)
