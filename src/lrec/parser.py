"""What every command parses its arguments with: errors of one line, and where configurations are found."""

import re
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser

from lrec.errors import UserError


class OneLineParser(ArgumentParser):
    """A parser whose errors are UserErrors of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as a UserError."""
        message = " ".join(message.split())
        if re.search(r"required: (\w+\.)?data$", message):
            message = "name a data set: --config configs/data/csv.yaml for a file of your own, or another of them"
        elif found := re.search(r"key \"data\": .*Option '(\w+)' is not accepted", message):
            message = (
                f"--data.{found[1]} is no option of the data set that was chosen; "
                "if none was, --config configs/data/csv.yaml chooses a file of your own"
            )
        raise UserError(message)


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
