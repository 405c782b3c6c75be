"""The one exception that a user is meant to see."""


class PdiffError(Exception):
    """Input or state that the user can mend.

    Its message names the field or file, the value found, and what is allowed. `pdiff.main`
    prints it on one line, without a traceback, and exits with a non-zero code.
    """
