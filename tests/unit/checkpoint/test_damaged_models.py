"""Damaged checkpoints, exported files, lists of items and fits: read unchanged, or refused in one line."""

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import torch

import lrec
from lrec.checkpoint.reading import ITEMS, check, read
from lrec.checkpoint.trained import items_as_tensors
from lrec.checkpoint.writing import write
from lrec.errors import UserError
from lrec.laws.analysis import Analysis
from lrec.laws.fit_json import read_fit, write_fit
from lrec.laws.loss_laws import LAWS
from lrec.laws.predict import holdout_report
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.transformer import Transformer
from lrec.serving.export import export
from small_checkpoints import write_by_hand

CONFIG = TransformerConfig(30, 6, 2, 8, 2, architecture=Architecture(norm="rms"))
LONGEST_S = 20


class Kind(NamedTuple):
    """A kind of stored file.

    Attributes:
        file: The file to damage, relative to a folder.
        read: Reads from the folder what is compared.
    """

    file: str
    read: Callable[[Path], Any]


def model(path: Path) -> Any:
    loaded = lrec.load(path)
    weights = {name: tensor.numpy().tobytes() for name, tensor in loaded.net.state_dict().items()}
    return weights, loaded.item_ids.to_list(), loaded.about, loaded.counts_V.tolist(), loaded.net.config


def resumed(path: Path) -> Any:
    check(path)
    return json.dumps(read(path), default=lambda tensor: tensor.tolist(), sort_keys=True)


KINDS = {
    "checkpoint": Kind("best.ckpt", lambda folder: model(folder / "best.ckpt")),
    "checkpoint to go on from": Kind("best.ckpt", lambda folder: resumed(folder / "best.ckpt")),
    "shard": Kind("last.ckpt/token-00000-of-00001.safetensors", lambda folder: resumed(folder / "last.ckpt")),
    "state of shards": Kind("last.ckpt/state.pt", lambda folder: resumed(folder / "last.ckpt")),
    "exported file": Kind("model.safetensors", lambda folder: model(folder / "model.safetensors")),
    "fit": Kind("fit.json", lambda folder: read_fit(folder / "fit.json")[-1]),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    net = Transformer(CONFIG, seed=3)
    ids = pl.Series([f"item {i} é" for i in range(CONFIG.n_items)])
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    checkpoint = {
        "lrec": {"D": 40, "flops": 9, "data_hash": "abc", "columns": {"user": "who"}, **CONFIG.to_dict()},
        "global_step": 3,
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.rand(300)}}}],
        ITEMS: items_as_tensors(ids, np.arange(CONFIG.n_items) + 1),
    }
    write(folder / "best.ckpt", checkpoint)
    export(folder / "best.ckpt", folder / "model.safetensors")
    write_by_hand(folder / "last.ckpt", checkpoint, 1)
    x = np.geomspace(1e3, 1e6, 8)
    points = pl.DataFrame({"x": x, "y": 4 + 60 / x**0.3})
    names = {"x": "N_body", "y": "test_loss"}
    write_fit(folder, Analysis(*holdout_report(LAWS["lsrm"], points, 2), points, names, with_others=False))
    return folder


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Bits flipped, the end cut off, two parts exchanged, or a part written over."""
    start, other = sorted(chance.randrange(len(data)) for _ in range(2))
    length = min(chance.choice([1, 4, 60]), other - start, len(data) - other)
    match chance.randrange(6):
        case 0 | 1 | 2:
            changed = bytearray(data)
            for _ in range(chance.randrange(1, 4)):
                changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            return bytes(changed)
        case 3:
            return data[:start]
        case 4:
            one, two = data[start : start + length], data[other : other + length]
            return data[:start] + two + data[start + length : other] + one + data[other + length :]
    return data[:start] + chance.randbytes(length) + data[start + length :]


def attack(kind: Kind, whole: Path, folder: Path, seeds: range) -> int:
    """Damage a file once per seed. Returns how often it was refused."""
    expected = kind.read(whole)
    shutil.copytree(whole, folder)
    data = (whole / kind.file).read_bytes()
    refused = 0
    for seed in seeds:
        (folder / kind.file).write_bytes(damaged(data, random.Random(seed)))
        began = time.monotonic()
        try:
            found, message = kind.read(folder), None
        except UserError as error:
            found, message = expected, str(error)
        assert found == expected, f"seed {seed} changed what is read"
        if message is not None:
            assert str(folder) in message, seed
            assert "\n" not in message, seed
            refused += 1
        assert time.monotonic() - began < LONGEST_S, seed
    return refused


@pytest.mark.parametrize("name", KINDS)
def test_a_hundred_damaged_files(name: str, whole: Path, tmp_path: Path) -> None:
    assert attack(KINDS[name], whole, tmp_path / "copy", range(15)) > 7


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_hundreds_of_damaged_files(name: str, whole: Path, tmp_path: Path) -> None:
    assert attack(KINDS[name], whole, tmp_path / "copy", range(200)) > 100


def edits() -> Iterator[tuple[str, Callable[[dict[str, Any]], Any]]]:
    """What somebody may change in fit.json."""
    yield "a parameter", lambda fit: fit["parameters"]["E"].update(value=1.0)
    yield "a loss", lambda fit: fit["points"][0].update(y=9.0)
    yield "a size", lambda fit: fit["points"][0].pop("x")
    yield "the points", lambda fit: fit.update(points=[])
    yield "the law", lambda fit: fit.update(law="chinchilla")
    yield "the unit", lambda fit: fit.update(x="D")
    yield "the warnings", lambda fit: fit["diagnostics"].pop("warnings")
    yield "the hash", lambda fit: fit.pop("content_hash")


@pytest.mark.parametrize(("change"), [change for _, change in edits()], ids=[name for name, _ in edits()])
def test_a_plan_from_an_edited_fit_is_refused(
    change: Callable[[dict[str, Any]], Any], whole: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    content = json.loads((whole / "fit.json").read_text())
    change(content)
    (tmp_path / "fit.json").write_text(json.dumps(content))
    error = refused("scaling", "plan", "--fit", tmp_path / "fit.json", "--size", 1e7)
    assert f"{tmp_path / 'fit.json'}" in error
    assert "write it again with lrec scaling fit" in error
    assert not (tmp_path / "plan.json").exists()
