"""What lrec cannot train with, on the command line and in Python: options, strategies and callbacks of the Trainer."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from lrec.errors import UserError
from lrec.training.strategies import FSDP2

_BEFORE_THE_NETWORK = "it reads the model before its network is there"
_NOT_LREC_S = {
    callbacks.LearningRateFinder: "the rate is --model.optimizer.lr, which this callback cannot set",
    callbacks.BatchSizeFinder: "the size of a step is --data.targets_per_step, which this callback cannot set",
    callbacks.GradientAccumulationScheduler: "use --trainer.accumulate_grad_batches, which holds for all epochs",
    callbacks.StochasticWeightAveraging: f"{_BEFORE_THE_NETWORK}: use WeightAveraging",
    callbacks.ModelPruning: _BEFORE_THE_NETWORK,
    callbacks.BaseFinetuning: f"{_BEFORE_THE_NETWORK}: freeze in configure_model, after super().configure_model()",
}
_NOT_SHARDED = {callbacks.WeightAveraging: "it cannot average sharded parameters: use --trainer.strategy ddp"}


def refuse_trainer(trainer: Trainer) -> None:
    """UserError if lrec would train something else than this trainer says."""
    strategy = trainer.strategy
    refuse(trainer, type(strategy), list(map(type, trainer.callbacks)))  # type: ignore[attr-defined]
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        why = "the network stays in the processes that it spawns or forks: use ddp in a script, or one device"
        raise UserError(f"--trainer.strategy {type(strategy).__name__}: {why}")


def refuse(options: Any, strategy: Any, kinds: Sequence[Any]) -> None:
    """UserError if lrec would train something else: `options` has the Trainer's options as attributes, `strategy` is a
    name or a class, `kinds` are the classes of the callbacks."""
    # Others leave the network unsharded, do not synchronise gradients, or cannot save the network.
    fits = strategy in ("auto", "fsdp2") or str(strategy).startswith("ddp")
    if not (fits or is_a(strategy, (SingleDeviceStrategy, DDPStrategy, FSDP2))):
        name = getattr(strategy, "__name__", strategy)
        raise UserError(f"--trainer.strategy {name}: lrec trains with auto, ddp, or fsdp2 for sharded parameters")
    for name in ("overfit_batches", "reload_dataloaders_every_n_epochs"):
        if getattr(options, name):
            raise UserError(f"--trainer.{name}: the loader of lrec has a plan for every epoch; leave it at 0")
    sharded = strategy == "fsdp2" or is_a(strategy, FSDP2)
    for refused, why in (_NOT_LREC_S | (_NOT_SHARDED if sharded else {})).items():
        if kind := next((kind for kind in kinds if is_a(kind, refused)), None):
            raise UserError(f"--trainer.callbacks {kind.__name__}: {why}")


def is_a(chosen: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(chosen, type) and issubclass(chosen, kind)
