"""The options of `lrec fit|validate|test|predict`: their parser, with a help for people; those that no run can have,
refused before anything is written; and those to warn of."""

import argparse
import math
import os
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.cli import LightningArgumentParser

from lrec.common.hardware import has_bfloat16, kind_of
from lrec.data.datamodule import SequenceDataModule
from lrec.errors import UserError, check_range
from lrec.model.losses import FullSoftmax, Loss
from lrec.options.class_paths import imported
from lrec.options.parser import OneLineParser
from lrec.options.used_most import beginning
from lrec.training.callbacks import is_partial
from lrec.training.module import SequentialRecommender
from lrec.training.optim import Optimizer
from lrec.training.strategies import FSDP2, check_strategy

# Networks have float32 parameters; these are the types of products.
TRAINS_IN = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
HALF = ("bf16-true", "16-true")
# With fewer steps in all, a loss says more of the training than of the network; more are named where they can be had.
FEW_STEPS, MORE_STEPS = 2000, 3000
MANY_ITEMS = 50_000
LIGHTNINGS_EPOCHS = 1000  # where neither epochs nor steps are limited
_NOT_LREC_S = {
    callbacks.LearningRateFinder: "the rate is --model.optimizer.lr, which it does not find",
    callbacks.BatchSizeFinder: "the size of a step is --data.targets_per_step, which it does not find",
    callbacks.GradientAccumulationScheduler: "steps are cut once, by --trainer.accumulate_grad_batches",
}

# Lightning's types would read a limit of 1, one batch, as 1.0, all of them, and have no precision `auto`.
_LIMIT = "How many batches to take (1 is one), or which share of them (1.0 is all)."
_OF_TRAINER: dict[str, tuple[Any, Any, str]] = {
    **{f"limit_{part}_batches": (int | float | None, None, _LIMIT) for part in ("train", "val", "test", "predict")},
    "precision": (int | str | None, None, "32-true, bf16-mixed, 16-mixed, or auto: what is faster here."),
}


class LightningParser(OneLineParser, LightningArgumentParser):
    """A parser whose `--help` has the options that people use most, and whose `--help_all` has all."""

    def format_help(self, *arguments: Any) -> str:
        return f"{beginning(self.prog.removeprefix('lrec '))}\n{self.prog} --help_all lists all options.\n"

    def format_all(self) -> str:
        """Every option, those of lrec's own model too: Lightning lists none, as they depend on the class of --model."""
        own = OneLineParser(usage=argparse.SUPPRESS, add_help=False)
        own.add_class_arguments(SequentialRecommender, "model", skip={"optimizer"}, sub_configs=True)
        own.add_class_arguments(Optimizer, "model.optimizer", sub_configs=True)
        return f"{super().format_help()}\n{own.format_help()}"


class HelpAll(argparse._HelpAction):
    """--help_all: print every option and stop."""

    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.format_all())
        parser.exit()


def add_trainer(parser: LightningArgumentParser) -> None:
    parser.add_class_arguments(
        Trainer, "trainer", skip=set(_OF_TRAINER), instantiate=False, fail_untyped=False, sub_configs=True
    )
    assert parser.groups is not None
    for name, (kind, default, meaning) in _OF_TRAINER.items():
        parser.groups["trainer"].add_argument(f"--trainer.{name}", type=kind, default=default, help=meaning)


def check_options(command: str, options: Namespace) -> None:
    """UserError where an option of Lightning's cannot work with a command, or would do something else than it says."""
    trainer = options.trainer
    if not isinstance(options.seed_everything, bool):
        check_range("--seed_everything", options.seed_everything, at_least=0, at_most=2**32 - 1)
    for name in ("check_val_every_n_epoch", "accumulate_grad_batches"):
        check_range(f"--trainer.{name}", trainer[name], at_least=1)
    _check_processes(trainer)
    strategy = _class_or_name(trainer.strategy)
    check_strategy(strategy)
    precisions = (*TRAINS_IN, *HALF, "auto")
    if trainer.precision is not None and str(trainer.precision) not in precisions:
        raise UserError(f"--trainer.precision {trainer.precision}: choose one of {', '.join(precisions)}")
    if trainer.barebones:
        raise UserError("--trainer.barebones true: a run has checkpoints and figures, which it would leave out")
    kinds = [_class_or_name(each) for each in as_list(trainer.callbacks)]
    sharded = strategy == "fsdp2" or _is_a(strategy, FSDP2)
    for kind in kinds:
        for refused, why in _NOT_LREC_S.items():
            if _is_a(kind, refused):
                raise UserError(f"--trainer.callbacks {kind.__name__}: {why}")
        if sharded and _is_a(kind, callbacks.WeightAveraging):
            raise UserError(
                f"--trainer.callbacks {kind.__name__} averages no sharded parameters: --trainer.strategy ddp"
            )
    timed = trainer.max_time is not None or any(_is_a(kind, callbacks.Timer) for kind in kinds)
    if command == "fit" and trainer.max_epochs == trainer.max_steps == -1 and not timed:
        raise UserError("--trainer.max_epochs -1 never ends: give --trainer.max_steps or --trainer.max_time too")


def _check_processes(trainer: Namespace) -> None:
    """UserError where torchrun started another number of processes than the trainer has devices, if that is said."""
    devices = "1" if trainer.devices == "auto" and trainer.accelerator == "cpu" else str(trainer.devices)
    started = int(os.environ.get("WORLD_SIZE", 0)) if TorchElasticEnvironment.detect() else 0
    if started and devices.isdecimal() and int(devices) * trainer.num_nodes != started:
        raise UserError(
            f"--trainer.devices {trainer.devices} and --trainer.num_nodes {trainer.num_nodes}: torchrun started "
            f"{started} processes in all; each is a device"
        )


def warnings_of(options: Namespace, data: SequenceDataModule, loss: Loss) -> list[str]:
    """What fit does with such options that its user may not expect, a line each."""
    trainer = options.trainer
    warnings = []
    if trainer.max_time is None and (few := few_steps(trainer.max_steps, trainer.max_epochs, data)):
        warnings.append(few)
    if isinstance(loss, FullSoftmax) and data.n_items > MANY_ITEMS:
        warnings.append(
            f"each target is compared with all {data.n_items:,} items, which takes most of the time: "
            "--model.loss SampledSoftmax compares it with a few"
        )
    if trainer.limit_val_batches is not None and is_partial(trainer.limit_val_batches):
        warnings.append(
            f"--trainer.limit_val_batches {trainer.limit_val_batches}: the first users alone choose the best checkpoint"
        )
    kind = kind_of(trainer.accelerator)
    if str(trainer.precision).startswith("bf16") and kind == "cpu" and not has_bfloat16(kind):
        warnings.append(
            f"--trainer.precision {trainer.precision}: this processor has no instructions for bfloat16, "
            "32-true is faster here"
        )
    if str(trainer.precision) in HALF:
        warnings.append(
            f"--trainer.precision {trainer.precision} keeps the parameters themselves in 16 bits, where most steps are "
            "rounded away: training stalls; bf16-mixed, and fsdp2 with param_dtype bfloat16, keep them in float32"
        )
    return warnings


def epochs_in_all(max_steps: int | None, max_epochs: float | None, steps_per_epoch: int) -> float:
    """The most epochs that a run may take by its limits, of which -1 and None are none; it may stop earlier."""
    limits = [max_steps / steps_per_epoch] if max_steps is not None and max_steps >= 0 else []
    if max_epochs is None:
        max_epochs = -1 if limits else LIGHTNINGS_EPOCHS
    return float(min(limits + ([max_epochs] if max_epochs >= 0 else []), default=math.inf))


def few_steps(max_steps: int | None, max_epochs: float | None, data: SequenceDataModule) -> str | None:
    """A sentence where a run takes few steps for its targets and could take more smaller ones."""
    epochs = epochs_in_all(max_steps, max_epochs, data.steps_per_epoch)
    steps, smaller = epochs * data.steps_per_epoch, max(2 * data.max_len, int(epochs * data.U / MORE_STEPS))
    if steps >= FEW_STEPS or smaller >= data.targets_per_step:
        return None
    would = epochs * -(-data.U // smaller)
    return (
        f"a run has no more than {steps:,.0f} of the optimizer's steps, of {data.targets_per_step:,} targets each, and "
        f"may end before it has learnt what its size can: --data.targets_per_step {smaller} would make it {would:,.0f}"
    )


def _class_or_name(chosen: Any) -> Any:
    """The class that a parsed option names by its path; the option itself where it is none."""
    return imported(chosen.class_path, "--trainer") if isinstance(chosen, Namespace) else chosen


def _is_a(chosen: Any, kind: type) -> bool:
    return isinstance(chosen, type) and issubclass(chosen, kind)


def as_list(value: Any) -> list[Any]:
    """The values of an option that takes one or several, or none: null or false."""
    return value if isinstance(value, list) else [value] if value else []
