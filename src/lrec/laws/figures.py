"""Figures of a fit. For one variable: points, curve, 90 % band, held-out sizes and no-gain baseline. For several:
fitted against actual losses, and residuals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from lrec.common.pictures import BLUE, GREY, INK, ORANGE, draw_frame, new_figure
from lrec.laws.fit import Fit
from lrec.laws.predict import Comparison, HeldOut, Predictor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LATER: dict[str, Any] = {"mfc": "white", "mec": ORANGE}


def fit_figure(
    predictor: Predictor, fit: Fit, holdout: Comparison | None, floor: float | None, x_label: str, y_label: str
) -> "Figure":
    """Draw the measured losses, the prediction with its 90 % interval, and no gain. The title says the main result.
    Held-out points with less data, or of shorter runs, lie on other curves and are left out. No display is needed."""
    every = holdout.points if holdout else ()
    most = max(((p.d or 0, p.u or 0) for p in every), default=None)
    held_out = [p for p in every if (p.d or 0, p.u or 0) == most]
    finding = _finding(held_out)
    shown = f"{y_label} against {x_label}: what was measured, {predictor.name} with its 90 % interval, no gain"
    figure = new_figure(4.6, 3.6, f"{' '.join(finding.split())}. {shown}")
    axes = figure.add_subplot()
    sizes, means = fit.points.group_by("x").agg(pl.col("y").mean()).sort("x").select("x", "y").to_numpy().T
    x_P = np.geomspace(sizes[0] / 1.3, 1.6 * max(sizes[-1], *(p.x for p in held_out), 0.0), 120)
    curve_P, low_P, high_P = np.transpose([(p.predicted, p.low, p.high) for p in predictor.predict(x_P)])
    axes.fill_between(x_P, low_P, high_P, color=BLUE, alpha=0.15, lw=0)
    axes.plot(x_P, curve_P, color=BLUE, lw=1.6)
    axes.plot(sizes, means, "o", ms=5, color=INK, zorder=3)
    axes.axhline(means.min(), color=GREY, lw=1, ls="--")
    across = axes.get_xaxis_transform()
    axes.text(x_P[0], 0.97, "  fitted", transform=across, va="top", color=INK)
    if held_out:
        axes.axvspan(np.sqrt(sizes[-1] * min(p.x for p in held_out)), x_P[-1], color=ORANGE, alpha=0.07, lw=0)
        axes.text(x_P[-1], 0.97, "predicted, then trained ", transform=across, ha="right", va="top", color=ORANGE)
        axes.plot([p.x for p in held_out], [p.actual for p in held_out], "D", ms=6, **LATER, mew=1.6, zorder=4)
    axes.text(x_P[0], means.min(), " no gain", color=GREY, va="bottom")
    axes.text(x_P[-1], low_P[-1], f"{predictor.name}, 90 % ", color=BLUE, ha="right", va="top")
    if floor is not None:
        axes.axhline(floor, color=GREY, lw=1, ls=":")
        axes.text(x_P[0], floor, f" floor {floor:.4g}", color=GREY, va="bottom")
    style(axes, x_label, y_label)
    axes.margins(x=0, y=0.08)
    figure.suptitle(finding, fontsize=11, x=0.02, ha="left")
    return figure


def _finding(held_out: Sequence[HeldOut]) -> str:
    """The errors of the prediction and of no gain: for one or two held-out sizes each error, for more the average."""
    if not held_out:
        return "A fit that no held-out size has tested"
    errors = np.abs([(p.error_pct, p.naive_error_pct) for p in held_out])
    if on_average := len(held_out) > 2:
        errors = errors.mean(0, keepdims=True)
    missed, none = (" and ".join(f"{each:.1f}" for each in of) for of in errors.T)
    return f"The prediction missed by {missed} %,\nno gain by {none} %{' on average' * on_average}"


def agreement_figure(fit: Fit, holdout: Comparison | None, x_label: str, y_label: str) -> "Figure":
    """Draw fitted against actual losses, held-out ones with their 90 % intervals, and residuals against the size."""
    held_out = holdout.points if holdout is not None else ()
    finding = " ".join(_finding(held_out).split())
    shown = f"Fitted against actual {y_label}, held-out points with 90 % intervals; beside it, residuals"
    figure = new_figure(9.0, 4.4, f"{finding}. {shown} against {x_label}")
    left, right = figure.subplots(1, 2)
    fitted_N, actual, predicted = fit.curve(fit.x_NV), [p.actual for p in held_out], [p.predicted for p in held_out]
    losses = [*fit.y_N, *fitted_N, *actual, *predicted]
    ends = [min(losses) * 0.98, max(losses) * 1.02]
    left.plot(ends, ends, color=GREY, lw=1, ls="--")
    left.text(ends[1], ends[1], "fitted = actual  ", color=GREY, ha="right", va="top")
    left.plot(fit.y_N, fitted_N, ".", ms=6, color=BLUE, alpha=0.6)
    left.text(0.03, 0.97, "fitted points", transform=left.transAxes, va="top", color=BLUE)
    right.plot(fit.x_N, 100 * (fitted_N / fit.y_N - 1), ".", ms=6, color=BLUE, alpha=0.6)
    if held_out:
        look = {"fmt": "D", "ms": 4.5, "color": ORANGE, "lw": 0.9, "capsize": 2}
        reach = np.transpose([(p.predicted - p.low, p.high - p.predicted) for p in held_out])
        left.errorbar(actual, predicted, reach, **look, **LATER)
        left.text(0.03, 0.90, "held out, 90 % interval", transform=left.transAxes, va="top", color=ORANGE)
        right.plot([p.x for p in held_out], [p.error_pct for p in held_out], "D", ms=4.5, **LATER)
    right.axhline(0, color=GREY, lw=1, ls="--")
    right.set_xscale("log")
    left.set(xlim=ends, ylim=ends, xlabel=f"actual {y_label}", ylabel=f"{fit.law.name}: fitted or predicted {y_label}")
    right.set(xlabel=x_label, ylabel="fitted - actual, % of actual")
    for axes in (left, right):
        draw_frame(axes)
    figure.suptitle(finding, fontsize=11, x=0.02, ha="left")
    return figure


def style(axes: "Axes", x_label: str, y_label: str) -> None:
    """Logarithmic axes with round ticks, labels and a grid."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    axes.set(xscale="log", yscale="log", xlabel=LABELS.get(x_label, x_label), ylabel=LABELS.get(y_label, y_label))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    draw_frame(axes)


LABELS = {
    "N_body": "parameters without embeddings, N_body",
    "N_total": "all parameters, N_total",
    "D": "interactions processed, D",
    "U": "unique training targets, U",
    "flops": "training FLOPs",
    "test_loss": "test loss (nats per target)",
    "val_loss": "validation loss (nats per target)",
}
