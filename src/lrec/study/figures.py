"""Figures of a study besides its fits: the answer, loss against compute or repeated data, several studies, steps.

Validation losses within a run are measured before its learning rate has fallen, so they are higher than the losses of
complete runs of that length. The circles are best evaluations, which end a complete run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from lrec.common.pictures import BLUE, GREY, INK, ORANGE, LineEnd, draw_frame, entitle, label_ends, new_figure
from lrec.common.text_tables import counted
from lrec.laws.analysis import Analysis
from lrec.laws.equivalents import Worth
from lrec.laws.figures import LABELS, style
from lrec.laws.fit import Fit
from lrec.laws.law import Array
from lrec.laws.metric_forecasts import best_measured, outlook_metrics
from lrec.laws.predict import outlook, turns
from lrec.laws.table import means_by_size
from lrec.run import Point
from lrec.study.answer import TIMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BUDGETS = 6
LEAST_POINTS = 4  # of a line: fewer show no shape
Points = Sequence[Point]  # the points of one run, by step


def answer_figure(analysis: Analysis, metric: str, finding: str) -> "Figure":
    """Draw a metric by size: measured values, the intervals that were forecast for the tested sizes, the forecast with
    its interval up to the largest size of the answer, and a line for no gain."""
    alt = f"{finding}. {metric} against the number of parameters: measured, no gain, and forecast with 90 % interval"
    every, judged, total = analysis.points, analysis.tested(metric), analysis.names["x"] == "N_total"
    x_S, value_S = means_by_size(every, metric).to_numpy().T
    losses = [outlook(analysis.of_all, times=times) for times in np.geomspace(1, TIMES[-1], 12)]
    ahead = outlook_metrics(every, losses, turns(analysis.of_all, outlook(analysis.of_all)), [metric])[metric]
    x_P, middle_P, low_P, high_P = np.array([(p.x, p.predicted, p.low, p.high) for p in ahead]).T
    best = best_measured(every, metric)
    figure = new_figure(4.4, 3.2, alt)
    axes = figure.add_subplot()
    axes.fill_between(x_P, low_P, high_P, color=BLUE, alpha=0.15, lw=0)
    axes.plot(x_P, middle_P, color=BLUE, lw=2)
    axes.plot(x_S, value_S, "o", ms=5, color=INK)
    axes.plot([x_S[0], x_P[-1]], [best, best], color=GREY, lw=1, ls="--")
    for p in judged:
        axes.plot([p.x, p.x], [p.low, p.high], color=ORANGE, lw=5, alpha=0.4, solid_capstyle="butt", zorder=1)
    tested = min((p.x for p in judged), default=x_P[0])
    edges = [x_S[0], np.sqrt(tested * x_S[x_S < tested][-1]) if judged else x_S[-1], 1.15 * x_S[-1], x_P[-1]]
    zones = ["fitted", "tested", "forecast"] if judged else ["measured", "", "forecast"]
    colors, across = (INK, ORANGE, BLUE), axes.get_xaxis_transform()
    for name, color, left, right in zip(zones, colors, edges, edges[1:], strict=False):
        axes.axvline(right, color=GREY, lw=0.5, ls=":")
        axes.text(np.sqrt(left * right), 1.01, name, transform=across, ha="center", color=color)
    if judged:  # above the zones' names: inside the axes, it could touch the curve
        said, middle = "forecast before the test, 90 %", np.sqrt(edges[1] * edges[2])
        axes.annotate(said, (middle, 1.01), (0, 14), across, "offset points", ha="center", color=ORANGE)
    axes.text(x_S[0], best, "no gain", color=GREY, va="bottom")
    axes.text(x_P[-1], high_P[-1], "90 %", color=BLUE, ha="right", va="top")
    axes.text(x_P[-1], middle_P[-1], f" {middle_P[-1]:.3f}", color=BLUE, va="center")
    axes.set_xscale("log")
    axes.set(xlabel=LABELS["N_total"] if total else "parameters of the network (without items)", ylabel=metric)
    draw_frame(axes)
    return figure


def compute_figure(runs: Sequence[Points]) -> "Figure | None":
    """Draw validation loss against training FLOPs: a line for each run, and the least loss of any run by compute. None
    if there is only one evaluation."""
    if sum(len(points) for points in runs) == 1:
        return None
    best, *_ = min(runs, key=lambda points: trajectory(points, "flops")[1].min())
    largest = max((points[0] for points in runs), key=lambda point: point.N_body)
    finding = f"{best.size} has the lowest loss"
    finding += ", and is the largest size" if best.N_body == largest.N_body else f"; the largest size is {largest.size}"
    alt = "Validation loss against training FLOPs: a line for each run, and the least loss for the compute"
    figure = new_figure(5.2, 3.8, f"{finding}. {alt}")
    axes = figure.add_subplot()
    axes.plot(*envelope(runs), color=GREY, lw=1.2, ls="--")
    style(axes, "flops", "val_loss")
    label_ends(axes, _draw_runs(axes, runs, "flops", runs))
    entitle(axes, finding, "dashed: the least loss for the compute")
    return figure


def envelope(runs: Sequence[Points]) -> tuple[Array, Array]:
    """FLOPs, and the least loss that any run has reached with at most these FLOPs, interpolated over log FLOPs."""
    trajectories = [trajectory(points, "flops") for points in runs]
    flops_G = np.geomspace(min(f[0] for f, _ in trajectories), max(f[-1] for f, _ in trajectories), 300)
    least = [np.where(flops_G < f[0] * (1 - 1e-9), np.inf, _least(flops_G, f, loss_P)) for f, loss_P in trajectories]
    return flops_G, np.min(least, axis=0)


def _least(flops: Any, flops_P: Array, loss_P: Array) -> Any:
    return np.interp(np.log(flops), np.log(flops_P), np.minimum.accumulate(loss_P))


def iso_flop_figure(runs: Sequence[Points]) -> "Figure | None":
    """Draw validation loss against size at equal compute; None if no amount of compute has enough sizes."""
    curves = iso_flops(runs)
    if not curves:
        return None
    first, last = ([*curves][end] for end in (0, -1))
    bests = [n_S[loss_S.argmin()] for n_S, loss_S in (curves[first], curves[last])]
    finding = f"Best size: {bests[0]:,.0f} at {first:.0e} FLOPs, {bests[1]:,.0f} at {last:.0e}"
    alt = "Validation loss against N_body: a line for each amount of compute, a star at its best size"
    figure, ends = new_figure(5.2, 3.8, f"{finding}. {alt}"), []
    axes = figure.add_subplot()
    for (flops, (n_S, loss_S)), color in zip(curves.items(), _colors(len(curves)), strict=True):
        axes.plot(n_S, loss_S, "o-", ms=4, lw=1.1, color=color)
        best = int(loss_S.argmin())
        axes.plot(n_S[best], loss_S[best], "*", ms=11, color=color, mec=INK, mew=0.5)
        ends.append((f"{flops:.0e} FLOPs", n_S[-1], loss_S[-1], color))
    style(axes, "N_body", "val_loss")
    label_ends(axes, ends)
    entitle(axes, finding, "star: the best size")
    return figure


def iso_flops(runs: Sequence[Points]) -> dict[float, tuple[Array, Array]]:
    """For several amounts of compute: the sizes, and their least losses with this compute, averaged over seeds. An
    amount counts if LEAST_POINTS or more sizes reach it between their first and last evaluations."""
    trajectories = [(points[0].N_body, *trajectory(points, "flops")) for points in runs]
    first, last = min(flops_P[0] for _, flops_P, _ in trajectories), max(flops_P[-1] for _, flops_P, _ in trajectories)
    curves = {}
    for flops in np.geomspace(first, last, BUDGETS + 2)[1:-1]:
        rows = [(float(n), float(_least(flops, f, loss_P))) for n, f, loss_P in trajectories if f[0] <= flops <= f[-1]]
        means = pl.DataFrame(rows, schema=["x", "y"], orient="row").group_by("x", maintain_order=True).mean().sort("x")
        if len(means) >= LEAST_POINTS:
            curves[float(flops)] = means["x"].to_numpy(), means["y"].to_numpy()
    return curves


def repetition_figure(runs: Sequence[Points]) -> "Figure | None":
    """Draw validation loss against epochs: a panel for each amount of unique data, largest first. None if no run has
    enough evaluations for a line."""
    lines = [points for points in runs if len(trajectory(points, "epochs")[0]) >= LEAST_POINTS]
    if not lines:
        return None
    amounts = sorted({points[0].U for points in lines}, reverse=True)
    losses = [trajectory(points, "epochs")[1] for points in lines]
    falling = sum(int(loss_P.argmin()) == len(loss_P) - 1 for loss_P in losses)
    finding = f"In {falling} of {counted(len(lines), 'run')}, the last evaluation has the lowest loss"
    alt = "Validation loss against epochs: a panel for each amount of data, a line for each run, a circle at its best"
    figure = new_figure(1.4 + 3.4 * len(amounts), 3.8, f"{finding}. {alt}")
    panels = figure.subplots(1, len(amounts), sharey=True, squeeze=False)[0]
    ends = [
        _draw_runs(axes, [points for points in lines if unique == points[0].U], "epochs", lines)
        for axes, unique in zip(panels, amounts, strict=True)
    ]
    for axes, unique, of_panel in zip(panels, amounts, ends, strict=True):  # after all is drawn: they share an axis
        style(axes, "epochs over the data, D/U", "val_loss" if axes is panels[0] else "")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(lambda n, _: f"{n:g}" if f"{n:e}"[0] in "25" else "")  # no room for more
        label_ends(axes, of_panel)
        axes.set_title(f"{unique:,} unique targets", fontsize=9, loc="left")
    figure.suptitle(finding, fontsize=10, x=0.02, ha="left")
    return figure


def studies_figure(
    fits: Mapping[str, tuple[Fit, Sequence[tuple[float, float]]]], x: str, y: str, crossings: Sequence[float] = ()
) -> "Figure":
    """Draw the laws of several ladders. `fits` has, by name, the fit, and size and loss of the held-out points, which
    are hollow. A dotted line marks each of the `crossings` of the curves."""
    alt = f"{y} against {x} for each ladder: fitted sizes as full points, held-out sizes as hollow ones, the fitted law"
    short = [Path(name).name.removesuffix(".jsonl") for name in fits]
    called = dict(zip(fits, short if len({*short}) == len(fits) else fits, strict=True))
    lowest = min(fits, key=lambda name: float(fits[name][0].y_N.min()))
    finding = f"{called[lowest]} has the lowest fitted loss"
    figure, ends = new_figure(5.2, 3.8, f"{finding}. {alt}"), []
    axes = figure.add_subplot()
    for size in crossings:
        axes.axvline(size, color=INK, lw=0.8, ls=":")
    for (name, (fitted, held_out)), color in zip(fits.items(), _colors(len(fits)), strict=True):
        sizes = np.unique(fitted.x_N)
        x_P = np.geomspace(sizes[0] / 1.3, max([sizes[-1], *(n for n, _ in held_out)]) * 1.3, 120)
        axes.plot(x_P, fitted.curve(x_P), color=color, lw=1.3)
        means = [float(fitted.y_N[fitted.x_N == size].mean()) for size in sizes]
        axes.plot(sizes, means, "o", ms=5, color=color, mec="white", mew=0.5)
        if held_out:
            axes.plot(*np.transpose(held_out), "D", ms=5, mfc="white", mec=color, mew=1.4)
        ends.append((called[name], float(x_P[-1]), float(fitted.curve(x_P[-1:])[0]), color))
    style(axes, x, y)
    label_ends(axes, ends)
    keys = {"hollow: held out": any(held_out for _, held_out in fits.values()), "dotted: curves cross": bool(crossings)}
    entitle(axes, finding, "; ".join(key for key, applies in keys.items() if applies))
    return figure


def exchange_figure(worths: Mapping[str, Worth], finding: str, cheapest: str | None) -> "Figure":
    """Draw what each step is worth in times the parameters, with its 90 % interval; the cheapest step has a colour."""
    alt = f"{finding}. What each step is worth, in times the parameters of the network, with 90 % intervals"
    figure = new_figure(6.4, 1.3 + 0.4 * len(worths), alt)
    axes = figure.add_subplot()
    shown = [n for worth in worths.values() for n in worth if 0 < n < np.inf]
    left, right = min([*shown, 1.0]) / 1.2, 1.2 * max([*shown, 1.0])
    for row, (name, worth) in enumerate([*worths.items()][::-1]):
        color = BLUE if name == cheapest else GREY
        times, low, high = np.clip(worth, left, right)
        axes.plot([low, high], [row, row], color=color, lw=6, alpha=0.3, solid_capstyle="butt")
        axes.plot([times], [row], "o", ms=6, color=color)
        said = "beyond the ladder" if worth.times in (0, np.inf) else f"{worth.times:.2g} times"
        axes.text(1.02, row, said, transform=axes.get_yaxis_transform(), va="center", color=color)
    axes.axvline(1, color=GREY, lw=0.8, ls=":")
    axes.set_xscale("log")
    axes.set(xlim=(left, right), ylim=(-0.6, len(worths) - 0.4), xlabel="worth in times the parameters (90 % interval)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda n, _: f"{n:g}" if f"{n:e}"[0] in "25" else "")
    axes.set_yticks(range(len(worths)), [*worths][::-1])
    axes.set_title(finding, loc="left", fontsize=10)
    draw_frame(axes)
    return figure


def _draw_runs(axes: "Axes", runs: Sequence[Points], x: str, every: Sequence[Points]) -> list[LineEnd]:
    """Draw a line for each run, with a circle at its best evaluation. Its colour is that of its size among `every` run.
    Returns the name of each size, with the end of its best run and its colour."""
    sizes, ends = sorted({points[0].N_body for points in every}), dict[str, LineEnd]()
    colors = dict(zip(sizes, _colors(len(sizes)), strict=True))
    for points in sorted(runs, key=lambda points: -trajectory(points, x)[1].min()):
        size, color = points[0].size, colors[points[0].N_body]
        x_P, loss_P = trajectory(points, x)
        axes.plot(x_P, loss_P, color=color, lw=1.1)
        axes.plot(x_P[loss_P.argmin()], loss_P.min(), "o", ms=4, color=color, mec="white", mew=0.5)
        ends[size] = (size, float(x_P[-1]), float(loss_P[-1]), color)
    return [*ends.values()]


def trajectory(points: Points, x: str) -> tuple[Array, Array]:
    """A column of a run and its validation losses, for the evaluations with a finite loss."""
    finite = [(getattr(point, x), point.val_loss) for point in points if point.val_loss is not None]
    x_P, loss_P = np.array(finite, dtype=float).T
    return x_P, loss_P


def _colors(number: int) -> list[Any]:
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0.0, 0.88, number)))
