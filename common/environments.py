"""From a name and a task to a gymnasium environment: OGBench's, any other, and two bandits. No JAX: the workers import
this."""

import contextlib
import difflib
import importlib.metadata
import os
import re
import sys
import tempfile
import warnings
from typing import Any

import gymnasium
import numpy as np

from common import UserError

# Domain -> sizes, kinds of data. Singletask versions exist for all of these in ogbench >= 1.2.
OGBENCH: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pointmaze": (("medium", "large", "giant", "teleport"), ("navigate", "stitch")),
    "antmaze": (("medium", "large", "giant", "teleport"), ("navigate", "stitch", "explore")),
    "humanoidmaze": (("medium", "large", "giant"), ("navigate", "stitch")),
    "antsoccer": (("arena", "medium"), ("navigate", "stitch")),
    "cube": (("single", "double", "triple", "quadruple"), ("play", "noisy")),
    "scene": ((), ("play", "noisy")),
    "puzzle": (("3x3", "4x4", "4x5", "4x6"), ("play", "noisy")),
}
OGBENCH_NAMES = [
    "-".join(filter(None, (domain, size, kind)))
    for domain, (sizes, kinds) in OGBENCH.items()
    for size in sizes or ("",)
    for kind in kinds
    if (domain, size, kind) != ("antmaze", "giant", "explore")
]
DEFAULT_TASK = {"antsoccer": 4, "cube": 2, "scene": 2, "puzzle": 4}  # the benchmark's; 1 elsewhere

# Centres of the four modes, their mean rewards, and how much reward a unit of distance from the centre costs.
# `bandit` is after figure 1 of DriftQL (arXiv 2606.00350), whose constants are not published, so these are ours;
# `bandit-corners` is the toy of Diffusion-QL (arXiv 2208.06193).
BANDITS = {
    "bandit": ([[0.0, 0.8], [-0.8, 0.0], [0.8, 0.0], [0.0, -0.8]], [2.0, 1.0, 5.0, 5.0], 10.0),
    "bandit-corners": ([[-0.8, 0.8], [-0.8, -0.8], [0.8, 0.8], [0.8, -0.8]], [3.0, 0.0, 1.5, 5.0], 0.0),
}

# ---------------------------------------------------------------------------------------------------------------- names


def resolve_name(env: str, task: int | None = None) -> tuple[str, int]:
    """Short OGBench name and task from a short name or a full id (antmaze-large-navigate-singletask-task3-v0).

    Raises UserError for a name that OGBench does not have (it suggests the closest ones), pixels, or a wrong task.
    """
    match = re.fullmatch(r"(?P<name>.*?)(-singletask(-task(?P<task>\d+))?)?(-v0)?", env, re.DOTALL)
    name = match["name"] if match else env
    if name not in OGBENCH_NAMES:
        if name.startswith(("visual-", "powderworld")):
            raise UserError(f"--env {env}: pixel observations are not supported; the networks here take state vectors.")
        close = close_names(name)
        hint = f"did you mean {', '.join(close)}?" if close else f"for example {OGBENCH_NAMES[0]}."
        raise UserError(f"unknown environment '{env}': {hint} For your own data add --dataset FILE.npz.")
    if match and match["task"]:
        if task is not None and task != int(match["task"]):
            raise UserError(f"--env {env} names task {match['task']} and --task says {task}; give one of them.")
        task = int(match["task"])
    if task is None:
        task = DEFAULT_TASK.get(name.split("-")[0], 1)
    if not 1 <= task <= 5:
        raise UserError(f"task {task} does not exist: every OGBench environment has tasks 1 to 5.")
    return name, task


def close_names(name: str) -> list[str]:
    """Up to three names of OGBench's datasets and of bandits that look like this one."""
    return difflib.get_close_matches(name, [*OGBENCH_NAMES, *BANDITS], n=3, cutoff=0.4)


# --------------------------------------------------------------------------------------------------------------- makers


def make_ogbench_env(name: str, task: int, **kwargs) -> gymnasium.Env:
    """Evaluation environment of a singletask OGBench dataset.

    Success is computed on the state after the action (`success_timing='post'`), as in OGBench 1.1.0, with which the
    papers' numbers were made; newer versions compute it on the state before the action. Raises UserError as
    `load_mujoco` does.
    """
    env_name = "-".join([*name.split("-")[:-1], "singletask", f"task{task}", "v0"])
    return make_raw_ogbench_env(env_name, success_timing="post", **kwargs)


def make_raw_ogbench_env(env_id: str, **kwargs) -> gymnasium.Env:
    """Any of OGBench's environments, without its warnings and temporary files."""
    # The arms' environments make their action space anew at each use, and Gymnasium warns of its precision each time.
    warnings.filterwarnings("ignore", message=".*precision lowered by casting")
    with quiet(), temporary_files_removed():
        load_mujoco()
        import ogbench  # noqa: F401  (registers the environments, and takes half a second, which bandits do not need)

        env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    # The arms' models have no margins, and are compiled at the first reset.
    if "maze" in env_id or "antsoccer" in env_id:
        restore_contact_margins(env)
    return env


def make_user_env(env: str, **kwargs) -> gymnasium.Env:
    """Any gymnasium environment, its observation flattened and its actions rescaled to [-1, 1].

    Raises UserError if there is none of this name, if a package that it needs is missing, or if its actions are not
    continuous and bounded.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a module of one's own may stand there
    with quiet():
        try:
            made = gymnasium.make(env, disable_env_checker=True, **kwargs)
        except (gymnasium.error.Error, ImportError) as error:
            close = difflib.get_close_matches(env, OGBENCH_NAMES, n=1, cutoff=0.8)
            hint = f"did you mean {close[0]}?" if close else f"{str(error).splitlines()[0].rstrip('.?`')}."
            if isinstance(error, gymnasium.error.NameNotFound) and not close and ":" not in env:
                hint += f" If a module of yours registers it, name that too: --env MODULE:{env}."
            raise UserError(f"--env {env}: {hint}") from None
        space = made.action_space
        if not isinstance(space, gymnasium.spaces.Box) or not np.isfinite([space.low, space.high]).all():
            raise UserError(f"--env {env} takes actions of {space}; continuous ones between bounds are needed.")
        flat = gymnasium.wrappers.FlattenObservation(made)
        return gymnasium.wrappers.RescaleAction(flat, np.float32(-1), np.float32(1))


class Bandit(gymnasium.Env):
    """One constant state, a 2-D action, one step. The reward is that of the nearest mode, without its noise."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, name: str, render_mode: str | None = None):
        centers, means, self.slope = BANDITS[name]
        self.centers, self.means = np.array(centers), np.array(means)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: np.ndarray):
        distances = np.linalg.norm(self.centers - action, axis=1)
        nearest = distances.argmin()
        reward = self.means[nearest] - self.slope * distances[nearest]
        best = self.means == self.means.max()
        info = {"success": distances[best].min() <= 0.2, "support": distances[nearest] <= 0.2, "xy": np.array(action)}
        return np.ones(1, np.float32), float(reward), True, False, info

    def render(self) -> None:
        """Nothing to film in one step."""


# -------------------------------------------------------------------------------------------------------------- physics


def restore_contact_margins(env: Any) -> None:
    """Contacts as before MuJoCo 3.5, which adds up the margins of two geoms where older versions took the larger: half
    of each is the same where both are equal. The benchmarks' data and the papers' scores are older."""
    if MARGINS_ADD_UP:
        env.unwrapped.model.geom_margin[:] /= 2


MUJOCO = importlib.metadata.version("mujoco")  # without the import, which takes as long as all else here
MARGINS_ADD_UP = tuple(int(part) for part in MUJOCO.split(".")[:2]) >= (3, 5)
PHYSICS = {"mujoco": MUJOCO, "geom_margin": "halved" if MARGINS_ADD_UP else "as in the model"}


def load_mujoco() -> None:
    """MuJoCo comes with the renderer that MUJOCO_GL names, or, where that one is missing, not at all. Raises
    UserError then: many set the variable for all that they run, though only films need it."""
    try:
        import mujoco  # noqa: F401  (a third of a second)
    except Exception as error:  # each renderer has its own
        if "MUJOCO_GL" not in os.environ:
            raise
        asked = f"MUJOCO_GL={os.environ['MUJOCO_GL']}"
        raise UserError(f"MuJoCo does not start with {asked} ({error}); unset it; for films, try another.") from None


@contextlib.contextmanager
def quiet():
    """Hides what the environments' packages warn of on every machine without a screen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="glfw")
        warnings.filterwarnings("ignore", module="gymnasium")
        yield


@contextlib.contextmanager
def temporary_files_removed():
    """ogbench writes each maze to a temporary XML file and leaves it; MuJoCo reads it once."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
