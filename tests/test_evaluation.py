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
from fakes import Recorder, make_short_maze
from helpers import ROOT, alive, wait_for

from common import UserError
from common.evaluation import Evaluator

evaluator = functools.partial(Evaluator, progress=False)


def noisy_act(state, observations, key):
    """A policy with noise in it; `state` shifts its mean."""
    return jnp.clip(state + 0.5 * jax.random.normal(key, (len(observations), 2)), -1, 1)


def echoing_act(state, observations, key):
    return state + 0.01 * observations


def environment_seed(seed: int, step: int, episode: int) -> int:
    return int(np.random.SeedSequence([seed, step, episode]).generate_state(1)[0])


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


def test_the_noise_of_actions_is_drawn_anew_at_every_step():
    """Of every episode, every evaluation and every seed; the same state and observation otherwise."""
    act = lambda state, observations, key: 0.9 * jax.random.uniform(key, (len(observations), 1))  # noqa: E731
    drawn = []
    for seed in (4, 5):  # paths are those of the first seed
        with evaluator(Recorder, act, [seed, seed + 1], 12) as evaluate:
            drawn += [path[:, 0] for step in (0, 100) for path in evaluate(jnp.zeros(2), step)["paths"]]
    everything = np.concatenate(drawn)
    assert 200 < len(everything) == len(np.unique(everything))


def test_neither_workers_nor_other_members_change_a_result():
    """Bit for bit, with policy noise, in a real maze whose teleports draw from NumPy's global generator."""
    make_env = functools.partial(make_short_maze, "pointmaze-teleport-navigate", 200)
    results = []
    for seeds, workers in (([0, 1], 1), ([0, 1], 3), ([1], 2)):
        with evaluator(make_env, noisy_act, seeds, 5, workers) as evaluate:
            results.append(evaluate(jnp.array([0.1, 0.3])[seeds[0] :], 1000))
            assert len(evaluate.processes) == workers
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

    with evaluator(Telling, echoing_act, [3, 4], 40, 2) as evaluate:
        results = [evaluate(jnp.zeros(2), step) for step in (0, 1)]
    seeds, actions, wrong = ([x[name] for x in results] for name in ("return", "success", "support"))
    expected = [[[environment_seed(seed, step, i) for i in range(40)] for seed in (3, 4)] for step in (0, 1)]
    np.testing.assert_array_equal(seeds, expected)
    assert len(np.unique(seeds)) == len(np.unique(actions)) == 160  # the action space is seeded too
    assert not np.any(wrong)


def test_a_killed_worker_is_reported_with_the_signal():
    with evaluator(Recorder, echoing_act, [0], 4, workers=2) as evaluate:
        os.kill(evaluate.processes[0].pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"worker process.*signal 9 .*memory"):
            evaluate(jnp.zeros(1), 0)


def own(observation=(0,), reward=1.0, ends=False, info=None, broken=False):
    """An environment with what its steps give, or whose reset is broken."""

    class Own(Recorder):
        def reset(self, **options):
            if broken:
                raise ConnectionResetError("it blew up")  # as a closed pipe does
            return super().reset(**options)

        def step(self, action):
            return observation, reward, ends, False, info

    return Own


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (own(broken=True), "the environment Own failed: ConnectionResetError: it blew up"),
        (own([np.nan], info={}), "the observation [nan], which is not finite numbers of shape (1,)"),
        (own([0, 0], info={}), "the environment Own gave the observation [0, 0]"),
        (own(reward=np.nan, info={}), "the environment Own gave the reward nan, which is not a finite number"),
        (own(ends=True, info={"success": "yes"}), "the environment Own gave the success 'yes'"),
        (own(ends=True, info={"success": np.ones(2)}), "the environment Own gave the success array([1., 1.])"),
        (own(info=None), "the environment Own failed: TypeError"),
    ],
)
def test_what_is_wrong_with_an_environment_is_one_message(env, message):
    with pytest.raises(UserError) as error, evaluator(env, echoing_act, [0], 2, 1) as evaluate:
        evaluate(jnp.zeros(1), 0)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_success_may_be_reported_only_where_there_is_one():
    """Also as an array of one number. The episodes that report none have a success of 0."""

    class OnlyAtGoal(own(ends=True)):
        def step(self, action):
            return *super().step(action)[:4], {"success": np.array([True])} if self.odd else {}

    with evaluator(OnlyAtGoal, echoing_act, [3], 9, 2) as evaluate:
        found = evaluate(jnp.zeros(1), 0)["success"][0]
    assert found.tolist() == [environment_seed(3, 0, episode) % 2 for episode in range(9)]


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

with Evaluator(Hanging, lambda state, observations, key: observations, [0], 4, 2, False) as evaluate:
    evaluate(jnp.zeros(1), 0)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(number, tmp_path):
    """Though an environment hangs in its step."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(ROOT), str(ROOT / "tests")], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    workers = [int(process.stdout.readline()) for _ in range(2)]
    assert all(map(alive, workers))
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)  # as Ctrl-C does: to the workers too
    process.wait(timeout=60)
    wait_for(lambda: not any(map(alive, workers)), seconds=60)
