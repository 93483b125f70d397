"""From a name or a file to a Dataset: finding, downloading, reading, labels; one's own data; the bandits' data."""

import http.server
import io
import json
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from helpers import NAME

import driftql
from common import UserError, datasets
from common.buffers import make_buffer, sample
from common.datasets import load_dataset
from common.transitions import sha256

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
    assert ours.source == "unverified"  # nothing says that it was downloaded


@pytest.mark.parametrize("task", [1, 3, 5])
def test_evaluation_is_of_the_task_that_was_asked_for(task, data_dir):
    """Environment and rewards; a full id names the task too."""
    for dataset in (
        load_dataset(NAME, task=task, data_dir=str(data_dir)),
        load_dataset(f"{NAME}-singletask-task{task}-v0", data_dir=str(data_dir)),
    ):
        env = dataset.make_env()
        env.reset(seed=0)
        assert (dataset.task, env.unwrapped.cur_task_id) == (task, task)
        env.close()


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
        "'observations' is NaN, infinite or beyond float32, first in row 37": {"observations": nan},
        "'observations' is NaN, infinite or beyond float32, first in row 0": {"observations": np.full((606, 4), 1e39)},
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
    (tmp_path / "a.hdf5").write_bytes(b"\x89HDF\r\n")
    error = fails(driftql, "--env", "Pendulum-v1", "--dataset", tmp_path / "a.hdf5")
    assert "HDF5 is read for D4RL's names alone" in error


def test_no_network_says_what_to_do(tmp_path, fails, monkeypatch):
    monkeypatch.setattr("ogbench.utils.DATASET_URL", "http://127.0.0.1:9/data")  # nobody listens there
    folder = tmp_path / "cache"
    error = fails(driftql, "--env", NAME, "--data-dir", folder, "--data", "download")
    assert "cannot be reached" in error
    assert "--data-dir" in error
    assert "--data collect" in error
    assert not list(folder.glob("[!.]*"))


class Host(http.server.ThreadingHTTPServer):
    """OGBench's host on this machine: every file has the same content."""

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.content, self.asked, self.cut = content, [], {}  # cut: part of a name -> bytes after which it hangs up
        self.open = threading.Event()  # nothing is sent before
        self.open.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            self.server.open.wait()
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            size = next((size for part, size in self.server.cut.items() if part in self.path), None)
            self.wfile.write(self.server.content[:size])

        def log_message(self, *_):
            pass


@pytest.fixture
def host(data_dir, monkeypatch):
    with Host((data_dir / f"{NAME}-v0.npz").read_bytes()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("ogbench.utils.DATASET_URL", f"http://127.0.0.1:{server.server_port}/ogbench")
        yield server
        server.shutdown()


BOTH_FILES = [f"/ogbench/{NAME}-v0.npz", f"/ogbench/{NAME}-v0-val.npz"]


def test_download_goes_through_ogbench(host, tmp_path, capsys):
    """The files arrive, and a second call does not ask again."""
    for _ in range(2):
        dataset = load_dataset(NAME, data_dir=str(tmp_path / "new"))
    assert host.asked == BOTH_FILES
    assert len(dataset.rows) == 600
    # Official is what this program has downloaded, and nothing else: not a copy, not a changed file.
    assert dataset.source == "official"
    path, record = tmp_path / "new" / f"{NAME}-v0.npz", tmp_path / "new" / f"{NAME}-v0-download.json"
    assert json.loads(record.read_text())["sha256"] == sha256(path) == dataset.sha256
    assert json.loads(record.read_text())["url"].endswith(f"/ogbench/{NAME}-v0.npz")
    capsys.readouterr()
    damage(path, qvel=np.zeros(606))
    assert load_dataset(NAME, data_dir=str(tmp_path / "new")).source == "unverified"
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert sha256(path)[:16] in output
    path.write_bytes(host.content)
    assert load_dataset(NAME, data_dir=str(tmp_path / "new")).source == "official"
    record.write_text("{")
    assert load_dataset(NAME, data_dir=str(tmp_path / "new")).source == "unverified"
    record.unlink()
    assert load_dataset(NAME, data_dir=str(tmp_path / "new")).source == "unverified"


@pytest.mark.parametrize("part", ["v0.npz", "-val"])
def test_a_download_that_ends_early_leaves_nothing_and_is_repeated(part, host, tmp_path):
    host.cut = {part: len(host.content) // 2}
    with pytest.raises(UserError, match="did not arrive whole"):
        load_dataset(NAME, data_dir=str(tmp_path))
    assert not (tmp_path / f"{NAME}-v0.npz").exists()
    host.cut = {}
    assert load_dataset(NAME, data_dir=str(tmp_path)).source == "official"
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{NAME}-v0.npz", f"{NAME}-v0-val.npz", f"{NAME}-v0-download.json", f".{NAME}-v0.lock",
    }  # fmt: skip


def test_one_process_downloads_and_the_others_wait(host, tmp_path, capsys):
    host.open.clear()
    with ThreadPoolExecutor() as pool:
        paths = [pool.submit(datasets._download, NAME, tmp_path) for _ in range(3)]  # processes elsewhere
        said = ""
        while said.count("another process is downloading") < 2:
            time.sleep(0.02)
            said += capsys.readouterr().out
        host.open.set()
    assert {path.result() for path in paths} == {tmp_path / f"{NAME}-v0.npz"}
    assert host.asked == BOTH_FILES
    assert load_dataset(NAME, data_dir=str(tmp_path)).source == "official"


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


class UnboundedEnv(LineEnv):
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)


gymnasium.register("Line-v0", entry_point=LineEnv)
gymnasium.register("Unbounded-v0", entry_point=UnboundedEnv)
gymnasium.register("Needy-v0", entry_point="not_installed_at_all.envs:Env")


def own_arrays(**changes):
    arrays = {
        "observations": np.arange(6, dtype=np.float64)[:, None],
        "actions": np.zeros((6, 1)),
        "rewards": np.arange(6.0),
        "masks": np.array([1, 1, 0, 1, 1, 1.0]),
        "terminals": np.array([0, 0, 1, 0, 0, 1]),
    }
    return arrays | changes


def test_own_file_without_next_observations(tmp_path, capsys):
    """The last row of a trajectory counts if its mask is 0; with mask 1 its next state is not known."""
    np.savez(tmp_path / "own.npz", **own_arrays())
    dataset = load_dataset("Line-v0", dataset=str(tmp_path / "own.npz"))
    assert dataset.rows.tolist() == [0, 1, 2, 3, 4]
    assert (dataset.source, dataset.num_trajectories) == ("user", 2)
    assert "NOTE" not in capsys.readouterr().out
    np.savez(tmp_path / "own.npz", **own_arrays(masks=np.zeros(6)))
    load_dataset("Line-v0", dataset=str(tmp_path / "own.npz"))
    assert f"NOTE    {tmp_path / 'own.npz'}: 100.0% of masks are 0" in capsys.readouterr().out
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


def test_own_rewards_in_an_ogbench_environment(data_dir, tmp_path, fails):
    with np.load(data_dir / f"{NAME}-v0.npz") as file:
        rows = {key: file[key] for key in ("observations", "actions", "terminals")}
    size = len(rows["terminals"])
    np.savez(tmp_path / "own.npz", **rows, rewards=np.arange(size), masks=np.ones(size))
    dataset = load_dataset(NAME, task=3, dataset=str(tmp_path / "own.npz"))
    assert (dataset.name, dataset.task, dataset.source) == (NAME, 3, "user")
    assert dataset.rewards[5] == 5
    assert dataset.make_env().spec.id == "pointmaze-medium-singletask-task3-v0"
    assert "has data of its own" in fails(driftql, "--env", "bandit", "--dataset", tmp_path / "own.npz")


def test_environments_that_cannot_be_used_are_one_clear_line(tmp_path, fails):
    """Discrete actions, actions without bounds, a package that is not installed, and one that does not exist."""
    path = tmp_path / "own.npz"
    np.savez(path, **own_arrays())
    assert "takes actions of Discrete(2)" in fails(driftql, "--env", "CartPole-v1", "--dataset", path)
    assert "takes actions of Box(-inf, inf" in fails(driftql, "--env", "Unbounded-v0", "--dataset", path)
    for env in ("Needy-v0", "not_installed_at_all:Env-v0"):
        error = fails(driftql, "--env", env, "--dataset", path)
        assert env in error
        assert "No module named" in error


def test_an_environment_that_only_this_process_knows_is_one_clear_line(tmp_path, fails):
    """The workers that evaluate do not know what Line-v0 is, unless they import the module that registers it."""
    path = tmp_path / "own.npz"
    np.savez(path, **own_arrays())
    flags = ("--steps", 10, "--batch-size", 2, "--hidden-dims", 8, "--eval-workers", 1)
    error = fails(driftql, "--env", "Line-v0", "--dataset", path, *flags)
    assert "If a module of yours registers it, name that too: --env MODULE:Line-v0." in error


def test_an_ogbench_name_with_a_mistake_is_suggested_for_one_s_own_file_too(data_dir, fails):
    path = data_dir / f"{NAME}-v0.npz"
    assert NAME in fails(driftql, "--env", "pointmaze-medum-navigate", "--dataset", path)


def test_files_that_are_no_npz_or_promise_too_much_are_one_clear_line(tmp_path, fails):
    path = tmp_path / "own.npz"
    with open(path, "wb") as file:
        np.save(file, np.zeros((6, 1)))
    assert "is a single array" in fails(driftql, "--env", "Line-v0", "--dataset", path)
    # A header of 8 exabytes in an archive of a kilobyte; and an archive that says it unpacks to more than there is.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**60, 1)})
    np.savez(path, **own_arrays())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"observations.npy": header.getvalue()}).items():
            archive.writestr(name, content)
    error = fails(driftql, "--env", "Line-v0", "--dataset", path)
    assert "memory" in error or "damaged" in error
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2**32 - 2).to_bytes(4, "little")  # uncompressed size, in the directory
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_memory", lambda: 4e9)
        assert "unpacks to 4.3 GB; this machine has 4.0 GB" in fails(driftql, "--env", "Line-v0", "--dataset", path)


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


def test_loading_leaves_no_temporary_files(data_dir, tmp_path, monkeypatch):
    """OGBench leaves an XML file in the temporary folder for each maze; 400 jobs would leave 40,000."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load_dataset(NAME, data_dir=str(data_dir)).make_env().close()
    assert not list(tmp_path.iterdir())
