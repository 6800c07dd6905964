"""The checkpoint of a small network, and the folder that several processes write for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.torch import save_file

from lrec.checkpoint.reading import ITEMS, checksum
from lrec.checkpoint.trained import items_as_tensors
from lrec.checkpoint.writing import write
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.sharded_table import split
from lrec.model.transformer import Transformer

CONFIG = TransformerConfig(7, 5, 2, 8, 2, architecture=Architecture(norm="rms"), parametrisation="scaled")
ABOUT = {"D": 40, "flops": 9, "data_hash": "abc", **CONFIG.to_dict()}
IDS = pl.Series([f"item {i} é" for i in range(CONFIG.n_items)])


def checkpoint(net: Transformer) -> dict[str, Any]:
    """What a run saves for a network of the shape CONFIG."""
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    items = items_as_tensors(IDS, np.arange(CONFIG.n_items) + 1)
    return {"lrec": ABOUT, "global_step": 3, "state_dict": state, ITEMS: items}


def write_by_hand(path: Path, whole: dict[str, Any], n: int) -> None:
    """Write the folder that `n` processes write for a checkpoint, in the documented format."""
    path.mkdir()
    names = [f"token-{process:05d}-of-{n:05d}.safetensors" for process in range(n)]
    for process, name in enumerate(names):
        ranges = {f"state_dict/{k}": split(len(t), [(process, n)]) for k, t in whole["state_dict"].items()}
        rows = {f"state_dict/{k}": t[ranges[f"state_dict/{k}"]].clone() for k, t in whole["state_dict"].items()}
        text = json.dumps({"file": name, "starts": {k: each.start for k, each in ranges.items()}})
        save_file(rows, path / name, {"rows": text, "lrec_checksum": checksum(text, rows)})
    state = {k: ("sharded", f"state_dict/{k}", len(t)) for k, t in whole["state_dict"].items()}
    write(path / "state.pt", whole | {"state_dict": state, "shards": names})
