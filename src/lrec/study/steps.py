"""The ladder of a finished study, and possible next steps: single changes to the runs of one of its sizes."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lrec.common.files import read_json
from lrec.common.start_stop import importing
from lrec.errors import UserError
from lrec.laws.equivalents import LadderCurve
from lrec.run import Point, run_of_study
from lrec.study.grid import PlannedRun, of_all_data
from lrec.study.options import as_argument, ladder_n_body
from lrec.study.points import REPEATED
from lrec.study.price import wider
from lrec.study.tuning import LR

EPOCHS, LENGTH, USERS = "trainer.max_epochs", "data.max_len", "data.reduction.users"
TIME, SIZE = "model.architecture.time", "model.size"
FULL = "lrec.FullSoftmax"
Options = Mapping[str, Any]


class Ladder:
    """The finished runs of a study's first variant with the most data and the longest training, by size.

    Attributes:
        runs: The runs of the size at which steps are compared.
        losses: By size, a table for each run with its loss on each test target.
        curve: The mean loss over these targets, by N_body.
    """

    def __init__(self, study: Path, size: str | None) -> None:
        record = read_json(study / "study.json")
        if record is None:
            raise UserError(f"--study {study}: no study there (no study.json)")
        grid = record["grid"]
        every = [PlannedRun(**run) for run in grid["runs"]]
        if every[0].starts_from:
            raise UserError(
                f"--study {study}: its first variant, {every[0].variant}, starts from another, but steps train from "
                "the beginning: name another one first in the study's --variants, and start the study again"
            )
        self.study, self.y = study, grid["y"]
        by_size: dict[str, list[PlannedRun]] = {}
        for run in sorted(of_all_data(every), key=lambda run: ladder_n_body(run.size)):
            point = run_of_study(study, run.name).result
            if run.variant == every[0].variant and point is not None and not point.diverged:
                by_size.setdefault(run.size, []).append(run)
        fitted = [size for size, runs in by_size.items() if not runs[0].held_out]
        if not fitted or size not in (None, *by_size):
            raise UserError(f"--size {size}: {study} has finished runs of {', '.join(by_size) or 'no size'}")
        self.size = size or fitted[-1]
        self.runs, self.n_body = by_size[self.size], ladder_n_body(self.size)
        self.losses = {size: [self.losses_of(study, run) for run in runs] for size, runs in by_size.items()}
        self.sizes = np.array([ladder_n_body(size) for size in by_size], dtype=float)
        loss_S = np.array([mean_loss(tables) for tables in self.losses.values()])
        repeated = any(result_of(study, run).epochs > REPEATED for run in self.runs)
        self.curve = LadderCurve(self.sizes, loss_S, may_stop=repeated)
        self._log_hours_S = np.log([hours_of(study, runs) for runs in by_size.values()])
        self._rates = [runs[0].config.value(LR) for runs in by_size.values()]

    def losses_of(self, folder: Path, run: PlannedRun) -> pl.DataFrame:
        """A run's loss on each test target, or also on trajectories if y says so. UserError if the file is missing."""
        file = run_of_study(folder, run.name).target_losses_file
        if not file.is_file():
            raise UserError(f"{file} is missing, but steps are compared target by target: train the study here")
        table = pl.read_parquet(file, glob=False)
        return table if self.y == "trajectory_loss" else table.filter(pl.col("step") == 0)

    def hours_at(self, n_body: float) -> float:
        """Hours of a size / hours of this size: interpolated in ln N; above the ladder, as they rise at its end."""
        t_S = np.log(self.sizes)
        beyond = max(math.log(n_body) - t_S[-1], 0) * (self._log_hours_S[-1] - self._log_hours_S[-2])
        here, there = np.interp(np.log([self.n_body, n_body]), t_S, self._log_hours_S)
        return math.exp(there + max(beyond, 0) / (t_S[-1] - t_S[-2]) - here)

    def offered(self) -> dict[str, Options]:
        """The steps that the study's data and options allow."""
        run = self.runs[0]
        get, data, network = run.config.value, run.open_data(), wider(run.network(1), 2)
        size, users, epochs = f"{network.layers}x{network.width}", get(USERS, 1.0), get(EPOCHS, -1)
        steps: dict[str, Options] = {f"size x{ladder_n_body(size) / self.n_body:.2g}": {SIZE: size}}
        if users < 1:
            steps[f"users x{min(2, 1 / users):.2g}"] = {USERS: min(2 * users, 1.0)}
        if data.max_len < data.store.statistics["max_length"] and 4 * data.max_len <= data.targets_per_step:
            steps["length x2"] = {LENGTH: 2 * data.max_len}
        if epochs > 0 and get("trainer.limit_train_batches") is None:
            steps["passes x2"] = {EPOCHS: 2 * epochs}
        if data.store.times_N is not None and get(TIME) == "none":
            steps["time"] = {TIME: "past"}
        if get("model.loss.class_path", FULL) == FULL:
            steps["next items"] = {"model.loss": "NextItems"}
        return steps

    def planned(self, name: str, options: Options) -> list[PlannedRun]:
        """The runs of a step: those of this size with other options. A new size gets the ladder's rate for it."""
        with importing():
            from lrec.training.lightning_cli import compose
        runs = []
        for run in self.runs:
            changed = {**({LR: self._rate(options[SIZE])} if SIZE in options and self._rates[0] else {}), **options}
            arguments = [f"--{option}={as_argument(value)}" for option, value in changed.items()]
            composed = compose([f"--config={json.dumps(run.options)}", *arguments])
            slug, seed = re.sub(r"[^\w.-]+", "-", name), changed.get("seed_everything", run.seed)
            alone: dict[str, Any] = {"starts_from": "", "goes_on_from": "", "own": 1.0, "held_out": False}
            named = replace(run, name=f"{self.size}-{slug}-seed{seed}", variant=name, ladder=name, seed=seed, **alone)
            runs.append(replace(named, options=composed))
        return runs

    def _rate(self, size: str) -> float:
        log_rate = np.interp(math.log(ladder_n_body(size)), np.log(self.sizes), np.log(self._rates))
        return float(f"{math.exp(log_rate):.4g}")

    def check_targets(self, runs: Sequence[PlannedRun]) -> None:
        """Raise UserError if a step would be tested on other targets, or with another catalogue, than this size."""
        hashes: dict[str, str] = {}
        for run in (self.runs[0], *runs):
            key = json.dumps(run.config.nested["data"] | {"seed": 0}, default=str)
            hashes[key] = hashes.get(key) or _targets_hash(run)
            if hashes[key] != next(iter(hashes.values())):
                raise UserError(f"step {run.variant}: other test targets or items than in the study, not comparable")


def _targets_hash(run: PlannedRun) -> str:
    """A hash of the test targets of a run (users and items), and of its catalogue."""
    data = run.open_data()
    cuts, (tested, _) = data.cuts, data.evaluated("test")
    raw_ids = cuts.store.item_table["raw_id"]
    digest = sha256(tested.users_T.tobytes())
    for items in (cuts.store.items_N[cuts.rows_of(tested)], cuts.catalogue_V):
        digest.update("\n".join(raw_ids.gather(items)).encode())
    return digest.hexdigest()


def mean_loss(tables: Sequence[pl.DataFrame]) -> float:
    """The mean loss over all targets and runs."""
    return float(np.mean([table["loss"].to_numpy().mean() for table in tables]))


def result_of(folder: Path, run: PlannedRun) -> Point:
    """The result of a finished run of a study."""
    point = run_of_study(folder, run.name).result
    assert point is not None
    return point


def hours_of(folder: Path, runs: Sequence[PlannedRun]) -> float:
    """The mean hours of the clock that runs took, from the first step to the last evaluation."""
    return float(np.mean([run_of_study(folder, run.name).points[-1].wall_s for run in runs])) / 3600
