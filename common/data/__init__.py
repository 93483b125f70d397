"""From an environment's name, or a file, to a `Dataset`. What its arrays mean stands in dataset.py."""

import functools

import numpy as np

from common import UserError
from common.data.bandits import BANDITS, load_bandit
from common.data.dataset import Dataset
from common.system import expanded


def load_dataset(
    env: str,
    task: int | None = None,
    data: str = "auto",
    data_dir: str | None = None,
    dataset: str | None = None,
    collect_episodes: int | None = None,
    p_random: float = 0.0,
    rewards: str = "usual",
) -> Dataset:
    """Loads transitions and evaluation environment for `env`.

    env: short OGBench name (antmaze-large-navigate), full OGBench id, a D4RL name (hopper-medium, antmaze-umaze-v0),
        `bandit`, `bandit-corners`, or, with `dataset`, any gymnasium id.
    task: OGBench task 1 to 5; None is the benchmark's default.
    data: `cache` reads files that are there, `download` asks the benchmark's host, `collect` takes what was collected
        on this machine or collects it, `auto` tries them in this order. `none` loads the environment without data.
    data_dir: folder of the files; None is OGBench's, D4RL's or Minari's own. Collected files are in its subfolder
        `collected`.
    dataset: your own npz file; one without rewards, in OGBench's format, is labelled with the task's. For a D4RL name,
        an HDF5 file in D4RL's layout. minari:NAME is any Minari dataset.
    collect_episodes: training episodes to collect; None is OGBench's number.
    p_random: share of the actions that collecting replaces by random ones.
    rewards: how D4RL's are treated (d4rl.treat_rewards).

    Raises UserError for anything that the user can fix: a name, a missing or damaged file, no network.
    """
    if env in BANDITS and not dataset and task is None and rewards == "usual":
        return load_bandit(env, data)
    from common.data import d4rl, files, ogbench, own  # not above, because a bandit does not need them

    minari = dataset if dataset and dataset.startswith("minari:") else None
    named = None if minari else ogbench.resolve_name(env, task)
    in_d4rl = None if minari or named else d4rl.resolve(env)
    if task is not None and not named:
        raise UserError(f"--task belongs to OGBench's environments; {env} has no tasks.")
    if rewards != "usual" and not in_d4rl:
        raise UserError(f"--rewards {rewards} belongs to D4RL's datasets.")
    if minari:
        return own.load_minari(minari, env, data, data_dir)
    path = expanded(dataset) if dataset and data != "none" else None
    if path and not path.exists():
        raise UserError(f"--dataset {path} does not exist.")
    if named:
        # OGBench's files hold no rewards: they are computed from the positions.
        if not path or not files.read_arrays(path, np.load, (), ("rewards",)):
            folder = expanded(data_dir or ogbench.CACHE_DIR)
            return ogbench.load(*named, data, folder, collect_episodes, p_random, path)
        return own.load_file(*named, functools.partial(ogbench.make_ogbench_env, *named), path)
    if in_d4rl:
        return d4rl.load(in_d4rl, data, data_dir, path, rewards)
    if path or data == "none":
        return own.load_file(env, None, functools.partial(own.make_user_env, env), path)
    raise ogbench.unknown_name(env, [*d4rl.FILES, *BANDITS])
