"""The error that lrec raises for a mistake of the user."""

from math import inf
from operator import ge, gt, le, lt
from typing import Any, get_args

_HOLDS = {"at_least": ge, "above": gt, "at_most": le, "below": lt}


class UserError(ValueError):
    """A mistake in the input: one sentence that names the file, row or option, and says what to do.

    The command line prints the sentence without a traceback and exits with 2.
    """


def check_range(option: str, value: float | None, **bounds: float) -> None:
    """Raise a UserError that names the option if its value is outside the bounds `at_least`, `above`, `at_most` and
    `below`, or is not finite. A value of None passes."""
    if value is not None and not (value < inf and all(_HOLDS[name](value, bound) for name, bound in bounds.items())):
        words = [f"{name.replace('_', ' ')} {bound}" for name, bound in bounds.items()] + ["finite"] * (value == inf)
        raise UserError(f"{option} must be {' and '.join(words)}, got {value}")


def check_choices(*given: tuple[str, object, Any]) -> None:
    """Raise a UserError that names the first option whose value its Literal type does not have: the command line
    checks this, Python does not. Each has a name, value and type."""
    for option, value, choices in given:
        if value not in get_args(choices):
            raise UserError(f"{option} {value}: choose {', '.join(map(str, get_args(choices)))}")


def check_kinds(*given: tuple[str, object, type]) -> None:
    """Raise a UserError that names the first option whose value is not of its kind. Each has a name, value and kind."""
    for option, value, kind in given:
        if not isinstance(value, kind):
            raise UserError(f"{option} must be an object of the class {kind.__name__}, got {value!r}")
