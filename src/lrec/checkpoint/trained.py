"""The trained network in a checkpoint: its description, its parameters, its items; and what refuses another one."""

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

# The catalogue, in the entry ITEMS: raw ids and training interactions.
CATALOGUE = IDS, ENDS, COUNTS = "item_ids", "item_ends", "item_counts"
# Beside it there, where a network makes rows of vectors: the items that have one and are not in the catalogue.
NEW_IDS, NEW_ENDS, NEW_VECTORS = "new_item_ids", "new_item_ends", "new_item_vectors"
_AGAIN = "it is damaged, or was edited; export it again, or train again"


class Trained(NamedTuple):
    """A trained network as it is stored."""

    about: dict[str, Any]  # what it says of itself: the network's shape, step, D, data hash ...
    parameters: dict[str, Tensor]  # by name
    item_ids: pl.Series  # raw id of each item of the catalogue
    counts_V: np.ndarray | None  # training interactions of each item; None where a model was exported without
    new: NewItems | None = None  # items outside the catalogue that have a vector


def trained_in(checkpoint: dict[str, Any]) -> Trained:
    return Trained(
        checkpoint["lrec"] | {"step": checkpoint["global_step"]},
        {name.removeprefix("net."): tensor for name, tensor in checkpoint["state_dict"].items()},
        *items_of(checkpoint[ITEMS]),
    )


def build_network(config: TransformerConfig, parameters: dict[str, Tensor], path: Path) -> Transformer:
    """The network of these parameters; UserError where `path` lacks some, or has others, of another shape, or not
    finite."""
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
        kinds = (("floats" if each.is_floating_point() else "integers", each) for each in (found[name], tensor))
        one, other = (f"{tuple(each.shape)} {kind}" for kind, each in kinds)
        if one != other:
            raise UserError(f"{path} has {name} as {one}, its network as {other}: {_AGAIN}")


def refuse_other_network(trained: dict[str, Any], config: TransformerConfig, data_hash: str | None = None) -> None:
    """UserError where a trained network is of another shape than the config, or was trained on other data."""
    for name, value in config.to_dict().items():
        if trained[name] != value:
            raise UserError(f"the checkpoint has {name} {trained[name]}, the config {value}: give its own config")
    if data_hash is not None and trained["data_hash"] != data_hash:
        raise UserError("the checkpoint was trained on other data, another split or another reduction")


def refuse_other_optimizer(trained_with: dict[str, Any], now: dict[str, Any]) -> None:
    """UserError where both arguments of a model name an optimizer, and these are of different classes, or with another
    rate of Muon: what is loaded would go on as before."""
    made = trained_with.get("optimizer"), now.get("optimizer")  # none: an object that no checkpoint can hold
    theirs, mine = (each["class_path"] if isinstance(each, dict) else each for each in made)
    if mine is not None and theirs not in (None, mine):
        raise UserError(f"the checkpoint has the optimizer {theirs}, the config {mine}: give its own config")
    muon = [each.get("init_args", {}).get("muon") if isinstance(each, dict) else None for each in made]
    if mine is not None and theirs is not None and muon[0] != muon[1]:
        theirs, mine = ("null" if each is None else each for each in muon)
        raise UserError(f"the checkpoint was trained with --model.optimizer.muon {theirs}, not {mine}: give the same")


def check_finite(parameters: Mapping[str, Tensor], path: object) -> None:
    """UserError where a parameter of `path` is not finite, whose scores would put items in some order all the same."""
    for name, tensor in parameters.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: the parameter {name} is not finite: the run diverged; recommend from another one")


def items_as_tensors(ids: pl.Series, counts_V: np.ndarray | None, new: NewItems | None = None) -> dict[str, Tensor]:
    """The catalogue as tensors: ids as UTF-8 laid end to end, where each ends, and counts; the same of new items, with
    their vectors."""
    tensors = dict(zip((IDS, ENDS), _text_as_tensors(ids), strict=True))
    if counts_V is not None:
        tensors[COUNTS] = torch.from_numpy(counts_V.astype(np.int64))
    if new is not None and len(new.ids):
        tensors |= dict(zip((NEW_IDS, NEW_ENDS), _text_as_tensors(new.ids), strict=True))
        tensors[NEW_VECTORS] = new.vectors_NW
    return tensors


def items_of(tensors: dict[str, Tensor]) -> tuple[pl.Series, np.ndarray | None, NewItems | None]:
    """Raw ids and counts of the catalogue, and new items, that `items_as_tensors` laid down."""
    new = NewItems(_text_of(tensors[NEW_IDS], tensors[NEW_ENDS]), tensors[NEW_VECTORS]) if NEW_IDS in tensors else None
    return _text_of(tensors[IDS], tensors[ENDS]), tensors[COUNTS].numpy() if COUNTS in tensors else None, new


def _text_as_tensors(ids: pl.Series) -> tuple[Tensor, Tensor]:
    text = "".join(ids).encode() or b"\0"  # safetensors knows no empty tensor
    ends = ids.str.len_bytes().cast(pl.Int64).cum_sum().to_numpy(writable=True)
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy()), torch.from_numpy(ends)


def _text_of(text: Tensor, ends: Tensor) -> pl.Series:
    laid, bounds = text.numpy().tobytes(), ends.tolist()
    return pl.Series([laid[start:end].decode() for start, end in zip([0, *bounds], bounds, strict=False)])
