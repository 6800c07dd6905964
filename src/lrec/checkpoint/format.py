"""Checkpoints on disk: whole or absent, one file or one folder of shards, read on any number of processes.

A file `NAME.ckpt` is what Lightning saves: a dictionary of tensors and plain values. A folder `NAME.ckpt` holds the
same dictionary in parts:

    state.pt                             the dictionary, but for the rows of sharded tensors, and the names of the files
    TOKEN-00000-of-00002.safetensors     that hold them: rows of such tensors, a file per process

Replacing state.pt is what puts a new checkpoint in force; files that it does not name are removed afterwards. So a
process that is killed and a disk that is full leave the last good checkpoint. No pickled code is read or written.

What is damaged is refused. NAME.ckpt and state.pt are zip archives, with a CRC for each entry; shards have a `checksum`
of their own; and the entry lrec_checksum is that of the network as a whole file holds it, its description and its item
ids, so that nobody can exchange one of them alone. Earlier versions wrote neither checksum.
"""

import json
import os
import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrec.common.files import remove, replacing
from lrec.errors import UserError
from lrec.model.config import TransformerConfig
from lrec.model.item_vectors import NewItems
from lrec.model.transformer import Transformer
from lrec.run import LAST

STATE = "state.pt"
SHARDED = "sharded"  # in state.pt, (SHARDED, name, rows) stands for a tensor whose rows are in the shards
# The catalogue, in the entry ITEMS: raw ids and training interactions.
ITEMS = "lrec_items"
CATALOGUE = IDS, ENDS, COUNTS = "item_ids", "item_ends", "item_counts"
# Beside it there, where a network makes rows of vectors: the items that have one and are not in the catalogue.
NEW_IDS, NEW_ENDS, NEW_VECTORS = "new_item_ids", "new_item_ends", "new_item_vectors"
CHECKSUM = "lrec_checksum"
PARTS = ("state_dict", "optimizer_states")  # the parts of a checkpoint whose tensors are sharded as parameters are
ROWS, _STARTS = "rows", "starts"  # where a shard says which rows it has; what earlier versions called it
KIND = "checkpoint that lrec wrote"
_AGAIN = "it is damaged, or was edited; export it again, or train again"
_DAMAGE = (
    *(OSError, RuntimeError, EOFError, TypeError, ValueError, LookupError, AttributeError, OverflowError),
    *(pickle.UnpicklingError, SafetensorError, BadZipFile, zlib.error),
)
Rows = Callable[[str, int], slice]


def everything(name: str, n: int) -> slice:
    """All of n rows."""
    return slice(0, n)


def write_file(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a file; where that fails, the checkpoint before stands."""
    aside = set_aside(path) if path.is_dir() else None
    with replacing(path) as temporary:
        save_pt(temporary, checkpoint)
    if aside is not None:
        remove(aside)


def read(path: Path, rows: Rows = everything, optimizer: bool = True) -> dict[str, Any]:
    """The checkpoint as Lightning knows it, with the given rows of each sharded tensor.

    Args:
        path: A file or a folder.
        rows: The rows, of a tensor's name and so many, to read.
        optimizer: Whether the optimizer's state is wanted.

    Raises:
        UserError: there is none, or it is not lrec's, or damaged.
    """
    with reading(path):
        folder = path.is_dir()
        # Mapped where only some rows are copied out of the file.
        state = _load_pt(path / STATE if folder else path, mmap=rows is not everything and not folder)
        if not optimizer:
            state.pop("optimizer_states", None)
        shards = _Shards(path, state.pop("shards")) if folder else None

        def give_rows(name: str, leaf: Any) -> Any:
            if shards is not None and isinstance(leaf, tuple) and leaf[:1] == (SHARDED,):
                return shards.read(leaf[1], rows(name, leaf[2]), leaf[2])
            if rows is not everything and isinstance(leaf, Tensor) and leaf.ndim:
                return leaf[rows(name, len(leaf))].clone()
            return leaf

        return {key: mapped(value, key, give_rows) if key in PARTS else value for key, value in state.items()}


class Trained(NamedTuple):
    """A trained network as it is stored.

    Attributes:
        about: What it says of itself: the network's shape, step, D, data hash ...
        parameters: By name.
        item_ids: Raw id of each item of the catalogue; none in checkpoints of earlier versions.
        counts_V: Training interactions of each item; None in checkpoints of earlier versions.
        new: Items outside the catalogue that have a vector; None where there is none.
    """

    about: dict[str, Any]
    parameters: dict[str, Tensor]
    item_ids: pl.Series
    counts_V: np.ndarray | None
    new: NewItems | None = None


def trained(checkpoint: dict[str, Any]) -> Trained:
    """The network of a checkpoint that was read."""
    return Trained(
        checkpoint["lrec"] | {"step": checkpoint["global_step"]},
        {name.removeprefix("net."): tensor for name, tensor in checkpoint["state_dict"].items()},
        *items_of_tensors(checkpoint.get(ITEMS, {})),
        new_items_of_tensors(checkpoint.get(ITEMS, {})),
    )


def network(config: TransformerConfig, parameters: dict[str, Tensor], path: Path) -> Transformer:
    """The network of these parameters.

    Raises:
        UserError: `path`, where they come from, lacks some, or has others, of another shape or not finite.
    """
    n_blocks = len({name.split(".")[1] for name in parameters if name.startswith("blocks.")})
    if n_blocks != config.layers:
        raise UserError(f"{path} has the parameters of {n_blocks} blocks, its network has {config.layers}: {_AGAIN}")
    with torch.device("meta"):
        net = Transformer(config)
    check_parameters(parameters, net.state_dict(), path)
    check_finite(parameters, path)
    net.load_state_dict(parameters, assign=True)
    return net


def check_parameters(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: object) -> None:
    """UserError where `path` lacks an expected parameter, or has another one, or one of another shape."""
    for names, has in ((expected.keys() - found.keys(), "lacks"), (found.keys() - expected.keys(), "also has")):
        if names:
            raise UserError(f"{path} {has} the parameter {min(names)}: {_AGAIN}")
    for name, tensor in expected.items():
        one, other = (f"{tuple(each.shape)} {_kind(each)}" for each in (found[name], tensor))
        if one != other:
            raise UserError(f"{path} has {name} as {one}, its network as {other}: {_AGAIN}")


def refuse_another(trained: dict[str, Any], config: TransformerConfig, data_hash: str | None = None) -> None:
    """UserError where a trained network is of another shape than the config, or was trained on other data."""
    theirs = TransformerConfig.from_dict(trained).to_dict()  # what came later has its default in older checkpoints
    for name, value in config.to_dict().items():
        if theirs[name] != value:
            raise UserError(f"the checkpoint has {name} {theirs[name]}, the config {value}: give its own config")
    if data_hash is not None and trained["data_hash"] != data_hash:
        raise UserError("the checkpoint was trained on other data, another split or another reduction")


def refuse_another_optimizer(trained_with: dict[str, Any], now: dict[str, Any]) -> None:
    """UserError where both arguments of a model name an optimizer, and these are of different classes."""
    if "optimizer" not in now:  # an object that no checkpoint can hold
        return
    made = trained_with.get("optimizer"), now["optimizer"]
    theirs, mine = (each["class_path"] if isinstance(each, dict) else each for each in made)
    if theirs not in (None, mine):
        raise UserError(f"the checkpoint has the optimizer {theirs}, the config {mine}: give its own config")


def check_finite(parameters: Mapping[str, Tensor], path: object) -> None:
    """UserError where a parameter of `path` is not finite, whose scores would put items in some order all the same."""
    for name, tensor in parameters.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: the parameter {name} is not finite: the run diverged; recommend from another one")


def _kind(tensor: Tensor) -> str:
    return "floats" if tensor.is_floating_point() else "integers"


def items_as_tensors(ids: pl.Series, counts_V: np.ndarray | None, new: NewItems | None = None) -> dict[str, Tensor]:
    """The catalogue as tensors: item_ids, UTF-8 laid end to end, item_ends, where each ends, and item_counts; the same
    of new items, with their vectors."""
    tensors = dict(zip((IDS, ENDS), _text_as_tensors(ids), strict=True))
    if counts_V is not None:
        tensors[COUNTS] = torch.from_numpy(counts_V.astype(np.int64))
    if new is not None and len(new.ids):
        tensors |= dict(zip((NEW_IDS, NEW_ENDS), _text_as_tensors(new.ids), strict=True))
        tensors[NEW_VECTORS] = new.vectors_NW
    return tensors


def items_of_tensors(tensors: dict[str, Tensor]) -> tuple[pl.Series, np.ndarray | None]:
    """Raw ids and counts that `items_as_tensors` laid down; none in what earlier versions wrote."""
    if IDS not in tensors:
        return pl.Series(dtype=pl.String), None
    return _text_of(tensors[IDS], tensors[ENDS]), tensors[COUNTS].numpy() if COUNTS in tensors else None


def new_items_of_tensors(tensors: dict[str, Tensor]) -> NewItems | None:
    """New items that `items_as_tensors` laid down."""
    if NEW_IDS not in tensors:
        return None
    return NewItems(_text_of(tensors[NEW_IDS], tensors[NEW_ENDS]), tensors[NEW_VECTORS])


def _text_as_tensors(ids: pl.Series) -> tuple[Tensor, Tensor]:
    text = "".join(ids).encode() or b"\0"  # safetensors knows no empty tensor
    ends = ids.str.len_bytes().cast(pl.Int64).cum_sum().to_numpy(writable=True)
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy()), torch.from_numpy(ends)


def _text_of(text: Tensor, ends: Tensor) -> pl.Series:
    laid, bounds = text.numpy().tobytes(), ends.tolist()
    return pl.Series([laid[start:end].decode() for start, end in zip([0, *bounds], bounds, strict=False)])


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a text and of tensors: their names, types, shapes and values."""
    digest = sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file to the disk, for those to read who may read what this process writes."""
    path.touch()
    mode = path.stat().st_mode  # safetensors would leave it to its owner alone
    save_file(tensors, path, metadata)
    path.chmod(mode)
    flush(path)


def check(path: Path) -> None:
    """UserError unless `path` is a whole and undamaged checkpoint of lrec's."""
    with reading(path):
        if not path.is_dir():
            _load_pt(path, mmap=True)
            return
        shards = _load_pt(path / STATE)["shards"]
        opened = _Shards(path, shards)
        for name in shards:
            opened.verify(name)


def find_last(folder: Path) -> Path | None:
    """The last checkpoint in a run's folder of checkpoints; None where none was completed."""
    last = folder / LAST
    return next((path for path in (last, _aside(last)) if path.is_file() or (path / STATE).is_file()), None)


class _Piece(NamedTuple):
    """Rows of a tensor that stand in one shard, from row `start` on."""

    start: int
    rows: Any  # what safetensors calls a slice: reads the rows that it is indexed with
    file: str


class _Shards:
    """The shards of a folder, open for reading; each is verified before anything is read of it."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.pieces: dict[str, list[_Piece]] = {}
        self._files = {name: safe_open(folder / name, framework="pt") for name in names}
        self._verified: set[str] = set()
        for name, file in self._files.items():
            metadata = file.metadata()
            starts = json.loads(metadata[ROWS])["starts"] if ROWS in metadata else json.loads(metadata[_STARTS])
            for tensor, start in starts.items():
                self.pieces.setdefault(tensor, []).append(_Piece(start, file.get_slice(tensor), name))

    def verify(self, name: str) -> None:
        """ValueError where a shard is not as it was written."""
        if name in self._verified:
            return
        file = self._files[name]
        metadata = file.metadata()
        if ROWS in metadata:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            whole = checksum(metadata[ROWS], tensors) == metadata[CHECKSUM]
            if not whole or json.loads(metadata[ROWS])["file"] != name:
                raise ValueError(f"{name} is not as it was written")
        self._verified.add(name)

    def read(self, name: str, wanted: slice, total: int) -> Tensor:
        """The wanted rows of a tensor that has `total`."""
        found, end = [], 0
        for start, rows, file in sorted(self.pieces[name], key=lambda piece: piece.start):
            if start != end:
                break
            end = start + rows.get_shape()[0]
            first, last = max(wanted.start, start), min(wanted.stop, end)
            if first < last:
                self.verify(file)
                found.append(rows[first - start : last - start])
        if end != total:
            raise ValueError(f"{name} has {total} rows, the shards have {end}")
        return torch.cat(found) if found else self.pieces[name][0].rows[0:0]


def mapped(value: Any, name: str, change: Callable[[str, Any], Any]) -> Any:
    """The same nested dictionaries and lists, with change(name, leaf) in place of each leaf."""
    if isinstance(value, dict):
        return {key: mapped(item, f"{name}/{key}", change) for key, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, f"{name}/{index}", change) for index, item in enumerate(value)]
    return change(name, value)


def save_pt(path: Path, value: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values, with its checksum, to the disk."""
    with path.open("wb") as file:
        torch.save(value | {CHECKSUM: _checksum_of(value)}, file)
    flush(path)


def _load_pt(path: Path, mmap: bool = False) -> dict[str, Any]:
    with ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} is not as it was written")
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    if "lrec" not in checkpoint:
        raise ValueError("it lacks what lrec adds to a checkpoint")
    if checkpoint.pop(CHECKSUM, None) not in (None, _checksum_of(checkpoint)):
        raise ValueError("its network, its description or its items are not as they were written")
    return checkpoint


def _checksum_of(checkpoint: dict[str, Any]) -> str:
    """Of the network's tensors, but for those whose rows are in shards, of its description and of its items."""
    named = checkpoint["state_dict"] | checkpoint.get(ITEMS, {})
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    return checksum(json.dumps(checkpoint["lrec"], sort_keys=True, default=str), tensors)


def flush(path: Path) -> None:
    """Have the file on the disk before anything refers to it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-0{path.suffix}")


def set_aside(path: Path) -> Path:
    """Move away a checkpoint of the other form, which cannot be replaced in one step."""
    remove(_aside(path))
    return path.rename(_aside(path))


@contextmanager
def reading(path: Path, kind: str = KIND) -> Iterator[None]:
    """UserError where `path` is not there, or what is done with it shows that it is none of that kind, or damaged."""
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint")
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        raise UserError(f"{path}: not a {kind}, or a damaged one") from error


def not_written(path: Path, error: Exception | None) -> UserError:
    """What to say of a checkpoint that could not be written: by this process where there is an error, or by another."""
    reason = "another process failed" if error is None else str(error).splitlines()[0]
    return UserError(
        f"the checkpoint {path} could not be written ({reason}): the one before it stands; "
        "correct that and go on with --ckpt_path=last"
    )
