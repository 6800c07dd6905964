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
    "target_events",
}


def imported(path: str, option: str) -> Any:
    """What a class path such as my_parts.Mine names; the current folder is importable from every command.

    Args:
        path: Module and name, with a dot between them.
        option: The option that it is the value of, for the error.

    Raises:
        UserError: there is no such module, or it has nothing of that name.
    """
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{option} {path}: {error}") from error


def class_path(kind: type) -> str:
    """What names a class: lrec.X for lrec's own."""
    own = kind.__module__.startswith("lrec.")
    return f"lrec.{kind.__name__}" if own else f"{kind.__module__}.{kind.__qualname__}"


def check_trusted(stored: dict[str, Any], trust: bool, where: object) -> None:
    """What a stored run names is imported only where it is lrec's own or of torch.nn and torch.optim, or the user
    trusts it.

    Args:
        stored: Options or a network's shape, nested or flat, as `where` holds them.
        trust: Whether other classes may be imported.
        where: The file or folder, for the message.

    Raises:
        UserError: a class is not lrec's own, and it is not trusted.
    """
    for name, value in stored.items() if not trust else ():
        if isinstance(value, dict) or str(name).rpartition(".")[2] not in TEXT:
            _refuse_foreign(value, where)


def _refuse_foreign(value: Any, where: object) -> None:
    if isinstance(value, dict):
        check_trusted(value, False, where)
    elif isinstance(value, list | tuple):
        for each in value:
            _refuse_foreign(each, where)
    elif isinstance(value, str) and "." in value and not value.startswith(_OWN):
        raise UserError(
            f"{where} names the class {value}, which is not lrec's own: --trust (trust=True in Python) imports it"
        )
