"""Your own data: an npz file, or any Minari dataset, with any gymnasium environment."""

import functools
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces.utils import flatten
from gymnasium.vector.utils import batch_space, iterate

from common import UserError
from common.data.dataset import Dataset, build
from common.data.files import checked_numbers, first_line, read_arrays
from common.system import expanded, require, sha256


def make_user_env(env: str | EnvSpec, **kwargs: Any) -> gymnasium.Env:
    """Makes any gymnasium environment, its observations flattened and its actions rescaled to [-1, 1].

    env: a gymnasium id, or the specification that a Minari dataset holds. Raises UserError if it cannot be made, or if
    its actions are not one row of continuous, bounded numbers.
    """
    what = f"--env {env.id if isinstance(env, EnvSpec) else env}"
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a module of the user's may stand there
    try:
        made = gymnasium.make(env, disable_env_checker=True, **kwargs)
    except (gymnasium.error.Error, ImportError, ValueError) as error:
        module = "If a module of yours registers it, name that too: --env MODULE:NAME."
        raise UserError(f"{what} cannot be made: {first_line(error)}. {module}") from None
    space: Any = made.action_space
    is_row = isinstance(space, gymnasium.spaces.Box) and space.dtype.kind == "f" and len(space.shape) == 1
    if not (is_row and np.isfinite([space.low, space.high]).all()):
        needed = "one row of floating-point numbers between bounds: wrap the environment in one that takes such"
        raise UserError(f"{what} takes actions of {space}; they must be {needed}.")
    half = (space.high - space.low) / 2

    def rescaled(action: np.ndarray) -> np.ndarray:  # rounding may leave the bounds
        return np.clip(half * action + (half + space.low), space.low, space.high).astype(space.dtype)

    box = gymnasium.spaces.Box(-1, 1, space.shape)
    return gymnasium.wrappers.TransformAction(gymnasium.wrappers.FlattenObservation(made), rescaled, box)


def load_file(name: str, task: int | None, make_env: Callable[..., gymnasium.Env], path: Path | None) -> Dataset:
    """Reads your own npz file; None is the environment without data. The environment serves for evaluation only."""
    if path is None:
        return build(name, make_env, task=task)
    required = ("observations", "actions", "rewards", "masks", "terminals")
    arrays = read_arrays(path, np.load, required, ("next_observations",))
    # Without the next observation, the last row of a trajectory is a transition only if nothing is bootstrapped there.
    known = (arrays["masks"] == 0) | (arrays["terminals"] == 0) | ("next_observations" in arrays)
    arrays["rows"] = np.flatnonzero(known)
    return build(name, make_env, arrays, path, task=task, source="user", sha256=sha256(path))


def load_minari(minari_id: str, env: str | None, data: str, data_dir: str | None) -> Dataset:
    """Loads any Minari dataset, minari:NAME, from Minari's folder, where Minari downloads it to if `data` allows that.

    An episode of T steps becomes T + 1 rows, the last of which starts no transition. Dict observations are flattened,
    actions are rescaled to [-1, 1]. env: a gymnasium id for evaluation. The environment of the data serves instead if
    it is None, or the dataset again, as the command line has it.
    """
    require("minari", f"--dataset {minari_id}", "minari")
    import minari

    if data_dir:
        os.environ["MINARI_DATASETS_PATH"] = str(expanded(data_dir))
    episodes = []
    try:
        dataset: Any = minari.load_dataset(minari_id.removeprefix("minari:"), download=data in ("auto", "download"))
        spec = dataset.env_spec if env in (None, minari_id) else env
        name = spec if isinstance(spec, str) else spec.id
        low, high = dataset.action_space.low.astype(float), dataset.action_space.high.astype(float)
        for episode in dataset.iterate_episodes() if data != "none" else ():
            steps = len(episode.actions)
            states = iterate(batch_space(dataset.observation_space, steps + 1), episode.observations)
            actions = np.clip(2 * (episode.actions - low) / (high - low) - 1, -1, 1)
            rows = {
                "observations": np.array([flatten(dataset.observation_space, state) for state in states]),
                "actions": np.append(actions, np.zeros((1, len(low))), axis=0),
                "rewards": np.append(episode.rewards, 0),
                "masks": np.append(1.0 - episode.terminations, 1),
                "terminals": np.arange(steps + 1) == steps,
            }
            episodes.append(rows)
    except Exception as error:  # of the network, its host, h5py, json, NumPy: Minari has none of its own
        raise UserError(f"--dataset {minari_id} cannot be loaded: {first_line(error)}.") from None
    make_env = functools.partial(make_user_env, spec)
    if data == "none":
        return build(name, make_env)
    folder = Path(dataset.storage.data_path).parent
    arrays = checked_numbers(folder, {key: np.concatenate([rows[key] for rows in episodes]) for key in episodes[0]})
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = "".join(f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)  # as of sha256sum
    digest = hashlib.sha256(lines.encode()).hexdigest()
    return build(name, make_env, arrays, folder, source="user", sha256=digest)
