"""Collects OGBench datasets on this machine, with OGBench's environments, scripted policies and procedures
(arXiv 2410.20092, appendix), for where its download host cannot be reached.

    python -m common.collect antmaze-large-navigate
    python -m common.collect cube-double-play --episodes 100 --p-random-action 0.2 --out data

Writes three files: the data in OGBench's format (`observations`, `actions`, `terminals`, `qpos`, `qvel`, for scenes
and puzzles `button_states`; a row is the state and the action taken in it), `-val.npz` with a tenth of the episodes
more, and `.json` with how they were made. They are not the official files: other random numbers, and in antmazes
another ant policy (`tools/train_ant_expert.py`).

An episode depends on the seed and on its number alone, so the arrays do not depend on the number of workers. This
module does not import JAX: its workers import it.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Annotated, NamedTuple

import gymnasium
import numpy as np
import tyro
from tqdm import tqdm

from common import UserError
from common.datasets import CACHE_DIR, make_raw_ogbench_env, resolve_name, sha256
from common.workers import Workers, receive, send, usable_cores

try:
    import fcntl
except ImportError:  # not on Windows: two runs that start together may collect the same there
    fcntl = None

ANT_EXPERT = Path(__file__).parent / "assets" / "ant_expert.npz"
ACTION_NOISE = {"pointmaze": 0.5, "antmaze": 0.2}  # standard deviation, added to the action, then clipped
EXPLORE_NOISE = 1.0
STITCH_DISTANCE = 4  # cells between start and goal
STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}


class Procedure(NamedTuple):
    episodes: int  # in OGBench's training file
    steps: int  # rows per episode
    description: str


@dataclass(frozen=True)
class Args:
    name: Annotated[str, tyro.conf.Positional]
    """OGBench dataset, for example antmaze-large-navigate"""
    episodes: int | None = None
    """training episodes; None is OGBench's number"""
    workers: int | None = None
    """processes; None is one per core. They do not change the data"""
    seed: int = 0
    """another seed is another dataset"""
    p_random_action: float = 0.0
    """share of the actions that are replaced by uniformly random ones"""
    out: str | None = None
    """folder; None is ~/.ogbench/data/collected, where the training scripts look"""


# ---------------------------------------------------------------------------------------------------------- procedures


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
    """(29,) state without xy, unit direction -> (8,) action; the network of tools/train_ant_expert.py."""
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


# ----------------------------------------------------------------------------------------------------------- collection


def collect(
    name: str,
    folder: Path,
    episodes: int | None = None,
    seed: int = 0,
    p_random_action: float = 0.0,
    workers: int | None = None,
) -> Path:
    """Path of the collected training file, which is made if it is not there yet.

    name: short OGBench name. folder: made if need be. episodes: for training, None is OGBench's number. workers:
        processes, None is one per core.

    Raises UserError for a dataset that cannot be collected, senseless numbers, a folder that cannot be written,
    or a full disk.
    """
    plan = procedure(name)
    episodes = plan.episodes if episodes is None else episodes
    if episodes < 1 or (workers is not None and workers < 1) or seed < 0:
        raise UserError("the numbers of episodes and workers must be positive, the seed 0 or more.")
    if not 0 <= p_random_action <= 1:
        raise UserError(f"--p-random-action {p_random_action} must lie between 0 and 1.")
    noise = f"-random{p_random_action:g}" if p_random_action else ""
    path = folder / f"{name}-{episodes}-episodes-seed{seed}{noise}.npz"
    with _collecting_alone(path):
        if path.exists():
            return path
        began = time.monotonic()
        validation = max(1, episodes // 10)
        number = min(workers or usable_cores(), episodes + validation)
        print(
            f"collect {name}: {episodes:,} + {validation:,} episodes of {plan.steps:,} rows on {number} cores",
            flush=True,
        )
        arrays, reached = _collect_episodes(name, episodes + validation, seed, p_random_action, number, path)
        seconds = time.monotonic() - began
        rows = episodes * plan.steps
        parts = {
            _validation_path(path): {key: x[rows:] for key, x in arrays.items()},
            path: {key: x[:rows] for key, x in arrays.items()},
        }
        record = {
            "name": name,
            "source": "collected on this machine, not OGBench's official file",
            "procedure": plan.description,
            "episodes": episodes,
            "official_episodes": plan.episodes,
            "validation_episodes": validation,
            "rows_per_episode": plan.steps,
            "seed": seed,
            "p_random_action": p_random_action,
            "goals_reached_per_episode": round(float(reached.mean()), 3),
            "ant_expert_sha256": sha256(ANT_EXPERT) if name.startswith("antmaze") else None,
            "versions": {p: importlib.metadata.version(p) for p in ("ogbench", "mujoco", "gymnasium", "numpy")}
            | {"python": platform.python_version()},
            "sha256": {},
        }
        with _disk_errors(folder):
            for file, contents in parts.items():
                with open(_temporary(file), "wb") as stream:
                    np.savez_compressed(stream, **contents)
                record["sha256"][file.name] = sha256(_temporary(file))
            _temporary(_record_path(path)).write_text(json.dumps(record, indent=2) + "\n")
            for file in (_record_path(path), *parts):  # the training file last: where it is, all are
                os.replace(_temporary(file), file)
        print(
            f"        {len(reached) / seconds:.2f} episodes/s, {len(reached) * plan.steps / seconds:,.0f} steps/s, "
            f"{reached.mean():.2f} goals reached per episode"
        )
    return path


def read_record(path: Path, digest: str) -> dict | None:
    """What the JSON beside a collected file says, or None if the file is not a collected one. Raises UserError if the
    two do not belong together. digest: the file's sha256."""
    try:
        record = json.loads(_record_path(path).read_text())
        expected = record["sha256"][path.name]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{_record_path(path)} is damaged; delete it and {path.name} to collect again.") from None
    if digest != expected:
        raise UserError(f"{path} is not what was collected (another sha256); delete it to collect again.")
    return record


def _collect_episodes(name, total, seed, p_random_action, num_workers, path):
    """Arrays of all episodes in order, (total * steps, ...), and the goals reached in each, (total,)."""
    arrays, reached = {}, np.zeros(total, int)
    waiting = iter(range(total))
    bar = tqdm(total=total, desc=f"collect {name}", unit="episode", smoothing=0.05, disable=None)
    with Workers(_work, [(name, seed, p_random_action)] * num_workers) as workers, bar:
        for pipe in workers.pipes:
            send(pipe, next(waiting))
        busy = set(workers.pipes)
        while busy:
            for pipe in wait(list(busy)):
                index, episode, reached[index] = receive(pipe)
                if not arrays:
                    arrays = {key: np.empty((total, *x.shape), x.dtype) for key, x in episode.items()}
                    _check_space(path.parent, sum(x.nbytes for x in arrays.values()))
                for key, x in episode.items():
                    arrays[key][index] = x
                bar.update()
                following = next(waiting, None)
                if following is None:
                    busy.discard(pipe)
                else:
                    send(pipe, following)
    return {key: x.reshape(-1, *x.shape[2:]) for key, x in arrays.items()}, reached


def _work(pipe: Connection, name: str, seed: int, p_random_action: float) -> None:
    """Answers the number of an episode with the episode, until the pipe ends."""
    play = make_episode_player(name)
    while True:
        index = pipe.recv()
        pipe.send((index, *play_seeded(play, seed, index, p_random_action)))


def play_seeded(play: Callable, seed: int, index: int, p_random_action: float) -> tuple[dict, int]:
    """Episode number `index` of a dataset."""
    rng = np.random.default_rng([seed, index])
    np.random.seed(rng.integers(2**32, dtype=np.uint32))
    return play(rng, int(rng.integers(2**31)), p_random_action)


# ---------------------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def _collecting_alone(path: Path) -> Iterator[None]:
    """Makes the folder and lets one process at a time collect `path`; the others wait and then find it. Temporary files
    do not survive."""
    with _disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_name(f".{path.stem}.lock"), "w")
    try:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process is collecting {path.name}; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        for file in (_record_path(path), _validation_path(path), path):
            _temporary(file).unlink(missing_ok=True)
        lock.close()


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the collected data to {folder}: {error.strerror or error}. Name another folder with "
            f"--data-dir (scripts) or --out (common.collect)."
        ) from None


def _check_space(folder: Path, size: int) -> None:
    """A full disk is better found at the first episode than after the last."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free and the data need {size / 1e9:.1f} GB; collect fewer episodes, or "
            f"name another folder with --data-dir (scripts) or --out (common.collect)."
        )


def _validation_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}-val.npz")


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def main(args: Args) -> None:
    name, _ = resolve_name(args.name)
    folder = Path(args.out) if args.out else CACHE_DIR / "collected"
    options = asdict(args) | {"name": name, "folder": folder.expanduser()}
    del options["out"]
    print(collect(**options))


if __name__ == "__main__":
    # Under its own name, so that the workers find what is sent to them; runs brings JAX, which they do not need.
    from common import collect as module
    from common import runs

    with runs.one_line_errors("common.collect"):
        module.main(runs.command_line(module.Args, sys.argv[1:], program="python -m common.collect"))
