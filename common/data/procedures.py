"""How OGBench collects an episode of each dataset (arXiv 2410.20092, appendix): its environments, scripted policies and
numbers. An episode depends on the seed of the dataset and on its own number alone."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common import UserError
from common.data.ogbench import make_raw_ogbench_env

ANT_EXPERT = Path(__file__).parent / "ant_expert.npz"
ACTION_NOISE = {"pointmaze": 0.5, "antmaze": 0.2}  # standard deviation, added to the action, then clipped
EXPLORE_NOISE = 1.0
STITCH_DISTANCE = 4  # cells between start and goal
STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}


def procedure(name: str) -> tuple[int, int, str]:
    """Returns OGBench's number of training episodes and of rows per episode, and a description of how it plays them.
    Raises UserError for a dataset that cannot be collected here."""
    domain, *size, kind = name.split("-")
    if domain in ("humanoidmaze", "antsoccer") or kind == "noisy":
        why = "humanoidmaze and antsoccer need policies that take days to train, and of -noisy data only -play is made"
        raise UserError(f"{name} cannot be collected here: {why}. Name the folder of a copy with --data-dir.")
    if kind == "stitch":
        return 5_000, 201, f"to a goal {STITCH_DISTANCE} cells away, action noise {ACTION_NOISE[domain]}"
    if kind == "explore":
        return 10_000, 501, f"a new random direction every 10 steps, action noise {EXPLORE_NOISE}"
    if kind == "navigate":
        episodes, steps = (500, 2_001) if size == ["giant"] else (1_000, 1_001)
        return episodes, steps, f"a new random goal at each success, action noise {ACTION_NOISE[domain]}"
    episodes = {"triple": 3_000, "quadruple": 5_000, "4x5": 3_000, "4x6": 5_000}.get((*size, "")[0], 1_000)
    return episodes, 1_001, "plan oracle, noise 0.1, smoothing 0.5, a new target when it is done"


def make_player(name: str) -> Callable:
    """Makes player(rng, environment seed, p_random_action) -> rows of one episode, and how many goals or targets were
    reached."""
    return (_maze_player if "maze" in name else _arm_player)(name)


def play(player: Callable, seed: int, index: int, p_random_action: float) -> tuple[dict[str, np.ndarray], int]:
    """Plays episode number `index` of a dataset. Returns its arrays, (steps, ...) each, and what was reached."""
    rng = np.random.default_rng([seed, index])
    np.random.seed(rng.integers(2**32, dtype=np.uint32))  # from which OGBench draws too
    rows, reached = player(rng, int(rng.integers(2**31)), p_random_action)
    types = {"terminals": bool, "button_states": np.int64}  # OGBench's
    return {key: np.array([row[key] for row in rows], types.get(key, np.float32)) for key in rows[0]}, reached


def _maze_player(name: str) -> Callable:
    """Point or ant, towards the oracle's next sub-goal."""
    (domain, size, kind), (_, steps, _) = name.split("-"), procedure(name)
    env = make_raw_ogbench_env(f"{domain}-{size}-v0", terminate_at_goal=False, max_episode_steps=steps)
    walk = load_ant_expert() if domain == "antmaze" else None
    noise = EXPLORE_NOISE if kind == "explore" else ACTION_NOISE[domain]
    maze: Any = env.unwrapped
    grid = maze.maze_map == 0
    free = [(int(i), int(j)) for i, j in np.argwhere(grid)]
    up, down, left, right = (np.roll(grid, shift, axis) for axis in (0, 1) for shift in (1, -1))
    corridor = (up == down) & (left == right) & (up != left)  # two free neighbours, opposite each other
    vertices = [cell for cell in free if not corridor[cell]]

    @functools.cache
    def oracle(cell, goal):
        """The answer depends on the cells of position and goal alone. OGBench searches the maze anew for each."""
        return maze.get_oracle_subgoal(maze.ij_to_xy(cell), maze.ij_to_xy(goal))

    def play(rng, seed, p_random_action):
        start, goals = free[rng.integers(len(free))], vertices
        if kind == "stitch":
            goals = [cell for cell in free if oracle(start, cell)[1][start] == STITCH_DISTANCE] or [start]
        goal = goals[rng.integers(len(goals))]
        env.action_space.seed(seed)
        observation, _ = env.reset(seed=seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})
        rows, reached, done = [], 0, False
        while not done:
            xy = maze.get_xy()
            if kind != "explore":
                direction = oracle(maze.xy_to_ij(xy), maze.xy_to_ij(maze.cur_goal_xy))[0] - xy
            elif len(rows) % 10 == 0:
                direction = rng.standard_normal(2)
            direction = direction / (np.linalg.norm(direction) + 1e-6)
            action = direction if walk is None else walk(np.concatenate([observation[2:], direction]))
            action = np.clip(action + noise * rng.standard_normal(action.shape), -1, 1)
            observation, done, info = _step(env, rows, observation, action, rng, p_random_action)
            if info["success"] and kind == "navigate":
                reached += 1
                maze.set_goal(goal_xy=maze.add_noise(maze.ij_to_xy(vertices[rng.integers(len(vertices))])))
            elif info["success"] and kind == "stitch":
                reached = 1
        return rows, reached

    return play


def _arm_player(name: str) -> Callable:
    """The arm, following one planned task after the other."""
    (domain, size, *_), (_, steps, _) = name.split("-"), procedure(name)
    options: dict[str, Any] = {"mode": "data_collection", "visualize_info": False, "terminate_at_goal": False}
    env = make_raw_ogbench_env(f"{name.rpartition('-')[0]}-v0", max_episode_steps=steps, **options)
    # Not above, because it imports MuJoCo.
    from ogbench.manipspace.oracles.plan import button_plan, cube_plan, drawer_plan, window_plan

    noise: dict[str, Any] = {"noise": 0.1, "noise_smoothing": 0.5}
    oracles = {
        "button": button_plan.ButtonPlanOracle(domain == "puzzle", env, **noise),
        "cube": cube_plan.CubePlanOracle(env, **noise),
        "drawer": drawer_plan.DrawerPlanOracle(env, **noise),
        "window": window_plan.WindowPlanOracle(env, **noise),
    }

    def play(rng, seed, p_random_action):
        observation, info = env.reset(seed=seed)
        p_stack = rng.uniform(*STACKING.get(size, (0.5, 0.5)))
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        rows, reached, done = [], 0, False
        while not done:
            action = np.clip(oracle.select_action(observation, info), -1, 1)
            observation, done, info = _step(env, rows, observation, action, rng, p_random_action)
            if oracle.done:
                reached += bool(info["success"])
                new = env.unwrapped.set_new_target(p_stack=p_stack)
                oracle = oracles[new[1]["privileged/target_task"]]
                oracle.reset(*new)
        if domain == "scene" and not cube_stays_visible(np.array([row["qpos"] for row in rows], np.float32)):
            return play(rng, seed + 1, p_random_action)  # such a scene is drawn again
        return rows, reached

    return play


def cube_stays_visible(qpos: np.ndarray) -> bool:
    """OGBench's check: not beyond the table's right edge, and beyond its left edge only inside the drawer."""
    y, z = qpos[:, 15], qpos[:, 16]
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return not ((y >= 0.29) | ((y <= -0.3) & ~in_drawer)).any()


def _step(env, rows, observation, action, rng, p_random_action):
    """Takes a step, or one with a random action, and adds it to the rows of an episode, with OGBench's names."""
    if p_random_action and rng.random() < p_random_action:
        action = rng.uniform(-1, 1, action.shape)
    next_observation, _, _, done, info = env.step(action)
    before = {key: info[f"prev_{key}"] for key in ("qpos", "qvel", "button_states") if f"prev_{key}" in info}
    rows.append({"observations": observation, "actions": action, "terminals": done} | before)
    return next_observation, done, info


def load_ant_expert() -> Callable[[np.ndarray], np.ndarray]:
    """(29,) state without xy, unit direction -> (8,) action; the network that tools/train_ant.py trains."""
    with np.load(ANT_EXPERT) as file:
        layers = [(file[f"Dense_{i}/kernel"], file[f"Dense_{i}/bias"]) for i in range(3)]

    def walk(x):
        x = x.astype(np.float32)
        for kernel, bias in layers[:-1]:
            x = x @ kernel + bias
            x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi, dtype=np.float32) * (x + np.float32(0.044715) * x**3)))
        return np.tanh(x @ layers[-1][0] + layers[-1][1])

    return walk
