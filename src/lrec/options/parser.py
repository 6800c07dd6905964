"""What every command parses its arguments with: errors of one line, and where configurations are found."""

import re
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings

from lrec.errors import UserError
from lrec.options.yaml_files import check_config

# jsonargparse hands an option of a class on as text, and null as "None": --model.optimizer.switch null.
_load = get_loader("yaml")
set_loader("yaml", lambda text: None if text == "None" else _load(text), (yaml.YAMLError,))

# The class that a study's options name is the run's to make, not the study's.
set_parsing_settings(instantiate_subclass_spec_in_any=False)


class OneLineParser(ArgumentParser):
    """A parser whose errors are UserErrors of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as a UserError."""
        message = _with_options(" ".join(message.split()))
        if re.search(r"required: (\w+\.)?data$|--data: .*\.SequenceDataModule is abstract", message):
            message = "name a data set: --config configs/data/csv.yaml for a file of your own, or another of them"
        elif found := re.search(r"--data: no option '(\w+)'", message):
            message = (
                f"--data.{found[1]} is no option of the data set that was chosen; "
                "if none was, --config configs/data/csv.yaml chooses a file of your own"
            )
        raise UserError(message)


# What jsonargparse says where none of several types fits: their names, then what is wrong with each.
_NONE_FITS = re.compile(
    r"Does not validate against any of the Union.*? Errors: - (.*?) Given value type: \S+ \S+ Given value: (.*)"
)


def _with_options(message: str) -> str:
    """jsonargparse's message with --model.loss in place of 'Parser key "model": Parser key "loss":', and so on."""
    message = re.sub(r"- Expected a path but \S+ either not accessible or invalid - ", "", message)
    message = _NONE_FITS.sub(lambda found: _reasons(*found.groups()), message)
    message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message)
    message = re.sub(r"(--[\w.]+): --(?=\w)", r"\1.", message)
    message = re.sub(r"Option '([\w.]+)' is not accepted", r"no option '\1'", message)
    message = re.sub(
        r"Import path (\S+) does not correspond to a subclass of (\w+)", r"\1 is no subclass of \2", message
    )
    return re.sub(r"Problem with given class_path '(\S+)': ", r"\1: ", message)


def _reasons(errors: str, value: str) -> str:
    """What is wrong with the value, without what is said twice, or of types that it cannot have been meant for."""
    others = ("NoneType", "expects a function or a callable class")
    reasons = [each for each in dict.fromkeys(errors.split(" - ")) if not any(other in each for other in others)]
    return "; ".join(reasons).replace("Import path does", f"Import path {value} does")


T = TypeVar("T")


def made_of(config: dict[str, Any], name: str, base: type[T]) -> T:
    """The object that entry `name` of a run's configuration describes: `base`, or a subclass by its class path.

    Raises:
        UserError: the class is not there or does not fit, or its options do not.
    """
    parser = OneLineParser()
    parser.add_subclass_arguments(base, name, fail_untyped=False, required=True)
    made: T = parser.instantiate(parser.parse_object({name: config[name]}))[name]
    return made


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
    """The configuration file `name`: beside the caller, else among those that come with lrec.

    Raises:
        UserError: there is none, or it is no configuration.
    """
    path = Path(name)
    if path.is_file():
        check_config(path)
        return path
    package = Path(__file__).parents[1]
    # In a wheel the fragments lie in the package, in a checkout at its root.
    for root in (package / "configs", package.parents[1] / "configs"):
        shipped = root / Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else root / path
        if not path.is_absolute() and shipped.is_file():
            return shipped
    raise UserError(f"--config {name}: no such file here or among the configurations that come with lrec")
