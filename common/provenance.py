"""What a result depends on besides its arguments: versions, commit, device, physics."""

import importlib.metadata
import importlib.util
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from common.environments import PHYSICS
from common.transitions import Dataset


def circumstances(dataset: Dataset) -> dict[str, Any]:
    """What a result depends on besides the arguments, for config.json and result.json."""
    return {
        "dataset": dataset.describe(),
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "physics": PHYSICS,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "ogbench", "gymnasium", "mujoco")
    extra = ("h5py", "minari", "gymnasium-robotics")  # d4rl
    installed = [name for name in extra if importlib.util.find_spec(name.replace("-", "_"))]
    return {"python": platform.python_version()} | {x: importlib.metadata.version(x) for x in (*packages, *installed)}


def git_commit() -> str | None:
    """Commit of the checkout, with `+changes` if files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD").strip()
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout


def device_summary() -> str:
    """One line: device, versions, and a warning where a GPU lies idle."""
    device, v = jax.devices()[0], versions()
    line = f"{len(jax.devices())} x {device.device_kind}, jax {v['jax']}, ogbench {v['ogbench']}, python {v['python']}"
    if device.platform == "cpu" and Path("/proc/driver/nvidia/version").exists():
        line += "\nWARNING this machine has an NVIDIA GPU, but JAX runs on the CPU: uv pip install -e '.[cuda12]'"
    return line
