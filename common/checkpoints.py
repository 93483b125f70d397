"""A state to a file and back, exactly; a trained policy from a run directory."""

import contextlib
import hashlib
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from common import UserError
from common.cli import Args, args_of, read_config

FILE = "checkpoint.msgpack"


def write_atomically(path: Path, content: bytes) -> None:
    """All or nothing: written to a temporary name, flushed to the disk, renamed. Raises UserError if that fails."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}.") from None


def save(directory: Path, state: Any, progress: dict[str, Any]) -> None:
    """Writes the state and what the run's log has to know to go on. A kill at any moment leaves either the old or the
    new checkpoint. Raises UserError if parameters are not finite (the old one stays) or the disk is full."""
    state = jax.device_get(state)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(state) if x.dtype.kind == "f"):
        raise UserError("parameters are not finite.")
    payload = flax.serialization.msgpack_serialize(progress | {"state": flax.serialization.to_bytes(state)})
    write_atomically(directory / FILE, hashlib.sha256(payload).digest() + payload)


def load(directory: str | Path) -> dict[str, Any]:
    """The checkpoint of a run: `state` (bytes for `restore`) and what `save` was given beside it.

    Raises UserError if it is missing or damaged."""
    path = Path(directory) / FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        raise UserError(f"{path} is damaged: its checksum is wrong.")
    return flax.serialization.msgpack_restore(payload)


def restore(state: Any, content: bytes) -> Any:
    """The saved state in the structure of `state`. Raises UserError if shapes or types differ."""
    try:
        restored = flax.serialization.from_bytes(state, content)
        same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, state, restored)
    except (ValueError, KeyError, AttributeError):
        same = False
    if not jax.tree.all(same):
        raise UserError("the checkpoint does not fit the run's config.json.")
    # On the devices that `state` is on, if it is on any.
    return jax.tree.map(lambda old, new: jax.device_put(new, getattr(old, "sharding", None)), state, restored)


class Policy(NamedTuple):
    """A trained policy: act(observations (B, S), key) -> actions (B, A) in [-1, 1]."""

    act: Callable[[jax.Array, jax.Array], jax.Array]
    agent: Any  # init, update and act of the script
    state: Any  # of one seed
    args: Args
    step: int  # gradient steps that the policy was trained for


def load_policy(directory: str | Path, seed: int | None = None) -> Policy:
    """The policy of a run's last checkpoint. seed: which one of several, None is the first.

    The script that made the run has to be importable (it is from the folder that it stands in). Raises UserError if the
    directory is not a run, or has no such seed or no checkpoint yet.
    """
    config = read_config(directory)
    try:
        script = importlib.import_module(config["algo"])
    except ModuleNotFoundError:
        raise UserError(f"{directory} was made by {config['algo']}.py, which cannot be imported from here.") from None
    args = args_of(script.Args, directory)
    index = 0 if seed is None else seed - args.seed
    if not 0 <= index < args.num_seeds:
        raise UserError(f"{directory} has seeds {args.seed} to {args.seed + args.num_seeds - 1}, not {seed}.")
    agent = script.make_agent(args, config["dataset"]["observation_dim"], config["dataset"]["action_dim"])
    keys = jax.ShapeDtypeStruct((args.num_seeds, 2), jnp.uint32)
    checkpoint = load(directory)
    state = restore(jax.eval_shape(jax.vmap(agent.init), keys), checkpoint["state"])
    state = jax.tree.map(lambda x: x[index], state)
    act = jax.jit(agent.act)
    return Policy(lambda observations, key: act(state, observations, key), agent, state, args, checkpoint["step"])
