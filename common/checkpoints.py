"""A trained policy from a run directory, for playing it, plots and your own code."""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cloudpickle
import jax

from common import UserError, states
from common.args import BaseArgs, combination_name, members, read_args, read_config, single
from common.seeds import side_by_side
from common.system import ROOT, expanded


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
    args, checkpoint = read_args(module.Args, directory), states.load(directory)

    def agent_of(args):
        return module.make_agent(args, config["dataset"]["observation_dim"], config["dataset"]["action_dim"])

    init, *_ = side_by_side(args, agent_of)
    state = states.restore(jax.eval_shape(init), checkpoint["state"])
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
