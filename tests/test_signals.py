"""Ctrl-C, SIGTERM and SIGHUP, in processes as a user starts: the first is answered, the second ends the process."""

import contextlib
import os
import pty
import signal
import sys
import threading
import time
import weakref

import pytest
from helpers import ROOT, alive, assert_same_run, children_of, launch, maze_flags, start, tiny_flags, wait_for

import driftql
from common import checkpoints, cli
from common.signals import Signals, signals_end_the_process

# A run whose one dispatch takes minutes.
LONG = {"steps": 400_000, "log_every": 400_000, "eval_every": 400_000, "save_every": 400_000, "hidden_dims": (64, 64)}


def test_signals_are_noted_and_then_mean_what_they_meant():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signals = Signals()
    try:
        assert signals.number is None
        signal.raise_signal(signal.SIGTERM)
        wait_for(lambda: signals.number is not None, seconds=5)
        assert signals.number == signal.SIGTERM
    finally:
        signals.close()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert signal.set_wakeup_fd(-1) == -1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)


def test_a_signal_that_the_callers_program_handles_does_not_stop_a_run():
    """A batch system's, say, of which Python tells the pipe too."""
    received = []
    before = signal.signal(signal.SIGUSR1, lambda *_: received.append(True))
    signals = Signals()
    try:
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):  # in this order through the pipe
            assert signals.number is None
            signal.raise_signal(number)
        wait_for(lambda: signals.number is not None, seconds=5)
        assert (signals.number, received) == (signal.SIGTERM, [True, True])
    finally:
        signals.close()
        signal.signal(signal.SIGUSR1, before)


def test_two_runs_after_each_other_each_have_their_signals():
    for _ in range(2):
        signals = Signals()
        assert signals.number is None
        signal.raise_signal(signal.SIGINT)
        wait_for(lambda: signals.number == signal.SIGINT, seconds=5)  # noqa: B023
        signals.close()


def test_an_interrupt_that_python_drops_is_remembered(monkeypatch, tmp_path, capsys):
    """In a weakref's callback, while the data are loaded: the run is not begun."""
    real = driftql.load_dataset

    class Anything:
        pass

    def load(*given):
        anything = Anything()
        reference = weakref.ref(anything, lambda _: signal.raise_signal(signal.SIGINT))
        del anything
        assert reference() is None  # and here we are, though Ctrl-C was pressed
        return real(*given)

    monkeypatch.setattr(driftql, "load_dataset", load)
    monkeypatch.setattr(sys, "argv", ["driftql.py", *tiny_flags(driftql), "--runs-dir", str(tmp_path)])
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with pytest.raises(SystemExit) as stopped:
        cli.launch(driftql.main, driftql.Args, driftql.PRESETS)
    assert stopped.value.code == 130
    assert "stopped before anything was done" in capsys.readouterr().out
    assert said == []  # no "Exception ignored in" with a traceback
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    (after := Signals()).close()
    assert after.number is None


def test_outside_of_the_main_thread_nothing_is_touched():
    """A notebook or a server may run `main` in a thread."""
    found = []

    def work():
        signals = Signals()
        with signals_end_the_process():
            found.append(signals.number)
        signals.close()

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
    assert signal.getsignal(signal.SIGINT) is before


def test_during_a_long_wait_an_interrupt_is_not_python_s():
    before = signal.getsignal(signal.SIGINT)
    with signals_end_the_process():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def long_run(tmp_path):
    """A process in the middle of a program that takes minutes, and its run's directory."""
    argv = (*tiny_flags(driftql, **LONG), "--runs-dir", tmp_path / "runs")
    with open(tmp_path / "stderr", "w") as stderr:
        process = start("driftql.py", *argv, start_new_session=True, stderr=stderr)
    wait_for(lambda: [path for path in tmp_path.glob("runs/*/metrics.csv") if "\n0," in path.read_text()], process)
    (directory,) = (tmp_path / "runs").iterdir()
    time.sleep(0.5)  # for the dispatch to begin
    yield process, directory
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_the_first_is_answered_and_the_second_ends_however_long_a_program_runs(long_run, tmp_path):
    process, directory = long_run
    workers = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    wait_for(lambda: "Ctrl-C again" in (tmp_path / "stderr").read_text(), process, seconds=5)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=5)
    assert process.returncode == 128 + signal.SIGINT
    assert not (directory / "result.json").exists()
    wait_for(lambda: not any(map(alive, workers)), seconds=20)


def test_an_interrupt_right_after_the_start_leaves_no_directory(tmp_path):
    """While Python imports, while XLA compiles, and in the first evaluation."""
    argv = (*tiny_flags(driftql, eval_episodes=20_000, eval_workers=1), "--runs-dir", tmp_path)
    for moment in ("data", "device", "run"):
        process = start("driftql.py", *argv, start_new_session=True)
        seen = next((line for line in process.stdout if line.startswith(moment)), None)
        assert seen, process.communicate()
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode in (128 + signal.SIGINT, -signal.SIGINT), moment
        assert "Traceback" not in error, moment
        assert not list(tmp_path.iterdir()), moment


@pytest.mark.skipif(sys.platform != "linux", reason="needs a terminal that hangs up as Linux's do")
@pytest.mark.xdist_group("maze")
def test_a_terminal_that_is_gone_saves_too(uninterrupted, data_dir, tmp_path):
    """As a dropped connection: SIGHUP, also to the workers, and nowhere to print to."""
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # if the tests run under nohup
        command = [sys.executable, str(ROOT / "driftql.py"), "--progress", *maze_flags(data_dir, tmp_path)[1:]]
        os.execv(sys.executable, command)

    def shown():
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)  # a full terminal would stop the run
        return [path for path in tmp_path.glob("*/metrics.csv") if "\n120," in path.read_text()]

    os.set_blocking(terminal, False)
    wait_for(shown)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    (directory,) = tmp_path.iterdir()
    assert checkpoints.load(directory)["step"] >= 120
    assert launch(driftql, "--no-progress", "--resume", directory) == directory
    assert_same_run(directory, uninterrupted)


@pytest.mark.xdist_group("maze")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_say_how_to_go_on(uninterrupted, data_dir, number, tmp_path):
    process = start("driftql.py", *maze_flags(data_dir, tmp_path), start_new_session=True)
    wait_for(lambda: list(tmp_path.glob("*/metrics.csv")), process)
    (directory,) = tmp_path.iterdir()
    wait_for(lambda: "\n120," in (directory / "metrics.csv").read_text(), process)
    os.killpg(process.pid, number)  # the workers get it too, as with Ctrl-C or a batch system
    output, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in error
    assert f"--resume {directory}" in output
    assert output.splitlines()[-1] == str(directory)
    assert launch(driftql, "--no-progress", "--resume", directory) == directory
    assert_same_run(directory, uninterrupted)
