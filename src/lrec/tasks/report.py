"""What the tasks write: tasks.json, tasks.md, a figure per task, and the short tables on the terminal. A figure shows
the first metric of each section against N_body: a line per group, and popularity as a dashed line."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning_utilities.core.apply_func import apply_to_collection

from lrec.common.files import finite, remove, write_json, write_text
from lrec.common.pages import rendered
from lrec.common.pictures import draw_frame, entitle, label_ends, new_figure, write_png
from lrec.common.text_tables import on_terminal, rows_table
from lrec.evaluation.cases import LIST_LENGTH
from lrec.evaluation.metrics import METRICS
from lrec.tasks.intervals import CONFIDENCE, RESAMPLES, Estimate, estimate
from lrec.tasks.results import POPULARITY, Section, TaskResult
from lrec.tasks.trained_runs import Ladder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA = 1
SPREAD = 0.012  # share of the axis between the marks of neighbouring groups, so that their intervals do not overlap


@dataclass
class Report:
    """The results of tasks on runs; `diverged` lists the runs that were left out because they diverged."""

    ladder: Ladder
    diverged: list[Path]
    seed: int
    results: list[TaskResult] = field(default_factory=list)

    def write(self, out: Path) -> None:
        """Write tasks.json, tasks.md and the figures into a folder, created if absent."""
        for result in self.results:
            picture = out / f"{result.name}.png"
            if result.sections:
                write_png(picture, task_figure(result))
            else:  # one of an earlier report
                remove(picture)
        write_json(out / "tasks.json", self.content())
        write_text(out / "tasks.md", self.markdown())

    def content(self) -> dict[str, Any]:
        """The content of tasks.json; a number that is not finite becomes null."""
        tasks = {each.name: {"notes": each.notes, "sections": [*map(_content, each.sections)]} for each in self.results}
        return {
            "schema": SCHEMA,
            "runs": {str(run.run.folder): run.n_body for _, runs in self.ladder.rows() for run in runs},
            "diverged": [str(folder) for folder in self.diverged],
            "users": self.ladder.split.store.n_users,
            "items": len(self.ladder.counts_V),
            "max_len": self.ladder.max_len,
            "most_users": self.ladder.most_users,
            "seed": self.seed,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "tasks": tasks,
        }

    def markdown(self) -> str:
        """tasks.md, by `tasks.md.j2`: a table per section and metric, the findings, and the notes."""
        rows = [["size", "N_body", "trained on", "runs"]]
        for what, runs in self.ladder.rows():
            rows.append([runs[0].name, f"{runs[0].n_body:,}", what, ", ".join(run.run.name for run in runs)])
        own = [metric for metric in self.ladder.metrics if metric not in METRICS]
        labels = [f"{metric.name}@{LIST_LENGTH}" if metric.at_k else metric.name for metric in own]

        def tables(section: Section) -> list[str]:
            known = next(iter(section.groups.values())).draws[section.names[0]]
            return [_table(section, metric) for metric in (*section.shown, *(each for each in labels if each in known))]

        shown = {"runs": rows_table(rows, text=(0, 2, 3)), "confidence": CONFIDENCE, "resamples": RESAMPLES}
        shown |= vars(self) | {"tables": tables, "alt_of": alt_of}
        return rendered("tasks", "tasks.md.j2", shown).rstrip() + "\n"

    def summary(self) -> str:
        """The first metric of each section, its findings, and the notes, for a terminal."""
        lines = []
        for result in self.results:
            for section in result.sections:
                table = on_terminal(_table(section, section.shown[0], brief=True))
                lines += ["", f"{result.title}. {section.title}", table, *section.findings]
            lines += [] if result.sections else ["", f"{result.title}."]
            lines += [f"{note}." for note in result.notes]
        return "\n".join(lines).strip()


def _content(section: Section) -> dict[str, Any]:
    groups = {
        name: {
            "cases": group.cases,
            "users": group.users,
            "scorers": section.estimates(name),
            "gain": section.gains(name),
        }
        for name, group in section.groups.items()
    }
    plain = finite(apply_to_collection(groups, Estimate, Estimate._asdict))
    return {"title": section.title, "sizes": section.sizes, "groups": plain, "findings": section.findings}


def _table(section: Section, metric: str, brief: bool = False) -> str:
    """A Markdown table with a row per group and a column per scorer; if brief, of drawn groups, without intervals."""
    scorers = [*next(iter(section.groups.values())).draws]
    gains = ["slope per decade", "largest / smallest"] if len(section.names) > 1 and not brief else []
    rows = [[metric, "cases", *scorers, *gains]]
    for name in section.drawn_groups if brief else section.groups:
        group = section.groups[name]
        if metric in group.draws[scorers[0]]:  # clean histories have no lost share
            draws = [group.draws[scorer][metric] for scorer in scorers]
            rows.append([name, f"{group.cases:,}", *(_number(each[0]) if brief else _cell(each) for each in draws)])
            if gains:
                rows[-1] += [_cell(section.slope(name, metric), "+"), _cell(section.ratio(name, metric))]
    return rows_table(rows, text=(0,))


def _cell(draws_R: np.ndarray, sign: str = "") -> str:
    shown = estimate(draws_R)
    return "undefined" if math.isnan(shown.value) else shown.shown(lambda value: _number(value, sign))


def _number(value: float, sign: str = "") -> str:
    if not math.isfinite(value):
        return "∞" if value > 0 else "undefined"
    digits = ",.0f" if abs(value) >= 100 else ".2f" if abs(value) >= 1 else ".4f"
    return f"{value:{sign}{digits}}"


def task_figure(result: TaskResult) -> "Figure":
    """Draw a task, without a display and without global state of matplotlib."""
    columns = min(len(result.sections), 2)
    rows = -(-len(result.sections) // columns)
    figure = new_figure(6.4 * columns, 3.8 * rows + 0.3, alt_of(result))
    for index, section in enumerate(result.sections, start=1):
        _draw(figure.add_subplot(rows, columns, index), section)
    figure.suptitle(f"{result.title} (dashed: popularity, same cases)", fontsize=11, x=0.02, ha="left")
    return figure


def alt_of(result: TaskResult) -> str:
    """What the figure of a task shows, in words."""
    panels = (f"{section.shown[0]} by {section.title[0].lower()}{section.title[1:]}" for section in result.sections)
    return f"{result.title} against N_body, a line for each group: {'; '.join(panels)}"


def _draw(axes: "Axes", section: Section) -> None:
    from matplotlib import colormaps

    metric, groups = section.shown[0], section.drawn_groups
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(groups)))
    n_body_S = np.array(list(section.sizes.values()))
    decades = float(np.ptp(np.log10(n_body_S))) or 1.0
    axes.set_xscale("log")
    ends = []
    for place, (name, colour) in enumerate(zip(groups, colours, strict=True)):
        draws = section.groups[name].draws
        values, lows, highs = np.transpose([estimate(draws[size][metric]) for size in section.names])
        shifted = n_body_S * 10 ** (SPREAD * (place - (len(groups) - 1) / 2) * decades)
        # A percentile interval may be on one side of the value, but a bar cannot have a negative length.
        bars = np.nan_to_num([np.maximum(values - lows, 0), np.maximum(highs - values, 0)], posinf=0.0)
        axes.errorbar(shifted, values, bars, fmt="o-", ms=4, lw=1.4, elinewidth=0.9, capsize=2, color=colour)
        ends.append((f"{name} ({section.groups[name].cases:,})", shifted[-1], values[-1], colour))
        if metric in draws[POPULARITY]:
            axes.axhline(draws[POPULARITY][metric][0], color=colour, lw=0.8, ls="--", alpha=0.7)
    entitle(axes, "\n".join(wrap(section.findings[0] if section.findings else metric, 60)), section.title)
    axes.set_xlabel("parameters without embeddings, N_body")
    axes.set_ylabel(metric.replace("_lost", ", share lost"))
    draw_frame(axes)
    label_ends(axes, ends)
