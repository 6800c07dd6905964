"""How networks and baselines of an origin rank the targets of the windows that follow it.

Shape suffix: M targets of a batch.
"""

from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl

from lrec.backtest.options import Windows
from lrec.common.files import replacing
from lrec.data.batching.eval_batches import EvalBatch, EvalBatches
from lrec.data.datamodule import SequenceDataModule
from lrec.data.datasets import datamodule_of
from lrec.data.splits.temporal import GlobalTemporal
from lrec.errors import UserError
from lrec.evaluation.baselines import Baselines
from lrec.evaluation.evaluator import scores_of
from lrec.evaluation.shared_scoring import device
from lrec.ranking.scoring import Scores
from lrec.run import Run
from lrec.serving.export import load

Scorers = dict[str, Callable[[EvalBatch], Scores]]


def of_network(run: Run, data: SequenceDataModule) -> Scorers:
    """The best network of a run."""
    model = load(run.best, trust=True, new_items=False)  # the training already imported its classes
    if model.about["data_hash"] != data.data_hash:
        raise UserError(f"the data have changed since {run.folder} was trained: --restart '[{run.name}]'")
    net = model.net.float().requires_grad_(False).to(device())
    if net.config.architecture.time != "none":
        data.carry_times()
    return {"model": partial(scores_of, net)}


def of_baselines(run: Run, data: SequenceDataModule) -> Scorers:
    """Every baseline, which counts the training part before the run's origin."""
    found = Baselines(data.cuts, device(), data.recent_popularity)
    return {name: partial(found.score, name) for name in found.with_room(found.names)}


def tested(run: Run, windows: Windows, of: Callable[[Run, SequenceDataModule], Scorers]) -> pl.DataFrame:
    """The targets of the windows as `of_network` or `of_baselines` ranks them; kept as a table in the run's folder."""
    file = run.folder / ("windows.parquet" if of is of_network else "baselines.parquet")
    kept = pl.DataFrame(schema=["window", "begin", "end"])
    with suppress(FileNotFoundError, pl.exceptions.PolarsError):  # a damaged table is made again
        kept = pl.read_parquet(file, glob=False)
    ends = kept.select("window", "begin", "end").unique().rows()
    if {number: (begin, end) for number, begin, end in ends} == windows:
        return kept
    if not run.best.exists():
        if run.diverged:
            raise UserError(f"{run.folder} diverged at once: choose a smaller model.optimizer.lr, and another --out")
        raise UserError(f"{run.folder} has no checkpoint to test: --restart '[{run.name}]' trains it again")
    data = datamodule_of(run.config.options, "test")
    table = _ranked(data, windows, of(run, data))
    with replacing(file) as temporary:
        table.write_parquet(temporary)
    return table


def _ranked(data: SequenceDataModule, windows: Windows, scorers: Scorers) -> pl.DataFrame:
    """A row for each scorer and target: scorer, window with its begin and end, user, step (the target's place among the
    user's interactions), loss (nan outside the catalogue), rank and rank_unseen (inf for a miss)."""
    tables, store = list[pl.DataFrame](), data.open_store()
    for number, (begin, end) in windows.items():
        assert isinstance(data.split, GlobalTemporal)
        times = {"begin": pl.lit(begin, pl.Int64), "end": pl.lit(end, pl.Int64)}
        later = copy(data)
        later.split = replace(data.split, test_from=begin, test_until=end)
        tested = later.cut(store)
        split = later.cuts = replace(data.cuts, test_U=tested.test_U, test_targets_U=tested.test_targets_U)
        targets, _ = later.evaluated("test")
        batches = EvalBatches(split, targets, data.max_len, with_times=data.with_times)
        for batch, (chosen_M, _) in zip(batches, batches.batches, strict=True):
            here = EvalBatch(**{name: each.to(device()) for name, each in batch._asdict().items() if each is not None})
            of_targets = {"user": targets.users_T[chosen_M], "step": targets.positions_T[chosen_M]}
            for name, scorer in scorers.items():
                found = scorer(here)
                ranked = {"loss": found.loss_B, "rank": found.rank_B, "rank_unseen": found.rank_unseen_B}
                numbers = {key: values.cpu().numpy().astype(np.float32) for key, values in ranked.items()}
                kept = pl.DataFrame({**of_targets, **numbers}).filter(batch.weights_M.numpy() > 0)
                tables.append(kept.with_columns(scorer=pl.lit(name), window=number, **times))
    return pl.concat(tables)
