"""Episodes in worker processes: what is measured, that workers do not matter, and that none outlives its parent."""

import functools
import os
import signal
import subprocess
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import Listener, Recorder, make_short_maze
from helpers import ROOT, alive, wait_for

from common import UserError, evaluation
from common.data.ogbench import make_ogbench_env
from common.evaluation import Evaluator, environment_seed

evaluator = functools.partial(Evaluator, progress=False)


def noisy_act(state, observations, key):
    """A policy with noise in it; `state` shifts its mean."""
    return jnp.clip(state + 0.5 * jax.random.normal(key, (len(observations), 2)), -1, 1)


def echoing_act(state, observations, key):
    return state + 0.01 * observations


def test_success_return_and_length_of_each_episode():
    with evaluator(Recorder, echoing_act, [0, 1], 40) as evaluate:
        results = evaluate(jnp.array([0.0, 0.5]), 0)
    assert results["success"].shape == (2, 40)
    assert 0.2 < results["success"].mean() < 0.8
    for i, offset in enumerate((0.0, 0.5)):
        for success, total, length in zip(results["success"][i], results["return"][i], results["length"][i]):
            assert length == (4 if success else 10)
            # the t-th action sees the observation t: 0.01 * (0 + 1 + ... + length - 1), and the state's offset
            assert total == pytest.approx(offset * length + 0.01 * length * (length - 1) / 2, rel=1e-5)


def test_environments_alive_at_once(monkeypatch):
    """At most 32 for any number of seeds up to 32, as one may take 200 MB; then one per seed."""
    monkeypatch.setattr(evaluation, "Workers", lambda work, arguments: [lanes for _, lanes in arguments])
    for seeds, alive_at_once in ((1, 25), (5, 30), (8, 32), (20, 20), (40, 40)):
        assert sum(evaluator(make_short_maze, noisy_act, list(range(seeds)), 50, 3).workers) == alive_at_once


def test_the_noise_of_actions_is_drawn_anew_at_every_step():
    """Of every episode, every evaluation and every seed; the same state and observation otherwise."""
    act = lambda state, observations, key: 0.9 * jax.random.uniform(key, (len(observations), 1))  # noqa: E731
    drawn = []
    for seed in (4, 5):  # paths are those of the first seed
        with evaluator(Listener, act, [seed, seed + 1], 12) as evaluate:
            for step in (0, 100):
                results = evaluate(jnp.zeros(2), step)
                assert [len(path) for path in results["paths"]] == results["length"][0].tolist()
                drawn += [path[:, 0] for path in results["paths"]]
    everything = np.concatenate(drawn)
    assert len(everything) > 200
    assert len(np.unique(everything)) == len(everything)


def test_neither_workers_nor_other_members_change_a_result():
    """Bit for bit, with policy noise, in a real maze whose teleports draw from NumPy's global generator."""
    make_env = functools.partial(make_ogbench_env, "pointmaze-teleport-navigate", 1)
    results = []
    for seeds, workers in (([0, 1], 1), ([0, 1], 3), ([1], 2)):
        with evaluator(make_env, noisy_act, seeds, 5, workers) as evaluate:
            results.append(evaluate(jnp.array([0.1, 0.3])[seeds[0] :], 1000))
            assert len(evaluate.workers.processes) == workers
    first, second, alone = results
    jax.tree.map(np.testing.assert_array_equal, first, second)
    np.testing.assert_array_equal(alone["return"][0], first["return"][1])
    assert not {tuple(path[0]) for path in first["paths"]} & {tuple(path[0]) for path in alone["paths"]}


def test_the_environment_s_seed_is_of_seed_step_and_episode():
    """In workers, which import no JAX and leave it to their parent when to stop."""

    class Telling(Recorder):
        def __init__(self):
            self.action_space = gymnasium.spaces.Box(-1, 1, (1,))  # its own, as its random numbers are

        def reset(self, *, seed=None, options=None):
            self.seed = seed
            return super().reset(seed=seed)

        def step(self, action):
            ignored = signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
            info = {"success": self.action_space.sample(), "support": "jax" in sys.modules or not ignored}
            return self.action_space.sample() * 0, self.seed, True, False, info

    told = []
    for workers in (1, 2):
        with evaluator(Telling, echoing_act, [3, 4], 40, workers) as evaluate:
            results = [evaluate(jnp.zeros(2), step) for step in (0, 1)]
        told.append([[x[name] for x in results] for name in ("return", "success", "support")])
    expected = [[[environment_seed(seed, step, i) for i in range(40)] for seed in (3, 4)] for step in (0, 1)]
    (seeds, actions, wrong), again = told
    np.testing.assert_array_equal(seeds, expected)
    assert len(np.unique(seeds)) == len(np.unique(actions)) == 160  # the action space is seeded too
    assert not np.any(wrong)
    np.testing.assert_array_equal(told[0], again)


@pytest.mark.parametrize(("number", "advice"), [(signal.SIGKILL, "signal 9 .*memory"), (signal.SIGSEGV, "signal 11 ")])
def test_a_killed_worker_is_reported_with_the_signal(number, advice):
    with evaluator(Recorder, echoing_act, [0], 4, workers=2) as evaluate:
        os.kill(evaluate.workers.processes[0].pid, number)
        with pytest.raises(UserError, match=f"worker process.*{advice}"):
            evaluate(jnp.zeros(1), 0)


PARENT = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have it ignored
sys.path[:0] = sys.argv[1:3]
import jax.numpy as jnp
from common.evaluation import Evaluator
from fakes import Recorder

class Hanging(Recorder):
    def step(self, action):
        os.write(1, f"{os.getpid()}\\n".encode())  # whole, though two write
        time.sleep(600)

def stopping():
    if os.path.exists("crash"):
        raise ValueError

with Evaluator(Hanging, lambda state, observations, key: observations, [0], 4, 2, False, stopping) as evaluate:
    evaluate(jnp.zeros(1), 0)
"""


@pytest.mark.parametrize("how", ["crash", "kill", "interrupt"])
def test_no_worker_outlives_its_parent(how, tmp_path):
    """Though an environment hangs in its step."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(ROOT), str(ROOT / "tests")], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    workers = [int(process.stdout.readline()) for _ in range(2)]
    assert all(map(alive, workers))
    if how == "crash":
        (tmp_path / "crash").touch()
    elif how == "kill":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the workers too
    process.wait(timeout=60)
    wait_for(lambda: not any(map(alive, workers)), seconds=60)
