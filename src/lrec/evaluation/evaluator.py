"""The model and the baselines on the targets of a stage (val or test): figures, table, verdict. Shape suffixes: B
targets, V catalogue, K cut-offs, U users."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrec.common import cpu_threads
from lrec.data.batching.eval_batches import EvalBatch
from lrec.data.datamodule import SequenceDataModule
from lrec.evaluation.baselines import BASELINES, Baselines
from lrec.evaluation.metrics import BY_USER, KS, METRICS, WARM, Found, Mean, Metric, best_is, with_unseen
from lrec.evaluation.shared_scoring import reduced
from lrec.model.sharded_table import Table
from lrec.model.transformer import Result, Transformer
from lrec.ranking.scoring import Scores, score


class Evaluation:
    """A scorer's evaluation: cross-entropy, and rank metrics over all items (NDCG@10) and unseen ones (NDCG@10_unseen).

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


class Evaluator:
    """The evaluations of a model on one data set, one after the other.

    Every evaluation includes popularity; `lrec test` and `lrec validate` include the other baselines too. Baselines are
    scored only in the first whole evaluation of a stage, until `forget_baselines`. `figures` has those of each stage's
    last evaluation: the model's under `stage`, a baseline's under `stage/baseline`. `monitors_users` is whether a
    mean over users is monitored: then validation has these means even if each user has one target.
    """

    def __init__(self, metrics: Sequence[Metric] = METRICS) -> None:
        self.figures: dict[str, dict[str, float]] = {}
        self.monitors_users = False
        self._metrics = metrics
        self._baselines: Baselines | None = None
        self._under_way: dict[str, Evaluation] = {}

    def forget_baselines(self, stage: str) -> None:
        """Score the baselines of a stage again: its next evaluation may have other data or other users."""
        self.figures = {name: row for name, row in self.figures.items() if not name.startswith(f"{stage}/")}

    def begin(self, stage: str, data: SequenceDataModule, counts_V: Tensor, fitting: bool = False) -> None:
        """Prepare for the first batch. `counts_V` is the training interactions of each item, on the device of the
        scores. During training (`fitting`), popularity is the only baseline."""
        if self._baselines is None or self._baselines.split is not data.cuts:
            self._baselines = Baselines(data.cuts, counts_V.device, data.recent_popularity)
        beside = [name for name in self._baselines.names if name == "popularity" or not fitting]
        anew = [name for name in beside if f"{stage}/{name}" not in self.figures]
        scorers = ["model", *(anew if fitting else self._baselines.with_room(anew))]
        users_U = None
        if self._tells_users(stage, data):
            users_U = torch.from_numpy(np.unique(data.evaluated(stage)[0].users_T)).to(counts_V.device)
        self._under_way = {scorer: self._evaluation(stage, data, counts_V, users_U) for scorer in scorers}

    def names(self, stage: str, data: SequenceDataModule) -> list[str]:
        """Names of the metrics of an evaluation of these data."""
        some_user = torch.zeros(1) if self._tells_users(stage, data) else None
        return self._evaluation(stage, data, torch.ones(1), some_user).names

    def _tells_users(self, stage: str, data: SequenceDataModule) -> bool:
        """Whether there are means over users: targets are evaluated one by one, and a user may have several."""
        number_U = data.cuts.val_targets_U if stage == "val" else data.cuts.test_targets_U
        several = number_U.max(initial=0) > 1 or (stage == "val" and self.monitors_users)
        return not data.has_sets(stage) and bool(several)

    def _evaluation(self, stage: str, data: SequenceDataModule, counts_V: Tensor, users_U: Tensor | None) -> Evaluation:
        return Evaluation(counts_V, self._metrics, data.has_sets(stage), data.cold_targets == "apart", users_U)

    def add(self, batch: EvalBatch, scores: Scores) -> None:
        assert self._baselines is not None
        baselines = self._baselines

        def add_scores_of(scorer: str) -> None:
            found = scores if scorer == "model" else baselines.score(scorer, batch)
            self._under_way[scorer].update(found, batch)

        for_each = cpu_threads.mapped if cpu_threads.is_cpu(batch.targets_M.device) else map
        list(for_each(add_scores_of, [*self._under_way][::-1]))  # the last baseline takes longest

    def end(self, stage: str, whole: bool) -> dict[str, float]:
        """After the last batch: all figures of the stage by full name. If `whole`, the baselines' figures are kept."""
        computed = {scorer: evaluation.compute() for scorer, evaluation in self._under_way.items()}
        self._under_way = {}
        self.figures[stage] = computed.pop("model")
        if whole:
            self.figures |= {f"{stage}/{name}": figures for name, figures in computed.items()}
        named = {f"{stage}/{name}": value for name, value in self.figures[stage].items()}
        for baseline in BASELINES:
            figures = self.figures.get(f"{stage}/{baseline}", {})
            named |= {f"{stage}/{baseline}/{name}": value for name, value in figures.items() if math.isfinite(value)}
        return named


def evaluation_table(
    stage: str, figures: dict[str, dict[str, float]], floor: float | None, metrics: Sequence[Metric] = METRICS
) -> str:
    """The figures of each scorer as text: cross-entropy, then a line per metric over all items and over unseen ones."""
    lines = [f"{stage:<12}{'':<12}" + "".join(f"{f'@{k}':>10}" for k in KS)]
    for scorer, row in figures.items():
        loss = f"loss {row['loss']:.4f}" if math.isfinite(row["loss"]) else ""
        lines.append(f"{scorer:<18}{loss}" + (f"  (floor {floor:.4f})" if loss and floor is not None else ""))
        for part, by, of in product(("", WARM), ("", BY_USER), ("", "_unseen")):
            # all items, unseen items; for means over users or warm targets all/user, unseen/warm ...
            title = (of[1:] or "all") + ((part + by).replace(BY_USER, "/user").replace(WARM, "/warm") or " items")
            for metric in metrics:
                shown = scorer == "model" or metric not in METRICS or metric.name in ("HR", "NDCG")
                if metric.name == "loss" or not shown or f"{metric.labels[0]}{of}{part}{by}" not in row:
                    continue
                values = [row[f"{label}{of}{part}{by}"] for label in metric.labels]
                cells = (f"{value:>10.1f}" if value >= 10 else f"{value:>10.4f}" for value in values)
                lines.append(f"  {title if metric.name == 'HR' else '':<12}  {metric.name:<10}" + "".join(cells))
    return "\n".join(lines)


def verdict(
    figures: Mapping[str, Mapping[str, float]],
    monitor: str,
    before: Sequence[float],
    metrics: Sequence[Metric] = METRICS,
    stopped: bool = False,
) -> str | None:
    """One line that compares the model with the best baseline on the monitored metric, with advice if the model is not
    better. `before` has the metric's values at the run's evaluations, and `stopped` says whether the best network's
    evaluation stopped the training early. None if no baseline has the metric, or if neither low nor high values are
    good."""
    metric = monitor.removeprefix("val/")
    best_end = best_is(metric, metrics)
    baselines = {name: row.get(metric, math.nan) for name, row in figures.items() if name != "model"}
    baselines = {name: value for name, value in baselines.items() if math.isfinite(value)}
    if best_end is None or not baselines:
        return None
    choose: Callable[..., Any] = min if best_end == "min" else max
    name = choose(baselines, key=baselines.__getitem__)
    model, baseline = figures["model"][metric], baselines[name]
    line = f"than {name}, the best baseline: {metric} {model:.4f} against {baseline:.4f}"
    if model != baseline and choose(model, baseline) == model:
        return f"better {line}"
    values = [value for value in before if math.isfinite(value)]
    advice = f"try another --model.optimizer.lr, --model.dropout or --model.size, and choose by {monitor}"
    if values and choose(values) == values[-1]:
        change = "see --early_stopping" if stopped else "raise --trainer.max_epochs, max_steps or max_time"
        advice = f"{monitor} was the best at the last evaluation: {change}"
    return f"no better {line}; {advice}"


def scores_of(net: Transformer, batch: EvalBatch) -> Scores:
    """How a network ranks the targets of a batch."""
    given = (batch.targets_M, batch.seen_targets_S, batch.seen_items_S, max(KS))
    return at_targets(net, batch, lambda hidden_MD, table: score(hidden_MD, table, *given))


def at_targets(net: Transformer, batch: EvalBatch, head: Callable[[Tensor, Table], Result]) -> Result:
    """The result of `head` on the hidden states before the batch's targets and the item table."""
    return net(batch.items_BL, head, positions_M=batch.positions_M, times_BT=batch.times_BT, events_BL=batch.events_BL)
