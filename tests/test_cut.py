"""What a user does to a script: take the algorithm out, wrap the environment, bring an environment that fails."""

import dataclasses
import os
import re
import signal
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from fakes import Recorder
from helpers import CHEAP, ROOT, maze_flags, metrics_of, result_of, start, tiny_args, tiny_flags, wait_for

import driftql
from common.evaluation import Evaluator, environment_seed

# --------------------------------------------------------------------------------------- the algorithm without the rest

TRAIN = """
import sys
folder, name, settings = sys.argv[1:]
sys.path.insert(0, folder)
sys.modules |= dict.fromkeys({others})

import functools, importlib, jax, numpy as np
script = importlib.import_module(name)
from common.buffers import make_buffer

rng = np.random.default_rng(0)
observations, actions = rng.normal(size=(500, 3)), rng.uniform(-1, 1, (500, 2))
terminals = np.arange(500) % 5 == 4
arrays = dict(observations=observations, actions=actions, masks=1 - terminals, terminals=terminals)
arrays["rewards"] = 3 + observations[:, 0] - abs(actions[:, 1])

args = script.Args(**eval(settings))
agent, buffer = script.make_agent(args, 3, 2), make_buffer(arrays)
state, losses = jax.jit(agent.init)(jax.random.PRNGKey(0)), []
train = jax.jit(functools.partial(script.train_chunk, agent, batch_size=32, num_updates=100))
for _ in range(5):
    state, metrics = train(state, buffer)
    losses.append(metrics["losses/critic"])
assert losses[-1] < 0.5 * losses[0], losses
assert agent.act(state, observations[:7], jax.random.PRNGKey(1)).shape == (7, 2)
ours = [module.__file__ for module in sys.modules.values() if module and module.__name__.startswith("common.")]
assert len(ours) == 2 and all(file.startswith(folder) for file in ours), ours
"""
OTHERS = ["ogbench", "gymnasium", "tyro", "mujoco", "tensorboardX", "tqdm", "cloudpickle", "matplotlib", *(
    f"common.{path.stem}" for path in (ROOT / "common").iterdir() if path.stem not in ("critics", "buffers", "__init__")
)]  # fmt: skip


def test_the_algorithm_can_be_taken_out(script, tmp_path):
    """The part above the cut and two files learn from NumPy arrays where nothing else can be imported. The base class
    of the arguments is all that has to be written."""
    above, _, below = (ROOT / f"{script.__name__}.py").read_text().partition("-- cut here")
    base = "class BaseArgs:\n    steps = 1_000_000"
    above, count = re.subn("^from common.args import BaseArgs$", base, above, flags=re.MULTILINE)
    assert below and count == 1
    (tmp_path / f"{script.__name__}.py").write_text(above)
    (tmp_path / "common").mkdir()
    for name in ("critics.py", "buffers.py"):
        (tmp_path / "common" / name).write_text((ROOT / "common" / name).read_text())
    settings = {"hidden_dims": (32, 32), "learning_rate": 1e-3, "discount": 0.1} | CHEAP[script.__name__]
    command = [sys.executable, "-I", "-c", TRAIN.replace("{others}", repr(OTHERS)), tmp_path, script.__name__]
    subprocess.run([*command, repr(settings)], cwd=tmp_path, check=True)


# ---------------------------------------------------------------------------------------------- a changed load(args)

CHUNKS = '''
import dataclasses
import gymnasium
import numpy as np


class Chunks(gymnasium.Wrapper):
    """Takes two actions at once."""

    def __init__(self, env):
        super().__init__(env)
        low, high = env.action_space.low, env.action_space.high
        self.action_space = gymnasium.spaces.Box(np.tile(low, 2), np.tile(high, 2))

    def step(self, actions):
        total = 0.0
        for action in np.split(actions, 2):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def load(args):
    dataset = load_dataset(args.env, args.task, args.data, args.data_dir)
    even = np.arange(len(dataset.terminals)) % 101 % 2 == 0  # the file's trajectories have 101 rows
    actions, rewards = (np.roll(x, -1, axis=0) for x in (dataset.actions, dataset.rewards))
    return dataclasses.replace(
        dataset,
        make_env=lambda **options: Chunks(dataset.make_env(**options)),
        actions=np.append(dataset.actions, actions, axis=1)[even],
        rewards=(dataset.rewards + args.discount * rewards)[even],
        **{name: getattr(dataset, name)[even] for name in ("observations", "masks", "terminals")},
        rows=np.flatnonzero(dataset.terminals[even] == 0).astype(np.int32),
    )


'''


def test_a_script_that_wraps_its_environment_trains_goes_on_and_is_played(tmp_path, data_dir):
    source, run, environment = (ROOT / "driftql.py").read_text(), tmp_path / "run", os.environ | {"PYTHONPATH": ROOT}
    start_of_load, start_of_main = source.index("def load(args"), source.index("def main(args")
    chunked = tmp_path / "chunked.py"
    chunked.write_text(source[:start_of_load] + CHUNKS + source[start_of_main:])
    command = [chunked, *maze_flags(data_dir), "--run-dir", run]
    process = start(*command, env=environment)
    wait_for(lambda: (run / "eval.csv").exists() and len(metrics_of(run)) > 3, process)
    process.send_signal(signal.SIGTERM)
    assert (process.wait(), start(*command, env=environment).wait()) == (143, 0)
    last = result_of(run)["evaluations"][-1]
    assert last["length"][0] <= 500  # OGBench's 1,000 steps by twos
    play = [sys.executable, ROOT / "tools" / "play.py", run, "--script", chunked, "--no-progress"]
    played = subprocess.run(play, capture_output=True, text=True, cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    assert "chunked on" in played.stdout
    assert all(f"{name} {last[name][0]:.4g} " in played.stdout for name in ("return", "length"))


# ----------------------------------------------------------------------------------------- environments of one's own


@pytest.fixture
def with_env(monkeypatch):
    """with_env(class): DriftQL has the bandit's data and this environment."""
    data = driftql.load(driftql.args_for("bandit"))
    return lambda env: monkeypatch.setattr(driftql, "load", lambda _: dataclasses.replace(data, make_env=env))


def own(observation=(0,), reward=1.0, ends=False, info=None, first=(0,)):
    """An environment for the bandit's data, with what its steps give. What is an exception is raised."""

    class Own(Recorder):
        action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

        def reset(self, **options):
            return given(first), super().reset(**options)[1]

        def step(self, action):
            return given(observation), reward, ends, False, info

    return Own


def given(value):
    if isinstance(value, Exception):
        raise value
    return value


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (own(FloatingPointError("it blew up")), "the environment Own failed: FloatingPointError: it blew up"),
        (own(first=FloatingPointError("it blew up")), "the environment Own failed: FloatingPointError: it blew up"),
        (own([np.nan], info={}), "the environment Own gave an observation that is not finite"),
        (own([0, 0], info={}), "the environment Own gave an observation of shape (2,), not (1,)"),
        (own(["here"], info={}), "an observation of the environment Own failed: ValueError: could not convert"),
        (own(reward=np.nan, info={}), "the environment Own gave the reward nan, which is not a finite number"),
        (own(ends=True, info={"success": "yes"}), "the environment Own gave the success 'yes'"),
        (own(ends=True, info={"success": np.ones(2)}), "the environment Own gave the success array([1., 1.])"),
        (own(info=None), "the environment Own failed: TypeError"),
        (own(info={"xy": 3.0}), "the environment Own failed: TypeError"),
    ],
)
def test_what_is_wrong_with_an_environment_is_one_message(env, message, with_env, fails):
    with_env(env)
    error = fails(driftql, *tiny_flags("driftql"))
    assert message in error
    assert error.count("error:") == 1 and "memory" not in error


def test_a_success_may_be_reported_only_where_there_is_one(with_env, tmp_path):
    """Also as an array of one number. The episodes and evaluations that report none have a success of 0."""

    class OnlyAtGoal(own(ends=True)):
        def step(self, action):
            return *super().step(action)[:4], {"success": np.array([True])} if self.odd else {}

    with Evaluator(OnlyAtGoal, lambda state, observations, key: state + np.zeros((1, 2)), [3], 9, 2, False) as evaluate:
        found = evaluate(np.zeros(1), 0)["success"][0]
    assert found.tolist() == [environment_seed(3, 0, episode) % 2 for episode in range(9)]

    with_env(OnlyAtGoal)
    reached = lambda seed: [environment_seed(seed, step, 0) % 2 for step in (0, 100, 200)]  # noqa: E731
    seed = next(seed for seed in range(99) if reached(seed) == [0, 1, 0])
    args = tiny_args(driftql, seed=seed, eval_episodes=1, run_dir=str(tmp_path / "run"))
    result = result_of(driftql.main(args))
    assert [evaluation["success"] for evaluation in result["evaluations"]] == [[0], [1], [0]]
    assert (result["score"], result["score_is"]) == (0, "mean success of the last evaluation")
