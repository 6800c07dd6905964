"""Class paths: what they name, and which of them a stored run may have imported."""

from importlib import import_module
from typing import Any

from lrec.errors import UserError

_OWN = ("lrec.", "torch.nn.", "torch.optim.")
# A class may be given as its path alone wherever one is expected, and to look for it imports its module. So every text
# with a dot counts as one, but for the values of these options of lrec's own classes.
TEXT = {
    *("path", "store", "data_dir", "domains", "only_domain", "validate_from", "test_from", "size", "warm_start"),
    *("item_vectors", "user_column", "item_column", "time_column", "domain_column", "rating_column", "event_column"),
    *("target_events", "categories", "numbers", "lists", "id_column"),
}


def imported(path: str, option: str) -> Any:
    """What a class path such as my_parts.Mine names, the value of `option`; UserError where there is none."""
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{option} {path}: {error}") from error


def class_path(kind: type) -> str:
    """What names a class: lrec.X for lrec's own."""
    own = kind.__module__.startswith("lrec.")
    return f"lrec.{kind.__name__}" if own else f"{kind.__module__}.{kind.__qualname__}"


def check_trusted(stored: Any, trust: bool, where: object) -> None:
    """UserError where options or a network's shape, as the file or folder `where` has them, name a class that is not
    trusted and neither lrec's own nor of torch.nn and torch.optim: no other is imported."""
    match stored:
        case dict():
            for name, value in stored.items():
                if isinstance(value, dict) or str(name).rpartition(".")[2] not in TEXT:
                    check_trusted(value, trust, where)
        case list() | tuple():
            for value in stored:
                check_trusted(value, trust, where)
        case str() if "." in stored and not stored.startswith(_OWN) and not trust:
            raise UserError(
                f"{where} names the class {stored}, which is not lrec's own: --trust (trust=True in Python) imports it"
            )
