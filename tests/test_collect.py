"""Collected data: OGBench's format and procedures, workers that do not matter, and nothing half-written."""

import errno
import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NAME, ROOT, alive, children_of, wait_for

from common import UserError
from common.data import load_dataset, procedures
from common.data.collect import collect
from common.data.ogbench import make_ogbench_env
from common.system import sha256

sys.path.insert(0, str(ROOT / "tools"))
import train_ant as sac

KNOWN_VERSIONS, KNOWN_SHA256 = ("4.0.0", "1.2.2", "2.4.6"), "cbd79f283c0fce73"


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> Path:
    """60 training episodes of pointmaze-medium-navigate."""
    return collect(NAME, tmp_path_factory.mktemp("collected"), episodes=60)


def play(player, index: int = 0) -> tuple[dict, int]:
    """An episode in this process, seeded as a worker does it."""
    return procedures.play(player, 0, index, 0.0)


def inside(player) -> dict:
    """What a player keeps between episodes."""
    return dict(inspect.getclosurevars(player).nonlocals)


# -------------------------------------------------------------------------------------------------------------- format


def test_file_has_ogbenchs_format(collected):
    train, validation = np.load(collected), np.load(collected.with_name(f"{collected.stem}-val.npz"))
    shapes = {"observations": (2,), "actions": (2,), "terminals": (), "qpos": (2,), "qvel": (2,)}
    for file, episodes in ((train, 60), (validation, 6)):
        assert set(file) == set(shapes)
        for key, shape in shapes.items():
            assert file[key].shape == (episodes * 1001, *shape)
            assert file[key].dtype == (bool if key == "terminals" else np.float32)
        np.testing.assert_array_equal(np.flatnonzero(file["terminals"]), 1000 + 1001 * np.arange(episodes))
        assert np.abs(file["actions"]).max() <= 1
        np.testing.assert_array_equal(file["observations"], file["qpos"])  # of the same moment
    record = json.loads(collected.with_suffix(".json").read_text())
    assert (record["episodes"], record["official_episodes"]) == (60, 1000)
    assert set(record["sha256"]) == {collected.name, f"{collected.stem}-val.npz"}
    assert f"{NAME}-v0" not in collected.name  # never an official name
    assert not list(collected.parent.glob(".*.episodes"))


def test_ogbenchs_own_loader_reads_it(collected):
    import ogbench

    for task in range(1, 6):
        name = f"{NAME}-singletask-task{task}-v0"
        _, theirs, validation = ogbench.make_env_and_datasets(name, dataset_path=str(collected))
        assert (len(theirs["rewards"]), len(validation["rewards"])) == (60_000, 6_000)
        assert set(np.unique(theirs["rewards"])) == {-1, 0}, f"task {task} never succeeds"


# ---------------------------------------------------------------------------------------------------------- procedures


def test_all_free_cells_are_visited(collected):
    maze = make_ogbench_env(NAME, 1).unwrapped
    visited = {maze.xy_to_ij(xy) for xy in np.load(collected)["qpos"]}
    assert visited == set(map(tuple, np.argwhere(maze.maze_map == 0)))


def test_actions_are_the_oracles_direction_plus_noise(monkeypatch):
    monkeypatch.setattr(procedures.functools, "cache", lambda function: function)
    player, targets = procedures.make_player(NAME), []
    maze = inside(player)["maze"]
    original = maze.get_oracle_subgoal

    def recorded(*args):
        targets.append((answer := original(*args))[0])
        return answer

    maze.get_oracle_subgoal = recorded
    episode, reached = play(player)
    assert reached > 3
    direction = np.array(targets) - episode["qpos"]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    across = np.abs(direction) < 0.05  # there, the action is the noise alone
    expected = np.clip(0.5 * np.random.default_rng(0).standard_normal(100_000), -1, 1).std()
    assert episode["actions"][across].std() == pytest.approx(expected, rel=0.08)
    unclipped = np.abs(episode["actions"]) < 1
    assert np.corrcoef(episode["actions"][unclipped], direction[unclipped])[0, 1] > 0.5


def test_goals_are_not_in_corridors_and_stitchs_are_four_cells_away():
    player = procedures.make_player("pointmaze-large-stitch")
    maze, free, vertices, oracle = (inside(player)[name] for name in ("maze", "free", "vertices", "oracle"))
    assert 0 < len(vertices) < len(free) == (maze.maze_map == 0).sum()
    # A corner; walls left and right, free above and below; walls above and below.
    assert [cell in vertices for cell in [(1, 1), (2, 1), (1, 2)]] == [True, False, False]
    for index in range(20):
        episode, reached = play(player, index)
        start, goal = maze.xy_to_ij(episode["qpos"][0]), maze.xy_to_ij(maze.cur_goal_xy)
        assert (len(episode["actions"]), oracle(start, goal)[1][start]) == (201, 4)
        assert reached <= 1


def test_explore_turns_every_ten_steps(monkeypatch):
    """The ant goes nowhere in particular: no goal counts, 501 rows, actions that noise of std 1 often clips."""
    walk, seen = procedures.load_ant_expert(), []
    monkeypatch.setattr(procedures, "load_ant_expert", lambda: lambda x: (seen.append(x[-2:]), walk(x))[1])
    episode, reached = play(procedures.make_player("antmaze-medium-explore"))
    assert (len(episode["actions"]), reached) == (501, 0)
    assert (np.abs(episode["actions"]) == 1).mean() > 0.3
    directions = np.stack(seen[:500]).reshape(50, 10, 2)
    np.testing.assert_allclose(directions, np.broadcast_to(directions[:, :1], directions.shape), atol=1e-4)
    assert np.abs(directions[:, 0].mean(axis=0)).max() < 0.5


def test_the_ant_reaches_goals_on_its_feet():
    # One of some thirty ends on its back and stays there; which one, depends on the version of MuJoCo.
    player = procedures.make_player("antmaze-large-navigate")
    episodes = [play(player, index) for index in range(24)]
    assert np.mean([reached for _, reached in episodes]) >= 2
    quaternions = np.concatenate([episode["qpos"][:, 3:7] for episode, _ in episodes])
    upside_down = 1 - 2 * (quaternions[:, 1] ** 2 + quaternions[:, 2] ** 2) < 0
    assert upside_down.mean() < 0.05


@pytest.mark.parametrize("name", ["pointmaze-medium-navigate", "cube-single-play"])
def test_a_share_of_random_actions_is_that_share(name):
    drawn = []

    class Spy(np.random.Generator):
        def uniform(self, low, high, *size):
            value = super().uniform(low, high, *size)
            if (low, high) == (-1, 1):
                drawn.append(value)
            return value

    episode, _ = procedures.make_player(name)(Spy(np.random.PCG64(0)), 0, 0.3)
    assert all(np.isclose(episode["actions"], action).all(axis=1).any() for action in drawn)
    share = len(drawn) / len(episode["actions"])
    assert share == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / len(episode["actions"])))


def test_cubes_are_picked_up_and_moved():
    episode, reached = play(procedures.make_player("cube-double-play"))
    cubes = episode["qpos"][:, 14:].reshape(1001, 2, 7)
    assert reached >= 4
    assert (cubes[:, :, 2].max(axis=0) > 0.1).all()
    assert (np.linalg.norm(cubes[-1, :, :2] - cubes[0, :, :2], axis=-1) > 0.02).all()


def test_scene_moves_drawer_window_cube_and_buttons():
    player = procedures.make_player("scene-play")
    episodes = [play(player, index)[0] for index in range(2)]
    qpos = np.concatenate([episode["qpos"] for episode in episodes])
    drawer, window = qpos[:, 23], qpos[:, 24]
    assert drawer.min() < -0.15 and drawer.max() > -0.01
    assert window.min() < 0.01 and window.max() > 0.19
    assert qpos[:, 16].max() > 0.1  # the cube in the air
    states = np.concatenate([episode["button_states"] for episode in episodes])
    assert states.dtype == np.int64
    assert set(map(tuple, states)) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_every_button_of_a_puzzle_is_pressed():
    episode, reached = play(procedures.make_player("puzzle-3x3-play"))
    assert episode["button_states"].shape == (1001, 9)
    assert set(np.unique(episode["button_states"])) == {0, 1}
    assert (np.diff(episode["button_states"], axis=0) != 0).any(axis=0).all()
    assert reached >= 20


def test_a_scene_without_its_cube_is_not_kept():
    qpos = np.zeros((4, 3, 25))  # visible; right; left; left, in the drawer
    qpos[1:, 1, 15] = 0.3, -0.31, -0.31
    qpos[2:, 1, 16] = 0.02, 0.07
    assert [procedures.cube_stays_visible(x) for x in qpos] == [True, False, False, True]


@pytest.mark.parametrize("name", ["scene-play", "antmaze-teleport-navigate"])
def test_episodes_do_not_depend_on_those_before(name, monkeypatch):
    """Also where the environment draws from several generators and keeps its model."""
    plan = procedures.procedure(name)._replace(steps=120)
    monkeypatch.setattr(procedures, "procedure", lambda _: plan)
    player = procedures.make_player(name)
    (first, _), (second, _), (alone, _) = play(player), play(player, 1), play(procedures.make_player(name), 1)
    for key, x in alone.items():
        np.testing.assert_array_equal(second[key], x)
    assert (first["qpos"] != second["qpos"]).any()


def test_workers_do_not_change_a_byte(tmp_path):
    options = {"episodes": 7, "p_random_action": 0.2}
    paths = [collect("pointmaze-teleport-stitch", tmp_path / str(n), workers=n, **options) for n in (1, 2, 3)]
    assert len({path.read_bytes() for path in paths}) == 1
    other = np.load(collect("pointmaze-teleport-stitch", tmp_path, seed=1, **options))
    assert (other["actions"] != np.load(paths[0])["actions"]).any()


def test_a_collection_has_the_sha256_that_it_always_had(tmp_path):
    """With the versions that made it; it says which."""
    path = collect(NAME, tmp_path, episodes=3)
    versions = json.loads(path.with_suffix(".json").read_text())["versions"]
    if (versions["mujoco"], versions["ogbench"], versions["numpy"]) != KNOWN_VERSIONS:
        pytest.skip(f"other versions: {versions}")
    assert sha256(path)[:16] == KNOWN_SHA256


# -------------------------------------------------------------------------------------------------------- load_dataset


def test_without_a_network_data_are_collected_and_say_so(monkeypatch, tmp_path, capsys):
    """Nothing stands under an official name; the second call takes what is there."""
    monkeypatch.setenv("OGBENCH_DATASET_URL", "http://127.0.0.1:9/data")  # nobody listens there
    dataset = load_dataset(NAME, data_dir=str(tmp_path / "data"), collect_episodes=3)
    out, err = capsys.readouterr()
    assert "cannot be downloaded" in err and "WARNING These are NOT OGBench's official data" in err
    assert "3 episodes (official: 1,000)" in err
    assert f"collect {NAME}: 3 + 1 episodes of 1,001 rows" in out
    assert (dataset.source, dataset.collection["episodes"], len(dataset.rows)) == ("collected", 3, 3000)
    assert not list((tmp_path / "data").glob("*.npz"))
    (file,) = (tmp_path / "data" / "collected").glob("*-seed0.npz")
    made = file.stat().st_mtime_ns
    load_dataset(NAME, data="collect", data_dir=str(tmp_path / "data"), collect_episodes=3)
    assert file.stat().st_mtime_ns == made


def test_what_the_record_does_not_know_is_not_taken_for_collected(tmp_path):
    """A changed file; a record that is damaged, or somebody's own JSON."""
    path = collect(NAME, tmp_path, episodes=1)
    assert load_dataset(NAME, dataset=str(path)).source == "collected"
    np.savez(path, **np.load(path))
    with pytest.raises(UserError, match="not what was collected"):
        load_dataset(NAME, dataset=str(path))
    for content in ("{", '{"learning_rate": 0.1}', "[1, 2]"):
        path.with_suffix(".json").write_text(content)
        assert load_dataset(NAME, dataset=str(path)).source == "unverified"


# ------------------------------------------------------------------------------------------------------------ failures


def command_line(*argv) -> subprocess.Popen:
    command = [sys.executable, "-m", "common.data.collect", *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)


def test_a_mistake_on_the_command_line_ends_with_a_message():
    process = command_line("pointmaze-medum-navigate")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "did you mean pointmaze-medium-navigate" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("humanoidmaze-large-navigate", {}, "needs a policy that takes days to train"),
        ("cube-single-noisy", {}, "only its -play version"),
        (NAME, {"episodes": 0}, "must be positive"),
        (NAME, {"p_random_action": 1.5}, "p_random_action from 0 to 1"),
        (NAME, {"out": Path("/dev/null/data")}, "cannot write to /dev/null/data"),
    ],
)
def test_what_cannot_be_collected(name, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        collect(name, **{"out": tmp_path} | options)


def test_what_is_collected_is_found_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    path = collect(NAME, tmp_path / "collected", episodes=1)

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for module in ("collect", "dataset"):
        monkeypatch.setattr(f"common.data.{module}.alone", denied)
    for data in ("collect", "auto"):
        assert load_dataset(NAME, data=data, data_dir=str(tmp_path), collect_episodes=1).path == str(path)
    with pytest.raises(UserError, match="Permission denied"):
        load_dataset(NAME, data="auto", data_dir=str(tmp_path), collect_episodes=2)


def test_a_full_disk_leaves_nothing_but_the_episodes(tmp_path, monkeypatch):
    write = np.savez_compressed

    def full(stream, **arrays):
        if len(arrays["actions"]) > 1001:  # workers are other processes
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(stream, **arrays)

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UserError, match="No space left on device"):
        collect(NAME, tmp_path, episodes=2)
    assert not [file for file in tmp_path.iterdir() if not file.name.startswith(".")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_collection_leaves_no_process_and_goes_on(tmp_path, number):
    """After Ctrl-C, which reaches the workers too, and after kill -9: what is missing is played, the bytes are the
    same. A link that is planted under a temporary name is not written through."""
    whole = collect(NAME, tmp_path / "whole", episodes=25)
    out = tmp_path / "interrupted"
    folder = out / f".{whole.stem}.episodes"
    process = command_line(NAME, "--episodes", 25, "--out", out, "--workers", 1)
    try:
        wait_for(lambda: len(list(folder.glob("[0-9]*.npz"))) >= 3, process)
        children = children_of(process.pid)
        os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
        process.wait(timeout=60)
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert process.stderr.read().strip().endswith("interrupted")
        wait_for(lambda: not any(map(alive, children)), seconds=20)
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    assert not [file for file in out.iterdir() if not file.name.startswith(".")]
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("[0-9]*.npz")}
    (folder / f".new-{os.getpid()}-{whole.name}").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="File exists"):
        collect(NAME, out, episodes=25)
    assert not (tmp_path / "victim").exists()
    assert {file: file.stat().st_mtime_ns for file in kept} == kept  # not played again
    assert collect(NAME, out, episodes=25).read_bytes() == whole.read_bytes()
    for name in (f"{whole.stem}-val.npz", f"{whole.stem}.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not folder.exists()


def test_episodes_of_another_version_are_not_mixed_in(tmp_path):
    whole = collect(NAME, tmp_path / "whole", episodes=1)
    folder = tmp_path / f".{whole.stem}.episodes"
    folder.mkdir()
    (folder / "made_by.json").write_text('{"versions": {"mujoco": "1"}}')
    (folder / "0.npz").write_bytes(b"of another version")
    assert collect(NAME, tmp_path, episodes=1).read_bytes() == whole.read_bytes()


def test_two_processes_collect_once(tmp_path):
    argv = (NAME, "--episodes", "20", "--workers", "1", "--out", tmp_path)
    both = [command_line(*argv) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert sum("collect pointmaze" in output for output in outputs) == 1


# ----------------------------------------------------------------------------------------------------------- train_ant


def test_sac_finds_the_best_action_and_its_value():
    """Reward -(a - 0.5 s)^2 at s = -1 or 1, the next state random: the best action is 0.5 s, in both states."""
    args = sac.Args(out="", hidden_dims=(32, 32), learning_rate=3e-3, batch_size=256, discount=0.5)
    init, update, act = sac.make_sac(args, observation_dim=1, action_dim=1)
    state, rng = init(jax.random.PRNGKey(0)), np.random.default_rng(0)
    for _ in range(900):
        s, a = rng.choice([-1.0, 1.0], (256, 1)), rng.uniform(-1, 1, (256, 1))
        batch = {"observations": s, "actions": a, "rewards": -((a - 0.5 * s)[:, 0] ** 2)}
        batch["next_observations"] = rng.choice([-1.0, 1.0], (256, 1))
        state = update(state, jax.tree.map(jnp.asarray, batch))
    states = np.array([[-1.0], [1.0]])
    np.testing.assert_allclose(act(state.params["actor"], states, None), 0.5 * states, atol=0.12)
    # Entropy is held at its target, -0.5 per action dimension: wide enough to explore, narrow enough to aim.
    actions = np.asarray(act(state.params["actor"], np.repeat(states[1:], 4000, axis=0), jax.random.PRNGKey(1)))
    assert 0.05 < actions.std() < 0.4


def test_a_short_training_saves_the_policy_that_collection_reads(tmp_path, monkeypatch):
    path, steps, trained = tmp_path / "expert", [], []  # NumPy would add an ending
    save = sac.save
    monkeypatch.setattr(sac, "is_upside_down", lambda env: bool(steps.append(1)))
    monkeypatch.setattr(sac, "save", lambda path, actor, dim: (trained.append(actor), save(path, actor, dim)))
    sac.main(sac.Args(out=str(path), updates=3, num_envs=2, warmup=300, eval_every=3, eval_episodes=1))
    assert len(steps) == 1000  # one evaluation of one episode
    assert [file.name for file in tmp_path.iterdir()] == ["expert"]
    with np.load(path) as saved, np.load(procedures.ANT_EXPERT) as shipped:
        assert {name: x.shape for name, x in saved.items()} == {name: x.shape for name, x in shipped.items()}
    monkeypatch.setattr(procedures, "ANT_EXPERT", path)
    _, _, act = sac.make_sac(sac.Args(out=""), observation_dim=29, action_dim=8)
    x = np.random.default_rng(0).standard_normal(29)
    np.testing.assert_allclose(procedures.load_ant_expert()(x), act(trained[0], x, None), atol=1e-5)


def test_upside_down_is_the_torso_pointing_down():
    env = sac.make_env(sac.Args(out=""))
    env.reset(seed=0)
    assert not sac.is_upside_down(env)
    env.unwrapped.data.qpos[3:7] = (0, 1, 0, 0)  # half a turn about x
    assert sac.is_upside_down(env)
    env.close()


def test_a_folder_that_is_not_there_is_said_before_the_training(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        sac.main(sac.Args(out=str(tmp_path / "nowhere" / "expert.npz")))
