"""The progress of a study's runs, read from disk."""

import math
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from lrec.common.text_tables import counted
from lrec.run import Run
from lrec.study.grid import PlannedRun
from lrec.study.launch import is_running

LINE_S = 60.0  # between two log lines about the same run


def runs_table(runs: list[PlannedRun], folder: Path, known: dict[str, str]) -> str:
    """A table of the state, losses and progress of every run. Files in `folder` count more than the `known` states."""
    width = max([30, *(len(run.name) for run in runs)]) + 2
    head = f"{'run':<{width}}{'':<9}{'state':<12}{'epochs':>8}{'steps':>9}"
    lines = [head + "".join(f"{title:>10}" for title in ("train", "val", "best val", "test", "hours"))]
    for run in runs:
        trained = Run(folder / run.name)
        kind, state = "held out" if run.held_out else "fitted", _state(trained, known.get(run.name, "waiting"))
        line = f"{run.name:<{width}}{kind:<9}{state:<12}"
        if points := trained.points:
            last = points[-1]
            best = min((p.val_loss for p in points if p.val_loss is not None), default=None)
            test = next((p.test_loss for p in points if p.best), None)
            line += f"{last.epochs:>8.2f}{last.step:>9,}"
            numbers = (last.train_loss, last.val_loss, best, test, last.wall_s / 3600)
            line += "".join(" " * 10 if number is None else f"{number:>10.4f}" for number in numbers)
        lines.append(f"{line}  {_progress(trained)}" if state == "running" else line)
    return "\n".join(lines)


def _state(run: Run, known: str) -> str:
    """running, finished, diverged, unfinished (it can resume where it stopped), or else the `known` state."""
    if is_running(run.folder):
        return "running"
    if point := run.result:
        return point.status
    return "unfinished" if known == "waiting" and run.points else known


def _progress(run: Run) -> str:
    """What a running run is doing now, from its progress file."""
    with suppress(FileNotFoundError):
        return run.progress_file.read_text(encoding="utf-8").strip()
    return "beginning" if run.result is None else "ending"


class Live:
    """Shows the progress of the running runs. A terminal gets a table that is drawn again in the same place. A log gets
    a line about each run when it begins, at its first evaluation, and every minute."""

    def __init__(self, runs: list[PlannedRun], folder: Path) -> None:
        self.runs, self.folder = runs, folder
        self.lines = 0  # of the table that is on the screen now
        self._said: dict[str, tuple[int, float]] = {}  # by run: evaluations at its last line, time of that line

    def show(self) -> None:
        """Draw the table in place of the last one; in a log, print only what is new."""
        under_way = [run for run in self.runs if is_running(self.folder / run.name)]
        if not sys.stderr.isatty():
            for run in under_way:
                self._print_news(Run(self.folder / run.name))
            return
        self.clear()
        columns, rows = shutil.get_terminal_size()  # lines that do not fit could not be removed
        shown = [line[: columns - 1] for line in runs_table(under_way, self.folder, {}).splitlines()[: rows - 1]]
        print(*shown, sep="\n", file=sys.stderr, flush=True)
        self.lines = len(shown)

    def clear(self) -> None:
        """Remove the table, so that a line can be printed above the next table."""
        if self.lines:
            print(f"\x1b[{self.lines}F\x1b[J", end="", file=sys.stderr, flush=True)
            self.lines = 0

    def _print_news(self, run: Run) -> None:
        points, now = run.points, time.monotonic()
        evaluations, when = self._said.get(run.name, (0, -math.inf))
        if now < when + LINE_S and (evaluations or not points):
            return
        self._said[run.name] = len(points), now
        parts = [_progress(run)]
        for last in points[-1:]:
            losses = {"train": last.train_loss, "val": last.val_loss}
            parts += [counted(last.epochs, "epoch"), *(f"{n} loss {v:.4f}" for n, v in losses.items() if v is not None)]
            parts.append(f"{last.wall_s:.0f} s")
        print(f"{run.name}: {', '.join(parts)}", flush=True)
