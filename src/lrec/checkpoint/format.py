"""What a checkpoint is on disk: one file, or one folder of shards that any number of processes reads.

A file `NAME.ckpt` is what Lightning saves: a dictionary of tensors and plain values. A folder `NAME.ckpt` holds the
same dictionary in parts:

    state.pt                             the dictionary, but for the rows of sharded tensors, and the names of the files
    TOKEN-00000-of-00002.safetensors     that hold them: rows of such tensors, a file per process

Replacing state.pt is what puts a new checkpoint in force; files that it does not name are removed afterwards. No
pickled code is read or written. What is damaged is refused: NAME.ckpt and state.pt are zip archives, with a CRC for
each entry; shards have a `checksum` of their own; and the entry lrec_checksum is that of the network as a whole file
holds it, its description and its item ids, so that nobody can exchange one of them alone.
"""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STATE = "state.pt"
SHARDED = "sharded"  # in state.pt, (SHARDED, name, rows) stands for a tensor whose rows are in the shards
ITEMS = "lrec_items"  # the entry that holds the catalogue
CHECKSUM = "lrec_checksum"
BY_PARAMETER = ("state_dict", "optimizer_states")  # the entries whose tensors are sharded as parameters are
ROWS = "rows"  # where a shard says, as JSON, its file's name and the first row that it has of each tensor


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a text and of tensors: their names, types, shapes and values."""
    digest = sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checksum_of(checkpoint: Mapping[str, Any]) -> str:
    """Of the network's tensors, but for those whose rows are in shards, of its description and of its items."""
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
    """Where a checkpoint lies while one of the other form, file or folder, takes its place."""
    return path.with_name(f"{path.stem}-0{path.suffix}")
