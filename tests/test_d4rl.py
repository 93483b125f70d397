"""D4RL's names, files and environments, on files and roll-outs made here: D4RL's own cannot be had in a test."""

import importlib
import importlib.util
import itertools
import json
from operator import attrgetter
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_data import hosting, refused

from common import UserError
from common.data import d4rl, load_dataset
from common.data.d4rl import make_env
from common.data.ogbench import make_ogbench_env
from common.system import sha256


def test_the_table_has_d4rls_tasks_but_kitchen_and_no_other():
    assert (len({name.rpartition("-")[0] for name in d4rl.FILES}), len(d4rl.FILES)) == (27, 33)  # antmaze has v0 too
    assert {name.split("-")[0] for name in d4rl.FILES} == set(d4rl.FAMILIES)
    file = "noisy_multistart_True_multigoal_False_sparse_fixed.hdf5"
    assert d4rl.FILES["antmaze-large-play-v2"] == f"ant_maze_v2/Ant_maze_hardest-maze_{file}"
    file = "noisy_multistart_False_multigoal_False_sparse.hdf5"
    assert d4rl.FILES["antmaze-umaze-v0"] == f"ant_maze_new/Ant_maze_u-maze_{file}"
    for name, version in {"hopper-medium-replay": "v2", "antmaze-umaze": "v2", "pen-human": "v1"}.items():
        assert d4rl.resolve(name) == d4rl.resolve(f"{name}-{version}") == f"{name}-{version}"
    assert d4rl.resolve("antmaze-umaze-v0") == "antmaze-umaze-v0"
    for name in ("antmaze-large-navigate", "Hopper-v4", "pen-human-v3", "hopper"):
        assert not d4rl.resolve(name)
    assert "did you mean pen-human-v1" in refused("pen-human-v3")


def write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, x in arrays.items():
            file[name] = x
    return path


def random_arrays(rng, ends: str) -> dict[str, np.ndarray]:
    """Hopper's shapes, with ends of the given kinds at random rows."""
    rows = int(rng.integers(20, 120))
    return {
        "observations": rng.standard_normal((rows, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "rewards": rng.standard_normal((rows, 1)).astype(np.float32),  # some of D4RL's files have (R, 1)
        "terminals": rng.random(rows) < (0.1 if ends in ("terminals", "both") else 0),
        "timeouts": rng.random(rows) < (0.1 if ends in ("timeouts", "both") else 0),
        "metadata/algorithm": np.array("SAC", "S"),
        "infos/qpos": np.full(rows, np.nan),  # not read
    }


def row_by_row(arrays: dict[str, np.ndarray]) -> list[tuple]:
    """d4rl.qlearning_dataset, line by line: (s, a, r, s', terminal) of each transition."""
    columns = ("observations", "actions", "rewards", "terminals")
    transitions = []
    for i in range(len(arrays["rewards"]) - 1):
        if not arrays["timeouts"][i]:
            s, a, r, terminal = (arrays[key][i] for key in columns)
            transitions.append((s, a, float(np.squeeze(r)), arrays["observations"][i + 1], bool(terminal)))
    return transitions


def assert_same_transitions(arrays: dict[str, np.ndarray], expected: list[tuple]) -> None:
    rows = arrays["rows"]
    assert len(rows) == len(expected)
    s, a, r, s_next, terminal = (np.array(x) for x in zip(*expected))
    np.testing.assert_array_equal(arrays["observations"][rows], s.astype(np.float32))
    np.testing.assert_array_equal(arrays["actions"][rows], a.astype(np.float32))
    np.testing.assert_array_equal(arrays["observations"][rows + 1][~terminal], s_next.astype(np.float32)[~terminal])
    np.testing.assert_array_equal(arrays["masks"][rows], 1 - terminal)
    np.testing.assert_array_equal(arrays["rewards"][rows], r.astype(np.float32))


@pytest.mark.parametrize("ends", ["timeouts", "terminals", "both", "neither"])
def test_an_hdf5_file_reads_as_by_d4rls_loop(tmp_path, ends):
    rng = np.random.default_rng(0)
    for i in range(20):
        arrays = random_arrays(rng, ends)
        read = d4rl.read_hdf5(write_hdf5(tmp_path / f"{i}.hdf5", arrays))
        assert_same_transitions(read, row_by_row(arrays))
        # The next row belongs to the same trajectory, unless terminals say no.
        ended = arrays["terminals"]
        dropped = ~np.isin(np.arange(len(ended)), read["rows"])
        assert (read["terminals"] > 0).tolist() == (ended | dropped).tolist()


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


def test_a_file_becomes_a_dataset_with_rewards_as_the_authors_treat_them(hopper_file, tmp_path):
    path, arrays = hopper_file
    dataset = load_dataset("hopper-medium", data="cache", data_dir=str(tmp_path))
    assert_same_transitions(dataset.arrays | {"actions": arrays["actions"]}, row_by_row(arrays))
    assert np.abs(dataset.actions).max() < 1  # clipped by FQL's 1e-5
    description = dataset.describe()
    assert (description["name"], description["environment"]) == ("hopper-medium-v2", "Hopper-v4")
    assert (description["source"], description["path"], description["sha256"]) == ("d4rl", str(path), sha256(path))
    assert (description["transitions"], description["trajectories"]) == (10, 3)
    assert dataset.reference == (-20.272305, 3234.3)
    r = np.array([x[2] for x in row_by_row(arrays)])
    returns = [r[:4].sum(), r[4:9].sum(), r[9:].sum()]
    for rewards, numbers in {
        "usual": r,
        "cql_antmaze": 4 * (r - 0.5),
        "standardized": (r - r.mean()) / r.std(ddof=1),
        "returns_1000": 1000 * r / (max(returns) - min(returns)),
    }.items():
        dataset = load_dataset("hopper-medium", data_dir=str(tmp_path), rewards=rewards)
        np.testing.assert_allclose(dataset.rewards[dataset.rows], numbers, rtol=1e-6)
    dataset = load_dataset("hopper-medium-expert", dataset=str(path))  # any file in D4RL's layout
    assert (dataset.source, dataset.name) == ("user", "hopper-medium-expert-v2")
    write_hdf5(path, arrays | {"actions": arrays["actions"] * 1.5})
    assert np.abs(load_dataset("hopper-medium", data_dir=str(tmp_path)).actions).max() < 1


@pytest.mark.parametrize("version", ["v2", "v0"])
def test_antmaze_has_rewards_minus_one_and_goes_on_at_the_goal(tmp_path, version):
    rng = np.random.default_rng(0)
    terminals = np.isin(np.arange(30), (4, 5, 6))
    arrays = {
        "observations": rng.standard_normal((30, 29)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (30, 8)).astype(np.float32),
        "rewards": terminals.astype(np.float32),
        "terminals": terminals,
        "timeouts": np.arange(30) == 19,
    }
    write_hdf5(tmp_path / Path(d4rl.FILES[f"antmaze-umaze-{version}"]).name, arrays)
    dataset = load_dataset(f"antmaze-umaze-{version}", data_dir=str(tmp_path))
    np.testing.assert_array_equal(dataset.rewards[dataset.rows], terminals[dataset.rows] - 1.0)
    np.testing.assert_array_equal(dataset.masks[dataset.rows], 1 - terminals[dataset.rows])
    assert (len(dataset.rows), dataset.num_trajectories) == (28, 2)
    assert np.flatnonzero(dataset.terminals).tolist() == [19, 29]


@pytest.mark.parametrize(
    "task, goal", [("antmaze-umaze", (0, 8)), ("antmaze-medium-play", (20, 20)), ("antmaze-large-diverse", (32, 24))]
)
def test_antmaze_is_d4rls(task, goal):
    env = make_env(task)
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


@pytest.mark.parametrize("task", ["antmaze-medium-play", "antmaze-large-play"])
def test_medium_and_large_are_ogbenchs_mazes(task):
    env, theirs = make_env(task), make_ogbench_env(task.replace("play", "navigate"), 1).unwrapped
    np.testing.assert_array_equal(env.get_wrapper_attr("maze_map"), theirs.maze_map)
    for name in ("body_mass", "actuator_gear", "dof_damping", "opt.timestep"):
        np.testing.assert_array_equal(*(attrgetter(name)(model) for model in (env.unwrapped.model, theirs.model)))
    walls = [theirs.model.geom(i) for i in range(theirs.model.ngeom) if theirs.model.geom(i).name.startswith("block")]
    for wall, name in itertools.product(walls, ("pos", "size", "margin", "friction")):
        np.testing.assert_array_equal(getattr(env.unwrapped.model.geom(wall.name), name), getattr(wall, name))


def adroit_reward(hand: str, data) -> float:
    """D4RL's formulas (hand_manipulation_suite), from the simulator's state."""
    x = {data.site(i).name: data.site(i).xpos for i in range(len(data.site_xpos))}
    thing = None if hand == "door" else data.body("Object").xpos
    far = lambda a, b: np.linalg.norm(a - b)  # noqa: E731
    if hand == "pen":
        axes = [x[f"{name}_top"] - x[f"{name}_bottom"] for name in ("object", "target")]
        aligned = np.dot(*(axis / np.linalg.norm(axis) for axis in axes))
        near = far(thing, x["eps_ball"]) < 0.075
        bonus = 10 * (near and aligned > 0.9) + 50 * (near and aligned > 0.95) - 5 * (thing[2] < 0.075)
        return -far(thing, x["eps_ball"]) + aligned + bonus
    if hand == "door":
        hinge = data.joint("door_hinge").qpos[0]
        bonus = 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)
        cost = 0.1 * far(x["S_grasp"], x["S_handle"]) + 0.1 * (hinge - 1.57) ** 2 + 1e-5 * np.sum(data.qvel**2)
        return bonus - cost
    if hand == "hammer":
        nail = far(x["S_target"], x["nail_goal"])
        cost = 0.1 * far(x["S_grasp"], thing) + far(x["tool"], x["S_target"]) + 10 * nail
        bonus = 2 * (thing[2] > 0.04 and x["tool"][2] > 0.04) + 25 * (nail < 0.02) + 75 * (nail < 0.01)
        return bonus - cost - 1e-2 * np.linalg.norm(data.qvel)
    palm, target = x["S_grasp"], x["target"]
    lifted = (1 - 0.5 * far(palm, target) - 0.5 * far(thing, target)) * (thing[2] > 0.04)
    return lifted - 0.1 * far(palm, thing) + 10 * (far(thing, target) < 0.1) + 20 * (far(thing, target) < 0.05)


@pytest.mark.parametrize("hand", ["pen", "door", "hammer", "relocate"])
def test_adroit_pays_and_ends_as_d4rl(hand):
    env, rng, fallen = make_env(f"{hand}-human"), np.random.default_rng(0), 0
    for seed in range(3):
        env.reset(seed=seed)
        ended = False
        while not ended:
            _, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, env.action_space.shape))
            data = env.unwrapped.data
            np.testing.assert_allclose(reward, adroit_reward(hand, data), atol=1e-12)
            assert terminated == (hand == "pen" and data.body("Object").xpos[2] < 0.075)
            assert "success" not in info
            ended, fallen = terminated or truncated, fallen + terminated
        assert terminated or round(data.time / env.unwrapped.dt) == (100 if hand == "pen" else 200)
    assert (fallen > 0) == (hand == "pen")


def test_time_limits_are_d4rls_and_no_log_file_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo would write one there
    limits = {"antmaze-umaze-diverse": 700, "antmaze-large-play": 1000, "halfcheetah-medium": 1000}
    for task, steps in limits.items():
        env = make_env(task)
        env.reset(seed=0)
        ends = [any(env.step(np.zeros(env.action_space.shape))[2:4]) for _ in range(steps)]
        assert not any(ends[:-1]) and ends[-1]
    assert not list(tmp_path.iterdir())


# The last six numbers of the observation after some steps in MuJoCo 3.4.0, which took the larger of two margins. With
# the margins as they are in MuJoCo 4.0, they are off by 5e-2, 1e-3 and 5e-4.
FIRST_STEPS = {
    "hopper-medium": (10, [0.014739607, -0.636184963, 0.754140319, 0.680367724, 0.335186249, 0.783386122], 1e-8),
    "antmaze-umaze": (2, [3.619167855, -6.012658462, 1.832616176, -5.832334201, 0.921652379, 5.341012942], 2e-5),
    "relocate-human": (10, [0.14518691, -0.101260635, -0.112516226, 0.224699097, 0.164792967, -0.277423766], 1e-6),
}


@pytest.mark.parametrize("task", FIRST_STEPS)
def test_first_steps_are_those_of_mujoco_before_3_5(task):
    steps, expected, tolerance = FIRST_STEPS[task]
    env, rng = make_env(task), np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(steps):
        observation, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape))
    np.testing.assert_allclose(observation[-6:], expected, atol=tolerance)


def test_d4rls_file_is_downloaded_once_and_nothing_else_is_kept(hopper_file, tmp_path, monkeypatch):
    (path, arrays), folder = hopper_file, tmp_path / "new"
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder))
    good, digest = path.read_bytes(), sha256(path)
    bad = write_hdf5(path, {name: x for name, x in arrays.items() if name != "rewards"}).read_bytes()
    with hosting(d4rl, "HOST", bad) as host:
        url = f"{d4rl.HOST}/gym_mujoco_v2/hopper_medium-v2.hdf5"
        message = refused("hopper-medium", data="download")
        assert f"cannot be downloaded from {url}" in message and "no 'rewards'" in message
        assert {file.suffix for file in folder.iterdir()} == {".lock"}
        host.content, host.asked = good, []
        for data in ("auto", "download"):
            dataset = load_dataset("hopper-medium", data=data)
    assert host.asked == ["/files/gym_mujoco_v2/hopper_medium-v2.hdf5"]
    assert (dataset.source, dataset.sha256) == ("d4rl", digest)
    assert dataset.path == str(folder / "hopper_medium-v2.hdf5")
    record = json.loads((folder / "hopper_medium-v2-download.json").read_text())
    assert record == {"url": url, "sha256": digest}


def test_files_that_are_damaged_or_cannot_be_had_are_refused(hopper_file, tmp_path, monkeypatch):
    monkeypatch.setattr(d4rl, "HOST", "http://127.0.0.1:9/offline_rl")  # nobody listens there
    for data, message in (
        ("cache", "hopper_medium-v2.hdf5 does not exist"),
        ("collect", "nothing is to be downloaded"),
        ("auto", "cannot be downloaded from http://127.0.0.1:9/offline_rl/gym_mujoco_v2/hopper_medium-v2.hdf5"),
    ):
        assert message in refused("hopper-medium", data=data, data_dir=str(tmp_path / "new"))
    path, arrays = hopper_file
    write_hdf5(path, arrays | {"rewards": np.zeros(12)})
    options = {"data_dir": str(tmp_path), "rewards": "standardized"}
    assert "rewards cannot be standardized" in refused("hopper-medium", **options)
    path.write_bytes(path.read_bytes()[:1000])
    assert f"{path} cannot be read: " in refused("hopper-medium", **options)


def test_without_the_extra_a_message_says_what_to_install(tmp_path, monkeypatch):
    # Python finds a mere folder of that name too, and has a specification without origin for it.
    folder = importlib.machinery.ModuleSpec("h5py", None, is_package=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: folder)
    assert "needs h5py: uv pip install -e '.[d4rl]'" in refused("hopper-medium", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"needs gymnasium_robotics: .*'\.\[d4rl\]'"):
        make_env("pen-human")
