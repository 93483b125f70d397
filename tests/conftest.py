"""Small real data and ways to run a script, for all tests."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
sys.path.insert(0, str(ROOT))
pytest.register_assert_rewrite("parity")

from common import runs  # noqa: E402
from common.datasets import make_ogbench_env  # noqa: E402


def write_pointmaze(path: Path, episodes: int = 6, steps: int = 101) -> dict[str, np.ndarray]:
    """A file in OGBench's format from its own pointmaze environment, with random actions. Also returns the arrays."""
    env = make_ogbench_env("pointmaze-medium-navigate", 1)
    rng = np.random.default_rng(0)
    columns = {"observations": [], "actions": [], "terminals": [], "qpos": []}
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        for i in range(steps):
            action = rng.uniform(-1, 1, 2).astype(np.float32)
            row = (observation, action, i == steps - 1, observation)
            for column, value in zip(columns.values(), row):
                column.append(value)
            observation = env.step(action)[0]
    env.close()
    arrays = {name: np.array(x, bool if name == "terminals" else np.float32) for name, x in columns.items()}
    np.savez(path, **arrays)
    return arrays


@pytest.fixture(params=SCRIPTS)
def script(request):
    """Each script at the top, as a module."""
    return import_module(request.param)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """Folder with a small pointmaze-medium-navigate-v0.npz."""
    folder = tmp_path_factory.mktemp("data")
    write_pointmaze(folder / "pointmaze-medium-navigate-v0.npz")
    return folder


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """fails(script, *argv): runs the script in this process, expects exit code 2 and one line on standard error, which
    it returns, and that no run directory is left in tmp_path/runs."""

    def run(script, *argv) -> str:
        monkeypatch.setattr(
            sys, "argv", [f"{script.__name__}.py", "--runs-dir", str(tmp_path / "runs"), *map(str, argv)]
        )
        with pytest.raises(SystemExit) as stop:
            runs.launch(script.main, script.Args, script.PRESETS)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.startswith(f"{script.__name__}: error: ")
        assert error.count("\n") == 1
        assert not list((tmp_path / "runs").glob("*"))
        return error

    return run


def start(script: str, *argv, **options) -> subprocess.Popen:
    """The script as a user starts it, in a process of its own."""
    command = [sys.executable, str(ROOT / script), "--no-progress", *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def alive(pid: int) -> bool:
    """Whether the process exists and is more than an exit code that nobody has collected."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
