"""The ladder of a finished study, and possible next steps: single changes to the runs of one of its sizes."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from lrec.common.files import json_hash, read_json
from lrec.common.start_stop import importing
from lrec.errors import UserError
from lrec.laws.equivalents import LadderCurve
from lrec.run import run_of_study
from lrec.study.answer import metric_of, wider
from lrec.study.grid import PlannedRun, of_all_data
from lrec.study.options import EPOCHS, as_argument, ladder_n_body
from lrec.study.points import REPEATED, read_target_losses
from lrec.study.tuning import LR

LENGTH, USERS, SIZE = "data.max_len", "data.reduction.users", "model.size"
TIME, SEEN = "model.architecture.time", "model.architecture.seen"
FULL = "lrec.FullSoftmax"
Options = Mapping[str, Any]


class Results(NamedTuple):
    """The results of runs that differ only in their seed."""

    tables: list[pl.DataFrame]  # the loss of each run on each test target
    loss_R: np.ndarray  # the mean loss of each run
    metric: float  # the mean of the ladder's metric
    hours: float  # of the clock, from the first step to the last evaluation, on average
    epochs: float  # of the longest run

    @property
    def loss(self) -> float:
        return float(self.loss_R.mean())


class Ladder:
    """The finished runs of a study's first variant with the most data and the longest training, by size.

    Attributes:
        name: The name of the study's folder.
        metric: HR@10 or HR@10_unseen, as in the study's answer.
        runs: The runs of the size at which steps are compared.
        results: By size, the results of its runs.
        curve: The mean loss over the test targets, by N_body.
    """

    def __init__(self, study: Path, size: str | None) -> None:
        record = read_json(study / "study.json")
        if record is None:
            raise UserError(f"--study {study}: no study there (no study.json)")
        try:
            every = [PlannedRun(**run) for run in record["grid"]["runs"]]
            self.name, self.y, source = study.absolute().name, record["grid"]["y"], every[0].starts_from
        except (LookupError, TypeError) as error:
            raise UserError(f"--study {study}: its study.json is damaged: start the study again") from error
        if source:
            way_out = "name another one first in the study's --variants, and start the study again"
            first = f"its first variant, {every[0].variant}, starts from another, but steps train from the beginning"
            raise UserError(f"--study {study}: {first}: {way_out}")
        by_size: dict[str, list[PlannedRun]] = {}
        results = {run.name: run_of_study(study, run.name).result for run in every}
        self.metric = metric_of(point for point in results.values() if point is not None)
        for run in sorted(of_all_data(every), key=lambda run: ladder_n_body(run.size)):
            point = results[run.name]
            if run.variant == every[0].variant and point is not None and not point.diverged:
                by_size.setdefault(run.size, []).append(run)
        fitted = [size for size, runs in by_size.items() if not runs[0].held_out]
        if not fitted or size not in (None, *by_size):
            found = f"{study} has finished runs of {', '.join(by_size) or 'no size'}"
            raise UserError(f"--study {found}, but of no fitted size" if size is None else f"--size {size}: {found}")
        self.size = size or fitted[-1]
        self.runs, self.n_body = by_size[self.size], ladder_n_body(self.size)
        self._data_hashes = {point.data_hash for run in self.runs if (point := results[run.name]) is not None}
        self._targets: pl.DataFrame | None = None
        self.results = {size: self.results_of(study, runs) for size, runs in by_size.items()}
        self.sizes = np.array([ladder_n_body(size) for size in by_size], dtype=float)
        loss_S = np.array([results.loss for results in self.results.values()])
        self.curve = LadderCurve(self.sizes, loss_S, may_stop=self.results[self.size].epochs > REPEATED)
        self._log_hours_S = np.log([results.hours for results in self.results.values()])
        self._rates = [runs[0].config.value(LR) for runs in by_size.values()]

    def results_of(self, folder: Path, runs: Sequence[PlannedRun]) -> Results:
        """The results of finished runs. UserError if one diverged, or if its losses by target are missing."""
        trained = [run_of_study(folder, run.name) for run in runs]
        points, tables = [result for run in trained if (result := run.result) is not None], list[pl.DataFrame]()
        for run, planned, point in zip(trained, runs, points, strict=True):
            if point.diverged:
                way_out = "leave it out, give it a smaller learning rate, or choose another --size"
                raise UserError(f"step {planned.variant} diverged: {way_out}")
            file = run.target_losses_file
            if not file.is_file():
                raise UserError(f"{file} is missing, but steps are compared target by target: train the study here")
            table = read_target_losses(file)
            tables.append(table if self.y == "trajectory_loss" else table.filter(pl.col("step") == 0))
            found = tables[-1].select("user", "step").sort("user", "step")
            self._targets = found if self._targets is None else self._targets
            if not found.equals(self._targets):
                raise UserError(f"{file} has other targets than the runs of smaller sizes: train both on the same data")
        loss_R = np.array([table["loss"].to_numpy().mean() for table in tables])
        metric = float(np.mean([point.metric(f"test/{self.metric}") for point in points]))
        hours = float(np.mean([run.points[-1].wall_s for run in trained])) / 3600
        return Results(tables, loss_R, metric, hours, max(point.epochs for point in points))

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
        if not get(SEEN, False) and run.model.loss.adds_to_seen:
            steps["seen items"] = {SEEN: True}
        if epochs > 1 and get("model.loss.class_path", FULL) == FULL:
            steps["next items"] = {"model.loss": "NextItems"}
        return steps

    def planned(self, name: str, options: Options) -> list[PlannedRun]:
        """The runs of a step: those of this size with other options. A new size gets the ladder's rate for it."""
        with importing():
            from lrec.training.lightning_cli import compose
        if SIZE in options and self._rates[0]:
            log_rate = np.interp(math.log(ladder_n_body(options[SIZE])), np.log(self.sizes), np.log(self._rates))
            options = {LR: float(f"{math.exp(log_rate):.4g}"), **options}
        arguments = [f"--{option}={as_argument(value)}" for option, value in options.items()]
        slug, runs = re.sub(r"[^\w.-]+", "-", name), list[PlannedRun]()
        for run in self.runs:
            composed = compose([f"--config={json.dumps(run.options)}", *arguments])
            seed = options.get("seed_everything", run.seed)
            place = f"{self.size}-{slug}-seed{seed}", run.size, seed, run.fraction, name, name
            runs.append(PlannedRun(*place, held_out=False, options=composed, horizon=run.horizon))
        return runs

    def check_targets(self, runs: Sequence[PlannedRun]) -> None:
        """Raise UserError if the data have changed since this size was trained, or if a step would be tested on other
        targets, or with another catalogue."""
        hashes: dict[str, str] = {}  # by options of the data: of users and items of the targets, and of the catalogue
        for run in (self.runs[0], *runs):
            key = json.dumps(run.config.nested["data"] | {"seed": 0}, default=str)
            if key not in hashes:
                data = run.open_data()
                if not hashes and not self._data_hashes <= {data.data_hash, ""}:
                    way_out = "restore the earlier data, or train the study again"
                    raise UserError(f"the data have changed since run {run.name} of the study: {way_out}")
                cuts, (tested, _) = data.cuts, data.evaluated("test")
                items = cuts.store.items_N[cuts.rows_of(tested)], cuts.catalogue_V
                raw_ids = cuts.store.item_table["raw_id"]
                hashes[key] = json_hash([tested.users_T.tolist(), *(raw_ids.gather(each).to_list() for each in items)])
            if hashes[key] != next(iter(hashes.values())):
                raise UserError(f"step {run.variant}: other test targets or items than in the study, not comparable")
