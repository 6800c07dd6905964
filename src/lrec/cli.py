"""The `lrec` command: routes to lrec's own commands or to Lightning's, and turns user errors into one line and exit 2.

Nothing here imports Lightning: commands that do not train start fast.
"""

import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser

from lrec.errors import UserError

LIGHTNING_COMMANDS = {
    "fit": "train a model, then test its best checkpoint",
    "validate": "evaluate a checkpoint on the validation targets",
    "test": "evaluate a checkpoint on the test targets",
    "predict": "write the top-k items of every user",
}
# Name: module, function, whether its arguments without a default are positional.
OWN_COMMANDS = {
    "data prepare": ("lrec.data.commands", "prepare", False),
    "data describe": ("lrec.data.commands", "describe", True),
    "scaling study": ("lrec.scaling.study", "study", False),
    "scaling fit": ("lrec.scaling.command", "fit_command", False),
}


class OneLineParser(ArgumentParser):
    """A parser whose errors are UserErrors of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as a UserError."""
        raise UserError(" ".join(message.split()))


def main(argv: Sequence[str] | None = None) -> None:
    """Run `lrec` with these arguments (those of the process by default)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _route(arguments)
    except UserError as error:
        print(f"lrec: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("lrec: interrupted", file=sys.stderr)
        sys.exit(130)


def _route(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    if arguments[0] in LIGHTNING_COMMANDS:
        from lrec.lightning_cli import run_lightning

        run_lightning(with_shipped_configs(arguments))
        return
    name = " ".join(arguments[:2])
    if name not in OWN_COMMANDS:
        raise UserError(f"no command {name!r}: choose one of {', '.join([*LIGHTNING_COMMANDS, *OWN_COMMANDS])}")
    module, function, positional = OWN_COMMANDS[name]
    command = getattr(import_module(module), function)
    parser = command_parser(name, command, positional)
    values = parser.instantiate_classes(parser.parse_args(with_shipped_configs(arguments[2:])))
    values.pop("config", None)
    command(**values.as_dict())


def command_parser(name: str, command: Callable[..., None], positional: bool) -> OneLineParser:
    """The parser of one of lrec's own commands: an option for each argument of the function, --config for a YAML."""
    parser = OneLineParser(prog=f"lrec {name}", description=inspect.getdoc(command).split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with values of the options below.")
    paths: set[str | int] = {key for key, hint in typing.get_type_hints(command).items() if hint == list[Path]}
    parser.add_function_arguments(command, as_positional=positional, skip=paths, sub_configs=True)
    for key in paths:  # several files after one option
        parser.add_argument(f"--{key}", type=Path, nargs="+", required=True, help="Files or folders.")
    return parser


def with_shipped_configs(arguments: list[str]) -> list[str]:
    """Replace each --config path that is not there by the shipped fragment of that name; UserError where neither is."""
    result = list(arguments)
    for index, argument in enumerate(arguments):
        if argument in ("-c", "--config") and index + 1 < len(arguments):
            result[index + 1] = str(find_config(arguments[index + 1]))
        elif argument.startswith("--config="):
            result[index] = f"--config={find_config(argument.removeprefix('--config='))}"
    return result


def find_config(name: str | Path) -> Path:
    """The configuration file `name`: beside the caller, else among those that come with lrec."""
    path = Path(name)
    if path.is_file():
        return path
    package = Path(__file__).parent
    # In a wheel the fragments lie in the package, in a checkout at its root.
    for root in (package / "configs", package.parents[1] / "configs"):
        shipped = root / Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else root / path
        if not path.is_absolute() and shipped.is_file():
            return shipped
    raise UserError(f"--config {name}: no such file here or among the configurations that come with lrec")


def _overview() -> str:
    lines = ["usage: lrec COMMAND [--config FILE ...] [options]; lrec COMMAND --help lists the options", ""]
    for name, meaning in LIGHTNING_COMMANDS.items():
        lines.append(f"  {name:<16}{meaning}")
    for name, (module, function, _) in OWN_COMMANDS.items():
        lines.append(f"  {name:<16}{_summary(module, function)}")
    return "\n".join(lines)


def _summary(module: str, function: str) -> str:
    doc: Any = inspect.getdoc(getattr(import_module(module), function))
    return doc.split("\n")[0].rstrip(".")
