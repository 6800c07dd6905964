"""A run's folder: its files, the fields of a point, and the names of a run's options.

config.yaml             every option of its `lrec fit` (`RunConfig`)
points.jsonl            a `Point` per evaluation
items.parquet           the catalogue: item (index), raw_id, count, domain
metrics.json            the figures of the last test or validation
predictions.parquet     the lists of `lrec predict`, a part for each process if there are several
targets.parquet         what `lrec test` found for each target, if the callback TargetWriter was given
target_losses.parquet   in studies, the loss on each held-out target
checkpoints/            best.ckpt, last.ckpt; stable.ckpt, from before the rate falls, from which a longer run can go on
.lock                   locked by the process that trains the run
progress                what the run is doing, in words; absent once it has ended
ended                   how the last attempt ended: finished or interrupted; absent while it runs or if it was killed
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from lrec.common.files import finite, json_hash, locked, read_json, undamaged, write_text
from lrec.errors import UserError
from lrec.options.config_files import read_config

POINTS, CONFIG = "points.jsonl", "config.yaml"
UPDATE = "update.json"  # in the folder of `lrec update`, which is no run's folder: the result, and the run to serve

BEST, LAST, STABLE = "best.ckpt", "last.ckpt", "stable.ckpt"

# Where the data are and how they are read: this does not change what is trained.
_PLACES = ("data.path", "data.store", "data.data_dir", "data.num_workers", "data.memory_gib")


@dataclass(frozen=True)
class Point:
    """An evaluation of a run, a line of points.jsonl. Losses are in nats per target, None if they are not finite."""

    schema: int = 1  # version of this list of fields
    study: str | None = None  # the study that the run belongs to
    run: str = ""
    size: str = ""  # entry of the ladder, or layers x width
    n_layers: int = 0
    d_model: int = 0
    n_heads: int = 0
    N_body: int = 0  # parameters of the blocks' matrices
    N_head: int = 0  # parameters of the item table
    N_total: int = 0  # all parameters
    D: int = 0  # targets trained on so far
    U: int = 0  # targets of an epoch
    epochs: float = 0.0  # D / U
    flops: int = 0  # spent on training so far
    step: int = 0  # the optimizer's steps so far
    train_loss: float | None = None  # over the targets since the previous evaluation
    val_loss: float | None = None  # over the whole catalogue
    test_loss: float | None = None  # the same on the test targets, only at the best point
    metrics: dict[str, float | None] = field(default_factory=dict)  # by name, such as val/NDCG@10
    selected_on: str | None = None  # the metric that chose the best checkpoint
    lr_phase: str = ""  # phase of the optimizer: adamw or sgd
    best: bool = False  # whether this evaluation's checkpoint was tested
    status: str = "running"  # running, finished or diverged
    seed: int = 0  # seed of the order of training
    precision: str = ""  # precision of the trainer
    world_size: int = 1  # number of processes
    wall_s: float = 0.0  # seconds of training and evaluation so far, with those before the run was resumed
    floor: dict[str, float] | None = None  # lowest possible loss of val and test, if it is known
    data_hash: str = ""  # hash of the store, the split and the reduction
    config_hash: str | None = None  # hash of config.yaml
    commit: str | None = None  # commit of the lrec checkout that trained
    # In studies; the losses from target_losses.parquet:
    test_loss_se: float | None = None  # standard error of test_loss over draws of users
    trajectory_loss: float | None = None  # mean over the test targets and the targets of the split's trajectories
    trajectory_loss_se: float | None = None  # standard error of trajectory_loss
    horizon: float | None = None  # if a study has horizons, the share of the whole training that this run has

    @property
    def diverged(self) -> bool:
        return self.status == "diverged"

    def metric(self, name: str) -> float:
        """A metric of the evaluation by its name, such as test/NDCG@10; nan if it is not known or not finite."""
        value = self.metrics.get(name)
        return math.nan if value is None else value

    def to_dict(self) -> dict[str, Any]:
        """The fields in order, without the fields of studies that are None."""
        of_studies = ("test_loss_se", "trajectory_loss", "trajectory_loss_se", "horizon")
        return {name: value for name, value in vars(self).items() if name not in of_studies or value is not None}


def read_points_file(path: Path) -> list[Point]:
    """The points in a file, of one run or of several; UserError if a line is not a point."""
    points = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            points.append(Point(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, row {number}: not a point that lrec wrote; correct or remove the row") from error
    return points


@dataclass(frozen=True)
class RunConfig:
    """Every option of a run, as config.yaml nests them; `nested` and `flat` have the names of the command line."""

    options: dict[str, Any]

    @cached_property
    def nested(self) -> dict[str, Any]:
        """The options as the command line nests them: those of a class are next to its class_path."""
        return _without_init_args(self.options)

    @cached_property
    def flat(self) -> dict[str, Any]:
        """Every option by its dotted name, such as data.max_len or model.optimizer.lr; a class is NAME.class_path."""
        return dotted(self.nested)

    def value(self, option: str, default: Any = None) -> Any:
        """An option by its dotted name; `default` if there is no such option or if it is null."""
        value = self.flat.get(option)
        return default if value is None else value

    @property
    def trained_with(self) -> dict[str, Any]:
        """The options that decide what is trained, by dotted name: all except where data are and how they are read."""
        plain = json.loads(json.dumps(self.flat))
        plain["trainer.precision"] = plain.get("trainer.precision") or "32-true"  # what null means
        return {name: value for name, value in plain.items() if name not in _PLACES}


def _without_init_args(options: dict[str, Any]) -> dict[str, Any]:
    beside = {name: value for name, value in options.items() if name != "init_args"} | (options.get("init_args") or {})
    return {name: _without_init_args(value) if isinstance(value, dict) else value for name, value in beside.items()}


def dotted(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their dotted names; if an option is given twice, the later one counts."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


@dataclass
class Run:
    """A run's folder, and the path of each file in it. A file is read only when a property needs it."""

    folder: Path

    def __post_init__(self) -> None:
        self.name = Path(os.path.abspath(self.folder)).name  # of "." too
        self.config_file = self.folder / CONFIG
        self.points_file = self.folder / POINTS
        self.items_file = self.folder / "items.parquet"
        self.metrics_file = self.folder / "metrics.json"
        self.target_losses_file = self.folder / "target_losses.parquet"
        self.checkpoints = self.folder / "checkpoints"
        self.best = self.checkpoints / BEST
        self.last = self.checkpoints / LAST
        self.stable = self.checkpoints / STABLE
        self.progress_file = self.folder / "progress"
        self.ended_file = self.folder / "ended"
        self.log_file = self.folder / "log.txt"

    def table_file(self, name: str, rank: int | None = None) -> Path:
        """The file of a table, such as predictions: with `rank`, the part of one process; otherwise, all rows."""
        return self.folder / (f"{name}.parquet" if rank is None else f"{name}.{rank}.parquet")

    @cached_property
    def config(self) -> RunConfig:
        if not self.config_file.exists():
            raise UserError(f"{self.folder}: no run there (it has no {CONFIG})")
        try:
            options = read_config(self.config_file)
            if not isinstance(options, dict) or not options.keys() >= {"data", "model"}:
                raise UserError("it has no data and model")
        except UserError as error:
            raise UserError(f"{self.config_file} is not the configuration of a run of lrec fit ({error})") from error
        return RunConfig(options)

    @property
    def config_hash(self) -> str | None:
        """The hash of config.yaml as it is written; None if the file does not exist."""
        return json_hash(self.config_file.read_text(encoding="utf-8")) if self.config_file.is_file() else None

    @property
    def occupied(self) -> bool:
        """Whether an attempt to train the run has left points or a checkpoint."""
        return self.points_file.is_file() or self.last.exists() or self.best.exists()

    @property
    def points(self) -> list[Point]:
        """The evaluations so far, read from the file each time."""
        return read_points_file(self.points_file) if self.points_file.is_file() else []

    @property
    def result(self) -> Point | None:
        """The result: the best and tested point, or the last point if the run diverged; None while it is unfinished."""
        points = self.points
        return points[-1] if points and points[-1].diverged else next((p for p in points if p.best), None)

    @property
    def diverged(self) -> bool:
        result = self.result
        return result is not None and result.diverged

    def alone(self) -> AbstractContextManager[int]:
        """Let only this process train the run, until it leaves the context or ends; UserError if another one trains."""
        taken = f"{self.folder} is being trained by another process: wait for its end, or choose another"
        return locked(self.folder / ".lock", f"{taken} --trainer.default_root_dir")

    def write_config(self, config: RunConfig) -> None:
        write_text(self.config_file, yaml.safe_dump(config.options, sort_keys=False))

    def write_end(self, how: Literal["finished", "interrupted"]) -> None:
        """Write how the attempt to train the run has ended. With several machines, no exit code says this."""
        self.progress_file.unlink(missing_ok=True)
        write_text(self.ended_file, f"{how}\n")

    def write_progress(self, doing: str) -> None:
        """Write what the run is doing, for people who look from outside. Ignore it if the file cannot be written."""
        with suppress(OSError):
            write_text(self.progress_file, f"{doing}\n")

    def write_points(self, points: Sequence[Point]) -> None:
        write_text(self.points_file, "".join(json.dumps(finite(point.to_dict())) + "\n" for point in points))


def served(folder: Path) -> Path:
    """The run that an update's folder serves: one inside it, wherever moved, or the old one; else the folder itself."""
    with undamaged(folder / UPDATE):
        record = read_json(folder / UPDATE, {"kept": ".", "serve": folder})
        return inside if (inside := folder / record["kept"]).is_dir() else Path(record["serve"])


def run_of_study(out: Path, name: str) -> Run:
    return Run(out / "runs" / name)


def find_points(folder: Path) -> list[Path]:
    return sorted(folder.rglob(POINTS))


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs in or under these folders, each once; UserError if there is none, or if one has no best checkpoint. A
    run that diverged may have none."""
    runs: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"--runs {path}: no such folder")
        found = sorted(file.parent for file in path.rglob(CONFIG))
        if not found:
            raise UserError(f"--runs {path}: no run in or under this folder (a run has a {CONFIG})")
        runs |= {folder.resolve(): Run(folder) for folder in found}
    if unfinished := [run for run in runs.values() if not (run.best.exists() or run.diverged)]:
        raise UserError(f"{unfinished[0].folder} has no checkpoints/{BEST}: finish the run, or leave it out of --runs")
    return list(runs.values())
