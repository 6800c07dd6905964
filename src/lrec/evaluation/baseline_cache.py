"""What the baselines reach on the test targets, kept with the store: the same for every model of the same data."""

import json
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer

from lrec.common.files import write_json
from lrec.data.datamodule import SequenceDataModule

Figures = dict[str, dict[str, float]]


class KeptBaselines:
    """The figures of baselines in the test that a trainer begins, from an earlier one of the same targets.

    They are in a file whose name says what they depend on: the data, how they are cut, the targets, how much of a
    history is seen, and who adds up. The file names the code that computed them; other code computes them again.
    Nothing is kept where not all of the targets are tested.
    """

    def __init__(self, trainer: Trainer, data: SequenceDataModule) -> None:
        """Of a trainer whose test loader is there."""
        self._trainer = trainer
        own, loader = type(data).test_dataloader is SequenceDataModule.test_dataloader, trainer.test_dataloaders
        whole = own and loader is not None and trainer.num_test_batches == [len(loader)]
        self._file = data.store.path / "baselines" / f"{_key(trainer, data)}.json" if whole else None

    def read(self) -> Figures:
        """By name of a baseline, the same on every process; those that are not known are missing."""
        found: Figures = {}
        if self._file is not None and self._trainer.is_global_zero:
            with suppress(OSError, ValueError, KeyError):
                kept = json.loads(self._file.read_text(encoding="utf-8"))
                found = kept["figures"] if kept["code"] == _code() else {}
        return self._trainer.strategy.broadcast(found)

    def write(self, figures: Figures) -> None:
        """Keep them, unless the folder cannot be written to."""
        if self._file is not None and self._trainer.is_global_zero:
            with suppress(OSError):
                write_json(self._file, {"code": _code(), "figures": figures})


def _key(trainer: Trainer, data: SequenceDataModule) -> str:
    adds_up = trainer.world_size, trainer.strategy.root_device.type, torch.__version__
    digest = sha256(repr((data.store.hash, data.max_len, adds_up)).encode())
    for numbers in (data.cuts.train_U, *data.cuts.test_targets):
        digest.update(np.ascontiguousarray(numbers, dtype=np.int64).data)
    return digest.hexdigest()


@cache
def _code() -> str:
    """Hash of lrec's own code."""
    digest = sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
