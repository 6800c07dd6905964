"""Class paths: the classes that they name, and which of these a stored run may import."""

import re
from importlib import import_module
from typing import Any

from lrec.errors import UserError

_OWN = ("lrec.", "torch.nn.", "torch.optim.")
# Options that expect a class also take its path alone, and looking for the class imports its module. So every text with
# a dot counts as a class path, except the values of these options of lrec's own classes.
TEXT = {
    *("path", "store", "data_dir", "domains", "only_domain", "validate_from", "test_from", "test_until", "size"),
    *("item_vectors", "user_column", "item_column", "time_column", "domain_column", "rating_column", "event_column"),
    *("target_events", "categories", "numbers", "lists", "id_column", "warm_start"),
}
# A message about a class path whose module does not exist, and what the message becomes.
NO_MODULE = (r"( (\w+)\.\w+: No module named '\2')$", r"\1: is \2.py in the current folder?")


def imported(path: str, option: str) -> Any:
    """The object with the path `path`, such as my_parts.Mine, given for `option`; UserError if there is none."""
    module, _, attribute = path.rpartition(".")
    if not module or module.startswith("."):
        raise UserError(f"{option} {path} is no path such as my_parts.Mine")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(re.sub(*NO_MODULE, f"{option} {path}: {error}")) from error


def class_path(kind: type) -> str:
    """The path of a class: lrec.X for lrec's own classes."""
    own = kind.__module__.startswith("lrec.")
    return f"lrec.{kind.__name__}" if own else f"{kind.__module__}.{kind.__qualname__}"


def check_trusted(stored: Any, trust: bool, where: object) -> None:
    """UserError if options or a network's shape, stored in the file or folder `where`, name a class that is not from
    lrec, torch.nn or torch.optim. With `trust`, every class is accepted."""
    match stored:
        case dict():
            for name, value in stored.items():
                if isinstance(value, dict) or str(name).rpartition(".")[2] not in TEXT:
                    check_trusted(value, trust, where)
        case list() | tuple():
            for value in stored:
                check_trusted(value, trust, where)
        case str() if "." in stored and not stored.startswith(_OWN) and not trust:
            told = f"{where} names the class {stored}, which is not lrec's own"
            raise UserError(f"{told}: --trust (trust=True in Python) imports it")
