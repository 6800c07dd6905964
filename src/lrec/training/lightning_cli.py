"""LightningCLI for `lrec fit|validate|test|predict`: the run folder, its logger and checkpoints, the test after fit."""

import argparse
import logging
import os
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import distributed

from lrec.checkpoint import format as checkpoints
from lrec.common.files import check_folder
from lrec.common.hardware import kind_of
from lrec.data.datasets import SequenceDataModule
from lrec.errors import UserError
from lrec.evaluation.metrics import metrics_of
from lrec.options.parser import OneLineParser
from lrec.run import Run
from lrec.training import target_losses
from lrec.training.callbacks import EvaluationReport, PredictionWriter, RunFiles, ScalingPoints
from lrec.training.checkpoint_callbacks import BestAndLast, LastCheckpoint, best_of
from lrec.training.lightning_help import help_of
from lrec.training.lightning_options import as_list, check_options, warnings_of
from lrec.training.module import SequentialRecommender
from lrec.training.monitor import check_monitored, mode_of
from lrec.training.optimizer_switch import StopAfterSwitch
from lrec.training.precision import AUTO, decided
from lrec.training.strategies import FSDP2, CheckpointFiles
from lrec.training.tensorboard import ItemProjector, RunLogger, RunTable
from lrec.training.throughput import Throughput

StrategyRegistry.register("fsdp2", FSDP2, description="Parameters sharded over the processes, CPUs or GPUs")

# Lightning calls jsonargparse, torch and its own loaders in ways that make these speak; users can do nothing about it.
_NOT_FOR_USERS = (
    r"\s*``instantiate_classes``",
    r"\s*skip_none",
    r"\s*By default only one JsonargparseDeprecationWarning",
    r".*does not have many workers",
    r".*LeafSpec",
    r".*LightningCLI's args parameter",
    r"It is recommended to use `self.log",
    r"Checkpoint directory .* exists and is not empty",
    r".*WeightAveraging callback, but loading a checkpoint outside",
    r".*WeightAveraging callback with a model that overrides",
)


# typing keeps Union[float, int] for Union[int, float], and jsonargparse would read 1, one batch, as 1.0: all of them.
for _limit in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"):
    Trainer.__init__.__annotations__[_limit] = int | float | None
Trainer.__init__.__annotations__["overfit_batches"] = int | float
Trainer.__init__.__annotations__["precision"] |= Literal["auto"]  # which is settled before there is a Trainer

# A small log in large steps learns little: below FEW_STEPS an epoch, what makes about MORE_STEPS is named.
FEW_STEPS, MORE_STEPS = 10, 50


class Parser(OneLineParser, LightningArgumentParser):
    """Lightning's parser with errors of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as a UserError that names the option."""
        OneLineParser.error(self, message, ex)

    def format_help(self, *arguments: Any) -> str:
        """Lightning's help of a command without its usage, a hundred lines, behind the options that people use most."""
        if "model" not in self.get_defaults():
            return str(super().format_help(*arguments))
        self.usage = argparse.SUPPRESS
        return help_of(self.prog.split()[-1], super().format_help(*arguments))


class CommandLine(LightningCLI):
    """A run is a folder, trainer.default_root_dir: config.yaml, TensorBoard events, checkpoints/, points.jsonl ..."""

    def __init__(self, command: str, *args: Any, **kwargs: Any) -> None:
        self.command = command
        super().__init__(*args, **kwargs)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The trainer, the model (lrec's own unless --model names another class) and the data."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.add_subclass_arguments(
            SequentialRecommender, "model", fail_untyped=False, default={"class_path": "lrec.SequentialRecommender"}
        )
        parser.add_subclass_arguments(SequenceDataModule, "data", fail_untyped=False, required=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The callbacks of every run, each a group of options."""
        parser.add_lightning_class_args(BestAndLast, "checkpoint")
        parser.add_lightning_class_args(StopAfterSwitch, "early_stopping")
        parser.add_lightning_class_args(ScalingPoints, "points")
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.add_lightning_class_args(ItemProjector, "projector")
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.save_last": True,
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, refuse what lrec cannot train with, and settle which end of the monitored metrics is the best."""
        super().parse_arguments(parser, args)
        config = self.config[self.command]
        check_options(self.command, config)
        own = config.model.init_args.get("metrics")
        metrics = metrics_of([each.as_dict() for each in as_list(own)])
        for group in ("checkpoint", "early_stopping"):
            chosen = config[group]
            check_monitored(chosen.monitor, f"--{group}", metrics)
            chosen.mode = mode_of(chosen.monitor, chosen.mode, f"--{group}", metrics)

    def _parse_ckpt_path(self) -> None:
        """The configuration is the truth: a checkpoint's hyper-parameters never override it."""

    @property
    def run(self) -> Run:
        """The run's folder."""
        return Run(Path(self.config[self.command].trainer.default_root_dir))

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder; what a trial writes (fast_dev_run) goes elsewhere, and away with this object."""
        config = self.config[self.subcommand]
        self.trial = TemporaryDirectory(prefix="lrec-") if config.trainer.fast_dev_run else None
        if config.trainer.default_root_dir is None:
            if _started_by_a_cluster():
                raise UserError("choose --trainer.default_root_dir: all processes of a run write to the same folder")
            # The processes that Lightning starts for further devices inherit the name of the first one's folder. Runs
            # that a script starts side by side begin in the same second.
            config.trainer.default_root_dir = os.environ.setdefault(
                "LREC_RUN", f"runs/{datetime.now():%Y%m%d-%H%M%S-%f}"
            )
        if self.trial is None:
            check_folder(Path(config.trainer.default_root_dir), "--trainer.default_root_dir")
        if config.trainer.precision == AUTO:
            config.trainer.precision = self._settled_precision()
        # config.yaml says how a run is trained, not where an attempt at it began.
        self.ckpt_path, config.ckpt_path = config.ckpt_path, None

    def _settled_precision(self) -> str | None:
        """That which the run in this folder has been trained with, or else what is faster here."""
        if self.run.config_file.is_file():
            recorded: str | None = self.run.config.flat.get("trainer.precision")
            if recorded != AUTO:  # as in a config.yaml that was written for a run that has not begun
                return recorded
        if _started_by_a_cluster():
            raise UserError("choose --trainer.precision: each of a cluster's processes would measure for itself")
        return decided(kind_of(self.config[self.command].trainer.accelerator))

    def instantiate_classes(self) -> None:
        """Make all that the configuration names; UserError where one of them needs a package that is not installed."""
        try:
            super().instantiate_classes()
        except (ValueError, ModuleNotFoundError) as error:
            missing: BaseException | None = error
            while missing is not None and not isinstance(missing, ModuleNotFoundError):
                missing = missing.__cause__
            if missing is None:
                raise
            raise UserError(f"a class that the options name needs a package that is not there: {missing}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with what writes a run's files, and a TensorBoard logger in the run's folder unless the
        configuration has another or none."""
        config = self.config_init[self.command].trainer
        folder, loggers, trial = config.default_root_dir, config.logger, self.trial is not None
        if loggers in (None, True):
            loggers = RunLogger(folder)
        options = _plain(self._parser(self.command), self.config[self.command]) if self.command == "fit" else {}
        kwargs |= {
            "default_root_dir": self.trial.name if self.trial is not None else folder,
            # In a trial Lightning exchanges them for one that writes nothing.
            "logger": loggers if trial else False,
            "callbacks": [RunFiles(options, [] if trial else as_list(loggers)), *as_list(config.callbacks)],
            "plugins": [*as_list(config.plugins), CheckpointFiles()],
            "use_distributed_sampler": False,
            # Else Lightning writes to the loggers before a checkpoint is found to fit.
            "enable_autolog_hparams": False,
        }
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Refuse what cannot work before anything is written: one run over another, bad data, an unknown figure."""
        path = self.config_init.fit.ckpt_path = self._choose_checkpoint(default=None)
        goes_on = path is not None and Path(path).resolve().is_relative_to(self.run.folder.resolve())
        if self.run.occupied and not goes_on and self.ckpt_path != "last" and self.trial is None:
            raise UserError(
                f"{self.run.folder} holds a run already: choose another --trainer.default_root_dir, "
                "or --ckpt_path=last to resume it"
            )
        if path is not None:
            self.model.warm_start = None  # it has been made
        for callback in as_list(self.config_init.fit.trainer.callbacks):
            if isinstance(callback, ModelCheckpoint | EarlyStopping) and callback.monitor is not None:
                mode_of(callback.monitor, callback.mode, type(callback).__name__, self.model.metrics)
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        # At least one training loss is logged per epoch, however short.
        trainer: Any = self.trainer
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, self.datamodule.steps_per_epoch)
        if trainer.is_global_zero:
            self._hint_at_more_steps()
            for warning in warnings_of(self.config.fit):
                print(warning)

    def _hint_at_more_steps(self) -> None:
        data = self.datamodule
        smaller = max(2 * data.max_len, data.U // MORE_STEPS)
        if data.steps_per_epoch < FEW_STEPS and smaller < data.targets_per_step:
            print(
                f"an epoch has no more than {data.steps_per_epoch} of the optimizer's steps: "
                f"--data.targets_per_step {smaller} would make it {-(-data.U // smaller)}"
            )

    def after_fit(self) -> None:
        """Test the best checkpoint. For a study's run of one process, the losses by target too: all is imported."""
        kept = best_of(self.trainer)
        best = "" if kept is None else kept.best_model_path
        if self.trial is not None:
            rank_zero_only(print)(f"--trainer.fast_dev_run: a trial, of which nothing is kept in {self.run.folder}")
        elif self.model.diverged:
            rank_zero_only(print)("the loss is not finite: the run is marked diverged and not tested")
        elif best:
            self.test(model=self.model, datamodule=self.datamodule, ckpt_path=best)
            if self.config_init.fit.points.study is not None and not distributed.is_initialized():
                target_losses.main(self.run.folder)
        elif "val/loss" not in self.trainer.callback_metrics:
            rank_zero_only(print)(
                "training ended before an evaluation, so there is no best checkpoint to test: "
                "more --trainer.max_steps, or a smaller --trainer.val_check_interval, reach one"
            )
        if self.trial is None:
            rank_zero_only(self.run.write_end)("finished")
            self.trainer.strategy.barrier()  # no process ends before it is written

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's needs no self
        """The command that was asked for: the parsers of the other three would take half a second.

        Options that lrec settles are left out: its own table and file take their place.
        """
        settled = {"weights_only", "verbose", "return_predictions"}
        return {self.command: LightningCLI.subcommands()[self.command] | settled}

    def fit(self, **kwargs: Any) -> None:
        """Train; a checkpoint to go on from may hold tensors and plain values only."""
        self.trainer.fit(**kwargs, weights_only=True)

    def validate(self, **kwargs: Any) -> None:
        """Evaluate; EvaluationReport prints the table."""
        self.trainer.validate(**kwargs, verbose=False, weights_only=True)

    def test(self, **kwargs: Any) -> None:
        """Evaluate; EvaluationReport prints the table."""
        self.trainer.test(**kwargs, verbose=False, weights_only=True)

    def predict(self, **kwargs: Any) -> None:
        """Predict; PredictionWriter writes the lists, so none are held in memory."""
        self.trainer.predict(**kwargs, return_predictions=False, weights_only=True)

    def before_test(self) -> None:
        """Choose the run's best checkpoint where none was given."""
        path = self._choose_checkpoint(default="best")
        if path is None:
            raise UserError(f"--ckpt_path last: {self.run.folder} has none")
        self.config_init[self.subcommand].ckpt_path = path

    before_validate = before_predict = before_test

    def _choose_checkpoint(self, default: str | None) -> str | None:
        """The checkpoint of --ckpt_path, checked; None for the last one of a run that has none."""
        chosen = self.ckpt_path or default
        if chosen == "last":
            path = checkpoints.find_last(self.run.checkpoints)
        else:
            path = self.run.best if chosen == "best" else Path(chosen) if chosen else None
        try:
            if path is not None:
                checkpoints.check(path)
        except UserError as error:
            raise UserError(f"--ckpt_path {error}") from error
        return None if path is None else str(path)


def _started_by_a_cluster() -> bool:
    """Whether torchrun or SLURM started this process, and perhaps others."""
    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def run_lightning(arguments: Sequence[str]) -> None:
    """Run `lrec fit|validate|test|predict`."""
    _quieten()
    try:
        _command_line(CommandLine, arguments)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error


def _quieten() -> None:
    for message in _NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)


def _command_line(cls: type[CommandLine], arguments: Sequence[str]) -> CommandLine:
    return cls(
        arguments[0],
        SequentialRecommender,
        SequenceDataModule,
        parser_class=Parser,
        save_config_callback=None,
        trainer_defaults={"callbacks": [EvaluationReport(), PredictionWriter(), Throughput(), RunTable()]},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=list(arguments),
    )


class _ComposedConfig(CommandLine):
    """Parses and stops there."""

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        """Nothing will be instantiated."""

    def instantiate_classes(self) -> None:
        """Nothing is instantiated."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def compose(arguments: Sequence[str], command: str = "fit") -> dict[str, Any]:
    """The whole configuration that `lrec COMMAND` with these arguments would run with.

    Raises:
        UserError: what `lrec COMMAND` itself would say of them.
    """
    _quieten()
    cli = _command_line(_ComposedConfig, [command, *arguments])
    return _plain(cli._parser(command), cli.config[command])


def _plain(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """A configuration as plain values; lrec's own model and optimizer without a class path, as options give them."""
    options: dict[str, Any] = yaml.safe_load(
        parser.dump(config, skip_unset=False, skip_validation=True)  # parsing has checked it
    )
    model = options["model"]["init_args"]
    if "optimizer" in model:
        model["optimizer"] = _without_class(model["optimizer"], "lrec.Optimizer")
    options["model"] = _without_class(options["model"], "lrec.SequentialRecommender")
    return options


def _without_class(options: dict[str, Any], own: str) -> dict[str, Any]:
    """The arguments alone where the class is lrec's own."""
    return options["init_args"] if options["class_path"] == own else options
