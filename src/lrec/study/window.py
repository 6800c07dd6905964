"""Compares several models on the same targets of one window, each with the catalogue that it knows.

Shape suffixes: I items of the store, V catalogue of a model, T targets, C cases.
"""

import math
from dataclasses import replace

import numpy as np
import polars as pl

from lrec.data.splits.rules import Split, Targets
from lrec.evaluation.cases import Cases, Ranked, cases_before, rank_by_net, rank_by_popularity, values_of
from lrec.evaluation.metrics import NDCG, CrossEntropy, HitRate
from lrec.evaluation.shared_scoring import device
from lrec.evaluation.standard_errors import standard_error
from lrec.serving.recommender import Model

METRICS = (CrossEntropy(), HitRate(), NDCG())
FIGURES = ("loss", "HR@10", "NDCG@10")


def judged(model: Model, cuts: Split, targets: Targets) -> pl.DataFrame:
    """A table with user, position, loss, HR@10 and NDCG@10 of each target, in the order of the targets.

    Items that the model does not know are left out of histories. A target is a miss without a loss (null) if the model
    does not know it, or knows no item before it.
    """
    own = _as_known_to(model, cuts)
    cases = cases_before(own, *targets, model.about["max_len"])
    if model.net.reads_events:
        names = cuts.store.event_types
        known = [model.about["event_names"].index(each) if each in model.about["event_names"] else -1 for each in names]
        assert cases.events_N is not None
        events_N = np.array(known)[cases.events_N]
        cases = replace(cases, events_N=events_N).keeping(events_N >= 0)
    return _by_target(rank_by_net(model.net.float().to(device()), cases), cases, targets, own.counts_V)


def judged_popularity(cuts: Split, targets: Targets, max_len: int) -> pl.DataFrame:
    """The same table for a ranking by popularity in the training part of the split."""
    cases = cases_before(cuts, *targets, max_len)
    return _by_target(rank_by_popularity(cuts.counts_V, cases), cases, targets, cuts.counts_V)


def summary(judged: dict[str, pl.DataFrame]) -> dict[str, dict[str, float]]:
    """The mean of each model's figures, with its standard error over users (NAME_se). Losses are means over the targets
    that all models know. `difference` is the mean paired difference in NDCG@10 from the first model, and `unknown` is
    the number of targets without a loss."""
    first = next(iter(judged.values()))
    known = pl.all_horizontal([frame["loss"].is_not_null() for frame in judged.values()])
    result = {}
    for name, frame in judged.items():
        mine, frame = dict[str, float](), frame.with_columns(difference=frame[FIGURES[-1]] - first[FIGURES[-1]])
        for figure in (*FIGURES, "difference"):
            values = frame.filter(known) if figure == "loss" else frame
            mine[figure] = mine[f"{figure}_se"] = math.nan
            if not values.is_empty():
                mine[figure] = float(values[figure].to_numpy().mean())
                mine[f"{figure}_se"] = standard_error(values, figure)
        result[name] = mine | {"unknown": frame["loss"].null_count()}
    return result


def _as_known_to(model: Model, cuts: Split) -> Split:
    """The split with a model's catalogue: the store's items that it knows by raw id. Both have the same order."""
    known_I = cuts.store.item_table["raw_id"].is_in(model.item_ids.to_list()).to_numpy()
    assert int(known_I.sum()) == len(model.item_ids), "the store has every item of the model"
    own = replace(cuts)
    vars(own)["counts_I"] = known_I.astype(np.int64)
    return own


def _by_target(ranked: Ranked, cases: Cases, targets: Targets, counts_V: np.ndarray) -> pl.DataFrame:
    found = values_of(ranked, cases.targets_C, counts_V, METRICS)
    of_cases = pl.DataFrame({"user": cases.users_C, "position": cases.positions_C, **{n: found[n] for n in FIGURES}})
    of_cases = of_cases.with_columns(pl.col("loss").fill_nan(None))
    every = pl.DataFrame({"user": targets.users_T, "position": targets.positions_T})
    return every.join(of_cases, ["user", "position"], "left", maintain_order="left").with_columns(
        pl.col(*FIGURES[1:]).fill_null(0.0)
    )
