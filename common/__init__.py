"""What the five scripts share: data, critics, evaluation and the bookkeeping of a run."""


class UserError(Exception):
    """Something that the person at the keyboard can mend. Its one line is printed, without a traceback, and the exit
    code is 2."""
