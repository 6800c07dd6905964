"""Trained runs, read from their folders without a Trainer, in order of size."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lrec import cost
from lrec.data.base import SequenceDataModule
from lrec.data.splits import Split
from lrec.errors import UserError
from lrec.export import load
from lrec.files import json_hash
from lrec.net import Transformer
from lrec.tasks.processes import device

BySize = dict[int, list["TrainedRun"]]  # runs of each N_body, ascending


@dataclass(frozen=True)
class TrainedRun:
    """A run's best network and what it was trained with.

    Attributes:
        folder: The run's folder.
        net: The network, ready to evaluate.
        config: The run's config.yaml.
    """

    folder: Path
    net: Transformer
    config: dict[str, Any]

    @property
    def n_body(self) -> int:
        """Parameters of the blocks' matrices."""
        return cost.n_body(self.net.config)

    @property
    def name(self) -> str:
        """The size as the ladder calls it, or layers x width."""
        shape = self.net.config
        return self.config["model"].get("size") or f"{shape.layers}x{shape.width}"

    @property
    def domain(self) -> str | None:
        """The domain that it was trained on alone; None for all."""
        only: str | None = self.config["data"]["init_args"].get("only_domain")
        return only

    @property
    def is_fine_tuned(self) -> bool:
        """Whether it started from a trained network."""
        return self.config["model"].get("warm_start") is not None


@dataclass(frozen=True)
class DomainRuns:
    """Runs trained on one domain alone.

    Attributes:
        split: The domain's part of the split of all domains.
        alone: Those that started anew.
        fine_tuned: Those that started from a trained network.
    """

    split: Split
    alone: BySize
    fine_tuned: BySize


@dataclass(frozen=True)
class Ladder:
    """Runs of several sizes on the same data, by N_body; runs of one size are seeds, and their figures are averaged.

    Attributes:
        split: Where the users are cut.
        max_len: Longest input, in items.
        runs: The runs of each size, trained on all domains.
        domains: Those trained on one domain alone, cut at the same places, by domain.
    """

    split: Split
    max_len: int
    runs: BySize
    domains: dict[str, DomainRuns] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Name of each size, ascending."""
        return [runs[0].name for runs in self.runs.values()]

    @property
    def n_body_S(self) -> np.ndarray:
        """N_body of each size, ascending."""
        return np.array(list(self.runs), dtype=np.float64)

    def rows(self) -> list[tuple[str, list[TrainedRun]]]:
        """What the runs of each size were trained on, and the runs, all of them."""
        rows = [("all", runs) for runs in self.runs.values()]
        for name, mine in self.domains.items():
            rows += [(f"domain {name}", runs) for runs in mine.alone.values()]
            rows += [(f"domain {name}, from a trained network", runs) for runs in mine.fine_tuned.values()]
        return rows

    @property
    def counts_V(self) -> np.ndarray:
        """Training interactions of each catalogue item."""
        return self.split.counts_V


def run_folders(paths: list[Path]) -> list[Path]:
    """The runs in or under these folders: folders with config.yaml and checkpoints/.

    Raises:
        UserError: a path is no folder, or there is no run under it, or a run has no best checkpoint.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"--runs {path}: no such folder")
        found = sorted(file.parent for file in path.rglob("config.yaml"))
        if not found:
            raise UserError(f"--runs {path}: no run in or under this folder (a run has a config.yaml)")
        folders |= {folder.resolve(): folder for folder in found}
    for folder in folders.values():
        if not best_checkpoint(folder).exists():
            raise UserError(f"{folder} has no checkpoints/best.ckpt: finish the run, or leave it out of --runs")
    return list(folders.values())


def best_checkpoint(folder: Path) -> Path:
    """Where a run keeps its best checkpoint."""
    return folder / "checkpoints" / "best.ckpt"


def diverged(folder: Path) -> bool:
    """Whether the run's loss was not finite at the end."""
    path = folder / "points.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return bool(lines) and json.loads(lines[-1])["status"] == "diverged"


class Data:
    """The data of runs, each opened once."""

    def __init__(self) -> None:
        self._opened: dict[str, SequenceDataModule] = {}

    def of(self, config: dict[str, Any]) -> SequenceDataModule:
        """The DataModule of a run, set up; prepared first where its store is not there."""
        from lrec.lightning_cli import datamodule_of

        key = json_hash(config["data"])
        if key not in self._opened:
            data = datamodule_of(config)
            data.prepare_data()
            data.setup("test")
            self._opened[key] = data
        return self._opened[key]


def load_run(folder: Path, data: Data) -> TrainedRun:
    """A run's best network, on a GPU where there is one; UserError where it does not fit the run's data."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    if not isinstance(config, dict) or "data" not in config or "model" not in config:
        raise UserError(f"{folder / 'config.yaml'} is not the configuration of a run of lrec fit")
    model = load(best_checkpoint(folder))
    if model.about["data_hash"] != data.of(config).data_hash:
        raise UserError(f"{folder} was trained on other data than its config.yaml now leads to")
    return TrainedRun(folder, model.net.float().requires_grad_(False).to(device()), config)


def ladder_of(runs: list[TrainedRun], data: Data) -> Ladder:
    """Put runs in order of size; UserError where they cannot be compared."""
    first = runs[0]
    base = data.of(first.config)
    for run in runs[1:]:
        other = data.of(run.config)
        for what, one, two in (
            ("store", base.store.path.resolve(), other.store.path.resolve()),
            ("split", base.split, other.split),
            ("max_len", base.max_len, other.max_len),
        ):
            if one != two:
                raise UserError(
                    f"{first.folder} and {run.folder} differ in their {what} ({one}, {two}): compare the same"
                )
    whole = [run for run in runs if run.domain is None]
    if not whole:
        raise UserError("--runs: each is of one domain alone (data.only_domain): add those of all domains")
    domains = {}
    for name in sorted({run.domain for run in runs if run.domain is not None}):
        mine = [run for run in runs if run.domain == name]
        split = data.of(mine[0].config).split_positions
        tuned, alone = (_by_size(run for run in mine if run.is_fine_tuned == is_tuned) for is_tuned in (True, False))
        domains[name] = DomainRuns(split, alone, tuned)
    return Ladder(data.of(whole[0].config).split_positions, base.max_len, _by_size(whole), domains)


def _by_size(runs: Iterable[TrainedRun]) -> BySize:
    sizes: BySize = {}
    for run in sorted(runs, key=lambda run: run.n_body):
        sizes.setdefault(run.n_body, []).append(run)
    for n_body, same in sizes.items():
        for run in same[1:]:
            if _kind(run) != _kind(same[0]):
                raise UserError(
                    f"{same[0].folder} and {run.folder} have the same N_body {n_body} and differ in their model "
                    "options or their reduction of the data: compare one kind of run at a time"
                )
    return sizes


def _kind(run: TrainedRun) -> tuple[Any, Any]:
    """What runs of one size that differ in their seed alone share."""
    model = {name: value for name, value in run.config["model"].items() if name != "warm_start"}
    return model, run.config["data"]["init_args"].get("reduction")
