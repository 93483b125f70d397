"""Parallel evaluation: what it measures, that workers do not matter, and that no process outlives it."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import threading
from unittest import mock

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import Failing, Listener, Recorder, make_short_maze
from helpers import NAME, ROOT, alive, wait_for

import driftql
from common import UserError, evaluation
from common.environments import make_ogbench_env
from common.evaluation import Evaluator


def noisy_act(state, observations, key):
    """A policy with noise in it; `state` shifts its mean."""
    return jnp.clip(state + 0.5 * jax.random.normal(key, (len(observations), 2)), -1, 1)


def maze_args(**changes):
    defaults = {"env": NAME, "eval_episodes": 7, "progress": False}
    return driftql.Args(**(defaults | changes))


def test_success_return_and_length_of_each_episode():
    args = driftql.Args(env="bandit", eval_episodes=40, num_seeds=2, progress=False)
    act = lambda state, observations, key: state + 0.01 * observations  # noqa: E731
    with Evaluator(args, Recorder, act) as evaluate:
        results = evaluate(jnp.array([0.0, 0.5]), 0).result()
    assert results["success"].shape == (2, 40)
    assert 0.2 < results["success"].mean() < 0.8
    for i, offset in enumerate((0.0, 0.5)):
        for success, total, length in zip(results["success"][i], results["return"][i], results["length"][i]):
            assert length == (4 if success else 10)
            # the t-th action sees the observation t: 0.01 * (0 + 1 + ... + length - 1), and the state's offset
            assert total == pytest.approx(offset * length + 0.01 * length * (length - 1) / 2, rel=1e-5)


@pytest.mark.parametrize(("seeds", "alive_at_once"), [(1, 25), (5, 30), (8, 32), (20, 20), (40, 40)])
def test_environments_alive_at_once(monkeypatch, seeds, alive_at_once):
    """At most 32 for any number of seeds up to 32, as one may take 200 MB; then one per seed."""
    monkeypatch.setattr(evaluation, "Workers", lambda work, arguments: arguments)
    evaluator = Evaluator(maze_args(num_seeds=seeds, eval_episodes=50, eval_workers=3), make_short_maze, noisy_act)
    assert sum(count for _, count in evaluator.workers) == alive_at_once


def test_the_noise_of_actions_is_drawn_anew_at_every_step():
    """Of every episode, every evaluation and every seed; the same state and observation otherwise."""
    args = driftql.Args(env="bandit", eval_episodes=12, num_seeds=2, progress=False, seed=4)
    act = lambda state, observations, key: 0.9 * jax.random.uniform(key, (len(observations), 1))  # noqa: E731
    drawn = []
    for seed in (4, 5):  # paths are those of the first seed
        with Evaluator(dataclasses.replace(args, seed=seed), Listener, act) as evaluate:
            for step in (0, 100):
                results = evaluate(jnp.zeros(2), step).result()
                assert [len(path) for path in results["paths"]] == results["length"][0].tolist()
                drawn += [path[:, 0] for path in results["paths"]]
    everything = np.concatenate(drawn)
    assert len(everything) > 200
    assert len(np.unique(everything)) == len(everything)


def test_result_does_not_depend_on_the_number_of_workers():
    """Bit for bit, with policy noise, in a real maze whose teleports draw from NumPy's global generator."""
    results = []
    for workers in (1, 3):
        args = maze_args(eval_workers=workers, num_seeds=2, eval_episodes=5)
        make_env = functools.partial(make_ogbench_env, "pointmaze-teleport-navigate", 1)
        with Evaluator(args, make_env, noisy_act) as evaluate:
            results.append(evaluate(jnp.array([0.1, 0.3]), 1000).result())
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)


def test_episodes_are_seeded_by_seed_evaluation_and_episode():
    make_env = functools.partial(make_short_maze, NAME, 40)
    with Evaluator(maze_args(num_seeds=2, eval_workers=1), make_env, noisy_act) as evaluate:
        state = jnp.zeros(2)
        first, again, later = (evaluate(state, step).result() for step in (0, 0, 100))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    starts = {tuple(path[0]) for path in first["paths"]}
    assert len(starts) == 7  # episodes differ
    assert not starts & {tuple(path[0]) for path in later["paths"]}  # evaluations differ
    with Evaluator(maze_args(seed=1, eval_workers=1), make_env, noisy_act) as evaluate:
        alone = evaluate(jnp.zeros(1), 0).result()
    # the second of two seeds plays what that seed plays alone, and not what the first one plays
    np.testing.assert_array_equal(alone["return"][0], first["return"][1])
    assert not starts & {tuple(path[0]) for path in alone["paths"]}


def test_evaluation_can_be_stopped_on_the_way_and_used_again():
    args = driftql.Args(env="bandit", eval_episodes=20, progress=False)
    act = lambda state, observations, key: state + 0 * observations  # noqa: E731
    with Evaluator(args, Recorder, act) as evaluate:
        calls = iter([False, False, True])
        assert evaluate(jnp.zeros(1), 0, stopping=lambda: next(calls)).result() is None
        assert evaluate(jnp.zeros(1), 0).result()["length"].shape == (1, 20)


def test_beside_training_the_result_is_the_same(monkeypatch):
    """Bit for bit, though training has reused the memory of the state by then."""
    args = driftql.Args(env="bandit", eval_episodes=20, num_seeds=2, progress=False)
    with Evaluator(args, Recorder, noisy_act) as evaluate:
        state = jnp.array([0.1, 0.3])
        before = evaluate(state, 100).result()
        monkeypatch.setattr(evaluation, "overlaps_training", lambda: True)
        calls = iter([False, True, True])  # once begun, it is not stopped: training does not wait for it
        future = evaluate(state, 100, stopping=lambda: next(calls))
        state.delete()
        jax.tree.map(np.testing.assert_array_equal, before, future.result())


def test_a_stop_does_not_disturb_the_evaluation_on_its_way(monkeypatch):
    """Nor does the next one, which waits for it."""
    args = driftql.Args(env="bandit", eval_episodes=20, num_seeds=2, progress=False)
    begin, real_play, played = threading.Event(), Evaluator._play, []

    def play(evaluator, state, step, stopping):
        played.append(step)
        begin.wait(timeout=5)
        return real_play(evaluator, state, step, stopping)

    with Evaluator(args, Recorder, noisy_act) as evaluate:
        state = jnp.array([0.1, 0.3])
        alone = [evaluate(state, step).result() for step in (100, 300)]
        monkeypatch.setattr(evaluation, "overlaps_training", lambda: True)
        monkeypatch.setattr(Evaluator, "_play", play)
        on_its_way, stopped = evaluate(state, 100), evaluate(state, 200, stopping=lambda: True)
        following = evaluate(state, 300)
        assert stopped.result(timeout=0) is None
        begin.set()
        jax.tree.map(np.testing.assert_array_equal, alone, [on_its_way.result(), following.result()])
    assert played == [100, 300]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_failing_environment_is_reported_with_its_traceback(overlap, monkeypatch):
    monkeypatch.setattr(evaluation, "overlaps_training", lambda: overlap)
    args = driftql.Args(env="bandit", eval_episodes=4, progress=False)
    act = lambda state, observations, key: observations  # noqa: E731
    with Evaluator(args, Failing, act) as evaluate:
        with pytest.raises(RuntimeError, match="the simulation blew up"):
            evaluate(jnp.zeros(1), 0).result()
        workers = evaluate.workers.processes
    assert not any(worker.is_alive() for worker in workers)


def test_a_killed_worker_is_reported():
    args = driftql.Args(env="bandit", eval_episodes=4, progress=False)
    act = lambda state, observations, key: observations  # noqa: E731
    with Evaluator(args, Recorder, act) as evaluate:
        evaluate.workers.processes[0].kill()
        with pytest.raises(UserError, match="worker process died"):
            evaluate(jnp.zeros(1), 0)


CRASH = """
import sys, os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have it ignored
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, os.path.join(sys.argv[1], "tests"))
import jax.numpy as jnp
import driftql
from common.evaluation import Evaluator
from fakes import Recorder
args = driftql.Args(env="bandit", eval_episodes=4, eval_workers=2, progress=False)
with Evaluator(args, Recorder, lambda state, observations, key: observations) as evaluate:
    evaluate(jnp.zeros(1), 0)
    print(*[worker.pid for worker in evaluate.workers.processes], flush=True)
    if sys.argv[2] == "crash":
        raise ValueError("crash")
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["crash", "kill", "interrupt"])
def test_no_worker_is_left_behind(how):
    process = subprocess.Popen(
        [sys.executable, "-c", CRASH, str(ROOT), how],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    if how == "kill":
        process.kill()
    if how == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the workers too
    process.wait(timeout=20)
    wait_for(lambda: not any(map(alive, workers)), seconds=20)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        (UserError("no module named mine."), "^no module named mine.$"),
        (gymnasium.error.DependencyNotInstalled("pip install pygame"), "^a film cannot be made here: pip .*pygame$"),
        (RuntimeError("no display"), "no display.*MUJOCO_GL=egl"),
    ],
)
def test_why_there_is_no_film(reason, advice):
    with pytest.raises(UserError, match=advice):
        evaluation.play_film(mock.Mock(side_effect=reason), lambda *_: 0, 0)
