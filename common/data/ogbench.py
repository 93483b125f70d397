"""OGBench (arXiv 2410.20092): names, tasks, environments, and where a file is from."""

import difflib
import functools
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from common import UserError
from common.data.dataset import MARGINS_ADD_UP, Dataset, build
from common.data.files import fetch, first_line, read_arrays, read_json
from common.system import expanded, sha256

OFFICIAL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
CACHE_DIR = Path("~/.ogbench/data")  # ogbench's own, so that files are shared with other projects; ours in `collected`

# Singletask versions exist for all of these in ogbench >= 1.2.
NAVIGATE, PLAY = ("navigate", "stitch"), ("play", "noisy")
OGBENCH_NAMES = [
    *(f"pointmaze-{size}-{kind}" for size in ("medium", "large", "giant", "teleport") for kind in NAVIGATE),
    *(f"antmaze-{size}-{kind}" for size in ("medium", "large", "giant", "teleport") for kind in NAVIGATE),
    *(f"antmaze-{size}-explore" for size in ("medium", "large", "teleport")),
    *(f"humanoidmaze-{size}-{kind}" for size in ("medium", "large", "giant") for kind in NAVIGATE),
    *(f"antsoccer-{field}-{kind}" for field in ("arena", "medium") for kind in NAVIGATE),
    *(f"cube-{count}-{kind}" for count in ("single", "double", "triple", "quadruple") for kind in PLAY),
    *(f"scene-{kind}" for kind in PLAY),
    *(f"puzzle-{size}-{kind}" for size in ("3x3", "4x4", "4x5", "4x6") for kind in PLAY),
]
DEFAULT_TASK = {"antsoccer": 4, "cube": 2, "scene": 2, "puzzle": 4}  # the benchmark's; 1 elsewhere


def resolve_name(env: str, task: int | None = None) -> tuple[str, int] | None:
    """Returns short name and task for a short name or a full id (antmaze-large-navigate-singletask-task3-v0), None for
    a name that OGBench does not have.

    Raises UserError for a task that there is not, or two tasks.
    """
    match = re.fullmatch(r"(?P<name>.*?)(-singletask(-task(?P<task>\d+))?)?(-v0)?", env, re.DOTALL)
    if not match or match["name"] not in OGBENCH_NAMES:
        return None
    if match["task"] and task not in (None, int(match["task"])):
        raise UserError(f"--env {env} names task {match['task']} and --task says {task}; give one of them.")
    if task is None:
        task = int(match["task"] or DEFAULT_TASK.get(env.split("-")[0], 1))
    if not 1 <= task <= 5:
        raise UserError(f"task {task} does not exist: every OGBench environment has tasks 1 to 5.")
    return match["name"], task


def unknown_name(env: str, others: Sequence[str] = ()) -> UserError:
    """Returns the message for a name that no benchmark has, with those that look like it. others: known names too."""
    known = [*OGBENCH_NAMES, *others]
    begin = [name for name in known if name.startswith(env.lower())]  # antmaze: the medium one's -navigate
    alike = dict.fromkeys([*begin, *difflib.get_close_matches(env.lower(), known, n=3, cutoff=0)])
    close = ", ".join([*alike][:3])
    return UserError(f"unknown environment '{env}'; did you mean {close}? For your own data add --dataset FILE.npz.")


# Of a screen that is not there, of an environment's age, and of its precision at each use of an action space.
warnings.filterwarnings("ignore", module="glfw|gymnasium|minari")


def make_ogbench_env(name: str, task: int, **kwargs: Any) -> gymnasium.Env:
    """Makes the evaluation environment of a singletask OGBench dataset.

    Success is computed on the state after the action (`success_timing='post'`), as in OGBench 1.1.0, with which the
    papers' numbers were made. Newer versions compute it on the state before the action.
    """
    env_id = f"{name.rpartition('-')[0]}-singletask-task{task}-v0"
    return make_raw_ogbench_env(env_id, success_timing="post", **kwargs)


def make_raw_ogbench_env(env_id: str, **kwargs: Any) -> gymnasium.Env:
    """Makes any of OGBench's environments."""
    return in_mujoco(lambda: gymnasium.make(f"ogbench:{env_id}", disable_env_checker=True, **kwargs))


def in_mujoco(make: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    """Makes an environment by make(), with contacts as before MuJoCo 3.5 (dataset.py). Half of each margin is the same
    where both are equal.

    Removes the temporary files: OGBench writes each maze to an XML file, which MuJoCo reads once, and leaves the file.
    Raises UserError if MuJoCo cannot be imported.
    """
    try:
        import mujoco
    except Exception as error:  # of the renderer that MUJOCO_GL names, each of which has its own
        raise UserError(f"MuJoCo cannot be imported: {first_line(error)}.") from None
    before = tempfile.tempdir
    mujoco.set_mju_user_warning(lambda message: None)  # of an old word in a model, which writes a log file to ./
    try:
        with tempfile.TemporaryDirectory() as tempfile.tempdir:
            env = make()
    finally:
        tempfile.tempdir = before
        mujoco.set_mju_user_warning(None)
    model = vars(env.unwrapped).get("model")  # the arms' have no margins, and are not there before the first reset
    if MARGINS_ADD_UP and model is not None:
        model.geom_margin[:] /= 2
    return env


def load(
    name: str, task: int, data: str, folder: Path, episodes: int | None, p_random: float, path: Path | None
) -> Dataset:
    """Loads a dataset by its name, or from the file at `path`, and labels it with the rewards of one task.

    data, episodes, p_random: as in `load_dataset`. folder: of OGBench's files.
    """
    make_env = functools.partial(make_ogbench_env, name, task)
    if data == "none":
        return build(name, make_env, task=task)
    from ogbench.relabel_utils import relabel_dataset

    path = path or _find_file(name, folder, data, episodes, p_random)
    button_states = ("button_states",) if name.split("-")[0] in ("scene", "puzzle") else ()
    arrays = read_arrays(path, np.load, ("observations", "actions", "terminals", "qpos", *button_states))
    env = make_env()
    # Adds 'rewards' and 'masks' from the positions that are stored beside the observations.
    relabel_dataset(env.spec.id, env, arrays)  # type: ignore[union-attr]
    env.close()
    for key in ("qpos", *button_states):
        del arrays[key]
    digest, record = sha256(path), read_json(path.with_suffix(".json"))
    about: dict[str, Any] = {"task": task, "source": "unverified", "sha256": digest}
    downloaded = read_json(path.with_name(f"{path.stem}-download.json"))
    if (downloaded.get("url"), downloaded.get("sha256")) == (f"{OFFICIAL}/{path.name}", digest):
        about["source"] = "official"
    elif "procedure" in record and digest in record["sha256"].values():
        about |= {"source": "collected", "collection": record}
        made = f"{record['episodes']:,} episodes (official: {record['official_episodes']:,})"
        what = "WARNING These are NOT OGBench's official data. They were collected with its procedure"
        print(f"{what}: {made}.", file=sys.stderr)
    return build(name, make_env, arrays, path, **about)


def _find_file(name: str, folder: Path, data: str, episodes: int | None, p_random: float) -> Path:
    """Returns the path of the npz file, downloaded from OGBench's host or OGBENCH_DATASET_URL, or collected."""
    path = folder / f"{name}-v0.npz"
    url = (os.environ.get("OGBENCH_DATASET_URL") or OFFICIAL).removeprefix("file://").rstrip("/")
    if data != "collect":
        is_folder = "://" not in url
        if is_folder and not path.exists():  # its files are read where they are
            path = expanded(url) / path.name
        try:
            # A zip file's table of contents is at its end.
            return fetch(f"{url}/{path.name}", path, zipfile.ZipFile, "cache" if is_folder else data)
        except UserError as error:
            if data != "auto":
                raise UserError(f"{error} Or make such data by --data collect.") from None
            print(f"WARNING {error} Falling back to data collected on this machine.", file=sys.stderr)
    from common.data.collect import collect  # most runs need no collection

    return collect(name, folder / "collected", episodes, p_random_action=p_random)
