"""The picture of a law of several variables: fitted against actual losses, and what is left over."""

from typing import TYPE_CHECKING

from lrec.common.pictures import draw_frame, new_figure
from lrec.laws.figures import BLUE, GREY, ORANGE
from lrec.laws.fit import Fit
from lrec.laws.predict import Holdout

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def agreement_figure(fit: Fit, holdout: Holdout | None, x_label: str, y_label: str) -> "Figure":
    """Draw fitted over actual losses, held-out ones with their 90 % intervals, and residuals over the size."""
    alt = (
        f"Fitted against actual {y_label}, held-out points with 90 % intervals; beside it, residuals against {x_label}"
    )
    figure = new_figure(9.0, 4.2, alt)
    left, right = figure.subplots(1, 2)
    fitted_N = fit.curve(fit.x_NV)
    held_out = holdout.points if holdout is not None else ()
    losses = [*fit.y_N, *fitted_N, *(p.actual for p in held_out), *(p.predicted for p in held_out)]
    ends = [min(losses) * 0.98, max(losses) * 1.02]
    left.plot(ends, ends, color=GREY, lw=1, ls="--", label="fitted = actual")
    left.plot(fit.y_N, fitted_N, ".", ms=6, color=BLUE, alpha=0.6, label="fitted points")
    right.plot(fit.x_N, 100 * (fitted_N / fit.y_N - 1), ".", ms=6, color=BLUE, alpha=0.6)
    if held_out:
        actual, predicted = [p.actual for p in held_out], [p.predicted for p in held_out]
        reach = [[p.predicted - p.low for p in held_out], [p.high - p.predicted for p in held_out]]
        left.errorbar(
            actual, predicted, reach, fmt="D", ms=4.5, mfc="white", mec=ORANGE, color=ORANGE, lw=0.9, capsize=2,
            label="held out, 90 % interval",
        )  # fmt: skip
        errors = [p.error_pct for p in held_out]
        right.plot([p.x for p in held_out], errors, "D", ms=4.5, mfc="white", mec=ORANGE)
    right.axhline(0, color=GREY, lw=1, ls="--")
    right.set_xscale("log")
    left.set(xlim=ends, ylim=ends, xlabel=f"actual {y_label}", ylabel=f"{fit.law.name}: fitted or predicted {y_label}")
    right.set(xlabel=x_label, ylabel="fitted - actual, % of actual")
    left.legend(fontsize=7.5, edgecolor="none")
    for axes in (left, right):
        draw_frame(axes)
    return figure
