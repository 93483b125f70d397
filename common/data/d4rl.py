"""D4RL (https://arxiv.org/abs/2004.07219) without its package, which needs mujoco-py: tasks, files, environments.

docs/d4rl.md says what differs from D4RL, what the environments were checked against, and what cannot be as it was.
"""

import contextlib
import functools
import io
import os
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from common import UserError
from common.data.dataset import Dataset, build
from common.data.files import fetch, read_arrays
from common.data.ogbench import in_mujoco
from common.system import expanded, require, sha256

HOST = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
FILES: dict[str, str] = {}  # on the host. The first version of a task is the default.
for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"):
    size = {"umaze": "u-maze", "medium": "big-maze", "large": "hardest-maze"}[maze.split("-")[0]]
    file = f"Ant_maze_{size}_noisy_multistart_{maze != 'umaze'}_multigoal_{'diverse' in maze}_sparse"
    FILES[f"antmaze-{maze}-v2"] = f"ant_maze_v2/{file}_fixed.hdf5"
    FILES[f"antmaze-{maze}-v0"] = f"ant_maze_new/{file}.hdf5"
for robot in ("halfcheetah", "hopper", "walker2d"):
    for data in ("medium", "medium-replay", "medium-expert"):
        FILES[f"{robot}-{data}-v2"] = f"gym_mujoco_v2/{robot}_{data.replace('-', '_')}-v2.hdf5"
for hand in ("pen", "door", "hammer", "relocate"):
    for data in ("human", "cloned", "expert"):
        FILES[f"{hand}-{data}-v1"] = f"hand_dapg_v1/{hand}-{data}-v1.hdf5"

# Environment, time limit, and the returns that are scores of 0 and 100 (d4rl/infos.py): a random policy's, an expert's.
# gymnasium's v4 pays and ends as D4RL's. v5 pays 1 less where the robot falls, and has another Walker2d.
FAMILIES = {
    "antmaze": ("D4RL's maze with OGBench's ant", 1000, (0.0, 1.0)),
    "halfcheetah": ("HalfCheetah-v4", 1000, (-280.178953, 12135.0)),
    "hopper": ("Hopper-v4", 1000, (-20.272305, 3234.3)),
    "walker2d": ("Walker2d-v4", 1000, (1.629008, 4592.3)),
    "pen": ("AdroitHandPen-v1", 100, (96.262799, 3076.8331017826877)),
    "door": ("AdroitHandDoor-v1", 200, (-56.512833, 2880.5693087298737)),
    "hammer": ("AdroitHandHammer-v1", 200, (-274.856578, 12794.134825156867)),
    "relocate": ("AdroitHandRelocate-v1", 200, (-6.425911, 4233.877797728884)),
}


def resolve(env: str) -> str | None:
    """Returns a D4RL name with its version, which `env` may leave out: hopper-medium-v2 for hopper-medium. None for
    other names."""
    return next((name for name in FILES if env in (name, name.rpartition("-")[0])), None)


def load(name: str, data: str, data_dir: str | None, path: Path | None, rewards: str) -> Dataset:
    """Loads transitions and evaluation environment of a D4RL task, named as by `resolve`.

    data, data_dir: as in `load_dataset`. path: an HDF5 file in D4RL's layout, wherever it is from. rewards: a name of
    `treat_rewards`.
    """
    family, make = name.split("-")[0], functools.partial(make_env, name)
    about: dict[str, Any] = {"environment": FAMILIES[family][0], "reference": FAMILIES[family][2]}
    if data == "none":
        return build(name, make, **about)
    require("h5py", f"--env {name}", "d4rl")
    source = "user" if path else "d4rl"
    if path is None:
        folder = expanded(data_dir or os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets")
        path = fetch(f"{HOST}/{FILES[name]}", folder / Path(FILES[name]).name, read_hdf5, data)
    arrays = read_hdf5(path, goes_on=family == "antmaze")
    shift, scale = about["treatment"] = treat_rewards(arrays, rewards, family)
    rows = arrays["rows"]
    arrays["rewards"][rows] = (arrays["rewards"][rows].astype(np.float64) - shift) / scale
    return build(name, make, arrays, path, source=source, sha256=sha256(path), **about)


def read_hdf5(path: Path, goes_on: bool = False) -> dict[str, np.ndarray]:
    """Reads D4RL's file by the rules of `d4rl.qlearning_dataset`, which all authors use.

    Returns observations, actions, rewards, masks and terminals of all R rows, float32, and `rows` (N,) at which a
    transition starts. The next observation is the next row's. A row with a timeout is dropped, and the last. goes_on: a
    trajectory goes on where the mask is 0, as antmaze's does at the goal. Raises UserError if the file cannot be read,
    lacks an array, or holds anything but finite numbers.
    """
    import h5py

    arrays = read_arrays(path, h5py.File, ("observations", "actions", "rewards", "terminals", "timeouts"))
    ended, dropped = arrays["terminals"], arrays.pop("timeouts") != 0
    last = np.arange(len(ended)) == len(ended) - 1  # a file may stop in a trajectory
    arrays["terminals"] = np.where(last | dropped, 1, 0 if goes_on else ended).astype(np.float32)
    arrays["actions"] = np.clip(arrays["actions"], -1, 1)
    return arrays | {"masks": 1 - ended, "rows": np.flatnonzero(~dropped[:-1])}


def treat_rewards(arrays: dict[str, np.ndarray], how: str, family: str) -> tuple[float, float]:
    """Returns (shift, scale): authors train on (r - shift) / scale.

    `usual`, r - 1 on antmaze and r elsewhere; `cql_antmaze`, 4 (r - 0.5), on antmaze by Diffusion-QL; `standardized`,
    (r - mean) / std, its pen; `returns_1000`, 1000 r / (best return - worst return), IDQL's locomotion. Raises
    UserError where this would divide by 0.
    """
    rows = arrays["rows"]
    r = arrays["rewards"][rows].astype(np.float64)
    if how == "usual":
        return float(family == "antmaze"), 1.0
    if how == "cql_antmaze":
        return 0.5, 0.25
    starts = np.append(0, np.flatnonzero((np.diff(rows) != 1) | (arrays["masks"][rows[:-1]] == 0)) + 1)
    scale = r.std(ddof=1) if how == "standardized" else np.ptp(np.add.reduceat(r, starts)) / 1000
    if not scale > 0:
        raise UserError(f"rewards cannot be {how}: they are equal everywhere.")
    return float(r.mean()) if how == "standardized" else 0.0, float(scale)


# Walls, and the cell (row, column) of the goal. Cells are 4 apart, and the start (1, 1) is D4RL's origin.
MAZES = {
    "umaze": ("##### #...# ###.# #...# #####", (3, 1)),
    "medium": ("######## #..##..# #..#...# ##...### #..#...# #.#..#.# #...#..# ########", (6, 6)),
    "large": (
        "############ #....#.....# #.##.#.#.#.# #......#...# #.####.###.# #..#.#.....# ##.#.#.#.### "
        "#..#...#...# ############", (7, 9),
    ),
}  # fmt: skip


def make_env(task: str, **kwargs: Any) -> gymnasium.Env:
    """Makes the evaluation environment of a D4RL task: flat observations, actions in [-1, 1], D4RL's rewards and ends,
    contacts as before MuJoCo 3.5.

    kwargs: of gymnasium.make. Raises UserError if gymnasium-robotics is missing, which adroit needs.
    """
    family = task.split("-")[0]
    env_id, steps, _ = FAMILIES[family]
    options = kwargs | dict(disable_env_checker=True, max_episode_steps=-1)  # the limit is D4RL's, below

    def make() -> gymnasium.Env:
        if family == "antmaze":
            return AntMaze(task, **kwargs)
        if not env_id.startswith("Adroit"):
            return gymnasium.make(env_id, **options)
        require("gymnasium_robotics", f"--env {task}", "d4rl")
        with contextlib.redirect_stderr(io.StringIO()):  # a notice about the reward, which the wrapper fixes
            return Adroit(gymnasium.make(f"gymnasium_robotics:{env_id}", **options), family)

    return gymnasium.wrappers.TimeLimit(in_mujoco(make), 700 if "umaze" in task else steps)


class Adroit(gymnasium.Wrapper):
    """D4RL's rewards and ends on gymnasium-robotics' hands, which move as D4RL's. Those add 0.1 |palm - object| to the
    reward, where D4RL subtracts it, and go on when the pen has fallen."""

    def __init__(self, env: gymnasium.Env, hand: str):
        super().__init__(env)
        self.hand = hand

    def step(self, action: np.ndarray):
        s, reward, terminated, truncated, info = self.env.step(action)
        info.pop("success", None)  # of this one step; D4RL scores the return
        if self.hand == "pen":
            terminated = bool(s[26] < 0.075)
        else:
            palm_to_object = {"door": s[35:38], "hammer": s[33:36] - s[36:39], "relocate": s[30:33]}[self.hand]
            reward = float(reward) - 0.2 * float(np.linalg.norm(palm_to_object))
        return s, float(reward), terminated, truncated, info


class AntMaze(gymnasium.Wrapper):
    """D4RL's maze around OGBench's ant, which is D4RL's to the last bit; gymnasium-robotics' ant is stronger and has
    shorter steps. Each reset draws a goal in one cell, which is not observed; the step that ends within 0.5 of it pays
    1 and is the last. D4RL's v0 drew once per environment; here an episode depends on its seed alone."""

    def __init__(self, task: str, **kwargs: Any):
        from ogbench.locomaze.ant import AntEnv

        words, self.goal_cell = MAZES[task.split("-")[1]]
        self.maze_map = np.array([[cell == "#" for cell in row] for row in words.split()], int)
        self.cur_goal_xy: np.ndarray = np.zeros(2)
        tree = ET.parse(AntEnv.xml_file)
        world = next(tree.iter("worldbody"))
        for i, j in np.argwhere(self.maze_map):
            box = {"name": f"block_{i}_{j}", "type": "box", "contype": "1", "conaffinity": "1", "material": "wall"}
            ET.SubElement(world, "geom", box | {"pos": f"{4 * (j - 1)} {4 * (i - 1)} 1", "size": "2 2 1"})
        file = f"{tempfile.gettempdir()}/maze.xml"  # in `in_mujoco`'s folder
        tree.write(file)
        # For films: from straight above, as OGBench's mazes.
        rows, columns = self.maze_map.shape
        camera = {"lookat": 2.0 * np.array([columns - 3, rows - 3, 0]), "distance": 5 * (columns - 2), "elevation": -90}
        super().__init__(AntEnv(xml_file=file, default_camera_config=camera, **kwargs))

    def ij_to_xy(self, cell: tuple[int, int]) -> np.ndarray:
        """Returns the centre of a cell (row, column)."""
        return 4.0 * np.array([cell[1] - 1, cell[0] - 1])

    def reset(self, **kwargs: Any):
        result = self.env.reset(**kwargs)
        uniform = self.unwrapped.np_random.uniform
        self.cur_goal_xy = self.ij_to_xy(self.goal_cell) + uniform(0, 1, 2) + uniform(0, 0.5, 2)  # maze_env.py of D4RL
        return result

    def step(self, action: np.ndarray):
        s, _, _, truncated, info = self.env.step(action)
        reached = bool(np.linalg.norm(s[:2] - self.cur_goal_xy) <= 0.5)
        return s, float(reached), reached, truncated, info | {"success": float(reached)}
