"""The `lrec` command: starts lrec's own commands or Lightning's, and turns user errors into one line and exit code 2.

Nothing here imports Lightning: commands that do not train start fast.
"""

import errno
import json
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile

from lrec import __version__
from lrec.common import hardware
from lrec.common.start_stop import importing
from lrec.errors import UserError
from lrec.options.config_files import read_config, with_shipped_configs
from lrec.options.parser import OneLineParser

LIGHTNING_COMMANDS = {
    "fit": "train a model, then test its best checkpoint",
    "validate": "evaluate a checkpoint on the validation targets",
    "test": "evaluate a checkpoint on the test targets",
    "predict": "write the top-k items of every user",
}

# The options of a run's configuration besides its data.
OF_RUNS = {
    *("seed_everything", "trainer", "model", "checkpoint", "early_stopping", "points", "last", "projector"),
    "ckpt_path",
}
_HELP = ("-h", "--help")
_DOT = "․"  # the character "one dot leader", which no option's name contains
_OF_NAMES = (dict[str, dict[str, Any]], dict[str, dict[str, Any]] | None)  # options by the name of a size or variant
# The system's errors that the user can correct: permissions, disk space, and wrong kinds of files.
_SURROUNDINGS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
# What each of lrec's own commands does, and the function that runs it, imported only then.
OWN_COMMANDS = {
    "data prepare": ("read your files once and write a store for all runs", "lrec.data.datasets.prepare"),
    "data describe": ("print the statistics of a prepared store", "lrec.data.store.store.describe"),
    "update": ("train a run's network on new rows, and keep the better network", "lrec.study.update.update"),
    "export": ("write a checkpoint as one file that can recommend", "lrec.serving.export.export"),
    "recommend": ("list the best next items for any histories", "lrec.serving.command.recommend"),
    "sizes": ("print parameters, FLOPs and memory per rank of each size", "lrec.study.sizes.sizes"),
    "tasks": ("test trained runs on the five tasks, by model size", "lrec.tasks.command.tasks_command"),
    "backtest": ("train at several times, and test on the time after", "lrec.backtest.command.backtest"),
    "scaling study": ("train small sizes, predict large ones, train these and compare", "lrec.study.study.run_study"),
    "scaling outlook": ("say in a minute if a larger network will be better", "lrec.study.outlook.outlook_command"),
    "scaling exchange": (
        "compare what more size, data or history would gain, and its cost",
        "lrec.study.exchange.exchange",
    ),
    "scaling compare": ("draw several studies in one figure", "lrec.study.comparison.compare"),
    "scaling fit": ("predict larger sizes from the points of any runs", "lrec.study.fit_command.fit_command"),
    "scaling register": ("keep a study's forecasts, and what came, in a ledger", "lrec.study.ledger.register"),
    "scaling plan": ("say what to train for a budget, a loss or a size", "lrec.laws.plan.plan_command"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run `lrec` with these arguments, by default the arguments of the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # This must be set before torch is imported, here and in child processes. If threads spin for long while they wait,
    # they take the cores from each other when another process works too. If they sleep at once, small networks take
    # twice the time when no other process works (benchmarks/waiting_threads.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # In a container that may use only some cores, torch would start a thread for each core of the machine.
    if (n_cores := hardware.cores()) < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(n_cores))
    # For the user's own classes. By its full path, because jsonargparse reads a configuration from within its folder.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        print("lrec: error: the program that reads the output has ended", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("lrec: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        mistake = _user_error(error)
        if mistake is None:
            raise
        print(f"lrec: error: {' '.join(str(mistake).split())}", file=sys.stderr)
        sys.exit(2)


def _user_error(error: BaseException | None) -> UserError | None:
    """The UserError that `error` is or comes from; jsonargparse wraps those raised while it makes an object. A folder
    without permission to write, a full disk, or a missing package is also a UserError. None for all other errors."""
    while error is not None and not isinstance(error, UserError):
        if isinstance(error, OSError) and error.errno in _SURROUNDINGS:
            return UserError(": ".join(str(part) for part in (error.filename, error.strerror) if part))
        if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("lrec"):
            return UserError(f"the options name something that needs a package that is not installed: {error}")
        error = error.__cause__
    return error


def _run(arguments: list[str]) -> None:
    groups = {name.partition(" ")[0] for name in OWN_COMMANDS if " " in name}
    if not arguments or arguments[0] in _HELP:
        print(_overview())
    elif arguments[0] in groups and (len(arguments) == 1 or arguments[1] in _HELP):
        print(_overview(arguments[0]))
    elif arguments[0] == "--version":
        print(f"lrec {__version__}")
    elif arguments[0] in LIGHTNING_COMMANDS:
        with importing():
            from lrec.training.lightning_cli import run_lightning
        run_lightning(with_shipped_configs(arguments))
    else:
        command, parser, options = own_command(arguments)
        options = with_shipped_configs(options, data_is_class=arguments[0] not in ("update", "sizes"))
        values = parser.instantiate(parser.parse_args(options)).as_dict()
        values.pop("config", None)
        for name, value in values.items():
            if isinstance(value, dict):
                values[name] = {str(key).replace(_DOT, "."): of_entry for key, of_entry in value.items()}
        settings = _settings_of(command)
        command(**values) if settings is None else command(settings(**values))


def own_command(arguments: list[str]) -> tuple[Callable[..., None], OneLineParser, list[str]]:
    """One of lrec's own commands, its parser, and the arguments left to parse. The parser has an option for each
    argument of the function, or for each field of its one dataclass."""
    name = next((n for n in (arguments[0], " ".join(arguments[:2])) if n in OWN_COMMANDS), None)
    if name is None:
        known = ", ".join([*LIGHTNING_COMMANDS, *OWN_COMMANDS])
        raise UserError(f"no command {' '.join(arguments[:2])!r}: choose one of {known}")
    meaning, path = OWN_COMMANDS[name]
    module, _, function = path.rpartition(".")
    with importing():
        command = getattr(import_module(module), function)
    parser = OneLineParser(prog=f"lrec {name}", description=meaning)
    settings = _settings_of(command)
    hints = typing.get_type_hints(settings or command)
    config = _DataOfRun if "data" in hints and settings is None else ActionConfigFile
    parser.add_argument("--config", action=config, help="YAML file with values of the options below.")
    paths: set[str | int] = {key for key, hint in hints.items() if hint == list[Path]}
    if settings is None:
        positional = name in ("data describe", "update")
        parser.add_function_arguments(command, as_positional=positional, skip=paths, sub_configs=True)
    else:
        parser.add_class_arguments(settings, skip=paths, sub_configs=True)
    if paths:  # several files after one option
        from docstring_parser import parse

        documented = parse((settings or command).__doc__ or "").params
        meanings: dict[str | int, str | None] = {each.arg_name: each.description for each in documented}
        for key in paths:
            parser.add_argument(f"--{key}", type=Path, nargs="+", required=True, help=meanings[key])
    return command, parser, _as_jsonargparse_reads(arguments[len(name.split()) :], hints)


class _DataOfRun(ActionConfigFile):
    """A configuration for a command that takes a data set: it ignores the other options of a run."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        whole = read_config(Path(values))
        if isinstance(whole, dict) and not whole.keys().isdisjoint(OF_RUNS):
            # YAML reads a date without quotes as a date.
            values = json.dumps({name: value for name, value in whole.items() if name not in OF_RUNS}, default=str)
        super().__call__(parser, cfg, values, option_string)


def _settings_of(command: Callable[..., None]) -> type | None:
    """The dataclass of options that is a command's only argument; None if the function's arguments are the options."""
    first, *others = [hint for name, hint in typing.get_type_hints(command).items() if name != "return"]
    return first if not others and isinstance(first, type) and is_dataclass(first) else None


def _as_jsonargparse_reads(options: list[str], hints: dict[str, Any]) -> list[str]:
    """Write --dry_run alone as --dry_run true. --options.data.path FILE is the entry data.path of the dictionary
    options: its dot becomes _DOT, because jsonargparse would nest entries, and a second would replace the first."""
    result: list[str] = []
    for option, following in zip_longest(options, options[1:], fillvalue="-"):
        given, equals, value = option.partition("=")
        name, dot, key = given.removeprefix("--").partition(".")
        if option == f"--{name}" and hints.get(name) is bool and following.startswith("-"):
            result += [option, "true"]
        elif dot and given.startswith("--") and hints.get(name) in (dict[str, Any], dict[str, Any] | None):
            result.append(f"--{name}.{key.replace('.', _DOT)}{equals}{value}")
        elif dot and "." in key and given.startswith("--") and hints.get(name) in _OF_NAMES:
            all_at_once = f"--{name} '{{NAME: {{OPTION: VALUE}}}}'"
            raise UserError(f"{given}: a second option would replace the first: write {all_at_once}")
        elif dot and given.startswith("--") and "options" in hints and name not in hints:
            raise UserError(f"{given} is an option of the runs: write --options.{given.removeprefix('--')}")
        else:
            result.append(option)
    return result


def _overview(group: str = "") -> str:
    """Every command, or every command of a group such as scaling, with what it does."""
    meanings = LIGHTNING_COMMANDS | {name: meaning for name, (meaning, _) in OWN_COMMANDS.items()}
    lines = "\n".join(f"  {name:<18}{does}" for name, does in meanings.items() if name.startswith(group))
    usage = "usage: lrec COMMAND [--config FILE ...] [options]; lrec COMMAND --help lists the options"
    return f"{usage}\n\n{lines}\n\nThis is version {__version__}."
