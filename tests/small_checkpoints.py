"""A small network's checkpoint, and the folder that several processes leave of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file

from lrec.checkpoint.format import ITEMS, items_as_tensors
from lrec.model.config import Architecture, MuP, TransformerConfig
from lrec.model.parallelize import Sharding
from lrec.model.transformer import Transformer

CONFIG = TransformerConfig(7, 5, 2, 8, 2, architecture=Architecture(norm="rms"), mup=MuP())
ABOUT = {
    "D": 40, "flops": 9, "data_hash": "abc", "n_items": 7, "max_len": 5, "layers": 2, "width": 8, "heads": 2,
    "mup": {"base_layers": 2, "base_width": 64, "base_heads": 2},
    "architecture.norm": "rms", "architecture.mlp": "gelu", "architecture.positions": "learned",
    "architecture.qk_norm": False,
}  # fmt: skip
IDS = pl.Series([f"item {i} é" for i in range(CONFIG.n_items)])


class Mesh:
    """Stands for the mesh that a process of `n` sees."""

    ndim = 1

    def __init__(self, rank: int, n: int) -> None:
        self.rank, self.n = rank, n

    def size(self, dimension: int) -> int:
        return self.n

    def get_local_rank(self, dimension: int) -> int:
        return self.rank


def shardings(n: int) -> list[Sharding]:
    return [Sharding(Mesh(rank, n)) for rank in range(n)]  # type: ignore[arg-type]


def checkpoint(net: Transformer) -> dict[str, Any]:
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    items = items_as_tensors(IDS, np.arange(CONFIG.n_items) + 1)
    return {"lrec": ABOUT, "global_step": 3, "state_dict": state, ITEMS: items}


def write_by_hand(path: Path, whole: dict[str, Any], n: int) -> None:
    """The folder that `n` processes would have left in a version without checksums."""
    path.mkdir()
    names = [f"token-{shard:05d}-of-{n:05d}.safetensors" for shard in range(n)]
    state = dict(whole, shards=names)
    state["state_dict"] = {k: ("sharded", f"state_dict/{k}", len(t)) for k, t in whole["state_dict"].items()}
    for sharding, name in zip(shardings(n), names, strict=True):
        rows = {f"state_dict/{k}": t[sharding.rows(len(t))].clone() for k, t in whole["state_dict"].items()}
        starts = {f"state_dict/{k}": sharding.rows(len(t)).start for k, t in whole["state_dict"].items()}
        save_file(rows, path / name, {"starts": json.dumps(starts)})
    torch.save(state, path / "state.pt")
