"""What the baselines reach on the test targets, kept with the store: the same for every model of the same data."""

import json
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from lrec.common.files import json_hash, write_json
from lrec.data.datamodule import SequenceDataModule
from lrec.evaluation.shared_scoring import leads, number, of_first

Figures = dict[str, dict[str, float]]


class BaselineCache:
    """The figures of baselines on all test targets, from an earlier test of the same ones.

    They are in a file whose name says what they depend on: the data, how they are cut, the targets, how much of a
    history is seen, and who adds up. The file names the code that computed them; other code computes them again.
    """

    def __init__(self, data: SequenceDataModule, device: torch.device) -> None:
        """Of these data, scored on such a device by all processes that there are."""
        self._file = data.store.path / "baselines" / f"{_key(data, device)}.json"

    def read(self) -> Figures:
        """By name of a baseline, the same on every process; empty where they are not known."""
        found: Figures = {}
        if leads():
            with suppress(OSError, ValueError, KeyError, TypeError):
                kept = json.loads(self._file.read_text(encoding="utf-8"))
                if kept["hash"] == _hash(kept["figures"]):
                    found = kept["figures"]
        return of_first(found)

    def write(self, figures: Figures) -> None:
        """Keep them, unless the folder cannot be written to."""
        if leads():
            with suppress(OSError):
                write_json(self._file, {"hash": _hash(figures), "figures": figures})


def _key(data: SequenceDataModule, device: torch.device) -> str:
    adds_up = number(), device.type, torch.__version__
    digest = sha256(repr((data.store.hash, data.max_len, adds_up)).encode())
    for numbers in (data.cuts.train_U, *data.cuts.test_targets):
        digest.update(np.ascontiguousarray(numbers, dtype=np.int64).data)
    return digest.hexdigest()


def _hash(figures: Figures) -> str:
    """Of the figures and of lrec's own code."""
    return json_hash([_code(), figures])


@cache
def _code() -> str:
    """Hash of lrec's own code, the whole package."""
    digest = sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
