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


def kept_file(data: SequenceDataModule, device: torch.device) -> Path:
    """Where the baselines' figures on all test targets are kept; its name says what they depend on: the data, how they
    are cut, the targets, how much of a history is seen, and who adds up."""
    adds_up = number(), device.type, torch.__version__
    digest = sha256(repr((data.store.hash, data.max_len, adds_up)).encode())
    for numbers in (data.cuts.train_U, *data.test_targets):
        digest.update(np.ascontiguousarray(numbers, dtype=np.int64).data)
    return data.store.path / "baselines" / f"{digest.hexdigest()}.json"


def read_kept(file: Path) -> Figures:
    """By name of a baseline, the same on every process; empty where they are not known, or of other code."""
    found: Figures = {}
    if leads():
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["hash"] == _hash(kept["figures"]):
                found = kept["figures"]
    return of_first(found)


def write_kept(file: Path, figures: Figures) -> None:
    """Keep them, unless the folder cannot be written to."""
    if leads():
        with suppress(OSError):
            write_json(file, {"hash": _hash(figures), "figures": figures})


def _hash(figures: Figures) -> str:
    return json_hash([code_hash(), figures])


@cache
def code_hash() -> str:
    """Hash of lrec's own code, the whole package."""
    digest = sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
