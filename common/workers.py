"""Processes that end with their parent. They do not import JAX, which takes seconds and hundreds of megabytes each."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

import cloudpickle

from common import UserError

# Ctrl-C, a batch system's request, a terminal or connection that is gone (not on Windows).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
START_METHOD = "spawn"  # forking a process that runs JAX can deadlock


class Workers(contextlib.AbstractContextManager):
    """One process per tuple in `arguments`, each running target(pipe, *arguments). A context manager that ends them.

    Target and arguments travel by cloudpickle, so they may be defined in the script that is running. An exception in
    the target goes to the parent, with the process's name.
    """

    def __init__(self, target: Callable, arguments: Sequence[tuple]):
        self.pipes: list[Connection] = []
        self.processes: list[multiprocessing.process.BaseProcess] = []
        context: Any = multiprocessing.get_context(START_METHOD)
        works = [cloudpickle.dumps((target, its_arguments)) for its_arguments in arguments]
        # A spawned process would import the main module again, and with the script all of JAX.
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            for work in works:
                here, there = context.Pipe()
                process = context.Process(target=_run, args=(there, work), daemon=True, name="a worker process")
                process.start()
                there.close()
                self.pipes.append(here)
                self.processes.append(process)
        finally:
            sys.modules["__main__"] = main

    def __exit__(self, *_):
        for pipe in self.pipes:
            pipe.close()
        wait([process.sentinel for process in self.processes], timeout=2)
        for process in self.processes:
            process.kill()  # where it has not ended by itself, because an environment hangs
            process.join()

    def send(self, pipe: Connection, message: Any) -> None:
        """Never fails: if the worker is dead, `receive` gives the reason."""
        with contextlib.suppress(OSError):
            pipe.send(message)

    def receive(self, pipe: Connection) -> Any:
        """The worker's next message. Raises UserError with what failed in the worker, or if it was killed."""
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            process = self.processes[self.pipes.index(pipe)]
            process.join(timeout=2)
            code = process.exitcode
            why = "killed; is the memory full? Fewer workers need less" if code == -signal.SIGKILL else "it crashed"
            how = f"by signal {-code} ({why})" if code and code < 0 else f"with exit code {code}"
            raise UserError(f"a worker process, which runs the environment, was ended {how}.") from None
        if isinstance(message, UserError):
            raise message
        return message


def _run(pipe: Connection, work: bytes) -> None:
    # Stop signals reach the whole process group. Workers ignore them; the parent decides when to stop.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.filterwarnings("ignore", module="gymnasium")
    try:
        target, arguments = cloudpickle.loads(work)
        target(pipe, *arguments)
    except Exception as error:
        if not isinstance(error, UserError):
            last = traceback.extract_tb(error.__traceback__)[-1]
            what, where = multiprocessing.current_process().name, f"{last.filename}, line {last.lineno}"
            error = UserError(f"{what} failed: {type(error).__name__}: {error} ({where})")
        with contextlib.suppress(OSError):  # the parent has closed the pipe, because there is no more work
            pipe.send(error)


def _end_with_parent() -> None:
    """Also where an environment hangs and no pipe is read."""
    wait([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]
    os._exit(1)
