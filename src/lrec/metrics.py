"""The metrics of an evaluation, from the ranks, losses and lists that `scoring.score` gives.

Shape suffixes: B rows, V catalogue, K list length (of a list), K cut-offs (of a state).
"""

from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lrec.scoring import Scores

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
    All states are sums, so the result depends neither on batch size nor on the number of ranks.
    """

    full_state_update = False
    item_counts_V: Tensor
    weight: Tensor
    hits_K: Tensor
    gains_K: Tensor
    squared_gains_K: Tensor
    reciprocals_K: Tensor
    listed_KV: Tensor
    popularity_K: Tensor
    slots_K: Tensor

    def __init__(self, item_counts_V: Tensor) -> None:
        super().__init__()
        n_ks, n_items = len(KS), item_counts_V.shape[0]
        self.register_buffer("item_counts_V", item_counts_V.double(), persistent=False)
        self.add_state("weight", torch.zeros((), dtype=torch.float64), "sum")
        for name in ("hits_K", "gains_K", "squared_gains_K", "reciprocals_K", "popularity_K", "slots_K"):
            self.add_state(name, torch.zeros(n_ks, dtype=torch.float64), "sum")
        self.add_state("listed_KV", torch.zeros(n_ks, n_items, dtype=torch.int32), "sum")

    def update(self, rank_B: Tensor, top_BK: Tensor, weights_B: Tensor) -> None:
        """Add rows: exact ranks, lists of item indices (-1 in unused slots) and weights (0 for filler rows)."""
        weights_B = weights_B.double()
        rank_B = rank_B.double()
        self.weight += weights_B.sum()
        # An unused slot is never before a used one: what is put in its place is listed in any case.
        top_BK = top_BK[(weights_B > 0) & (top_BK[:, 0] >= 0)]
        used_BK = top_BK >= 0
        filled_BK = torch.where(used_BK, top_BK, top_BK[:, :1])
        popularity_K = (self.item_counts_V[filled_BK] * used_BK).sum(0)  # by slot
        slots_K = used_BK.sum(0)
        for index, k in enumerate(KS):
            hit_B = (rank_B <= k) * weights_B
            self.hits_K[index] += hit_B.sum()
            gain_B = hit_B / torch.log2(1 + rank_B)
            self.gains_K[index] += gain_B.sum()
            self.squared_gains_K[index] += (gain_B * gain_B).sum()
            self.reciprocals_K[index] += (hit_B / rank_B).sum()
            self.listed_KV[index, filled_BK[:, :k]] = 1
            self.popularity_K[index] += popularity_K[:k].sum()
            self.slots_K[index] += slots_K[:k].sum()

    def compute(self) -> dict[str, Tensor]:
        """The means, by name."""
        result = {}
        for index, k in enumerate(KS):
            result[f"HR@{k}"] = self.hits_K[index] / self.weight
            result[f"NDCG@{k}"] = self.gains_K[index] / self.weight
            result[f"MRR@{k}"] = self.reciprocals_K[index] / self.weight
            result[f"coverage@{k}"] = (self.listed_KV[index] > 0).double().mean()
            result[f"popularity@{k}"] = self.popularity_K[index] / self.slots_K[index].clamp(min=1)
            result[f"NDCG@{k}_se"] = _standard_error(self.gains_K[index], self.squared_gains_K[index], self.weight)
        return result


class CrossEntropy(Metric):
    """Mean cross-entropy in nats per target inside the catalogue, its standard error, and the numbers of targets."""

    full_state_update = False
    loss_sum: Tensor
    squares: Tensor
    inside: Tensor
    outside: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss_sum", "squares", "inside", "outside"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), "sum")

    def update(self, loss_B: Tensor, targets_B: Tensor, weights_B: Tensor) -> None:
        """Add rows; those with target -1 count as outside the catalogue and do not change the mean."""
        known_B = targets_B >= 0
        loss_B = torch.where(known_B, loss_B, 0.0).double()
        self.loss_sum += (loss_B * weights_B).sum()
        self.squares += (loss_B * loss_B * weights_B).sum()
        self.inside += (known_B * weights_B).sum()
        self.outside += (~known_B * weights_B).sum()

    def compute(self) -> dict[str, Tensor]:
        """The mean, its standard error, and the numbers of targets, by name."""
        return {
            "loss": self.loss_sum / self.inside,
            "loss_se": _standard_error(self.loss_sum, self.squares, self.inside),
            "targets": self.inside + self.outside,
            "targets_outside_catalogue": self.outside,
        }


def _standard_error(total: Tensor, squares: Tensor, n: Tensor) -> Tensor:
    """Of the mean of n values with this sum and this sum of squares."""
    return (squares / n - (total / n) ** 2).clamp(min=0).sqrt() / n.sqrt()


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
        figures |= {_of_unseen(name): value for name, value in self.unseen_items.compute().items()}
        return {name: float(value) for name, value in figures.items()}

    def reset(self) -> None:
        """Start again with empty sums."""
        for metric in (self.cross_entropy, self.every_item, self.unseen_items):
            metric.reset()


def _of_unseen(name: str) -> str:
    """What a figure of all items is called when it is one of unseen items."""
    figure, error, _ = name.partition("_se")
    return f"{figure}_unseen{error}"
