"""A state to a file and back, exactly; a trained policy from a run directory."""

import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cloudpickle
import flax
import jax
import numpy as np

from common import UserError
from common.args import BaseArgs, combination_name, members, read_args, read_config, single
from common.seeds import side_by_side
from common.system import expanded, write_atomically

FILE = "checkpoint.msgpack"
ROOT = Path(__file__).resolve().parent.parent


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
    kinds = {"step": int, "logs": dict, "identity": str}
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


class Policy(NamedTuple):
    """A trained policy: act(observations (B, S), key) -> actions (B, A) in [-1, 1]."""

    act: Callable[[jax.Array, jax.Array], jax.Array]
    agent: Any  # init, update and act of the script
    state: Any  # of one seed
    args: BaseArgs
    step: int  # updates that the policy was trained for


def load_policy(
    directory: str | Path, seed: int | None = None, script: str | Path | None = None, **values: float
) -> Policy:
    """The policy of a run's last checkpoint.

    seed: which one of several, None is the first; script: the file of the algorithm, where it is not at the project's
    root; values: which combination of a run with --grid, load_policy(run, alpha=3).
    Raises UserError if the directory is no run, or has no such seed or combination, or more than one.
    """
    module, args, state, step = load_members(directory, script)
    fitting = [
        (i, member)
        for i, member in enumerate(members(args))
        if seed in (None, member.seed) and values.items() <= member.values.items()
    ]
    if len({combination_name(member.values) for _, member in fitting}) != 1:
        there = dict.fromkeys(member.name for member in members(args))
        raise UserError(f"{directory}: choose one seed and combination that is there: {'; '.join(there)}.")
    index, member = fitting[0]
    config = read_config(directory)["dataset"]
    args = dataclasses.replace(single(args, member.values), seed=member.seed, num_seeds=1)
    agent = module.make_agent(args, config["observation_dim"], config["action_dim"])
    own = jax.tree.map(lambda x: x[index], state.state)
    act = jax.jit(agent.act)
    return Policy(lambda observations, key: act(own, observations, key), agent, own, args, step)


def load_members(directory: str | Path, script: str | Path | None = None) -> tuple[ModuleType, BaseArgs, Any, int]:
    """The run's script as a module, its arguments, the state of all its members, and the updates they were trained
    for. script and errors as in `load_policy`."""
    config = read_config(directory)
    module = import_script(config["algo"], script)
    args, checkpoint = read_args(module.Args, directory), load(directory)

    def agent_of(args):
        return module.make_agent(args, config["dataset"]["observation_dim"], config["dataset"]["action_dim"])

    init, *_ = side_by_side(args, agent_of)
    state = restore(jax.eval_shape(init), checkpoint["state"])
    return module, args, state, checkpoint["about"]["step"]


def import_script(name: str, path: str | Path | None = None) -> ModuleType:
    """A script as a module: the file `path`, or NAME.py at the project's root. A run directory, which may be somebody
    else's, never decides what is imported. Raises UserError if it is not there."""
    file = expanded(path).resolve() if path else ROOT / f"{name}.py"
    if not name.isidentifier() or not file.exists() or (path and file.stem != name):
        raise UserError(f"the run was made by {name}.py, which is not in {ROOT}; give its path (--script).")
    loaded = sys.modules.get(name)
    if loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() == file:
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look a module up by its name
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)  # a wrapper defined in it reaches workers, which cannot import it
    if not (hasattr(module, "Args") and hasattr(module, "make_agent")):
        raise UserError(f"{file} has no Args and make_agent.")
    return module
