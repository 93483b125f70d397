"""Ctrl-C, SIGTERM and SIGHUP: the first asks a run to end well, the second ends the process."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

# Ctrl-C, a batch system's request, a connection or terminal that has gone (not on Windows).
NUMBERS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

_remembered: list[int] = []  # interrupts that Python may have dropped


@contextlib.contextmanager
def interrupts_remembered() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, as ever. Python drops that inside a weakref's callback, of which JAX has many:
    then the next `Signals` knows of it."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        _remembered.append(number)
        raise KeyboardInterrupt

    say_dropped = sys.unraisablehook
    sys.unraisablehook = lambda x: None if x.exc_type is KeyboardInterrupt else say_dropped(x)  # no traceback for it
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = say_dropped
        _remembered.clear()


class Signals:
    """What the first of these signals asks for: `number` is None before it. The second one ends the process at once.
    One that is ignored, as SIGHUP by nohup, stays so.

    A thread answers, because Python's handlers wait until the compiled program returns, which can take minutes.
    """

    def __init__(self):
        self.number: int | None = _remembered.pop() if _remembered else None
        self.handlers: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        read, write = os.pipe()
        if hasattr(os, "set_blocking"):  # not on Windows before Python 3.12
            os.set_blocking(write, False)
        # The pipe first: a signal that finds the new handler without it would be lost.
        self.pipe, self.before = write, signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self.handlers[number] = signal.signal(number, lambda *_: None)
        threading.Thread(target=self._answer, args=(read,), daemon=True).start()

    def _answer(self, pipe: int) -> None:
        while number := os.read(pipe, 1):
            if number[0] not in self.handlers:  # Python writes those that the caller's program handles, too
                continue
            if self.number is not None:
                os._exit(128 + number[0])  # the workers end with their pipes
            self.number = number[0]
            message = b"\nstopping at the end of this interval; Ctrl-C again stops at once, losing what is not saved\n"
            with contextlib.suppress(OSError):
                os.write(2, message)
        os.close(pipe)

    def close(self) -> None:
        """Signals mean again what they meant before."""
        if self.handlers:
            signal.set_wakeup_fd(self.before)
            os.close(self.pipe)
            for number, handler in self.handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def termination_raises() -> Iterator[None]:
    """SIGTERM raises SystemExit, for a work that keeps what it has when it is interrupted."""
    untouched = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not untouched or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def signals_end_the_process() -> Iterator[None]:
    """For a long wait outside of Python, before there is anything to save: Python would answer after it only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
