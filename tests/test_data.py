"""From a name or a file to a Dataset: names, files and their checks, downloads, environments, own data, bandits."""

import contextlib
import hashlib
import http.server
import itertools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import gymnasium
import numpy as np
import pytest
from helpers import NAME, ROOT, wait_for

from common import UserError
from common.data import bandits, load_dataset, ogbench
from common.data.bandits import Bandit
from common.data.dataset import MARGINS_ADD_UP, PHYSICS
from common.data.files import fetch
from common.data.ogbench import OGBENCH_NAMES, make_ogbench_env, resolve_name
from common.data.own import make_user_env
from common.system import sha256


def refused(*args, **options) -> str:
    """The message with which `load_dataset` refuses these arguments."""
    with pytest.raises(UserError) as error:
        load_dataset(*args, **options)
    return str(error.value)


MISTAKES = (
    ("antmaze-larg-navigate", {}, "did you mean antmaze-large-navigate"),
    ("antmaze", {}, "did you mean antmaze-medium-navigate, "),
    ("bandits", {}, r"did you mean bandit\b"),
    ("HOPPER-MEDIUM", {}, "did you mean hopper-medium"),
    ("Pendulum-v1", {}, r"unknown environment .* For your own data add --dataset FILE\.npz"),
    (NAME, {"task": 6}, "tasks 1 to 5"),
    (f"{NAME}-singletask-task2-v0", {"task": 3}, "give one of them"),
    ("hopper-medium", {"task": 2}, "--task belongs to OGBench"),
    (NAME, {"rewards": "standardized"}, "belongs to D4RL"),
    ("bandit", {"task": 1}, "bandit has no tasks"),
    (NAME, {"dataset": "none.npz"}, "none.npz does not exist"),
    (NAME, {"data_dir": __file__, "data": "cache"}, f"{NAME}-v0.npz does not exist"),
)


def test_names_and_mistakes_in_them():
    for env, options, hint in MISTAKES:
        assert re.search(hint, refused(env, **options)), refused(env, **options)
    assert resolve_name(f"{NAME}-v0", 3) == (NAME, 3)
    assert resolve_name("puzzle-4x4-play-singletask-v0") == ("puzzle-4x4-play", 4)
    assert resolve_name("antmaze-large-navigate-singletask-task5-v0") == ("antmaze-large-navigate", 5)
    assert resolve_name("antmaze-large-play-v2") is None


def test_an_ogbench_file_agrees_with_ogbenchs_own_loader(data_dir):
    from ogbench import make_env_and_datasets

    path = data_dir / f"{NAME}-v0.npz"
    (data_dir / f"{NAME}-v0-val.npz").write_bytes(path.read_bytes())
    _, theirs, _ = make_env_and_datasets(f"{NAME}-singletask-task2-v0", dataset_path=str(path))
    ours = load_dataset(NAME, task=2, data_dir=str(data_dir))
    rows = ours.rows
    np.testing.assert_array_equal(ours.observations[rows], theirs["observations"])
    np.testing.assert_array_equal(ours.observations[rows + 1], theirs["next_observations"])
    np.testing.assert_array_equal(ours.rewards[rows], theirs["rewards"])
    np.testing.assert_array_equal(ours.masks[rows], theirs["masks"])
    np.testing.assert_allclose(ours.actions[rows], theirs["actions"], atol=1.1e-5)
    assert ours.num_trajectories == ours.terminals.sum() == 6
    assert not ours.terminals[rows].any()
    assert ours.source == "unverified"  # nothing says that it was downloaded
    env = pickle.loads(cloudpickle.dumps(ours.make_env))(render_mode="rgb_array")  # it travels to other processes
    env.reset(seed=0)
    assert (ours.task, env.unwrapped.cur_task_id, env.render_mode) == (2, 2, "rgb_array")
    env.close()


@pytest.fixture
def data_file(data_dir, tmp_path):
    """A private copy of the data that a test may damage."""
    return shutil.copytree(data_dir, tmp_path / "data") / f"{NAME}-v0.npz"


WRONG = {
    "no 'actions'; it holds observations, terminals, qpos": {"actions": None},
    "'observations' is NaN, infinite or beyond float32, first in row 0": {"observations": np.full((606, 2), 1e39)},
    "actions reach 1.5; they must lie in [-1, 1], which stand for": {"actions": np.full((606, 2), 1.5)},
    "'actions' has shape (606, 3), the environment needs (R, 2)": {"actions": np.zeros((606, 3))},
    "'terminals' has type float64 and shape (600,), needed: one number in": {"terminals": np.zeros(600)},
    "'terminals' must be 0 or 1": {"terminals": np.full(606, 0.5)},
    "holds no transition": {"terminals": np.ones(606)},
    "the last row is not terminal": {"terminals": np.zeros(606)},
    "cannot be read: Object arrays": {"actions": np.array([{"code": "never run"}] * 606, dtype=object)},
    "shape (0, 2)": {"observations": np.zeros((0, 2))},
    "no 'masks'": {"rewards": np.zeros(606)},  # your own data
    "'next_observations' has shape (606, 3), the environment": {
        "rewards": np.zeros(606), "masks": np.ones(606), "next_observations": np.zeros((606, 3)),
    },
}  # fmt: skip


def test_a_file_with_wrong_arrays_or_that_cannot_be_read_is_refused(data_file):
    """With the library's reason."""
    good, arrays, flipped = data_file.read_bytes(), dict(np.load(data_file)), bytearray(data_file.read_bytes())
    for message, changes in WRONG.items():
        np.savez(data_file, **{key: x for key, x in (arrays | changes).items() if x is not None})
        assert message in refused(NAME, dataset=str(data_file))
    flipped[len(good) // 2] ^= 0xFF
    for content in (good[: len(good) // 2], b"", b"no zip", pickle.dumps({}), flipped):
        data_file.write_bytes(content)
        message = refused(NAME, data_dir=str(data_file.parent))
        assert message.startswith(f"{data_file} cannot be read: ") and "delete it and get it again" in message
        assert "cannot be read" in refused("Pendulum-v1", dataset=str(data_file))


def test_without_data_there_is_the_environment(tmp_path, monkeypatch):
    """No file is read, nothing asked for or collected."""
    for module in ("ogbench", "d4rl"):
        monkeypatch.setattr(f"common.data.{module}.fetch", lambda *_: pytest.fail("looked for data"))
    for env, dims in {NAME: (2, 2), "bandit": (1, 2), "hopper-medium": (11, 3), "Pendulum-v1": (3, 1)}.items():
        dataset = load_dataset(env, data="none", data_dir=str(tmp_path / "gone"))
        assert (dataset.observations.shape, dataset.actions.shape) == ((0, dims[0]), (0, dims[1]))
        assert (dataset.source, len(dataset.rows), dataset.rewards.shape) == ("none", 0, (0,))
        dataset.make_env().close()
    assert load_dataset("hopper-medium", data="none").reference == (-20.272305, 3234.3)
    assert load_dataset(NAME, data="none", dataset="gone.npz").task == 1


def test_loading_is_quiet_and_imports_and_leaves_nothing_that_is_not_needed(tmp_path):
    """OGBench leaves an XML file in the temporary folder for each maze; 400 jobs would leave 40,000."""
    names = {"jax", "h5py", "minari", "gymnasium_robotics", "common.data.collect"}
    script = f"""import sys; from common.data import load_dataset
assert not {{"ogbench", "mujoco"}} & set(sys.modules)
load_dataset("bandit"), load_dataset({NAME!r}, data="none").make_env().reset(seed=0)
print({names} & set(sys.modules))"""
    env = os.environ | {"TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
    assert not list(tmp_path.iterdir())


class Host(http.server.ThreadingHTTPServer):
    """A host on this machine: every file has the same content."""

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.content, self.asked, self.cut, self.status = content, [], None, 200
        self.open = threading.Event()  # nothing is sent before
        self.open.set()
        self.address = f"http://127.0.0.1:{self.server_port}/files"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            self.server.open.wait()
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content[: self.server.cut])

        def log_message(self, *_):
            pass


@contextlib.contextmanager
def hosting(module, name: str, content: bytes):
    """A Host in place of the module's own, whose address stands under this name."""
    with Host(content) as server, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        patch.setattr(module, name, server.address)
        yield server
        server.open.set()
        server.shutdown()


@pytest.fixture
def host(data_dir):
    with hosting(ogbench, "OFFICIAL", (data_dir / f"{NAME}-v0.npz").read_bytes()) as server:
        yield server


def visible(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if not file.name.endswith(".lock")}


def test_official_is_what_this_program_has_downloaded(host, tmp_path, monkeypatch):
    """And nothing else: not a copy without its record, not a changed file. A second call does not ask again."""
    load = lambda: load_dataset(NAME, data_dir=str(tmp_path / "new"))  # noqa: E731
    assert [load().source for _ in range(2)] == ["official"] * 2
    assert host.asked == [f"/files/{NAME}-v0.npz"]
    path, record = tmp_path / "new" / f"{NAME}-v0.npz", tmp_path / "new" / f"{NAME}-v0-download.json"
    assert visible(path.parent) == {path.name, record.name}
    assert json.loads(record.read_text()) == {"url": f"{host.address}/{path.name}", "sha256": sha256(path)}
    np.savez(path, **dict(np.load(path)) | {"qvel": np.zeros(606)})
    assert load().source == "unverified"
    path.write_bytes(host.content)
    assert load().source == "official"
    path.unlink()
    monkeypatch.setenv("OGBENCH_DATASET_URL", f"{host.address}/mirror")  # which has the file of the record
    assert load().source == "official" and "mirror" in host.asked[-1]
    record.write_text("{")
    assert load().source == "unverified"


def test_a_download_that_ends_early_stalls_or_is_something_else_leaves_nothing(host, tmp_path, monkeypatch):
    """And is repeated by the next command."""
    url, path = f"{host.address}/file.npz", tmp_path / "file.npz"
    check = lambda file: zipfile.ZipFile(file).close()  # noqa: E731
    host.cut = len(host.content) // 2
    # Some versions of Python raise an error of their own.
    assert re.search("of .* bytes arrived|IncompleteRead", refused(NAME, data="download", data_dir=str(tmp_path)))
    host.status = 404
    with pytest.raises(UserError, match="404"):
        fetch(url, path, check)
    host.status, host.cut = 200, None
    host.open.clear()
    monkeypatch.setattr("common.data.files.TIMEOUT", 0.3)
    with pytest.raises(UserError, match="timed out"):
        fetch(url, path, check)
    host.open.set()
    good, host.content = host.content, b"<html>Please log in</html>"
    with pytest.raises(UserError, match="File is not a zip file"):
        fetch(url, path, check)
    assert not visible(tmp_path)
    host.content = good
    (tmp_path / f".{NAME}-v0.npz.part").touch()  # of a process that was killed while it wrote
    assert load_dataset(NAME, data_dir=str(tmp_path)).source == "official"
    assert visible(tmp_path) == {f"{NAME}-v0.npz", f"{NAME}-v0-download.json"}


def test_one_process_downloads_and_the_others_wait(host, tmp_path, capsys):
    host.open.clear()
    with ThreadPoolExecutor() as pool:
        asked = NAME, tmp_path, "auto", None, 0.0
        paths = [pool.submit(ogbench._find_file, *asked) for _ in range(2)]  # processes elsewhere
        wait_for(lambda: "another process is downloading" in capsys.readouterr().out)
        host.open.set()
    assert {path.result() for path in paths} == {tmp_path / f"{NAME}-v0.npz"}
    assert len(host.asked) == 1


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    for url in ("http://127.0.0.1:9/data", "htp://host/x", "http://[/", "/no/such/folder"):  # nobody listens there
        monkeypatch.setenv("OGBENCH_DATASET_URL", url)
        message = refused(NAME, data_dir=str(tmp_path), data="download")
        assert "cannot be downloaded" in message and "--data-dir" in message and "--data collect" in message
    assert "cannot be collected" in refused("humanoidmaze-large-navigate", data_dir=str(tmp_path))


def test_another_address_gives_unverified_files_unless_a_record_says_more(host, tmp_path, monkeypatch):
    """A folder, as a path or file:///, or another host."""
    mirror, name = tmp_path / "mirror", f"{NAME}-v0"
    mirror.mkdir()
    (mirror / f"{name}.npz").write_bytes(host.content)

    def load(address, folder):
        monkeypatch.setenv("OGBENCH_DATASET_URL", str(address))
        return load_dataset(NAME, data_dir=str(tmp_path / folder)).source

    assert load(mirror, "1") == load(mirror.as_uri(), "2") == load(f"{host.address}/other/", "3") == "unverified"
    record = {"url": f"{host.address}/{name}.npz", "sha256": hashlib.sha256(host.content).hexdigest()}
    (mirror / f"{name}-download.json").write_text(json.dumps(record))
    assert load(mirror, "4") == load(mirror.as_uri(), "5") == "official"
    (mirror / f"{name}-download.json").write_text(json.dumps(record | {"sha256": "0"}))
    assert load(mirror, "6") == "unverified"


def test_every_name_has_an_environment_and_ogbenchs_default_task():
    """One environment of each domain is asked itself (0 means: the default)."""
    import ogbench  # noqa: F401

    for name in OGBENCH_NAMES:
        gymnasium.spec(f"{'-'.join(name.split('-')[:-1])}-singletask-task5-v0")
    for name in ("pointmaze-medium-navigate", "humanoidmaze-medium-navigate", "antsoccer-arena-navigate", "scene-play"):
        env = gymnasium.make(f"{'-'.join(name.split('-')[:-1])}-singletask-v0")
        env.reset(seed=0)
        assert resolve_name(name)[1] == env.unwrapped.cur_task_id, name
        env.close()


def test_success_and_contacts_are_those_of_the_papers():
    """OGBench 1.1.0 computed success after the action, and MuJoCo did not add up the margins of two geoms, 0.01 in
    OGBench's ant; half of it is the same where MuJoCo does."""
    env = make_ogbench_env("antmaze-medium-navigate", 1).unwrapped
    margins = env.model.geom_margin
    assert env._success_timing == "post"
    assert set(margins[margins > 0]) == {0.005 if ogbench.MARGINS_ADD_UP else 0.01}
    assert (PHYSICS["geom_margin"] == "halved") == MARGINS_ADD_UP


class LineEnv(gymnasium.Env):
    """Moves along a line; the action space is not [-1, 1] on purpose."""

    observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float32)

    def __init__(self, action_space=None, render_mode=None):
        self.action_space = action_space or gymnasium.spaces.Box(-3, 5, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.x = np.zeros(1, np.float32)
        return self.x, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.x = self.x + action[:1].astype(np.float32)
        return self.x, -abs(float(self.x[0])), False, False, {}


gymnasium.register("Line-v0", entry_point=LineEnv)
gymnasium.register("Needy-v0", entry_point="not_installed_at_all.envs:Env")
OTHER_ACTIONS = {
    "Unbounded-v0": gymnasium.spaces.Box(-np.inf, np.inf, (1,)),
    "Matrix-v0": gymnasium.spaces.Box(-1, 1, (2, 3)),
    "Discrete-v0": gymnasium.spaces.Discrete(2),
}
for name, space in OTHER_ACTIONS.items():
    gymnasium.register(name, entry_point=LineEnv, kwargs={"action_space": space})


OWN = {"observations": np.arange(6, dtype=np.float64)[:, None], "actions": np.zeros((6, 1)), "rewards": np.ones((6, 1))}
OWN |= {"masks": np.array([1, 1, 0, 1, 1, 1.0]), "terminals": np.array([0, 0, 1, 0, 0, 1])}


@pytest.fixture
def own_file(tmp_path):
    np.savez(tmp_path / "own.npz", **OWN)
    return tmp_path / "own.npz"


def test_your_own_file_with_and_without_next_observations(own_file):
    """The last row of a trajectory counts if its mask is 0; with mask 1 its next state is not known."""
    dataset = load_dataset("Line-v0", dataset=str(own_file))
    assert dataset.rows.tolist() == [0, 1, 2, 3, 4]
    assert (dataset.source, dataset.num_trajectories, dataset.name) == ("user", 2, "Line-v0")
    assert dataset.terminals.tolist() == [0, 0, 1, 0, 0, 1]
    env = dataset.make_env()
    assert (env.action_space.low[0], env.action_space.high[0]) == (-1, 1)
    before = env.reset(seed=0)[0]
    assert env.step(np.ones(1, np.float32))[0] - before == pytest.approx(5)  # 1 is the old upper end
    np.savez(own_file, next_observations=OWN["observations"] + 100, **OWN)
    dataset = load_dataset("Line-v0", dataset=str(own_file))
    np.testing.assert_array_equal(dataset.arrays["next_observations"], OWN["observations"] + 100)
    assert dataset.rows.tolist() == list(range(6))


def test_your_own_rewards_in_an_ogbench_environment(data_file):
    np.savez(data_file, **np.load(data_file), rewards=np.arange(606), masks=np.ones(606))
    dataset = load_dataset(NAME, task=3, dataset=str(data_file))
    assert (dataset.name, dataset.task, dataset.source, dataset.rewards[5]) == (NAME, 3, "user", 5)
    assert dataset.make_env().spec.id == "pointmaze-medium-singletask-task3-v0"


WHY = {name: f"takes actions of {space}; they must be" for name, space in OTHER_ACTIONS.items()}
WHY |= dict.fromkeys(("Needy-v0", "no_module:Env-v0"), "cannot be made: No module named")
WHY |= {"NoEnv-v0": "NoEnv` doesn't exist"}


def test_environments_that_cannot_be_used_are_refused_and_actions_never_leave_the_bounds(own_file):
    """-1 becomes 0.09999999 of Box(0.1, 1.0) by rounding."""
    for env, why in WHY.items():
        message = refused(env, dataset=str(own_file))
        assert f"--env {env}" in message and why in message
        assert "takes actions" in message or "--env MODULE:NAME" in message
    for tenths in range(-30, 30):
        env = make_user_env("Line-v0", action_space=gymnasium.spaces.Box(tenths / 10, 3.1, (1,)))
        env.reset(seed=0)
        for action, dtype in itertools.product((-1, 1), (np.float32, np.float64)):
            env.step(np.array([action], dtype))  # asserts


def record_minari(folder: Path, minari_id: str, env_id: str, lengths: list[int], monkeypatch) -> list[tuple]:
    """Writes a Minari dataset of random actions by Minari's own DataCollector. Returns (s, a, r, s', terminated)."""
    minari = pytest.importorskip("minari", reason="needs the extra minari")
    folder.mkdir(exist_ok=True)  # else the collector writes to a temporary folder, which is removed too soon
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    env = minari.DataCollector(gymnasium.make(env_id, disable_env_checker=True))
    env.action_space.seed(0)
    transitions = []
    for seed, length in enumerate(lengths):
        state, _ = env.reset(seed=seed)
        for _ in range(length):  # what is cut here counts as truncated
            action = env.action_space.sample()
            next_state, reward, terminated, truncated, _ = env.step(action)
            transitions.append((state, action, reward, next_state, terminated))
            state = next_state
            if terminated or truncated:
                break
    env.create_dataset(minari_id, description="-", algorithm_name="random", author="a test", author_email="a@b.c")
    env.close()
    return transitions


@pytest.mark.filterwarnings("ignore")  # of DataCollector
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Hopper-v5"])
def test_any_minari_dataset_comes_back_transition_by_transition(env_id, tmp_path, monkeypatch):
    expected = record_minari(tmp_path, "own/data/test-v0", env_id, [60, 5, 12], monkeypatch)
    dataset = load_dataset(None, dataset="minari:own/data/test-v0", data="cache")
    states, actions, rewards, following, terminated = (np.array(x, np.float32) for x in zip(*expected))
    rows = dataset.rows
    np.testing.assert_array_equal(dataset.observations[rows], states)
    np.testing.assert_array_equal(dataset.observations[rows + 1], following)
    np.testing.assert_array_equal(dataset.rewards[rows], rewards)
    np.testing.assert_array_equal(dataset.masks[rows], 1 - terminated)
    np.testing.assert_allclose(dataset.actions[rows], actions / (2 if env_id == "Pendulum-v1" else 1), atol=2e-5)
    assert (env_id != "Hopper-v5") or terminated.any()  # it fell
    assert dataset.terminals.sum() == dataset.num_trajectories == 3
    assert (dataset.name, dataset.source, dataset.path) == (env_id, "user", str(tmp_path / "own/data/test-v0"))
    assert len(dataset.sha256) == 64
    env = pickle.loads(cloudpickle.dumps(dataset.make_env))()
    assert (env.reset(seed=0)[0].shape, env.spec.id) == (states.shape[1:], env_id)
    np.testing.assert_allclose(env.reset(seed=0)[0], states[0], atol=1e-6)
    assert load_dataset(None, dataset="minari:own/data/test-v0", data="none").observation_dim == states.shape[1]


@pytest.mark.filterwarnings("ignore")
def test_a_minari_dataset_with_an_environment_of_yours_and_downloads(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="needs the extra minari")
    options = {"dataset": "minari:own/data/test-v0", "data_dir": str(tmp_path)}
    remote = sys.modules[minari.load_dataset.__module__].hosting

    def download(name):
        record_minari(Path(os.environ["MINARI_DATASETS_PATH"]), name, "Pendulum-v1", [5], monkeypatch)

    def unreachable(name):
        raise OSError("connection lost\nand more")

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setattr(remote, "download_dataset", unreachable)
    assert refused(None, **options).endswith("cannot be loaded: connection lost.")
    assert "not found locally" in refused(None, data="cache", **options)
    monkeypatch.setattr(remote, "download_dataset", download)
    assert len(load_dataset(None, data="download", **options).rows) == 5
    assert load_dataset("Pendulum-v1", **options).make_env.func is make_user_env
    assert "the environment needs (R, 11)" in refused("Hopper-v5", **options)
    next(tmp_path.rglob("main_data.hdf5")).write_bytes(b"damaged")
    assert "--dataset minari:own/data/test-v0 cannot be loaded: " in refused(None, **options)


@pytest.mark.parametrize("name", bandits.BANDITS)
def test_bandits_are_those_described(name):
    dataset = load_dataset(name)
    assert (len(dataset.rows), dataset.masks.max(), dataset.source) == (10_000, 0, "builtin")
    assert dataset.terminals.all() and dataset.num_trajectories == 10_000
    assert np.unique(dataset.observations).size == 1
    corners = name == "bandit-corners"
    cross, square = [[0, 0.8], [-0.8, 0], [0.8, 0], [0, -0.8]], [[-0.8, 0.8], [-0.8, -0.8], [0.8, 0.8], [0.8, -0.8]]
    for center, mean in zip(square if corners else cross, [3, 0, 1.5, 5] if corners else [2, 1, 5, 5]):
        distance = np.linalg.norm(dataset.actions - np.array(center), axis=1)
        near = distance < 0.3
        assert near.mean() == pytest.approx(0.25, abs=0.001)
        assert corners or dataset.actions[near].std(axis=0) == pytest.approx(0.05, rel=0.1)
        noise = dataset.rewards[near] - (mean - (0 if corners else 10) * distance[near])
        assert noise.mean() == pytest.approx(0, abs=0.05)
        assert noise.std() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("action", "expected"),
    [((0.8, 0.1), (1, 1, 1, 0)), ((0, -0.65), (1, 1, 0, 1)), ((0, 0.8), (0, 1, 0, 0)), ((0.5, 0.5), (0, 0, 0, 0))],
)
def test_a_bandit_reports_success_support_and_which_best_mode_was_met(action, expected):
    _, _, terminated, _, info = Bandit("bandit").step(np.array(action))
    assert (terminated, *(info[name] for name in ("success", "support", "mode_0", "mode_1"))) == (True, *expected)
