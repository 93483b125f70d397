"""Names, files, validation, the user's own data, the bandits, and the buffer on the device."""

import http.server
import threading
import warnings
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftql
from common import UserError
from common.buffers import add, make_buffer, sample
from common.datasets import OGBENCH_NAMES, load_dataset, make_ogbench_env, resolve_name

NAME = "pointmaze-medium-navigate"

# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("env", "task", "expected"),
    [
        (NAME, None, (NAME, 1)),
        (f"{NAME}-v0", 3, (NAME, 3)),
        ("cube-double-play", None, ("cube-double-play", 2)),
        ("puzzle-4x4-play-singletask-v0", None, ("puzzle-4x4-play", 4)),
        ("antmaze-large-navigate-singletask-task5-v0", None, ("antmaze-large-navigate", 5)),
    ],
)
def test_short_names_and_full_ids(env, task, expected):
    assert resolve_name(env, task) == expected


def test_default_task_is_ogbenchs():
    """One environment of each domain, asked itself (0 means: the default)."""
    import ogbench  # noqa: F401

    for name in ("pointmaze-medium-navigate", "humanoidmaze-medium-navigate", "antsoccer-arena-navigate", "scene-play"):
        base = "-".join(name.split("-")[:-1])
        env = gymnasium.make(f"{base}-singletask-v0")
        env.reset(seed=0)
        assert resolve_name(name)[1] == env.unwrapped.cur_task_id, name
        env.close()


def test_every_name_has_an_environment():
    import ogbench  # noqa: F401

    for name in OGBENCH_NAMES:
        gymnasium.spec(f"{'-'.join(name.split('-')[:-1])}-singletask-task5-v0")


def test_success_is_computed_after_the_action():
    """The papers' OGBench 1.1.0 behaviour; newer versions default to before the action."""
    env = make_ogbench_env(NAME, 1)
    assert env.unwrapped._success_timing == "post"
    env.close()


def test_the_arms_environments_are_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        env = make_ogbench_env("cube-single-play", 1)
        env.reset(seed=0)
        env.step(np.zeros(5))
    env.close()


# ---------------------------------------------------------------------------------------------------------------- files


def test_ogbench_file_agrees_with_ogbenchs_own_loader(data_dir):
    import ogbench

    path = data_dir / f"{NAME}-v0.npz"
    (data_dir / f"{NAME}-v0-val.npz").write_bytes(path.read_bytes())
    _, theirs, _ = ogbench.make_env_and_datasets(f"{NAME}-singletask-task2-v0", dataset_path=str(path))
    ours = load_dataset(NAME, task=2, data_dir=str(data_dir))
    buffer = make_buffer(ours)
    rows = np.asarray(buffer.rows)
    np.testing.assert_array_equal(ours.observations[rows], theirs["observations"])
    np.testing.assert_array_equal(ours.observations[rows + 1], theirs["next_observations"])
    np.testing.assert_array_equal(ours.rewards[rows], theirs["rewards"])
    np.testing.assert_array_equal(ours.masks[rows], theirs["masks"])
    np.testing.assert_allclose(ours.actions[rows], theirs["actions"], atol=1.1e-5)
    assert np.abs(ours.actions).max() <= 1 - 1e-5
    assert ours.num_trajectories == 6
    assert ours.source == "user"  # 600 transitions are not the official million


def damage(path: Path, **changes):
    arrays = dict(np.load(path)) | changes
    np.savez(path, **{key: x for key, x in arrays.items() if x is not None})


@pytest.fixture
def own_dir(data_dir, tmp_path):
    """A private copy of the data that a test may damage."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"{NAME}-v0.npz").write_bytes((data_dir / f"{NAME}-v0.npz").read_bytes())
    return folder


def test_damaged_files_are_one_clear_line(own_dir, fails):
    path = own_dir / f"{NAME}-v0.npz"
    good = path.read_bytes()
    arrays = dict(np.load(path))
    nan = arrays["observations"].copy()
    nan[37, 1] = np.nan
    pickled = np.array([{"code": "never run"}] * 606, dtype=object)
    not_ended = arrays["terminals"].copy()
    not_ended[-1] = False
    wrongs = {
        "no 'qpos'": {"qpos": None},
        "'observations' contains NaN or infinity, first in row 37": {"observations": nan},
        "actions reach 1.5": {"actions": np.full_like(arrays["actions"], 1.5)},
        "'actions' has shape (606, 3)": {"actions": np.zeros((606, 3), np.float32)},
        "'observations' has shape (606, 5)": {"observations": np.zeros((606, 5), np.float32)},
        "'terminals' has shape (600,)": {"terminals": arrays["terminals"][:600]},
        "the last row is not terminal": {"terminals": not_ended},
        "pickled objects": {"actions": pickled},
        "numbers are needed": {"actions": np.full((606, 2), "x")},
        "is empty": {key: x[:0] for key, x in arrays.items()},
    }
    for expected, changes in wrongs.items():
        path.write_bytes(good)
        damage(path, **changes)
        assert expected in fails(driftql, "--env", NAME, "--data-dir", own_dir)
    for content in (good[: len(good) // 2], good[:-10], b"", b"not a zip file at all"):
        path.write_bytes(content)
        error = fails(driftql, "--env", NAME, "--data-dir", own_dir)
        assert "truncated or damaged" in error or "not an npz file" in error
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    path.write_bytes(flipped)
    assert str(path) in fails(driftql, "--env", NAME, "--data-dir", own_dir)


def test_missing_and_unreadable_places(own_dir, tmp_path, fails):
    assert "is not a folder" in fails(driftql, "--env", NAME, "--data-dir", own_dir / f"{NAME}-v0.npz")
    assert "is not a folder" in fails(driftql, "--env", NAME, "--data-dir", tmp_path / "nowhere", "--data", "cache")
    assert "does not exist" in fails(
        driftql, "--env", "antmaze-large-navigate", "--data-dir", own_dir, "--data", "cache"
    )
    path = own_dir / f"{NAME}-v0.npz"
    path.unlink()
    path.mkdir()
    assert "cannot read" in fails(driftql, "--env", NAME, "--data-dir", own_dir)


def test_no_network_says_what_to_do(tmp_path, fails, monkeypatch):
    monkeypatch.setattr("ogbench.utils.DATASET_URL", "http://127.0.0.1:9/data")  # nobody listens there
    folder = tmp_path / "cache"
    error = fails(driftql, "--env", NAME, "--data-dir", folder, "--data", "download")
    assert "cannot be reached" in error
    assert "--data-dir" in error
    assert "--data collect" in error
    assert not list(folder.glob("*"))


def test_download_goes_through_ogbench(data_dir, tmp_path, monkeypatch):
    """From a web server on this machine: the files arrive, and a second call does not ask again."""
    content = (data_dir / f"{NAME}-v0.npz").read_bytes()
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("ogbench.utils.DATASET_URL", f"http://127.0.0.1:{server.server_port}/ogbench")
        for _ in range(2):
            dataset = load_dataset(NAME, data_dir=str(tmp_path / "new"))
        server.shutdown()
    assert asked == [f"/ogbench/{NAME}-v0.npz", f"/ogbench/{NAME}-v0-val.npz"]
    assert len(dataset.rows) == 600


# ------------------------------------------------------------------------------------------------------------- own data


class LineEnv(gymnasium.Env):
    """Moves along a line; the action space is not [-1, 1] on purpose."""

    observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-3, 5, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1), 0
        return np.array([self.x], np.float32), {}

    def step(self, action):
        self.x, self.t = self.x + float(action[0]), self.t + 1
        return np.array([self.x], np.float32), -abs(self.x), False, self.t == 5, {}


gymnasium.register("Line-v0", entry_point=LineEnv)


def own_arrays(**changes):
    arrays = {
        "observations": np.arange(6, dtype=np.float64)[:, None],
        "actions": np.zeros((6, 1)),
        "rewards": np.arange(6.0),
        "masks": np.array([1, 1, 0, 1, 1, 1.0]),
        "terminals": np.array([0, 0, 1, 0, 0, 1]),
    }
    return arrays | changes


def test_own_file_without_next_observations(tmp_path):
    """The last row of a trajectory counts if its mask is 0; with mask 1 its next state is not known."""
    np.savez(tmp_path / "own.npz", **own_arrays())
    dataset = load_dataset("Line-v0", dataset=str(tmp_path / "own.npz"))
    assert dataset.rows.tolist() == [0, 1, 2, 3, 4]
    assert (dataset.source, dataset.num_trajectories) == ("user", 2)
    env = dataset.make_env()
    assert (env.action_space.low[0], env.action_space.high[0]) == (-1, 1)
    before = env.reset(seed=0)[0]
    assert env.step(np.ones(1, np.float32))[0] - before == pytest.approx(5)  # 1 is the old upper end


def test_own_file_with_next_observations(tmp_path):
    following = np.arange(6, dtype=np.float64)[:, None] + 100
    np.savez(tmp_path / "own.npz", **own_arrays(next_observations=following))
    buffer = make_buffer(load_dataset("Line-v0", dataset=str(tmp_path / "own.npz")))
    batch = sample(buffer, jax.random.PRNGKey(0), 64)
    np.testing.assert_array_equal(batch["next_observations"], batch["observations"] + 100)
    assert set(np.asarray(batch["rewards"])) == set(range(6))


def test_own_file_errors(tmp_path, fails):
    path = tmp_path / "own.npz"
    np.savez(path, **own_arrays())
    assert "NoSuch" in fails(driftql, "--env", "NoSuchEnv-v0", "--dataset", path)
    assert "--task" in fails(driftql, "--env", "Line-v0", "--dataset", path, "--task", 1)
    assert "does not exist" in fails(driftql, "--env", "Line-v0", "--dataset", tmp_path / "no.npz")
    np.savez(path, **own_arrays(masks=np.full(6, 0.5)))
    assert "'masks' must be 0 or 1" in fails(driftql, "--env", "Line-v0", "--dataset", path)
    np.savez(path, **own_arrays(rewards=np.zeros((6, 2))))
    assert "'rewards' has shape (6, 2)" in fails(driftql, "--env", "Line-v0", "--dataset", path)


# -------------------------------------------------------------------------------------------------------------- bandits


def test_bandit_is_the_one_described():
    dataset = load_dataset("bandit")
    assert (len(dataset.rows), dataset.masks.max(), dataset.source) == (10_000, 0, "builtin")
    assert np.unique(dataset.observations).size == 1
    for center, mean in zip([[0, 0.8], [-0.8, 0], [0.8, 0], [0, -0.8]], [2, 1, 5, 5]):
        distance = np.linalg.norm(dataset.actions - np.array(center), axis=1)
        near = distance < 0.3
        assert near.mean() == pytest.approx(0.25, abs=0.001)
        np.testing.assert_allclose(dataset.actions[near].std(axis=0), 0.05, rtol=0.1)
        noise = dataset.rewards[near] - (mean - 10 * distance[near])
        assert noise.mean() == pytest.approx(0, abs=0.05)
        assert noise.std() == pytest.approx(0.5, rel=0.1)


def test_bandit_corners_is_the_one_described():
    dataset = load_dataset("bandit-corners")
    for center, mean in zip([[-0.8, 0.8], [-0.8, -0.8], [0.8, 0.8], [0.8, -0.8]], [3.0, 0.0, 1.5, 5.0]):
        near = np.linalg.norm(dataset.actions - np.array(center), axis=1) < 0.3
        assert near.mean() == pytest.approx(0.25, abs=0.001)
        assert dataset.rewards[near].mean() == pytest.approx(mean, abs=0.05)
        assert dataset.rewards[near].std() == pytest.approx(0.5, rel=0.1)


def test_bandit_success_and_support():
    env = load_dataset("bandit").make_env()
    for action, success, support in [((0.8, 0.1), 1, 1), ((0, -0.65), 1, 1), ((0, 0.8), 0, 1), ((0.5, 0.5), 0, 0)]:
        env.reset(seed=0)
        _, _, terminated, _, info = env.step(np.array(action))
        assert terminated
        assert (info["success"], info["support"]) == (success, support), action


# --------------------------------------------------------------------------------------------------------------- buffer


def test_sampling_is_uniform_over_transitions_and_never_crosses_trajectories(data_dir):
    dataset = load_dataset(NAME, data_dir=str(data_dir))
    batch = sample(make_buffer(dataset), jax.random.PRNGKey(0), 60_000)
    step = np.linalg.norm(batch["next_observations"] - batch["observations"], axis=1)
    assert step.max() < 1.0  # one step moves 0.2 at most; a jump between trajectories is larger
    ends = np.flatnonzero(np.diff(dataset.rows) > 1)
    assert np.linalg.norm(np.diff(dataset.observations, axis=0)[dataset.rows[ends] + 1], axis=1).max() > 1.0
    _, counts = np.unique(
        np.asarray(batch["observations"])[:, 0] + 1j * np.asarray(batch["actions"])[:, 0], return_counts=True
    )
    assert len(counts) == 600
    assert abs(counts - 100).max() < 60  # six standard deviations


def test_online_transitions_are_added_and_the_oldest_overwritten():
    dataset = load_dataset("bandit")
    with pytest.raises(ValueError, match="smaller than the dataset"):
        make_buffer(dataset, capacity=10)
    buffer = make_buffer(dataset, capacity=10_002)
    assert int(sample(buffer, jax.random.PRNGKey(0), 50_000)["masks"].sum()) == 0  # the free rows are not drawn
    insert = jax.jit(add)
    for i in range(3):
        transition = {
            "observations": jnp.full(1, i),
            "actions": jnp.zeros(2),
            "rewards": 100.0 + i,
            "masks": 1.0,
            "next_observations": jnp.full(1, i + 1),
        }
        buffer = insert(buffer, transition)
    assert int(buffer.size) == 10_002
    assert np.asarray(buffer.rewards)[[10_000, 10_001, 0]].tolist() == [100, 101, 102]
    batch = sample(buffer, jax.random.PRNGKey(0), 200_000)
    online = np.asarray(batch["rewards"]) >= 100
    assert set(np.asarray(batch["rewards"])[online]) == {100, 101, 102}
    np.testing.assert_array_equal(batch["next_observations"][online], batch["observations"][online] + 1)


def test_a_buffer_with_capacity_holds_the_same_transitions(data_dir):
    dataset = load_dataset(NAME, data_dir=str(data_dir))
    plain, roomy = make_buffer(dataset), make_buffer(dataset, capacity=len(dataset.rows))
    a, b = (sample(buffer, jax.random.PRNGKey(1), 500) for buffer in (plain, roomy))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_names_are_checked_before_anything_else():
    with pytest.raises(UserError, match="did you mean antmaze-large-navigate"):
        load_dataset("antmaze-larg-navigate")
    with pytest.raises(UserError, match="pixel"):
        load_dataset("visual-cube-single-play")
    with pytest.raises(UserError, match="tasks 1 to 5"):
        load_dataset(NAME, task=6)
    with pytest.raises(UserError, match="give one of them"):
        load_dataset(f"{NAME}-singletask-task2-v0", task=3)


def test_loading_leaves_no_temporary_files(data_dir, tmp_path, monkeypatch):
    """OGBench leaves an XML file in the temporary folder for each maze; 400 jobs would leave 40,000."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load_dataset(NAME, data_dir=str(data_dir)).make_env().close()
    assert not list(tmp_path.iterdir())
