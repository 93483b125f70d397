"""What the scripts share: data, critics, evaluation and the bookkeeping of a run."""


class UserError(Exception):
    """An error that the user can fix. Its message is printed without a traceback, and the exit code is 2."""
