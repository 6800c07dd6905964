"""A run's position in its schedule, by steps or by time; AdamW's switch to SGD; early stopping that waits for it.

With --trainer.max_time the schedule follows the time, so that warm-up and decay end with the run.
"""

import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lrec.errors import UserError
from lrec.evaluation.metrics import METRICS, Best, Metric, best_is
from lrec.training.optim import AdamWThenSGD, Optimizer, Switch

# Steps of a schedule whose only limit is time: more than a run takes, so that only time moves the schedule.
ENDLESS = 10**9


def schedule_steps(trainer: Trainer) -> int:
    """Steps of the run's schedule, as the limits of epochs and steps allow."""
    return int(min(trainer.estimated_stepping_batches, ENDLESS))


def share_of_time(trainer: Trainer) -> float | None:
    """Share of the allowed time that has been spent, from 0 to 1; None without a time limit."""
    shares = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None:
            spent = callback.time_elapsed()
            shares.append(spent / (spent + left) if left > 0 else 1.0)
    return max(shares, default=None)


def stable_steps(trainer: Trainer) -> int | None:
    """Steps of the schedule before the rate falls, which longer runs can share; None if there are none."""
    optimizer = getattr(trainer.lightning_module, "optimizer", None)
    return optimizer.stable_steps(schedule_steps(trainer)) if isinstance(optimizer, Optimizer) else None


class OptimizerSwitch(Callback):
    """Switch to SGD once val/loss has converged, or when the switch is due. The optimizer itself stores the phase."""

    _optimizer: Any  # an AdamWThenSGD

    def __init__(self, switch: Switch) -> None:
        self.switch, self.best, self.waited = switch, math.inf, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due = self.switch.at or max(round(self.switch.latest * schedule_steps(trainer)), 1)
        (self._optimizer,), (config,) = trainer.optimizers, trainer.lr_scheduler_configs
        self._scheduler = config.scheduler

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        scheduled = self._scheduler.last_epoch
        done = scheduled if self.switch.at is None else trainer.global_step
        if self._optimizer.sgd_from is None and done >= self._due:
            self._optimizer.begin_sgd(trainer.global_step, scheduled)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fits = trainer.state.fn == "fit" and not trainer.sanity_checking
        if not fits or self.switch.at is not None or self._optimizer.sgd_from is not None:
            return
        loss = float(trainer.callback_metrics["val/loss"])
        better = loss < self.best - self.switch.min_improvement
        self.best, self.waited = (loss, 0) if better else (self.best, self.waited + 1)
        # One decision for all ranks, even if their reduced losses differ in the last bit.
        if trainer.strategy.reduce_boolean_decision(self.waited >= self.switch.patience, all=False):
            self._optimizer.begin_sgd(trainer.global_step, self._scheduler.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]


def mode_of(monitor: str, mode: str | None, option: str, metrics: Sequence[Metric] = METRICS) -> str:
    """`mode` or, if None, the mode that the metric's name says, or min; UserError if `mode` contradicts the name."""
    best = best_is(monitor.removeprefix("val/"), metrics)
    if best is None:
        return mode or "min"
    if mode not in (None, best):
        raise UserError(f"{option}.mode {mode}: the best {monitor} is its {best}; use {option}.mode {best}")
    return best


class StopAfterSwitch(EarlyStopping):
    """EarlyStopping that begins with the first evaluation, and ignores early ones: with a planned switch to SGD, all
    before the switch; with wsd, all before the fall of the rate."""

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Best | None = None,
        patience: int = 10,
        check_on_train_epoch_end: bool | None = None,
        **options: Any,
    ) -> None:
        """Lightning's options, some with other defaults.

        Args:
            monitor: Metric that must improve.
            mode: min or max: whether the lowest or the highest value is the best; null: as the name of the metric says.
            patience: Evaluations without improvement after which the run stops.
            check_on_train_epoch_end: Check after epochs, not after evaluations; max_steps may cut off the last epoch.
            options: The other options of EarlyStopping.
        """
        best, after_epochs = mode_of(monitor, mode, "--early_stopping"), bool(check_on_train_epoch_end)
        super().__init__(monitor, patience=patience, mode=best, check_on_train_epoch_end=after_epochs, **options)

    def _should_skip_check(self, trainer: Trainer) -> bool:
        if super()._should_skip_check(trainer) or self.monitor not in trainer.callback_metrics:
            return True
        stable = stable_steps(trainer)
        if stable is not None and trainer.lr_scheduler_configs[0].scheduler.last_epoch <= stable:
            return True
        switches = any(isinstance(callback, OptimizerSwitch) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        return switches and phase(trainer) == "adamw"


def phase(trainer: Trainer) -> str:
    """What took the last step: adamw or sgd for lrec's own optimizer, else the name of the class."""
    (optimizer,) = trainer.optimizers
    if isinstance(optimizer, AdamWThenSGD):
        return optimizer.phase_of(trainer.global_step)
    return type(optimizer).__name__.lower()
