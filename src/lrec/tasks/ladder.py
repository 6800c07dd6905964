"""Trained runs, read from their folders without a Trainer, in order of size."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lrec import cost
from lrec.data.base import SequenceDataModule
from lrec.data.splits import Split
from lrec.errors import UserError
from lrec.export import load
from lrec.files import json_hash
from lrec.net import Transformer


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


@dataclass(frozen=True)
class Ladder:
    """Runs of several sizes on the same data, by N_body; runs of one size are seeds, and their figures are averaged.

    Attributes:
        split: Where the users are cut.
        max_len: Longest input, in items.
        runs: The runs of each size.
    """

    split: Split
    max_len: int
    runs: dict[int, list[TrainedRun]]

    @property
    def names(self) -> list[str]:
        """Name of each size, ascending."""
        return [runs[0].name for runs in self.runs.values()]

    @property
    def n_body_S(self) -> np.ndarray:
        """N_body of each size, ascending."""
        return np.array(list(self.runs), dtype=np.float64)

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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TrainedRun(folder, model.net.float().requires_grad_(False).to(device), config)


def by_size(runs: list[TrainedRun], data: Data) -> Ladder:
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
    sizes: dict[int, list[TrainedRun]] = {}
    for run in sorted(runs, key=lambda run: run.n_body):
        sizes.setdefault(run.n_body, []).append(run)
    for n_body, same in sizes.items():
        for run in same[1:]:
            if run.config["model"] != same[0].config["model"]:
                raise UserError(
                    f"{same[0].folder} and {run.folder} have the same N_body {n_body} and differ in their model "
                    "options: compare one kind of model at a time"
                )
    return Ladder(base.split_positions, base.max_len, sizes)
