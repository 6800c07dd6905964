"""The one error lrec raises for what a user did wrong."""


class UserError(ValueError):
    """A mistake in the input: one sentence that names the file, row or option and the way out.

    The command line prints the sentence without a traceback and exits with 2.
    """
