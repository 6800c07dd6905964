"""What a checkpoint is on disk (one file, or one folder of shards), and how any number of processes reads it.

A file `NAME.ckpt` is Lightning's dictionary of tensors and plain values. A folder `NAME.ckpt` holds it in parts:

    state.pt                             the dictionary without the rows of sharded tensors, and the names of the shards
    TOKEN-00000-of-00002.safetensors     a shard: rows of sharded tensors, one file per process

A new checkpoint takes effect when state.pt is replaced; files that it does not name are removed afterwards. No pickled
code is read or written. Damaged checkpoints are refused: NAME.ckpt and state.pt are zip archives, with a CRC for each
entry, and each shard has its own `checksum`. The entry lrec_checksum covers the network's tensors (except those in
shards), its description and its item ids, so that nobody can exchange only one of them.
"""

import json
import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, distributed

from lrec.errors import UserError
from lrec.run import LAST

STATE = "state.pt"
SHARDED = "sharded"  # in state.pt, (SHARDED, name, rows) stands for a tensor whose rows are in the shards
ITEMS = "lrec_items"  # the entry that holds the catalogue
CHECKSUM = "lrec_checksum"
BY_PARAMETER = ("state_dict", "optimizer_states")  # the entries whose tensors are sharded like the parameters
ROWS = "rows"  # in a shard's metadata: JSON with its file name and the first row that it has of each tensor

T = TypeVar("T")
Rows = Callable[[str, int], slice]  # the rows to read of a tensor, by its name and number of rows
_DAMAGE = (
    *(OSError, RuntimeError, EOFError, TypeError, ValueError, LookupError, AttributeError, OverflowError),
    *(pickle.UnpicklingError, SafetensorError, BadZipFile, zlib.error),
)


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a text and of tensors: their names, types, shapes and values."""
    digest = sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checksum_of(checkpoint: Mapping[str, Any]) -> str:
    """The checksum of the network's tensors (except those in shards), its description and its items."""
    named = checkpoint["state_dict"] | checkpoint.get(ITEMS, {})
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    return checksum(json.dumps(checkpoint["lrec"], sort_keys=True, default=str), tensors)


def change_leaves(value: Any, name: str, change: Callable[[str, Any], Any]) -> Any:
    """The same nested dictionaries and lists, with change(name, leaf) in place of each leaf."""
    if isinstance(value, dict):
        return {key: change_leaves(item, f"{name}/{key}", change) for key, item in value.items()}
    if isinstance(value, list):
        return [change_leaves(item, f"{name}/{index}", change) for index, item in enumerate(value)]
    return change(name, value)


def aside(path: Path) -> Path:
    """The path of a checkpoint while one of the other form (file or folder) takes its place."""
    return path.with_name(f"{path.stem}-0{path.suffix}")


def find_last(folder: Path) -> Path | None:
    """The last checkpoint in a run's folder of checkpoints; None if none was completed."""
    last = folder / LAST
    return next((path for path in (last, aside(last)) if path.is_file() or (path / STATE).is_file()), None)


def check(path: Path, whole: bool = True) -> None:
    """Raise UserError unless `path` is an undamaged checkpoint of lrec. Unless `whole`, only read its description."""
    with refuse_damage(path):
        names = _load_pt(path, mmap=True, verify=whole).get("shards", [])
        shards = _Shards(path, names)
        for name in names if whole else ():
            shards.verify(name)


def read_together(path: Path, rows: Rows | None = None, optimizer: bool = True) -> dict[str, Any]:
    """`read` on all processes. The first process verifies a file; each process verifies the shards that it reads."""
    verify = path.is_dir() or not distributed.is_initialized() or distributed.get_rank() == 0
    return agreed(lambda: read(path, rows, optimizer, verify))


def agreed(work: Callable[[], T]) -> T:
    """The result of `work`, which all processes do together. A UserError on one of them is raised on all of them."""
    if not distributed.is_initialized():
        return work()
    made, mine = [], None
    failures: list[str | None] = [None] * distributed.get_world_size()
    try:
        made.append(work())
    except UserError as error:
        mine = str(error)
    distributed.all_gather_object(failures, mine)
    for failure in filter(None, failures):
        raise UserError(failure)
    return made[0]


def mapped(path: Path, name: str) -> list[Tensor]:
    """The rows of a parameter, in order, mapped from the disk and unverified: rows that are not used take no memory."""
    with refuse_damage(path):
        state = _load_pt(path, mmap=True, verify=False)
        found = state["state_dict"][name]
        if isinstance(found, Tensor):
            return [found]
        _, of_shards, n = found
        return [rows for _, _, rows in _Shards(path, state["shards"], verify=False).pieces(of_shards, n)]


def read(path: Path, rows: Rows | None = None, optimizer: bool = True, verify: bool = True) -> dict[str, Any]:
    """The checkpoint as Lightning knows it. It is verified, unless another process does that (`verify`). Raise
    UserError if it does not exist, is damaged, or is not from lrec."""
    with refuse_damage(path):
        state = _load_pt(path, mmap=rows is not None, verify=verify)  # mapped if only some rows are copied
        if not optimizer:
            state.pop("optimizer_states", None)
        shards = _Shards(path, state.pop("shards", []), verify)

        def read_leaf(name: str, leaf: Any) -> Any:
            match leaf:
                case (marker, of_shards, n) if marker == SHARDED:
                    return shards.read(of_shards, slice(0, n) if rows is None else rows(name, n), n)
                case Tensor() if rows is not None and leaf.ndim:
                    return leaf[rows(name, len(leaf))].clone()
            return leaf

        return {
            key: change_leaves(value, key, read_leaf) if key in BY_PARAMETER else value for key, value in state.items()
        }


@contextmanager
def refuse_damage(path: Path, kind: str = "checkpoint that lrec wrote") -> Iterator[None]:
    """Raise UserError if `path` does not exist, or if an error in the block shows damage or another kind of file."""
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint")
    try:
        yield
    except (UserError, PermissionError):
        raise
    except _DAMAGE as error:
        if (of_run := path / "checkpoints").is_dir():
            last = of_run / "last.ckpt"
            raise UserError(f"{path}: the folder of a run: name one of its checkpoints, such as {last}") from error
        raise UserError(f"{path}: not a {kind}, or a damaged one") from error


def _load_pt(path: Path, mmap: bool, verify: bool) -> dict[str, Any]:
    """A file's dictionary or, in a folder, that of its state.pt."""
    file = path / STATE if path.is_dir() else path
    with ZipFile(file) as archive:
        if verify and (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} is not as it was written")
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    if "lrec" not in checkpoint:
        raise ValueError("it lacks what lrec adds to a checkpoint")
    # Trainer.save_checkpoint in a user's script writes no checksum; the CRCs of the archive were verified above.
    stated = checkpoint.pop(CHECKSUM, None)
    if verify and stated not in (None, checksum_of(checkpoint)):
        raise ValueError("its network, its description or its items are not as they were written")
    return checkpoint


class _Shards:
    """The shards of a folder, open for reading. With `verify`, `read` verifies a shard before it takes rows from it."""

    def __init__(self, folder: Path, names: list[str], verify: bool = True) -> None:
        self._files = {name: safe_open(folder / name, framework="pt") for name in names}
        self._places = {name: json.loads(file.metadata()[ROWS]) for name, file in self._files.items()}
        self.verify = cache(self._verify) if verify else lambda name: None

    def _verify(self, name: str) -> None:
        file = self._files[name]
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        if checksum(metadata[ROWS], tensors) != metadata[CHECKSUM] or self._places[name]["file"] != name:
            raise ValueError(f"{name} is not as it was written")

    def pieces(self, tensor: str, total: int) -> list[tuple[int, str, Tensor]]:
        """First row, shard and rows of each part of a tensor that has `total` rows."""
        found, end = [], 0
        starts = {name: places["starts"] for name, places in self._places.items() if tensor in places["starts"]}
        for start, name in sorted((rows[tensor], name) for name, rows in starts.items()):
            if start != end:
                break
            found.append((start, name, self._files[name].get_tensor(tensor)))
            end += len(found[-1][2])
        if end != total:
            raise ValueError(f"{tensor} has {total} rows, the shards have {end}")
        return found

    def read(self, tensor: str, wanted: slice, total: int) -> Tensor:
        found = []
        for start, name, rows in self.pieces(tensor, total):
            first, last = max(wanted.start, start), min(wanted.stop, start + len(rows))
            if first < last:
                self.verify(name)
                found.append(rows[first - start : last - start])
        return torch.cat(found) if found else rows[0:0].clone()
