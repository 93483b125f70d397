"""Files of data: downloaded whole or not at all, by one process, with a record of where they are from; read with the
checks that every file passes."""

import contextlib
import http.client
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common import UserError
from common.system import lock, progress_bar, replacing, say, sha256, write_json

ONE_PER_ROW = ("rewards", "masks", "terminals", "timeouts")  # arrays of one number in a row


class Unreachable(UserError):
    """A file is not there, and cannot be downloaded."""

    def __init__(self, url: str, path: Path, why: str):
        what = f"{path} does not exist and cannot be downloaded from {url} ({why})"
        super().__init__(f"{what}. Name the folder of a copy with --data-dir.")


def fetch(url: str, path: Path, check: Callable[[Path], object], data: str = "auto", timeout: float = 30) -> None:
    """Downloads a file, unless it is there. One process downloads, the others wait for it.

    The file gets its name last, when `check` has raised nothing and a record with address and sha256 is written. Raises
    Unreachable if the host does not deliver, the folder cannot be written or `data` does not allow a download, and
    another UserError if a part or something else arrives. timeout: seconds of silence.
    """
    if path.exists():
        return
    if data not in ("auto", "download"):
        raise Unreachable(url, path, "nothing is to be downloaded")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path.with_name(f".{path.name}.lock"), f"downloading {path.name}"):
            if not path.exists():
                _download(url, path, check, timeout)
    except OSError as error:
        raise Unreachable(url, path, first_line(error)) from None


def _download(url: str, path: Path, check: Callable[[Path], object], timeout: float) -> None:
    for part in path.parent.glob(f".new-*-{path.name}"):  # of a process that was killed
        part.unlink()
    with replacing(path) as temporary:
        try:
            # x: a link planted there is not followed
            with urllib.request.urlopen(url, timeout=timeout) as answer, open(temporary, "xb") as file:
                total = int(answer.headers.get("Content-Length") or 0)
                with progress_bar(f"download {path.name}", total, "byte", shown=total > 0) as bar:
                    while block := answer.read(1 << 18):
                        bar.update(file.write(block))
        except http.client.IncompleteRead:
            pass  # which not every Python raises
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(url, path, first_line(error)) from None
        if (size := temporary.stat().st_size) < total:
            raise UserError(f"{url} did not arrive whole ({size:,} of {total:,} bytes); try again.")
        try:
            check(temporary)
        except Exception as error:  # of the library that opens it
            raise UserError(f"what {url} sent is not {path.name}: {first_line(error)}. Try again.") from None
        record, digest = path.with_name(f"{path.stem}-download.json"), sha256(temporary)
        if read_json(record).get("sha256") != digest:  # else the older record may have a better address
            write_json(record, {"url": url, "sha256": digest})


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; an empty one if the file is missing or holds something else."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    return {}


@contextlib.contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Lets in one process at a time, by the lock of this file. The others print "another process is {doing}"."""
    with contextlib.ExitStack() as files:
        if not lock(path, files):
            say(f"another process is {doing}; waiting for it")
            lock(path, files, wait=True)
        yield


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or the exception's name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def read_arrays(
    path: Path, open_file: Callable, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Returns the named arrays of a file, as `checked_numbers` does. open_file(path) is a mapping to close: np.load,
    which does not load pickled objects, or h5py.File.

    Raises UserError if the file cannot be read or lacks a required array.
    """
    try:
        with open_file(path) as file:
            held = list(file)
            arrays = {key: np.asarray(file[key][()]) for key in (*required, *optional) if key in held}
    except Exception as error:  # of the system, zipfile, zlib, NumPy, HDF5
        why = f"{first_line(error)}; if it is damaged, delete it and get it again."
        raise UserError(f"{path} cannot be read: {why}") from None
    if missing := [key for key in required if key not in arrays]:
        raise UserError(f"{path} has no '{missing[0]}'; it holds {', '.join(held[:20]) or 'nothing'}.")
    return checked_numbers(path, arrays)


def checked_numbers(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays as float32, and `button_states` as they are.

    Raises UserError unless all hold finite numbers in as many rows as the first has.
    """
    length = len(np.atleast_1d(next(iter(arrays.values())))) or 1
    checked = {}
    for key, x in arrays.items():
        rows = x.shape[:1] == (length,) and (x.size == length or key not in ONE_PER_ROW)
        if x.dtype.kind not in "fiub" or not rows:
            needed = f"{'one number' if key in ONE_PER_ROW else 'numbers'} in each of {length} rows"
            raise UserError(f"{path}: '{key}' has type {x.dtype} and shape {x.shape}, needed: {needed}.")
        with np.errstate(over="ignore"):  # to infinity, which is found below
            x = x if key == "button_states" else x.astype(np.float32)
        if not np.isfinite(x).all():
            bad = np.flatnonzero(~np.isfinite(x.reshape(length, -1)).all(axis=1))[0]
            raise UserError(f"{path}: '{key}' is NaN, infinite or beyond float32, first in row {bad}.")
        checked[key] = x.reshape(-1) if key in ONE_PER_ROW else x  # some of D4RL's files have (R, 1)
    return checked
