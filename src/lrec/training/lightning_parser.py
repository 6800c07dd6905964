"""The parser of `lrec fit|validate|test|predict`: Lightning's, with errors of one line and a help for people."""

import argparse
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lrec.options.parser import OneLineParser
from lrec.training.module import SequentialRecommender
from lrec.training.optim import Optimizer

USED_MOST = {
    "config": "YAML file of options; several are read one after the other",
    "data.path": "file, folder or glob of your interactions (with --config data/csv.yaml)",
    "data.user_column": "column of the user's id",
    "data.item_column": "column of the item's id",
    "data.time_column": "column of the time; null if rows are in time order",
    "data.max_len": "longest history that the network reads, in items",
    "data.targets_per_step": "targets of an optimizer step, over all processes",
    "model.size": "entry of the ladder, such as 98k, or LAYERSxWIDTH, such as 2x96",
    "model.loss": "FullSoftmax, SampledSoftmax, GBCE, or a class of your own",
    "model.optimizer.lr": "peak learning rate",
    "model.optimizer.weight_decay": "decoupled weight decay",
    "trainer.default_root_dir": "the run's folder; runs/DATE-TIME by default",
    "trainer.max_epochs": "passes over the training data, unless early stopping ends the run",
    "trainer.accelerator": "cpu, gpu or auto",
    "trainer.devices": "how many of them, or auto",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed, or auto: what is faster here, 32-true or bf16-mixed",
    "checkpoint.monitor": "figure that chooses the best checkpoint, such as val/NDCG@10",
    "early_stopping.patience": "evaluations without a better one after which the run ends",
    "ckpt_path": "checkpoint to go on from or to evaluate: a path, best or last",
    "seed_everything": "seed of the network's first weights",
}

# Lightning's types would read a limit of 1, one batch, as 1.0, all of them, and have no precision `auto`.
_LIMIT = "How many batches to take (1 is one), or which share of them (1.0 is all)."
_OF_TRAINER: dict[str, tuple[Any, Any, str]] = {
    **{f"limit_{part}_batches": (int | float | None, None, _LIMIT) for part in ("train", "val", "test", "predict")},
    "precision": (int | str | None, None, "32-true, bf16-mixed, 16-mixed, or auto: what is faster here."),
}


class LightningParser(OneLineParser, LightningArgumentParser):
    """Lightning's parser with errors of one line."""

    def format_help(self, *arguments: Any) -> str:
        """Lightning's list of options without its usage, a hundred lines, behind the options that people use most. It
        lacks those of lrec's own model, as they depend on the class that --model names."""
        own = OneLineParser(usage=argparse.SUPPRESS, add_help=False)
        own.add_class_arguments(SequentialRecommender, "model", skip={"optimizer"}, sub_configs=True)
        own.add_class_arguments(Optimizer, "model.optimizer", sub_configs=True)
        width = max(map(len, USED_MOST)) + 4
        most = "\n".join(f"  {'--' + option:<{width}}{meaning}" for option, meaning in USED_MOST.items())
        begins = f"usage: {self.prog} --config FILE ... [options]\n\nThe options that people use most:\n\n{most}\n"
        self.usage = argparse.SUPPRESS
        return f"{begins}\nAll options:\n\n{super().format_help(*arguments)}\n{own.format_help()}"


def add_trainer(parser: LightningArgumentParser) -> None:
    """Add the options of Lightning's Trainer."""
    parser.add_class_arguments(
        Trainer, "trainer", skip=set(_OF_TRAINER), instantiate=False, fail_untyped=False, sub_configs=True
    )
    assert parser.groups is not None
    for name, (kind, default, meaning) in _OF_TRAINER.items():
        parser.groups["trainer"].add_argument(f"--trainer.{name}", type=kind, default=default, help=meaning)
