"""The trained network in a checkpoint: its description, parameters and items. And checks that refuse another one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from lrec.checkpoint.reading import ITEMS
from lrec.errors import UserError
from lrec.model.config import TransformerConfig
from lrec.model.item_vectors import NewItems
from lrec.model.transformer import Transformer

# Keys of the catalogue in the entry ITEMS: raw ids and training interactions.
CATALOGUE = IDS, ENDS, COUNTS = "item_ids", "item_ends", "item_counts"
# If a network makes rows from vectors, ITEMS also has the items with a vector that are not in the catalogue.
NEW_IDS, NEW_ENDS, NEW_VECTORS = "new_item_ids", "new_item_ends", "new_item_vectors"
NETWORK = "net."  # prefix of the network's parameters in a checkpoint
_AGAIN = "it is damaged, or was edited; export it again, or train again"


class Trained(NamedTuple):
    """A trained network as it is stored."""

    about: dict[str, Any]  # its description: the network's shape, step, D, data hash ...
    parameters: dict[str, Tensor]  # by name
    item_ids: pl.Series  # raw id of each item of the catalogue
    counts_V: np.ndarray | None  # training interactions of each item; None if a model was exported without them
    new: NewItems | None = None  # items outside the catalogue that have a vector


def trained_in(checkpoint: dict[str, Any]) -> Trained:
    """The network of a checkpoint, without parameters that a model of the user has beside it."""
    of_network = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith(NETWORK)}
    return Trained(
        checkpoint["lrec"] | {"step": checkpoint["global_step"]},
        {name.removeprefix(NETWORK): tensor for name, tensor in of_network.items()},
        *items_of(checkpoint[ITEMS]),
    )


def build_network(config: TransformerConfig, parameters: dict[str, Tensor], path: Path) -> Transformer:
    """The network with these parameters. UserError if one is missing, unexpected, of another shape, or not finite."""
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
    """Raise UserError if `path` lacks an expected parameter, or has an unexpected one or one of another shape."""
    for names, has in ((expected.keys() - found.keys(), "lacks"), (found.keys() - expected.keys(), "also has")):
        if names:
            raise UserError(f"{path} {has} the parameter {min(names)}: {_AGAIN}")
    for name, tensor in expected.items():
        kinds = (("floats" if each.is_floating_point() else "integers", each) for each in (found[name], tensor))
        one, other = (f"{tuple(each.shape)} {kind}" for kind, each in kinds)
        if one != other:
            raise UserError(f"{path} has {name} as {one}, its network as {other}: {_AGAIN}")


def refuse_other_network(
    trained: dict[str, Any], config: TransformerConfig, data_hash: str | None = None, named: str = "the checkpoint"
) -> None:
    """Raise UserError if a trained network has another shape than the config, or was trained on other data."""
    if data_hash is not None and trained["data_hash"] != data_hash:
        way_out = "give the same; if the log has changed, name the store of its old rows (--data.store)"
        raise UserError(f"{named} was trained on other data, another split or another reduction: {way_out}")
    trained = {"architecture.seen": False} | trained  # checkpoints of earlier versions do not have it
    for name, value in config.to_dict().items():
        if trained[name] != value:
            raise UserError(f"{named} has {name} {trained[name]}, the config {value}: give the same")


def check_finite(parameters: Mapping[str, Tensor], path: object) -> None:
    """Raise UserError if a parameter of `path` is not finite: its scores would still order the items in some way."""
    for name, tensor in parameters.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: the parameter {name} is not finite: the run diverged; use another run")


def items_as_tensors(ids: pl.Series, counts_V: np.ndarray | None, new: NewItems | None = None) -> dict[str, Tensor]:
    """The catalogue as tensors: ids as one UTF-8 text, where each id ends, counts; likewise of new items."""
    tensors = dict(zip((IDS, ENDS), _text_as_tensors(ids), strict=True))
    if counts_V is not None:
        tensors[COUNTS] = torch.from_numpy(counts_V.astype(np.int64))
    if new is not None and len(new.ids):
        tensors |= dict(zip((NEW_IDS, NEW_ENDS), _text_as_tensors(new.ids), strict=True))
        tensors[NEW_VECTORS] = new.vectors_NW
    return tensors


def items_of(tensors: dict[str, Tensor]) -> tuple[pl.Series, np.ndarray | None, NewItems | None]:
    """Raw ids and counts of the catalogue, and the new items, from the tensors of `items_as_tensors`."""
    new = NewItems(_text_of(tensors[NEW_IDS], tensors[NEW_ENDS]), tensors[NEW_VECTORS]) if NEW_IDS in tensors else None
    return _text_of(tensors[IDS], tensors[ENDS]), tensors[COUNTS].numpy() if COUNTS in tensors else None, new


def _text_as_tensors(ids: pl.Series) -> tuple[Tensor, Tensor]:
    text = bytearray("".join(ids).encode()) or bytearray(1)  # safetensors knows no empty tensor
    ends = ids.str.len_bytes().cast(pl.Int64).cum_sum().to_numpy(writable=True)
    return torch.frombuffer(text, dtype=torch.uint8), torch.from_numpy(ends)


def _text_of(text: Tensor, ends: Tensor) -> pl.Series:
    laid, bounds = text.numpy().tobytes(), ends.tolist()
    return pl.Series([laid[start:end].decode() for start, end in zip([0, *bounds], bounds, strict=False)])
