"""What a checkpoint says of a model, which checkpoints it takes, the model from one alone, and one that begins with it.

Shape suffixes: V catalogue, H rows held here, P rows of the old catalogue, D width.
"""

from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import polars as pl
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lrec.checkpoint.reading import ITEMS, agreed, check, mapped, read
from lrec.checkpoint.trained import (
    Trained,
    build_network,
    check_finite,
    check_parameters,
    items_as_tensors,
    refuse_other_network,
    refuse_other_optimizer,
    trained_in,
)
from lrec.data.datamodule import SequenceDataModule
from lrec.data.vocabulary import as_plain, vocabularies_of
from lrec.errors import UserError
from lrec.evaluation.shared_scoring import leads
from lrec.model import parallelize
from lrec.model.config import TransformerConfig
from lrec.model.item_table import OWN_ROWS, PROJECTION, VECTORS
from lrec.model.item_vectors import NewItems, refuse_other_vectors
from lrec.model.sharded_table import Shard, local_range, local_rows, processes_of
from lrec.model.transformer import Transformer
from lrec.options.class_paths import check_trusted, class_path
from lrec.options.objects import all_as_plain, from_plain
from lrec.serving.export import file_of, shape_of
from lrec.serving.export import read as read_exported
from lrec.training.optim import OfParameters, OptimizerConfig
from lrec.training.tally import LossSum

EVENTS = "events.weight"  # the parameter that has a row for each type of event and value of a feature
AT_ONCE = 2**16  # rows of an old table


class StoredModel(LightningModule):
    """The half of `SequentialRecommender` that checkpoints know."""

    net: Transformer
    config: TransformerConfig
    optimizer: OptimizerConfig | OfParameters
    item_ids: pl.Series

    def __init__(self) -> None:
        super().__init__()
        self.D = 0  # targets trained on
        self.flops = 0  # spent on those
        self.diverged = False  # whether a loss was not finite
        self._trained: dict[str, Any] | None = None  # the network's shape and data hash, once there is a network
        self._new_items: NewItems | None = None
        self._since_evaluation = LossSum()

    def network_config(self, n_items: int, max_len: int) -> TransformerConfig:
        raise NotImplementedError

    @property
    def data(self) -> SequenceDataModule:
        """The DataModule of the attached trainer."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(datamodule, SequenceDataModule)
        return datamodule

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, trust: bool = False, **changed: Any) -> Self:  # type: ignore[override]
        """The model with its trained network, from a checkpoint alone, to test, predict or train on its data.

        Args:
            checkpoint_path: A file or a folder of shards.
            trust: Import classes that the checkpoint names and that are not lrec's own.
            changed: Arguments of the model that replace those it was made with.

        Raises:
            UserError: it is no checkpoint of such a model.
        """
        path = Path(checkpoint_path)
        checkpoint = read(path, optimizer=False)
        about, parameters, _, _, new_items = trained_in(checkpoint)
        if about["model"] not in map(class_path, cls.__mro__):
            raise UserError(f"{path} holds a {about['model']}, which its own load_from_checkpoint loads")
        for name, kind in about["not_stored"].items():
            if name not in changed:
                raise UserError(f"{path} could not keep {name}, a {kind}: load_from_checkpoint(..., {name}=...)")
        stored = checkpoint[cls.CHECKPOINT_HYPER_PARAMS_KEY]
        check_trusted(stored, trust, path)
        model = from_plain(cls, stored, changed)
        model._trained, model.D, model.flops = about, about["D"], about["flops"]
        shape = model.network_config(about["n_items"], about["max_len"])
        model.config = replace(shape, event_types=about["event_types"])
        if any(each.of == "item" for each in vocabularies_of(about)):
            model.config = replace(model.config, vector_width=about["vector_width"], own_rows=about["own_rows"])
        refuse_other_network(about, model.config)
        model.net, model._new_items = build_network(model.config, parameters, path), new_items
        return model

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the run has spent and on what data, the items' raw ids, and what the model was made with."""
        arguments, not_stored = all_as_plain(self.hparams)
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = arguments
        checkpoint[ITEMS] = self._items_as_tensors
        checkpoint["lrec"] = {
            "D": self.D,
            "flops": self.flops,
            "data_hash": self.data.data_hash,
            "columns": asdict(self.data.columns) if self.data.columns else None,
            "min_rating": self.data.min_rating,
            "repeats": self.data.repeats,
            "event_names": self.data.store.event_types,
            "diverged": self.diverged,
            "train_loss": self._since_evaluation.totals(self),
            "model": class_path(type(self)),
            "not_stored": not_stored,
            **as_plain(self.data.learned.vocabularies),
            **self.config.to_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network or other data."""
        saved = checkpoint.get("lrec")
        if saved is None:
            raise UserError("the checkpoint was not written by lrec")
        refuse_other_network(saved, self.config, self.data.data_hash)
        path = self.trainer.ckpt_path or "the checkpoint"
        if self.strict_loading:
            mine = {name: local_rows(tensor) for name, tensor in self.state_dict().items()}
            check_parameters(checkpoint["state_dict"], mine, path)
            refuse_other_vectors(checkpoint["state_dict"], mine, path)
        if self.trainer.predicting:
            check_finite(checkpoint["state_dict"], path)
        self.D, self.flops = saved["D"], saved["flops"]
        if self.trainer.training:
            made_with, _ = all_as_plain({"optimizer": self.optimizer})
            refuse_other_optimizer(checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}), made_with)
            self.diverged = saved["diverged"]
            loss_sum, targets = saved["train_loss"] if self.trainer.is_global_zero else (0.0, 0)
            self._since_evaluation = LossSum(torch.tensor(loss_sum, dtype=torch.float32, device=self.device), targets)
        elif "current_model_state" in checkpoint:
            # A callback that averages weights would go on from those of before: what is evaluated are the averages.
            checkpoint["current_model_state"] = checkpoint["state_dict"]

    @cached_property
    def _items_as_tensors(self) -> dict[str, Tensor]:
        new = None if self.config.vector_width is None else self._new_items
        return items_as_tensors(self.item_ids, self.data.item_counts_V, new)


def begin_from(path: str | Path, net: Transformer, raw_ids: pl.Series, event_rows: list[str], seed: int) -> str:
    """Give `net` the parameters of a trained network of the same shape; says what became of the items.

    An item that both know, by raw id, keeps its embedding. A new item begins at the mean of all old embeddings plus the
    draw that it would have begun with (Normal(0, 0.02)): it is then about as probable as the old items in geometric
    mean, so that n new items take no more than n / V from the others (Hewitt 2021, "Initializing new word embeddings
    for pretrained language models"). So does a new type of event or value of a feature, among these. Where rows are
    made of features too, these begin as what tells the old embeddings best (ridge regression, of one item's weight), so
    that a new item's says something from the start. All else is taken over as it is. The optimizer starts from the
    beginning.
    """
    stored, pieces = _open(file_of(Path(path)))
    shape = shape_of(stored, Path(path))
    mine, theirs = net.config.to_dict(), shape.to_dict()
    known_rows = [*stored.about.get("event_names", [])] if theirs["event_types"] else []
    known_rows += [row for each in vocabularies_of(stored.about) if each.of != "item" for row in each.row_names]
    vectors = net.items.vectors
    of_vectors = [] if vectors is None else ["vector_width", "own_rows"]
    for name in mine.keys() - {"n_items", "event_types", *of_vectors}:
        if mine[name] != theirs[name]:
            raise UserError(
                f"model.warm_start {path} has {name} {theirs[name]}, the config {mine[name]}: give the same"
            )
    if bool(known_rows) != bool(event_rows):
        reads = [", ".join(names) or "none" for names in (known_rows, event_rows)]
        raise UserError(f"model.warm_start {path} knows the types of event {reads[0]}, the data have {reads[1]}")
    # It names the classes that the config names, and no others.
    with torch.device("meta"):
        expected = Transformer(shape).state_dict()
    table = expected.pop(OWN_ROWS)
    check_parameters(stored.parameters, expected, path)
    check_finite(stored.parameters, path)
    place_of = pl.DataFrame({"id": stored.item_ids}).with_row_index("place")
    place_V = pl.DataFrame({"id": raw_ids}).join(place_of, "id", "left", maintain_order="left")["place"].fill_null(-1)
    own, size = local_range(next(iter(net.items.by_item().values()))), torch.Size((len(raw_ids), shape.width))
    place_H = torch.from_numpy(place_V.cast(pl.Int64).to_numpy(writable=True)[own])
    rows_HD = net.draw_(torch.empty(len(place_H), shape.width), OWN_ROWS, size, seed, own.start)
    sum_D, begin = torch.zeros(shape.width, dtype=torch.float64), 0
    for piece_PD in (part for piece in pieces for part in piece.split(AT_ONCE)):
        check_parameters({OWN_ROWS: piece_PD[:0]}, {OWN_ROWS: table[:0]}, path)
        sum_D += piece_PD.sum(0, dtype=torch.float64)
        here_H = (place_H >= begin) & (place_H < begin + len(piece_PD))
        rows_HD[here_H] = piece_PD[place_H[here_H] - begin].float()
        begin += len(piece_PD)
    if event_rows != known_rows:
        old_ED, size = stored.parameters[EVENTS].float(), torch.Size((len(event_rows), shape.width))
        old_of = dict(zip(known_rows, old_ED, strict=True))
        new_ED = net.draw_(torch.empty(size), EVENTS, size, seed) + old_ED.mean(0)
        rows = [old_of.get(name, new_D) for name, new_D in zip(event_rows, new_ED, strict=True)]
        stored.parameters[EVENTS] = torch.stack(rows)
    mean_D = (sum_D / begin).float()
    check_finite({OWN_ROWS: mean_D}, path)  # as the whole table is
    rows_HD[place_H < 0] += mean_D
    parallelize.fill(net, stored.parameters)
    if vectors is not None:
        known_HW = local_rows(vectors).float() * (place_H >= 0).to(vectors.device)[:, None]
        projection_WD = _ridge(known_HW, (rows_HD - mean_D).to(vectors.device), processes_of(vectors))
        rows_HD -= (known_HW @ projection_WD).cpu()
        parallelize.fill(net, {PROJECTION: projection_WD})
    if net.items.weight is not None:
        parallelize.fill(net, {OWN_ROWS: rows_HD}, whole=False)
    kept = int((place_V >= 0).sum())
    new, gone = len(raw_ids) - kept, begin - kept
    return f"warm start from {path}: {kept} items keep their embeddings, {new} are new, {gone} are gone"


def _ridge(x_HW: Tensor, y_HD: Tensor, processes: int) -> Tensor:
    """What times x is nearest to y over the rows of all processes, (W, D), with a penalty of 1."""
    here = Shard(x_HW, 0, len(x_HW), processes)
    squares_WW, products_WD = here.summed(x_HW.T @ x_HW), here.summed(x_HW.T @ y_HD)
    return torch.linalg.solve(squares_WW + torch.eye(len(squares_WW), device=x_HW.device), products_WD)


def _open(file: Path) -> tuple[Trained, list[Tensor]]:
    """A trained network without its item table, and the table's rows in order, which lie on the disk."""
    stored = None
    if file.suffix != ".safetensors":
        agreed(lambda: check(file) if leads() else None)

        def rows(name: str, n: int) -> slice:
            return slice(0, 0 if name.endswith(OWN_ROWS) else n)

        stored = trained_in(read(file, rows, optimizer=False, verify=False))
    if stored is not None and VECTORS not in stored.parameters:
        del stored.parameters[OWN_ROWS]
        return stored, mapped(file, f"net.{OWN_ROWS}")
    stored = read_exported(file)  # mapped itself; a table that is made of vectors is not
    return stored, [stored.parameters.pop(OWN_ROWS)]
