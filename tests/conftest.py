"""Fixtures for all tests, and how programs are compiled in all processes: quickly, and once until they change."""

import multiprocessing
import os
import shutil
import signal
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
pytest.register_assert_rewrite("helpers", "parity")

# Before JAX is imported; xdist's workers, the scripts and the pytest that tests start inherit it.
os.environ |= {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # half the time to compile, which is most of what tests do; the same numbers
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    # A third of the time to compile. XLA ends the process at a flag that it does not know, and later ones do not.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# Kept for the next session, which then takes three quarters of the time; `pytest --cache-clear` empties it.
COMPILED, MAX_COMPILED_BYTES = ROOT / ".pytest_cache" / "d" / "compiled", 2**30
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
# Also where there is a GPU: its sums have another order, and every process takes its memory. JAX_PLATFORMS=cuda,cpu
# tries it all the same, with all digits of its products, of which it drops half by default (TF32).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from helpers import SCRIPTS, launch_in_process, tiny_flags, write_pointmaze

from common import args as common_args

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As in a shell's background job; the processes that tests start would have it ignored too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

multiprocessing.set_forkserver_preload(["common.evaluation", "ogbench.locomaze.maze"])  # for `quick_runs`


def pytest_configure(config):
    config.addinivalue_line("markers", "golden: against numbers from the authors' code")
    config.addinivalue_line("markers", "pictures: the runs of this test draw their pictures")
    first = not hasattr(config, "workerinput")  # not one of the processes that it will start
    if first and sum(file.stat().st_size for file in COMPILED.glob("*")) > MAX_COMPILED_BYTES:
        shutil.rmtree(COMPILED)


def pytest_addoption(parser):
    own = parser.getgroup("your own algorithm", "pytest tests/test_learning.py --script NAME")
    own.addoption("--script", help="module to try instead of the five, from the folder it stands in or the root")
    own.addoption("--clone", default="", help="its settings with which it copies the data: alpha=100,num_candidates=4")
    own.addoption("--improve", default="", help="its settings with which Q wins over the data: alpha=0.1")


def pytest_generate_tests(metafunc):
    if "script" in metafunc.fixturenames:
        own = metafunc.config.getoption("script")
        metafunc.parametrize("script", [own] if own else SCRIPTS, indirect=True)


def pytest_collection_modifyitems(items):
    """Groups first, some of them a minute long: at the end they would keep one process busy and the others idle."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture(autouse=True)
def quick_runs(request, monkeypatch):
    """Runs draw their pictures, a second or two each, only where the test is about them: @pytest.mark.pictures. Workers
    are forked from one process that has imported what they need, but in the programs that tests start."""
    if "pictures" not in request.keywords:
        monkeypatch.setattr("common.runs.draw_run", lambda *_: [])
    monkeypatch.setattr("common.workers.START_METHOD", "forkserver")


@pytest.fixture
def script(request):
    """Each script at the top, as a module; or the one that --script names."""
    sys.path.append(os.getcwd())
    return import_module(request.param.removesuffix(".py"))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """Folder with a small pointmaze-medium-navigate-v0.npz."""
    folder = tmp_path_factory.mktemp("data")
    write_pointmaze(folder / "pointmaze-medium-navigate-v0.npz")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The directory of a whole run of `tiny_flags("driftql")`. Do not change it."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.runs.draw_run", lambda *_: [])
        return launch_in_process(import_module("driftql"), *tiny_flags("driftql"), "--run-dir", directory)


@pytest.fixture
def ended(finished, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "ended")


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """fails(script, *argv): runs the script in this process, expects exit code 2 and a message without a traceback on
    standard error, which it returns, and that no run is left in tmp_path."""

    def run(script, *argv) -> str:
        new = [] if {"--resume", "--run-dir"} & set(argv) else ["--run-dir", str(tmp_path / "new run")]
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", "--no-progress", *new, *map(str, argv)])
        with pytest.raises(SystemExit) as stop:
            common_args.launch(script.main, script.Args, script.PRESETS)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error and "Traceback" not in error
        assert not list(tmp_path.glob("new run*"))
        return " ".join(error.split())

    return run
