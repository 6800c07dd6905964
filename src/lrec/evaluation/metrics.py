"""The metrics of an evaluation, from the ranks, losses and lists that `scoring.score` gives.

Shape suffixes: B rows, V catalogue, K list length (of a list), K cut-offs (of sums).
"""

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.distributed import ReduceOp
from torchmetrics import Metric

from lrec.ranking.scoring import Scores

KS = (1, 5, 10, 50)


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
    NDCG@k_se is the standard error of NDCG@k, rows being drawn.
    What is kept are sums, and a byte for each item, so the result depends neither on batch size nor on the number of
    processes.
    """

    full_state_update = False
    weight: Tensor
    sums_K6: Tensor
    first_V1: Tensor

    def __init__(self, item_counts_V: Tensor) -> None:
        """Empty sums, where the items' training interactions lie."""
        super().__init__(dist_sync_fn=_over_processes)
        self._counts_V = item_counts_V
        self.add_state("weight", torch.zeros((), dtype=torch.float64), "sum")
        # Of each k: hits, gains, squared gains, reciprocal ranks, training counts of the listed, listed.
        self.add_state("sums_K6", torch.zeros(len(KS), 6, dtype=torch.float64), "sum")
        # The first of KS whose lists have the item; len(KS): none has. A list of k begins with that of any smaller k.
        # One more element stands for unused slots.
        self.add_state("first_V1", torch.full((len(item_counts_V) + 1,), len(KS), dtype=torch.uint8), "min")
        self.to(item_counts_V.device)

    def update(self, rank_B: Tensor, top_BK: Tensor, weights_B: Tensor) -> None:
        """Add rows: exact ranks, lists of item indices (-1 in unused slots) and weights (0 for filler rows)."""
        weights_B = weights_B.double()
        rank_B = rank_B.double()
        self.weight += weights_B.sum()
        used_BK = (top_BK >= 0) & (weights_B > 0)[:, None]
        popularity_K = (self._counts_V[top_BK.clamp(min=0)].double() * used_BK).sum(0)  # by slot
        top_BK = top_BK.masked_fill(~used_BK, len(self._counts_V))
        slots_K = used_BK.double().sum(0)
        for index, (before, k) in enumerate(pairwise((0, *KS))):
            hit_B = (rank_B <= k) * weights_B
            gain_B = hit_B / torch.log2(1 + rank_B)
            listed_BK = top_BK[:, before:k]
            self.first_V1[listed_BK] = self.first_V1[listed_BK].clamp_(max=index)
            of_rows = hit_B.sum(), gain_B.sum(), (gain_B * gain_B).sum(), (hit_B / rank_B).sum()
            self.sums_K6[index] += torch.stack([*of_rows, popularity_K[:k].sum(), slots_K[:k].sum()])

    def compute(self) -> dict[str, Tensor]:
        """The means over the rows of all processes, by name."""
        result = {}
        for index, k in enumerate(KS):
            hits, gains, squared_gains, reciprocals, popularity, slots = self.sums_K6[index]
            result[f"HR@{k}"] = hits / self.weight
            result[f"NDCG@{k}"] = gains / self.weight
            result[f"MRR@{k}"] = reciprocals / self.weight
            covered = torch.count_nonzero(self.first_V1[:-1] <= index)
            result[f"coverage@{k}"] = covered.double() / len(self._counts_V)
            result[f"popularity@{k}"] = popularity / slots.clamp(min=1)
            result[f"NDCG@{k}_se"] = _standard_error(gains, squared_gains, self.weight)
        return result


class CrossEntropy(Metric):
    """Mean cross-entropy in nats per target inside the catalogue, its standard error, and the numbers of targets."""

    full_state_update = False
    sums_4: Tensor

    def __init__(self, device: torch.device) -> None:
        """Empty sums: of losses and their squares, of targets inside and outside the catalogue."""
        super().__init__(dist_sync_fn=_over_processes)
        self.add_state("sums_4", torch.zeros(4, dtype=torch.float64), "sum")
        self.to(device)

    def update(self, loss_B: Tensor, targets_B: Tensor, weights_B: Tensor) -> None:
        """Add rows; those with target -1 count as outside the catalogue and do not change the mean."""
        known_B, weights_B = targets_B >= 0, weights_B.double()
        loss_B = torch.where(known_B, loss_B, 0.0).double()
        of_rows_B4 = torch.stack([loss_B, loss_B * loss_B, known_B.double(), (~known_B).double()], 1)
        self.sums_4 += (of_rows_B4 * weights_B[:, None]).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """The mean over the rows of all processes, its standard error, and the numbers of targets, by name."""
        loss_sum, squares, inside, outside = self.sums_4
        return {
            "loss": loss_sum / inside,
            "loss_se": _standard_error(loss_sum, squares, inside),
            "targets": inside + outside,
            "targets_outside_catalogue": outside,
        }


def _over_processes(state: Tensor, group: Any = None) -> list[Tensor]:
    """The sum over all processes, or of bytes the least: torchmetrics would gather the states of all on each."""
    state = state.clone()
    distributed.all_reduce(state, ReduceOp.MIN if state.dtype == torch.uint8 else ReduceOp.SUM, group)
    return [state]


def _standard_error(total: Tensor, squares: Tensor, n: Tensor) -> Tensor:
    """Of the mean of n values with this sum and this sum of squares."""
    return (squares / n - (total / n) ** 2).clamp(min=0).sqrt() / n.sqrt()


class Evaluation:
    """A scorer's whole evaluation: cross-entropy, rank metrics over every item (`NDCG@10`), and over the items the user
    has not seen (`NDCG@10_unseen`)."""

    def __init__(self, item_counts_V: Tensor) -> None:
        """Nothing added yet; `item_counts_V`, the items' training interactions, lies where scores will lie."""
        self._cross_entropy = CrossEntropy(item_counts_V.device)
        self._every_item = RankMetrics(item_counts_V)
        self._unseen_items = RankMetrics(item_counts_V)

    def update(self, scores: Scores, targets_B: Tensor, weights_B: Tensor) -> None:
        """Add a batch of scores."""
        self._cross_entropy.update(scores.loss_B, targets_B, weights_B)
        self._every_item.update(scores.rank_B, scores.top_BK, weights_B)
        self._unseen_items.update(scores.rank_unseen_B, scores.top_unseen_BK, weights_B)

    def compute(self) -> dict[str, float]:
        """Every metric by name, over the rows of all processes, which call this together."""
        figures = dict(self._cross_entropy.compute())
        figures |= self._every_item.compute()
        figures |= {_of_unseen(name): value for name, value in self._unseen_items.compute().items()}
        return {name: float(value) for name, value in figures.items()}


def _of_unseen(name: str) -> str:
    """What a figure of all items is called when it is one of unseen items."""
    figure, error, _ = name.partition("_se")
    return f"{figure}_unseen{error}"
