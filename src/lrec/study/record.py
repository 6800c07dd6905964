"""The record of a study: study.json with its grid and the state of each run, and the points of all finished runs.

The two files are all that another machine needs to go on with a study without training anything twice.
"""

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lrec.errors import UserError
from lrec.files import write_json, write_text
from lrec.study.grid import dotted
from lrec.study.launch import Outcome, Run, finished_point

# Where data lie and how they are served: no part of what is trained.
_PLACES = ("data.init_args.path", "data.init_args.data_dir", "data.init_args.num_workers", "data.init_args.memory_gib")


class Book:
    """The record of a study, written after every change.

    Attributes:
        folder: Where each run has its folder.
        runs: The runs of the grid as it is now.
        state: waiting, skipped, stopped, failed, diverged or finished, by name of a run.
    """

    def __init__(self, out: Path, name: str, runs: list[Run], judged_by: dict[str, str]) -> None:
        """Open the study's folder, and put back the points of finished runs whose own folders were not kept.

        Args:
            out: The study's folder.
            name: Its name.
            runs: The runs of the grid, more or other ones than before too.
            judged_by: The law and its variables.

        Raises:
            UserError: the folder holds something else.
        """
        self.out, self.name, self.runs, self.judged_by = out, name, runs, judged_by
        self.folder, self.path, self._points = out / "runs", out / "study.json", out / "all_points.jsonl"
        self._put_back()
        earlier: dict[str, Any] = {"grid": {"runs": []}, "earlier_runs": [], "state": {}}
        if self.path.is_file():
            earlier |= json.loads(self.path.read_text(encoding="utf-8"))
        elif out.exists() and any(out.iterdir()) and not any(self.folder.glob("*/points.jsonl")):
            raise UserError(f"{out} is not empty and holds no study: choose another --out")
        self._earlier = {run["name"]: run for run in [*earlier["earlier_runs"], *earlier["grid"]["runs"]]}
        self.state: dict[str, str] = {run.name: earlier["state"].get(run.name, "waiting") for run in runs}
        self.reasons: dict[str, str] = {}

    def enter(self, restart: Collection[str], skip: Collection[str]) -> list[Run]:
        """Take the runs into the study and return those to be trained or read; finished ones are kept as they are.

        Args:
            restart: Names of runs to train from the beginning.
            skip: Names of runs to leave out.

        Raises:
            UserError: a run was begun with other options than it now has.
        """
        for run in self.runs:
            folder = self.folder / run.name
            if run.name in restart:
                shutil.rmtree(folder, ignore_errors=True)
            elif changes := self._changes(run):
                raise UserError(
                    f"{self.out} has run {run.name} with other options ({changes}): choose another --out, "
                    f"or --restart '[{run.name}]' to train it again"
                )
            point = finished_point(folder)
            self.state[run.name] = "waiting" if point is None else point["status"]
            if run.name in skip:
                self.state[run.name] = "skipped"
        self._write()
        return [run for run in self.runs if run.name not in skip]

    def note(self, run: Run, outcome: Outcome) -> None:
        """Write down what became of a run."""
        self.state[run.name] = outcome.status
        if outcome.reason:
            self.reasons[run.name] = outcome.reason
        self._write()

    def _changes(self, run: Run) -> str:
        if run.name not in self._earlier or not (self.folder / run.name).exists():
            return ""
        return changed_options(self._earlier[run.name]["options"], run.options)

    def _write(self) -> None:
        """study.json, and the points of all finished runs, those that have left the grid too."""
        grid = {"name": self.name, **self.judged_by, "runs": [asdict(run) for run in self.runs]}
        finished = [file for file in sorted(self.folder.glob("*/points.jsonl")) if finished_point(file.parent)]
        outside = {file.parent.name for file in finished} & set(self._earlier) - set(self.state)
        content = {
            "name": self.name,
            "grid": grid,
            "state": self.state,
            "reasons": self.reasons,
            "earlier_runs": [self._earlier[name] for name in sorted(outside)],
        }
        write_json(self.path, content)
        write_text(self._points, "".join(file.read_text(encoding="utf-8") for file in finished))

    def _put_back(self) -> None:
        lines: dict[str, list[str]] = defaultdict(list)
        if self._points.is_file():
            for line in self._points.read_text(encoding="utf-8").splitlines():
                lines[json.loads(line)["run"]].append(line + "\n")
        for name, mine in lines.items():
            if not (self.folder / name).exists():
                write_text(self.folder / name / "points.jsonl", "".join(mine))


def changed_options(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs in what is trained, in words; an option that an earlier version did not know has its default."""
    if _trained_with(earlier) == _trained_with(now):
        return ""
    from lrec.lightning_cli import compose

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(earlier), encoding="utf-8")
        before, after = _trained_with(compose([f"--config={path}"])), _trained_with(now)
    differing = [name for name in before | after if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {before.get(name)}, now {after.get(name)}" for name in differing)


def _trained_with(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in dotted(json.loads(json.dumps(options))).items() if name not in _PLACES}
