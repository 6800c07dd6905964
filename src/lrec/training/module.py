"""SequentialRecommender, the LightningModule: wires network, loss, optimizer and metrics; holds no maths.

Shape suffixes: B rows, L positions, M targets, D width, V catalogue, K list length.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lrec.checkpoint.trained import NETWORK, refuse_other_network
from lrec.common import cpu_threads
from lrec.data.batching.eval_batches import EvalBatch
from lrec.data.batching.train_batches import TrainBatch
from lrec.errors import UserError, check_choices, check_kinds, check_range
from lrec.evaluation.evaluator import Evaluator, at_targets, scores_of
from lrec.evaluation.metrics import BY_USER, Metric, best_is, with_own
from lrec.model import cost, parallelize
from lrec.model.blocks import check_parts
from lrec.model.config import Architecture, Dropout, Parametrisation, TransformerConfig
from lrec.model.item_vectors import Use, initial_parameters, read_width, scaled, vectors_of
from lrec.model.losses import FullSoftmax, Loss
from lrec.model.network_sizes import chosen_size
from lrec.model.sharded_table import Table, all_scores, local_range, whole
from lrec.options.class_paths import class_path
from lrec.options.objects import from_config
from lrec.ranking.scoring import Scores, top_items
from lrec.serving.recommender import lists_of
from lrec.training.optim import OfParameters, Optimizer, OptimizerConfig, build
from lrec.training.process import ProcessSetup
from lrec.training.refused import refuse_trainer
from lrec.training.schedule import ENDLESS, OptimizerSwitch, mode_of, schedule_steps, share_of_time
from lrec.training.stored_model import StoredModel
from lrec.training.strategies import products_of
from lrec.training.tally import end_with_a_step, ends_step, logs_now
from lrec.training.touched_rows import check_touched_rows, clip_by_norm, touched_of
from lrec.training.warm_start import begin_from

ON_PROGRESS_BAR = ("val/loss", "val/NDCG@10")


class SequentialRecommender(StoredModel):
    """A decoder-only transformer over item IDs, trained on every position of every window.

    Callbacks read: `config`, `D` (targets trained on), `flops` (spent on them), `train_loss`, `diverged`,
    `evaluations`.
    """

    def __init__(
        self,
        size: str | None = None,
        layers: int | None = None,
        width: int | None = None,
        heads: int | None = None,
        dropout: Dropout = Dropout(),  # noqa: B008 (frozen)
        architecture: Architecture = Architecture(),  # noqa: B008 (frozen)
        parametrisation: Parametrisation = "scaled",
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
            dropout: Dropout rates; the rates of the blocks change linearly with depth.
            architecture: Parts of a block.
            parametrisation: scaled: the best learning rate of a small network is also the best rate of wider and deeper
                networks; standard: one rate for all parameters, whatever the shape.
            loss: Training loss: FullSoftmax, NextItems (weights), SampledSoftmax (negatives, power, logq, target_logq),
                GBCE (negatives, calibration), or a Loss of your own. With any loss, evaluation is over the whole
                catalogue.
            optimizer: AdamW with its schedule, and SGD after a switch; a class of torch.optim, with a constant rate; or
                an OptimizerConfig of your own.
            top_k: Number of items in the lists of predict.
            exclude_seen: Leave the user's own history out of predict's lists.
            checkpoint_activations: Keep only the inputs of the blocks, and compute the rest again: less memory, more
                time.
            compile_blocks: Compile the blocks: minutes at the start, then faster steps.
            warm_start: A run's folder, checkpoint or exported file of a network of the same shape, from which fit
                begins. Items that this network knows, by raw id, keep their embeddings. Other items begin near the mean
                of these embeddings.
            item_vectors: File with a vector for each item (.parquet, .npy or .safetensors), such as an embedding of its
                title; null for none.
            item_vectors_use: fixed makes each row of the item table from the item's vector, or from data.item_features,
                by a trained projection; added adds a trained row to this, which begins at 0; initial uses the vectors
                only for the initial rows.
            metrics: Metrics of your own, in addition to lrec's. Each metric is a class (docs/extending.md); null for
                none.
        """
        super().__init__()
        self.save_hyperparameters(logger=False)  # the arguments of a subclass too
        check_kinds(
            ("model.dropout", dropout, Dropout),
            ("model.architecture", architecture, Architecture),
            ("model.loss", loss, Loss),
        )
        check_choices(
            ("model.parametrisation", parametrisation, Parametrisation),
            ("model.item_vectors_use", item_vectors_use, Use),
        )
        self.size, self.shape = chosen_size(size, layers, width, heads)
        check_parts(architecture)
        check_range("model.top_k", top_k, at_least=1)
        self.dropout, self.architecture, self.parametrisation = dropout, architecture, parametrisation
        if architecture.seen and not loss.adds_to_seen:
            given = f"model.loss {class_path(type(loss))} does not add to the scores of seen items (adds_to_seen)"
            raise UserError(f"{given}: set model.architecture.seen to false")
        self.loss, self.optimizer = loss, optimizer
        self.top_k, self.exclude_seen = top_k, exclude_seen
        self.checkpoint_activations, self.compile_blocks = checkpoint_activations, compile_blocks
        if warm_start is not None and item_vectors is not None:
            raise UserError("give model.warm_start or model.item_vectors, not both")
        self.item_vectors = None if item_vectors is None else Path(item_vectors)
        self.warm_start, self.item_vectors_use = warm_start, item_vectors_use
        self._counts_V: Tensor | None = None
        self.metrics = with_own(metrics)
        self._evaluator = Evaluator(self.metrics)
        self.train_loss = math.nan

    def network_config(
        self, n_items: int, max_len: int, event_types: int = 0, vector_width: int | None = None
    ) -> TransformerConfig:
        """The network's shape on a catalogue of `n_items` and inputs of up to `max_len` items. `vector_width` is the
        width of the items' vectors; by default, that of the file `item_vectors`."""
        if self.item_vectors_use == "initial":
            vector_width = None
        elif vector_width is None and self.item_vectors is not None:
            vector_width = read_width(self.item_vectors)
        own_rows = vector_width is None or self.item_vectors_use == "added"
        shape = (n_items, max_len, *self.shape, self.dropout, self.architecture, self.parametrisation)
        return TransformerConfig(*shape, vector_width, own_rows, event_types)

    @property
    def counts_V(self) -> Tensor:
        """Training interactions of each item. Not a buffer: a callback that averages weights would average it too."""
        assert self._counts_V is not None
        self._counts_V = self._counts_V.to(self.device)
        return self._counts_V

    @property
    def evaluations(self) -> dict[str, dict[str, float]]:
        """The figures of the last evaluations, by stage and by stage/baseline: val, test, test/popularity ..."""
        return self._evaluator.figures

    def forward(
        self,
        items_BL: Tensor,
        lengths_B: Tensor | None = None,
        times_BT: Tensor | None = None,
        events_BL: Tensor | None = None,
    ) -> Tensor:
        """Scores (logits) of every item of the catalogue as the next item of each history, (B, V).

        Args:
            items_BL: Catalogue indices of the histories' items, in time order; any index may pad rows on the right.
            lengths_B: Number of items of each history, at least one; by default the whole row.
            times_BT: For networks with `architecture.time`; see `Transformer.forward`.
            events_BL: For networks with types of event or features; see `Transformer.forward`.
        """
        rows, longest = items_BL.shape
        last_B = torch.arange(rows, device=items_BL.device) * longest - 1
        last_B += longest if lengths_B is None else lengths_B
        given = {"positions_M": last_B, "times_BT": times_BT, "events_BL": events_BL}
        return self.net(items_BL, all_scores, **given)

    def setup(self, stage: str) -> None:
        """Let epochs end with a whole step, and resumed runs count each epoch once; UserError if a subclass omits
        lrec's callbacks, or if a callback monitors a metric that these data do not have, or takes its worst value
        for the best."""
        self._evaluator.forget_baselines("test" if stage == "test" else "val")
        if stage == "fit":
            callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
            for own in SequentialRecommender.configure_callbacks(self):  # which also looks at those of a subclass
                if type(own) not in map(type, callbacks):
                    way_out = "return [*super().configure_callbacks(), ...]"
                    raise UserError(f"{type(self).__name__}.configure_callbacks omits {type(own).__name__}: {way_out}")
            # With max_steps, Lightning would count the epoch that a checkpoint ends with once more.
            self.trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
            monitors = [str(getattr(callback, "monitor", None)) for callback in callbacks]
            self._evaluator.monitors_users = any(monitor.endswith(BY_USER) for monitor in monitors)
            there = self._evaluator.names("val", self.data)
            for callback, monitor in zip(callbacks, monitors, strict=True):
                mode_of(monitor, getattr(callback, "mode", None), type(callback).__name__, self.metrics)
                name = monitor.removeprefix("val/")
                if best_is(name, self.metrics) is not None and name not in there:
                    raise UserError(f"monitor {monitor}: validation on targets of this kind does not have this metric")
            end_with_a_step(self.trainer, self.data.steps_per_epoch)

    def configure_model(self) -> None:
        """Build the network once the catalogue is known; its random start depends on seed_everything alone."""
        features, use = self.data.learned.item_vectors, self.item_vectors_use
        if features is not None and self.item_vectors is not None:
            raise UserError("give data.item_features or model.item_vectors, not both")
        if features is not None and self.warm_start is not None and use == "initial":
            raise UserError("model.item_vectors_use initial and model.warm_start both set the first rows: give one")
        if features is None and self.item_vectors is None and use != "added":
            needs = "needs vectors: give model.item_vectors or data.item_features"
            raise UserError(f"model.item_vectors_use {use} {needs}")
        width = (self._trained or {}).get("vector_width") if features is None else features[1].shape[1]
        config = self.network_config(self.data.n_items, self.data.max_len, len(self.data.event_rows), width)
        if config.architecture.time != "none":
            self.data.carry_times()
        if config.architecture.time == "request" and self.trainer.predicting:
            raise UserError("predict does not know when users will ask: lrec recommend --now does")
        if self._trained is not None:
            refuse_other_network(self._trained, config, self.data.data_hash)
        if self._counts_V is None:
            with torch.device("cpu"):  # Lightning makes the GPU the default device, but generators are the CPU's
                self._build(config, features)

    def _build(self, config: TransformerConfig, features: tuple[pl.Series, np.ndarray] | None) -> None:
        loaded = dict(self.net.named_parameters()) if self._trained is not None else None
        self.config = config
        self._trained = config.to_dict() | {"data_hash": self.data.data_hash}
        strategy = self.trainer.strategy
        seed, sharding = strategy.broadcast(torch.initial_seed()), getattr(strategy, "sharding", None)
        self.net = parallelize.build(config, seed, sharding, self.checkpoint_activations, self.compile_blocks)
        self.item_ids = self.data.item_table()["raw_id"]
        if loaded is not None:
            parallelize.fill(self.net, loaded)
        elif self.item_vectors is not None or features is not None:
            rows = local_range(next(iter(self.net.items.by_item().values())))
            if self.item_vectors is not None:
                vectors_HW, new = vectors_of(self.item_vectors, self.item_ids, rows)
            else:
                assert features is not None
                vectors_HW, new = scaled(*features, self.item_ids, rows, "data.item_features")
            self._new_items = new if self.data.only_domain is None else new.without(self.data.ids_of_other_domains)
            begins = initial_parameters(self.net, vectors_HW, self.item_vectors_use, seed)
            parallelize.fill(self.net, begins, whole=False)
        if loaded is None and self.warm_start is not None and self.trainer.state.fn == "fit":
            rank_zero_only(print)(begin_from(self.warm_start, self.net, self.item_ids, self.data.event_rows, seed))
        self._counts_V = torch.as_tensor(self.data.item_counts_V)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule of the network; UserError if the model has parameters beside it."""
        if beside := [n for n, p in self.named_parameters() if p.requires_grad and not n.startswith(NETWORK)]:
            raise UserError(f"lrec trains the network, not {beside[0]}: override configure_optimizers, or freeze it")
        if isinstance(self.optimizer, Optimizer) and self.optimizer.touched_rows:
            check_touched_rows(self.config, self.loss, self.trainer)
        steps = schedule_steps(self.trainer)
        optimizer, scheduler = build(self.optimizer, self.net, steps, products_of(self.trainer))
        if steps == ENDLESS and not isinstance(scheduler, LambdaLR):
            given = f"with time as the only limit, the schedule must be a LambdaLR, not {type(scheduler).__name__}"
            raise UserError(f"{given}: return one, or give --trainer.max_epochs or --trainer.max_steps too")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as Lightning does; if by norm, include the touched rows of the item table."""
        if touched_of(self.net.items.weight) is None or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip_by_norm(list(self.net.parameters()), gradient_clip_val)

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Advance the schedule by one step or, with a time limit, to the run's steps or time, whichever is later."""
        steps, share = 1, share_of_time(self.trainer)
        if share is not None:
            by_time: int = self.trainer.strategy.broadcast(int(share * schedule_steps(self.trainer)))
            steps = max(self.trainer.global_step, by_time) - scheduler.last_epoch
        if isinstance(scheduler, LambdaLR):  # the rate of other schedules may depend on the one before
            scheduler.last_epoch, steps = scheduler.last_epoch + steps - 1, 1
        for _ in range(steps):
            super().lr_scheduler_step(scheduler, metric)

    def configure_callbacks(self) -> list[Callback]:
        """Callbacks for the process, and for the optimizer's switch. Before the setup of other callbacks, UserError if
        the trainer has what lrec cannot train with."""
        if self.trainer.state.fn == "fit":
            refuse_trainer(self.trainer)
        switch = self.optimizer.switch if isinstance(self.optimizer, Optimizer) else None
        return [ProcessSetup(), *([] if switch is None else [OptimizerSwitch(switch)])]

    def on_train_batch_start(self, batch: TrainBatch, batch_idx: int) -> None:
        """Free the gradients of the last step; Lightning would keep them until the gradients of this step exist."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.zero_grad()

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """This micro-batch's share of the mean loss over the global step's targets."""
        loss_sum = self.loss_sum(batch)
        self._since_evaluation.add(loss_sum.detach(), len(batch.targets_M))
        self._since_logged.add(loss_sum.detach(), len(batch.targets_M))
        if ends_step(self.trainer, batch_idx):
            head = self.loss.flops_per_target(self.config.n_items, self.config.width)
            counts = (batch.step_targets, batch.step_pairs, head, batch.step_positions)
            self.D += batch.step_targets
            self.flops += cost.training_flops(self.config, *counts) + cost.projection_flops(self.config)
        # Gradients are averaged over ranks and accumulated micro-batches: undo both, and divide by the step's targets.
        return loss_sum * (self.trainer.world_size * self.trainer.accumulate_grad_batches / max(batch.step_targets, 1))

    def loss_sum(self, batch: TrainBatch) -> Tensor:
        """The training loss, summed over this micro-batch's targets."""

        def head(hidden_MD: Tensor, table: Table) -> Tensor:
            table = table if self.loss.in_shards else whole(table)
            targets = batch.targets_M if self.loss.ahead == 1 else batch.next_targets(self.loss.ahead)
            return self.loss(hidden_MD, table, targets, self.counts_V)

        given = {"positions_M": batch.positions_M, "times_BT": batch.times_BT, "events_BL": batch.events_BL}
        return self.net(batch.items_BL, head, **given)

    def on_train_batch_end(self, outputs: Any, batch: TrainBatch, batch_idx: int) -> None:
        """Log the mean training loss since the last log, and the next step's learning rate (the largest of all
        parameter groups). This happens only when Lightning logs, to avoid a sync in each step. UserError if
        `training_step` has counted no targets."""
        if ends_step(self.trainer, batch_idx) and self.D == 0:
            why = "call super().training_step(batch, batch_idx), or override loss_sum instead"
            raise UserError(f"{type(self).__name__}.training_step does not count the targets: {why}")
        if logs_now(self.trainer, batch_idx):
            train_loss = self._since_logged.mean(self.trainer.strategy)
            self.log("train/loss", train_loss, prog_bar=True)
            self.log("train/lr", max(float(group["lr"]) for group in self.trainer.optimizers[0].param_groups))
            self._stop_if_diverged(train_loss)

    def on_validation_start(self) -> None:
        """Begin an evaluation, and close the mean training loss since the last one."""
        fitting = self.trainer.state.fn == "fit"
        self._evaluator.begin("val", self.data, self.counts_V, fitting)
        if fitting and not self.trainer.sanity_checking:
            self.train_loss = self._since_evaluation.mean(self.trainer.strategy)

    def on_test_start(self) -> None:
        self._evaluator.begin("test", self.data, self.counts_V)

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, Tensor]:
        """Add a batch to the evaluation; the scores of its targets, by the names of `Scores`, are for callbacks."""
        # In one process on a CPU, small operations are faster if each core computes rows of its own.
        apart = isinstance(self.trainer.strategy, SingleDeviceStrategy) and not self.compile_blocks
        parts = batch.parts(torch.get_num_threads()) if apart and cpu_threads.is_cpu(self.device) else [batch]
        ranked = partial(scores_of, self.net)
        found = cpu_threads.mapped(ranked, parts) if len(parts) > 1 else [ranked(batch)]
        scores = Scores(*map(torch.cat, zip(*found, strict=True)))
        self._evaluator.add(batch, scores)
        return scores._asdict()

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")
        if not self.trainer.sanity_checking:  # its few targets may all be outside the catalogue: then there is no loss
            self._stop_if_diverged(self.evaluations["val"]["loss"])

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def predict_step(self, batch: EvalBatch, batch_idx: int) -> pl.DataFrame:
        """The best items after each user's whole history: user and items (raw ids, best first), and scores (logits)."""
        seen = slice(None if self.exclude_seen else 0)
        given = (batch.seen_targets_S[seen], batch.seen_items_S[seen], self.top_k)
        best = at_targets(self.net, batch, lambda hidden_MD, table: top_items(hidden_MD, table, *given))
        real_M, parts = batch.weights_M > 0, (batch.users_M, best.items_BK, best.scores_BK)  # no filler rows
        users_M, items_MK, scores_MK = (part[real_M].cpu().numpy() for part in parts)
        lists = lists_of(self.item_ids, items_MK, scores_MK)
        return pl.DataFrame({"user": self.data.store.raw_user_ids.gather(users_M), **lists})

    def _log_evaluation(self, stage: str) -> None:
        """Give the figures, already reduced over ranks, to callbacks, to loggers and to the caller of the trainer. For
        the 300 names of a test, `self.log` would take more than half of the training time of a small network. UserError
        if a step of a subclass has evaluated no targets."""
        named = self._evaluator.end(stage, whole=not self.trainer.sanity_checking)
        if not (named[f"{stage}/targets"] or self.trainer.sanity_checking):
            step = f"{'test' if stage == 'test' else 'validation'}_step"
            raise UserError(f"{type(self).__name__}.{step} evaluates no targets: call super().{step}(batch, batch_idx)")
        values = torch.tensor(list(named.values()), dtype=torch.float32, device=self.device)
        figures = dict(zip(named, map(torch.clone, values.unbind()), strict=True))
        trainer = self.trainer
        for shown in (trainer.callback_metrics, trainer.logged_metrics, *trainer._evaluation_loop._logged_outputs):
            shown.update(figures)
        trainer.progress_bar_metrics.update({name: float(figures[name]) for name in ON_PROGRESS_BAR if name in figures})

    def _stop_if_diverged(self, loss: float) -> None:
        if not self.trainer.strategy.reduce_boolean_decision(math.isfinite(loss), all=True):
            self.diverged = True
            self.trainer.should_stop = True


def recommender(pl_module: LightningModule) -> SequentialRecommender:
    """The module that a callback gets, with its own type."""
    assert isinstance(pl_module, SequentialRecommender)
    return pl_module


def model_of(config: dict[str, Any]) -> SequentialRecommender:
    """The model that a run's configuration names, without a network yet; UserError if an option does not fit it."""
    return from_config(config, "model", SequentialRecommender)
