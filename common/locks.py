"""A lock on a file or folder, which ends with the process that holds it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: there, nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment]


def lock(path: Path, files: contextlib.ExitStack, wait: bool = False) -> bool:
    """Takes the lock of a folder, or of a file that is made if need be, until `files` is closed. False if another
    process holds it and this one is not to wait; True also on a file system without locks."""
    if fcntl is None:
        return True
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    files.callback(os.close, file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Lets in one process at a time, by the lock of this file; the others say what they wait for: "another process is
    {doing}"."""
    with contextlib.ExitStack() as files:
        if not lock(path, files):
            print(f"another process is {doing}; waiting for it", flush=True)
            lock(path, files, wait=True)
        yield
