"""Checkpoints on disk: whole or absent, one file or one folder of shards, read on any number of processes.

A file `NAME.ckpt` is what Lightning saves: a dictionary of tensors and plain values. A folder `NAME.ckpt` holds the
same dictionary in parts:

    state.pt                             the dictionary, but for the rows of sharded tensors, and the names of the files
    TOKEN-00000-of-00002.safetensors     that hold them: rows of every such tensor, a file per shard

Replacing state.pt is what puts a new checkpoint in force; files that it does not name are removed afterwards. So a
process that is killed and a disk that is full leave the last good checkpoint. No pickled code is read or written.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from lrec.errors import UserError
from lrec.files import replacing
from lrec.net import with_todays_names
from lrec.parallel import Sharding
from lrec.run import LAST

STATE = "state.pt"
SHARDED = "sharded"  # in state.pt, (SHARDED, name, rows) stands for a tensor whose rows are in the shards
ITEMS, IDS, ENDS = "lrec_items", "item_ids", "item_ends"  # the raw ids of the catalogue, in the entry ITEMS
PARTS = ("state_dict", "optimizer_states")  # the parts of a checkpoint whose tensors are sharded as parameters are
Rows = Callable[[int], slice]


def everything(n: int) -> slice:
    """All of n rows."""
    return slice(0, n)


def write(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a file; UserError, and the checkpoint before stands, where that fails."""
    try:
        aside = _set_aside(path) if path.is_dir() else None
        _write_pt(path, checkpoint)
        _remove(aside)
    except (OSError, RuntimeError) as error:
        raise _not_written(path, error) from error


def write_sharded(
    path: Path, checkpoint: dict[str, Any], sharding: Sharding, token: str, agree: Callable[[bool], bool]
) -> None:
    """Write a folder, together with all other processes.

    Args:
        path: The folder; a checkpoint that is there is replaced.
        checkpoint: As Lightning makes it, with DTensors.
        sharding: Which rows this process holds.
        token: Names this checkpoint's files; the same on every process, another each time.
        agree: Whether something is true on every process; all of them call it.

    Raises:
        UserError: a process could not write; the checkpoint before stands.
    """
    tensors: dict[str, Tensor] = {}
    starts: dict[str, int] = {}

    def take_rows(name: str, leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        tensors[name], starts[name] = leaf.to_local().detach().cpu(), sharding.rows(len(leaf)).start
        return SHARDED, name, len(leaf)

    state = {key: _mapped(value, key, take_rows) if key in PARTS else value for key, value in checkpoint.items()}
    state["shards"] = [f"{token}-{shard:05d}-of-{sharding.shards:05d}.safetensors" for shard in range(sharding.shards)]
    mine = path / state["shards"][sharding.shard]
    leads = sharding.first_copy and sharding.shard == 0
    aside: Path | None = None

    def make_room() -> None:
        nonlocal aside
        aside = _set_aside(path) if path.is_file() else None
        path.mkdir(parents=True, exist_ok=True)

    def write_rows() -> None:
        save_file(tensors, mine, {"starts": json.dumps(starts)})
        _flush(mine)

    def put_in_force() -> None:
        _write_pt(path / STATE, state)

    for work, is_mine in ((make_room, leads), (write_rows, sharding.first_copy), (put_in_force, leads)):
        failure = None
        try:
            if is_mine:
                work()
        except (OSError, RuntimeError, SafetensorError) as error:
            failure = error
        if not agree(failure is None):
            if sharding.first_copy and mine.exists():
                mine.unlink()
            raise _not_written(path, failure)
    if leads:
        _remove(aside)
        for file in path.iterdir():
            if file.name not in (STATE, *state["shards"]):
                file.unlink(missing_ok=True)


def read(path: Path, rows: Rows = everything, optimizer: bool = True) -> dict[str, Any]:
    """The checkpoint as Lightning knows it, with the given rows of each sharded tensor.

    Args:
        path: A file or a folder.
        rows: The rows, of so many, to read.
        optimizer: Whether the optimizer's state is wanted.

    Raises:
        UserError: there is none, or it is not lrec's, or damaged.
    """
    with _reading(path):
        folder = path.is_dir()
        # Mapped where only some rows are copied out of the file.
        state = _load_pt(path / STATE if folder else path, mmap=rows is not everything and not folder)
        if not optimizer:
            state.pop("optimizer_states", None)
        shards = _Shards(path, state.pop("shards")) if folder else None

        def give_rows(name: str, leaf: Any) -> Any:
            if shards is not None and isinstance(leaf, tuple) and leaf[:1] == (SHARDED,):
                return shards.read(leaf[1], rows(leaf[2]), leaf[2])
            if rows is not everything and isinstance(leaf, Tensor) and leaf.ndim:
                return leaf[rows(len(leaf))].clone()
            return leaf

        checkpoint = {key: _mapped(value, key, give_rows) if key in PARTS else value for key, value in state.items()}
        return checkpoint | {"state_dict": with_todays_names(checkpoint["state_dict"])}


class Trained(NamedTuple):
    """A trained network as it is stored.

    Attributes:
        about: What it says of itself: the network's shape, step, D, data hash ...
        parameters: By name.
        item_ids: Raw id of each item of the catalogue; none in checkpoints of earlier versions.
    """

    about: dict[str, Any]
    parameters: dict[str, Tensor]
    item_ids: pl.Series


def trained(checkpoint: dict[str, Any]) -> Trained:
    """The network of a checkpoint that was read."""
    return Trained(
        checkpoint["lrec"] | {"step": checkpoint["global_step"]},
        {name.removeprefix("net."): tensor for name, tensor in checkpoint["state_dict"].items()},
        ids_of_tensors(checkpoint[ITEMS]) if ITEMS in checkpoint else pl.Series(dtype=pl.String),
    )


def ids_as_tensors(ids: pl.Series) -> dict[str, Tensor]:
    """Raw ids as two tensors: item_ids, UTF-8 laid end to end, and item_ends, where each ends."""
    text = "".join(ids).encode() or b"\0"  # safetensors knows no empty tensor
    return {
        IDS: torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy()),
        ENDS: torch.from_numpy(ids.str.len_bytes().cast(pl.Int64).cum_sum().to_numpy(writable=True)),
    }


def ids_of_tensors(tensors: dict[str, Tensor]) -> pl.Series:
    """The raw ids that `ids_as_tensors` laid down."""
    text, ends = tensors[IDS].numpy().tobytes(), tensors[ENDS].tolist()
    return pl.Series([text[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)])


def check(path: Path) -> None:
    """UserError unless `path` is a whole checkpoint of lrec's."""
    with _reading(path):
        if path.is_dir():
            _Shards(path, _load_pt(path / STATE, "meta")["shards"])
        else:
            _load_pt(path, "meta")


def find_last(folder: Path) -> Path | None:
    """The last checkpoint in a run's folder of checkpoints; None where none was completed."""
    last = folder / LAST
    return next((path for path in (last, _aside(last)) if path.is_file() or (path / STATE).is_file()), None)


class _Piece(NamedTuple):
    """Rows of a tensor that stand in one shard, from row `start` on."""

    start: int
    rows: Any  # what safetensors calls a slice: reads the rows that it is indexed with


class _Shards:
    """The shards of a folder, open for reading."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.pieces: dict[str, list[_Piece]] = {}
        for name in names:
            file = safe_open(folder / name, framework="pt")
            for tensor, start in json.loads(file.metadata()["starts"]).items():
                self.pieces.setdefault(tensor, []).append(_Piece(start, file.get_slice(tensor)))

    def read(self, name: str, wanted: slice, total: int) -> Tensor:
        """The wanted rows of a tensor that has `total`."""
        found, end = [], 0
        for start, rows in sorted(self.pieces[name], key=lambda piece: piece.start):
            if start != end:
                break
            end = start + rows.get_shape()[0]
            first, last = max(wanted.start, start), min(wanted.stop, end)
            if first < last:
                found.append(rows[first - start : last - start])
        if end != total:
            raise ValueError(f"{name} has {total} rows, the shards have {end}")
        return torch.cat(found) if found else self.pieces[name][0].rows[0:0]


def _mapped(value: Any, name: str, change: Callable[[str, Any], Any]) -> Any:
    """The same nested dictionaries and lists, with change(name, leaf) in place of each leaf."""
    if isinstance(value, dict):
        return {key: _mapped(item, f"{name}/{key}", change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, f"{name}/{index}", change) for index, item in enumerate(value)]
    return change(name, value)


def _write_pt(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            torch.save(value, file)
        _flush(temporary)


def _load_pt(path: Path, map_location: str = "cpu", mmap: bool = False) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    if "lrec" not in checkpoint:
        raise ValueError("it lacks what lrec adds to a checkpoint")
    return checkpoint


def _flush(path: Path) -> None:
    """Have the file on the disk before anything refers to it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-0{path.suffix}")


def _set_aside(path: Path) -> Path:
    """Move away a checkpoint of the other form, which cannot be replaced in one step."""
    _remove(_aside(path))
    return path.rename(_aside(path))


def _remove(path: Path | None) -> None:
    if path is not None and path.is_dir():
        shutil.rmtree(path)
    elif path is not None:
        path.unlink(missing_ok=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint")
    try:
        yield
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a checkpoint that lrec wrote, or a damaged one") from error
    except SafetensorError as error:
        raise UserError(f"{path}: a damaged checkpoint ({error})") from error


def _not_written(path: Path, error: Exception | None) -> UserError:
    reason = "another process failed" if error is None else str(error).splitlines()[0]
    return UserError(
        f"the checkpoint {path} could not be written ({reason}): the one before it stands; "
        "mend that and go on with --ckpt_path=last"
    )
