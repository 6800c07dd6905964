"""Pictures of a fit. Of one variable: points, curve, 90 % band, held-out predictions, floor and residuals. Of several:
fitted against actual losses, and residuals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from lrec.common.pictures import draw_frame, new_figure
from lrec.laws.fit import Fit, fit_points
from lrec.laws.law import NOT_IDENTIFIED, Array, is_identified
from lrec.laws.predict import HeldOut, Holdout, Predictor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#1f5fa8", "#c8501e", "#5a5a5a"
LATER = {"mfc": "white", "mec": ORANGE}
LEGEND: dict[str, Any] = {"fontsize": 7.5, "facecolor": "white", "edgecolor": "none", "framealpha": 0.85}


def fit_figure(
    predictor: Predictor,
    fit: Fit,
    holdout: Holdout | None = None,
    floor: float | None = None,
    x_label: str = "N_body",
    y_label: str = "test_loss",
) -> "Figure":
    """Draw a forecast, with the law's `fit` as a thin line, or that fit itself, on logarithmic axes, without a display.

    Held-out sizes with smaller shares of the data, or of shorter runs, lie on other curves and are left out.
    """
    later = ", held-out sizes" if holdout else ""
    alt = f"{y_label} against {x_label}: losses, {predictor.name} with 90 % bands{later}; below, residuals"
    figure = new_figure(6.4, 5.4, alt)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
    every = holdout.points if holdout else ()
    most = max(((p.d or 0, p.u or 0) for p in every), default=None)
    held_out = [p for p in every if (p.d or 0, p.u or 0) == most]
    x_P = np.geomspace(fit.x_N.min() / 1.3, 1.6 * max(fit.x_N.max(), *(p.x for p in held_out), 0.0), 120)
    band = predictor.predict(x_P)
    curve_P = np.array([p.predicted for p in band])
    for ends, alpha, of in (("low high", 0.10, "a new run"), ("mean_low mean_high", 0.20, "the curve")):
        low_P, high_P = ([getattr(p, end) for p in band] for end in ends.split())
        axes.fill_between(x_P, low_P, high_P, color=BLUE, alpha=alpha, lw=0, label=f"90 % band of {of}")
    if isinstance(predictor, Fit):
        axes.plot(x_P, curve_P, color=BLUE, lw=1.6, label=_formula(fit))
        _draw_pinned(axes, fit, x_P)
    else:
        axes.plot(x_P, curve_P, color=BLUE, lw=1.6, label=predictor.name)
        axes.plot(x_P, fit.curve(x_P), color=BLUE, lw=0.9, ls=":", label=_formula(fit))
    sizes, means = fit.points.group_by("x").agg(pl.col("y").mean()).sort("x")
    if len(fit.x_N) > len(sizes):
        axes.plot(fit.x_N, fit.y_N, ".", ms=4, color=BLUE, alpha=0.55, label="single runs")
    axes.plot(sizes, means, "o", ms=5.5, color=BLUE, mec="white", mew=0.6, label="fitted sizes", zorder=3)
    if held_out:
        later_x, predicted, actual = np.transpose([(p.x, p.predicted, p.actual) for p in held_out])
        look = {"fmt": "_", "ms": 13, "color": ORANGE, "lw": 1.2, "capsize": 4}
        axes.errorbar(later_x, predicted, _reach(held_out), label="predicted, 90 % interval", **look)
        axes.plot(later_x, actual, "D", ms=5.5, **LATER, mew=1.4, label="held out, actual", zorder=4)
    if floor is not None:
        axes.axhline(floor, color=GREY, lw=1, ls="--", label=f"floor {floor:.4g}")
    style(axes, x_label, y_label)
    axes.legend(**LEGEND)
    axes.set_xlabel("")

    edges = [[100 * (end / p.predicted - 1) for end in (p.low, p.high)] for p in band]
    below.fill_between(x_P, *np.transpose(edges), color=BLUE, alpha=0.10, lw=0)
    below.axhline(0, color=BLUE, lw=1.2)
    off_N = 100 * (fit.y_N / np.exp(np.interp(np.log(fit.x_N), np.log(x_P), np.log(curve_P))) - 1)
    missed = [100 * (p.actual / p.predicted - 1) for p in held_out]
    below.plot(fit.x_N, off_N, "o", ms=4, color=BLUE, mec="white", mew=0.5)
    below.plot([p.x for p in held_out], missed, "D", ms=5, **LATER, mew=1.4)
    limit = 1.3 * max(0.1, *np.abs([*off_N, *missed]))
    below.set_ylim(-limit, limit)
    below.set_ylabel("above curve, %")
    below.set_xlabel(LABELS.get(x_label, x_label))
    draw_frame(below)
    return figure


def agreement_figure(fit: Fit, holdout: Holdout | None, x_label: str, y_label: str) -> "Figure":
    """Draw fitted over actual losses, held-out ones with their 90 % intervals, and residuals over the size."""
    alt = (
        f"Fitted against actual {y_label}, held-out points with 90 % intervals; beside it, residuals against {x_label}"
    )
    figure = new_figure(9.0, 4.2, alt)
    left, right = figure.subplots(1, 2)
    fitted_N = fit.curve(fit.x_NV)
    held_out = holdout.points if holdout is not None else ()
    actual, predicted = [p.actual for p in held_out], [p.predicted for p in held_out]
    losses = [*fit.y_N, *fitted_N, *actual, *predicted]
    ends = [min(losses) * 0.98, max(losses) * 1.02]
    left.plot(ends, ends, color=GREY, lw=1, ls="--", label="fitted = actual")
    left.plot(fit.y_N, fitted_N, ".", ms=6, color=BLUE, alpha=0.6, label="fitted points")
    right.plot(fit.x_N, 100 * (fitted_N / fit.y_N - 1), ".", ms=6, color=BLUE, alpha=0.6)
    if held_out:
        look = {"fmt": "D", "ms": 4.5, "color": ORANGE, "lw": 0.9, "capsize": 2}
        left.errorbar(actual, predicted, _reach(held_out), label="held out, 90 % interval", **look, **LATER)
        right.plot([p.x for p in held_out], [p.error_pct for p in held_out], "D", ms=4.5, **LATER)
    right.axhline(0, color=GREY, lw=1, ls="--")
    right.set_xscale("log")
    left.set(xlim=ends, ylim=ends, xlabel=f"actual {y_label}", ylabel=f"{fit.law.name}: fitted or predicted {y_label}")
    right.set(xlabel=x_label, ylabel="fitted - actual, % of actual")
    left.legend(fontsize=7.5, edgecolor="none")
    for axes in (left, right):
        draw_frame(axes)
    return figure


def _reach(held_out: Sequence[HeldOut]) -> Array:
    """How far the intervals reach below and above the predictions."""
    return np.transpose([(p.predicted - p.low, p.high - p.predicted) for p in held_out])


def _draw_pinned(axes: "Axes", fit: Fit, x_P: Array) -> None:
    """The law with its floor at both ends of its interval."""
    floor = fit.law.parameters[0]
    ends = fit.profile.parameters[floor]
    label: str | None = f"{floor} pinned at {' and '.join(map(_short, ends))}, its interval's ends"
    for end in ends:
        pinned = fit_points(fit.law, fit.points, fit.objective, {floor: end})
        axes.plot(x_P, pinned.curve(x_P), color=BLUE, lw=0.9, ls=":", label=label)
        label = None


def style(axes: "Axes", x_label: str, y_label: str) -> None:
    """Logarithmic axes with round ticks, labels and a grid."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(LABELS.get(x_label, x_label))
    axes.set_ylabel(LABELS.get(y_label, y_label))
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


def _formula(fit: Fit) -> str:
    values = ", ".join(
        f"{name} = {_short(value)}" if is_identified(value) else f"{name} {NOT_IDENTIFIED}"
        for name, value in fit.parameters.items()
    )
    return f"{fit.law.formula}\n{values}"


def _short(value: float) -> str:
    """Three digits, and powers of ten as print has them."""
    text = f"{value:.3g}"
    if "e" not in text:
        return text
    digits, power = text.split("e")
    return f"${digits}\\times 10^{{{int(power)}}}$"
