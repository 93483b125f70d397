"""Files that several processes use: whole or not there, and one process at a time. No JAX."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import UserError

try:
    import fcntl
except ImportError:  # not on Windows: there, nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".new-"  # begins the names of files that are not whole yet


def expanded(path: str | Path) -> Path:
    """With the home folder for ~. Where there is none, as for ~nobody, the name stays, and is not found later."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder, to be written; then it takes the place of `path`. Where that fails, what was
    there stays. Raises UserError for what the system says."""
    # Of this process alone; the ending stays, which says what kind of picture it is.
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_parts(folder: Path) -> None:
    """What processes that were killed while they wrote have left. No other may be writing there now."""
    for part in folder.glob(f"{TEMPORARY}*"):
        part.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """All or nothing, also where the machine fails: flushed to the disk before it gets its name. Raises UserError if
    that fails."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """The same for an object."""
    write_atomically(path, json.dumps(content, indent=2))


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
