"""Lightning's options that no run of lrec can have, refused before anything is written; and those to warn of."""

import os
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    Timer,
    WeightAveraging,
)

from lrec.errors import UserError, check_range
from lrec.options.class_paths import imported
from lrec.training.callbacks import is_partial
from lrec.training.precision import AUTO
from lrec.training.strategies import FSDP2, check_strategy

# Networks have float32 parameters; these are the types of products.
TRAINS_IN = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
HALF = ("bf16-true", "16-true")
_NOT_LREC_S = {
    LearningRateFinder: "the rate is --model.optimizer.lr, which it does not find",
    BatchSizeFinder: "the size of a step is --data.targets_per_step, which it does not find",
    GradientAccumulationScheduler: "steps are cut once, by --trainer.accumulate_grad_batches",
}


def check_options(command: str, options: Namespace) -> None:
    """UserError where an option of Lightning's cannot work, or would do something else than it says.

    Args:
        command: fit, validate, test or predict.
        options: All of its options, parsed.
    """
    trainer = options.trainer
    if not isinstance(options.seed_everything, bool):
        check_range("--seed_everything", options.seed_everything, at_least=0, at_most=2**32 - 1)
    for name in ("check_val_every_n_epoch", "accumulate_grad_batches"):
        check_range(f"--trainer.{name}", trainer[name], at_least=1)
    _check_processes(trainer)
    strategy = _class_or_name(trainer.strategy)
    check_strategy(strategy)
    precisions = (*TRAINS_IN, *HALF, AUTO)
    if trainer.precision is not None and str(trainer.precision) not in precisions:
        raise UserError(f"--trainer.precision {trainer.precision}: choose one of {', '.join(precisions)}")
    if trainer.barebones:
        raise UserError("--trainer.barebones true: a run has checkpoints and figures, which it would leave out")
    callbacks = [_class_or_name(each) for each in as_list(trainer.callbacks)]
    sharded = strategy == "fsdp2" or _is_a(strategy, FSDP2)
    for kind in callbacks:
        for refused, why in _NOT_LREC_S.items():
            if _is_a(kind, refused):
                raise UserError(f"--trainer.callbacks {kind.__name__}: {why}")
        if sharded and _is_a(kind, WeightAveraging):
            raise UserError(
                f"--trainer.callbacks {kind.__name__} averages no sharded parameters: --trainer.strategy ddp"
            )
    timed = trainer.max_time is not None or any(_is_a(kind, Timer) for kind in callbacks)
    if command == "fit" and trainer.max_epochs == trainer.max_steps == -1 and not timed:
        raise UserError("--trainer.max_epochs -1 never ends: give --trainer.max_steps or --trainer.max_time too")


def _check_processes(trainer: Namespace) -> None:
    """UserError where torchrun started another number of processes than the trainer has devices, if that is said."""
    on_cpu = trainer.devices == "auto" and trainer.accelerator == "cpu"
    devices = "1" if on_cpu else str(trainer.devices)
    started = int(os.environ.get("WORLD_SIZE", 0)) if TorchElasticEnvironment.detect() else 0
    if started and devices.isdecimal() and int(devices) * trainer.num_nodes != started:
        raise UserError(
            f"--trainer.devices {trainer.devices} and --trainer.num_nodes {trainer.num_nodes}: torchrun started "
            f"{started} processes in all; each is a device"
        )


def warnings_of(options: Namespace) -> list[str]:
    """What fit does with such options that its user may not expect, a line each."""
    trainer = options.trainer
    warnings = []
    if trainer.limit_val_batches is not None and is_partial(trainer.limit_val_batches):
        warnings.append(
            f"--trainer.limit_val_batches {trainer.limit_val_batches}: the first users alone choose the best checkpoint"
        )
    if str(trainer.precision) in HALF:
        warnings.append(
            f"--trainer.precision {trainer.precision} keeps the parameters themselves in 16 bits, where most steps are "
            "rounded away: training stalls; bf16-mixed, and fsdp2 with param_dtype bfloat16, keep them in float32"
        )
    return warnings


def _class_or_name(chosen: Any) -> Any:
    """The class that a parsed option names by its path; the option itself where it is none."""
    return imported(chosen.class_path, "--trainer") if isinstance(chosen, Namespace) else chosen


def _is_a(chosen: Any, kind: type) -> bool:
    return isinstance(chosen, type) and issubclass(chosen, kind)


def as_list(value: Any) -> list[Any]:
    """The values of an option that takes one or several, or none: null or false."""
    return value if isinstance(value, list) else [value] if value else []
