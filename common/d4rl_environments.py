"""D4RL's evaluation environments on maintained packages. No JAX: the workers import this.

What they were checked against, and what of D4RL's simulator cannot be had, stands in docs/d4rl.md.
"""

import contextlib
import io
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable

import gymnasium
import numpy as np

from common import UserError, installed
from common.environments import load_mujoco, quiet, restore_contact_margins, temporary_files_removed

# Walls; cells (row, column) of start and goal in D4RL's data. Cells are 4 apart, row 1, column 1 is D4RL's origin.
MAZES = {
    "umaze": ("##### #...# ###.# #...# #####", (1, 1), (3, 1)),
    "medium": ("######## #..##..# #..#...# ##...### #..#...# #.#..#.# #...#..# ########", (1, 1), (6, 6)),
    "large": (
        "############ #....#.....# #.##.#.#.#.# #......#...# #.####.###.# #..#.#.....# ##.#.#.#.### "
        "#..#...#...# ############", (1, 1), (7, 9),
    ),
}  # fmt: skip


def make_env(task: str, source: str, steps: int, **kwargs) -> gymnasium.Env:
    """Evaluation environment of a D4RL task: flat observations, actions in [-1, 1], D4RL's rewards and ends, contacts
    as before MuJoCo 3.5.

    source: `minari` has another antmaze, that of its data; else `d4rl`.
    steps: time limit.
    kwargs: of gymnasium.make.

    Raises UserError as `load_mujoco` does, and if gymnasium-robotics is missing, which adroit and Minari's antmaze
    need.
    """
    family = task.split("-")[0]
    options = kwargs | dict(disable_env_checker=True, max_episode_steps=-1)  # the limit is D4RL's, below
    with quiet(), temporary_files_removed():
        load_mujoco()
        if family == "antmaze":
            env = _make_minari_antmaze(task, **options) if source == "minari" else _make_antmaze(task, **kwargs)
        elif family in ("pen", *PALM_TO_OBJECT):
            env = _make_adroit(family, **options)
        else:
            env = _make_locomotion(family, **options)
    restore_contact_margins(env)
    return gymnasium.wrappers.TimeLimit(env, steps)


def _make_locomotion(robot: str, **kwargs) -> gymnasium.Env:
    """gymnasium's v4 pays and ends as D4RL's. v5 pays 1 less where the robot falls, and has another Walker2d."""
    import mujoco

    mujoco.set_mju_user_warning(lambda message: None)  # of an old word in a model, which writes a log file to ./
    try:
        return gymnasium.make({"halfcheetah": "HalfCheetah"}.get(robot, robot.capitalize()) + "-v4", **kwargs)
    finally:
        mujoco.set_mju_user_warning(None)


PALM_TO_OBJECT: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # in an observation
    "door": lambda s: s[35:38],
    "hammer": lambda s: s[33:36] - s[36:39],
    "relocate": lambda s: s[30:33],
}


class Adroit(gymnasium.Wrapper):
    """D4RL's rewards and ends on gymnasium-robotics' hands, which move as D4RL's. v1 there adds 0.1 |palm - object| to
    the reward, where D4RL and v2 subtract it, and goes on when the pen has fallen."""

    def __init__(self, env: gymnasium.Env, hand: str, version: str):
        super().__init__(env)
        self.hand, self.version = hand, version

    def step(self, action: np.ndarray):
        s, reward, terminated, truncated, info = self.env.step(action)
        info.pop("success", None)  # of this one step; D4RL scores the return
        if self.hand == "pen":
            terminated = bool(s[26] < 0.075)
        elif self.version == "v1":
            reward = float(reward) - 0.2 * float(np.linalg.norm(PALM_TO_OBJECT[self.hand](s)))
        return s, float(reward), terminated, truncated, info


def _make_adroit(hand: str, **kwargs) -> gymnasium.Env:
    _register_robotics(hand)
    name = f"AdroitHand{hand.capitalize()}"
    version = "v2" if f"{name}-v2" in gymnasium.registry else "v1"
    return Adroit(gymnasium.make(f"{name}-{version}", **kwargs), hand, version)


def _register_robotics(what: str) -> None:
    require("gymnasium_robotics", f"--env {what}")
    with contextlib.redirect_stderr(io.StringIO()):  # a notice about the reward, which the wrapper mends
        import gymnasium_robotics  # an extra

        gymnasium.register_envs(gymnasium_robotics)


class AntMaze(gymnasium.Wrapper):
    """D4RL's maze around an ant: each reset draws a goal in one cell, which is not observed; the step that ends within
    0.5 of it pays 1 and is the last. D4RL's v0 drew once per environment; here an episode depends on its seed alone."""

    def __init__(self, env: gymnasium.Env, walls: list[str], goal_cell: tuple[int, int]):
        super().__init__(env)
        self.maze_map = np.array([[cell == "#" for cell in row] for row in walls], int)
        self.goal_cell, self.cur_goal_xy = goal_cell, np.zeros(2)

    def ij_to_xy(self, cell: tuple[int, int]) -> np.ndarray:
        """Centre of a cell (row, column)."""
        return 4.0 * np.array([cell[1] - 1, cell[0] - 1])

    def reset(self, **kwargs):
        result = self.env.reset(**kwargs)
        uniform = self.unwrapped.np_random.uniform
        self.cur_goal_xy = self.ij_to_xy(self.goal_cell) + uniform(0, 1, 2) + uniform(0, 0.5, 2)  # maze_env.py of D4RL
        return result

    def step(self, action: np.ndarray):
        s, _, _, truncated, info = self.env.step(action)
        reached = bool(np.linalg.norm(s[:2] - self.cur_goal_xy) <= 0.5)
        return s, float(reached), reached, truncated, info | {"success": float(reached)}


def _make_antmaze(task: str, **kwargs) -> gymnasium.Env:
    """On OGBench's ant, D4RL's to the last bit. gymnasium-robotics' ant is stronger and has shorter steps."""
    from ogbench.locomaze.ant import AntEnv  # half a second

    walls, _, goal_cell = MAZES[task.split("-")[1]]
    tree = ET.parse(AntEnv.xml_file)
    world = next(tree.iter("worldbody"))
    for i, row in enumerate(walls.split()):
        for j in (j for j, cell in enumerate(row) if cell == "#"):
            box = {"name": f"block_{i}_{j}", "type": "box", "contype": "1", "conaffinity": "1", "material": "wall"}
            ET.SubElement(world, "geom", box | {"pos": f"{4 * (j - 1)} {4 * (i - 1)} 1", "size": "2 2 1"})
    with tempfile.TemporaryDirectory() as folder:
        tree.write(f"{folder}/maze.xml")
        # For films: from straight above, as OGBench's mazes.
        rows, columns = len(walls.split()), len(walls.split()[0])
        camera = {"lookat": 2.0 * np.array([columns - 3, rows - 3, 0]), "distance": 5 * (columns - 2), "elevation": -90}
        env = AntEnv(xml_file=f"{folder}/maze.xml", default_camera_config=camera, **kwargs)
        return AntMaze(env, walls.split(), goal_cell)


def _make_minari_antmaze(task: str, **kwargs) -> gymnasium.Env:
    """The environment of Minari's data, with one start and one goal cell and an end there, observations as D4RL's."""
    _register_robotics(task)
    ids = {"umaze": "AntMaze_UMaze-v4", "medium": "AntMaze_Medium-v4", "large": "AntMaze_Large-v4"}
    env = gymnasium.make(ids[task.split("-")[1]], maze_map=minari_maze(task)[0], continuing_task=False, **kwargs)
    space = gymnasium.spaces.Box(-np.inf, np.inf, (29,))
    return gymnasium.wrappers.TransformObservation(env, lambda s: np.r_[s["achieved_goal"], s["observation"]], space)


def minari_maze(task: str) -> tuple[list[list[int | str]], np.ndarray]:
    """Of Minari's antmaze: gymnasium-robotics' map with a start and a goal cell, and the goal cell's centre (2,), from
    the middle of the maze, y upwards. The umaze was collected from the other end."""
    walls, start, goal = MAZES[task.split("-")[1]]
    maze: list[list[int | str]] = [[int(cell == "#") for cell in row] for row in walls.split()]
    (start_i, start_j), (i, j) = (goal, start) if "umaze" in task else (start, goal)
    maze[start_i][start_j], maze[i][j] = "r", "g"
    return maze, 4.0 * np.array([j + 0.5 - len(maze[0]) / 2, len(maze) / 2 - i - 0.5])


def require(package: str, what: object) -> None:
    """Raises UserError if a package of the extra is missing."""
    if not installed(package):
        python = ", with Python 3.11 or newer" if package == "minari" else ""
        raise UserError(f"{what} needs {package}: uv pip install -e '.[d4rl]'{python}")
