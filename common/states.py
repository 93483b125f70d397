"""A state to a file and back, exactly."""

import hashlib
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from common import UserError
from common.system import expanded, write_atomically

FILE = "checkpoint.msgpack"


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
    missing, damaged, or of another version."""
    path = expanded(directory) / FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    payload = content[32:]
    if hashlib.sha256(payload).digest() != content[:32]:
        raise UserError(f"{path} is damaged: its checksum is wrong.")
    try:
        checkpoint = flax.serialization.msgpack_restore(payload)
    except Exception:  # whatever is not MessagePack raises
        checkpoint = None
    about = checkpoint.get("about") if isinstance(checkpoint, dict) and "state" in checkpoint else None
    kinds = {"step": int, "evaluations": list, "logs": dict, "identity": str}
    if not isinstance(about, dict) or any(type(about.get(name)) is not kind for name, kind in kinds.items()):
        raise UserError(f"{path} was written by another version of this project.")
    return checkpoint


def restore(state: Any, saved: Any) -> Any:
    """The saved state in the structure of `state`, on its devices. Raises UserError if shapes or types differ."""
    expected: Any = jax.tree.structure(flax.serialization.to_state_dict(state))
    same = expected == jax.tree.structure(saved)
    try:
        restored = flax.serialization.from_state_dict(state, saved)
        same &= jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, state, restored))
    except (ValueError, KeyError, AttributeError):
        same = False
    if not same:
        raise UserError("the checkpoint does not fit what this script makes of the run's config.json.")
    # A copy: training reuses the memory of its state, and NumPy may still own that of `restored`.
    copies = jax.tree.map(lambda old, new: jax.device_put(new, getattr(old, "sharding", None)), state, restored)
    return jax.tree.map(lambda x: x.copy(), copies)


def not_finite(state: Any) -> int | None:
    """Index of the first member (leading axis) with a number that is not finite. state: of NumPy arrays."""
    arrays = [x for x in jax.tree.leaves(state) if x.dtype.kind == "f"]
    bad = (np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1)) for x in arrays)
    return min((int(i) for indices in bad for i in indices), default=None)
