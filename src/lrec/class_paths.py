"""Classes and functions of a user's own, by their class path."""

from importlib import import_module
from typing import Any

from lrec.errors import UserError


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
