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
from common.args import BaseArgs, members, read_args, read_config, single
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
    there = members(args)
    fitting = [x for x in there if seed in (None, x.seed) and values.items() <= x.values.items()]
    if not fitting or fitting[0].values != fitting[-1].values:
        names = "; ".join(member.name for member in there)
        raise UserError(f"{directory}: choose one seed and combination that is there: {names}.")
    member, index = fitting[0], there.index(fitting[0])
    data = read_config(directory)["dataset"]
    args = dataclasses.replace(single(args, member.values), seed=member.seed, num_seeds=1)
    agent = module.make_agent(args, data["observation_dim"], data["action_dim"])
    own = jax.tree.map(lambda x: x[index], state.state)
    act = jax.jit(agent.act)
    return Policy(lambda observations, key: act(own, observations, key), agent, own, args, step)


def load_members(directory: str | Path, script: str | Path | None = None) -> tuple[ModuleType, BaseArgs, Any, int]:
    """The run's script as a module, its arguments, the state of all its members, and the updates they were trained
    for. script and errors as in `load_policy`."""
    config = read_config(directory)
    module, data = import_script(config["algo"], script), config["dataset"]
    args, checkpoint = read_args(module.Args, directory), states.load(directory)
    init, *_ = side_by_side(args, lambda x: module.make_agent(x, data["observation_dim"], data["action_dim"]))
    state = states.restore(jax.eval_shape(init), checkpoint["state"])
    return module, args, state, checkpoint["about"]["step"]


def import_script(name: str, path: str | Path | None = None) -> ModuleType:
    """A script as a module: the file `path`, or NAME.py at the project's root. A run directory, which may be somebody
    else's, never decides what is imported. Raises UserError if it is not there."""
    file = expanded(path).resolve() if path else ROOT / f"{name}.py"
    if not name.isidentifier() or not file.exists() or file.stem != name:
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
    return module
