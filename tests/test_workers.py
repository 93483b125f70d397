"""Processes that end with their parent; that they do so through an evaluation or a collection: test_evaluation.py,
test_collect.py."""

import os
import signal
import time

import pytest
from helpers import alive, wait_for

from common import UserError
from common.workers import Workers, receive, send, usable_cores


def echo(pipe, greeting):
    """Answers each message; a negative number is an error, 'ignored' asks which signals are."""
    while True:
        message = pipe.recv()
        if message == "ignored":
            pipe.send([signal.getsignal(n) == signal.SIG_IGN for n in (signal.SIGINT, signal.SIGTERM)])
        elif message < 0:
            raise ValueError(f"{message} is negative")
        else:
            pipe.send((greeting, message))


def test_workers_answer_and_end_with_their_pipes():
    with Workers(echo, [("a",), ("b",)]) as workers:
        for pipe, greeting in zip(workers.pipes, "ab"):
            send(pipe, 7)
            assert receive(pipe) == (greeting, 7)
            send(pipe, "ignored")
            assert receive(pipe) == [True, True]  # when to stop is the parent's decision
        pids = [process.pid for process in workers.processes]
    wait_for(lambda: not any(map(alive, pids)), seconds=20)


def test_an_error_comes_with_the_worker_s_traceback_and_a_death_with_advice():
    with Workers(echo, [("a",), ("b",)]) as workers:
        failing, dying = workers.pipes
        send(failing, -1)
        with pytest.raises(RuntimeError, match="-1 is negative"):
            receive(failing)
        workers.processes[1].kill()
        workers.processes[1].join()
        send(dying, 1)
        with pytest.raises(UserError, match="--eval-workers"):
            receive(dying)


def test_signals_are_held_back_only_while_workers_start():
    """Ctrl-C during the start of a worker arrives after it."""
    if not hasattr(signal, "pthread_sigmask"):
        pytest.skip("no such thing here")
    with Workers(echo, [("a",)]):
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM}
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)


def test_usable_cores_are_those_that_this_process_may_run_on():
    assert 1 <= usable_cores() <= os.cpu_count()
    if hasattr(os, "sched_setaffinity"):
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(before)})
            assert usable_cores() == 1
        finally:
            os.sched_setaffinity(0, before)
