"""A task's figure: for each section its first metric against N_body, a line per group, the baselines dashed."""

from typing import TYPE_CHECKING

import numpy as np

from lrec.common.pictures import draw_frame, new_figure
from lrec.tasks.intervals import estimate
from lrec.tasks.results import POPULARITY, Section, TaskResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPREAD = 0.012  # share of the axis between the marks of neighbouring groups, so that their intervals do not overlap


def task_figure(result: TaskResult) -> "Figure":
    """Draw a task, without a display and without global state of matplotlib."""
    columns = min(len(result.sections), 2)
    rows = -(-len(result.sections) // columns)
    figure = new_figure(6.4 * columns, 3.8 * rows + 0.3, alt_of(result))
    for index, section in enumerate(result.sections, start=1):
        _draw(figure.add_subplot(rows, columns, index), section)
    figure.suptitle(result.title, fontsize=11)
    return figure


def alt_of(result: TaskResult) -> str:
    """What the figure of a task shows, in words."""
    panels = (f"{section.shown[0]} by {section.title[0].lower()}{section.title[1:]}" for section in result.sections)
    return f"{result.title} against N_body, a line for each group: {'; '.join(panels)}"


def _draw(axes: "Axes", section: Section) -> None:
    from matplotlib import colormaps

    metric, groups = section.shown[0], section.drawn_groups
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(groups)))
    decades = float(np.ptp(np.log10(section.n_body_S))) or 1.0
    axes.set_xscale("log")
    for place, (name, colour) in enumerate(zip(groups, colours, strict=True)):
        draws = section.groups[name].draws
        values, lows, highs = np.transpose([estimate(draws[size][metric]) for size in section.names])
        shifted = section.n_body_S * 10 ** (SPREAD * (place - (len(groups) - 1) / 2) * decades)
        # A percentile interval may be on one side of the value, but a bar cannot have a negative length.
        bars = np.nan_to_num([np.maximum(values - lows, 0), np.maximum(highs - values, 0)], posinf=0.0)
        axes.errorbar(
            shifted, values, bars, fmt="o-", ms=4, lw=1.4, elinewidth=0.9, capsize=2, color=colour,
            label=f"{name} ({section.groups[name].cases:,})",
        )  # fmt: skip
        if metric in draws[POPULARITY]:
            axes.axhline(draws[POPULARITY][metric][0], color=colour, lw=0.8, ls="--", alpha=0.7)
    axes.plot([], [], color="#5a5a5a", lw=0.8, ls="--", label="popularity, same cases")
    axes.set_title(section.title, fontsize=8.5)
    axes.set_xlabel("parameters without embeddings, N_body")
    axes.set_ylabel(metric.replace("_lost", ", share lost"))
    draw_frame(axes)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
