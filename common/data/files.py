"""Files of data: downloaded whole or not at all, by one process, with a record of where they are from; read with the
checks that every file passes."""

import contextlib
import json
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common import UserError
from common.system import lock, progress_bar, say, sha256, write_json

TIMEOUT = 30  # seconds of silence of a host
ONE_PER_ROW = ("rewards", "masks", "terminals", "timeouts")  # arrays of one number in a row


def fetch(url: str, path: Path, check: Callable[[Path], object], data: str = "auto") -> Path:
    """Downloads a file, unless it is there, and returns its path. One process downloads, the others wait for it.

    The file gets its name last, when `check` has raised nothing and a record with address and sha256 is written. Raises
    UserError if the file is not there and cannot be downloaded: `data` does not allow it, the folder cannot be written,
    the host does not deliver, or a part or something else arrives.
    """
    try:
        if data not in ("auto", "download") and not path.exists():
            raise UserError("nothing is to be downloaded")
        return once(path, "downloading", lambda: _download(url, path, check))
    except Exception as error:  # of the system, the network, the library that opens the file
        what = f"{path} does not exist and cannot be downloaded from {url} ({first_line(error)})"
        raise UserError(f"{what}. Name the folder of a copy with --data-dir.") from None


def _download(url: str, path: Path, check: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(part, "wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            with progress_bar(f"download {path.name}", total, "byte", shown=total > 0) as bar:
                while block := answer.read(1 << 18):
                    bar.update(file.write(block))
        if (size := part.stat().st_size) < total:  # of which not every Python raises an error
            raise UserError(f"{size:,} of {total:,} bytes arrived; try again")
        check(part)
        record, digest = path.with_name(f"{path.stem}-download.json"), sha256(part)
        if read_json(record).get("sha256") != digest:  # else the older record may have a better address
            write_json(record, {"url": url, "sha256": digest})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; an empty one if the file is missing or holds something else."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads(path.read_text()))
    return {}


def once(path: Path, doing: str, make: Callable[[], object]) -> Path:
    """Makes a file by make(), unless it is there. One process does; the others say what it is doing, and wait."""
    if path.exists():  # its folder may be read-only by now
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as files:
        if not lock(file := path.with_name(f".{path.name}.lock"), files):
            say(f"another process is {doing} {path.name}; waiting for it")
            lock(file, files, wait=True)
        if not path.exists():
            make()
    return path


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
    """Returns the arrays as float32. Raises UserError unless all hold finite numbers in equally many rows."""
    length = max([1, *(len(x) for x in arrays.values() if x.ndim)])
    checked = {}
    for key, x in arrays.items():
        single = key in ONE_PER_ROW
        if x.dtype.kind not in "fiub" or x.shape[:1] != (length,) or (single and x.size != length):
            needed = f"{'one number' if single else 'numbers'} in each of {length} rows"
            raise UserError(f"{path}: '{key}' has type {x.dtype} and shape {x.shape}, needed: {needed}.")
        with np.errstate(over="ignore"):  # to infinity, which is found below
            checked[key] = x.astype(np.float32).reshape(length if single else x.shape)  # some of D4RL's have (R, 1)
        if not np.isfinite(checked[key]).all():
            bad = np.argwhere(~np.isfinite(checked[key]))[0, 0]
            raise UserError(f"{path}: '{key}' is NaN, infinite or beyond float32, first in row {bad}.")
    return checked
