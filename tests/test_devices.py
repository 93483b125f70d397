"""What JAX computes on: one line where there is nothing, or no CPU beside the GPU; the folder of compiled programs."""

import os
import subprocess
import sys

import jax
import pytest
from helpers import ROOT, tiny_args

import driftql
from common import UserError, devices


@pytest.fixture
def gpu_alone(monkeypatch):
    """As with JAX_PLATFORMS=cuda on a machine with a GPU."""
    real = jax.local_devices

    def local_devices(*given, backend=None):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu. Available backends are ['cuda']")
        return real(*given, backend=backend)

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "local_devices", local_devices)


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    command = [sys.executable, ROOT / "driftql.py", "--env", "bandit", "--runs-dir", tmp_path / "runs"]
    run = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "nonsense"}, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("driftql: error: JAX_PLATFORMS=nonsense ")
    assert run.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_evaluations_need_the_cpu_beside_the_gpu(gpu_alone, tmp_path):
    """Said before data are loaded, or collected, for minutes."""
    with pytest.raises(UserError, match=r"JAX_PLATFORMS=cuda leaves JAX .*JAX_PLATFORMS=cuda,cpu has both"):
        driftql.main(tiny_args(driftql, "nothing is looked up", log_every=50, runs_dir=str(tmp_path)))


def test_what_no_variable_explains_is_raised_as_it_is(gpu_alone, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(RuntimeError, match="Unknown backend cpu"):
        devices.host()


def test_compiled_programs_are_kept_where_the_variable_says(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        devices.keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == before == os.environ["JAX_COMPILATION_CACHE_DIR"]
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("HOME", str(tmp_path))
        devices.keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".cache" / "offline-rl-jax")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
