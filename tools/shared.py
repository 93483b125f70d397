"""Small things that several tools need."""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for all tools that import this file
sys.path.append(os.getcwd())  # one's own script may stand there

from common import UserError

ROOT = Path(__file__).resolve().parent.parent


class Parser(argparse.ArgumentParser):
    """What is wrong with the arguments becomes a UserError."""

    def __init__(self, prog: str, description: str | None = None, **options):
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, formatter_class=kind, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file is missing, damaged or holds something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def check_folder(path: Path | None) -> None:
    """Raises UserError if the file cannot be made there, which is better known before a long work than after."""
    if path and not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}.")
    if path and path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it.")
    if path and not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: its folder is read-only.")


def last_step(run: Path) -> int:
    """Gradient steps in the run's log, from its last whole line; 0 if there is none."""
    try:
        with open(run / "metrics.csv", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().split(b"\n")[:-1]
        return int(lines[-1].split(b",")[0])
    except (OSError, ValueError, IndexError):
        return 0


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
