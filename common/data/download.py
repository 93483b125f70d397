"""Downloads a file: whole or not at all, by one process, with a record of where it is from."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from common import UserError
from common.data.dataset import first_line
from common.system import alone, progress_bar, replacing, sha256, write_json


class Unreachable(Exception):
    """A file cannot be downloaded, and why."""


def fetch(url: str, path: Path, check: Callable[[Path], object], data: str = "auto", timeout: float = 30) -> None:
    """Downloads a file, unless it is there. One process downloads, the others wait for it.

    The file gets its name last, when `check` has raised nothing and a record with address and sha256 is written. Raises
    Unreachable if the host does not deliver or `data` is `cache`, OSError if the folder cannot be written, UserError if
    a part or something else arrives. timeout: seconds of silence.
    """
    if path.exists():
        return
    if data == "cache":
        raise Unreachable("nothing is to be downloaded")
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path.with_name(f".{path.name}.lock"), f"downloading {path.name}"):
        if path.exists():
            return
        for part in path.parent.glob(f".new-*-{path.name}"):  # of a process that was killed
            part.unlink()
        with replacing(path) as temporary:
            with open(temporary, "xb") as file:  # x: a link planted there is not followed
                _receive(url, file, timeout)
            try:
                check(temporary)
            except Exception as error:  # of the library that opens it
                raise UserError(f"what {url} sent is not {path.name}: {first_line(error)}. Try again.") from None
            digest = sha256(temporary)
            # The record of an earlier download of the same file may have a better address.
            if read_json(record_path(path)).get("sha256") != digest:
                write_json(record_path(path), {"url": url, "sha256": digest})


def _receive(url: str, file: BinaryIO, timeout: float) -> None:
    """Writes what the host sends, with a progress bar."""
    import http.client
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            with progress_bar(f"download {url.rpartition('/')[2]}", total, "byte", shown=total > 0) as bar:
                while block := answer.read(1 << 18):
                    bar.update(file.write(block))
    except http.client.IncompleteRead:
        pass  # which not every Python raises
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unreachable(first_line(error)) from None
    if file.tell() < total:
        raise UserError(f"{url} did not arrive whole ({file.tell():,} of {total:,} bytes); try again.")


def record_path(path: Path) -> Path:
    """Returns where `fetch` writes what it knows about a file: url and sha256."""
    return path.with_name(f"{path.stem}-download.json")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; an empty one if the file is missing or holds something else."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    return {}
