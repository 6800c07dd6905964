"""The record of a study: study.json with its grid and the state of each run, and all_points.jsonl of finished runs.

Another machine needs only these two files to continue the study without training a run twice.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

from lrec.common.files import read_json, undamaged, write_json, write_text
from lrec.common.hardware import auto_precision
from lrec.errors import UserError
from lrec.run import Run, RunConfig, find_points, read_points_file
from lrec.study.grid import PlannedRun, changed
from lrec.study.launch import Outcome, is_running
from lrec.study.options import PLAN, Study
from lrec.study.placement import placement

_OF_OTHERS = {"full-1", "again"}  # variants that every backtest, and every exchange, has
_AT_START = ("trainer.default_root_dir", "points.study", "points.run", "model.warm_start")  # set when a run starts


class Record:
    def __init__(self, study: Study, runs: list[PlannedRun]) -> None:
        """Open the study's folder with the runs of the present grid, and restore the points of finished runs whose own
        folders are gone. UserError if the study's folder holds something else."""
        out = study.folder
        self.study, self.folder, self.path = study, out / "runs", out / "study.json"
        self._points = out / "all_points.jsonl"
        points = read_points_file(self._points) if self._points.is_file() else []
        with undamaged(self.path):
            earlier: dict[str, Any] = read_json(self.path, {"grid": {"runs": []}, "earlier_runs": [], "state": {}})
            self._earlier = {run["name"]: run for run in [*earlier["earlier_runs"], *earlier["grid"]["runs"]]}
            self._precision = {name: run["options"]["trainer"]["precision"] for name, run in self._earlier.items()}
            had = {run["variant"] for run in self._earlier.values()}
            # waiting, skipped, stopped, failed, diverged or finished
            self.state: dict[str, str] = {run.name: earlier["state"].get(run.name, "waiting") for run in runs}
            self.threads: dict[str, int] = earlier.get("threads", {})  # cores of each run that was trained
        known = self.path.exists() or points or find_points(self.folder)
        if {path.name for path in out.glob("*")} - {PLAN} and not known:
            raise UserError(f"{out} is not empty and holds no study: choose another --out")
        if had and _OF_OTHERS & (had ^ {run.variant for run in runs}):
            raise UserError(f"{out} holds the runs of another command: choose another --out")
        for name, mine in groupby(sorted(points, key=attrgetter("run")), attrgetter("run")):
            if not (self.folder / name).exists():
                Run(self.folder / name).write_points([*mine])
        self.runs = self._in_one_precision(runs)
        self.reasons: dict[str, str] = {}

    def trained(self, run: PlannedRun) -> Run:
        return Run(self.folder / run.name)

    def enter(self, restart: Collection[str] | None, skip: Collection[str]) -> list[PlannedRun]:
        """Add the runs to the study, delete what `restart` names (None: the command has no --restart), and return all
        runs except those in `skip`. UserError, with nothing changed, if a run began with other options or other data
        than it has now, or if a run in `restart` is being trained."""
        can_restart, restart = restart is not None, restart or ()
        for run in self.runs:
            if run.name in restart and is_running(self.trained(run).folder):
                raise UserError(f"--restart {run.name}: it is under way: wait for its end, or stop it")
            begun = self._begun(run)
            if run.name in restart or begun is None:
                continue
            if run.starts_from in restart:
                way_out = "restart both, or choose another --out"
                raise UserError(f"--restart {run.starts_from}: {run.name} started from it: {way_out}")
            changes = changed_options(RunConfig(begun["options"]), run.config)
            if (source := begun.get("starts_from", "")) != run.starts_from:
                changes = f"starts from {source or 'no other run'}, now from {run.starts_from or 'no other run'}"
            if changes:
                way_out = "choose another --out"
                if can_restart:
                    way_out += f", or --restart '[{run.name}]' to train it again"
                raise UserError(f"{self.study.folder} has run {run.name} with other options ({changes}): {way_out}")
        entered = [run for run in self.runs if run.name not in skip]
        self.check_data(entered, restart)
        for run in self.runs:
            if run.name in restart:
                shutil.rmtree(self.trained(run).folder, ignore_errors=True)
            point = self.trained(run).result
            self.state[run.name] = "skipped" if run.name in skip else "waiting" if point is None else point.status
            if point is None:
                self.threads[run.name] = self.study.threads
        self._write()
        return entered

    def _begun(self, run: PlannedRun) -> dict[str, Any] | None:
        """What study.json, or else its own config.yaml, says about a run that has begun; None if it has not."""
        trained = self.trained(run)
        if run.name in self._earlier or not trained.config_file.is_file():
            return self._earlier.get(run.name) if trained.folder.exists() else None
        planned = {option: run.config.value(option) for option in _AT_START if option in trained.config.flat}
        return {"options": changed(trained.config.options, planned), "starts_from": run.starts_from}

    def check_data(self, runs: list[PlannedRun], restart: Collection[str] = ()) -> None:
        """UserError if the data of a ladder are not those of its finished runs, except those in `restart`. Of ladders
        without a run to train, one is checked, unless its data are gone."""
        results = [(run, None if run.name in restart else self.trained(run).result) for run in runs]
        to_train = {run.ladder: run for run, point in results if point is None}
        of_ladder: dict[str, dict[str, str]] = defaultdict(dict)  # by data hash, where these data are from
        finished = [(run, point.data_hash) for run, point in results if point is not None and point.data_hash]
        for run, data_hash in finished:
            of_ladder[run.ladder].setdefault(data_hash, f"the data of run {run.name}")
        needed = [run for ladder, run in to_train.items() if ladder in of_ladder]
        idle = [run for run, _ in finished if run.ladder not in to_train][:1]  # it does not need the data
        for run in needed + idle:
            with suppress(UserError) if run in idle else nullcontext():
                of_ladder[run.ladder].setdefault(run.open_data().data_hash, "the current data")
        for found in of_ladder.values():
            if len(found) > 1:
                (one, first), (two, second) = list(found.items())[:2]
                differ = f"{first} have data_hash {one[:16]}, {second} {two[:16]}"
                way_out = "Choose another --out, or restore the earlier data"
                raise UserError(f"{self.study.folder}: the data have changed: {differ}. {way_out}")

    def note(self, run: PlannedRun, outcome: Outcome) -> None:
        self.state[run.name] = outcome.status
        if outcome.reason:
            self.reasons[run.name] = outcome.reason
        self._write()

    def _in_one_precision(self, runs: list[PlannedRun]) -> list[PlannedRun]:
        """The runs, with a value for `trainer.precision auto`: the one that runs had before, or the faster one here."""
        unsettled = [run for run in runs if run.config.value("trainer.precision") == "auto"]
        if not unsettled:
            return runs
        had = [self._precision[run.name] for run in unsettled if run.name in self._precision]
        kinds = {placement(run.config).kind for run in unsettled}
        if not had and len(kinds) > 1:
            mixed = "some runs train on CPUs, others on GPUs, but all need the same precision"
            raise UserError(f"trainer.precision auto: {mixed}: choose 32-true or bf16-mixed")
        precision = had[0] if had else auto_precision(*kinds)
        if not had:
            print(f"precision: {precision}, chosen by auto")
        settled = {run.name: changed(run.options, {"trainer.precision": precision}) for run in unsettled}
        return [replace(run, options=settled.get(run.name, run.options)) for run in runs]

    def _write(self) -> None:
        """Write study.json, also with runs that have left the grid but may return, and the points of finished runs."""
        study, left = self.study, sorted(self._earlier.keys() - self.state)
        grid = {"name": study.name, "law": str(study.law), "x": study.x, "y": study.y}
        content: dict[str, Any] = {"name": study.name, "grid": grid | {"runs": [asdict(run) for run in self.runs]}}
        content |= {"state": self.state, "reasons": self.reasons, "threads": self.threads}
        content |= {"earlier_runs": [self._earlier[name] for name in left if (self.folder / name).exists()]}
        write_json(self.path, content)
        finished = [file for file in find_points(self.folder) if Run(file.parent).result is not None]
        write_text(self._points, "".join(file.read_text(encoding="utf-8") for file in finished))


def changed_options(earlier: RunConfig, now: RunConfig) -> str:
    """The differences in options that affect training, in words. An option missing in `earlier` has its default."""
    before, after = earlier.trained_with, now.trained_with
    if before == after:
        return ""  # the usual case, without importing Lightning
    from lrec.training.lightning_cli import compose

    before, after = (
        RunConfig(compose([f"--config={json.dumps(each.options)}"])).trained_with for each in (earlier, now)
    )
    differing = [name for name in before | after if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {before.get(name)}, now {after.get(name)}" for name in differing)
