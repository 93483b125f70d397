"""What the five scripts share: data, critics, evaluation and the bookkeeping of a run."""

import importlib.util


class UserError(Exception):
    """Something that the person at the keyboard can mend. Its one line is printed, without a traceback, and the exit
    code is 2."""


def installed(package: str) -> bool:
    """Whether it can be imported. A mere folder of that name, which Python would import too, is not the package."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
