"""Collected data: OGBench's format and procedures, workers that do not matter, and nothing half-written."""

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import ogbench
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


def play(player, index: int = 0) -> tuple[dict, int]:
    """An episode in this process, seeded as a worker does it."""
    return procedures.play(player, 0, index, 0.0)


def test_a_file_has_ogbenchs_format_and_its_own_loader_reads_it(tmp_path):
    """All free cells are visited, and each task's goal is."""
    collected = collect(NAME, tmp_path, episodes=20)
    train, validation = np.load(collected), np.load(collected.with_name(f"{collected.stem}-val.npz"))
    shapes = {"observations": (2,), "actions": (2,), "terminals": (), "qpos": (2,), "qvel": (2,)}
    for file, episodes in ((train, 20), (validation, 2)):
        assert set(file) == set(shapes)
        for key, shape in shapes.items():
            assert file[key].shape == (episodes * 1001, *shape)
            assert file[key].dtype == (bool if key == "terminals" else np.float32)
        np.testing.assert_array_equal(np.flatnonzero(file["terminals"]), 1000 + 1001 * np.arange(episodes))
        assert np.abs(file["actions"]).max() <= 1
        np.testing.assert_array_equal(file["observations"], file["qpos"])  # of the same moment
    record = json.loads(collected.with_suffix(".json").read_text())
    assert (record["episodes"], record["official_episodes"]) == (20, 1000)
    assert set(record["sha256"]) == {collected.name, f"{collected.stem}-val.npz"}
    assert f"{NAME}-v0" not in collected.name  # never an official name
    assert not list(collected.parent.glob(".*.episodes"))
    for task in range(1, 6):
        name = f"{NAME}-singletask-task{task}-v0"
        _, theirs, validation = ogbench.make_env_and_datasets(name, dataset_path=str(collected))
        assert (len(theirs["rewards"]), len(validation["rewards"])) == (20_000, 2_000)
        assert set(np.unique(theirs["rewards"])) == {-1, 0}, f"task {task} never succeeds"
    maze = make_ogbench_env(NAME, 1).unwrapped
    assert {maze.xy_to_ij(xy) for xy in train["qpos"]} == set(map(tuple, np.argwhere(maze.maze_map == 0)))


def test_goals_are_not_in_corridors_and_stitchs_are_four_cells_away():
    player = procedures.make_player("pointmaze-large-stitch")
    inside = inspect.getclosurevars(player).nonlocals
    maze, free, vertices, oracle = map(inside.get, ("maze", "free", "vertices", "oracle"))
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


def shorter(name, steps, monkeypatch):
    """A player whose episodes have so many rows."""
    monkeypatch.setattr(procedures, "procedure", lambda _: (1, steps, ""))
    return procedures.make_player(name)


def test_the_ant_reaches_goals_on_its_feet(monkeypatch):
    # One of some thirty ends on its back and stays there; which one, depends on the version of MuJoCo.
    player = shorter("antmaze-medium-navigate", 500, monkeypatch)
    episodes = [play(player, index) for index in range(24)]
    assert np.mean([reached for _, reached in episodes]) >= 2
    quaternions = np.concatenate([episode["qpos"][:, 3:7] for episode, _ in episodes])
    upside_down = 1 - 2 * (quaternions[:, 1] ** 2 + quaternions[:, 2] ** 2) < 0
    assert upside_down.mean() < 0.05


def test_cubes_are_picked_up_and_moved():
    episode, reached = play(procedures.make_player("cube-double-play"))
    cubes = episode["qpos"][:, 14:].reshape(1001, 2, 7)
    assert reached >= 4
    assert (cubes[:, :, 2].max(axis=0) > 0.1).all()
    assert (np.linalg.norm(cubes[-1, :, :2] - cubes[0, :, :2], axis=-1) > 0.02).all()


def test_scenes_and_puzzles_are_moved_and_pressed():
    """Drawer, window, cube and buttons; every button of a puzzle."""
    episode, _ = play(procedures.make_player("scene-play"), 1)
    qpos, states = episode["qpos"], episode["button_states"]
    drawer, window = qpos[:, 23], qpos[:, 24]
    assert drawer.min() < -0.15 and drawer.max() > -0.01
    assert window.min() < 0.01 and window.max() > 0.19
    assert qpos[:, 16].max() > 0.1  # the cube in the air
    assert states.dtype == np.int64
    assert set(map(tuple, states)) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    qpos = np.zeros((4, 3, 25))  # the cube is visible; right; left; left, in the drawer
    qpos[1:, 1, 15] = 0.3, -0.31, -0.31
    qpos[2:, 1, 16] = 0.02, 0.07
    assert [procedures.cube_stays_visible(x) for x in qpos] == [True, False, False, True]
    episode, reached = play(procedures.make_player("puzzle-3x3-play"))
    assert episode["button_states"].shape == (1001, 9)
    assert set(np.unique(episode["button_states"])) == {0, 1}
    assert (np.diff(episode["button_states"], axis=0) != 0).any(axis=0).all()
    assert reached >= 20


@pytest.mark.parametrize("name", ["scene-play", "antmaze-teleport-navigate"])
def test_episodes_do_not_depend_on_those_before(name, monkeypatch):
    """Also where the environment draws from several generators and keeps its model."""
    player = shorter(name, 120, monkeypatch)
    (first, _), (second, _), (alone, _) = play(player), play(player, 1), play(procedures.make_player(name), 1)
    for key, x in alone.items():
        np.testing.assert_array_equal(second[key], x)
    assert (first["qpos"] != second["qpos"]).any()


def test_without_a_network_data_are_collected_and_say_so(monkeypatch, tmp_path, capsys):
    """Nothing stands under an official name; the second call takes what is there."""
    monkeypatch.setenv("OGBENCH_DATASET_URL", "http://127.0.0.1:9/data")  # nobody listens there
    options = {"data_dir": str(tmp_path / "data"), "collect_episodes": 3, "p_random": 0.2}
    dataset = load_dataset(NAME, **options)
    out, err = capsys.readouterr()
    assert "cannot be downloaded" in err and "WARNING These are NOT OGBench's official data" in err
    assert "3 episodes (official: 1,000)" in err
    assert f"collect {NAME}: 3 + 1 episodes of 1,001 rows" in out
    assert (dataset.source, dataset.collection["episodes"], len(dataset.rows)) == ("collected", 3, 3000)
    assert dataset.collection["p_random_action"] == 0.2
    assert not list((tmp_path / "data").glob("*.npz"))
    (file,) = (tmp_path / "data" / "collected").glob("*-seed0-random0.2.npz")
    made = file.stat().st_mtime_ns
    load_dataset(NAME, data="collect", **options)
    assert file.stat().st_mtime_ns == made


def test_a_collection_has_its_sha256_and_what_the_record_does_not_know_is_not_taken_for_collected(tmp_path):
    """Whatever the number of workers. Not collected are a changed file, and a record that is somebody's own JSON."""
    options = {"episodes": 7, "p_random_action": 0.2}
    paths = [collect("pointmaze-teleport-stitch", tmp_path / str(n), workers=n, **options) for n in (1, 2, 3)]
    assert len({path.read_bytes() for path in paths}) == 1
    path = collect(NAME, tmp_path, episodes=3)
    versions = json.loads(path.with_suffix(".json").read_text())["versions"]
    known = (versions["mujoco"], versions["ogbench"], versions["numpy"]) == KNOWN_VERSIONS
    assert not known or sha256(path)[:16] == KNOWN_SHA256
    assert load_dataset(NAME, dataset=str(path)).source == "collected"
    np.savez(path, **np.load(path))
    assert load_dataset(NAME, dataset=str(path)).source == "unverified"
    path.with_suffix(".json").write_text('{"learning_rate": 0.1}')
    assert load_dataset(NAME, dataset=str(path)).source == "unverified"


def command_line(*argv) -> subprocess.Popen:
    command = [sys.executable, "-m", "common.data.collect", *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)


def test_what_cannot_be_collected(tmp_path):
    for name, options, message in (
        ("humanoidmaze-large-navigate", {}, "policies that take days to train"),
        ("cube-single-noisy", {}, "only -play is made"),
        (NAME, {"p_random_action": 1.5}, "p_random_action from 0 to 1"),
        (NAME, {"out": Path("/dev/null/data")}, "Not a directory: '/dev/null/data'"),
    ):
        with pytest.raises((UserError, NotADirectoryError), match=message):
            collect(name, **{"out": tmp_path} | options)


def test_an_interrupted_collection_leaves_no_process_and_goes_on(tmp_path):
    """After Ctrl-C, which reaches the workers too, and after kill -9: what is missing is played, the bytes are the
    same."""
    whole, out = collect(NAME, tmp_path / "whole", episodes=12), tmp_path / "interrupted"
    folder = out / f".{whole.stem}.episodes"
    for number, played in ((signal.SIGINT, 2), (signal.SIGKILL, 5)):
        process = command_line(NAME, "--episodes", 12, "--out", out, "--workers", 1)
        try:
            wait_for(lambda: len(list(folder.glob("[0-9]*.npz"))) >= played, process)  # noqa: B023
            children = children_of(process.pid)
            os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
            process.wait(timeout=60)
            if number == signal.SIGINT:
                assert process.returncode == 130
                assert process.stderr.read().strip().endswith("interrupted")
            wait_for(lambda: not any(map(alive, children)), seconds=20)  # noqa: B023
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        assert not [file for file in out.iterdir() if not file.name.startswith(".")]
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("[0-9]*.npz")}
    full = OSError(28, "No space left on device")
    with mock.patch("os.replace", side_effect=full), pytest.raises(UserError, match="No space left"):
        collect(NAME, out, episodes=12)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept  # not played again
    assert collect(NAME, out, episodes=12).read_bytes() == whole.read_bytes()
    for name in (f"{whole.stem}-val.npz", f"{whole.stem}.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not folder.exists()


def test_a_short_training_saves_the_policy_that_collection_reads(tmp_path, monkeypatch):
    path, trained = tmp_path / "expert", []  # NumPy would add an ending
    save = sac.save
    monkeypatch.setattr(sac, "save", lambda path, actor, dim: (trained.append(actor), save(path, actor, dim)))
    sac.main(sac.Args(out=str(path), updates=3, num_envs=2, warmup=300, eval_every=3))
    assert [file.name for file in tmp_path.iterdir()] == ["expert"]
    with np.load(path) as saved, np.load(procedures.ANT_EXPERT) as shipped:
        assert {name: x.shape for name, x in saved.items()} == {name: x.shape for name, x in shipped.items()}
    monkeypatch.setattr(procedures, "ANT_EXPERT", path)
    _, _, act = sac.make_sac(sac.Args(out=""), observation_dim=29, action_dim=8)
    x = np.random.default_rng(0).standard_normal(29)
    np.testing.assert_allclose(procedures.load_ant_expert()(x), act(trained[0], x, None), atol=1e-5)
