"""Warm start: a network begins with the parameters of a trained one, which may have other items.

Shape suffixes: V catalogue, H rows held here, P rows of the old catalogue, E types of event and values of features,
D width, W width of item vectors.
"""

from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from lrec.checkpoint.reading import agreed, check, mapped, read
from lrec.checkpoint.trained import Trained, check_finite, check_parameters, refuse_other_network, trained_in
from lrec.common.text_tables import counted
from lrec.data.features import vocabularies_of
from lrec.errors import UserError
from lrec.evaluation.shared_scoring import leads
from lrec.model import parallelize
from lrec.model.sharded_table import OWN_ROWS, PROJECTION, VECTORS, Shard, local_range, local_rows, processes_of
from lrec.model.transformer import Transformer
from lrec.serving.export import file_of, shape_of
from lrec.serving.export import read as read_exported

EVENTS = "events.weight"  # the parameter that has a row for each type of event and value of a feature
AT_ONCE = 2**16  # rows of an old table that are read at once


def begin_from(path: str | Path, net: Transformer, raw_ids: pl.Series, event_rows: list[str], seed: int) -> str:
    """Give `net` the parameters of a trained network of the same shape; returns how many items are kept, new and gone.

    An item that both networks know, by raw id, keeps its embedding. A new item begins at the mean of all old embeddings
    plus its usual random start (Normal(0, 0.02)). It is then about as probable as the geometric mean of the old items,
    so that n new items take at most n / V of the probability from the others (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models"). A new type of event or value of a feature begins in the same way. If
    rows are also made of features, their projection begins with the best prediction of the old embeddings (ridge
    regression, with a penalty of one item's weight), so that it tells something about a new item from the start. All
    other parameters are copied. The optimizer starts from the beginning.
    """
    stored, pieces = _open(file_of(Path(path)))
    shape = shape_of(stored, Path(path))
    # The types of event and the features' values that the trained network reads.
    known_rows = [*stored.about.get("event_names", [])] if shape.event_types else []
    known_rows += [row for each in vocabularies_of(stored.about) if each.of != "item" for row in each.row_names]
    of_vectors = [] if net.items.vectors is None else ["vector_width", "own_rows"]
    told, mine = f"model.warm_start {path}", net.config.to_dict()
    may_differ = {name: mine[name] for name in ("n_items", "event_types", *of_vectors)}
    refuse_other_network(shape.to_dict() | may_differ, net.config, named=told)
    if bool(known_rows) != bool(event_rows):
        known, given = (", ".join(names) or "none" for names in (known_rows, event_rows))
        raise UserError(f"{told} knows the types of event {known}, the data have {given}")
    # The shape equals the config's, so this makes no other classes.
    with torch.device("meta"):
        expected = Transformer(shape).state_dict()
    one_row = {OWN_ROWS: expected.pop(OWN_ROWS)[:1]}
    check_parameters(stored.parameters | {OWN_ROWS: pieces[0][:1]}, expected | one_row, path)
    check_finite(stored.parameters, path)
    place_of = pl.DataFrame({"id": stored.item_ids}).with_row_index("place")
    place_V = pl.DataFrame({"id": raw_ids}).join(place_of, "id", "left", maintain_order="left")["place"].fill_null(-1)
    rows_HD, is_known_H, mean_D = _item_rows(net, place_V, pieces, seed)
    check_finite({OWN_ROWS: mean_D}, path)  # it is finite only if the whole table is
    if event_rows != known_rows:
        old_ED = stored.parameters[EVENTS].float()
        stored.parameters[EVENTS] = _rows_of_events(net, event_rows, known_rows, old_ED, seed)
    parallelize.fill(net, stored.parameters)
    if net.items.vectors is not None:
        _leave_to_vectors(net, net.items.vectors, rows_HD, is_known_H, mean_D)
    if net.items.weight is not None:
        parallelize.fill(net, {OWN_ROWS: rows_HD}, whole=False)
    kept = int((place_V >= 0).sum())
    new, gone = len(raw_ids) - kept, sum(map(len, pieces)) - kept
    return f"warm start from {path}: {counted(kept, 'item')} kept, {new:,} new, {gone:,} gone"


def _item_rows(net: Transformer, place_V: pl.Series, pieces: list[Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of the new catalogue that this process holds, which of them are old, and the mean of the old table. Old
    rows are from their places in the old table, whose pieces are read in order; new rows (-1) are near its mean."""
    own = local_range(next(iter(net.items.by_item().values())))
    size = torch.Size((len(place_V), net.config.width))
    place_H = torch.from_numpy(place_V.cast(pl.Int64).to_numpy(writable=True)[own])
    rows_HD = net.draw_(torch.empty(len(place_H), net.config.width), OWN_ROWS, size, seed, own.start)
    sum_D, begin = torch.zeros(net.config.width, dtype=torch.float64), 0
    for piece_PD in (part for piece in pieces for part in piece.split(AT_ONCE)):
        sum_D += piece_PD.sum(0, dtype=torch.float64)
        here_H = (place_H >= begin) & (place_H < begin + len(piece_PD))
        rows_HD[here_H] = piece_PD[place_H[here_H] - begin].float()
        begin += len(piece_PD)
    mean_D = (sum_D / begin).float()
    rows_HD[place_H < 0] += mean_D
    return rows_HD, place_H >= 0, mean_D


def _leave_to_vectors(net: Transformer, vectors: Tensor, rows_HD: Tensor, is_known_H: Tensor, mean_D: Tensor) -> None:
    """Fit the projection of the items' vectors to the known rows, and subtract what it explains from these rows. The
    fit is a ridge regression over the rows of all processes, with a penalty of 1."""
    known_HW = local_rows(vectors).float() * is_known_H.to(vectors.device)[:, None]
    here = Shard(known_HW, 0, len(known_HW), processes_of(vectors))
    squares_WW = here.summed(known_HW.T @ known_HW)
    products_WD = here.summed(known_HW.T @ (rows_HD - mean_D).to(vectors.device))
    projection_WD = torch.linalg.solve(squares_WW + torch.eye(len(squares_WW), device=vectors.device), products_WD)
    rows_HD.sub_((known_HW @ projection_WD).cpu())
    parallelize.fill(net, {PROJECTION: projection_WD})


def _rows_of_events(net: Transformer, rows: list[str], known: list[str], old_ED: Tensor, seed: int) -> Tensor:
    """Old rows for the names that are known, and new rows near the mean of the old ones for the others."""
    old_of, size = dict(zip(known, old_ED, strict=True)), torch.Size((len(rows), net.config.width))
    new_ED = net.draw_(torch.empty(size), EVENTS, size, seed) + old_ED.mean(0)
    return torch.stack([old_of.get(name, new_D) for name, new_D in zip(rows, new_ED, strict=True)])


def _open(file: Path) -> tuple[Trained, list[Tensor]]:
    """A trained network without its item table, and the table's rows in order, mapped from the disk if possible."""
    if file.suffix != ".safetensors":
        agreed(lambda: check(file) if leads() else None)

        def rows(name: str, n: int) -> slice:
            return slice(0, 0 if name.endswith(OWN_ROWS) else n)

        stored = trained_in(read(file, rows, optimizer=False, verify=False))
        if VECTORS not in stored.parameters:
            del stored.parameters[OWN_ROWS]
            return stored, mapped(file, f"net.{OWN_ROWS}")
    stored = read_exported(file)  # a mapped file, or a table that is made of vectors
    return stored, [stored.parameters.pop(OWN_ROWS)]
