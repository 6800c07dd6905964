"""Pictures of a study beyond its fits: loss against compute, at equal compute, against repeated data; several studies.

Validation losses within a run come before its learning rate has fallen and lie above what a whole run of that length
would reach; the circles are best evaluations, which end a whole run.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lrec.common.pictures import new_figure
from lrec.laws.figures import LEGEND, style
from lrec.laws.fit import Fit
from lrec.laws.law import Array
from lrec.run import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BUDGETS = 6
INK = "#222222"
Points = Sequence[Point]  # those of one run, by step


def compute_figure(runs: Sequence[Points]) -> "Figure":
    """Validation loss against training FLOPs, a line a run, and the least loss of any run for the compute."""
    alt = "Validation loss against training FLOPs: a line for each run, and the least loss for the compute"
    figure = new_figure(6.4, 4.4, alt)
    axes = figure.add_subplot()
    _draw_runs(axes, runs, "flops", _shades(runs))
    axes.plot(*envelope(runs), color=INK, lw=1.4, ls="--", label="least loss for the compute")
    style(axes, "flops", "val_loss")
    axes.legend(**LEGEND)
    return figure


def envelope(runs: Sequence[Points]) -> tuple[Array, Array]:
    """FLOPs, and the least loss that any run had reached with no more than those, interpolated over log FLOPs."""
    trajectories = [trajectory(points, "flops") for points in runs]
    flops_G = np.geomspace(min(f[0] for f, _ in trajectories), max(f[-1] for f, _ in trajectories), 300)
    least = [np.where(flops_G < f[0] * (1 - 1e-9), np.inf, _least(flops_G, f, loss_P)) for f, loss_P in trajectories]
    return flops_G, np.min(least, axis=0)


def _least(flops: Any, flops_P: Array, loss_P: Array) -> Any:
    return np.interp(np.log(flops), np.log(flops_P), np.minimum.accumulate(loss_P))


def iso_flop_figure(runs: Sequence[Points]) -> "Figure | None":
    """Validation loss against size at equal compute; None where no amount of compute has three sizes."""
    curves = iso_flops(runs)
    if not curves:
        return None
    alt = "Validation loss against N_body: a line for each amount of compute, a star at its best size"
    figure = new_figure(6.4, 4.4, alt)
    axes = figure.add_subplot()
    for (flops, (n_S, loss_S)), color in zip(curves.items(), _colors(len(curves)), strict=True):
        axes.plot(n_S, loss_S, "o-", ms=4, lw=1.1, color=color, label=f"{flops:.1e} FLOPs")
        best = int(loss_S.argmin())
        axes.plot(n_S[best], loss_S[best], "*", ms=11, color=color, mec=INK, mew=0.5)
    style(axes, "N_body", "val_loss")
    axes.legend(**LEGEND)
    return figure


def iso_flops(runs: Sequence[Points]) -> dict[float, tuple[Array, Array]]:
    """Sizes and their least losses, means over seeds, within each of some amounts of compute that three sizes or more
    have between their first evaluation and their last."""
    trajectories = [(points[0].N_body, *trajectory(points, "flops")) for points in runs]
    first = min(flops_P[0] for _, flops_P, _ in trajectories)
    last = max(flops_P[-1] for _, flops_P, _ in trajectories)
    curves = {}
    for flops in np.geomspace(first, last, BUDGETS + 2)[1:-1]:
        by_size: dict[float, list[float]] = {}
        for n_body, flops_P, loss_P in trajectories:
            if flops_P[0] <= flops <= flops_P[-1]:
                by_size.setdefault(n_body, []).append(float(_least(flops, flops_P, loss_P)))
        if len(by_size) >= 3:
            sizes = sorted(by_size)
            curves[float(flops)] = np.array(sizes, float), np.array([np.mean(by_size[n]) for n in sizes])
    return curves


def repetition_figure(runs: Sequence[Points]) -> "Figure":
    """Validation loss against epochs, a panel for each amount of unique data, largest first."""
    amounts = sorted({points[0].U for points in runs}, reverse=True)
    alt = "Validation loss against epochs: a panel for each amount of data, a line for each run, a circle at its best"
    figure = new_figure(1.8 + 3.4 * len(amounts), 3.8, alt)
    panels = figure.subplots(1, len(amounts), sharey=True, squeeze=False)[0]
    for axes, unique in zip(panels, amounts, strict=True):
        _draw_runs(axes, [points for points in runs if unique == points[0].U], "epochs", _shades(runs))
        axes.set_title(f"{unique:,} unique targets", fontsize=9)
    for axes in panels:  # once all is drawn: they share an axis of losses
        style(axes, "epochs over the data, D/U", "val_loss" if axes is panels[0] else "")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(lambda n, _: f"{n:g}" if f"{n:e}"[0] in "25" else "")  # others have no room
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", **LEGEND)
    return figure


def studies_figure(
    fits: Mapping[str, tuple[Fit, Sequence[tuple[float, float]]]], x: str, y: str, crossings: Sequence[float] = ()
) -> "Figure":
    """Laws of several ladders, by name: the fit with full points, size and loss of held-out ones, which are hollow; a
    dotted line stands where curves cross."""
    alt = f"{y} against {x} for each ladder: fitted sizes as full points, held-out sizes as hollow ones, the fitted law"
    figure = new_figure(6.4, 4.4, alt)
    axes = figure.add_subplot()
    for size in crossings:
        axes.axvline(size, color=INK, lw=0.8, ls=":")
    for (name, (fitted, held_out)), color in zip(fits.items(), _colors(len(fits)), strict=True):
        sizes = np.unique(fitted.x_N)
        x_P = np.geomspace(sizes[0] / 1.3, max([sizes[-1], *(n for n, _ in held_out)]) * 1.3, 120)
        axes.plot(x_P, fitted.curve(x_P), color=color, lw=1.3)
        means = [float(fitted.y_N[fitted.x_N == size].mean()) for size in sizes]
        axes.plot(sizes, means, "o", ms=5, color=color, mec="white", mew=0.5, label=name)
        if held_out:
            axes.plot(*np.transpose(held_out), "D", ms=5, mfc="white", mec=color, mew=1.4)
    style(axes, x, y)
    axes.legend(**LEGEND)
    return figure


def _draw_runs(axes: "Axes", runs: Sequence[Points], x: str, shades: Mapping[float, Any]) -> None:
    """A line a run, with a circle at its best evaluation; each size has its colour and stands in the legend once."""
    labelled = set()
    for points in sorted(runs, key=lambda points: points[0].N_body):
        size, color = points[0].size, shades[points[0].N_body]
        x_P, loss_P = trajectory(points, x)
        axes.plot(x_P, loss_P, color=color, lw=1.1, label="" if size in labelled else size)
        axes.plot(x_P[loss_P.argmin()], loss_P.min(), "o", ms=4, color=color, mec="white", mew=0.5)
        labelled.add(size)


def trajectory(points: Points, x: str) -> tuple[Array, Array]:
    """A run's finite validation losses against a column."""
    finite = [(getattr(point, x), point.val_loss) for point in points if point.val_loss is not None]
    x_P, loss_P = np.array(finite, dtype=float).T
    return x_P, loss_P


def _shades(runs: Sequence[Points]) -> dict[float, Any]:
    sizes = sorted({points[0].N_body for points in runs})
    return dict(zip(sizes, _colors(len(sizes)), strict=True))


def _colors(number: int) -> list[Any]:
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0.0, 0.88, number)))
