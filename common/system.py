"""What a program needs of its machine: files that are whole or absent, locks, lines and progress bars. No JAX."""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common import UserError

ROOT = Path(__file__).resolve().parent.parent  # of this project


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of ~. A user that does not exist, as in ~nobody, stays as written."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name in the same folder. What is written there then takes the place of `path`.

    If that fails, the old file stays and UserError gives the system's reason.
    """
    temporary = path.with_name(f".new-{os.getpid()}-{path.name}")  # the ending stays: it says which kind of picture
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomically(path: Path, *parts: bytes) -> None:
    """Writes the parts as one file, which is flushed to the disk before it gets its name. Raises UserError if that
    fails."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object in the same way."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False).encode())


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def lock(path: Path, files: contextlib.ExitStack, wait: bool = False) -> bool:
    """Takes the lock of a folder, or of a file that is made if it is missing, until `files` is closed.

    Returns False if another process holds the lock and `wait` is false. A file system without locks returns True.
    """
    # Read access is enough for a lock, so that a group can share a folder whatever the owner's umask is.
    file = os.open(path, os.O_RDONLY if path.exists() else os.O_RDONLY | os.O_CREAT, 0o666)
    files.callback(os.close, file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def usable_cores() -> int:
    """Cores that this process may run on. A batch system may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed(package: str) -> bool:
    """Whether a package can be imported. A folder of that name, which Python would import too, does not count."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def require(package: str, what: str, extra: str) -> None:
    """Raises UserError if a package of an optional extra is missing."""
    if not installed(package):
        raise UserError(f"{what} needs {package}: uv pip install -e '.[{extra}]'")


def say(line: str) -> None:
    """Prints a line, above a progress bar if there is one."""
    try:
        tqdm.write(line) if sys.stderr.isatty() else print(line)
        sys.stdout.flush()
    except OSError:
        # Nobody reads standard output any more: `| head` has ended, or the terminal is closed. Keep training.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress_bar(what: str, total: int, unit: str, initial: int = 0, leave: bool = True, shown: bool = True) -> tqdm:
    """A bar with the mean rate and the time left; without a terminal a line a minute, or none where not `leave`.

    A context manager. total and initial count units.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=what, total=total, unit=unit, initial=initial, leave=leave, disable=not (shown and (terminal or leave)),
        dynamic_ncols=True, unit_scale=total >= 10_000, smoothing=0, miniters=1, mininterval=0.1 if terminal else 60,
    )  # fmt: skip
