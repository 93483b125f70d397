"""What a person reads while it runs: lines, and how far a long work is. No JAX."""

import os
import sys
import time

from tqdm import tqdm

LINE_EVERY = 60.0  # seconds, without a terminal


def say(line: str) -> None:
    """Prints a line, above a progress bar if there is one."""
    try:
        tqdm.write(line)
        sys.stdout.flush()
    except OSError:
        # Whoever read along has gone (`| head`), or the terminal. The run goes on, and so must what it has to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ProgressBar(tqdm):
    """tqdm's bar; where there is no terminal for one, as in a batch system's log, a line a minute with the rate since
    it began and the time left. A context manager.

    what: first word of both; total, initial: of so many `unit`s; leave: whether the full bar stays; shown: False for
    neither.
    """

    def __init__(self, what: str, total: int, unit: str, initial: int = 0, leave: bool = True, shown: bool = True):
        super().__init__(
            desc=what, total=total, unit=unit, initial=initial, leave=leave, unit_scale=total >= 10_000, smoothing=0.1,
            dynamic_ncols=True, disable=None if shown else True,
        )  # fmt: skip
        self.what, self.units, self.lines = what, f"{unit}s", shown and self.disable
        self.first, self.began = initial, time.monotonic()
        self.said = self.began

    def update(self, n: float | None = 1) -> bool | None:
        if not self.lines:
            return super().update(n)
        self.n += n
        now = time.monotonic()
        if now - self.said >= LINE_EVERY and self.n > self.first:
            self.said, rate = now, (self.n - self.first) / (now - self.began)
            left = tqdm.format_interval((self.total - self.n) / rate)
            speed = f"{float(f'{rate:.3g}'):,g} {self.units}/s"
            say(f"{self.what:7} {self.n:,} of {self.total:,} {self.units}, {speed}, {left} left")
        return None
