"""A network for a new catalogue that begins with what another one has learned.

Shape suffixes: V catalogue of the new network, D width.
"""

from pathlib import Path

import numpy as np
import polars as pl
import torch

from lrec.checkpoint.trained import build_network
from lrec.errors import UserError
from lrec.model import parallelize
from lrec.model.transformer import Transformer
from lrec.serving.export import read, shape_of
from lrec.serving.recommender import Model


def begin_from(path: str | Path, net: Transformer, raw_ids: pl.Series, event_names: list[str], seed: int) -> str:
    """Give `net` the parameters of a trained network of the same shape; says what became of the items.

    An item that both know, by raw id, keeps its embedding. A new item begins at the mean of all old embeddings plus the
    draw that it would have begun with (Normal(0, 0.02)): it is then about as probable as the old items in geometric
    mean, so that n new items take no more than n / V from the others (Hewitt 2021, "Initializing new word embeddings
    for pretrained language models"). All else is taken over as it is. The optimizer starts from the beginning.

    Args:
        path: A run's folder, one of its checkpoints, or what lrec export wrote.
        net: The new network, sharded or not.
        raw_ids: Raw id of each item of its catalogue.
        event_names: Its types of event, in their order.
        seed: Seed of its initial values.

    Raises:
        UserError: the two networks differ in more than their catalogues.
    """
    stored = read(Path(path))
    shape = shape_of(stored, Path(path))
    mine, theirs = net.config.to_dict(), shape.to_dict()
    for name in mine.keys() - {"n_items"}:
        if mine[name] != theirs[name]:
            raise UserError(
                f"model.warm_start {path} has {name} {theirs[name]}, the config {mine[name]}: give the same"
            )
    if event_names and stored.about["event_names"] != event_names:
        known, given = (", ".join(names) for names in (stored.about["event_names"], event_names))
        raise UserError(f"model.warm_start {path} knows the types of event {known}, the data have {given}")
    # It names the classes that the config names, and no others.
    old = Model(build_network(shape, stored.parameters, Path(path)), stored.item_ids, stored.about)
    table_VD = old.net.items.weight.detach().float()
    drawn_VD = net.initial_value("items.weight", torch.Size((len(raw_ids), table_VD.shape[1])), seed)
    place_V = old.index(raw_ids)
    known_V = torch.from_numpy(place_V >= 0)
    grown_VD = torch.where(known_V[:, None], table_VD[np.maximum(place_V, 0)], table_VD.mean(0) + drawn_VD)
    parallelize.fill(net, dict(old.net.named_parameters()) | {"items.weight": grown_VD})
    kept = int(known_V.sum())
    new, gone = len(raw_ids) - kept, len(table_VD) - kept
    return f"warm start from {path}: {kept} items keep their embeddings, {new} are new, {gone} are gone"
