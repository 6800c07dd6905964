"""The files of --config: finds them, and reads them as YAML of plain values."""

from itertools import pairwise
from os.path import isfile
from pathlib import Path
from typing import Any

import yaml

from lrec.errors import UserError

# Most values of a file, with its aliases written out; a run's configuration has a few hundred.
MOST_VALUES = 100_000
_KNOWN = {*yaml.SafeLoader.yaml_constructors, "tag:yaml.org,2002:merge"}


def read_config(path: Path) -> Any:
    """The values in a file, None if it is empty. UserError if it cannot be read, is no YAML, names a class by a tag,
    contains itself, or has more than MOST_VALUES values with its aliases written out. A log is refused by its name,
    because the YAML parser would take minutes."""
    if path.suffix not in (".yaml", ".yml", ".json"):
        wrong = f"{path} is no configuration, whose name ends in .yaml"
        raise UserError(f"{wrong}: to read a log, write --config data/csv.yaml --data.path {path}")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if root is not None and _count(root, {}, path) > MOST_VALUES:
            raise UserError(f"{path}: its aliases stand for more than {MOST_VALUES:,} values: write out what is meant")
        return None if root is None else yaml.SafeLoader("").construct_document(root)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text file, and so no configuration") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{path}: its values are nested too deeply") from error
    except UserError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def _count(node: yaml.Node, counted: dict[int, int], path: Path) -> int:
    row = node.start_mark.line + 1
    if node.tag not in _KNOWN:
        raise UserError(f"{path}, row {row}: the tag {node.tag} is not allowed; name a class by its class_path")
    if id(node) not in counted:
        counted[id(node)] = -1  # being counted
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
        parts = node.value if isinstance(node, yaml.SequenceNode) else parts
        counted[id(node)] = 1 + sum(_count(part, counted, path) for part in parts)
    if counted[id(node)] < 0:
        raise UserError(f"{path}, row {row}: a value contains itself")
    return counted[id(node)]


def with_shipped_configs(arguments: list[str], data_is_class: bool = True) -> list[str]:
    """Replace each --config path that does not exist by the file of that name in lrec; UserError if there is none, or
    if --data, which describes a data set unless `data_is_class` is false, names a file that is no configuration."""
    result = list(arguments)
    for index, (before, argument) in enumerate(pairwise(["", *arguments])):
        if before in ("-c", "--config"):
            result[index] = str(find_config(argument))
        elif argument.startswith("--config="):
            result[index] = f"--config={find_config(argument.removeprefix('--config='))}"
        data = argument if before == "--data" else argument.partition("--data=")[2]
        if data_is_class and isfile(data):
            read_config(Path(data))
    return result


def find_config(name: str | Path) -> Path:
    """The configuration file `name`: a path from the current folder, or else a file that comes with lrec. UserError if
    there is none, or if it is no configuration."""
    path = Path(name)
    if path.is_file():
        read_config(path)
        return path
    package, shipped = Path(__file__).parents[1], path if path.parts[:1] == ("configs",) else Path("configs", path)
    for root in (package, package.parents[1]):  # of a wheel, of a checkout
        if (root / shipped).is_file():
            return root / shipped
    raise UserError(f"--config {name}: no such file here or among the configurations that come with lrec")
