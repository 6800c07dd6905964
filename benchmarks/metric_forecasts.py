"""Forecasts of HR@10 and NDCG@10 on every committed ladder, compared with "no gain" and their two parts.

    python benchmarks/metric_forecasts.py --studies                        the held-out sizes of five studies
    python benchmarks/metric_forecasts.py                                  every ladder, one to five sizes hidden
    python benchmarks/metric_forecasts.py --beliefs '{"caution": 0.5}'     the same by a forecast with other constants

A ladder has at least four sizes in addition to the hidden ones, all with one amount of data. Every method gets the same
loss forecasts. Errors are means over a split's hidden sizes, in percent of the measured metric.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from results import STUDIES, name_of

from lrec.common.text_tables import rows_table
from lrec.errors import UserError
from lrec.laws import metric_forecasts
from lrec.laws.forecast import Forecast
from lrec.laws.intervals import Prediction
from lrec.laws.metric_forecasts import against_loss, against_size, expected_metrics, judged_metrics
from lrec.laws.predict import hold_out
from lrec.study.points import read_points

HERE = Path(__file__).parent
MEASURED = ("Quickstart", "Go", "Decks", "News clicks", "MovieLens-1M")
METRICS = ("HR@10", "NDCG@10", "HR@10_unseen", "NDCG@10_unseen")
SETS = {
    "go": ("go/all_points", "go/first/all_points", *(f"architectures/{name}" for name in ("gpt2", "hstu", "modern"))),
    "decks": ("decks/all_points", "decks/by_time", "decks/by_time_first"),
    "globo": ("globo/all_points", "globo/by_time", "globo/by_time_late"),
    "ml-1m": ("ml-1m-lsrm/all_points", "ml-1m-lsrm/untuned/all_points"),
    "quickstart": ("quickstart/40000-users/all_points",),
    "s3rec-beauty": ("s3rec-beauty/all_points",),
    "ciao": ("ciao/all_points",),
}
Points = pl.DataFrame
Part = Callable[[Points, list[Prediction]], np.ndarray]


def studies() -> None:
    """Print what each study would have predicted for the metrics of its held-out sizes, with shares if it has any."""
    rows = [["study", "metric", "held-out sizes", "error, %", "half-width, %", "no gain, %", "inside"]]
    for study in STUDIES:
        if study.name not in MEASURED:
            continue
        small, large = hold_out(read_points([HERE / study.points], shares=True), study.holdout)
        losses = Forecast(small).predict(large["x"].unique().sort().to_list())
        for metric, judged in judged_metrics(
            small.select(pl.exclude("^.*@(1|5|50)(_unseen)?$")), losses, large
        ).items():
            sizes, errors = [name_of(j.x) for j in judged], [f"{j.error_pct:+.1f}" for j in judged]
            width, naive = ([f"{v:.1f}" for v in each] for each in zip(*[
                (50 * (j.high - j.low) / j.actual, j.naive_error_pct) for j in judged], strict=True))  # fmt: skip
            cells = (", ".join(each) for each in (sizes, errors, width, naive))
            rows.append([study.name, metric, *cells, f"{sum(j.inside for j in judged)} of {len(judged)}"])
    print(rows_table(rows, text=(0, 1, 2)))


def splits() -> Iterator[tuple[str, Points, Points]]:
    """The set, the known points of a ladder, and its hidden points."""
    for name, files in SETS.items():
        for file in files:
            points = read_points([HERE / f"{file}.jsonl"], d="D", u="U")
            for _, ladder in points.group_by("u", maintain_order=True):
                for k in range(1, min(5, ladder["x"].n_unique() - 4) + 1):
                    yield name, *hold_out(ladder.drop("u"), k)


def straight_line(points: Points, losses: list[Prediction]) -> np.ndarray:
    """ln odds as a straight line in the loss; weights fall by a factor e per 0.15 of the span of losses."""
    loss_N = points["loss"].to_numpy() - points["loss"].to_numpy().min()
    weight_N = np.exp(-loss_N / (0.15 * loss_N.max()) / 2)
    slope, at_best = np.polyfit(loss_N, np.log(points["y"].to_numpy()), 1, w=weight_N)
    line_P = np.array([at_best + slope * (p.predicted - points["loss"].to_numpy().min()) for p in losses])
    return np.stack([line_P] * 3, axis=1)


def no_gain(points: Points, losses: list[Prediction]) -> np.ndarray:
    """ln odds of the best size, for every larger size."""
    best = np.log(points.group_by("x").agg(pl.col("y").mean())["y"].to_numpy().min())
    return np.full((len(losses), 3), best)


METHODS: dict[str, tuple[Part, ...]] = {
    "no gain": (no_gain,),
    "against the size": (against_size,),
    "against the loss": (against_loss,),
    "against the loss, a straight line": (straight_line,),
    "both": (against_size, against_loss),
}
LREC = "**both, and no better than of unseen items**"


def every_ladder() -> None:
    """A row for each method: its mean error on each set and over all, and how often its interval holds."""
    found: dict[str, list[tuple[str, float, float, list[bool], float]]] = {name: [] for name in [*METHODS, LREC]}
    for name, small, large in splits():
        losses = Forecast(small).predict(large["x"].unique().sort().to_list())
        expected = expected_metrics(small, losses, METRICS)
        for metric in METRICS:
            of_odds = small.with_columns(loss=pl.col("y"), y=1 / pl.col(metric) - 1)
            actual_P = large.group_by("x").agg(pl.col(metric).mean()).sort("x")[metric].to_numpy()
            naive = np.abs(_metric(no_gain(of_odds, losses))[:, 0] / actual_P - 1).mean()
            told = {LREC: np.array([[each.predicted, each.low, each.high] for each in expected[metric]]).T}
            for method, parts in METHODS.items():
                with suppress(UserError):
                    middle_CP, low_CP, high_CP = np.moveaxis(np.array([part(of_odds, losses) for part in parts]), -1, 0)
                    told[method] = _metric(np.array([middle_CP.mean(0), high_CP.max(0), low_CP.min(0)]))
            for method, (middle_P, low_P, high_P) in told.items():
                inside = ((low_P <= actual_P) & (actual_P <= high_P) & (low_P < high_P)).tolist()
                error, width = np.abs(middle_P / actual_P - 1).mean(), ((high_P - low_P) / actual_P / 2).mean()
                found[method].append((name, 100 * error, 100 * naive, inside, 100 * width))
    head = ["method", *SETS, "mean of sets", "worse than no gain by > 0.5", "at most half of no gain's, where > 3 %"]
    rows = [[*head, "inside", "half-width, %"]]
    for method, each in found.items():
        by_set = [np.mean([error for name, error, *_ in each if name == some]) for some in SETS]
        worse = np.mean([error > naive + 0.5 for _, error, naive, *_ in each])
        halved = np.mean([error <= naive / 2 for _, error, naive, *_ in each if naive > 3])
        inside = np.mean([hit for *_, hits, _ in each for hit in hits])
        cells = [*by_set, np.mean(by_set), worse, halved, inside, np.mean([width for *_, width in each])]
        rows.append([method, *(f"{value:.2f}" for value in cells)])
    print(f"{len(found['no gain'])} splits\n\n{rows_table(rows, text=(0,))}")


def _metric(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(log_odds))


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", action="store_true")
    parser.add_argument("--beliefs", type=json.loads, default={})
    options = parser.parse_args()
    metric_forecasts.OF_METRICS = replace(metric_forecasts.OF_METRICS, **options.beliefs)
    studies() if options.studies else every_ladder()


if __name__ == "__main__":
    main()
