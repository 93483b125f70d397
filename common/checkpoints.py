"""A state to a file and back, exactly; a trained policy from a run directory."""

import dataclasses
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from common import UserError
from common.cli import Args, args_of, read_config
from common.files import expanded, write_atomically
from common.grid import Member, combination_name, members, single
from common.seeds import over_grid

FILE = "checkpoint.msgpack"


def save(directory: Path, state: Any, progress: dict[str, Any]) -> None:
    """Writes the state and what the run's log has to know to go on. A kill at any moment leaves either the old or the
    new checkpoint. Raises UserError if the disk is full; the old one stays."""
    content = flax.serialization.to_bytes(jax.device_get(state))
    payload = flax.serialization.msgpack_serialize(progress | {"state": content})
    write_atomically(directory / FILE, hashlib.sha256(payload).digest() + payload)


def not_finite(state: Any) -> int | None:
    """Index of the first member (leading axis) with a number that is not finite."""
    arrays = [x for x in jax.tree.leaves(jax.device_get(state)) if x.dtype.kind == "f"]
    bad = (np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1)) for x in arrays)
    return min((int(i) for indices in bad for i in indices), default=None)


def load(directory: str | Path) -> dict[str, Any]:
    """The checkpoint of a run: `state` (bytes for `restore`) and what `save` was given beside it.

    Raises UserError if it is missing or damaged."""
    path = expanded(directory) / FILE
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
        raise UserError("the checkpoint does not fit what this script makes of the run's config.json.")
    # On the devices that `state` is on, if it is on any.
    return jax.tree.map(lambda old, new: jax.device_put(new, getattr(old, "sharding", None)), state, restored)


class Policy(NamedTuple):
    """A trained policy: act(observations (B, S), key) -> actions (B, A) in [-1, 1]."""

    act: Callable[[jax.Array, jax.Array], jax.Array]
    agent: Any  # init, update and act of the script
    state: Any  # of one seed
    args: Args
    step: int  # gradient steps that the policy was trained for


def load_policy(directory: str | Path, seed: int | None = None, **values: float) -> Policy:
    """The policy of a run's last checkpoint. seed: which one of several, None is the first; values: which combination
    of a run with --grid, load_policy(run, alpha=3). It comes as that of a run with this seed and these values alone.

    The script that made the run has to be importable (it is from the folder that it stands in). Raises UserError if the
    directory is not a run, has no such seed or combination, more than one, or no checkpoint yet.
    """
    agent_of, args, state, step = load_members(directory)
    (index, *others) = find_members(directory, args, seed, values)
    its_values, its_seed = members(args)[index]
    if any(members(args)[i].values != its_values for i in others):
        names = dict.fromkeys(combination_name(member.values) for member in members(args))
        raise UserError(f"{directory} has a grid; choose one of {', '.join(names)}.")
    state = jax.tree.map(lambda x: x[index], state)
    if args.grid:
        state, args = state.state, single(args, its_values)
    args = dataclasses.replace(args, seed=its_seed, num_seeds=1)
    agent = agent_of(args)
    act = jax.jit(agent.act)
    return Policy(lambda observations, key: act(state, observations, key), agent, state, args, step)


def load_members(directory: str | Path) -> tuple[Callable, Args, Any, int]:
    """agent_of(args) of the run's script, the run's arguments, the state of all its members (common/grid.py), and the
    gradient steps. Raises UserError as `load_policy` does."""
    config = read_config(directory)
    try:
        script = importlib.import_module(config["algo"])
    except ModuleNotFoundError:
        raise UserError(f"{directory} was made by {config['algo']}.py, which cannot be imported from here.") from None
    if not (hasattr(script, "Args") and hasattr(script, "make_agent")):
        raise UserError(f"{directory} was made by {config['algo']}.py, which has no Args and make_agent of its own.")

    def agent_of(args):
        return script.make_agent(args, config["dataset"]["observation_dim"], config["dataset"]["action_dim"])

    args = args_of(script.Args, directory)
    checkpoint = load(directory)
    init, *_ = over_grid(args, agent_of)
    return agent_of, args, restore(jax.eval_shape(init), checkpoint["state"]), checkpoint["step"]


def find_members(directory: str | Path, args: Args, seed: int | None, values: dict[str, float]) -> list[int]:
    """Indices of the members with this seed (None: any) and these values. Raises UserError if there are none."""
    if seed is not None and not args.seed <= seed < args.seed + args.num_seeds:
        raise UserError(f"{directory} has seeds {args.seed} to {args.seed + args.num_seeds - 1}, not {seed}.")

    def fits(member: Member) -> bool:
        return seed in (None, member.seed) and values.items() <= member.values.items()

    found = [i for i, member in enumerate(members(args)) if fits(member)]
    if not found:
        has = f"its grid is {' '.join(args.grid)}" if args.grid else "it was trained without --grid"
        raise UserError(f"{directory} has no {combination_name(values)}: {has}.")
    return found
