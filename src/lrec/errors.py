"""The one error lrec raises for what a user did wrong."""

from operator import ge, gt, le, lt


class UserError(ValueError):
    """A mistake in the input: one sentence that names the file, row or option and the way out.

    The command line prints the sentence without a traceback and exits with 2.
    """


def check_range(
    option: str,
    value: float | None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    """UserError that names the option where its value lies outside the bounds, or is nan; None is no value."""
    if value is None:
        return
    bounds = (("at least", at_least, ge), ("above", above, gt), ("at most", at_most, le), ("below", below, lt))
    given = [(f"{words} {bound}", holds(value, bound)) for words, bound, holds in bounds if bound is not None]
    if not all(holds for _, holds in given):
        raise UserError(f"{option} must be {' and '.join(words for words, _ in given)}, got {value}")
