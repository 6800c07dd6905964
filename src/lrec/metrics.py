"""Heads for evaluation, and the metrics they feed.

`score` gives cross-entropy, exact ranks and top-k lists in one pass over chunks of the catalogue, `top_items` the lists
alone; `RankMetrics` sums them up. Shape suffixes: B rows, D width, V catalogue, C items of a chunk, G groups of those,
K list length, S seen pairs.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torchmetrics import Metric

KS = (1, 5, 10, 50)
CHUNK_ITEMS = 2**14
# Rows scored at once on a CPU: with a chunk of items they make 8 MiB of scores, most of which stay in the caches.
CPU_BLOCK_ROWS = 128


class Scores(NamedTuple):
    """What `score` returns, a row per target; the `_unseen` fields leave out the items the user has seen.

    A target outside the catalogue has loss nan and rank inf; a seen target has rank_unseen inf (it cannot be listed).
    """

    loss_B: Tensor
    rank_B: Tensor
    rank_unseen_B: Tensor
    top_BK: Tensor
    top_unseen_BK: Tensor


class Overrides(NamedTuple):
    """Scores of some (row, item) pairs, each pair once, that replace those of hidden state and table."""

    rows_S: Tensor
    items_S: Tensor
    scores_S: Tensor

    def of_rows(self, rows: slice) -> "Overrides":
        """Those of some rows, numbered from the first of them."""
        inside_S = (self.rows_S >= rows.start) & (self.rows_S < rows.stop)
        return Overrides(self.rows_S[inside_S] - rows.start, self.items_S[inside_S], self.scores_S[inside_S])


@torch.no_grad()
def score(
    hidden_BD: Tensor,
    table_VD: Tensor,
    targets_B: Tensor,
    seen_rows_S: Tensor,
    seen_items_S: Tensor,
    k: int = max(KS),
    overrides: Overrides | None = None,
) -> Scores:
    """Score every item of the catalogue for every row.

    rank = 1 + (number scored higher) + (number tied) / 2, the target not counted; lists break ties by item index.

    Args:
        hidden_BD: Hidden state of each row's last position.
        table_VD: Item table.
        targets_B: Catalogue index of each row's target, -1 where it is outside the catalogue.
        seen_rows_S: Row of each seen pair.
        seen_items_S: Item of each seen pair.
        k: Length of the lists; capped at the catalogue's size.
        overrides: Scores that replace hidden state times table.
    """
    # Half precision, as in an autocast region, would tie scores that differ.
    with torch.autocast(hidden_BD.device.type, enabled=False):
        hidden_BD, table_VD = hidden_BD.float(), table_VD.float()
        scratch = _scratch(hidden_BD, table_VD, 2)
        blocks = [
            _score_block(
                hidden_BD[rows],
                table_VD,
                targets_B[rows],
                rows_S,
                items_S,
                k,
                scratch,
                None if overrides is None else overrides.of_rows(rows),
            )
            for rows, rows_S, items_S in _row_blocks(hidden_BD, seen_rows_S, seen_items_S)
        ]
        return Scores(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


class TopItems(NamedTuple):
    """The best items of each row, best first, ties by item index; item -1 and score -inf in unused slots."""

    items_BK: Tensor
    scores_BK: Tensor


@torch.no_grad()
def top_items(hidden_BD: Tensor, table_VD: Tensor, seen_rows_S: Tensor, seen_items_S: Tensor, k: int) -> TopItems:
    """Only the lists of `score`: exact, over every item that is not among the row's seen pairs.

    Args:
        hidden_BD: Hidden state of each row's last position.
        table_VD: Item table.
        seen_rows_S: Row of each seen pair.
        seen_items_S: Item of each seen pair.
        k: Length of the lists; capped at the catalogue's size.
    """
    with torch.autocast(hidden_BD.device.type, enabled=False):
        hidden_BD, table_VD = hidden_BD.float(), table_VD.float()
        scratch = _scratch(hidden_BD, table_VD, 1)
        blocks = []
        for rows, rows_S, items_S in _row_blocks(hidden_BD, seen_rows_S, seen_items_S):
            best = _TopK(len(hidden_BD[rows]), min(k, len(table_VD)), hidden_BD.device)
            for start in range(0, len(table_VD), CHUNK_ITEMS):
                (scores_BC,) = _scored(hidden_BD[rows], table_VD[start : start + CHUNK_ITEMS], scratch)
                inside_S = _inside(items_S, start, scores_BC.shape[1])
                scores_BC[rows_S[inside_S], items_S[inside_S] - start] = -math.inf
                best.add(scores_BC, start)
            blocks.append(best.best_first())
        return TopItems(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _scratch(hidden_BD: Tensor, table_VD: Tensor, n: int) -> Tensor:
    """Memory for `n` times the scores of a block of rows and a chunk of items.

    It is reused for all blocks and chunks, because allocating it takes longer than computing the scores.
    """
    return hidden_BD.new_empty(n, _block_rows(hidden_BD) * min(CHUNK_ITEMS, len(table_VD)))


def _block_rows(hidden_BD: Tensor) -> int:
    n_rows = max(len(hidden_BD), 1)
    return min(CPU_BLOCK_ROWS, n_rows) if hidden_BD.device.type == "cpu" else n_rows


def _row_blocks(hidden_BD: Tensor, seen_rows_S: Tensor, seen_items_S: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows that are scored at once, with their seen pairs, whose rows count from the block's first."""
    block = _block_rows(hidden_BD)
    for start in range(0, max(len(hidden_BD), 1), block):
        inside_S = (seen_rows_S >= start) & (seen_rows_S < start + block)
        yield slice(start, start + block), seen_rows_S[inside_S] - start, seen_items_S[inside_S]


def _scored(hidden_BD: Tensor, table_CD: Tensor, scratch: Tensor) -> list[Tensor]:
    """The parts of the scratch memory in the shape of a chunk's scores; the first one contains them."""
    parts = [part[: len(hidden_BD) * len(table_CD)].view(len(hidden_BD), len(table_CD)) for part in scratch]
    torch.mm(hidden_BD, table_CD.T, out=parts[0])
    return parts


def _score_block(
    hidden_BD: Tensor,
    table_VD: Tensor,
    targets_B: Tensor,
    seen_rows_S: Tensor,
    seen_items_S: Tensor,
    k: int,
    scratch: Tensor,
    overrides: Overrides | None,
) -> Scores:
    n_rows, n_items = hidden_BD.shape[0], table_VD.shape[0]
    k = min(k, n_items)
    known_B = targets_B >= 0
    target_B1 = targets_B.clamp(min=0)[:, None]
    target_score_B1 = (hidden_BD * table_VD[target_B1.squeeze(1)]).sum(1, keepdim=True)
    if overrides is not None:
        of_target_S = overrides.items_S == targets_B[overrides.rows_S]
        target_score_B1[overrides.rows_S[of_target_S], 0] = overrides.scores_S[of_target_S]
    log_sum_B = hidden_BD.new_full((n_rows,), -math.inf)
    rank_B = torch.ones_like(log_sum_B)
    all_rows_B = torch.arange(n_rows, device=hidden_BD.device)
    seen_scores_S = hidden_BD.new_empty(len(seen_items_S))
    best = _TopK(n_rows, k, hidden_BD.device)
    for start in range(0, n_items, CHUNK_ITEMS):
        table_CD = table_VD[start : start + CHUNK_ITEMS]
        scores_BC, work_BC = _scored(hidden_BD, table_CD, scratch)
        if overrides is not None:
            inside_S = _inside(overrides.items_S, start, len(table_CD))
            places = overrides.rows_S[inside_S], overrides.items_S[inside_S] - start
            scores_BC[places] = overrides.scores_S[inside_S]
        # The most likely item's share is 1 / (sum of e^(score - max)), and softmax takes fewer passes.
        share_BC = torch.softmax(scores_BC, 1, out=work_BC)
        log_sum_B = torch.logaddexp(log_sum_B, scores_BC.amax(1) - share_BC.amax(1).log())
        # The sum of what `_above` gives, in fewer passes.
        rank_B += (torch.sub(scores_BC, target_score_B1, out=work_BC).sign_().sum(1) + len(table_CD)) / 2
        # Take back the target itself, with exactly the score that was counted.
        rows_B = all_rows_B[_inside(target_B1[:, 0], start, len(table_CD))]
        of_target_B = scores_BC[rows_B, target_B1[rows_B, 0] - start]
        rank_B.index_add_(0, rows_B, -_above(of_target_B, target_score_B1[rows_B, 0]))
        inside_S = _inside(seen_items_S, start, len(table_CD))
        places = seen_rows_S[inside_S], seen_items_S[inside_S] - start
        seen_scores_S[inside_S] = scores_BC[places]
        scores_BC[places] = -math.inf
        best.add(scores_BC, start)
    seen_above_B = torch.zeros_like(log_sum_B)
    seen_above_B.index_add_(0, seen_rows_S, _above(seen_scores_S, target_score_B1[seen_rows_S, 0]))
    target_seen_B = torch.zeros_like(known_B)
    target_seen_B[seen_rows_S[seen_items_S == targets_B[seen_rows_S]]] = True
    top_unseen_BK = best.best_first().items_BK
    best.add_pairs(seen_rows_S, seen_items_S, seen_scores_S)
    return Scores(
        loss_B=torch.where(known_B, log_sum_B - target_score_B1.squeeze(1), math.nan),
        rank_B=torch.where(known_B, rank_B, math.inf),
        rank_unseen_B=torch.where(known_B & ~target_seen_B, rank_B - seen_above_B, math.inf),
        top_BK=best.best_first().items_BK,
        top_unseen_BK=top_unseen_BK,
    )


def _above(scores: Tensor, target_score: Tensor) -> Tensor:
    """What each score adds to the target's rank: 1 if it is higher, a half if it is tied."""
    return (scores - target_score).sign_().add_(1).div_(2)


def _inside(items: Tensor, start: int, n_chunk: int) -> Tensor:
    """Which items lie in the chunk."""
    return (items >= start) & (items < start + n_chunk)


class _TopK:
    """The k best items so far of each row, in order of item index; a score of -inf is like any other."""

    def __init__(self, n_rows: int, k: int, device: torch.device) -> None:
        self.k = k
        self.scores_BK = torch.empty((n_rows, 0), device=device)
        self.items_BK = torch.empty((n_rows, 0), dtype=torch.int64, device=device)

    def add(self, scores_BC: Tensor, start: int) -> None:
        """Add a chunk of the catalogue from item `start` on; chunks come in order, before any pairs."""
        columns_BK = _top_columns(scores_BC, self.k)
        # Earlier chunks have the smaller indices, so appending keeps the order.
        self.scores_BK = torch.cat([self.scores_BK, scores_BC.gather(1, columns_BK)], 1)
        self.items_BK = torch.cat([self.items_BK, columns_BK + start], 1)
        self._shorten()

    def add_pairs(self, rows_S: Tensor, items_S: Tensor, scores_S: Tensor) -> None:
        """Add single items of single rows, in any order."""
        of_row_B = torch.bincount(rows_S, minlength=len(self.scores_BK))
        order_S = items_S.argsort()
        order_S = order_S[rows_S[order_S].argsort(stable=True)]  # by row, and in each by item
        rows_S = rows_S[order_S]
        slots_S = torch.arange(len(rows_S), device=rows_S.device) - (of_row_B.cumsum(0) - of_row_B)[rows_S]
        scores_BS = self.scores_BK.new_full((len(of_row_B), int(of_row_B.max())), -math.inf)
        items_BS = torch.zeros_like(scores_BS, dtype=torch.int64)
        scores_BS[rows_S, slots_S], items_BS[rows_S, slots_S] = scores_S[order_S], items_S[order_S]
        columns_BK = _top_columns(scores_BS, self.k)
        items_BK = torch.cat([self.items_BK, items_BS.gather(1, columns_BK)], 1)
        self.items_BK, order_BK = items_BK.sort(1)
        self.scores_BK = torch.cat([self.scores_BK, scores_BS.gather(1, columns_BK)], 1).gather(1, order_BK)
        self._shorten()

    def _shorten(self) -> None:
        if self.scores_BK.shape[1] > self.k:
            columns_BK = _top_columns(self.scores_BK, self.k)
            self.scores_BK = self.scores_BK.gather(1, columns_BK)
            self.items_BK = self.items_BK.gather(1, columns_BK)

    def best_first(self) -> TopItems:
        """The list of each row."""
        scores_BK, order_BK = self.scores_BK.sort(dim=1, descending=True, stable=True)
        return TopItems(self.items_BK.gather(1, order_BK).masked_fill(scores_BK == -math.inf, -1), scores_BK)


def _top_columns(scores_BC: Tensor, k: int) -> Tensor:
    """Columns of the k largest scores, ascending; of tied scores, those of the lower columns.

    They are in the k groups of neighbouring columns whose maxima the same rule chooses, since each of these groups has
    a column that comes before all columns of the other groups. So of most scores only the groups' maxima are computed.
    """
    n_columns = scores_BC.shape[1]
    # Near the square root of n_columns / k, where there are as many groups as columns in the chosen groups.
    group = 1 << (n_columns // k).bit_length() // 2
    if group <= 4:
        return _top_columns_of_few(scores_BC, k)
    whole = n_columns // group * group
    groups_BK = _top_columns(scores_BC[:, :whole].unflatten(1, (-1, group)).amax(2), k)
    candidates_BKC = (groups_BK * group)[:, :, None] + torch.arange(group, device=scores_BC.device)
    rest_BC = torch.arange(whole, n_columns, device=scores_BC.device).expand(len(scores_BC), -1)
    columns_BC = torch.cat([candidates_BKC.flatten(1), rest_BC], 1)
    return columns_BC.gather(1, _top_columns_of_few(scores_BC.gather(1, columns_BC), k))


def _top_columns_of_few(scores_BC: Tensor, k: int) -> Tensor:
    """The same, by looking at every score."""
    k = min(k, scores_BC.shape[1])
    values, columns = scores_BC.topk(min(k + 1, scores_BC.shape[1]), 1)
    columns_BK = columns[:, :k]
    # topk chooses freely among scores tied with the k-th: choose again, by column, in the rows where that matters.
    if values.shape[1] > k:
        tied_B = values[:, k - 1] == values[:, k]
        if tied_B.any():
            # Order-preserving integers: score in the high bits, column (reversed) in the low ones.
            bits = (scores_BC[tied_B] + 0.0).view(torch.int32).long()  # + 0.0 turns -0.0 into 0.0
            ordered = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
            column = torch.arange(scores_BC.shape[1], device=scores_BC.device)
            columns_BK[tied_B] = (ordered * 2**31 - column).topk(k, 1).indices
    return columns_BK.sort(1).values


def metric_names() -> list[str]:
    """Every metric of an evaluation, as it is called after `val/` or `test/`."""
    ranked = [f"{name}@{k}" for name in ("HR", "NDCG", "MRR", "coverage", "popularity") for k in KS]
    return ["loss", *ranked, *(f"{name}_unseen" for name in ranked)]


def best_is(name: str) -> Literal["min", "max"] | None:
    """Whether the least or the most of a metric is the best; None for mean popularity, which has neither, and unknown
    names."""
    if name not in metric_names() or name.startswith("popularity"):
        return None
    return "min" if name == "loss" else "max"


class RankMetrics(Metric):
    """HR, NDCG and MRR, item coverage and mean popularity at 1, 5, 10 and 50, from ranks and top-k lists.

    HR@k = [rank <= k]; NDCG@k = [rank <= k] / log2(1 + rank); MRR@k = [rank <= k] / rank; means over weighted rows.
    coverage@k = share of the catalogue that is in some list of k; popularity@k = mean training count of the listed.
    All states are sums, so the result depends neither on batch size nor on the number of ranks.
    """

    full_state_update = False
    item_counts_V: Tensor
    weight: Tensor
    hits_K: Tensor
    gains_K: Tensor
    reciprocals_K: Tensor
    listed_KV: Tensor
    popularity_K: Tensor
    slots_K: Tensor

    def __init__(self, item_counts_V: Tensor) -> None:
        super().__init__()
        n_ks, n_items = len(KS), item_counts_V.shape[0]
        self.register_buffer("item_counts_V", item_counts_V.double(), persistent=False)
        self.add_state("weight", torch.zeros((), dtype=torch.float64), "sum")
        for name in ("hits_K", "gains_K", "reciprocals_K", "popularity_K", "slots_K"):
            self.add_state(name, torch.zeros(n_ks, dtype=torch.float64), "sum")
        self.add_state("listed_KV", torch.zeros(n_ks, n_items, dtype=torch.int32), "sum")

    def update(self, rank_B: Tensor, top_BK: Tensor, weights_B: Tensor) -> None:
        """Add rows: exact ranks, lists of item indices (-1 in unused slots) and weights (0 for filler rows)."""
        weights_B = weights_B.double()
        rank_B = rank_B.double()
        self.weight += weights_B.sum()
        top_BK = top_BK[weights_B > 0]
        for index, k in enumerate(KS):
            hit_B = (rank_B <= k) * weights_B
            self.hits_K[index] += hit_B.sum()
            self.gains_K[index] += (hit_B / torch.log2(1 + rank_B)).sum()
            self.reciprocals_K[index] += (hit_B / rank_B).sum()
            listed = top_BK[:, :k]
            listed = listed[listed >= 0]
            self.listed_KV[index, listed] = 1
            self.popularity_K[index] += self.item_counts_V[listed].sum()
            self.slots_K[index] += listed.numel()

    def compute(self) -> dict[str, Tensor]:
        """The means, by name."""
        result = {}
        for index, k in enumerate(KS):
            result[f"HR@{k}"] = self.hits_K[index] / self.weight
            result[f"NDCG@{k}"] = self.gains_K[index] / self.weight
            result[f"MRR@{k}"] = self.reciprocals_K[index] / self.weight
            result[f"coverage@{k}"] = (self.listed_KV[index] > 0).double().mean()
            result[f"popularity@{k}"] = self.popularity_K[index] / self.slots_K[index].clamp(min=1)
        return result


class CrossEntropy(Metric):
    """Mean cross-entropy in nats per target inside the catalogue, and the number of targets outside it."""

    full_state_update = False
    loss_sum: Tensor
    inside: Tensor
    outside: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss_sum", "inside", "outside"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), "sum")

    def update(self, loss_B: Tensor, targets_B: Tensor, weights_B: Tensor) -> None:
        """Add rows; those with target -1 count as outside the catalogue and do not change the mean."""
        known_B = targets_B >= 0
        self.loss_sum += (torch.where(known_B, loss_B, 0.0).double() * weights_B).sum()
        self.inside += (known_B * weights_B).sum()
        self.outside += (~known_B * weights_B).sum()

    def compute(self) -> dict[str, Tensor]:
        """The mean and the count, by name."""
        return {"loss": self.loss_sum / self.inside, "targets_outside_catalogue": self.outside}


class Evaluation(nn.Module):
    """A scorer's whole evaluation: cross-entropy, rank metrics over every item (`NDCG@10`), and over the items the user
    has not seen (`NDCG@10_unseen`)."""

    def __init__(self, item_counts_V: Tensor) -> None:
        super().__init__()
        self.cross_entropy = CrossEntropy()
        self.every_item = RankMetrics(item_counts_V)
        self.unseen_items = RankMetrics(item_counts_V)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to the device of `fn` but keep the types: half precision of the network must not round sums."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse)

    def update(self, scores: Scores, targets_B: Tensor, weights_B: Tensor) -> None:
        """Add a batch of scores."""
        self.cross_entropy.update(scores.loss_B, targets_B, weights_B)
        self.every_item.update(scores.rank_B, scores.top_BK, weights_B)
        self.unseen_items.update(scores.rank_unseen_B, scores.top_unseen_BK, weights_B)

    def compute(self) -> dict[str, float]:
        """Every metric by name, reduced over the ranks."""
        figures = dict(self.cross_entropy.compute())
        figures |= self.every_item.compute()
        figures |= {f"{name}_unseen": value for name, value in self.unseen_items.compute().items()}
        return {name: float(value) for name, value in figures.items()}

    def reset(self) -> None:
        """Start again with empty sums."""
        for metric in (self.cross_entropy, self.every_item, self.unseen_items):
            metric.reset()
