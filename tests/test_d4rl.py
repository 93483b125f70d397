"""D4RL's names, files and environments, on files and roll-outs made here: D4RL's own cannot be had in a test."""

import dataclasses
import fcntl
import importlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
import urllib.request
from operator import attrgetter
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from conftest import ROOT

from common import UserError, cli, d4rl, d4rl_environments
from common.d4rl_environments import make_env, minari_maze
from common.datasets import load_dataset
from common.environments import BANDITS, OGBENCH_NAMES


def needs(*packages: str):
    """Skips a test where packages of the extra are missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs the extra d4rl: no {', '.join(missing)}")


def make(task: str, source: str = "d4rl") -> gymnasium.Env:
    return make_env(task, source, d4rl.TASKS[task].steps)


# --------------------------------------------------------------------------------------------------------------- names

REFERENCES = {  # d4rl/infos.py
    "antmaze": (0, 1),
    "pen": (96.262799, 3076.8331017826877),
    "door": (-56.512833, 2880.5693087298737),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "kitchen": (0, 4),
}
MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
ROBOTS = ("halfcheetah", "hopper", "walker2d")
NAMES = [
    *(f"antmaze-{maze}-{version}" for maze in MAZES for version in ("v0", "v2")),
    *(f"{robot}-{data}-v2" for robot in ROBOTS for data in ("medium", "medium-replay", "medium-expert")),
    *(f"{hand}-{data}-v1" for hand in ("pen", "door", "hammer", "relocate") for data in ("human", "cloned", "expert")),
    *(f"kitchen-{data}-v0" for data in ("complete", "partial", "mixed")),
]


def test_the_table_has_d4rls_36_tasks_and_no_other():
    assert len(NAMES) == 36
    assert sorted(NAMES) == sorted(f"{name}-{version}" for name, task in d4rl.TASKS.items() for version in task.files)


def test_time_limits_are_d4rls():
    expected = {"pen": 100, "door": 200, "hammer": 200, "relocate": 200, "kitchen": 280} | dict.fromkeys(ROBOTS, 1000)
    for name, task in d4rl.TASKS.items():
        maze_limit = 700 if "umaze" in name else 1000
        assert task.steps == expected.get(name.split("-")[0], maze_limit)


@pytest.mark.parametrize("name", NAMES)
def test_references_are_scores_of_0_and_100(name):
    task, version = d4rl.resolve(name)
    low, high = REFERENCES[name.split("-")[0]]
    assert f"{task}-{version}" == name
    np.testing.assert_allclose(d4rl.normalized([low, high], d4rl.TASKS[task].reference), [0, 100], atol=1e-12)


def test_names_need_no_version():
    assert d4rl.resolve("hopper-medium-replay") == ("hopper-medium-replay", "v2")
    assert d4rl.resolve("antmaze-umaze") == ("antmaze-umaze", "v2")
    assert d4rl.resolve("pen-human") == ("pen-human", "v1")


@pytest.mark.parametrize("name", ["antmaze-large-navigate", "antmaze-large-navigate-v0", "bandit", "Hopper-v4", "cube"])
def test_other_names_are_not_d4rls(name):
    assert d4rl.resolve(name) is None


NEARLY = [
    ("hopper-mediun", "hopper-medium"),
    ("pen-human-v3", "v1"),
    ("HOPPER-MEDIUM", "hopper-medium"),
    ("hopper-random-v2", "hopper-medium, hopper-medium-replay"),
    ("mujoco/hopper/medium-v0", "hopper-medium, hopper-medium-replay"),
    ("pen", "pen-human, pen-cloned"),
]


@pytest.mark.parametrize("name, hint", NEARLY)
def test_a_name_that_is_nearly_right_is_told(name, hint):
    with pytest.raises(UserError, match=f"{name}.*{hint}"):
        d4rl.resolve(name)


# ---------------------------------------------------------------------------------------------------------------- HDF5


def write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        for name, x in arrays.items():
            file[name] = x
    return path


def random_arrays(rng, ends: str) -> dict[str, np.ndarray]:
    """Hopper's shapes, with ends of the given kinds at random rows."""
    rows = int(rng.integers(2, 120))
    arrays = {
        "observations": rng.standard_normal((rows, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "rewards": rng.standard_normal(rows).astype(np.float32),
        "terminals": rng.random(rows) < (0.1 if ends in ("terminals", "both", "counter") else 0),
        "metadata/algorithm": np.array("SAC", "S"),
        "infos/qpos": np.full(rows, np.nan),  # not read
    }
    if ends != "counter":
        arrays["timeouts"] = rng.random(rows) < (0.1 if ends in ("timeouts", "both") else 0)
    else:
        arrays |= {"rewards": arrays["rewards"][:, None], "terminals": arrays["terminals"].astype(np.float32)[:, None]}
    return arrays


def row_by_row(arrays: dict[str, np.ndarray], steps: int) -> list[tuple]:
    """d4rl.qlearning_dataset, line by line: (s, a, r, s', terminal) of each transition."""
    transitions, counter = [], 0
    for i in range(len(arrays["rewards"]) - 1):
        terminal = bool(np.squeeze(arrays["terminals"][i]))
        timeout = arrays["timeouts"][i] if "timeouts" in arrays else counter == steps - 1
        if timeout:
            counter = 0
            continue
        if terminal:
            counter = 0
        reward = float(np.squeeze(arrays["rewards"][i]))
        transitions.append(
            (arrays["observations"][i], arrays["actions"][i], reward, arrays["observations"][i + 1], terminal)
        )
        counter += 1
    return transitions


def assert_same_transitions(arrays: dict[str, np.ndarray], expected: list[tuple], rewards: bool = True) -> None:
    rows = arrays["rows"]
    assert len(rows) == len(expected)
    s, a, r, s_next, terminal = (np.array(x) for x in zip(*expected))
    np.testing.assert_array_equal(arrays["observations"][rows], s.astype(np.float32))
    np.testing.assert_array_equal(arrays["actions"][rows], a.astype(np.float32))
    np.testing.assert_array_equal(arrays["observations"][rows + 1][~terminal], s_next.astype(np.float32)[~terminal])
    np.testing.assert_array_equal(arrays["masks"][rows], 1 - terminal)
    if rewards:
        np.testing.assert_array_equal(arrays["rewards"][rows], r.astype(np.float32))


@needs("h5py")
@pytest.mark.parametrize("ends", ["timeouts", "terminals", "both", "neither", "counter"])
def test_an_hdf5_file_reads_as_by_d4rls_loop(tmp_path, ends):
    rng = np.random.default_rng(0)
    for i in range(20):
        arrays = random_arrays(rng, ends)
        expected = row_by_row(arrays, steps=7)
        if expected:
            path = write_hdf5(tmp_path / f"{i}.hdf5", arrays)
            assert_same_transitions(d4rl.read_hdf5(path, steps=7), expected)


@pytest.fixture
def hopper_file(tmp_path):
    """A file of three trajectories: a fall at row 3, a time limit at row 9, and an end in the middle at row 11."""
    rng = np.random.default_rng(1)
    arrays = {
        "observations": rng.standard_normal((12, 11)).astype(np.float32),
        "actions": np.full((12, 3), 1.0, np.float32),
        "rewards": np.arange(12, dtype=np.float32),
        "terminals": np.arange(12) == 3,
        "timeouts": np.arange(12) == 9,
    }
    return write_hdf5(tmp_path / "hopper_medium-v2.hdf5", arrays), arrays


@needs("h5py")
def test_a_file_becomes_a_dataset(hopper_file, tmp_path):
    path, arrays = hopper_file
    dataset = d4rl.load("hopper-medium", "v2", data_dir=str(tmp_path))
    assert_same_transitions(dataset.arrays | {"actions": arrays["actions"]}, row_by_row(arrays, 1000))
    assert np.abs(dataset.actions).max() < 1  # clipped by FQL's 1e-5
    description = dataset.describe()
    assert description["name"] == "hopper-medium-v2"
    assert (description["source"], description["environment"]) == ("d4rl", "Hopper-v4")
    assert description["path"] == str(path)
    assert (description["transitions"], description["trajectories"]) == (10, 3)
    assert len(description["sha256"]) == 64
    assert dataset.reference == REFERENCES["hopper"]


@needs("h5py")
def test_rewards_are_treated_as_by_the_authors(hopper_file, tmp_path):
    _, arrays = hopper_file
    r = np.array([x[2] for x in row_by_row(arrays, 1000)])
    returns = [r[:4].sum(), r[4:9].sum(), r[9:].sum()]
    expected = {
        "usual": r,
        "minus_one": r - 1,
        "cql_antmaze": 4 * (r - 0.5),
        "standardized": (r - r.mean()) / r.std(ddof=1),
        "returns_1000": 1000 * r / (max(returns) - min(returns)),
    }
    for rewards, numbers in expected.items():
        dataset = d4rl.load("hopper-medium", "v2", data_dir=str(tmp_path), rewards=rewards)
        np.testing.assert_allclose(dataset.rewards[dataset.rows], numbers, rtol=1e-6)


@needs("h5py")
@pytest.mark.parametrize("version, folder", [("v2", "ant_maze_v2"), ("v0", "ant_maze_new")])
def test_antmaze_has_rewards_minus_one_and_goes_on_at_the_goal(tmp_path, version, folder):
    rng = np.random.default_rng(0)
    terminals = np.isin(np.arange(30), (4, 5, 6))
    arrays = {
        "observations": rng.standard_normal((30, 29)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (30, 8)).astype(np.float32),
        "rewards": terminals.astype(np.float32),
        "terminals": terminals,
        "timeouts": np.arange(30) == 19,
    }
    file = tmp_path / d4rl.TASKS["antmaze-umaze"].files[version]  # as on the host, in its folder
    file.parent.mkdir()
    assert file.parent.name == folder
    write_hdf5(file, arrays)
    dataset = d4rl.load("antmaze-umaze", version, data_dir=str(tmp_path))
    np.testing.assert_array_equal(dataset.rewards[dataset.rows], terminals[dataset.rows] - 1.0)
    np.testing.assert_array_equal(dataset.masks[dataset.rows], 1 - terminals[dataset.rows])
    assert (len(dataset.rows), dataset.num_trajectories) == (28, 2)


# -------------------------------------------------------------------------------------------------------------- Minari


def collect(folder: Path, minari_id: str, env_id: str, lengths: list[int], monkeypatch, **options) -> list[list[tuple]]:
    """A Minari dataset of random actions by its own DataCollector, and what a step in the environment returned."""
    import minari

    folder.mkdir(exist_ok=True)  # else the collector writes to a temporary folder, which is removed too soon
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    with d4rl_environments.quiet(), d4rl_environments.temporary_files_removed():
        if "Adroit" in env_id or "AntMaze" in env_id:
            d4rl_environments._register_robotics(env_id)
        env = minari.DataCollector(gymnasium.make(env_id, disable_env_checker=True, **options))
    rng = np.random.default_rng(0)
    episodes = []
    for seed, length in enumerate(lengths):
        state, _ = env.reset(seed=seed)
        episode, ended = [], False
        while not ended and len(episode) < length:  # what is cut here counts as truncated
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            next_state, reward, terminated, truncated, _ = env.step(action)
            episode.append((_flat(state), action, reward, _flat(next_state), terminated))
            state, ended = next_state, terminated or truncated
        episodes.append(episode)
    env.create_dataset(
        minari_id, description="a test's", algorithm_name="random", author="a test", author_email="a@b.c"
    )
    env.close()
    return episodes


def _flat(state) -> np.ndarray:
    if isinstance(state, dict):
        return np.concatenate([state["achieved_goal"], state["observation"]])
    return np.array(state)


MINARI = {
    "hopper-medium": ("Hopper-v5", 60),
    "halfcheetah-medium": ("HalfCheetah-v5", 12),
    "pen-human": ("AdroitHandPen-v1", 12),
    "door-cloned": ("AdroitHandDoor-v1", 12),
    "antmaze-umaze": ("AntMaze_UMaze-v4", 12),
}


@needs("minari", "h5py", "gymnasium_robotics")
@pytest.mark.filterwarnings("ignore")  # of DataCollector
@pytest.mark.parametrize("task", MINARI)
def test_minaris_datasets_come_back_transition_by_transition(task, tmp_path, monkeypatch, capsys):
    env_id, length = MINARI[task]
    minari_id = d4rl.TASKS[task].minari
    monkeypatch.chdir(tmp_path)  # HalfCheetah-v5's log file
    episodes = collect(tmp_path, minari_id, env_id, [length, 5, length], monkeypatch)
    transitions = [transition for episode in episodes for transition in episode]
    assert task != "hopper-medium" or transitions[len(episodes[0]) - 1][4]  # it fell
    version = next(iter(d4rl.TASKS[task].files))
    dataset = d4rl.load(task, version, data_dir=str(tmp_path))
    assert_same_transitions(dataset.arrays, transitions, rewards=not task.startswith("antmaze"))
    assert (dataset.source, dataset.num_trajectories) == ("minari", 3)
    assert "NOT D4RL" in capsys.readouterr().err


@needs("minari", "h5py", "gymnasium_robotics")
def test_minaris_antmaze_is_labelled_for_one_goal(tmp_path, monkeypatch):
    """The ant is put down at the goal, beside it, and at the start."""
    states = {"achieved_goal": minari_maze("antmaze-umaze")[1] + [[0.3, 0.3], [0.44, 0], [0.46, 0], [0, 8], [0, 0]]}
    states["observation"] = np.zeros((5, 27))

    class Episode:
        id, observations = 0, states
        actions, rewards, terminations = np.zeros((4, 8)), np.zeros(4), np.zeros(4, bool)

    import minari

    fake = type("Data", (list,), {"iterate_episodes": list.__iter__})
    monkeypatch.setattr(minari, "MinariDataset", lambda _: fake([Episode]))
    arrays = d4rl.read_minari(tmp_path, "antmaze-umaze")
    np.testing.assert_array_equal(arrays["rewards"][arrays["rows"]], [1, 0, 0, 1])  # of the state that a step leads to
    np.testing.assert_array_equal(arrays["masks"][arrays["rows"]], [0, 1, 1, 0])
    np.testing.assert_array_equal(minari_maze("antmaze-umaze")[1], [-4, 4])  # cell (1, 1), where Minari's umaze ends


# -------------------------------------------------------------------------------------------------------- environments


@pytest.mark.parametrize(
    "task, goal", [("antmaze-umaze", (0, 8)), ("antmaze-medium-play", (20, 20)), ("antmaze-large-diverse", (32, 24))]
)
def test_antmaze_is_d4rls(task, goal):
    env = make(task)
    goals = []
    for seed in range(30):
        observation, _ = env.reset(seed=seed)
        data = env.unwrapped.data
        np.testing.assert_array_equal(observation, np.concatenate([data.qpos, data.qvel]))  # 15 + 14, no goal
        assert observation.shape == env.observation_space.shape == (29,)
        assert np.abs(observation[:2]).max() <= 0.1
        goals.append(env.get_wrapper_attr("cur_goal_xy") - goal)
    assert (np.min(goals) >= 0) and (np.max(goals) <= 1.5) and np.max(goals) > 1.1 and np.min(goals) < 0.4
    for distance, reached in [(3.0, False), (0.05, True)]:
        env.reset(seed=0)
        env.unwrapped.set_xy(env.get_wrapper_attr("cur_goal_xy") + np.array([distance, 0]))
        _, reward, terminated, truncated, info = env.step(np.zeros(8))
        assert (reward, terminated, truncated, info["success"]) == (float(reached), reached, False, float(reached))
    env.close()


def test_antmaze_ends_after_700_or_1000_steps():
    assert [d4rl.TASKS[f"antmaze-{maze}"].steps for maze in MAZES] == [700, 700, 1000, 1000, 1000, 1000]
    env = make_env("antmaze-umaze", "d4rl", 3)
    env.reset(seed=0)
    assert [env.step(np.zeros(8))[3] for _ in range(3)] == [False, False, True]


def test_medium_and_large_are_ogbenchs_mazes():
    from common.environments import make_ogbench_env

    for task in ("antmaze-medium-play", "antmaze-large-play"):
        env = make(task)
        theirs = make_ogbench_env(task.replace("play", "navigate"), 1).unwrapped
        np.testing.assert_array_equal(env.get_wrapper_attr("maze_map"), theirs.maze_map)
        assert env.unwrapped.mujoco_renderer.default_cam_config["elevation"] == -90  # films show the whole of it
        for name in ("body_mass", "actuator_gear", "dof_damping", "opt.timestep"):
            np.testing.assert_array_equal(*(attrgetter(name)(model) for model in (env.unwrapped.model, theirs.model)))
        for name in ("pos", "size", "margin", "friction"):  # theirs has a marker for the goal too
            walls = [
                [getattr(model.geom(i), name) for i in range(model.ngeom) if model.geom(i).name.startswith("block")]
                for model in (env.unwrapped.model, theirs.model)
            ]
            np.testing.assert_array_equal(*walls)


@needs("gymnasium_robotics")
def test_minaris_antmaze_starts_and_ends_where_its_data_do():
    env = make("antmaze-umaze", "minari")
    observation, _ = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape == (29,)
    assert np.abs(observation[:2] - [-4, -4]).max() <= 1  # cell (3, 1)
    goal = env.unwrapped.goal
    assert np.abs(goal - minari_maze("antmaze-umaze")[1]).max() <= 1
    ant = env.unwrapped.ant_env
    ant.set_state(np.r_[goal, ant.data.qpos[2:]], ant.data.qvel * 0)
    _, reward, terminated, _, _ = env.step(np.zeros(8))
    assert (reward, terminated) == (1.0, True)


@needs("gymnasium_robotics")
def test_minaris_mazes_are_gymnasium_robotics_mazes():
    from gymnasium_robotics.envs.maze import maps

    for task, theirs in [("umaze", maps.U_MAZE), ("medium-play", maps.MEDIUM_MAZE), ("large-play", maps.LARGE_MAZE)]:
        ours = minari_maze(f"antmaze-{task}")[0]
        assert [[cell == 1 for cell in row] for row in ours] == [[cell == 1 for cell in row] for row in theirs]


def adroit_reward(hand: str, env) -> float:
    """D4RL's formulas (hand_manipulation_suite), from the simulator's state."""
    u, data = env.unwrapped, env.unwrapped.data

    def site(name):
        return data.site(name).xpos

    def distance(a, b):
        return np.linalg.norm(a - b)

    if hand == "pen":
        pen, goal = data.body("Object").xpos, site("eps_ball")
        pen_axis = (site("object_top") - site("object_bottom")) / u.pen_length
        axis = (site("target_top") - site("target_bottom")) / u.tar_length
        near, aligned = distance(pen, goal) < 0.075, pen_axis @ axis
        bonus = 10 * (near and aligned > 0.9) + 50 * (near and aligned > 0.95) - 5 * (pen[2] < 0.075)
        return -distance(pen, goal) + aligned + bonus
    palm = site("S_grasp")
    if hand == "door":
        hinge = data.joint("door_hinge").qpos[0]
        bonus = 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)
        cost = 0.1 * (hinge - 1.57) ** 2 + 1e-5 * np.sum(data.qvel**2)
        return -0.1 * distance(palm, site("S_handle")) - cost + bonus
    thing = data.body("Object").xpos
    if hand == "hammer":
        head, nail, goal = site("tool"), site("S_target"), site("nail_goal")
        cost = distance(head, nail) + 10 * distance(nail, goal) + 1e-2 * np.linalg.norm(data.qvel)
        bonus = 2 * (thing[2] > 0.04 and head[2] > 0.04)
        bonus += 25 * (distance(nail, goal) < 0.02) + 75 * (distance(nail, goal) < 0.01)
        return -0.1 * distance(palm, thing) - cost + bonus
    target = site("target")
    lifted = (1 - 0.5 * distance(palm, target) - 0.5 * distance(thing, target)) * (thing[2] > 0.04)
    bonus = 10 * (distance(thing, target) < 0.1) + 20 * (distance(thing, target) < 0.05)
    return -0.1 * distance(palm, thing) + lifted + bonus


@needs("gymnasium_robotics")
@pytest.mark.parametrize("hand", ["pen", "door", "hammer", "relocate"])
def test_adroit_pays_and_ends_as_d4rl(hand):
    env = make(f"{hand}-human")
    rng = np.random.default_rng(0)
    fallen = 0
    for seed in range(3):
        env.reset(seed=seed)
        for step in range(1, d4rl.TASKS[f"{hand}-human"].steps + 1):
            _, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, env.action_space.shape))
            np.testing.assert_allclose(reward, adroit_reward(hand, env), atol=1e-12)
            height = env.unwrapped.data.body("Object").xpos[2] if hand == "pen" else 1.0
            assert terminated == (height < 0.075)
            assert truncated == (step == (100 if hand == "pen" else 200))
            assert "success" not in info
            if terminated or truncated:
                fallen += terminated
                break
    assert (fallen > 0) == (hand == "pen")
    env.close()


@pytest.mark.parametrize("v5", ["Hopper-v5", "Walker2d-v5", "HalfCheetah-v5"])
def test_v4_is_v5_but_for_the_step_that_falls(v5, tmp_path, monkeypatch):
    task = f"{v5.split('-')[0].lower()}-medium"
    monkeypatch.chdir(tmp_path)
    options = {"xml_file": "walker2d.xml"} if v5 == "Walker2d-v5" else {}  # its feet have another friction otherwise
    with d4rl_environments.quiet():
        other = gymnasium.make(v5, disable_env_checker=True, **options)
    d4rl_environments.restore_contact_margins(other)
    env, rng = make(task), np.random.default_rng(0)
    falls = 0
    for seed in range(3):
        states = [env.reset(seed=seed)[0], other.reset(seed=seed)[0]]
        np.testing.assert_array_equal(*states)
        for _ in range(100):
            action = rng.uniform(-1, 1, env.action_space.shape)
            (s, r, ended, _, _), (s_5, r_5, ended_5, _, _) = env.step(action), other.step(action)
            np.testing.assert_allclose(s, s_5, atol=1e-12)
            np.testing.assert_allclose(r, r_5 + ended, atol=1e-9)
            assert ended == ended_5
            if ended:
                falls += 1
                break
    assert (falls > 0) == (task != "halfcheetah-medium")


def test_halfcheetah_leaves_no_log_file(tmp_path):
    script = "from common.d4rl_environments import make_env; make_env('halfcheetah-medium', 'd4rl', 9)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (0, "", [])


# The last six numbers of the observation after some steps in MuJoCo 3.4.0, which took the larger of two margins. With
# the margins as they are in MuJoCo 4.0, they are off by 5e-2, 1e-3 and 5e-4.
FIRST_STEPS = {
    "hopper-medium": (10, [0.014739607, -0.636184963, 0.754140319, 0.680367724, 0.335186249, 0.783386122], 1e-8),
    "antmaze-umaze": (2, [3.619167855, -6.012658462, 1.832616176, -5.832334201, 0.921652379, 5.341012942], 2e-5),
    "relocate-human": (10, [0.14518691, -0.101260635, -0.112516226, 0.224699097, 0.164792967, -0.277423766], 1e-6),
}


@pytest.mark.parametrize("task", FIRST_STEPS)
def test_first_steps_are_those_of_mujoco_before_3_5(task):
    if task == "relocate-human":
        pytest.importorskip("gymnasium_robotics", reason="needs the extra d4rl")
    steps, expected, tolerance = FIRST_STEPS[task]
    env, rng = make(task), np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(steps):
        observation, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape))
    np.testing.assert_allclose(observation[-6:], expected, atol=tolerance)


# ------------------------------------------------------------------------------------------------------------- scripts


def record(path: Path, task: str, rows: int = 90) -> Path:
    """Random actions in a task's environment, in D4RL's layout. On antmaze the ant goes on at the goal, as there."""
    env, rng = make_env(task, "d4rl", 40), np.random.default_rng(0)
    columns = {name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    state, _ = env.reset(seed=0)
    for _ in range(rows):
        action = rng.uniform(-1, 1, env.action_space.shape)
        next_state, reward, terminated, truncated, _ = env.step(action)
        for column, value in zip(columns.values(), (state, action, reward, terminated, truncated and not terminated)):
            column.append(value)
        state = env.reset()[0] if terminated or truncated else next_state
    env.close()
    numbers = {name: np.array(x, np.float32) for name, x in columns.items()}
    return write_hdf5(path, numbers | {name: numbers[name] > 0 for name in ("terminals", "timeouts")})


SMALL = dict(
    hidden_dims=(8, 8), batch_size=8, log_every=2, eval_every=2, save_every=2, eval_episodes=1, eval_workers=1,
    progress=False,
)  # fmt: skip


def run(name: str, env: str, folder: Path, resume: bool = False) -> dict:
    """Two updates through a script's main; with `resume`, two more after a new start. Returns result.json."""
    script = importlib.import_module(name)
    options = dict(data_dir=str(folder), runs_dir=str(folder / "runs"), data="cache")
    if name in ("idql", "diffusion_ql"):
        options |= dict(num_samples=2)
    if name == "idql":
        options |= dict(critic_batch_size=4)
    directory = script.main(script.args_for(env, steps=2, **SMALL, **options))
    if resume:
        assert script.main(cli.parse(script.Args, script.PRESETS, ["--resume", str(directory), "--steps", "4"]))
    return json.loads((directory / "result.json").read_text())


@needs("h5py", "gymnasium_robotics")
@pytest.mark.parametrize("name, env, file, environment", [
    ("driftql", "hopper-medium-expert", "hopper_medium_expert-v2.hdf5", "Hopper-v4"),
    ("fql", "antmaze-umaze", d4rl.TASKS["antmaze-umaze"].files["v2"], "D4RL's maze with OGBench's ant"),
    ("drol", "pen-human-v1", "pen-human-v1.hdf5", "AdroitHandPen-v1"),
    ("diffusion_ql", "antmaze-umaze-v0", d4rl.TASKS["antmaze-umaze"].files["v0"], "D4RL's maze with OGBench's ant"),
    ("idql", "hopper-medium", "hopper_medium-v2.hdf5", "Hopper-v4"),
])  # fmt: skip
def test_scripts_train_on_d4rls_layout(name, env, file, environment, tmp_path, capsys):
    task, version = d4rl.resolve(env)
    path = tmp_path / Path(file).name
    record(path, task)
    result = run(name, env, tmp_path)
    assert result["env"] == f"{task}-{version}"
    assert [evaluation["step"] for evaluation in result["evaluations"]] == [0, 2]
    last = result["evaluations"][-1]
    np.testing.assert_allclose(last["normalized"], d4rl.normalized(last["return"], d4rl.TASKS[task].reference))
    assert result["score_per_seed"] == last["normalized"]
    assert result["score_is"] == "mean normalized return 100 (R - min) / (max - min) of the last evaluation"
    data = result["dataset"]
    assert (data["source"], data["path"], data["environment"]) == ("d4rl", str(path), environment)
    assert len(data["sha256"]) == 64
    assert f"{path} is taken for D4RL's by its name" in capsys.readouterr().out
    assert result["physics"]["geom_margin"] and result["versions"]["mujoco"] and result["versions"]["h5py"]


@needs("minari", "h5py", "gymnasium_robotics")
@pytest.mark.filterwarnings("ignore")
def test_a_script_trains_on_minaris_data_and_goes_on(tmp_path, monkeypatch):
    collect(tmp_path, d4rl.TASKS["pen-human"].minari, "AdroitHandPen-v1", [20, 20], monkeypatch)
    result = run("driftql", "pen-human", tmp_path, resume=True)
    assert [evaluation["step"] for evaluation in result["evaluations"]] == [0, 2, 4]
    assert result["dataset"]["source"] == "minari"
    assert result["dataset"]["path"].endswith(d4rl.TASKS["pen-human"].minari)
    assert result["score_is"].startswith("mean normalized return")
    assert "success" not in result["evaluations"][-1]  # of the hand's last step


def test_all_presets_of_d4rl_are_for_its_tasks():
    authors = {"driftql": 27, "fql": 18, "drol": 18, "diffusion_ql": 20, "idql": 27}
    for name, count in authors.items():
        script = importlib.import_module(name)
        others = {*OGBENCH_NAMES, *BANDITS}
        assert len([env for env in script.PRESETS if env not in others]) == count
        assert set(script.PRESETS) - others <= set(d4rl.TASKS)
        with_version = script.args_for("antmaze-large-play-v0")
        assert dataclasses.replace(with_version, env="antmaze-large-play") == script.args_for("antmaze-large-play")
    import diffusion_ql
    import driftql
    import idql

    assert driftql.args_for("hopper-medium-expert-v2").alpha == 600
    assert driftql.args_for("antmaze-large-play").steps == 500_000
    assert diffusion_ql.args_for("pen-human").rewards == "standardized"
    assert diffusion_ql.args_for("antmaze-umaze-v0").rewards == "cql_antmaze"
    assert idql.args_for("walker2d-medium").rewards == "returns_1000"
    assert idql.args_for("antmaze-umaze").rewards == "usual"


# -------------------------------------------------------------------------------------------------------------- errors


def error_of(call, *args, **options) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@needs("h5py")
def test_damaged_files_are_one_line(hopper_file, tmp_path):
    path, arrays = hopper_file
    load = lambda: error_of(d4rl.load, "hopper-medium", "v2", data_dir=str(tmp_path))  # noqa: E731
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "cut or damaged" in load()
    path.write_bytes(b"PK\x03\x04 an npz, say")
    assert "is not an HDF5 file" in load()
    write_hdf5(path, {name: x for name, x in arrays.items() if name != "rewards"})
    assert "no 'rewards'; it holds actions, observations" in load()
    write_hdf5(path, arrays | {"timeouts": np.zeros((12, 2))})
    assert "'timeouts' has shape (12, 2), one number per row" in load()
    write_hdf5(path, arrays | {"rewards": importlib.import_module("h5py").Empty("f")})
    assert "no 'rewards'" in load()
    write_hdf5(path, {"observations/a": np.zeros(3)})
    assert "no 'observations'" in load()
    write_hdf5(path, arrays | {"rewards": np.where(np.arange(12) == 7, np.nan, 0.0)})
    assert "is NaN, infinite or beyond float32, first in row 7" in load()
    write_hdf5(path, arrays | {"actions": np.zeros((12, 6))})
    assert "the environment needs (R, 3)" in load()
    write_hdf5(path, arrays | {"terminals": np.full(12, 0.5)})
    assert "'terminals' must be 0 or 1" in load()
    write_hdf5(path, arrays | {"rewards": np.zeros(11)})
    assert "has 12 rows" in load()
    write_hdf5(path, {name: x[:1] for name, x in arrays.items()})
    assert "no transition" in load()
    write_hdf5(path, {f"a{i}": np.zeros(1) for i in range(30)})
    assert "it holds a0, a1, a10, a11, a12, a13, a14, a15, a16, a17 and 20 more." in load()
    write_hdf5(path, {"episode_0/actions": np.zeros(1)})
    assert "is one of Minari's" in load()
    with open(path) as file:  # as HDF5 does for one who writes to it
        fcntl.flock(file, fcntl.LOCK_EX)
        assert f"cannot read {path}: " in load()
    path.unlink()
    path.mkdir()
    assert f"cannot read {path}: Is a directory" in load()


def test_minaris_download_does_not_deny_the_file_that_is_there(tmp_path):
    path = tmp_path / "hopper_medium_replay-v2.hdf5"
    path.touch()
    error = error_of(d4rl.load, "hopper-medium-replay", "v2", data="download", data_dir=str(tmp_path))
    assert "--data download is for Minari's data" in error and str(path) in error


@needs("minari", "h5py", "gymnasium_robotics")
@pytest.mark.filterwarnings("ignore")
def test_damaged_minari_datasets_are_one_line(tmp_path, monkeypatch):
    minari_id = d4rl.TASKS["hopper-medium"].minari
    collect(tmp_path, minari_id, "Hopper-v5", [5], monkeypatch)
    folder = tmp_path / minari_id / "data"
    load = lambda task="hopper-medium": error_of(d4rl.load, task, "v2", data_dir=str(tmp_path))  # noqa: E731
    main, metadata = folder / "main_data.hdf5", folder / "metadata.json"
    (tmp_path / d4rl.TASKS["walker2d-medium"].minari).parent.mkdir()
    (tmp_path / d4rl.TASKS["walker2d-medium"].minari).symlink_to(folder.parent)
    assert "the environment needs (R, 17)" in load("walker2d-medium")
    content = main.read_bytes()
    main.write_bytes(content[: len(content) // 2])
    assert "cut or damaged" in load()
    main.write_bytes(content)
    metadata.write_text("{")
    assert "cut or damaged" in load()
    metadata.unlink()
    assert "cut or damaged" in load()


def test_missing_files_and_wrong_places_are_one_line(tmp_path):
    load = lambda task, **options: error_of(d4rl.load, task, *d4rl.resolve(task)[1:], **options)  # noqa: E731
    assert "hopper_medium-v2.hdf5 is not in" in load("hopper-medium", data="cache", data_dir=str(tmp_path))
    assert "mujoco/hopper/medium-v0" in load("hopper-medium", data="cache", data_dir=str(tmp_path))
    assert "Minari has no counterpart" in load("hopper-medium-expert", data_dir=str(tmp_path))
    assert "is not a folder" in load("hopper-medium", data_dir=str(tmp_path / "nowhere"))
    assert "not collected" in load("hopper-medium", data="collect")
    assert "FrankaKitchen-v1" in load("kitchen-partial")


@needs("h5py")
def test_a_file_of_ones_own_is_said_to_be_the_users(hopper_file, tmp_path):
    path, _ = hopper_file
    assert d4rl.load("hopper-medium-expert", "v2", dataset=str(path)).source == "user"
    assert "does not exist" in error_of(d4rl.load, "hopper-medium", "v2", dataset=str(tmp_path / "none.hdf5"))


@needs("minari")
def test_without_a_network_the_error_comes_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    began = time.monotonic()
    assert "cannot be downloaded from http://127.0.0.1:9" in error_of(d4rl.load, "pen-human", "v1", data="download")
    assert time.monotonic() - began < 8


@needs("minari", "h5py", "gymnasium_robotics")
@pytest.mark.filterwarnings("ignore")
def test_a_download_is_whole_or_not_there(tmp_path, monkeypatch):
    import minari

    minari_id, answer = d4rl.TASKS["hopper-medium"].minari, io.BytesIO()
    monkeypatch.setenv("MINARI_DATASETS_PATH", "elsewhere")
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: answer)

    def arriving():
        return Path(os.environ["MINARI_DATASETS_PATH"])

    def cut_short(_):
        (arriving() / minari_id / "data").mkdir(parents=True)
        assert not (tmp_path / minari_id).exists()  # another process would take the part for the whole
        raise OSError("connection lost\nand more")

    monkeypatch.setattr(minari, "download_dataset", cut_short)
    error = error_of(d4rl.load, "hopper-medium", "v2", data_dir=str(tmp_path))
    assert error.endswith("cannot be downloaded from https://huggingface.co: connection lost.")
    assert not (tmp_path / minari_id).exists()

    monkeypatch.setattr(
        minari, "download_dataset", lambda _: collect(arriving(), minari_id, "Hopper-v5", [5], monkeypatch)
    )
    assert len(d4rl.load("hopper-medium", "v2", data_dir=str(tmp_path)).rows) == 5
    assert os.environ["MINARI_DATASETS_PATH"] == "elsewhere"
    assert not list(tmp_path.glob(".*-download"))


@pytest.mark.parametrize("package, call", [
    ("h5py", lambda folder: d4rl.read_hdf5(folder / "a.hdf5", 1000)),
    ("minari", lambda folder: d4rl.read_minari(folder, "hopper-medium")),
    ("minari", lambda folder: d4rl.load("pen-human", "v1", "download", str(folder))),
    ("gymnasium_robotics", lambda folder: make("pen-human")),
    ("gymnasium_robotics", lambda folder: make("antmaze-umaze", "minari")),
])  # fmt: skip
def test_without_the_extra_one_line_says_what_to_install(package, call, tmp_path, monkeypatch):
    # Python finds a mere folder of that name too, and has a specification without origin for it.
    find, folder = importlib.util.find_spec, importlib.machinery.ModuleSpec(package, None, is_package=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda x, *rest: folder if x == package else find(x, *rest))
    assert f"needs {package}: uv pip install -e '.[d4rl]'" in error_of(call, tmp_path)


def test_other_data_have_no_treatment_of_rewards_and_d4rls_no_tasks():
    assert "belongs to D4RL" in error_of(load_dataset, "bandit", rewards="standardized")
    assert "belongs to OGBench" in error_of(load_dataset, "hopper-medium", task=2)
    assert "did you mean hopper-medium" in error_of(load_dataset, "hopper-mediun")


def test_ogbenchs_runs_import_nothing_of_the_extra(data_dir):
    names = "('jax', 'h5py', 'minari', 'gymnasium_robotics')"
    script = f"""import sys
from common.datasets import load_dataset
load_dataset("pointmaze-medium-navigate", data="cache", data_dir={str(data_dir)!r}).make_env()
load_dataset("bandit")
print([name for name in {names} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_importing_it_imports_nothing_of_the_extra():
    names = "('jax', 'h5py', 'minari', 'gymnasium_robotics', 'ogbench')"
    script = f"import sys; from common import d4rl; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
