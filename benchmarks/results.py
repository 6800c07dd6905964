"""All studies in one table and one figure, from their committed points: docs/results/index.md and studies.png; and the
table of held-out sizes on the page of each study.

    python benchmarks/results.py

The held-out sizes of a study are predicted from its smaller ones. In the roll-out, every fitted size is predicted from
the sizes below it. "No gain" predicts that larger sizes have the loss of the best smaller one.

To add a set, add a line to `STUDIES`; to add a way of predicting, add one to `METHODS`.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from lrec.common.pictures import BLUE, GREY, ORANGE, draw_frame, new_figure
from lrec.common.text_tables import rows_table
from lrec.laws.fit import fit_points
from lrec.laws.forecast import Forecast
from lrec.laws.intervals import Prediction
from lrec.laws.loss_laws import law_named
from lrec.laws.predict import hold_out
from lrec.laws.table import points_of_most_data
from lrec.model.network_sizes import SIZES
from lrec.study.points import read_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
PAGES = HERE.parent / "docs" / "results"
PAGE = PAGES / "index.md"
# The two tables, with a blank line between them.
TABLE = re.compile(r"^\| set \|.*\n(?:\|.*\n)*\n\| set \|.*\n(?:\|.*\n)*", re.MULTILINE)
HELD_OUT = re.compile(r"^\| held-out size \|.*\n(?:\|.*\n)*", re.MULTILINE)
NAMES = {12 * layers * width**2: name for name, (layers, width, _) in SIZES.items()}


class Study(NamedTuple):
    """A ladder of sizes whose points are committed."""

    name: str
    page: str
    points: str
    holdout: int = 2

    @property
    def prediction(self) -> Path:
        """The file of what the study predicted before its held-out sizes were trained; it may not have been kept."""
        return (HERE / self.points).with_name("prediction.json")


STUDIES = (
    Study("Quickstart", "quickstart.md", "quickstart/all_points.jsonl"),
    Study("Quickstart, 40,000 users", "quickstart.md#with-40000-users", "quickstart/40000-users/all_points.jsonl"),
    Study("Go", "go.md", "go/all_points.jsonl"),
    Study("Go, first ladder", "go.md#the-first-ladder-and-its-learning-rate", "go/first/all_points.jsonl"),
    Study("Decks", "decks.md", "decks/all_points.jsonl"),
    Study("News clicks", "globo.md", "globo/all_points.jsonl"),
    Study("MovieLens-1M", "ml-1m.md", "ml-1m-lsrm/all_points.jsonl"),
    Study("MovieLens-1M, first ladder", "ml-1m.md#the-first-ladder", "ml-1m-lsrm/untuned/all_points.jsonl"),
    Study("MovieLens-1M, 5 epochs", "ml-1m.md#in-eight-minutes", "ml-1m/points.csv"),
    Study("Amazon Beauty", "s3rec-beauty.md", "s3rec-beauty/all_points.jsonl"),
    Study("Ciao", "ciao.md", "ciao/all_points.jsonl"),
    Study("MovieLens latest-small", "ml-latest-small.md", "ml-latest-small/points.csv"),
)

Predict = Callable[[Sequence[float]], list[Prediction]]


def single_law(points: pl.DataFrame) -> Predict:
    """L(N) = E + (N0/N)^a, fitted to the points with all data; the law of the prediction of a study."""
    return fit_points(law_named("lsrm"), points_of_most_data(points)).profile.predict


def forecast(points: pl.DataFrame) -> Predict:
    """The forecast, which also learns from shares of the data if runs see their data many times."""
    return Forecast(points if points["may_stop"].any() else points_of_most_data(points)).predict


METHODS: dict[str, Callable[[pl.DataFrame], Predict]] = {"forecast": forecast, "law": single_law}
"""Ways of predicting the loss with all data from the points of smaller sizes at all shares, by the name of their
columns. The figure has the first one."""
LEAST_SIZES = 4


def read_study(study: Study) -> pl.DataFrame:
    """All points of a study, also those of shares of the data: x is N_body, u the unique training targets."""
    return read_points([HERE / study.points], d="D", u="U")


def losses_by_size(points: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The sizes, and the mean loss of each with all data."""
    means = points_of_most_data(points).group_by("x").agg(pl.col("y").mean()).sort("x")
    return means["x"].to_numpy(), means["y"].to_numpy()


def naive_error(small: pl.DataFrame, loss: float) -> float:
    """Error, in per cent of the loss, if a larger size is expected to have the loss of the best smaller one."""
    return 100 * (float(losses_by_size(small)[1].min()) / loss - 1)


def rolled_out(fitted: pl.DataFrame, method: Callable[[pl.DataFrame], Predict]) -> tuple[float, float]:
    """Mean absolute errors of the method and of naive, in per cent, for fitted sizes predicted from those below."""
    sizes, losses = losses_by_size(fitted)
    errors = []
    for k in range(LEAST_SIZES, len(sizes)):
        small = fitted.filter(pl.col("x") < sizes[k])
        (p,) = method(small)([sizes[k]])
        errors.append((abs(100 * (p.predicted / losses[k] - 1)), abs(naive_error(small, losses[k]))))
    return tuple(np.mean(errors, axis=0)) if errors else (np.nan, np.nan)


def per_decade(sizes: np.ndarray, losses: np.ndarray) -> str:
    """Nats per ten times the size, by least squares over log N."""
    return f"{np.polyfit(np.log10(sizes), losses, 1)[0]:+.3f}"


def study_row(study: Study, points: pl.DataFrame) -> list[str]:
    """A study's line of the table."""
    fitted, held_out = hold_out(points, study.holdout)
    sizes, losses = losses_by_size(fitted)
    large, actual = losses_by_size(held_out)
    row = [
        f"[{study.name}]({study.page})",
        targets_of(points),
        f"{len(sizes)}, {name_of(sizes[0])} to {name_of(sizes[-1])}",
        ", ".join(name_of(size) for size in large),
        per_decade(sizes, losses),
        per_decade(np.append(sizes[-1:], large[-1:]), np.append(losses[-1:], actual[-1:])),
        errors_of(*committed(study), actual),
    ]
    row += [errors_of(name, method(fitted)(large.tolist()), actual) for name, method in METHODS.items()]
    row.append(", ".join(f"{naive_error(fitted, loss):+.2f}" for loss in actual))
    rolled = {name: rolled_out(fitted, method) for name, method in METHODS.items()}
    row += ["" if np.isnan(mine) else f"{mine:.2f}" for mine, _ in rolled.values()]
    _, naive = next(iter(rolled.values()))
    return [*row, "" if np.isnan(naive) else f"{naive:.2f}"]


def committed(study: Study) -> tuple[str, list[Prediction]]:
    """The method and the predictions from before the held-out sizes were trained; both empty if not kept."""
    if not study.prediction.exists():
        return "", []
    prediction = json.loads(study.prediction.read_text())
    assert not prediction["trained_before"], study.prediction
    (ladder,) = (ladder for ladder in prediction["ladders"] if ladder["predictions"])
    predictions = [Prediction(**each) for each in ladder["predictions"]]
    return "forecast" if ladder["law"] == "forecast" else "law", predictions


def errors_of(method: str, predictions: Sequence[Prediction], actual: np.ndarray) -> str:
    """Errors in per cent of the measured losses, and how many of these are inside the intervals."""
    if not predictions:
        return "not kept"
    pairs = list(zip(predictions, actual, strict=True))
    inside = sum(p.low <= loss <= p.high for p, loss in pairs)
    errors = ", ".join(f"{100 * (p.predicted / loss - 1):+.2f}" for p, loss in pairs)
    return f"{method} {errors}; {inside} of {len(pairs)}"


def targets_of(points: pl.DataFrame) -> str:
    """The unique training targets of all data."""
    return f"{points['u'].to_numpy().max():,.0f}"


def name_of(size: float) -> str:
    """A size as the ladder names it."""
    return NAMES.get(int(size), f"{size:,.0f}")


def studies_table(read: dict[Study, pl.DataFrame]) -> str:
    """A line for each study in each of two tables: the ladders and their slopes; predictions and their errors."""
    of_methods = ["committed before training: error, %; within", "refit today: error, %; within"]
    of_methods += [f"refit today, {name}: error, %; within" for name in list(METHODS)[1:]]
    rolled = [f"roll-out: {name}, %" for name in (*METHODS, "no gain")]
    head = ["set", "training targets", "fitted sizes", "held out", "slope, fitted", "slope, held out"]
    rows = [[*head, *of_methods, "no gain: error, %", *rolled]]
    rows += [study_row(study, points) for study, points in read.items()]
    ladders = rows_table([row[: len(head)] for row in rows], text=(0, 2, 3))
    predictions = rows_table([[row[0], *row[len(head) :]] for row in rows], text=(0,))
    return f"{ladders}\n\n{predictions}"


def held_out_table(study: Study, points: pl.DataFrame) -> str:
    """A line for each held-out size: the committed prediction, and those of today's methods from the same points."""
    fitted, held_out = hold_out(points, study.holdout)
    large, actual = losses_by_size(held_out)
    by, predictions = committed(study)
    refits = {f"refit today, {name}": method(fitted)(large.tolist()) for name, method in METHODS.items()}
    rows = [["held-out size", "test loss", f"committed before training{by and f', {by}'}", *refits, "no-gain error"]]
    for number, (size, loss) in enumerate(zip(large, actual, strict=True)):
        each = [prediction[number] for prediction in (predictions, *refits.values()) if prediction]
        cells = [] if predictions else ["not kept"]
        for p in each:
            cells.append(f"{p.predicted:.3f} ({p.low:.3f} to {p.high:.3f}), {100 * (p.predicted / loss - 1):+.2f} %")
        rows.append([f"{size:,.0f}", f"{loss:.3f}", *cells, f"{naive_error(fitted, loss):+.2f} %"])
    return rows_table(rows)


def with_tables(page: Path, read: dict[Study, pl.DataFrame]) -> str:
    """A study's page with its tables of held-out sizes, in the order of `STUDIES`."""
    tables = iter([held_out_table(*each) for each in read.items() if each[0].page.partition("#")[0] == page.name])
    return HELD_OUT.sub(lambda found: next(tables, found.group().rstrip("\n")) + "\n", page.read_text())


def studies_figure(read: dict[Study, pl.DataFrame]) -> "Figure":
    """A panel for each study, all equally high in nats: fitted and held-out losses, the prediction, and no gain."""
    method = next(iter(METHODS.values()))
    alt = "Test loss against size, a panel for each study: fitted and held-out losses, the prediction, and no gain"
    figure = new_figure(9.6, 3.1 * -(-len(read) // 3), alt)
    panels = figure.subplots(-(-len(read) // 3), 3, squeeze=False).ravel()
    drawn = [draw_study(axes, *item, method) for axes, item in zip(panels, read.items(), strict=False)]
    height = 1.1 * max(highest - lowest for lowest, highest, _ in drawn)
    for axes, (lowest, highest, _) in zip(panels, drawn, strict=False):
        middle = (lowest + highest) / 2
        axes.set_ylim(middle - height / 2, middle + height / 2)
    for axes in panels[len(read) :]:
        axes.set_visible(False)
    for axes in panels[::3]:
        axes.set_ylabel("test loss, nats", fontsize=8)
    names = {"fitted sizes": BLUE, "predicted, 90 %": BLUE, "no gain": GREY, "held-out sizes": ORANGE}
    for row, (name, color) in enumerate(names.items()):
        at = panels[0].transAxes
        panels[0].text(0.98, 0.97 - 0.08 * row, name, transform=at, ha="right", va="top", fontsize=8, color=color)
    margins = [margin for *_, of_study in drawn for margin in of_study]
    nearer, farther = sum(each > 0.005 for each in margins), sum(each < -0.005 for each in margins)
    finding = f"Of {len(margins)} held-out losses, {nearer} are nearer to the forecast, {farther} to no gain"
    figure.suptitle(finding, fontsize=11, x=0.02, ha="left")
    figure.set_label(f"{finding}. {alt}")
    return figure


def draw_study(
    axes: "Axes", study: Study, points: pl.DataFrame, method: Callable[[pl.DataFrame], Predict]
) -> tuple[float, float, list[float]]:
    """One panel; returns the lowest and the highest loss, measured or predicted, and how much nearer each held-out loss
    is to the forecast than to no gain, in per cent of the loss."""
    fitted, held_out = hold_out(points, study.holdout)
    sizes, losses = losses_by_size(fitted)
    large, actual = losses_by_size(held_out)
    x_P = np.geomspace(sizes[0], large[-1] * 1.3, 40)
    predict = method(fitted)
    band = predict(x_P.tolist())
    predicted = [p.predicted for p in band]
    low, high = [p.low for p in band], [p.high for p in band]
    axes.fill_between(x_P, low, high, color=BLUE, alpha=0.15, lw=0)
    axes.plot(x_P, predicted, color=BLUE, lw=1.4)
    axes.plot([sizes[-1], x_P[-1]], [losses.min()] * 2, color=GREY, lw=1.1, ls="--")
    runs = points_of_most_data(fitted)
    axes.plot(runs["x"], runs["y"], "o", ms=4, color=BLUE, mec="white", mew=0.5)
    axes.plot(large, actual, "D", ms=5, mfc="white", mec=ORANGE, mew=1.4, zorder=4)
    axes.set_xscale("log")
    axes.set_title(f"{study.name}\n{targets_of(points)} training targets", fontsize=9)
    axes.set_xlabel("N_body", fontsize=8)
    axes.tick_params(labelsize=8)
    draw_frame(axes)
    shown = [*runs["y"], *actual, *predicted]
    errors = [100 * abs(p.predicted / loss - 1) for p, loss in zip(predict(large.tolist()), actual, strict=True)]
    margins = [abs(naive_error(fitted, loss)) - error for loss, error in zip(actual, errors, strict=True)]
    return min(shown), max(shown), margins


def main() -> None:
    """Write the tables into the pages and the figure beside them."""
    read = {study: read_study(study) for study in STUDIES}
    table = studies_table(read)
    page = PAGE.read_text()
    PAGE.write_text(TABLE.sub(lambda _: table + "\n", page, count=1))
    for name in {study.page.partition("#")[0] for study in STUDIES}:
        (PAGES / name).write_text(with_tables(PAGES / name, read))
    studies_figure(read).savefig(PAGES / "studies.png")
    print(table)


if __name__ == "__main__":
    main()
