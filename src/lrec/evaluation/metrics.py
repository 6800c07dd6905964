"""The metrics of an evaluation, one class each, computed from the ranks, losses and lists that `scoring.score` gives. A
metric of your own is also a class, named by `--model.metrics`; most inherit from `Mean`.

Shape suffixes: B targets, V catalogue, K list length (of a list), K cut-offs (of values), P pairs of a target and an
item of its set, U users.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lrec.errors import UserError
from lrec.options.class_paths import class_path
from lrec.options.objects import from_config

KS = (1, 5, 10, 50)
# Suffixes of metric names: for figures of the targets inside the catalogue only, and for means over users.
WARM, BY_USER = "_warm", "_by_user"
Best = Literal["min", "max"]


class Found(NamedTuple):
    """What a scorer finds for some targets, among all items or among the items that the user has not seen.

    Attributes:
        loss_B: Cross-entropy of each target, in nats; nan for a target outside the catalogue.
        rank_B: Exact rank of each target, from 1; inf for a miss.
        top_BK: The best items, catalogue indices, best first; -1 in unused slots.
        targets_B: Catalogue index of each target; -1 for a target outside the catalogue.
        counts_V: Training interactions of each item.
        true_BK: If targets are sets: whether each of the best items is in the row's set. The loss, rank and target are
            then those of the set's first item. None if a target is one item.
        n_true_B: Number of items in each set.
    """

    loss_B: Tensor
    rank_B: Tensor
    top_BK: Tensor
    targets_B: Tensor
    counts_V: Tensor
    true_BK: Tensor | None = None
    n_true_B: Tensor | None = None

    def with_sets(self, targets_P: Tensor, items_P: Tensor, n_true_B: Tensor) -> "Found":
        """The same with the sets: pairs of a target and an item of its set, ascending, and the size of each set."""
        n_items, rows_B1 = len(self.counts_V), torch.arange(len(self.top_BK), device=self.top_BK.device)[:, None]
        keys_P, keys_BK = targets_P * n_items + items_P, rows_B1 * n_items + self.top_BK
        at_BK = torch.searchsorted(keys_P, keys_BK)
        true_BK = (F.pad(keys_P, (0, 1), value=-1)[at_BK] == keys_BK) & (self.top_BK >= 0)
        return self._replace(true_BK=true_BK, n_true_B=n_true_B)

    def true_at(self, k: int) -> tuple[Tensor, Tensor]:
        """For sets, float64: 1 for each of the best k items that is true, else 0 (B, k or fewer in a shorter list); and
        the places in the list, from 1. If a target is one item: 1 if its rank is at most k, else 0; and its rank."""
        if self.true_BK is None:
            rank_B1 = self.rank_B.double()[:, None]
            return (rank_B1 <= k).double(), rank_B1
        true_BK = self.true_BK[:, :k].double()
        return true_BK, torch.arange(1, true_BK.shape[1] + 1, dtype=torch.float64, device=true_BK.device)

    def most_true(self, k: int | None = None) -> Tensor:
        """How many true items the best possible list of k, or of any length, has (B); at least 1."""
        return torch.ones_like(self.targets_B) if self.n_true_B is None else self.n_true_B.clamp(1, k)


@dataclass(frozen=True)
class Metric(ABC):
    """A metric of an evaluation. Its state adds up over batches and processes, so that the metric depends on neither.

    Attributes:
        name: Name of the metric, before @k.
        best: Whether high or low values are good; None: neither, so no checkpoint can be chosen by the metric.
        at_k: Whether there is a value for each k of `KS`.
        of_lists: Whether the metric reads the listed items.
        ranks: Whether there are two values: among all items, and among items that the user has not seen.
        of_sets: Whether the metric is only for sets: all items of a user in a window of time.
        state: How the states of processes become one: by their sum, or by the minimum of each element.
    """

    name: ClassVar[str]
    best: ClassVar[Best | None] = "max"
    at_k: ClassVar[bool] = True
    of_lists: ClassVar[bool] = False
    ranks: ClassVar[bool] = True
    of_sets: ClassVar[bool] = False
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
        """Add targets to the state, in place; targets of weight 0 only fill up a batch."""

    @abstractmethod
    def values_K(self, state: Tensor) -> Tensor:
        """The value at each cut-off k."""


class Mean(Metric):
    """A mean over targets.

    Attributes:
        with_error: Whether lrec also reports the standard error over targets.
        in_parts: Whether there are also a value for targets inside the catalogue (`_warm`, if cold_targets is apart)
            and a mean over users of the mean over each user's targets (`_by_user`, if users have several targets).
    """

    with_error: ClassVar[bool] = False
    in_parts: ClassVar[bool] = False

    @abstractmethod
    def of_targets(self, found: Found, k: int) -> Tensor:
        """The value of each target (B)."""

    def shares(self, found: Found, k: int) -> Tensor:
        """Weight of each target in the mean (B); by default, all weights are equal."""
        return torch.ones_like(found.rank_B)

    def empty(self, counts_V: Tensor) -> Tensor:
        """For each cut-off: the weighted sums of the values and of their squares, and the sum of the weights."""
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
        """Targets outside the catalogue do not count."""
        return (found.targets_B >= 0).double()


class HitRate(Mean):
    """HR@k = [rank <= k]; for a set, whether one of its items is among the best k."""

    name = "HR"
    in_parts = True

    def of_targets(self, found: Found, k: int) -> Tensor:
        return found.true_at(k)[0].amax(1)


class NDCG(Mean):
    """NDCG@k = [rank <= k] / log2(1 + rank); for a set, the sum of 1 / log2(1 + place) over its items among the best k,
    divided by the same sum for the best possible list."""

    name = "NDCG"
    with_error = True
    in_parts = True

    def of_targets(self, found: Found, k: int) -> Tensor:
        true_BK, places_K = found.true_at(k)
        return (true_BK / torch.log2(1 + places_K)).sum(1) / _ideal(true_BK.device)[found.most_true(k) - 1]


@cache
def _ideal(device: torch.device) -> Tensor:
    """DCG of the best possible list of a set, by its number of true items (from 1)."""
    gains_K = 1 / torch.log2(torch.arange(2, KS[-1] + 2, device="cpu").double())
    return gains_K.cumsum(0).to(device)  # on a CPU, because a GPU adds floats in any order


class MRR(Mean):
    """MRR@k = [rank <= k] / rank; for a set, 1 / place of its first item among the best k."""

    name = "MRR"

    def of_targets(self, found: Found, k: int) -> Tensor:
        true_BK, places_K = found.true_at(k)
        return (true_BK / places_K).amax(1)


class Coverage(Metric):
    """coverage@k = share of the catalogue that is in at least one list of k."""

    name = "coverage"
    of_lists = True
    state = "min"

    def empty(self, counts_V: Tensor) -> Tensor:
        """A byte for each item, the place in `KS` of the first k whose lists have it; and a byte for unused slots."""
        return counts_V.new_full((len(counts_V) + 1,), len(KS), dtype=torch.uint8)

    def add(self, state: Tensor, found: Found, weights_B: Tensor) -> None:
        """Add the listed items; a list of k begins with the list of any smaller k."""
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


class Recall(Mean):
    """recall@k of sets = true items among the best k / items of the set."""

    name = "recall"
    of_sets = True
    with_error = True
    in_parts = True

    def of_targets(self, found: Found, k: int) -> Tensor:
        return found.true_at(k)[0].sum(1) / found.most_true()


class MicroRecall(Recall):
    """micro_recall@k of sets = true items among the best k / items of the sets, both summed over users."""

    name = "micro_recall"
    with_error = False

    def shares(self, found: Found, k: int) -> Tensor:
        return found.most_true()


class Precision(Mean):
    """precision@k of sets = true items among the best k / k."""

    name = "precision"
    of_sets = True
    in_parts = True

    def of_targets(self, found: Found, k: int) -> Tensor:
        return found.true_at(k)[0].sum(1) / k


class MAP(Mean):
    """MAP@k of sets = mean over users of the sum of precision@i over the places i <= k of true items, divided by
    min(k, items of the set)."""

    name = "MAP"
    of_sets = True
    with_error = True
    in_parts = True

    def of_targets(self, found: Found, k: int) -> Tensor:
        true_BK, places_K = found.true_at(k)
        return (true_BK * true_BK.long().cumsum(1) / places_K).sum(1) / found.most_true(k)


METRICS: tuple[Metric, ...] = (
    *(CrossEntropy(), HitRate(), NDCG(), MRR(), Coverage(), MeanPopularity()),
    *(Recall(), MicroRecall(), Precision(), MAP()),
)


def with_own(own: list[Metric] | Metric | None) -> tuple[Metric, ...]:
    """lrec's metrics and the user's; UserError if one has no name, or the name of another."""
    found = list(METRICS)
    for metric in [own] if isinstance(own, Metric) else own or []:
        if not hasattr(metric, "name"):
            raise UserError(f"--model.metrics {class_path(type(metric))}: give the class a name, the part before @k")
        if metric.name in (other.name for other in found):
            raise UserError(f"--model.metrics {class_path(type(metric))}: there is a metric {metric.name} already")
        found.append(metric)
    return tuple(found)


def metrics_of(named: Sequence[dict[str, Any]]) -> tuple[Metric, ...]:
    """lrec's metrics and the metrics that --model.metrics names, given as in a configuration."""
    return with_own([from_config({"metric": each}, "metric", Metric) for each in named])  # type: ignore[type-abstract]


def with_unseen(metrics: Sequence[Metric]) -> list[tuple[str, Metric]]:
    """The metrics over all items, and the rank metrics over unseen items, each with the suffix of its name."""
    return [(suffix, each) for suffix in ("", "_unseen") for each in metrics if each.ranks or not suffix]


def metric_names(metrics: Sequence[Metric] = METRICS) -> list[str]:
    """Every metric of an evaluation, by its name without `val/` or `test/`."""
    return [f"{label}{suffix}" for suffix, each in with_unseen(metrics) for label in each.labels]


def best_is(name: str, metrics: Sequence[Metric] = METRICS) -> Best | None:
    """Whether low ("min") or high ("max") values of a metric are good; None if neither, or if the name is unknown."""
    whole = name.removesuffix(BY_USER).removesuffix(WARM)
    for each in metrics:
        if (whole if isinstance(each, Mean) and each.in_parts else name) in metric_names([each]):
            return each.best
    return None
