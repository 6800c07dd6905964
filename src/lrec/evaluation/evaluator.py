"""Evaluator: what the model and the baselines beside it reach on the targets of a stage, val or test."""

import math
from collections.abc import Sequence

from torch import Tensor

from lrec.common import cpu_threads
from lrec.data.batching.eval_batches import EvalBatch
from lrec.data.datamodule import SequenceDataModule
from lrec.evaluation.baselines import BASELINES, Baselines
from lrec.evaluation.metrics import METRICS, Evaluation, Metric
from lrec.ranking.scoring import Scores


class Evaluator:
    """The evaluations of a model on one data set, one after the other.

    Popularity stands beside every evaluation, the other baselines beside `lrec test` and `lrec validate`. They do not
    change during training: they are scored in the first whole evaluation of a stage. `figures` are those of the last
    evaluation of each stage, the model's by `stage`, a baseline's by `stage/baseline`.
    """

    def __init__(self, metrics: Sequence[Metric] = METRICS) -> None:
        self.figures: dict[str, dict[str, float]] = {}
        self._metrics = metrics
        self._baselines: Baselines | None = None
        self._under_way: dict[str, Evaluation] = {}

    def begin(self, stage: str, data: SequenceDataModule, counts_V: Tensor, fitting: bool = False) -> None:
        """Before the first batch. `counts_V`, the items' training interactions, lies where scores will; where training
        goes on (`fitting`) only popularity stands beside the model."""
        if self._baselines is None:
            self._baselines = Baselines(data.cuts, counts_V.device)
        beside = [name for name in self._baselines.names if name == "popularity" or not fitting]
        anew = [name for name in beside if f"{stage}/{name}" not in self.figures]
        scorers = ["model", *(anew if fitting else self._baselines.with_room(anew))]
        self._under_way = {scorer: Evaluation(counts_V, self._metrics) for scorer in scorers}

    def add(self, batch: EvalBatch, scores: Scores) -> None:
        assert self._baselines is not None
        baselines = self._baselines

        def add_scores_of(scorer: str) -> None:
            found = scores if scorer == "model" else baselines.score(scorer, batch)
            self._under_way[scorer].update(found, batch.targets_M, batch.weights_M)

        if cpu_threads.is_cpu(batch.targets_M.device):
            cpu_threads.mapped(add_scores_of, list(self._under_way)[::-1])  # the last baseline takes longest
        else:
            for scorer in self._under_way:
                add_scores_of(scorer)

    def end(self, stage: str, whole: bool) -> dict[str, float]:
        """After the last batch: all figures of the stage, by their full names. Those of baselines stay if `whole`."""
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
