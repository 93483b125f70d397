"""A run that was stopped or killed at any moment goes on to the same bits. What Ctrl-C, SIGTERM and SIGHUP do."""

import os
import signal
import subprocess
import sys
import time
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, SCRIPTS, alive, assert_same_run, children_of, command, launch_in_process, start, tiny_args

# isort: split
from helpers import tiny_flags, wait_for, whole_and_killed

import driftql
from common import UserError, checkpoints, states


def step_of(directory) -> int | None:
    """The step of its checkpoint."""
    there = (directory / states.FILE).exists()
    return states.load(directory)["about"]["step"] if there else None


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name, tmp_path):
    """Each script: killed after a checkpoint and 10 more updates with their rows; resumed, bit for bit the same."""
    script, directory = import_module(name), tmp_path / "killed"
    given = tiny_args(script, run_dir=str(tmp_path / "whole"), num_seeds=2)
    whole = whole_and_killed(script, given, 30, directory)
    (directory / ".new-1-checkpoint.msgpack").touch()  # of a process that was killed while it wrote
    assert not (directory / "result.json").exists()
    assert (step_of(directory), "\n30," in (directory / "train.csv").read_text()) == (20, True)
    assert launch_in_process(script, "--no-progress", "--resume", directory) == directory
    assert_same_run(directory, whole)
    assert not list(directory.glob(".*"))
    assert checkpoints.load_policy(directory, 1).act(jnp.zeros((3, 1)), jax.random.PRNGKey(0)).shape == (3, 2)


# Ends or stops itself, right before a function is called for whose arguments the condition is true.
STRUCK = """
import os, time
import driftql
from common import args, evaluation, runs

def right_before(owner, name, condition):
    real = getattr(owner, name)
    def function(*given):
        if condition(*given):
            setattr(owner, name, real)
            {strike}
        return real(*given)
    setattr(owner, name, function)

right_before({moment})
args.launch(driftql.main, driftql.Args, driftql.PRESETS)
"""
SAVES = 'os, "replace", lambda source, path: path.name == "checkpoint.msgpack"'
MOMENTS = {  # one after the other on one run: where, the signal, and the step of the checkpoint that it leaves
    "start, before the first checkpoint": (SAVES, signal.SIGKILL, None),
    "first evaluation": ('evaluation.Evaluator, "ask", lambda *_: True', signal.SIGINT, 0),
    "first interval": ('runs.Run, "log", lambda *_: True', signal.SIGTERM, 10),
    "half of a checkpoint is written": (SAVES + " and not os.truncate(source, 100)", signal.SIGKILL, 10),
    "training": ('runs.Run, "log", lambda run, _: run.step == 30', signal.SIGKILL, 20),
    "evaluation, killed": ('evaluation.Evaluator, "ask", lambda *_: True', signal.SIGKILL, 20),
    "evaluation, stopped": ('evaluation.Evaluator, "ask", lambda *_: True', signal.SIGINT, 20),
    "end, before the result": ('runs, "write_json", lambda path, _: path.name == "result.json"', signal.SIGKILL, 40),
}


def test_a_run_that_is_killed_and_stopped_again_and_again_is_the_same_to_the_bit(finished, tmp_path):
    """Signals that ask for an end come twice, as from a terminal and a batch system, and reach the workers too."""
    directory = tmp_path / "run"
    flags = [*tiny_flags("driftql"), "--run-dir", str(directory)]
    for moment, (where, number, step) in MOMENTS.items():
        asks = number != signal.SIGKILL
        strike = f"os.kill(0, {number}), os.kill(0, {number}), time.sleep(0.5)" if asks else "os.kill(os.getpid(), 9)"
        words = [sys.executable, "-c", STRUCK.format(moment=where, strike=strike), *flags]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, start_new_session=True)
        assert done.returncode == (128 + number if asks else -number), (moment, done.stderr)
        assert step_of(directory) == step, moment
        if asks:
            assert "Traceback" not in done.stderr, moment
            assert done.stdout.endswith(f"--run-dir {directory} goes on\n{directory}\n"), moment
    command(driftql, *flags)
    assert_same_run(directory, finished)


def test_a_state_comes_back_to_the_bit_or_not_at_all(tmp_path):
    state = {"weights": jnp.arange(6.0).reshape(2, 3), "step": jnp.zeros(2, jnp.int32)}
    states.save(tmp_path, state, dict.fromkeys(states.ABOUT, 7))
    saved = states.load(tmp_path)["state"]
    jax.tree.map(np.testing.assert_array_equal, states.restore(jax.tree.map(jnp.ones_like, state), saved), state)
    for other in (state | {"step": jnp.zeros(2)}, state | {"weights": jnp.zeros((3, 3))}, {"a": jnp.zeros(3)}):
        with pytest.raises(UserError, match="does not fit"):
            states.restore(other, saved)


HANGS = """
import gymnasium, numpy as np, pathlib, time

class Hangs(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9, 9, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    episodes = 0
    def reset(self, seed=None, options=None):
        self.episodes += 1
        return np.zeros(3, np.float32), {}
    def step(self, action):
        if self.episodes > 1:
            pathlib.Path(__file__).with_name("hangs").touch()
            time.sleep(10**6)
        return np.zeros(3, np.float32), 0.0, True, False, {}

gymnasium.register("Hangs-v0", entry_point=Hangs)
"""


def test_sigterm_ends_a_run_whose_environment_hangs(tmp_path):
    """In its second evaluation, at step 20."""
    (tmp_path / "hanging.py").write_text(HANGS)
    rng, directory = np.random.default_rng(0), tmp_path / "run"
    arrays = {"observations": rng.normal(size=(200, 3)), "actions": rng.uniform(-1, 1, (200, 1))}
    ones, terminals = np.ones(200), np.arange(200) % 10 == 9
    np.savez(tmp_path / "d.npz", rewards=ones, masks=ones, terminals=terminals, **arrays)
    flags = tiny_flags("driftql", "hanging:Hangs-v0", dataset=tmp_path / "d.npz", eval_episodes=1)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = start("driftql.py", *flags, "--run-dir", directory, env=os.environ | {"PYTHONPATH": paths})
    wait_for((tmp_path / "hangs").exists, process)
    workers = children_of(process.pid)
    process.terminate()
    output, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, error
    assert f"stopped at step 20; --run-dir {directory} goes on" in output
    assert step_of(directory) == 20
    wait_for(lambda: not any(map(alive, workers)))


BLOCKED = """
import contextlib, queue
from common import runs
runs.PATIENCE = 3
with contextlib.ExitStack() as stack:
    runs.StopSignals(stack)
    print("ready", flush=True)
    queue.Queue().get()
"""


@pytest.mark.parametrize("again", [True, False])
def test_a_library_that_does_not_return_is_ended(again, tmp_path):
    """By another signal, a second later; within it they are one. Or by the first, when patience ends."""
    with open(tmp_path / "stderr", "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", BLOCKED], cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "Ctrl-C again" in (tmp_path / "stderr").read_text())
    if again:
        wait_for(lambda: process.send_signal(signal.SIGINT) or process.poll() is not None)
        assert time.monotonic() - began >= 1
    process.communicate(timeout=60)
    assert process.returncode == (128 + signal.SIGINT if again else 1)
    assert ("line 8 in <module>" in (tmp_path / "stderr").read_text()) == (not again)
