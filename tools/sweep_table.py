"""What is seen of a sweep: one table of all jobs, kept up to date on a terminal; elsewhere a line per change."""

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from shared import duration
from sweep_job import Job, Status, look, slurm_id

from common.progress import say
from common.signals import NUMBERS

STYLES = {"running": "bold", "failed": "red", "waiting": "dim", "done": "green"}


class Watch:
    """Looks at all jobs every `seconds`, shows them, and notes Ctrl-C, SIGTERM and SIGHUP in `signal`. A context
    manager."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.signal: int | None = None
        self.statuses: dict[Job, Status] = {}
        terminal = sys.stdout.isatty()
        self.console = Console(width=None if terminal else 160)
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if terminal else None

    def __enter__(self):
        for number in NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP by nohup
                signal.signal(number, self._on_signal)
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            if self.live:
                self.live.stop()

    def _on_signal(self, number: int, _) -> None:
        if self.signal:
            os._exit(128 + number)  # the jobs go on, or go on saving, without this process
        self.signal = number
        with contextlib.suppress(OSError):  # the terminal may have gone
            os.write(2, b"\nstopping; Ctrl-C again leaves at once\n")

    def __call__(self, jobs: list[Job], queued: dict[str, str] | None, starting: Collection[Path] = ()):
        """Status of each job, after a pause. queued: as `status` takes it; starting: folders of jobs whose process has
        just been started."""
        before, noticed = self.statuses, self.signal
        end = time.monotonic() + (self.seconds if before else 0)
        while time.monotonic() < end and self.signal == noticed:
            time.sleep(0.1)
        ended = {job: s for job, s in before.items() if s.state in ("done", "failed")}  # they do not change any more
        self.statuses = {job: ended.get(job) or status(job, queued, starting) for job in jobs}
        if self.live:
            try:
                self.live.update(table(self.statuses), refresh=True)
            except OSError:
                self.live = None  # there is no terminal any more
        else:
            for job, s in self.statuses.items():
                if s.state != (before[job].state if before else "waiting"):
                    say(f"{s.state:8} {job.title}  {s.note}".rstrip())
        return self.statuses


def status(job: Job, queued: dict[str, str] | None, starting: Collection[Path] = ()) -> Status:
    """The state of a job. queued: SLURM's id -> state of the jobs in its queue, None if it does not answer."""
    s = look(job.folder)
    if s.state == "waiting" and job.folder in starting:
        return s._replace(state="running", note="starting")
    entry = slurm_id(job.folder)
    if s.state == "waiting" and entry and (queued is None or entry in queued):
        note = f"queued as {entry}, {'no answer' if queued is None else queued[entry]}; {s.note}"
        return s._replace(queued=True, note=note.rstrip("; "))
    return s


def show(console: Console, statuses: dict[Job, Status]) -> None:
    """Prints the table, if there is somebody to read it."""
    with contextlib.suppress(OSError):  # of a terminal that has gone
        with console.capture() as text:
            console.print(table(statuses))
        say(text.get().rstrip("\n"))


def table(statuses: dict[Job, Status]) -> Group:
    """A line of sums, then a row per job, what runs and what failed first."""
    rows = Table("state", "job", "updates", "per second", "left", "", box=None, pad_edge=False)
    for job, s in sorted(statuses.items(), key=lambda item: list(STYLES).index(item[1].state)):
        progress = f"{s.step:,} / {s.steps:,}" if s.steps else ""
        speed, left = (f"{s.rate:,.0f}", duration((s.steps - s.step) / s.rate)) if s.rate else ("", "")
        rows.add_row(s.state, Text(job.title), progress, speed, left, Text(s.note), style=STYLES[s.state])
    counts = Counter(s.state for s in statuses.values())
    line = f"{len(statuses)} jobs: " + ", ".join(f"{counts[state]} {state}" for state in STYLES if counts[state])
    usual = max((s.steps for s in statuses.values()), default=0)  # of those that have not begun it is not known yet
    rest = sum((s.steps or usual) - s.step for s in statuses.values() if s.state in ("running", "waiting"))
    rate = sum(s.rate for s in statuses.values())
    return Group(Text(line + (f", about {duration(rest / rate)} left" if rate else "")), rows)
