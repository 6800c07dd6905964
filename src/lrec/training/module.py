"""SequentialRecommender, the LightningModule: wires network, loss, optimizer and metrics; holds no maths.

Shape suffixes: B rows, L positions, M targets, D width, V catalogue, K list length.
"""

import gc
import hashlib
import math
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import polars as pl
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lrec.checkpoint import format as checkpoints
from lrec.common import cpu_threads
from lrec.common.hardware import keep_freed_memory
from lrec.data.batching.eval_batches import EvalBatch
from lrec.data.batching.train_batches import TrainBatch
from lrec.data.datamodule import SequenceDataModule
from lrec.errors import UserError
from lrec.evaluation.evaluator import Evaluator
from lrec.evaluation.metrics import KS, Metric, with_own
from lrec.model import cost, parallelize
from lrec.model.blocks import check_parts
from lrec.model.config import Architecture, Dropout, MuP, TransformerConfig, chosen_size
from lrec.model.item_vectors import (
    NewItems,
    Use,
    initial_parameters,
    read_item_vectors,
    read_width,
    refuse_other_vectors,
)
from lrec.model.losses import FullSoftmax, Loss
from lrec.model.sharded_table import Table, whole
from lrec.model.transformer import Transformer
from lrec.options.arguments import all_as_plain, remade
from lrec.options.class_paths import check_trusted, class_path
from lrec.options.parser import made_of
from lrec.ranking.best_items import TopItems
from lrec.ranking.scoring import Scores, score, top_items
from lrec.serving.recommender import lists_of
from lrec.training.optim import OfParameters, Optimizer, OptimizerConfig, build
from lrec.training.optimizer_switch import OptimizerSwitch
from lrec.training.time_limit import schedule_position, schedule_steps
from lrec.training.touched_rows import check_touched_rows, clip_by_norm, touched_of
from lrec.training.train_loss import LossSum, logs_now
from lrec.training.warm_start import begin_from

ON_PROGRESS_BAR = ("val/loss", "val/NDCG@10")


class SequentialRecommender(LightningModule):
    """A decoder-only transformer over item IDs, trained on every position of every window.

    Callbacks read: `config`, `D` (targets trained on), `flops` (spent on those), `train_loss`, `diverged`,
    `evaluations`.
    """

    net: Transformer

    def __init__(
        self,
        size: str | None = None,
        layers: int | None = None,
        width: int | None = None,
        heads: int | None = None,
        dropout: Dropout = Dropout(),  # noqa: B008 (frozen)
        architecture: Architecture = Architecture(),  # noqa: B008 (frozen)
        mup: MuP | None = None,
        loss: Loss = FullSoftmax(),  # noqa: B008 (frozen)
        optimizer: OptimizerConfig | OfParameters = Optimizer(),  # noqa: B008 (frozen)
        top_k: int = 10,
        exclude_seen: bool = True,
        checkpoint_activations: bool = False,
        compile_blocks: bool = False,
        warm_start: str | Path | None = None,
        item_vectors: Path | None = None,
        item_vectors_use: Use = "added",
        metrics: list[Metric] | Metric | None = None,
    ) -> None:
        """Choose the network by size or by layers, width and heads.

        Args:
            size: Entry of the ladder, such as 98k or 1.6m.
            layers: Number of blocks, instead of size.
            width: Width of the hidden states, instead of size.
            heads: Attention heads, instead of size.
            dropout: Dropout rates; those of the blocks run linearly over depth.
            architecture: What a block is made of.
            mup: Maximal-update parametrisation over width and depth; null for the standard one.
            loss: What is trained on: FullSoftmax, SampledSoftmax (negatives, power, logq), GBCE (negatives,
                calibration), or a Loss of your own. Evaluation is over the whole catalogue whatever this is.
            optimizer: AdamW and its schedule, and SGD after it where there is a switch; a class of torch.optim, with a
                constant rate; or an OptimizerConfig of your own.
            top_k: Items a user gets from predict.
            exclude_seen: Leave the user's own history out of predict's lists.
            checkpoint_activations: Keep the blocks' inputs alone and compute the rest again: less memory, more time.
            compile_blocks: Compile the blocks: minutes at the start, then faster steps.
            warm_start: A run's folder, checkpoint or exported file of a network of the same shape that fit begins with.
                Items that it knows, by raw id, keep their embeddings; new ones begin near the mean of these.
            item_vectors: File with a vector for each item (.parquet, .npy or .safetensors), such as an embedding of its
                title; null for none.
            item_vectors_use: fixed makes each row of the item table of its vector by a trained projection; added adds a
                row of the item's own, which begins at 0; initial gives rows their values before training alone.
            metrics: Metrics of your own beside lrec's, each a class (docs/extending.md); null for none.
        """
        super().__init__()
        self.save_hyperparameters(logger=False)  # those of a subclass too
        self.size, self.shape = chosen_size(size, layers, width, heads)
        check_parts(architecture)
        self.dropout = dropout
        self.architecture = architecture
        self.mup = mup
        self.loss = loss
        self.optimizer = optimizer
        self.top_k = top_k
        self.exclude_seen = exclude_seen
        self.checkpoint_activations = checkpoint_activations
        self.compile_blocks = compile_blocks
        self.warm_start = warm_start
        if warm_start is not None and item_vectors is not None:
            raise UserError("give model.warm_start or model.item_vectors, not both")
        self.item_vectors = None if item_vectors is None else Path(item_vectors)
        self.item_vectors_use = item_vectors_use
        self._new_items: NewItems | None = None
        self.D = 0
        self.flops = 0
        self._trained: dict[str, Any] | None = None  # the network's shape and data hash, once there is a network
        self._counts_V: Tensor | None = None
        self.diverged = False
        self.metrics = with_own(metrics)
        self._evaluator = Evaluator(self.metrics)
        self.train_loss = math.nan
        self._since_evaluation = LossSum()
        self._since_logged = LossSum()

    def network_config(self, n_items: int, max_len: int) -> TransformerConfig:
        """The network's shape on a catalogue of `n_items` and inputs of up to `max_len` items."""
        shape = TransformerConfig(n_items, max_len, *self.shape, self.dropout, self.architecture, self.mup)
        if self.item_vectors is None or self.item_vectors_use == "initial":
            return shape
        width = self._trained["vector_width"] if self._trained is not None else read_width(self.item_vectors)
        return replace(shape, vector_width=width, own_rows=self.item_vectors_use == "added")

    @property
    def counts_V(self) -> Tensor:
        """Training interactions of each item. No buffer: a callback that averages weights would average it too."""
        assert self._counts_V is not None
        self._counts_V = self._counts_V.to(self.device)
        return self._counts_V

    @property
    def evaluations(self) -> dict[str, dict[str, float]]:
        """The figures of the last evaluations, by stage and by stage/baseline: val, test, test/popularity ..."""
        return self._evaluator.figures

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
        checkpoint = checkpoints.read(path, optimizer=False)
        about, parameters, _, _, new_items = checkpoints.trained(checkpoint)
        if "model" not in about:
            raise UserError(f"{path} is of an earlier version, which did not keep its model's arguments: use lrec.load")
        if about["model"] not in map(class_path, cls.__mro__):
            raise UserError(f"{path} holds a {about['model']}, which its own load_from_checkpoint loads")
        for name, kind in about["not_stored"].items():
            if name not in changed:
                raise UserError(f"{path} could not keep {name}, a {kind}: load_from_checkpoint(..., {name}=...)")
        stored = checkpoint[cls.CHECKPOINT_HYPER_PARAMS_KEY]
        check_trusted(stored, trust, path)
        model = remade(cls, stored, changed)
        model._trained, model.D, model.flops = about, about["D"], about["flops"]
        shape = model.network_config(about["n_items"], about["max_len"])
        model.config = replace(shape, event_types=about.get("event_types", 0))
        checkpoints.refuse_another(about, model.config)
        model.net, model._new_items = checkpoints.network(model.config, parameters, path), new_items
        return model

    def setup(self, stage: str) -> None:
        """Let batches on a CPU have the memory that those before have freed. Leave weights that a callback averages to
        training: a checkpoint that is evaluated holds the averages, in place of which the callback would put what it
        averaged."""
        gc.freeze()  # what is imported by now: to go through it takes two thirds of the time of logging an evaluation
        if cpu_threads.is_cpu(self.trainer.strategy.root_device):
            keep_freed_memory()
        for callback in self.trainer.callbacks if stage != "fit" else []:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                callback._average_model = None

    def teardown(self, stage: str) -> None:
        """Let Python's garbage collection go through everything again."""
        gc.unfreeze()

    def configure_model(self) -> None:
        """Build the network once the catalogue is known; the draw depends on seed_everything alone."""
        config = self.network_config(self.data.n_items, self.data.max_len)
        config = replace(config, event_types=len(self.data.store.event_types))
        if config.architecture.time != "none":
            self.data.carry_times()
        if config.architecture.time == "request" and self.trainer.predicting:
            raise UserError("predict does not know when users will ask: lrec recommend --now does")
        if self._trained is not None:
            checkpoints.refuse_another(self._trained, config, self.data.data_hash)
        if self._counts_V is not None:
            return
        loaded = dict(self.net.named_parameters()) if self._trained is not None else None
        self.config = config
        self._trained = config.to_dict() | {"data_hash": self.data.data_hash}
        strategy = self.trainer.strategy
        seed, sharding = strategy.broadcast(torch.initial_seed()), getattr(strategy, "sharding", None)
        self.net = parallelize.build(config, seed, sharding, self.checkpoint_activations, self.compile_blocks)
        self.item_ids = self.data.item_table()["raw_id"]
        if loaded is not None:
            parallelize.fill(self.net, loaded)
        elif self.item_vectors is not None:
            vectors_VW, self._new_items = read_item_vectors(self.item_vectors).of_catalogue(self.item_ids)
            parallelize.fill(self.net, initial_parameters(self.net, vectors_VW, self.item_vectors_use, seed))
        elif self.warm_start is not None and self.trainer.state.fn == "fit":
            started = begin_from(self.warm_start, self.net, self.item_ids, seed)
            parallelize.fill(self.net, started.parameters)
            rank_zero_only(print)(f"warm start from {self.warm_start}: {started}")
        self._counts_V = torch.as_tensor(self.data.item_counts_V)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer with a scheduler that Lightning steps with it."""
        if isinstance(self.optimizer, Optimizer) and self.optimizer.touched_rows:
            check_touched_rows(self.config, self.loss, self.trainer)
        optimizer, scheduler = build(self.optimizer, self.net, schedule_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, and by norm the touched rows of the item table too."""
        if touched_of(self.net.items.weight) is None or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip_by_norm(list(self.net.parameters()), gradient_clip_val)

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Go a step on along the schedule, or as far as time has come where that is the limit."""
        position = schedule_position(self.trainer)
        if position is not None:
            scheduler.last_epoch = position - 1
        super().lr_scheduler_step(scheduler, metric)

    def configure_callbacks(self) -> list[Callback]:
        """What makes the optimizer's switch, where there is one."""
        return [OptimizerSwitch()] if isinstance(self.optimizer, Optimizer) and self.optimizer.switch else []

    def on_train_batch_start(self, batch: TrainBatch, batch_idx: int) -> None:
        """Seed dropout from (seed, micro-step, rank), so that a resumed run drops what the undisturbed one would; free
        the last step's gradients, which Lightning would keep until those of this step are made."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.zero_grad()
        micro_step = self.trainer.fit_loop.total_batch_idx
        key = f"{self.data.seed}/{micro_step}/{self.global_rank}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")
        # torch.manual_seed would seed every kind of device, and keep a stack trace for each that is not in use.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """This micro-batch's share of the mean loss over the global step's targets."""

        def head(hidden_BLD: Tensor, table_VD: Table) -> Tensor:
            if not self.loss.in_shards:
                table_VD = whole(table_VD)
            return self.loss(hidden_BLD.flatten(0, 1)[batch.positions_M], table_VD, batch.targets_M, self.counts_V)

        loss_sum: Tensor = self.net(batch.items_BL, head, times_BT=batch.times_BT, events_BL=batch.events_BL)
        for kept in (self._since_evaluation, self._since_logged):
            kept.add(loss_sum.detach(), len(batch.targets_M))
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            head_flops = self.loss.flops_per_target(self.config.n_items, self.config.width)
            self.D += batch.step_targets
            self.flops += cost.training_flops(
                self.config, batch.step_targets, batch.step_pairs, head_flops, batch.step_positions
            )
            self.flops += cost.projection_flops(self.config)
        # Ranks average gradients and Lightning averages accumulated ones: undo both, divide by the step's targets.
        return loss_sum * (self.trainer.world_size * self.trainer.accumulate_grad_batches / max(batch.step_targets, 1))

    def on_train_batch_end(self, outputs: Any, batch: TrainBatch, batch_idx: int) -> None:
        """Log the mean training loss over all targets since it was last logged and the next step's learning rate, the
        largest of all parameter groups; stop a run whose loss is not finite. Only when Lightning logs, to spare a sync
        per step."""
        if logs_now(self.trainer, batch_idx):
            train_loss = self._since_logged.mean(self)
            self.log("train/loss", train_loss, prog_bar=True)
            self.log("train/lr", max(float(group["lr"]) for group in self.trainer.optimizers[0].param_groups))
            self._stop_if_diverged(torch.tensor(train_loss, device=self.device))

    def on_validation_start(self) -> None:
        """Begin an evaluation, and close the mean training loss since the last one."""
        self._evaluator.begin("val", self.data, self.counts_V, fitting=self.trainer.state.fn == "fit")
        if self._since_evaluation.loss_sum is not None:
            self.train_loss = self._since_evaluation.mean(self)

    def on_test_start(self) -> None:
        """Begin an evaluation."""
        own = type(self.data).test_dataloader is SequenceDataModule.test_dataloader
        loader = self.trainer.test_dataloaders
        keep = own and loader is not None and self.trainer.num_test_batches == [len(loader)]
        self._evaluator.begin("test", self.data, self.counts_V, keep=keep)

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        """Score the validation targets."""
        self._evaluate(batch)

    def test_step(self, batch: EvalBatch, batch_idx: int) -> None:
        """Score the test targets."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the validation figures."""
        self._log_evaluation("val")
        self._stop_if_diverged(torch.tensor(self.evaluations["val"]["loss"], device=self.device))

    def on_test_epoch_end(self) -> None:
        """Log the test figures."""
        self._log_evaluation("test")

    def predict_step(self, batch: EvalBatch, batch_idx: int) -> pl.DataFrame:
        """The best items for each user's whole history, a row per user: user and items (raw ids, best first), scores
        (logits)."""
        seen = slice(None if self.exclude_seen else 0)

        def head(hidden_MD: Tensor, table_VD: Table) -> TopItems:
            return top_items(hidden_MD, table_VD, batch.seen_targets_S[seen], batch.seen_items_S[seen], self.top_k)

        best: TopItems = self.net(
            batch.items_BL, head, positions_M=batch.positions_M, times_BT=batch.times_BT, events_BL=batch.events_BL
        )
        real_M = batch.weights_M > 0  # not the filler rows of a batch
        users_M, items_MK, scores_MK = (
            part[real_M].cpu().numpy() for part in (batch.users_M, best.items_BK, best.scores_BK)
        )
        lists = lists_of(self.item_ids, items_MK, scores_MK)
        return pl.DataFrame({"user": self.data.raw_user_ids.gather(users_M), **lists})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the run has spent and on what data, the items' raw ids, and what the model was made with."""
        arguments, not_stored = all_as_plain(self.hparams)
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = arguments
        checkpoint[checkpoints.ITEMS] = self._items_as_tensors
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
            **self.config.to_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network or other data."""
        saved = checkpoint.get("lrec")
        if saved is None:
            raise UserError("the checkpoint was not written by lrec")
        checkpoints.refuse_another(saved, self.config, self.data.data_hash)
        path = self.trainer.ckpt_path or "the checkpoint"
        if self.strict_loading:
            mine = {name: parallelize.local(tensor) for name, tensor in self.state_dict().items()}
            checkpoints.check_parameters(checkpoint["state_dict"], mine, path)
            refuse_other_vectors(checkpoint["state_dict"], mine, path)
        if self.trainer.predicting:
            checkpoints.check_finite(checkpoint["state_dict"], path)
        self.D, self.flops = saved["D"], saved["flops"]
        if self.trainer.training:
            made_with, _ = all_as_plain({"optimizer": self.optimizer})
            checkpoints.refuse_another_optimizer(checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}), made_with)
            self.diverged = saved["diverged"]
            loss_sum, targets = saved["train_loss"] if self.trainer.is_global_zero else (0.0, 0)
            self._since_evaluation = LossSum()
            self._since_evaluation.add(torch.tensor(loss_sum, dtype=torch.float32, device=self.device), targets)

    def _evaluate(self, batch: EvalBatch) -> None:
        # One process on a CPU: each core computes rows of its own faster than all cores each small operation.
        apart = isinstance(self.trainer.strategy, SingleDeviceStrategy) and not self.compile_blocks
        parts = batch.parts(torch.get_num_threads()) if apart and cpu_threads.is_cpu(self.device) else [batch]
        found = cpu_threads.mapped(self._scored, parts) if len(parts) > 1 else [self._scored(batch)]
        self._evaluator.add(batch, Scores(*map(torch.cat, zip(*found, strict=True))))

    def _scored(self, batch: EvalBatch) -> Scores:
        def head(hidden_MD: Tensor, table_VD: Table) -> Scores:
            return score(hidden_MD, table_VD, batch.targets_M, batch.seen_targets_S, batch.seen_items_S, max(KS))

        scores: Scores = self.net(
            batch.items_BL, head, positions_M=batch.positions_M, times_BT=batch.times_BT, events_BL=batch.events_BL
        )
        return scores

    @cached_property
    def _items_as_tensors(self) -> dict[str, Tensor]:
        new = None if self.config.vector_width is None else self._new_items
        return checkpoints.items_as_tensors(self.item_ids, self.data.item_counts_V, new)

    def _log_evaluation(self, stage: str) -> None:
        named = self._evaluator.end(stage, whole=not self.trainer.sanity_checking)
        # The figures are reduced over ranks already.
        for on_bar in (True, False):
            some = {name: value for name, value in named.items() if (name in ON_PROGRESS_BAR) == on_bar}
            self.log_dict(some, prog_bar=on_bar, rank_zero_only=False, sync_dist=False)

    def _stop_if_diverged(self, loss: Tensor) -> None:
        finite = bool(torch.isfinite(loss).item())
        if not self.trainer.strategy.reduce_boolean_decision(finite, all=True):
            self.diverged = True
            self.trainer.should_stop = True


def recommender(pl_module: LightningModule) -> SequentialRecommender:
    """The model that a callback gets."""
    assert isinstance(pl_module, SequentialRecommender)
    return pl_module


def model_of(config: dict[str, Any]) -> SequentialRecommender:
    """The model that a run's configuration names, without a network yet; UserError where its options do not fit it."""
    return made_of(config, "model", SequentialRecommender)
