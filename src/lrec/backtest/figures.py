"""The picture of a backtest: what size brings against a network's age."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lrec.backtest.findings import CONFIDENCE, METRIC, Gain, Z
from lrec.common.pictures import draw_frame, new_figure
from lrec.laws.figures import BLUE, GREY

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def age_figure(ages: Sequence[str], gains: Sequence[Gain], finding: str) -> "Figure":
    """The gain of the larger network at each age with its interval, and no gain."""
    figure = new_figure(4.4, 3.2, f"{finding}. Gain in {METRIC} against the age of the networks, with {CONFIDENCE}")
    axes = figure.add_subplot()
    value_A, half_A = np.array([(100 * gain.value / gain.base, 100 * Z * gain.error / gain.base) for gain in gains]).T
    axes.errorbar(range(len(ages)), value_A, half_A, fmt="o-", color=BLUE, lw=2, elinewidth=1, capsize=3)
    axes.axhline(0, color=GREY, lw=1, ls="--")
    axes.text(len(ages) - 1, 0, "no gain", color=GREY, ha="right", va="bottom")
    axes.set_xticks(range(len(ages)), ages)
    axes.set(xlabel="age of the networks", ylabel=f"gain in {METRIC}, %")
    axes.set_title(finding, fontsize=9)
    draw_frame(axes)
    return figure
