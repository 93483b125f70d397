"""A state to a file and back, exactly."""

import hashlib
from pathlib import Path
from typing import Any

import flax
import jax

from common import UserError
from common.system import expanded, write_atomically

FILE = "checkpoint.msgpack"
# What a checkpoint tells besides the state, by the names that these things have in a Run.
ABOUT = ("identity", "step", "updates", "seconds", "wall_seconds", "evaluations", "episodes", "logs")


def save(directory: Path, state: Any, about: dict[str, Any]) -> None:
    """Writes a state of NumPy arrays, and what is to be known about it. A kill at any moment leaves the old or the new
    checkpoint.

    Raises UserError if the disk is full; the old one stays.
    """
    content = {"about": about, "state": flax.serialization.to_state_dict(state)}
    payload = flax.serialization.msgpack_serialize(content)
    write_atomically(directory / FILE, hashlib.sha256(payload).digest(), payload)


def load(directory: str | Path) -> dict[str, Any]:
    """The checkpoint of a run: `about`, as given to `save`, and `state`, for `restore`. Raises UserError if it is
    damaged or of another version, and OSError if it is missing."""
    path = expanded(directory) / FILE
    content = path.read_bytes()
    payload = content[32:]
    if hashlib.sha256(payload).digest() != content[:32]:
        raise UserError(f"{path} is damaged: its checksum is wrong.")
    checkpoint = flax.serialization.msgpack_restore(payload)
    if set(checkpoint) != {"about", "state"} or set(checkpoint["about"]) != set(ABOUT):
        raise UserError(f"{path} was written by another version of this project.")
    return checkpoint


def restore(state: Any, saved: Any) -> Any:
    """The saved state in the structure of `state`, on its devices. Raises UserError if shapes or types differ."""
    expected = flax.serialization.to_state_dict(state)
    kinds, its_kinds = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (expected, saved))
    if kinds != its_kinds:
        raise UserError("the checkpoint does not fit what this script makes of the run's config.json.")
    restored = flax.serialization.from_state_dict(state, saved)
    # A copy: training reuses the memory of its state, and NumPy may still own that of `restored`.
    return jax.tree.map(lambda old, new: jax.device_put(new, getattr(old, "sharding", None)).copy(), state, restored)
