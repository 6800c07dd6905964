"""How far a run is along its schedule, by steps or by time; AdamW's switch to SGD; early stopping that waits for it.

With --trainer.max_time the schedule follows the time, so that warm-up and decay end with the run.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lrec.errors import UserError
from lrec.evaluation.metrics import METRICS, Metric, best_is, metric_names
from lrec.training.optim import AdamWThenSGD, Optimizer, Switch

# Steps of a schedule that has time alone for its limit: more than a run takes, so that time is what moves it.
ENDLESS = 10**9


def schedule_steps(trainer: Trainer) -> int:
    """Steps of the run's schedule: those that epochs and steps allow."""
    return int(min(trainer.estimated_stepping_batches, ENDLESS))


def schedule_position(trainer: Trainer) -> int | None:
    """How far the schedule is, in its own steps: as far as the steps or the time, whichever is nearer to its end. The
    same on every process; None where time is no limit."""
    share = share_of_time(trainer)
    if share is None:
        return None
    by_time: int = trainer.strategy.broadcast(int(share * schedule_steps(trainer)))
    return max(trainer.global_step, by_time)


def share_of_time(trainer: Trainer) -> float | None:
    """How much of the time that is allowed has been spent, from 0 to 1; None where it has no limit."""
    shares = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None:
            spent = callback.time_elapsed()
            shares.append(spent / (spent + left) if left > 0 else 1.0)
    return max(shares, default=None)


def stable_steps(trainer: Trainer) -> int | None:
    """Steps before the rate falls, which longer runs have in common with this one; None where there are none, as where
    time is the limit."""
    optimizer = getattr(trainer.lightning_module, "optimizer", None)
    steps = optimizer.stable_steps(schedule_steps(trainer)) if isinstance(optimizer, Optimizer) else None
    return steps if steps is None or share_of_time(trainer) is None else None


class OptimizerSwitch(Callback):
    """Make a switch once val/loss has converged, or when it is due. The phase itself is the optimizer's."""

    def __init__(self, switch: Switch) -> None:
        self.switch, self.best, self.waited = switch, math.inf, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due = self.switch.due(schedule_steps(trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        optimizer, scheduled = _switching(trainer)
        done = scheduled if self.switch.at is None else trainer.global_step
        if optimizer.sgd_from is None and done >= self._due:
            optimizer.begin_sgd(trainer.global_step, scheduled)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.switch.at is not None:
            return
        optimizer, scheduled = _switching(trainer)
        if optimizer.sgd_from is not None:
            return
        loss = float(trainer.callback_metrics["val/loss"])
        if loss < self.best - self.switch.min_improvement:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        # One decision for all ranks, whatever the last bit of a reduced loss.
        if trainer.strategy.reduce_boolean_decision(self.waited >= self.switch.patience, all=False):
            optimizer.begin_sgd(trainer.global_step, scheduled)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]


def mode_of(monitor: str, mode: str | None, option: str, metrics: Sequence[Metric] = METRICS) -> str:
    """`mode`, or what follows from the metric's name, and min where nothing does; UserError where the two contradict
    each other."""
    best = best_is(monitor.removeprefix("val/"), metrics)
    if best is None:
        return mode or "min"
    if mode not in (None, best):
        raise UserError(f"{option}.mode {mode}: the best {monitor} is its {best}; {option}.mode null does without")
    return best


def check_monitored(monitor: str, option: str, metrics: Sequence[Metric]) -> None:
    """UserError where there is no such metric, or neither end of it is the best."""
    if not monitor.startswith("val/") or best_is(monitor.removeprefix("val/"), metrics) is None:
        monitored = [f"val/{name}" for name in metric_names(metrics) if best_is(name, metrics) is not None]
        raise UserError(f"{option}.monitor {monitor}: choose one of {', '.join(monitored)}")


class StopAfterSwitch(EarlyStopping):
    """EarlyStopping; where the optimizer is to switch, it looks at SGD's evaluations only, where the rate falls at the
    end alone (wsd), at those of the fall."""

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] | None = None,
        patience: int = 10,
        check_on_train_epoch_end: bool | None = None,
        **options: Any,
    ) -> None:
        """Lightning's options, but for what these are by themselves.

        Args:
            monitor: Metric that is to improve.
            mode: Whether its least or its most is the best; null: as its name says.
            patience: Evaluations without improvement after which the run stops.
            check_on_train_epoch_end: Look at the end of epochs, not of evaluations, which max_steps may leave out.
            options: The others.
        """
        super().__init__(
            monitor,
            patience=patience,
            mode=mode_of(monitor, mode, "--early_stopping"),
            check_on_train_epoch_end=bool(check_on_train_epoch_end),
            **options,
        )

    def _should_skip_check(self, trainer: Trainer) -> bool:
        if super()._should_skip_check(trainer):
            return True
        if trainer.global_step < (stable_steps(trainer) or 0):
            return True
        switches = any(isinstance(callback, OptimizerSwitch) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        return switches and phase(trainer) == "adamw"


def phase(trainer: Trainer) -> str:
    """What took the optimizer's last step: adamw or sgd of lrec's own, else the name of the class."""
    (optimizer,) = trainer.optimizers
    if isinstance(optimizer, AdamWThenSGD):
        return optimizer.phase_of(trainer.global_step)
    return type(optimizer).__name__.lower()


def _switching(trainer: Trainer) -> tuple[AdamWThenSGD, int]:
    """The optimizer, and where the schedule of the rate stands."""
    (optimizer,), (config,) = trainer.optimizers, trainer.lr_scheduler_configs
    assert isinstance(optimizer, AdamWThenSGD)
    return optimizer, config.scheduler.last_epoch
