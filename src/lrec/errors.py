"""The one error lrec raises for what a user did wrong."""

from operator import ge, gt, le, lt

_HOLDS = {"at_least": ge, "above": gt, "at_most": le, "below": lt}


class UserError(ValueError):
    """A mistake in the input: one sentence that names the file, row or option, and says what to do.

    The command line prints the sentence without a traceback and exits with 2.
    """


def check_range(option: str, value: float | None, **bounds: float) -> None:
    """UserError that names the option where its value is not `at_least`, `above`, `at_most` or `below` its bounds, or
    is nan; None is no value."""
    if value is not None and not all(_HOLDS[name](value, bound) for name, bound in bounds.items()):
        words = " and ".join(f"{name.replace('_', ' ')} {bound}" for name, bound in bounds.items())
        raise UserError(f"{option} must be {words}, got {value}")
