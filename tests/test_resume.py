"""A run that was stopped or killed at any moment goes on to the same bits. What Ctrl-C, SIGTERM and SIGHUP do."""

import dataclasses
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
from helpers import (
    ROOT,
    SCRIPTS,
    alive,
    assert_same_run,
    children_of,
    command,
    launch_in_process,
    maze_flags,
    metrics_of,
    result_of,
    start,
    tiny_args,
    tiny_flags,
    wait_for,
    whole_and_killed,
)

import driftql
from common import UserError, args, checkpoints
from common.runs import StopSignals
from common.seeds import side_by_side
from common.workers import STOP_SIGNALS

SMALL = {"hidden_dims": (8,), "eval_workers": 1}


def step_of(directory) -> int | None:
    """The step of its checkpoint."""
    there = (directory / checkpoints.FILE).exists()
    return checkpoints.load(directory)["about"]["step"] if there else None


def has_row(directory, name: str, step: int) -> bool:
    path = directory / name
    return path.exists() and f"\n{step}," in path.read_text()


# -------------------------------------------------------------------------------------------------------------- kill -9


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name, tmp_path):
    """Each script: killed after a checkpoint and 50 more updates with their rows; resumed, bit for bit the same."""
    script, directory = import_module(name), tmp_path / "killed"
    given = tiny_args(script, run_dir=str(tmp_path / "whole"), num_seeds=2, **SMALL)
    whole = whole_and_killed(script, given, 150, directory)
    (directory / ".new-1-checkpoint.msgpack").touch()  # of a process that was killed while it wrote
    assert not (directory / "result.json").exists()
    assert (step_of(directory), has_row(directory, "train.csv", 150)) == (100, True)
    assert launch_in_process(script, "--no-progress", "--resume", directory) == directory
    assert_same_run(directory, whole)
    assert not list(directory.glob(".*"))


# Kills itself with SIGKILL, right before a function is called for whose arguments the condition is true.
KILLED = """
import os, signal
import driftql
from common import args, evaluation, runs

def right_before(owner, name, condition):
    real = getattr(owner, name)
    def function(*given):
        if condition(*given):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given)
    setattr(owner, name, function)

calls = []
right_before({moment})
args.launch(driftql.main, driftql.Args, driftql.PRESETS)
"""
REPLACES = 'os, "replace", lambda source, path: path.name == "checkpoint.msgpack"'
MOMENTS = {  # one after the other on one run; the step of the checkpoint that each leaves
    "start, before the first checkpoint": (REPLACES, None),
    "training": ('runs.Run, "log", lambda run, _: run.step == 140', 100),
    "half of a checkpoint is written": (REPLACES + " and not os.truncate(source, 100)", 100),
    "evaluation": ('evaluation.Evaluator, "_ask", lambda *_: calls.append(0) or len(calls) == 9', 300),
    "evaluated, and not saved": ('runs.Run, "log", lambda run, _: run.step == 300', 300),
    "end, before the result": ('runs, "write_json", lambda path, _: path.name == "result.json"', 600),
    "end, before the pictures": ('runs, "draw_run", lambda *_: True', 600),
}


@pytest.mark.xdist_group("maze")
def test_a_run_that_is_killed_again_and_again_is_the_same_to_the_bit(uninterrupted, data_dir, tmp_path, capsys):
    directory = tmp_path / "run"
    flags = [*maze_flags(data_dir), "--run-dir", str(directory)]
    for moment, (where, step) in MOMENTS.items():
        words = [sys.executable, "-c", KILLED.format(moment=where), *flags]
        killed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
        assert step_of(directory) == step, moment
    command(driftql, *flags)
    assert "this run has ended" in capsys.readouterr().out
    assert_same_run(directory, uninterrupted)


def test_larger_steps_extend_a_run(tmp_path, capsys):
    """A killed run, and then a finished one, as if it had been told so at the start."""
    directory, given = tmp_path / "killed", tiny_args(driftql, run_dir=str(tmp_path / "short"), **SMALL)
    long = dataclasses.replace(given, steps=300, run_dir=str(tmp_path / "long"))
    whole = whole_and_killed(driftql, long, 250, directory)
    before = metrics_of(directory)
    with pytest.raises(SystemExit):
        command(driftql, "--resume", directory, "--steps", 100)
    assert "--steps 100 is less than the 200 that the run has done" in capsys.readouterr().err
    assert metrics_of(directory) == before
    for steps, same in ((200, driftql.main(given)), (300, whole)):
        command(driftql, "--run-dir", directory, "--steps", steps)
        assert f"-> {steps}; a decay over --steps changes too" in capsys.readouterr().out
        assert_same_run(directory, same)
        assert args.read_args(driftql.Args, directory).steps == result_of(directory)["steps"] == steps


def members_state(**changes):
    """The first state of a run."""
    return side_by_side(tiny_args(driftql, **SMALL | changes), lambda args: driftql.make_agent(args, 1, 2))[0]()


def test_a_state_comes_back_to_the_bit(tmp_path):
    state = members_state(num_seeds=2, grid=("alpha=1,3",))
    checkpoints.save(tmp_path, state, {"step": 7, "logs": {}, "identity": ""})
    saved = checkpoints.load(tmp_path)["state"]
    restored = checkpoints.restore(members_state(num_seeds=2, grid=("alpha=2,5",), seed=9), saved)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    other_type = state._replace(state=state.state._replace(step=jnp.zeros(4)))
    for other in (members_state(num_seeds=2), members_state(num_seeds=4), other_type, {"a": jnp.zeros(3)}):
        with pytest.raises(UserError, match="does not fit"):
            checkpoints.restore(other, saved)


# -------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.xdist_group("maze")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_saves_and_says_how_to_go_on(uninterrupted, data_dir, number, tmp_path):
    """Also if it comes twice, as from a terminal and a batch system. The workers get it too."""
    directory = tmp_path / "run"
    process = start("driftql.py", *maze_flags(data_dir), "--run-dir", directory, start_new_session=True)
    wait_for(lambda: has_row(directory, "train.csv", 120), process)
    os.killpg(process.pid, number)
    os.killpg(process.pid, number)
    output, error = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in error) == (128 + number, False)
    assert f"--run-dir {directory} goes on" in output
    assert output.splitlines()[-1] == str(directory)
    assert 120 <= step_of(directory) < 600
    launch_in_process(driftql, "--run-dir", directory)
    assert_same_run(directory, uninterrupted)


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
    """In its second evaluation, at step 100."""
    (tmp_path / "hanging.py").write_text(HANGS)
    rng, directory = np.random.default_rng(0), tmp_path / "run"
    arrays = {"observations": rng.normal(size=(200, 3)), "actions": rng.uniform(-1, 1, (200, 1))}
    ones, terminals = np.ones(200), np.arange(200) % 10 == 9
    np.savez(tmp_path / "d.npz", rewards=ones, masks=ones, terminals=terminals, **arrays)
    flags = tiny_flags("driftql", "hanging:Hangs-v0", dataset=tmp_path / "d.npz", **SMALL | {"eval_episodes": 1})
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = start("driftql.py", *flags, "--run-dir", directory, env=os.environ | {"PYTHONPATH": paths})
    wait_for((tmp_path / "hangs").exists, process)
    workers = children_of(process.pid)
    process.terminate()
    output, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, error
    assert f"stopped at step 100; --run-dir {directory} goes on" in output
    assert (step_of(directory), has_row(directory, "train.csv", 100)) == (100, True)
    wait_for(lambda: not any(map(alive, workers)))


FOR_HOURS = """
import sys, jax
from common.runs import StopSignals
signals = StopSignals()
signals.patience = float(sys.argv[1])
print("ready", flush=True)
jax.jit(lambda x: jax.lax.fori_loop(0, 2**31 - 1, lambda i, x: x @ x, x))(jax.numpy.eye(50)).block_until_ready()
"""


@pytest.mark.parametrize("patience", [0.1, 1e9])
def test_a_program_that_does_not_return_is_ended(patience, tmp_path):
    """By the first signal, which nobody answers, or by another, a second later. Within it they are one."""
    words = [sys.executable, "-c", FOR_HOURS, str(patience)]
    with open(tmp_path / "stderr", "w") as stderr:
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "Ctrl-C again" in (tmp_path / "stderr").read_text())
    if patience > 1:
        wait_for(lambda: process.send_signal(signal.SIGINT) or process.poll() is not None)
        assert time.monotonic() - began >= 1
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert ("no answer for" in (tmp_path / "stderr").read_text()) == (patience < 1)


def test_an_interrupt_right_after_the_start_leaves_no_directory(tmp_path):
    """While the data are loaded, and while XLA compiles or in the first evaluation."""
    flags = tiny_flags("driftql", **SMALL | {"eval_episodes": 20_000})
    for moment in ("data", "run"):
        process = start("driftql.py", *flags, "--run-dir", tmp_path / "run", start_new_session=True)
        assert next((line for line in process.stdout if line.startswith(moment)), None), process.communicate()
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode in (128 + signal.SIGINT, -signal.SIGINT), moment
        assert "Traceback" not in error, moment
        assert not list(tmp_path.iterdir()), moment


def test_signals_mean_what_they_meant_when_main_has_returned(tmp_path, monkeypatch):
    """Two runs, each stopped. A signal that only the caller's program handles reaches it, and stops neither."""
    received = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    users = signal.signal(signal.SIGUSR1, lambda *_: received.append(True))
    real = StopSignals.asked

    def asked(signals):
        if not signals.number:
            signal.raise_signal(signal.SIGUSR1)
            assert not real(signals)
            signal.raise_signal(signal.SIGTERM)
            wait_for(lambda: signals.number)
        return real(signals)

    monkeypatch.setattr(StopSignals, "asked", asked)
    try:
        for name in ("one", "two"):
            with pytest.raises(SystemExit) as stop:
                driftql.main(tiny_args(driftql, run_dir=str(tmp_path / name), **SMALL))
            assert stop.value.code == 128 + signal.SIGTERM
            assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before
            assert signal.set_wakeup_fd(-1) == -1
        assert len(received) == 2
    finally:
        signal.signal(signal.SIGUSR1, users)
