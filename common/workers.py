"""Worker processes that end when their pipe does, so that none outlives its parent, however that one ends. This module
and what runs in a worker do not import JAX, which takes seconds and hundreds of megabytes per process."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from common import UserError
from common.signals import NUMBERS

START_METHOD = "spawn"  # forking a process that runs JAX can deadlock


class Workers:
    """One process per tuple in `arguments`, each running target(pipe, *arguments). A context manager: leaving it closes
    the pipes, which ends the workers."""

    def __init__(self, target: Callable, arguments: Sequence[tuple]):
        self.pipes: list[Connection] = []
        self.processes: list[multiprocessing.process.BaseProcess] = []
        context: Any = multiprocessing.get_context(START_METHOD)
        with _main_module_hidden(), _signals_held_back():
            for its_arguments in arguments:
                here, there = context.Pipe()
                process = context.Process(target=_run, args=(target, there, *its_arguments), daemon=True)
                process.start()
                there.close()
                self.pipes.append(here)
                self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(timeout=2)
            if process.is_alive():
                process.kill()
                process.join()


def send(pipe: Connection, message) -> None:
    """Never fails: if the worker has died, the reason comes with `receive`."""
    with contextlib.suppress(BrokenPipeError):
        pipe.send(message)


def receive(pipe: Connection):
    """The worker's next message. Raises the worker's own UserError, or one if it was killed; RuntimeError with its
    traceback if it failed otherwise."""
    try:
        message = pipe.recv()
    except (EOFError, ConnectionResetError):
        fewer = "Try fewer of them (--eval-workers; to collect, --workers of common.collect)"
        raise UserError(f"a worker process died; is the memory full? {fewer}.") from None
    if isinstance(message, UserError):
        raise message
    if isinstance(message, _Failure):
        raise RuntimeError(f"a worker process failed:\n{message}")
    return message


def usable_cores() -> int:
    """Cores that this process may run on, which a batch system may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Failure(str):
    """A traceback on its way to the parent."""


def _run(target: Callable, pipe: Connection, *arguments) -> None:
    # They reach the whole process group; when to stop is the parent's decision.
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)  # they were held back up to here
    warnings.filterwarnings("ignore", module="gymnasium")  # of OGBench's own spaces, once per process
    try:
        target(pipe, *arguments)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone or has no more work
    except Exception as error:
        with contextlib.suppress(OSError):
            pipe.send(error if isinstance(error, UserError) else _Failure(traceback.format_exc()))


@contextlib.contextmanager
def _signals_held_back():
    """A new process inherits what is blocked, so that no Ctrl-C reaches it before it ignores them. And this process
    gives it all that it needs to start before it answers a signal, which a thread of NumPy's may have received."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in NUMBERS}
    resource_tracker.ensure_running()  # it starts with the first process, and would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in received:
            handler = handlers[signal.Signals(number)]
            handler(number, None) if callable(handler) else signal.raise_signal(number)


@contextlib.contextmanager
def _main_module_hidden():
    """A spawned process imports the main module again, and with the script all of JAX, which a worker does not need."""
    main = sys.modules["__main__"]
    file, spec = main.__dict__.pop("__file__", None), main.__spec__
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file
