"""The parser of every command: jsonargparse, with errors in one line."""

import argparse
import re
from typing import Any, NoReturn

import jsonargparse
import yaml
from jsonargparse import Namespace, _actions, _typehints

from lrec.errors import UserError
from lrec.options.class_paths import NO_MODULE

_yaml = jsonargparse.get_loader("yaml")
# The options that people use most, by command: `--help` begins with them.
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
    "seed_everything": "seed of the network's initial weights; data.seed: order of the data, dropout, negatives",
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

_discard_what_does_not_fit = _typehints.discard_init_args_on_class_path_change


def _discard_defaults(action: Any, before: Any, chosen: Any) -> None:
    """If another class is chosen, jsonargparse keeps the options of the class before that both have. This forgets those
    with the default of the class before, so that the chosen class has its own defaults."""
    if isinstance(before, Namespace) and before.get("init_args") and before["class_path"] != chosen["class_path"]:
        defaults = _typehints.ActionTypeHint.get_class_parser(before["class_path"]).get_defaults()
        for name, default in defaults.items(branches=True, nested=False):
            if before.init_args.get(name) == default:
                before.init_args.pop(name, None)
    _discard_what_does_not_fit(action, before, chosen)


class OneLineParser(jsonargparse.ArgumentParser):
    """A parser whose errors are UserErrors of one line."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        jsonargparse.set_loader("yaml", _value, (yaml.YAMLError,))
        # If a study's options name a class, its runs make the object and set its other options, not the study.
        _typehints.adapt_classes_any = lambda value, *_, **__: value
        _typehints.discard_init_args_on_class_path_change = _discard_defaults  # there is no setting for this
        super().__init__(*arguments, **{"formatter_class": _WithoutSphinx, **options})

    def format_help(self, *arguments: Any) -> str:
        """The options that people use most, and then every option."""
        if begins := beginning(self.prog.removeprefix("lrec ")):
            self.usage = argparse.SUPPRESS
            begins += "\nAll options:\n\n"
        return f"{begins}{super().format_help(*arguments)}"

    def validate(self, namespace: Namespace, *arguments: Any, **options: Any) -> None:
        """Refuse null, too, for an option that needs a value: after the options that are missing have their message."""
        super().validate(namespace, *arguments, **options)
        super().validate(namespace, *arguments, **options | {"skip_unset": False})

    def _check_value_key(self, action: Any, value: Any, key: str, *arguments: Any, **options: Any) -> Any:
        """Refuse a value in place of a group of options, too, such as an empty section of a file."""
        if isinstance(action, _actions._ActionConfigLoad) and not isinstance(value, str | dict | Namespace):
            given = "null" if value is None else value
            raise TypeError(f'Parser key "{key}": {given} is no mapping of options, such as NAME: VALUE')
        return super()._check_value_key(action, value, key, *arguments, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as a UserError that names the option as the user gave it."""
        message = " ".join(message.split())
        if self.prog == "lrec update":
            way_out = "name a run and its new rows: lrec update RUN --data FILE"
            message = re.sub(r".*required: (\w+, )*data$", way_out, message)
        for theirs, ours in _IN_OUR_WORDS:
            message = re.sub(theirs, ours, message)
        raise UserError(message)


def beginning(command: str) -> str:
    """The beginning of a command's help; empty if the command has few options."""
    if (options := USED_MOST.get(command)) is None:
        return ""
    width = max(map(len, options)) + 4
    lines = "".join(f"  {'--' + option:<{width}}{meaning}\n" for option, meaning in options.items())
    return f"usage: lrec {command} --config FILE ... [options]\n\nThe options that people use most:\n\n{lines}"


def _value(text: str) -> Any:
    """The value that the text of an option or of a configuration means."""
    # jsonargparse passes on the options of a class as text, and null as "None": --model.optimizer.switch null.
    if text == "None":
        return None
    # YAML would read a name such as #time or &time as a comment or an anchor, and so as null.
    return text if text.lstrip().startswith(("#", "&")) and "\n" not in text else _yaml(text)


class _WithoutSphinx(jsonargparse.DefaultHelpFormatter):
    """Turns :class:`datetime.timedelta`, as in Lightning's docstrings, into timedelta."""

    def _expand_help(self, action: argparse.Action) -> str:
        return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", super()._expand_help(action)).replace("``", "")


def _reasons(none_fits: re.Match[str]) -> str:
    """Why a value fits none of several types: each reason once, without types that the user cannot have meant."""
    errors, value = none_fits.groups()
    others = ("NoneType", "expects a function or a callable class")
    reasons = dict.fromkeys(each for each in errors.split(" - ") if not any(other in each for other in others))
    return "; ".join(reasons).replace("Import path does", f"Import path {value} does")


# Changes of jsonargparse's messages, in order: --model.loss instead of 'Parser key "model": Parser key "loss":', etc.
_IN_OUR_WORDS = (
    (r"- Expected a path but \S+ either not accessible or invalid - ", ""),
    (
        r"Does not validate against any of the Union.*? Errors: - (.*?) Given value type: \S+ \S+ Given value: (.*)",
        _reasons,
    ),
    (r'Parser key "([^"]+)":', r"--\1:"),
    (r"(--[\w.]+): --(?=\w)", r"\1."),
    (r"(--[\w.]+): Not of type .* not NestedArg", r"\1 is one value and has no options: \1 VALUE"),
    (r"[Uu]nrecognized arguments: (?!-)(.+)", r"\1: a value needs the name of its option before it: see --help"),
    (r"Option '([\w.]+)' is not accepted", r"no option '\1'"),
    (r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"--\1: no option '\2'"),
    (r"Import path (\S+) does not correspond to a subclass of (\w+)", r"\1 is no subclass of \2"),
    (
        r"Expected an instantiatable class, but (\S+) is abstract",
        r"\1 is abstract: your class must define every abstract method of its base",
    ),
    (r"Problem with given class_path '(\S+)': ", r"\1: "),
    NO_MODULE,
    (
        r".*required: (\w+, )*data$|.*--data: .*\.SequenceDataModule is abstract.*",
        "name a data set: --config configs/data/csv.yaml for your own file, or another file of configs/data",
    ),
    (
        r".*--data: no option '(\w+)'.*",
        r"--data.\1 is no option of the data set; if you chose none, --config configs/data/csv.yaml reads your file",
    ),
)
