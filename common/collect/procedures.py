"""How OGBench collects an episode of each dataset (arXiv 2410.20092, appendix): its environments, scripted policies and
numbers. An episode depends on the dataset's seed and on its own number alone. No JAX: the workers import this."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np

from common import UserError
from common.environments import make_raw_ogbench_env

ANT_EXPERT = Path(__file__).parent / "ant_expert.npz"
ACTION_NOISE = {"pointmaze": 0.5, "antmaze": 0.2}  # standard deviation, added to the action, then clipped
EXPLORE_NOISE = 1.0
STITCH_DISTANCE = 4  # cells between start and goal
STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}


class Procedure(NamedTuple):
    episodes: int  # in OGBench's training file
    steps: int  # rows per episode
    description: str


def procedure(name: str) -> Procedure:
    """OGBench's numbers for a dataset. Raises UserError where none can be collected here."""
    domain, *size, kind = name.split("-")
    if domain in ("humanoidmaze", "antsoccer"):
        raise UserError(
            f"{name} cannot be collected here: it needs a walking policy that takes days to train. Copy {name}-v0.npz "
            f"from a machine with a network and name its folder with --data-dir."
        )
    if kind == "noisy":
        raise UserError(f"{name} cannot be collected here, only its -play version can.")
    if kind == "stitch":
        return Procedure(5_000, 201, f"to a goal {STITCH_DISTANCE} cells away, action noise {ACTION_NOISE[domain]}")
    if kind == "explore":
        return Procedure(10_000, 501, f"a new random direction every 10 steps, action noise {EXPLORE_NOISE}")
    if kind == "navigate":
        episodes, steps = (500, 2_001) if size == ["giant"] else (1_000, 1_001)
        return Procedure(episodes, steps, f"a new random goal at each success, action noise {ACTION_NOISE[domain]}")
    episodes = {"triple": 3_000, "quadruple": 5_000, "4x5": 3_000, "4x6": 5_000}.get((*size, "")[0], 1_000)
    return Procedure(episodes, 1_001, "plan oracle, noise 0.1, smoothing 0.5, a new target when it is done")


def make_episode_player(name: str) -> Callable[[np.random.Generator, int, float], tuple[dict, int]]:
    """play(rng, environment seed, p_random_action) -> arrays of one episode, (steps, ...) each, and how many goals or
    targets were reached. The caller has seeded NumPy's global generator, from which OGBench draws too."""
    domain, *_, kind = name.split("-")
    env_name, steps = "-".join([*name.split("-")[:-1], "v0"]), procedure(name).steps
    if domain in ("pointmaze", "antmaze"):
        env = make_raw_ogbench_env(env_name, terminate_at_goal=False, max_episode_steps=steps)
        walk = _load_ant_expert() if domain == "antmaze" else None
        noise = EXPLORE_NOISE if kind == "explore" else ACTION_NOISE[domain]
        return functools.partial(_play_maze, env, kind, walk, noise, _SubgoalTable(env.unwrapped))
    env = make_raw_ogbench_env(
        env_name, terminate_at_goal=False, max_episode_steps=steps, mode="data_collection", visualize_info=False
    )
    stacking = STACKING.get(name.split("-")[1], (0.5, 0.5))
    return functools.partial(_play_manipulation, env, _make_oracles(env, domain), stacking, domain == "scene")


def _play_maze(env, kind, walk, noise, subgoals, rng, seed, p_random_action):
    """Point or ant, towards the oracle's next sub-goal."""
    maze = env.unwrapped
    start = _choose(rng, subgoals.free)
    goals = subgoals.vertices
    if kind == "stitch":
        goals = [cell for cell in subgoals.free if subgoals.distance(start, cell) == STITCH_DISTANCE] or [start]
    goal = _choose(rng, goals)
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})
    episode, reached, done = Episode(), 0, False
    while not done:
        xy = maze.get_xy()
        if kind != "explore":
            direction = subgoals.next_xy(xy, maze.cur_goal_xy) - xy
        elif len(episode) % 10 == 0:
            direction = rng.standard_normal(2)
        direction = direction / (np.linalg.norm(direction) + 1e-6)
        action = direction if walk is None else walk(np.concatenate([observation[2:], direction]))
        action = np.clip(action + noise * rng.standard_normal(action.shape), -1, 1)
        if p_random_action and rng.random() < p_random_action:
            action = rng.uniform(-1, 1, action.shape)
        next_observation, _, _, done, info = env.step(action)
        episode.add(observation, action, done, info)
        observation = next_observation
        if info["success"] and kind == "navigate":
            reached += 1
            maze.set_goal(goal_xy=maze.add_noise(maze.ij_to_xy(_choose(rng, subgoals.vertices))))
        elif info["success"] and kind == "stitch":
            reached = 1
    return episode.arrays(), reached


def _play_manipulation(env, oracles, stacking, is_scene, rng, seed, p_random_action):
    """The arm, following one planned task after the other. A scene in which the cube has left the visible area is
    drawn again."""
    for attempt in range(1_000):
        observation, info = env.reset(seed=seed + attempt)
        p_stack = rng.uniform(*stacking)
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        episode, reached, done = Episode(), 0, False
        while not done:
            action = np.clip(oracle.select_action(observation, info), -1, 1)
            if p_random_action and rng.random() < p_random_action:
                action = rng.uniform(-1, 1, action.shape)
            next_observation, _, _, done, info = env.step(action)
            episode.add(observation, action, done, info)
            observation = next_observation
            if oracle.done:
                reached += bool(info["success"])
                new = env.unwrapped.set_new_target(p_stack=p_stack)
                oracle = oracles[new[1]["privileged/target_task"]]
                oracle.reset(*new)
        arrays = episode.arrays()
        if not is_scene or _cube_stays_visible(arrays["qpos"]):
            return arrays, reached
    raise RuntimeError("the cube left the visible area in 1,000 episodes in a row")


def _cube_stays_visible(qpos: np.ndarray) -> bool:
    """OGBench's check: not beyond the table's right edge, and beyond its left edge only inside the drawer."""
    y, z = qpos[:, 15], qpos[:, 16]
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return not ((y >= 0.29) | ((y <= -0.3) & ~in_drawer)).any()


class Episode:
    """The rows of one episode, with OGBench's names and types."""

    def __init__(self):
        self.columns = {"observations": [], "actions": [], "terminals": [], "qpos": [], "qvel": []}

    def __len__(self):
        return len(self.columns["actions"])

    def add(self, observation: np.ndarray, action: np.ndarray, done: bool, info: dict) -> None:
        row = (observation, action, done, info["prev_qpos"], info["prev_qvel"])
        for column, value in zip(self.columns.values(), row):
            column.append(value)
        if "prev_button_states" in info:
            self.columns.setdefault("button_states", []).append(info["prev_button_states"])

    def arrays(self) -> dict[str, np.ndarray]:
        types = {"terminals": bool, "button_states": np.int64}
        return {name: np.array(x, types.get(name, np.float32)) for name, x in self.columns.items()}


class _SubgoalTable:
    """Free cells of a maze, those that are not straight corridors, and the oracle's answers, which depend on the cells
    of position and goal alone (OGBench searches the maze anew for each)."""

    def __init__(self, maze):
        self.maze, self.answers = maze, {}
        grid = maze.maze_map == 0
        self.free = [(int(i), int(j)) for i, j in np.argwhere(grid)]

        def is_corridor(i, j):
            up, down, left, right = grid[i - 1, j], grid[i + 1, j], grid[i, j - 1], grid[i, j + 1]
            return (up and down and not left and not right) or (left and right and not up and not down)

        self.vertices = [cell for cell in self.free if not is_corridor(*cell)]

    def next_xy(self, xy: np.ndarray, goal_xy: np.ndarray) -> np.ndarray:
        return self._answer(self.maze.xy_to_ij(xy), self.maze.xy_to_ij(goal_xy))[0]

    def distance(self, cell: tuple[int, int], goal: tuple[int, int]) -> int:
        """Steps from cell to cell, -1 if there is no way."""
        return int(self._answer(cell, goal)[1][cell])

    def _answer(self, cell, goal):
        if (cell, goal) not in self.answers:
            ij_to_xy = self.maze.ij_to_xy
            self.answers[cell, goal] = self.maze.get_oracle_subgoal(ij_to_xy(cell), ij_to_xy(goal))
        return self.answers[cell, goal]


def _choose(rng: np.random.Generator, items: list):
    return items[rng.integers(len(items))]


def _load_ant_expert() -> Callable[[np.ndarray], np.ndarray]:
    """(29,) state without xy, unit direction -> (8,) action; the network that train_ant.py trains."""
    with np.load(ANT_EXPERT) as file:
        layers = [(file[f"Dense_{i}/kernel"], file[f"Dense_{i}/bias"]) for i in range(3)]

    def walk(x):
        x = x.astype(np.float32)
        for kernel, bias in layers[:-1]:
            x = x @ kernel + bias
            x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi, dtype=np.float32) * (x + np.float32(0.044715) * x**3)))
        return np.tanh(x @ layers[-1][0] + layers[-1][1])

    return walk


def _make_oracles(env: gymnasium.Env, domain: str) -> dict:
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    options = {"env": env, "noise": 0.1, "noise_smoothing": 0.5}
    if domain == "puzzle":
        return {"button": ButtonPlanOracle(**options, gripper_always_closed=True)}
    oracles = {
        "cube": CubePlanOracle,
        "button": ButtonPlanOracle,
        "drawer": DrawerPlanOracle,
        "window": WindowPlanOracle,
    }
    return {task: oracle(**options) for task, oracle in oracles.items() if domain == "scene" or task == domain}


def play_seeded(play: Callable, seed: int, index: int, p_random_action: float) -> tuple[dict, int]:
    """Episode number `index` of a dataset."""
    rng = np.random.default_rng([seed, index])
    np.random.seed(rng.integers(2**32, dtype=np.uint32))
    return play(rng, int(rng.integers(2**31)), p_random_action)
