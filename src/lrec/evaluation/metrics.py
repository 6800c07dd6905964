"""The metrics of an evaluation, a class each, from the ranks, losses and lists that `scoring.score` gives.

A metric of your own is a class too, named by `--model.metrics`: most inherit from `Mean`.

Shape suffixes: B targets, V catalogue, K list length (of a list), K cut-offs (of values).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lrec.errors import UserError
from lrec.evaluation.shared_scoring import reduced
from lrec.options.class_paths import class_path
from lrec.options.objects import from_config
from lrec.ranking.scoring import Scores

KS = (1, 5, 10, 50)
_SUFFIXES = ("", "_unseen")
Best = Literal["min", "max"]


class Found(NamedTuple):
    """What a scorer finds for some targets, among all items or among those that the user has not seen.

    Attributes:
        loss_B: Cross-entropy of each target, in nats; nan outside the catalogue.
        rank_B: Exact rank of each target, from 1; inf for a miss.
        top_BK: The best items, catalogue indices, best first; -1 in unused slots.
        targets_B: The targets, catalogue indices; -1 outside the catalogue.
        counts_V: Training interactions of each item.
    """

    loss_B: Tensor
    rank_B: Tensor
    top_BK: Tensor
    targets_B: Tensor
    counts_V: Tensor


@dataclass(frozen=True)
class Metric(ABC):
    """A figure of an evaluation, from a state that adds up over batches and processes, so that it depends on neither.

    Attributes:
        name: What the figure is called, before @k.
        best: Which end of it is the best; None: neither, so that it cannot be monitored.
        at_k: Whether there is one for each k of `KS`.
        of_lists: Whether it looks at the items listed.
        ranks: Whether there are two, of all items and of those that the user has not seen.
        state: How the states of processes become one: by their sum, or the least of each element.
    """

    name: ClassVar[str]
    best: ClassVar[Best | None] = "max"
    at_k: ClassVar[bool] = True
    of_lists: ClassVar[bool] = False
    ranks: ClassVar[bool] = True
    state: ClassVar[Literal["sum", "min"]] = "sum"

    @property
    def labels(self) -> list[str]:
        return [f"{self.name}@{k}" for k in self.cutoffs] if self.at_k else [self.name]

    @property
    def cutoffs(self) -> tuple[int, ...]:
        return KS if self.at_k else KS[-1:]

    @abstractmethod
    def empty(self, counts_V: Tensor) -> Tensor:
        """The state before the first target, on the device of these counts."""

    @abstractmethod
    def add(self, state: Tensor, found: Found, weights_B: Tensor) -> None:
        """Add targets to the state, in place; those of weight 0 fill up a batch."""

    @abstractmethod
    def values_K(self, state: Tensor) -> Tensor:
        """The figure at each cut-off."""


class Mean(Metric):
    """A mean over targets.

    Attributes:
        with_error: Whether its standard error is a figure too, targets being drawn.
    """

    with_error: ClassVar[bool] = False

    @abstractmethod
    def of_targets(self, found: Found, k: int) -> Tensor:
        """The value of each target (B)."""

    def shares(self, found: Found, k: int) -> Tensor:
        """How much each target counts in the mean (B): as much as any other."""
        return torch.ones_like(found.rank_B)

    def empty(self, counts_V: Tensor) -> Tensor:
        """Of each cut-off the sums of values, of their squares, and of how much they count."""
        return torch.zeros(len(self.cutoffs), 3, dtype=torch.float64, device=counts_V.device)

    def add(self, state: Tensor, found: Found, weights_B: Tensor) -> None:
        for sums_3, k in zip(state, self.cutoffs, strict=True):
            value_B = self.of_targets(found, k).double()
            share_B = weights_B.double() * self.shares(found, k)
            sums_3 += torch.stack([(share_B * value_B).sum(), (share_B * value_B**2).sum(), share_B.sum()])

    def values_K(self, state: Tensor) -> Tensor:
        return state[:, 0] / state[:, 2]

    def errors_K(self, state: Tensor) -> Tensor:
        sum_K, squares_K, n_K = state.T
        return (squares_K / n_K - (sum_K / n_K) ** 2).clamp(min=0).sqrt() / n_K.sqrt()


class CrossEntropy(Mean):
    """Mean cross-entropy in nats per target inside the catalogue."""

    name = "loss"
    best = "min"
    at_k = False
    ranks = False
    with_error = True

    def of_targets(self, found: Found, k: int) -> Tensor:
        return found.loss_B.where(found.targets_B >= 0, 0.0)

    def shares(self, found: Found, k: int) -> Tensor:
        """Those outside the catalogue do not count."""
        return (found.targets_B >= 0).double()


class HitRate(Mean):
    """HR@k = [rank <= k]."""

    name = "HR"

    def of_targets(self, found: Found, k: int) -> Tensor:
        return (found.rank_B <= k).double()


class NDCG(Mean):
    """NDCG@k = [rank <= k] / log2(1 + rank)."""

    name = "NDCG"
    with_error = True

    def of_targets(self, found: Found, k: int) -> Tensor:
        rank_B = found.rank_B.double()
        return (rank_B <= k) / torch.log2(1 + rank_B)


class MRR(Mean):
    """MRR@k = [rank <= k] / rank."""

    name = "MRR"

    def of_targets(self, found: Found, k: int) -> Tensor:
        rank_B = found.rank_B.double()
        return (rank_B <= k) / rank_B


class Coverage(Metric):
    """coverage@k = share of the catalogue that is in some list of k."""

    name = "coverage"
    of_lists = True
    state = "min"

    def empty(self, counts_V: Tensor) -> Tensor:
        """The first of `KS` whose lists have the item, a byte for each, and one more for unused slots."""
        return counts_V.new_full((len(counts_V) + 1,), len(KS), dtype=torch.uint8)

    def add(self, state: Tensor, found: Found, weights_B: Tensor) -> None:
        """Add what is listed; a list of k begins with that of any smaller k."""
        unused_BK = (found.top_BK < 0) | (weights_B <= 0)[:, None]
        top_BK = found.top_BK.masked_fill(unused_BK, len(found.counts_V))
        for place, (before, k) in enumerate(pairwise((0, *KS))):
            listed_BK = top_BK[:, before:k]
            state[listed_BK] = state[listed_BK].clamp_(max=place)

    def values_K(self, state: Tensor) -> Tensor:
        listed_V = state[:-1]
        return torch.stack([(listed_V <= place).double().mean() for place in range(len(KS))])


class MeanPopularity(Mean):
    """popularity@k = mean training count of the listed items."""

    name = "popularity"
    best = None
    of_lists = True

    def of_targets(self, found: Found, k: int) -> Tensor:
        top_BK = found.top_BK[:, :k]
        counts_BK = found.counts_V[top_BK.clamp(min=0)].masked_fill(top_BK < 0, 0)
        return counts_BK.sum(1).double() / self.shares(found, k).clamp(min=1)

    def shares(self, found: Found, k: int) -> Tensor:
        return (found.top_BK[:, :k] >= 0).sum(1).double()


METRICS: tuple[Metric, ...] = (CrossEntropy(), HitRate(), NDCG(), MRR(), Coverage(), MeanPopularity())


def with_own(own: list[Metric] | Metric | None) -> tuple[Metric, ...]:
    """lrec's metrics and the user's; UserError where two have the same name."""
    found = list(METRICS)
    for metric in [own] if isinstance(own, Metric) else own or []:
        if metric.name in (other.name for other in found):
            raise UserError(f"--model.metrics {class_path(type(metric))}: there is a metric {metric.name} already")
        found.append(metric)
    return tuple(found)


def metrics_of(named: Sequence[dict[str, Any]]) -> tuple[Metric, ...]:
    """lrec's metrics and those that --model.metrics names, as configurations have them."""
    return with_own([from_config({"metric": each}, "metric", Metric) for each in named])  # type: ignore[type-abstract]


def suffixes(metric: Metric) -> tuple[str, ...]:
    """What stands behind the names of its figures: those of all items, and those of unseen ones."""
    return _SUFFIXES if metric.ranks else _SUFFIXES[:1]


def metric_names(metrics: Sequence[Metric] = METRICS) -> list[str]:
    """Every metric of an evaluation, as it is called after `val/` or `test/`."""
    there = [(suffix, each) for suffix in _SUFFIXES for each in metrics if suffix in suffixes(each)]
    return [f"{label}{suffix}" for suffix, each in there for label in each.labels]


def best_is(name: str, metrics: Sequence[Metric] = METRICS) -> Best | None:
    """Which end of a metric is the best; None where neither is, and of unknown names."""
    return next((each.best for each in metrics if name in metric_names([each])), None)


class Evaluation:
    """A scorer's whole evaluation: cross-entropy, rank metrics over every item (`NDCG@10`), and over the items the user
    has not seen (`NDCG@10_unseen`). `counts_V`, the items' training interactions, lies where scores will lie."""

    def __init__(self, counts_V: Tensor, metrics: Sequence[Metric] = METRICS) -> None:
        self._counts_V = counts_V
        self._targets_2 = torch.zeros(2, dtype=torch.float64, device=counts_V.device)  # all, and outside the catalogue
        self._states = [
            (each, suffix, each.empty(counts_V)) for suffix in _SUFFIXES for each in metrics if suffix in suffixes(each)
        ]

    def update(self, scores: Scores, targets_B: Tensor, weights_B: Tensor) -> None:
        of_all = Found(scores.loss_B, scores.rank_B, scores.top_BK, targets_B, self._counts_V)
        of_unseen = of_all._replace(rank_B=scores.rank_unseen_B, top_BK=scores.top_unseen_BK)
        self._targets_2 += torch.stack([weights_B.sum(), (weights_B * (targets_B < 0)).sum()])
        for metric, suffix, state in self._states:
            metric.add(state, of_unseen if suffix else of_all, weights_B)

    def compute(self) -> dict[str, float]:
        """Every metric by name, over the rows of all processes, which call this together."""
        targets, outside = reduced(self._targets_2, "sum").tolist()
        figures = {"targets": targets, "targets_outside_catalogue": outside}
        for metric, suffix, state in self._states:
            state = reduced(state, metric.state)
            labels = [f"{label}{suffix}" for label in metric.labels]
            figures |= zip(labels, metric.values_K(state).tolist(), strict=True)
            if isinstance(metric, Mean) and metric.with_error:
                figures |= zip((f"{label}_se" for label in labels), metric.errors_K(state).tolist(), strict=True)
        return figures
