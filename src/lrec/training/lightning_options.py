"""The options of `lrec fit|validate|test|predict`: the parser with its help, the checks before a start, warnings."""

import argparse
import math
import os
from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.cli import LightningArgumentParser

from lrec.common.hardware import has_bfloat16, kind_of
from lrec.common.text_tables import counted
from lrec.data.datamodule import SequenceDataModule
from lrec.errors import UserError, check_range
from lrec.model.losses import FullSoftmax, Loss
from lrec.options.class_paths import imported
from lrec.options.parser import OneLineParser, beginning
from lrec.training.module import SequentialRecommender
from lrec.training.optim import Optimizer
from lrec.training.refused import is_a, refuse

# The types of matrix products; the parameters stay in float32.
TRAINS_IN = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
HALF = ("bf16-true", "16-true")
# With fewer steps, the loss depends more on the training than on the network: `few_steps` advises MORE_STEPS, but
# no step of fewer than LEAST_TARGETS targets.
FEW_STEPS, MORE_STEPS, LEAST_TARGETS = 2000, 3000, 64
MANY_ITEMS = 50_000
LIGHTNINGS_EPOCHS = 1000  # Lightning's default if neither epochs nor steps are limited

# Lightning's own types would read a limit of 1 (one batch) as 1.0 (all batches), and do not have precision `auto`.
_LIMIT = "How many batches to take (1 is one), or which share of them (1.0 is all)."
_OF_TRAINER: dict[str, tuple[Any, Any, str]] = {
    **{f"limit_{part}_batches": (int | float | None, None, _LIMIT) for part in ("train", "val", "test", "predict")},
    "precision": (int | str | None, None, "32-true, bf16-mixed, 16-mixed, or auto (bf16-mixed if supported here)."),
}


class LightningParser(OneLineParser, LightningArgumentParser):
    """A parser whose `--help` shows the options that people use most, and whose `--help_all` shows all."""

    def format_help(self, *arguments: Any) -> str:
        return f"{beginning(self.prog.removeprefix('lrec '))}\n{self.prog} --help_all lists all options.\n"

    def format_all(self) -> str:
        """Help of all options. Lightning omits those of the model, which depend on the class of --model."""
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
    """UserError if an option of Lightning cannot work with the command, or would do something else than it says."""
    trainer = options.trainer
    if not isinstance(options.seed_everything, bool):
        check_range("--seed_everything", options.seed_everything, at_least=0, at_most=2**32 - 1)
    for name in ("check_val_every_n_epoch", "accumulate_grad_batches"):
        check_range(f"--trainer.{name}", trainer[name], at_least=1)
    check_range("--trainer.gradient_clip_val", trainer.gradient_clip_val, at_least=0)
    interval = trainer.val_check_interval
    if not isinstance(interval, int | float | None):
        raise UserError(f"--trainer.val_check_interval {interval}: give a number of batches, or a share of an epoch")
    check_range("--trainer.val_check_interval", interval, above=0)
    stage = {"fit": "test", "validate": "val"}.get(command, command)
    if trainer[f"limit_{stage}_batches"] == 0:
        why = "to leave out the test, give --points.test false" if command == "fit" else f"{command} would do nothing"
        raise UserError(f"--trainer.limit_{stage}_batches 0: {why}")
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if command == "fit" and trainer[name] == 0:
            raise UserError(f"--trainer.{name} 0: fit would train nothing; lrec test evaluates a checkpoint")
    devices = "1" if trainer.devices == "auto" and trainer.accelerator == "cpu" else str(trainer.devices)
    started = int(os.environ.get("WORLD_SIZE", 0)) if TorchElasticEnvironment.detect() else 0
    if started and devices.isdecimal() and int(devices) * trainer.num_nodes != started:
        given = f"--trainer.devices {trainer.devices} and --trainer.num_nodes {trainer.num_nodes}"
        raise UserError(f"{given}: torchrun started {started} processes in all, and each process is one device")
    precisions = (*TRAINS_IN, *HALF, "auto")
    if trainer.precision is not None and str(trainer.precision) not in precisions:
        raise UserError(f"--trainer.precision {trainer.precision}: choose one of {', '.join(precisions)}")
    if trainer.barebones:
        raise UserError("--trainer.barebones true: a run needs checkpoints and figures, which this option leaves out")
    if trainer.accelerator == "mps":
        raise UserError("--trainer.accelerator mps: metrics need float64, which Apple's GPUs do not have: choose cpu")
    kinds = [_class_or_name(each) for each in as_list(trainer.callbacks)]
    refuse(trainer, _class_or_name(trainer.strategy), kinds)
    timed = trainer.max_time is not None or any(is_a(kind, callbacks.Timer) for kind in kinds)
    if command == "fit" and trainer.max_epochs == trainer.max_steps == -1 and not timed:
        raise UserError("--trainer.max_epochs -1 never ends: give --trainer.max_steps or --trainer.max_time too")


def warnings_of(options: Namespace, data: SequenceDataModule, loss: Loss) -> Iterator[str]:
    """What fit does with these options that a user may not expect, one line each."""
    trainer, precision = options.trainer, str(options.trainer.precision)
    limit, epochs = trainer.limit_train_batches, trainer.max_epochs
    if isinstance(limit, float) and epochs is not None and epochs > 0:
        epochs *= limit
    in_batches = isinstance(limit, int)  # smaller steps would be no more of them
    if trainer.max_time is None and not in_batches and (few := few_steps(trainer.max_steps, epochs, data)):
        yield few
    if isinstance(loss, FullSoftmax) and data.n_items > MANY_ITEMS:
        costs = f"each target is compared with all {data.n_items:,} items, which takes most of the time"
        yield f"{costs}: --model.loss SampledSoftmax compares it with a few"
    kind = kind_of(trainer.accelerator)
    if precision.startswith("bf16") and kind == "cpu" and not has_bfloat16(kind):
        yield f"--trainer.precision {precision}: this processor has no bfloat16 instructions, 32-true is faster here"
    if precision in HALF:
        why = "keeps the parameters themselves in 16 bits, which rounds most steps away, so training stalls"
        instead = "bf16-mixed, and fsdp2 with param_dtype bfloat16, keep them in float32"
        yield f"--trainer.precision {precision} {why}: {instead}"


def epochs_in_all(max_steps: int | None, max_epochs: float | None, steps_per_epoch: int) -> float:
    """The most epochs that the limits of a run allow; -1 and None are no limit. The run may stop earlier."""
    limits = [max_steps / steps_per_epoch] if max_steps is not None and max_steps >= 0 else []
    if max_epochs is None:
        max_epochs = -1 if limits else LIGHTNINGS_EPOCHS
    return float(min(limits + ([max_epochs] if max_epochs >= 0 else []), default=math.inf))


def few_steps(max_steps: int | None, max_epochs: float | None, data: SequenceDataModule) -> str | None:
    """A warning if a run takes few steps and could take more, smaller steps; else None."""
    epochs = epochs_in_all(max_steps, max_epochs, data.steps_per_epoch)
    if math.isinf(epochs):  # time is the limit
        return None
    steps, plan = epochs * data.steps_per_epoch, data.batch_plan
    smaller = max(LEAST_TARGETS, 2 * data.max_len, int(epochs * plan.part.n_positions / MORE_STEPS))
    if steps >= FEW_STEPS or smaller >= data.targets_per_step:
        return None
    would = epochs * plan.steps_of(smaller)
    also = f" with --trainer.max_steps {would:.0f}" if max_steps == round(steps) else ""
    return (
        f"a run has no more than {counted(round(steps), 'optimizer step')} of {data.targets_per_step:,} targets each, "
        "and may end before it has learnt what its size can learn: "
        f"--data.targets_per_step {smaller}{also} would make it {would:,.0f}"
    )


def _class_or_name(chosen: Any) -> Any:
    """The class that a parsed option names by its path; any other option as it is."""
    return imported(chosen.class_path, "--trainer") if isinstance(chosen, Namespace) else chosen


def as_list(value: Any) -> list[Any]:
    """The values of an option as a list: one, several, or none (null or false)."""
    return value if isinstance(value, list) else [value] if value else []
