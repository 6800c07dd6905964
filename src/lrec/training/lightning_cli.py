"""LightningCLI for `lrec fit|validate|test|predict`: parse, check, choose the folder, build, run, test after fit."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import backends, distributed
from torch.distributed.constants import default_pg_timeout

from lrec.checkpoint.reading import check, find_last
from lrec.common.files import check_folder
from lrec.common.hardware import auto_precision, kind_of
from lrec.data.datasets import SequenceDataModule
from lrec.errors import UserError
from lrec.evaluation.metrics import best_is, metric_names, metrics_of
from lrec.model.sharded_table import PATIENCE_MINUTES
from lrec.run import CONFIG, Run
from lrec.training import target_losses
from lrec.training.callbacks import EvaluationReport, Progress, RunFiles, ScalingPoints
from lrec.training.checkpoint_callbacks import BestAndLast, LastCheckpoint, best_of
from lrec.training.lightning_options import HelpAll, LightningParser, add_trainer, as_list, check_options, warnings_of
from lrec.training.module import SequentialRecommender
from lrec.training.refused import refuse_trainer
from lrec.training.schedule import StopAfterSwitch, mode_of
from lrec.training.strategies import FSDP2, CheckpointFiles, is_loss_of_a_process
from lrec.training.table_writers import PredictionWriter
from lrec.training.tensorboard import ItemProjector, RunLogger, RunTable
from lrec.training.throughput import Throughput

# Warnings that Lightning causes by its calls of jsonargparse, torch and its own loaders. Users cannot avoid them.
_NOT_FOR_USERS = (
    r"\s*``instantiate_classes``",
    r"\s*By default only one JsonargparseDeprecationWarning",
    r".*LeafSpec",
    r"torch.distributed.nn.functional.all_gather is deprecated",
    r".*LightningCLI's args parameter",
    r"Checkpoint directory .* exists and is not empty",
    r".*WeightAveraging callback, but loading a checkpoint outside",
    r".*WeightAveraging callback with a model that overrides",
)

_PARSERS = dict[str, LightningArgumentParser]()  # by command


def run_lightning(arguments: Sequence[str]) -> None:
    command, *options = arguments
    try:
        run, cli = fit if command == "fit" else evaluate, CommandLine(command, options)
        with cli.trial or nullcontext():  # the temporary folder of a trial
            run(cli)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning would end with 1 and without a word
            raise error.__context__ from None
        raise
    except RuntimeError as error:
        if "conditioned on metric" in str(error):  # of an EarlyStopping
            raise UserError(f"--trainer.callbacks: {str(error).partition('. ')[0]}; val/loss is") from error
        if not is_loss_of_a_process(error):
            raise
        reason = str(error).splitlines()[0]
        print(f"lrec: another process is gone or hangs ({reason}): go on with --ckpt_path=last", file=sys.stderr)
        sys.stdout.flush()
        os._exit(1)  # a normal exit would wait for the processes that are gone
    finally:
        os.environ.pop("LREC_RUN", None)  # the processes that this one starts from now on are no part of the run


def compose(arguments: Sequence[str]) -> dict[str, Any]:
    """All options that `lrec fit` would run with, given these arguments; UserError if it would refuse them."""
    return CommandLine("fit", arguments, make=False).options


class CommandLine(LightningCLI):
    """Parses and checks the arguments of a command and, with `make`, builds trainer, model and data."""

    def __init__(self, command: str, arguments: Sequence[str], make: bool = True) -> None:
        for message in _NOT_FOR_USERS:
            warnings.filterwarnings("ignore", message)
        for library in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(library).setLevel(logging.WARNING)
        self.command, self._make = command, make
        super().__init__(
            SequentialRecommender,
            SequenceDataModule,
            save_config_callback=None,
            trainer_defaults={"callbacks": [EvaluationReport(), PredictionWriter(), Throughput(), RunTable()]},
            seed_everything_default=0,
            parser_kwargs={"prog": f"lrec {command}", "description": None},
            parser_class=LightningParser,
            args=list(arguments),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def setup_parser(self, *arguments: Any) -> None:
        """Make the parser, or take that of an earlier command: to make it takes a third of the time of `compose`."""
        if self.command not in _PARSERS:
            super().setup_parser(*arguments)
            _PARSERS[self.command] = self.parser
        self.parser = _PARSERS[self.command]

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of trainer, model (lrec's own unless --model names another class) and data."""
        parser.add_argument("--help_all", action=HelpAll, help="Show every option and exit.")
        add_trainer(parser)
        parser.add_subclass_arguments(
            SequentialRecommender, "model", fail_untyped=False, default={"class_path": "lrec.SequentialRecommender"}
        )
        parser.add_subclass_arguments(SequenceDataModule, "data", fail_untyped=False, required=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(BestAndLast, "checkpoint")
        parser.add_lightning_class_args(StopAfterSwitch, "early_stopping")
        parser.add_lightning_class_args(ScalingPoints, "points")
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.add_lightning_class_args(ItemProjector, "projector")
        own = {"filename": "best", "save_last": True, "auto_insert_metric_name": False, "enable_version_counter": False}
        parser.set_defaults({f"checkpoint.{name}": value for name, value in own.items()})
        meaning = "Checkpoint to continue from or to evaluate: a path, best or last."
        parser.add_argument("--ckpt_path", type=str | None, help=meaning)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, refuse options that lrec cannot train with, and set the mode (min or max) of the monitored metrics."""
        super().parse_arguments(parser, args)
        self._stay_with_the_configuration()
        check_options(self.command, self.config)
        metrics = metrics_of([each.as_dict() for each in as_list(self.config.model.init_args.get("metrics"))])
        for group in ("checkpoint", "early_stopping"):
            chosen = self.config[group]
            if not chosen.monitor.startswith("val/") or best_is(chosen.monitor.removeprefix("val/"), metrics) is None:
                monitored = [f"val/{name}" for name in metric_names(metrics) if best_is(name, metrics) is not None]
                raise UserError(f"--{group}.monitor {chosen.monitor}: choose one of {', '.join(monitored)}")
            chosen.mode = mode_of(chosen.monitor, chosen.mode, f"--{group}", metrics)
        if not self._make:
            self.options, self.config.seed_everything = plain(parser, self.config), False  # no random numbers

    def _stay_with_the_configuration(self) -> None:
        """Let a copied or moved run use the folder of its config.yaml, not the former folder that this file names."""
        trainer = self.config.trainer
        for file in map(Path, filter(None, self.config.config or [])):  # None is a configuration given as text
            run, folder = Run(file.absolute().parent), trainer.default_root_dir
            own = file.name == CONFIG and run.occupied and run.config.value("trainer.default_root_dir") == folder
            if own and folder is not None and run.folder.resolve() != Path(folder).resolve():
                trainer.default_root_dir = str(run.folder)

    @property
    def run(self) -> Run:
        return Run(Path(self.config.trainer.default_root_dir))

    def instantiate_classes(self) -> None:
        """Choose the run's folder and precision first. A trial (fast_dev_run) gets a temporary folder for its files."""
        if not self._make:
            return
        trainer = self.config.trainer
        self.trial = TemporaryDirectory(prefix="lrec-") if trainer.fast_dev_run else None
        if trainer.default_root_dir is None:
            if _started_by_a_cluster():
                raise UserError("choose --trainer.default_root_dir: all processes of a run write to the same folder")
            # The processes that Lightning starts for further devices inherit this variable, and so the folder. A script
            # may start several runs in the same second, so the name has microseconds.
            chooser, _, folder = os.environ.get("LREC_RUN", "").partition(" ")
            if chooser in ("", str(os.getpid())):
                folder = f"runs/{datetime.now():%Y%m%d-%H%M%S-%f}"
                os.environ["LREC_RUN"] = f"{os.getpid()} {folder}"
            trainer.default_root_dir = folder
        # As Lightning does.
        trainer.default_root_dir = os.path.expanduser(trainer.default_root_dir)
        if self.trial is None:
            check_folder(Path(trainer.default_root_dir), "--trainer.default_root_dir")
        if trainer.accelerator == "auto" and backends.mps.is_available():
            trainer.accelerator = "cpu"  # Lightning would choose Apple's GPU, which has no float64 for the metrics
        if trainer.precision == "auto":
            trainer.precision = self._settled_precision()
        # config.yaml says how a run is trained, not from which checkpoint an attempt started.
        self.ckpt_path, self.config.ckpt_path = self.config.ckpt_path, None
        super().instantiate_classes()

    def _settled_precision(self) -> str | None:
        """The precision of the run that is already in this folder, else the choice of `auto` on this machine."""
        if self.run.config_file.is_file():
            recorded: str | None = self.run.config.flat.get("trainer.precision")
            if recorded != "auto":  # auto: the file was written for a run that has not begun
                return recorded
        if _started_by_a_cluster():
            raise UserError("choose --trainer.precision: with auto, each machine of a cluster would choose for itself")
        precision = auto_precision(kind_of(self.config.trainer.accelerator))
        rank_zero_only(print)(f"precision: {precision}, chosen by auto")
        return precision

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the callbacks that write a run's files, and TensorBoard unless another logger is named."""
        config = self.config_init.trainer
        folder, loggers, trial = config.default_root_dir, config.logger, self.trial is not None
        if loggers in (None, True):
            loggers = RunLogger(folder)
        options = plain(self.parser, self.config) if self.command == "fit" else {}
        self.alone = ExitStack()
        files = RunFiles(options, [] if trial else as_list(loggers), self.alone)
        kwargs |= {
            "default_root_dir": self.trial.name if self.trial is not None else folder,
            "strategy": FSDP2() if config.strategy == "fsdp2" else config.strategy,
            # In a trial, Lightning replaces them by a logger that writes nothing.
            "logger": loggers if trial else False,
            "callbacks": [files, Progress(), *as_list(config.callbacks)],
            "plugins": [*as_list(config.plugins), CheckpointFiles()],
            "use_distributed_sampler": False,
            # With true, Lightning writes to the loggers before lrec has checked that the checkpoint fits.
            "enable_autolog_hparams": False,
        }
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError) as error:  # Lightning's words for a wrong name or number
            raise error if isinstance(error, UserError) else UserError(f"--trainer: {error}") from error
        refuse_trainer(trainer)
        if isinstance(trainer.strategy, DDPStrategy) and trainer.strategy._timeout == default_pg_timeout:
            trainer.strategy._timeout = timedelta(minutes=PATIENCE_MINUTES)
        return trainer


def fit(cli: CommandLine) -> None:
    """Train, then test the best checkpoint. Options that cannot work are refused before anything is written."""
    checkpoint = _checkpoint(cli, default=None)
    goes_on = checkpoint is not None and Path(checkpoint).resolve().is_relative_to(cli.run.folder.resolve())
    if cli.run.occupied and not goes_on and cli.ckpt_path != "last" and cli.trial is None:
        way_out = "choose another --trainer.default_root_dir, or --ckpt_path=last to resume it"
        raise UserError(f"{cli.run.folder} holds a run already: {way_out}")
    if checkpoint is not None:
        cli.model.warm_start = None  # it was done before the checkpoint
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    if cli.config.points.test and cli.trial is None and len(cli.datamodule.cuts.test_targets.users_T) == 0:
        raise UserError("no user has a test target: choose another split, more data or --points.test false")
    for line in warnings_of(cli.config, cli.datamodule, cli.model.loss):
        rank_zero_only(print)(line)
    with cli.alone:
        # weights_only: a checkpoint may hold tensors and plain values only.
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
        _test_the_best(cli)
        if cli.trial is None:
            rank_zero_only(cli.run.write_end)("finished")
            cli.trainer.strategy.barrier()  # no process ends before this is written


def _test_the_best(cli: CommandLine) -> None:
    """Test the best checkpoint. If a study's run has one process, also write the losses by target: imports are done."""
    say = rank_zero_only(print)
    kept = best_of(cli.trainer)
    if cli.trial is not None:
        say(f"--trainer.fast_dev_run: a trial; nothing is kept in {cli.run.folder}")
    elif cli.model.diverged:
        say("the loss is not finite: the run is marked diverged and not tested")
    elif not cli.config.points.test:
        say("--points.test false: the best checkpoint is not tested")
    elif kept is not None and kept.best_model_path:
        cli.trainer.test(cli.model, cli.datamodule, kept.best_model_path, verbose=False, weights_only=True)
        if cli.config.points.study is not None and not distributed.is_initialized():
            target_losses.main(cli.run.folder)
    elif "val/loss" not in cli.trainer.callback_metrics:
        options = "--trainer.max_steps, val_check_interval, check_val_every_n_epoch and limit_val_batches"
        say(f"training ended without an evaluation, so there is no best checkpoint to test: see {options}")


def evaluate(cli: CommandLine) -> None:
    """Run `validate`, `test` or `predict` with a checkpoint, by default the run's best; callbacks write the results."""
    checkpoint = _checkpoint(cli, default="best")
    if checkpoint is None:
        raise UserError(f"--ckpt_path last: {cli.run.folder} has no last checkpoint")
    quietly = {"return_predictions": False} if cli.command == "predict" else {"verbose": False}
    getattr(cli.trainer, cli.command)(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True, **quietly)


def _checkpoint(cli: CommandLine, default: str | None) -> str | None:
    """The checkpoint of --ckpt_path or the default, checked. None without both, or if there is no last one yet."""
    chosen = cli.ckpt_path or default
    if chosen == "last":
        path = find_last(cli.run.checkpoints)
    else:
        path = cli.run.best if chosen == "best" else Path(chosen) if chosen else None
    try:
        if path is not None and cli.trainer.is_global_zero:
            # With several processes, each process verifies its part when it reads it.
            check(path, whole=cli.trainer.num_nodes * cli.trainer.num_devices == 1)
    except UserError as error:
        raise UserError(f"--ckpt_path {error}") from error
    return None if path is None else str(path)


def _started_by_a_cluster() -> bool:
    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def plain(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """A configuration as plain values. lrec's own model and optimizer have no class path, as on the command line."""
    # Parsing has checked it.
    options: dict[str, Any] = json.loads(parser.dump(config, format="json", skip_unset=False, skip_validation=True))
    model = options["model"]["init_args"]
    for within, name, own in ((model, "optimizer", "lrec.Optimizer"), (options, "model", "lrec.SequentialRecommender")):
        if name in within and within[name]["class_path"] == own:
            within[name] = within[name]["init_args"]
    return options
