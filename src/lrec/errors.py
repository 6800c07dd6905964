"""The error that lrec raises for a mistake of the user."""

from operator import ge, gt, le, lt

_HOLDS = {"at_least": ge, "above": gt, "at_most": le, "below": lt}


class UserError(ValueError):
    """A mistake in the input: one sentence that names the file, row or option, and says what to do.

    The command line prints the sentence without a traceback and exits with 2.
    """


def check_range(option: str, value: float | None, **bounds: float) -> None:
    """Raise a UserError that names the option if its value is outside the bounds `at_least`, `above`, `at_most` and
    `below`, or is nan. A value of None passes."""
    if value is not None and not all(_HOLDS[name](value, bound) for name, bound in bounds.items()):
        words = " and ".join(f"{name.replace('_', ' ')} {bound}" for name, bound in bounds.items())
        raise UserError(f"{option} must be {words}, got {value}")
