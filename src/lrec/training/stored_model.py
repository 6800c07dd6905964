"""What a model adds to its checkpoints, which checkpoints it accepts, and the model from a checkpoint alone.

Shape suffixes: V catalogue.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import polars as pl
from lightning.pytorch import LightningModule
from torch import Tensor, device

from lrec.checkpoint import trained
from lrec.checkpoint.reading import ITEMS, read, refuse_damage
from lrec.common.text_tables import counted
from lrec.data.datamodule import SequenceDataModule
from lrec.data.features import as_plain, vocabularies_of
from lrec.errors import UserError
from lrec.model.config import TransformerConfig
from lrec.model.item_vectors import NewItems, refuse_other_vectors
from lrec.model.losses import Loss
from lrec.model.sharded_table import local_rows
from lrec.model.transformer import Transformer
from lrec.options.class_paths import check_trusted, class_path
from lrec.options.objects import all_as_plain, from_plain
from lrec.run import RunConfig
from lrec.training.optim import OfParameters, OptimizerConfig
from lrec.training.tally import LossSum, logs_now, steps_per_epoch


class StoredModel(LightningModule):
    """The part of `SequentialRecommender` that saves and loads checkpoints."""

    net: Transformer
    config: TransformerConfig
    loss: Loss
    optimizer: OptimizerConfig | OfParameters
    item_ids: pl.Series
    item_vectors: Path | None
    network_config: Callable[..., TransformerConfig]

    def __init__(self) -> None:
        super().__init__()
        self.D = 0  # targets trained on
        self.flops = 0  # spent on them
        self.diverged = False  # whether a loss was not finite
        self._trained: dict[str, Any] | None = None  # the network's shape and data hash, once there is a network
        self._new_items: NewItems | None = None
        self._since_evaluation, self._since_logged = LossSum(), LossSum()

    @property
    def data(self) -> SequenceDataModule:
        """The DataModule of the attached trainer; UserError if it has none of lrec."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(datamodule, SequenceDataModule):
            raise UserError("give the trainer a DataModule of lrec, not loaders: trainer.fit(model, datamodule=data)")
        return datamodule

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: str | device | None = "cpu",
        hparams_file: None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        trust: bool = False,
        **changed: Any,
    ) -> Self:
        """The model with its trained network, from a checkpoint alone, to test, predict or train on its data.

        Args:
            checkpoint_path: A file or a folder of shards.
            map_location: Device of the network.
            hparams_file: None: the checkpoint has the model's arguments.
            strict: As Lightning has it; the parameters must be those of the model in any case.
            weights_only: As Lightning has it; no pickled code is read in any case.
            trust: Import classes that the checkpoint names and that are not lrec's own.
            changed: Arguments of the model that replace those it was made with.

        Raises:
            UserError: The file is not a checkpoint of such a model.
        """
        path = Path(checkpoint_path)
        if hparams_file is not None:
            raise UserError(f"hparams_file {hparams_file}: {path} has the model's arguments; give other ones by name")
        with refuse_damage(path):
            checkpoint = read(path, optimizer=False)
            about, parameters, _, _, new_items = trained.trained_in(checkpoint)
            stored = checkpoint[cls.CHECKPOINT_HYPER_PARAMS_KEY]
        if about["model"] not in map(class_path, cls.__mro__):
            raise UserError(f"{path} holds a {about['model']}: use its own load_from_checkpoint")
        for name, kind in about["not_stored"].items():
            if name not in changed:
                raise UserError(f"{path} could not keep {name}, a {kind}: load_from_checkpoint(..., {name}=...)")
        check_trusted(stored, trust, path)
        model = from_plain(cls, stored, changed)
        beside = {n: t for n, t in checkpoint["state_dict"].items() if not n.startswith(trained.NETWORK)}
        if unknown := beside.keys() - model.state_dict().keys():
            raise UserError(f"{path} has {min(unknown)}, which a new {cls.__name__} has not: make it in __init__")
        trained.check_parameters(beside, model.state_dict(), path)
        model.load_state_dict(beside)
        model._trained, model.D, model.flops = about, about["D"], about["flops"]
        has_vectors = model.item_vectors is not None or any(each.of == "item" for each in vocabularies_of(about))
        width = about["vector_width"] if has_vectors else None
        model.config = model.network_config(about["n_items"], about["max_len"], about["event_types"], width)
        trained.refuse_other_network(about, model.config)
        model.net, model._new_items = trained.build_network(model.config, parameters, path), new_items
        return model.to(map_location)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add targets and FLOPs so far, the data's description, the items' raw ids, and the model's arguments."""
        arguments, not_stored = all_as_plain(self.hparams)
        logged = logs_now(self.trainer, self.trainer.fit_loop.epoch_loop.batch_idx)  # or is about to be
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
            "train_loss": self._since_evaluation.by_rank(self.trainer.strategy),
            "steps_per_epoch": steps_per_epoch(self.trainer, self.data.steps_per_epoch),
            "logged_loss": (LossSum() if logged else self._since_logged).by_rank(self.trainer.strategy),
            "model": class_path(type(self)),
            "not_stored": not_stored,
            **as_plain(self.data.learned.vocabularies),
            **self.config.to_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counts; refuse another network or other data, and in training, another optimizer or loss."""
        saved = checkpoint.get("lrec")
        if saved is None:
            raise UserError("the checkpoint was not written by lrec")
        trained.refuse_other_network(saved, self.config, self.data.data_hash)
        path = self.trainer.ckpt_path or "the checkpoint"
        if self.strict_loading:
            mine = {name: local_rows(tensor) for name, tensor in self.state_dict().items()}
            trained.check_parameters(checkpoint["state_dict"], mine, path)
            refuse_other_vectors(checkpoint["state_dict"], mine, path)
        if self.trainer.predicting:
            trained.check_finite(checkpoint["state_dict"], path)
        self.D, self.flops = saved["D"], saved["flops"]
        if self.trainer.training:
            if "optimizer_states" not in checkpoint:
                raise UserError(f"{path} has no optimizer, so no run can go on from it: give it as --model.warm_start")
            kind = type(self.data).__qualname__  # by which Lightning stores the state of the data
            if checkpoint["global_step"] and "step" not in checkpoint.get(kind, {}):
                why = "the order of the data would begin again"  # also if the class has a state_dict without super()
                raise UserError(f"{path} was trained with data of another class than {kind}: give the same; {why}")
            made_with = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
            kept = _KEPT if isinstance(self.optimizer, OptimizerConfig) else None
            _refuse_other("optimizer", made_with, self.optimizer, kept)
            _refuse_other("loss", made_with, self.loss)
            self._refuse_other_epochs(checkpoint, path)
            self._go_back_to_a_step(checkpoint)
            self.diverged = saved["diverged"]
            self._since_evaluation = LossSum.restored(saved["train_loss"], self.trainer)
            self._since_logged = LossSum.restored(saved.get("logged_loss", []), self.trainer)
        elif "current_model_state" in checkpoint:
            # A callback that averages weights would restore the unaveraged ones. Evaluation needs the averages.
            checkpoint["current_model_state"] = checkpoint["state_dict"]

    def _refuse_other_epochs(self, checkpoint: dict[str, Any], path: object) -> None:
        """UserError if epochs are complete that have another number of steps: Lightning counts them like its own, so
        the schedule and the evaluations would be at wrong steps. A trial takes a few steps in any case."""
        whole_epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        mine = steps_per_epoch(self.trainer, self.data.steps_per_epoch)
        before = checkpoint["lrec"].get("steps_per_epoch", mine)
        if whole_epochs and before != mine and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            way_out = "give the same --data.targets_per_step, --trainer.limit_train_batches and accumulate_grad_batches"
            raise UserError(f"{path} has epochs of {counted(before, 'step')}, this run of {mine:,}: {way_out}")

    def _go_back_to_a_step(self, checkpoint: dict[str, Any]) -> None:
        """If the checkpoint was saved within a step, as after an exception or at the end of the time, repeat the step:
        checkpoints do not hold accumulated gradients, and the loader has handed over the step's batches already."""
        counts = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        loader = checkpoint.get(type(self.data).__qualname__) or {"accumulation": 1}
        steps, within = divmod(counts["current"]["processed"], loader["accumulation"])
        if within == 0 and counts["current"]["ready"] == counts["current"]["processed"]:
            return
        for count in (counts["current"], counts["total"]):
            done = count["processed"] - within
            # As in a checkpoint of a callback that saves after a step.
            count |= {"ready": done, "started": done, "processed": done, "completed": done - 1}
        # Lightning adds the step before, from whose end it goes on, but it is counted already.
        checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
        loader["step"] = steps

    @cached_property
    def _items_as_tensors(self) -> dict[str, Tensor]:
        new = None if self.config.vector_width is None else self._new_items
        return trained.items_as_tensors(self.item_ids, self.data.item_counts_V, new)


# Options of an OptimizerConfig that its state holds; those of its schedule may change.
_KEPT = ("lr", "weight_decay", "betas", "muon", "touched_rows", "switch.lr", "switch.momentum", "switch.weight_decay")


def _refuse_other(name: str, stored: dict[str, Any], mine: object, kept: Collection[str] | None = None) -> None:
    """UserError if the stored optimizer or loss has another class than `mine`, or another value of the options `kept`,
    by default of all: the run would go on with the old optimizer, or add up two losses."""
    both: tuple[Any, Any] = stored.get(name), all_as_plain({name: mine})[0].get(name)
    if None in both:  # an object that no checkpoint can hold
        return
    before, now = (RunConfig({"class_path": each} if isinstance(each, str) else each).flat for each in both)
    for option in ("class_path", *(sorted(before.keys() & now.keys()) if kept is None else kept)):
        old, new = (options.get(option) for options in (before, now))
        if (old or None) != (new or None):  # a checkpoint of before the option existed lacks it
            values = f"{json.dumps(old)}, not {json.dumps(new)}"
            raise UserError(f"the checkpoint was trained with --model.{name}.{option} {values}: give the same")
