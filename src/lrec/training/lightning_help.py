"""The help of `lrec fit`, `validate`, `test` and `predict`: the options that people use most, and then all of them."""

import argparse

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


def help_of(command: str, every_option: str) -> str:
    """The help of a command, given Lightning's list of options, which lacks those of lrec's own model: the options of
    --model depend on the class that it names."""
    own = OneLineParser(usage=argparse.SUPPRESS, add_help=False)
    own.add_class_arguments(SequentialRecommender, "model", skip={"optimizer"}, sub_configs=True)
    own.add_class_arguments(Optimizer, "model.optimizer", sub_configs=True)
    width = max(map(len, USED_MOST)) + 4
    most = "\n".join(f"  {'--' + option:<{width}}{meaning}" for option, meaning in USED_MOST.items())
    begins = f"usage: lrec {command} --config FILE ... [options]\n\nThe options that people use most:\n\n{most}\n"
    return f"{begins}\nAll options:\n\n{every_option}\n{own.format_help()}"
