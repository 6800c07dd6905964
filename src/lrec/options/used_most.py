"""The options that people use most, by command: `--help` begins with them."""

_OF_DATA = {
    "config": "YAML file of options; several are read one after the other",
    "data.path": "file, folder or glob of your interactions (with --config data/csv.yaml)",
    "data.user_column": "column of the user's id",
    "data.item_column": "column of the item's id",
    "data.time_column": "column of the time; null if rows are in time order",
}

_OF_RUNS = _OF_DATA | {
    "data.max_len": "longest history that the network reads, in items",
    "data.targets_per_step": "targets of an optimizer step, over all processes",
    "model.size": "entry of the ladder, such as 98k, or LAYERSxWIDTH, such as 2x96",
    "model.loss": "FullSoftmax, NextItems, SampledSoftmax, GBCE, or a class of your own",
    "model.optimizer.lr": "peak learning rate",
    "model.optimizer.weight_decay": "decoupled weight decay",
    "trainer.default_root_dir": "the run's folder; runs/DATE-TIME by default",
    "trainer.max_epochs": "passes over the training data, unless early stopping ends the run",
    "trainer.accelerator": "cpu, gpu or auto",
    "trainer.devices": "number of devices, or auto",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed, or auto: the faster one here of 32-true and bf16-mixed",
    "checkpoint.monitor": "metric that chooses the best checkpoint, such as val/NDCG@10",
    "early_stopping.patience": "the run ends after this number of evaluations without an improvement",
    "ckpt_path": "checkpoint to continue from or to evaluate: a path, best or last",
    "seed_everything": "seed of the network's initial weights",
}

USED_MOST = {
    **dict.fromkeys(("fit", "validate", "test", "predict"), _OF_RUNS),
    "data prepare": _OF_DATA
    | {
        "data.k_core": "keep users and items with at least this many interactions; 0, the default, keeps all",
        "data.data_dir": "folder of prepared data; data by default",
    },
    "scaling outlook": _OF_DATA | {"out": "folder for outlook.json and report.md; none by default"},
    "scaling study": _OF_DATA
    | {
        "hours": "how long the study may take; lrec then chooses sizes, data, passes and learning rates",
        "out": "folder of the study; studies/NAME by default",
        "dry_run": "print the plan with its hours, memory and disk, and stop",
        "status": "print how far the runs are, and stop",
    },
}


def beginning(command: str) -> str:
    """The beginning of a command's help; empty if the command has few options."""
    if (options := USED_MOST.get(command)) is None:
        return ""
    width = max(map(len, options)) + 4
    lines = "".join(f"  {'--' + option:<{width}}{meaning}\n" for option, meaning in options.items())
    return f"usage: lrec {command} --config FILE ... [options]\n\nThe options that people use most:\n\n{lines}"
