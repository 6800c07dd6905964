"""An evaluation adds up the states of its metrics over batches and processes, for all targets and for parts of them.

Shape suffixes: B targets, V catalogue, K cut-offs, U users.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lrec.data.batching.eval_batches import EvalBatch
from lrec.evaluation.metrics import BY_USER, METRICS, WARM, Found, Mean, Metric, with_unseen
from lrec.evaluation.shared_scoring import reduced
from lrec.ranking.scoring import Scores


class Evaluation:
    """A scorer's whole evaluation: cross-entropy, and rank metrics over all items (`NDCG@10`) and over the items that
    the user has not seen (`NDCG@10_unseen`).

    Args:
        counts_V: Training interactions of each item, on the device of the scores.
        sets: Whether targets are sets.
        warm: Whether there are also separate figures for the targets inside the catalogue.
        users_U: Store indices of the users, ascending, for means over users too; None for no such means.
    """

    def __init__(
        self,
        counts_V: Tensor,
        metrics: Sequence[Metric] = METRICS,
        sets: bool = False,
        warm: bool = False,
        users_U: Tensor | None = None,
    ) -> None:
        self._counts_V, self._of_sets, self._users_U = counts_V, sets, users_U
        # Number of targets, of targets outside the catalogue, and of requests (a set is one request).
        self._targets_3 = torch.zeros(3, dtype=torch.float64, device=counts_V.device)
        there = [(suffix, each) for suffix, each in with_unseen(metrics) if sets or not each.of_sets]
        in_parts = [(suffix, each) for suffix, each in there if isinstance(each, Mean) and each.in_parts]
        if warm:
            there += (in_warm := [(f"{suffix}{WARM}", each) for suffix, each in in_parts])
            in_parts += in_warm
        self._states = [(each, suffix, each.empty(counts_V)) for suffix, each in there]
        # For each user: the weighted sum of the values at each cut-off, and the sum of the weights.
        self._by_user = [
            (each, suffix, self._targets_3.new_zeros(len(each.cutoffs) + 1, len(users_U)))
            for suffix, each in in_parts
            if users_U is not None
        ]

    @property
    def names(self) -> list[str]:
        names = [f"{label}{suffix}" for each, suffix, _ in self._states for label in each.labels]
        return names + [f"{label}{suffix}{BY_USER}" for each, suffix, _ in self._by_user for label in each.labels]

    def update(self, scores: Scores, batch: EvalBatch) -> None:
        """Add the targets of a batch; targets of weight 0 do not count."""
        targets_B, weights_B, n_true_B = batch.targets_M, batch.weights_M, batch.n_true_M
        of_all = Found(scores.loss_B, scores.rank_B, scores.top_BK, targets_B, self._counts_V)
        of_unseen = of_all._replace(rank_B=scores.rank_unseen_B, top_BK=scores.top_unseen_BK)
        found, known_B, n_B = {"": of_all, "_unseen": of_unseen}, (targets_B >= 0).long(), torch.ones_like(targets_B)
        if batch.true_targets_P is not None and batch.true_items_P is not None and n_true_B is not None:
            pairs = batch.true_targets_P, batch.true_items_P
            found = {suffix: each.with_sets(*pairs, n_true_B) for suffix, each in found.items()}
            n_B, known_B = n_true_B, torch.zeros_like(n_true_B).index_add_(0, pairs[0], torch.ones_like(pairs[0]))
        weights = dict.fromkeys(found, weights_B)
        for suffix, each in [*found.items()]:
            found[f"{suffix}{WARM}"] = each if n_true_B is None else each._replace(n_true_B=known_B)
            weights[f"{suffix}{WARM}"] = weights_B * (known_B > 0)
        counted = (n_B, n_B - known_B, torch.ones_like(n_B))
        self._targets_3 += torch.stack([(weights_B * each_B).sum() for each_B in counted])
        for metric, suffix, state in self._states:
            metric.add(state, found[suffix], weights[suffix])
        if self._users_U is None:
            return
        place_B = torch.searchsorted(self._users_U, batch.users_M)
        for metric, suffix, state_K1U in self._by_user:
            counts_B = weights[suffix].double()
            values = [metric.of_targets(found[suffix], k).double() * counts_B for k in metric.cutoffs]
            state_K1U.index_add_(1, place_B, torch.stack([*values, counts_B]))

    def compute(self) -> dict[str, float]:
        """Every metric by name, over the rows of all processes; all processes must call this together."""
        targets, outside, requests = reduced(self._targets_3, "sum").tolist()
        figures = {"targets": targets, "targets_outside_catalogue": outside}
        if self._of_sets:
            figures["targets_sets"] = requests
        for metric, suffix, state in self._states:
            state = reduced(state, metric.state)
            labels = [f"{label}{suffix}" for label in metric.labels]
            figures |= zip(labels, metric.values_K(state).tolist(), strict=True)
            if isinstance(metric, Mean) and metric.with_error:
                figures |= zip((f"{label}_se" for label in labels), metric.errors_K(state).tolist(), strict=True)
        for metric, suffix, state_K1U in self._by_user:
            state_K1U = reduced(state_K1U, "sum")
            mean_KU = (state_K1U[:-1] / state_K1U[-1])[:, state_K1U[-1] > 0]
            errors_K = mean_KU.std(1, correction=0) / mean_KU.shape[1] ** 0.5
            for label, mean, error in zip(metric.labels, mean_KU.mean(1).tolist(), errors_K.tolist(), strict=True):
                figures |= {f"{label}{suffix}{BY_USER}": mean, f"{label}{suffix}{BY_USER}_se": error}
        return figures
