"""How far a study's runs are, from what is on disk."""

import shutil
import sys
from pathlib import Path

from lrec.run import Run
from lrec.study.grid import PlannedRun
from lrec.study.launch import is_running


def runs_table(runs: list[PlannedRun], folder: Path, known: dict[str, str]) -> str:
    """State, progress and losses of every run, of runs on other nodes too.

    Args:
        runs: The runs.
        folder: Where each has its folder.
        known: The states that the study's record gives; what is on disk is newer.
    """
    head = f"{'run':<32}{'':<9}{'state':<12}{'epochs':>8}{'steps':>9}"
    lines = [head + "".join(f"{title:>10}" for title in ("train", "val", "best val", "test", "hours"))]
    for run in runs:
        kind = "held out" if run.held_out else "fitted"
        line = f"{run.name:<32}{kind:<9}{_state(folder / run.name, known.get(run.name, 'waiting')):<12}"
        if points := Run(folder / run.name).points:
            last = points[-1]
            best = min((p.val_loss for p in points if p.val_loss is not None), default=None)
            test = next((p.test_loss for p in points if p.best), None)
            line += f"{last.epochs:>8.2f}{last.step:>9,}"
            numbers = (last.train_loss, last.val_loss, best, test, last.wall_s / 3600)
            line += "".join(" " * 10 if number is None else f"{number:>10.4f}" for number in numbers)
        lines.append(line)
    return "\n".join(lines)


def _state(folder: Path, known: str) -> str:
    """running, finished, diverged, unfinished (it resumes where it stopped), or what is known of it."""
    if is_running(folder):
        return "running"
    if point := Run(folder).result:
        return point.status
    return "unfinished" if known == "waiting" and Run(folder).points else known


class LiveTable:
    """The table of the runs under way, drawn over itself; nothing where stderr is not a terminal."""

    def __init__(self) -> None:
        self.lines = 0

    def draw(self, runs: list[PlannedRun], folder: Path) -> None:
        """Show how far the runs are, in place of what was shown before."""
        if not sys.stderr.isatty():
            return
        self.clear()
        columns, rows = shutil.get_terminal_size()  # what does not fit could not be drawn over
        table = runs_table([run for run in runs if is_running(folder / run.name)], folder, {})
        shown = [line[: columns - 1] for line in table.splitlines()[: rows - 1]]
        print(*shown, sep="\n", file=sys.stderr, flush=True)
        self.lines = len(shown)

    def clear(self) -> None:
        """Take the table away, so that a line can be printed above the next one."""
        if self.lines:
            print(f"\x1b[{self.lines}F\x1b[J", end="", file=sys.stderr, flush=True)
            self.lines = 0
