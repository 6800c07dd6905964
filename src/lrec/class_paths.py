"""Class paths: what they name, and which of them a stored run may have imported."""

from importlib import import_module
from typing import Any

from lrec.errors import UserError

_OWN = ("lrec.", "torch.nn.", "torch.optim.")
_NAME_A_CLASS = ("class_path", "attention", "norm", "mlp", "positions")


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


def check_trusted(stored: Any, trust: bool, where: object) -> None:
    """What a stored run names is imported only where it is lrec's own or of torch.nn and torch.optim, or the user
    trusts it.

    Args:
        stored: Options or a network's shape, nested or flat, as `where` holds them.
        trust: Whether other classes may be imported.
        where: The file or folder, for the message.

    Raises:
        UserError: a class is not lrec's own, and it is not trusted.
    """
    for name, value in stored.items() if isinstance(stored, dict) else enumerate(stored):
        if isinstance(value, dict | list):
            check_trusted(value, trust, where)
        elif not trust and _names_a_class(name, value) and not value.startswith(_OWN):
            raise UserError(
                f"{where} names the class {value}, which is not lrec's own: --trust (trust=True in Python) imports it"
            )


def _names_a_class(name: object, value: object) -> bool:
    return isinstance(value, str) and "." in value and str(name).rpartition(".")[2] in _NAME_A_CLASS
