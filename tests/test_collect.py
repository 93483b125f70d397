"""Collected data: OGBench's format and procedures, workers that do not matter, and nothing half-written."""

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import NAME, ROOT, alive, children_of, launch, wait_for

import driftql
from common import UserError, cli, collect, datasets
from common.collect import __main__ as command
from common.collect import procedures, read_record
from common.collect.procedures import make_episode_player, play_seeded
from common.datasets import load_dataset
from common.environments import make_ogbench_env
from common.transitions import sha256

TINY = (
    "--no-progress", "--hidden-dims", "8", "8", "--batch-size", "8", "--steps", "20", "--log-every", "10",
    "--eval-every", "20", "--save-every", "10", "--eval-episodes", "1", "--eval-workers", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> Path:
    """60 training episodes of pointmaze-medium-navigate."""
    return collect.collect(NAME, tmp_path_factory.mktemp("collected"), episodes=60)


def play(name: str, episodes: int, first: int = 0) -> list[tuple[dict, int]]:
    """Episodes in this process, seeded as a worker does it."""
    player = make_episode_player(name)
    return [play_seeded(player, 0, index, 0.0) for index in range(first, first + episodes)]


# -------------------------------------------------------------------------------------------------------------- format


def test_file_has_ogbenchs_format(collected):
    train, validation = np.load(collected), np.load(collected.with_name(f"{collected.stem}-val.npz"))
    shapes = {"observations": (2,), "actions": (2,), "terminals": (), "qpos": (2,), "qvel": (2,)}
    types = {"terminals": bool}
    for file, episodes in ((train, 60), (validation, 6)):
        assert set(file) == set(shapes)
        for key, shape in shapes.items():
            assert file[key].shape == (episodes * 1001, *shape)
            assert file[key].dtype == types.get(key, np.float32)
        ends = np.flatnonzero(file["terminals"])
        np.testing.assert_array_equal(ends, 1000 + 1001 * np.arange(episodes))
        assert np.abs(file["actions"]).max() <= 1
        np.testing.assert_array_equal(file["observations"], file["qpos"])  # of the same moment
    record = json.loads(collected.with_suffix(".json").read_text())
    assert record["episodes"] == 60
    assert record["official_episodes"] == 1000
    assert set(record["sha256"]) == {collected.name, f"{collected.stem}-val.npz"}
    assert f"{NAME}-v0" not in collected.name  # never an official name


def test_ogbenchs_own_loader_reads_it(collected):
    import ogbench

    ogbench.make_env_and_datasets(f"{NAME}-v0", dataset_path=str(collected))
    ours = load_dataset(NAME, dataset=str(collected))
    for task in range(1, 6):
        _, theirs, validation = ogbench.make_env_and_datasets(
            f"{NAME}-singletask-task{task}-v0", dataset_path=str(collected)
        )
        assert len(theirs["rewards"]) == 60_000
        assert len(validation["rewards"]) == 6_000
        assert (theirs["rewards"] == 0).any(), f"task {task} never succeeds"
        assert set(np.unique(theirs["rewards"])) == {-1, 0}
    np.testing.assert_array_equal(ours.observations[ours.rows], theirs["observations"])


# ---------------------------------------------------------------------------------------------------------- procedures


def test_all_free_cells_are_visited(collected):
    maze = make_ogbench_env(NAME, 1).unwrapped
    visited = {maze.xy_to_ij(xy) for xy in np.load(collected)["qpos"]}
    assert visited == set(map(tuple, np.argwhere(maze.maze_map == 0)))


def test_actions_are_the_oracles_direction_plus_noise():
    player = make_episode_player(NAME)
    subgoals, targets = player.args[-1], []
    original = subgoals.next_xy

    def recorded(xy, goal_xy):
        targets.append(original(xy, goal_xy))
        return targets[-1]

    subgoals.next_xy = recorded
    episode, reached = play_seeded(player, 0, 0, 0.0)
    assert reached > 3
    direction = np.array(targets) - episode["qpos"]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    across = np.abs(direction) < 0.05  # there, the action is the noise alone
    expected = np.clip(0.5 * np.random.default_rng(0).standard_normal(100_000), -1, 1).std()
    assert episode["actions"][across].std() == pytest.approx(expected, rel=0.08)
    inside = np.abs(episode["actions"]) < 1
    assert np.corrcoef(episode["actions"][inside], direction[inside])[0, 1] > 0.5


def test_goals_are_not_in_corridors():
    player = make_episode_player("antmaze-large-navigate")
    subgoals = player.args[-1]
    grid = subgoals.maze.maze_map == 0
    assert 0 < len(subgoals.vertices) < len(subgoals.free) == grid.sum()
    assert (1, 1) in subgoals.vertices  # a corner
    assert (2, 1) not in subgoals.vertices  # walls left and right, free above and below
    assert (1, 2) not in subgoals.vertices  # walls above and below


def test_stitch_goals_are_four_cells_away():
    player = make_episode_player("pointmaze-large-stitch")
    maze, subgoals = player.args[0].unwrapped, player.args[-1]
    lengths = set()
    for index in range(20):
        episode, reached = play_seeded(player, 0, index, 0.0)
        assert len(episode["actions"]) == 201
        assert reached <= 1
        lengths.add(subgoals.distance(maze.xy_to_ij(episode["qpos"][0]), maze.xy_to_ij(maze.cur_goal_xy)))
    assert lengths == {4}


def test_explore_turns_every_ten_steps():
    """The ant goes nowhere in particular: no goal counts, 501 rows, actions that noise of std 1 often clips."""
    player, seen = make_episode_player("antmaze-medium-explore"), []
    env, kind, walk, *rest = player.args

    def spy(inputs):
        seen.append(inputs[-2:])
        return walk(inputs)

    episode, reached = play_seeded(functools.partial(player.func, env, kind, spy, *rest), 0, 0, 0.0)
    assert len(episode["actions"]) == 501
    assert reached == 0
    clipped = (np.abs(episode["actions"]) == 1).mean()
    assert clipped > 0.3
    directions = np.stack(seen[:500]).reshape(50, 10, 2)
    np.testing.assert_allclose(directions, np.broadcast_to(directions[:, :1], directions.shape), atol=1e-4)
    assert np.abs(directions[:, 0].mean(axis=0)).max() < 0.5


def test_the_ant_reaches_goals_on_its_feet():
    # One of some thirty ends on its back and stays there; which one, depends on the version of MuJoCo.
    episodes = play("antmaze-large-navigate", 24)
    assert np.mean([reached for _, reached in episodes]) >= 2
    quaternions = np.concatenate([episode["qpos"][:, 3:7] for episode, _ in episodes])
    upside_down = 1 - 2 * (quaternions[:, 1] ** 2 + quaternions[:, 2] ** 2) < 0
    assert upside_down.mean() < 0.05


def test_p_random_action_replaces_that_share_of_the_actions():
    player = make_episode_player("cube-single-play")
    plain, _ = play_seeded(player, 0, 0, 0.0)
    noisy, _ = play_seeded(player, 0, 0, 1.0)
    # The gripper's action is nearly always at a bound or near zero when planned, and uniform when random.
    assert noisy["actions"].std() == pytest.approx(1 / np.sqrt(3), rel=0.03)
    assert np.abs(noisy["actions"].mean(axis=0)).max() < 0.1
    assert plain["actions"].std() < 0.5


@pytest.mark.parametrize("name", ["pointmaze-medium-navigate", "cube-single-play"])
def test_a_share_of_random_actions_is_that_share(name):
    drawn = []

    class Spy(np.random.Generator):
        def uniform(self, low, high, *size):
            value = super().uniform(low, high, *size)
            if (low, high) == (-1, 1):
                drawn.append(value)
            return value

    episode, _ = make_episode_player(name)(Spy(np.random.PCG64(0)), 0, 0.3)
    taken = [np.isclose(episode["actions"], action).all(axis=1).any() for action in drawn]
    assert all(taken)
    share = len(taken) / len(episode["actions"])
    assert share == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / len(episode["actions"])))


def test_cubes_are_picked_up_and_moved():
    ((episode, reached),) = play("cube-double-play", 1)
    cubes = episode["qpos"][:, 14:].reshape(1001, -1, 7)
    assert cubes.shape[1] == 2
    assert reached >= 4
    assert (cubes[:, :, 2].max(axis=0) > 0.1).all()
    assert (np.linalg.norm(cubes[-1, :, :2] - cubes[0, :, :2], axis=-1) > 0.02).all()


def test_scene_moves_drawer_window_cube_and_buttons():
    episodes = [episode for episode, _ in play("scene-play", 2)]
    qpos = np.concatenate([episode["qpos"] for episode in episodes])
    drawer, window = qpos[:, 23], qpos[:, 24]
    assert drawer.min() < -0.15
    assert drawer.max() > -0.01
    assert window.min() < 0.01
    assert window.max() > 0.19
    states = np.concatenate([episode["button_states"] for episode in episodes])
    assert states.dtype == np.int64
    assert set(map(tuple, states)) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert qpos[:, 16].max() > 0.1  # the cube in the air


def test_every_button_of_a_puzzle_is_pressed():
    ((episode, reached),) = play("puzzle-3x3-play", 1)
    assert episode["button_states"].shape == (1001, 9)
    assert set(np.unique(episode["button_states"])) == {0, 1}
    changes = np.abs(np.diff(episode["button_states"], axis=0)).sum(axis=0)
    assert (changes > 0).all()
    assert reached >= 20


def test_a_scene_without_its_cube_is_not_kept():
    qpos = np.zeros((3, 25))
    visible, right, left, drawer = (qpos.copy() for _ in range(4))
    right[1, 15] = 0.3
    left[1, 15], left[1, 16] = -0.31, 0.02
    drawer[1, 15], drawer[1, 16] = -0.31, 0.07
    assert [procedures._cube_stays_visible(x) for x in (visible, right, left, drawer)] == [True, False, False, True]


def test_episodes_do_not_depend_on_those_before(monkeypatch):
    """Also where the environment draws from several generators and keeps its model."""
    for name in ("scene-play", "antmaze-teleport-navigate"):
        plan = procedures.procedure(name)._replace(steps=120)
        monkeypatch.setattr(procedures, "procedure", lambda name, plan=plan: plan)
        both, alone = play(name, 2), play(name, 1, first=1)
        for key, x in alone[0][0].items():
            np.testing.assert_array_equal(both[1][0][key], x)
        assert (both[0][0]["qpos"] != both[1][0]["qpos"]).any()


def test_workers_do_not_change_a_byte(tmp_path):
    paths = [
        collect.collect("pointmaze-teleport-stitch", tmp_path / str(n), 7, p_random_action=0.2, workers=n)
        for n in (1, 2, 3)
    ]
    first = np.load(paths[0])
    for path in paths[1:]:
        for key, x in np.load(path).items():
            assert x.tobytes() == first[key].tobytes()
    other = np.load(collect.collect("pointmaze-teleport-stitch", tmp_path, 7, seed=1, p_random_action=0.2))
    assert (other["actions"] != first["actions"]).any()


# ------------------------------------------------------------------------------------------------------------- scripts


def test_without_a_network_a_script_collects_and_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("ogbench.utils.DATASET_URL", "http://127.0.0.1:9/data")  # nobody listens there
    monkeypatch.setattr("common.progress.LINE_EVERY", 0.0)
    argv = ("--env", NAME, "--data-dir", tmp_path / "data", "--collect-episodes", "3", *TINY)
    run = launch(driftql, *argv, "--runs-dir", tmp_path / "runs", "--progress")
    out, err = capsys.readouterr()
    assert "cannot be reached" in err
    assert "WARNING These are NOT OGBench's official data" in err
    assert "3 episodes (official: 1,000)" in err
    assert "collected" in out
    for line in (f"collect {NAME} 3 of 4 episodes, ", "train   20 of 20 updates, ", "evaluate 1 of 1 episodes, "):
        assert line in out
    for file in ("config.json", "result.json"):
        dataset = json.loads((run / file).read_text())["dataset"]
        assert dataset["source"] == "collected"
        assert dataset["collection"]["episodes"] == 3
        assert dataset["transitions"] == 3000
    # nothing under an official name; the second run takes what is there
    assert not list((tmp_path / "data").glob("*.npz"))
    (file,) = (tmp_path / "data" / "collected").glob("*-seed0.npz")
    made = file.stat().st_mtime_ns
    load_dataset(NAME, data="collect", data_dir=str(tmp_path / "data"), collect_episodes=3)
    assert file.stat().st_mtime_ns == made


def test_a_run_on_collected_data_resumes_on_them_though_the_network_is_back(monkeypatch, tmp_path):
    monkeypatch.setattr("ogbench.utils.DATASET_URL", "http://127.0.0.1:9/data")
    argv = ("--env", NAME, "--data-dir", tmp_path / "data", "--collect-episodes", "2", *TINY)
    run = launch(driftql, *argv, "--runs-dir", tmp_path / "runs")
    (run / "result.json").unlink()  # as if it had been killed
    monkeypatch.setattr("common.datasets._download", lambda *_: pytest.fail("asked the network"))
    launch(driftql, "--no-progress", "--resume", run)
    assert (run / "result.json").exists()


def test_collected_data_train_from_any_folder(collected, tmp_path):
    """And the run goes on where they have moved to: they are known by their sha256."""
    first, then = tmp_path / "first", tmp_path / "then"
    first.mkdir()
    for file in (collected, collected.with_suffix(".json")):
        shutil.copy(file, first)
    argv = ("--env", NAME, "--task", "3", "--dataset", first / collected.name, *TINY)
    run = launch(driftql, *argv, "--runs-dir", tmp_path / "runs")
    config = json.loads((run / "config.json").read_text())
    assert config["dataset"]["source"] == "collected"
    assert "task3" in run.name
    first.rename(then)
    launch(driftql, "--no-progress", "--resume", run, "--steps", "30", "--dataset", then / collected.name)
    config = json.loads((run / "config.json").read_text())
    assert (config["args"]["steps"], config["args"]["dataset"]) == (30, str(then / collected.name))
    assert json.loads((run / "result.json").read_text())["steps"] == 30


def test_a_changed_file_is_not_taken_for_what_was_collected(tmp_path):
    path = collect.collect(NAME, tmp_path, episodes=1)
    assert read_record(path, sha256(path))["episodes"] == 1
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="not what was collected"):
        load_dataset(NAME, dataset=str(path))
    path.with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        load_dataset(NAME, dataset=str(path))


# ------------------------------------------------------------------------------------------------------------ failures


def command_line(*argv, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "common.collect", *map(str, argv)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pointmaze-medum-navigate"], "did you mean pointmaze-medium-navigate"),
        (["humanoidmaze-large-navigate"], "needs a walking policy that takes days to train"),
        (["antsoccer-arena-navigate"], "needs a walking policy that takes days to train"),
        (["cube-single-noisy"], "only its -play version"),
        ([NAME, "--episodes", "0"], "must be positive"),
        ([NAME, "--episodes", "1e9"], "at most 2**31; collect fewer"),
        ([NAME, "--p-random-action", "1.5"], "between 0 and 1"),
        ([NAME, "--out", "/dev/null/data"], "cannot write the collected data"),
        ([NAME, "--episods", "3"], "did you mean --episodes?"),
        ([], "OGBench dataset, for example"),
    ],
)
def test_mistakes_are_one_clear_line(argv, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop, cli.one_line_errors("common.collect"):
        command.main(cli.command_line(command.Args, argv, program="python -m common.collect"))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.count("\n") == 1


def test_what_is_collected_is_found_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    path = collect.collect(NAME, tmp_path / "collected", episodes=1)

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(collect, "alone", denied)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(datasets, "_download", denied)  # which would want to write there
    assert collect.collect(NAME, tmp_path / "collected", episodes=1) == path
    for data in ("collect", "auto"):
        assert load_dataset(NAME, data=data, data_dir=str(tmp_path), collect_episodes=1).path == str(path)
    with pytest.raises(UserError, match="Permission denied"):
        load_dataset(NAME, data="auto", data_dir=str(tmp_path), collect_episodes=2)


def test_a_record_of_something_else_is_none(tmp_path):
    """Somebody's own file in OGBench's format, with a JSON of theirs beside it."""
    path = tmp_path / "mine.npz"
    for content in ('{"learning_rate": 0.1}', "[1, 2]"):
        path.with_suffix(".json").write_text(content)
        assert read_record(path, "") is None
    path.with_suffix(".json").write_text('{"procedure": "x", "sha')
    with pytest.raises(UserError, match=r"is damaged; if mine\.npz was collected, delete both"):
        read_record(path, "")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    usage = collect.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(collect.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="collect fewer episodes"):
        collect.collect(NAME, tmp_path, episodes=1)
    monkeypatch.undo()

    def full(stream, **_):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(UserError, match="No space left on device"):
        collect.collect(NAME, tmp_path, episodes=1)
    assert not [file for file in tmp_path.iterdir() if not file.name.startswith(".")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_collection_leaves_no_file_and_no_process(tmp_path, number):
    process = command_line("pointmaze-medium-navigate", "--episodes", "5000", "--out", tmp_path)
    try:
        assert "collect" in process.stdout.readline()
        children = []
        if sys.platform == "linux":  # elsewhere, whoever is at work cannot be seen
            wait_for(lambda: at_work(process.pid), process)
            children = children_of(process.pid)
        # Ctrl-C reaches the workers too.
        os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
        process.wait(timeout=60)
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert process.stderr.read().strip() == "interrupted"
        wait_for(lambda: not any(map(alive, children)), seconds=20)
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    assert not [file for file in tmp_path.iterdir() if not file.name.startswith(".")]
    assert collect.collect(NAME, tmp_path, episodes=1).exists()  # the lock is free


@pytest.mark.parametrize("number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_an_interrupted_collection_goes_on_where_it_was(tmp_path, monkeypatch, capsys, number, error):
    """Stopped after four of nine episodes; three of them in a file of their own each, of which one is damaged."""
    needed = []
    monkeypatch.setattr(collect, "_check_space", lambda folder, size: needed.append(size))
    whole = collect.collect(NAME, tmp_path / "whole", episodes=8, workers=1)
    receive, played = collect.receive, []

    def interrupted(pipe):
        if len(played) == 4:
            signal.raise_signal(number)
            time.sleep(10)
        monkeypatch.setattr(collect, "KEEP_EVERY", 0.0 if len(played) < 3 else 1e9)
        played.append(message := receive(pipe))
        return message

    monkeypatch.setattr(collect, "receive", interrupted)
    with pytest.raises(error):
        collect.collect(NAME, tmp_path, episodes=8, workers=1)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert "4 of 9 episodes are kept; the same command goes on" in capsys.readouterr().out
    files = sorted((tmp_path / f".{whole.stem}.episodes").glob("*.npz"))
    assert len(files) == 4
    files[1].write_bytes(files[1].read_bytes()[:1000])
    played.clear()
    monkeypatch.setattr(collect, "receive", lambda pipe: played.append(message := receive(pipe)) or message)
    path = collect.collect(NAME, tmp_path, episodes=8, workers=1)
    assert "3 episodes are there from an interrupted collection" in capsys.readouterr().out
    assert [index for index, *_ in played] == [1, 4, 5, 6, 7, 8]
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} >= {path.name, whole.with_suffix(".json").name}
    assert not files[0].parent.exists()
    for name in (path.name, f"{path.stem}-val.npz"):
        assert sha256(tmp_path / name) == sha256(tmp_path / "whole" / name)
    assert path.with_suffix(".json").read_text() == whole.with_suffix(".json").read_text()
    # On the disk: the files, and for a while the kept episodes beside them, of which three were there already.
    size, rest = divmod(needed[0], 2)
    assert (rest, needed) == (0, [2 * size, 2 * size, size + size * 6 // 9])


def test_episodes_of_another_version_are_not_mixed_in(tmp_path, monkeypatch):
    path = tmp_path / f"{NAME}-1-episodes-seed0.npz"
    kept = collect._prepare_kept(path, {"mujoco": "1"})
    (kept / "0.npz").write_bytes(b"")
    assert list(collect._prepare_kept(path, {"mujoco": "1"}).glob("*.npz"))
    assert not list(collect._prepare_kept(path, {"mujoco": "2"}).glob("*.npz"))


def test_two_processes_collect_once(tmp_path):
    argv = (NAME, "--episodes", "20", "--workers", "1", "--out", tmp_path)
    both = [command_line(*argv) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert sum("collect pointmaze" in output for output in outputs) == 1


def at_work(pid: int) -> bool:
    """Whether a worker of this process has loaded what it simulates with."""
    return any("mujoco" in Path(f"/proc/{child}/maps").read_text() for child in children_of(pid) if alive(child))
