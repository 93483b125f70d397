"""What several test files need: small data, ways to run a script, and what a run left behind."""

import csv
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from common import args as common_args
from common import states
from common.data.dataset import Dataset
from common.data.ogbench import make_ogbench_env
from common.runs import Run

ROOT = Path(__file__).parent.parent
SCRIPTS = tuple(sorted(path.stem for path in ROOT.glob("*.py") if "\ndef make_agent(" in path.read_text()))
NAME = "pointmaze-medium-navigate"

# What makes each algorithm cheap, beyond the networks.
CHEAP = {
    "driftql": {"num_candidates": 4},
    "fql": {"flow_steps": 2},
    "drol": {"num_candidates": 4},
    "diffusion_ql": {"diffusion_steps": 2, "num_samples": 2},
    "idql": {"diffusion_steps": 2, "num_samples": 2, "critic_batch_size": 16},
}
TINY = {
    "hidden_dims": (8,), "batch_size": 32, "steps": 40, "log_every": 10, "eval_every": 20, "save_every": 20,
    "eval_episodes": 16, "eval_workers": 1,
}  # fmt: skip


def tiny_args(script, env: str = "bandit", **changes):
    """Arguments of a run that takes seconds."""
    return script.Args(**({"env": env, "progress": False} | TINY | CHEAP.get(script.__name__, {}) | changes))


def tiny_flags(script: str, env: str = "bandit", **changes) -> list[str]:
    """The same as words of a command line."""
    words = ["--no-progress"]
    for name, value in ({"env": env} | TINY | CHEAP.get(script, {}) | changes).items():
        words += [common_args.flag_of(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def compiled(agent):
    """The agent with each function as one program: operations one by one are compiled one by one, for seconds."""
    return agent._replace(init=jax.jit(agent.init), update=jax.jit(agent.update), act=jax.jit(agent.act))


SMALL = {
    "hidden_dims": (16, 16), "diffusion_steps": 3, "steps": 1000, "learning_rate": 0.05, "discount": 0.9,
    "target_rate": 0.3,
}  # fmt: skip


@functools.cache  # an update takes seconds to compile
def small_agent(script, **changes):
    """Of a diffusion method: an agent with two-dimensional actions, its state with targets that differ from what they
    follow, a batch of eight transitions, and the arguments."""
    args = script.Args(**(SMALL | changes))
    agent = compiled(script.make_agent(args, 3, 2))
    state, other = (agent.init(jax.random.PRNGKey(i)) for i in range(2))
    state = state._replace(target_actor=other.params["actor"], target_critic=other.params["critic"])
    rng = np.random.default_rng(0)
    batch = {
        "observations": rng.standard_normal((8, 3)),
        "actions": rng.uniform(-1, 1, (8, 2)),
        "rewards": rng.standard_normal(8),
        "masks": np.arange(8) % 4 > 0,
        "next_observations": rng.standard_normal((8, 3)),
    }
    return agent, state, {name: jnp.asarray(x, jnp.float32) for name, x in batch.items()}, args


def acting(agent, state, num_states, **replaced):
    """Actions of a small agent in one observation, so many times; the given parts of its state replaced."""
    observations = jnp.broadcast_to(jnp.arange(3) / 2.0, (num_states, 3))
    return agent.act(state._replace(**replaced), observations, jax.random.PRNGKey(2))


def launch_in_process(script, *argv) -> Path:
    """What the command line does, in this process; returns the run's directory."""
    words = [str(word) for word in argv]
    return script.main(common_args.parse(script.Args, script.PRESETS, words))


def command(script, *argv) -> None:
    """The script as from a shell, in this process: also what is said and refused before `main`."""
    with mock.patch.object(sys, "argv", [f"{script.__name__}.py", "--no-progress", *map(str, argv)]):
        common_args.launch(script.main, script.Args, script.PRESETS)


def files_of(directory: Path) -> dict[Path, bytes]:
    """The content of every file of a run."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def whole_and_killed(script, args, step: int, killed: Path) -> Path:
    """The directory of a run of `main`; `killed` becomes what a kill right after the interval up to `step` would have
    left of it."""
    real = Run.log

    def log(run, *given):
        real(run, *given)
        if run.step == step:
            shutil.copytree(run.directory, killed)

    with mock.patch.object(Run, "log", log):
        return script.main(args)


def start(script: str, *argv, **options) -> subprocess.Popen:
    """The script as a user starts it, in a process of its own."""
    command = [sys.executable, str(ROOT / script), "--no-progress", *map(str, argv)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, **options)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen | None = None, seconds: float = 120) -> Any:
    """The first true value of condition(). The process must live as long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return value


def alive(pid: int) -> bool:
    """Whether the process exists and is more than an exit code that nobody has collected."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def children_of(pid: int) -> list[int]:
    """Processes that this one has started; none where the system does not say."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def metrics_of(directory: Path) -> list[dict]:
    """Rows of both logs without the timing column."""
    logs = [(directory / name).read_text().splitlines() for name in ("train.csv", "eval.csv")]
    rows = [row for log in logs for row in csv.DictReader(log)]
    return [{name: x for name, x in row.items() if name != "charts/updates_per_second"} for row in rows]


def state_of(directory: Path) -> dict:
    """All that the checkpoint holds of the training state."""
    return states.load(directory)["state"]


def result_of(directory: Path) -> dict:
    return json.loads((directory / "result.json").read_text())


def assert_same_run(directory: Path, other: Path) -> None:
    """Bit for bit, but for times."""
    jax.tree.map(np.testing.assert_array_equal, state_of(directory), state_of(other))
    assert metrics_of(directory) == metrics_of(other)
    first, second = result_of(directory), result_of(other)
    assert first["evaluations"] == second["evaluations"]
    assert first["score_per_seed"] == second["score_per_seed"]


def write_pointmaze(path: Path, episodes: int = 6, steps: int = 101) -> None:
    """A file in OGBench's format from its own pointmaze environment, with random actions."""
    env, rng = make_ogbench_env(NAME, 1), np.random.default_rng(0)
    rows = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        for i in range(steps):
            action = rng.uniform(-1, 1, 2).astype(np.float32)
            rows.append((observation, action, i == steps - 1, observation))
            observation = env.step(action)[0]
    env.close()
    arrays = dict(zip(("observations", "actions", "terminals", "qpos"), map(np.array, zip(*rows))))
    arrays = {name: x.astype(bool if name == "terminals" else np.float32) for name, x in arrays.items()}
    np.savez(path, **arrays)


def make_dataset(observations, actions, rewards, masks, terminals) -> Dataset:
    """A dataset as `--dataset` would load it; rows whose terminals are 2 hold a final state only."""
    f32 = lambda x: np.array(x, np.float32)  # noqa: E731
    rows = np.flatnonzero(np.array(terminals) < 2).astype(np.int32)
    return Dataset(
        name="probe", task=None, make_env=None, source="builtin", path=None, sha256=None, num_trajectories=1, rows=rows,
        observations=f32(observations), actions=f32(actions), rewards=f32(rewards), masks=f32(masks),
        terminals=f32(np.minimum(terminals, 1)),
    )  # fmt: skip
