"""One job of a sweep: its folder, its state, its process. `python tools/sweep_job.py FOLDER WORKER` is what
tools/sweep.py starts; it runs the job's command, or goes on with its run, and waits for the end.

In the folder: job.json (command, attempts), lock, stdout.txt, stderr.txt, the run directory, slurm.json (the id in
SLURM's queue). job.json and slurm.json are replaced as a whole. The lock belongs to the processes of the job.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from shared import last_step, read_json

from common import UserError
from common.files import write_json

NO_LOCKS = "{}: {}; the file system of --runs-dir must support flock, without which jobs would run twice."
NOT_THE_REASON = "For simplicity, JAX has removed"  # JAX's note below an error from inside a compiled function


class Job(NamedTuple):
    title: str
    folder: Path
    command: tuple[str, ...]


class Status(NamedTuple):
    state: str  # waiting, running, done, failed
    step: int = 0
    steps: int = 0
    rate: float = 0.0  # updates per second since its last start, evaluations included
    note: str = ""
    attempt: dict[str, Any] | None = None  # the last one
    queued: bool = False  # in SLURM's queue


def read_job(folder: Path) -> dict[str, Any]:
    """Content of job.json; an empty command and no attempts where there is none."""
    return {"command": [], "attempts": []} | (read_json(folder / "job.json") or {})


def slurm_id(folder: Path) -> str | None:
    """The job's id in SLURM's queue, if it has been there."""
    return (read_json(folder / "slurm.json") or {}).get("id")


def look(folder: Path) -> Status:
    """The state of a job, from its files alone."""
    attempts = read_job(folder)["attempts"]
    last = attempts[-1] if attempts else None
    run = _run_directory(folder)
    step, steps = (last_step(run), _steps(run)) if run else (0, 0)
    if _locked(folder):
        rate = max(0, step - last["from_step"]) / (time.time() - last["started"]) if last else 0.0
        return Status("running", step, steps, rate, "", last)
    if run and (run / "result.json").exists():
        return Status("done", steps, steps, attempt=last)
    if last is None:
        return Status("waiting")
    if last["exit"] is None or last["exit"] < 0 or last["exit"] > 128:
        return Status("waiting", step, steps, note=f"interrupted at step {step:,}; {last['reason']}".rstrip("; "))
    return Status("failed", step, steps, note=last["reason"] or "ended without a result.json", attempt=last)


def _steps(run: Path) -> int:
    return ((read_json(run / "config.json") or {}).get("args") or {}).get("steps") or 0


def _run_directory(folder: Path) -> Path | None:
    """Where the job's run goes on: the directory with the result, else the latest one that can be resumed."""
    there = [path.parent for path in folder.glob("*/config.json") if read_json(path)]

    def latest(run: Path) -> tuple[bool, float]:
        try:
            return (run / "result.json").exists(), run.stat().st_mtime
        except FileNotFoundError:  # a run that has failed at its start removes its directory
            return False, 0.0

    return max(there, key=latest, default=None)


def _locked(folder: Path) -> bool:
    try:
        with open(folder / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise UserError(NO_LOCKS.format(folder, error.strerror)) from None
    return False


def runs_here(status: Status) -> bool:
    """Whether it is this machine that a running job runs on."""
    return status.attempt is None or status.attempt["host"] == socket.gethostname()


def stop(status: Status) -> None:
    """Asks a running job of this machine to save and end."""
    attempt = status.attempt
    if attempt and attempt["exit"] is None and runs_here(status):
        with contextlib.suppress(ProcessLookupError):
            os.kill(attempt["pid"], signal.SIGTERM)


def run_job(folder: Path, worker: int) -> int:
    """Starts or resumes the job of `folder` and waits for its end. Returns the script's exit code; 0 at once if it is
    finished or runs already."""
    lock = open(folder / "lock", "a")
    for _ in range(100):  # a look at the state, or the processes of a requeued job, may hold it for a moment
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            pass
        except OSError as error:
            sys.exit(f"sweep_job: error: {NO_LOCKS.format(folder, error.strerror)}")
        time.sleep(0.1)
    else:
        return 0
    job, run = read_job(folder), _run_directory(folder)
    if run and (run / "result.json").exists():
        return 0
    command = [sys.executable, *job["command"][1:]]
    if run:
        command = [*command[:2], "--resume", str(run), "--no-progress"]
    process: subprocess.Popen | None = None
    asked = False

    def save_and_stop(*_):
        nonlocal asked
        if process and not asked:  # a second SIGTERM would end the script before it has saved
            asked = True
            process.terminate()

    # SLURM and a terminal send signals to all processes of a job. The script answers them itself; this process stays to
    # see how it ends. SIGUSR2 comes before the time limit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGUSR2, save_and_stop)
    with open(folder / "stdout.txt", "ab") as output, open(folder / "stderr.txt", "ab") as errors:
        began = errors.tell()
        # The script inherits the lock: it stays held if this process is killed and the script lives on.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, pass_fds=[lock.fileno()],
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        )  # fmt: skip
    attempt: dict[str, Any] = {"started": time.time(), "from_step": last_step(run) if run else 0, "pid": process.pid}
    attempt |= {"host": socket.gethostname(), "worker": worker, "exit": None, "reason": ""}
    with contextlib.suppress(UserError):  # a full disk: the script runs, and its own files say how far it is
        write_json(folder / "job.json", job | {"attempts": [*job["attempts"], attempt]})
    code, reason = process.wait(), ""
    if code < 0:
        reason = f"killed by signal {-code}"
    elif 0 < code <= 128:  # above: stopped as it was asked to
        try:
            said = (folder / "stderr.txt").read_bytes()[began:].decode(errors="replace")
        except FileNotFoundError:  # somebody has deleted the job's folder; the sweep makes it again
            return code
        lines = [line for line in said.splitlines() if line.strip("- ") and not line.startswith(NOT_THE_REASON)]
        reason = lines[-1] if lines else f"exit code {code}"
    attempt |= {"exit": code, "reason": reason, "ended": time.time()}
    with contextlib.suppress(UserError):
        write_json(folder / "job.json", job | {"attempts": [*job["attempts"], attempt]})
    return code


if __name__ == "__main__":
    sys.exit(run_job(Path(sys.argv[1]), int(sys.argv[2])))
