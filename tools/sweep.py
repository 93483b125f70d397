"""Many runs: scripts x environments x tasks x seeds x settings, on this machine or on SLURM.

    python tools/sweep.py --scripts driftql fql --envs pointmaze-medium-navigate --seeds 0 1 2 --workers 2
    python tools/sweep.py --scripts driftql --envs cube-single-play --set alpha=10,30,100 --set "hidden-dims=256 256"
    python tools/sweep.py tools/sweeps/driftql-figure3.yaml --workers 4 --gpus 0 1 2 3
    python tools/sweep.py tools/sweeps/driftql-figure3.yaml --slurm partition=gpu gpus-per-node=1 time=24:00:00
    python tools/sweep.py tools/sweeps/driftql-figure3.yaml --status

Give the same command again at any time: it skips finished jobs, goes on with interrupted ones from their checkpoints,
waits for jobs that are still running, and tries failed ones again. Ctrl-C lets the running jobs save and ends all.

A file (YAML) is a list of blocks. Every key except `settings` is also a flag, which replaces the key in all blocks:

    - scripts: [driftql, fql]
      envs: [pointmaze-medium-navigate]
      tasks: [1, 2]             # without it: the benchmark's default task
      seeds: [0, 1, 2]          # without it: 0
      settings:                 # flags of the scripts; each value of a list is one job; {env} is the environment's name
        alpha: [1, 3, 10]
        hidden-dims: 256 256    # one value of two numbers; quote a path with blanks again: "'my data.npz'"
        normalize-q: true       # true and false become --normalize-q and --no-normalize-q

A job is one command with a run directory in --runs-dir, named after the job's arguments; what the command prints is in
a .log file beside it. On a cluster the file system of --runs-dir must support flock across nodes.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from shared import ROOT, Parser, held, last_step, positive, titles

from common import UserError
from common.args import combination_name, one_line_errors
from common.system import expanded, require, say

KEYS = ("scripts", "envs", "tasks", "seeds")
OWN_FLAGS = {"script", "env", "task", "seed", "run-dir", "resume", "progress", "no-progress"}  # the sweep sets them
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Job(NamedTuple):
    title: str
    run: Path
    log: Path
    command: tuple[str, ...]


def assignment(word: str) -> tuple[str, str]:
    """Name and value of batch-size=256, however the name is written."""
    name, value = word.split("=", 1)
    return name.lstrip("-").replace("_", "-"), value


def read_blocks(path: Path) -> list[dict]:
    """Returns the blocks of a sweep file. Raises UserError if there are none."""
    try:
        # The base loader leaves every value as it is written: 1e-4, 0.10 and no are not numbers or truth values.
        blocks = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
        for block in blocks or [None]:
            settings = block.get("settings", {}).items()
            block["settings"] = {name.lstrip("-").replace("_", "-"): value for name, value in settings}
    except (OSError, ValueError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no list of blocks as in --help: {' '.join(str(error).split())}.") from None
    return blocks


def make_jobs(blocks: list[dict], runs_dir: Path) -> list[Job]:
    """Returns all combinations of each block, every job once. Raises UserError for what cannot be a job."""
    found: list[dict[str, str]] = []  # flag -> value of each job; "script" is no flag, but chosen in the same way
    for block in blocks:
        if wrong := [*(block.keys() - {*KEYS, "settings"}), *(block["settings"].keys() & OWN_FLAGS)]:
            raise UserError(f"a block has {', '.join(KEYS)}, and settings of the algorithm; '{wrong[0]}' is neither.")
        block = {"seeds": "0"} | block
        axes = {key.removesuffix("s"): check_values(key, block[key]) for key in KEYS if key in block}
        axes |= {name: check_values(name, value) for name, value in sorted(block["settings"].items())}
        if missing := {"script", "env"} - axes.keys():
            raise UserError(f"a sweep needs {missing.pop()}s: on the command line, or in every block of the file.")
        found += [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    return list({job.run: job for job in (make_job(flags, runs_dir) for flags in found)}.values())


def check_values(name: str, value: Any) -> list[str]:
    """One value or several as a list. Raises UserError if they cannot be those of this key or setting."""
    values = value if isinstance(value, list) else [value]
    whole = name and values and all(isinstance(each, str) and each for each in values)
    if not whole or len(set(values)) < len(values):
        raise UserError(f"'{name}' must have a name and a value, or a list of different values, none of them empty.")
    return values


def make_job(values: dict[str, str], runs_dir: Path) -> Job:
    """The job with these flags. Raises UserError for a value that is no value."""
    script, env, seed = values["script"], values["env"], values["seed"]
    file = Path(script).absolute() if script.endswith(".py") else ROOT / f"{script}.py"
    if not file.exists():
        raise UserError(f"there is no {file.name}; there are {', '.join(titles())}.")
    flags = []
    for name, value in values.items():
        try:
            words = [word.replace("{env}", env) for word in shlex.split(value)]
        except ValueError as error:
            raise UserError(f"{name}: {value}: {error}.") from None
        if smuggled := [word for word in words if re.match("--|-[a-zA-Z]", word)]:
            raise UserError(f"{name}: {smuggled[0]} is a flag, not a value; flags are settings of their own.")
        if value.lower() in ("true", "false"):
            flags.append(f"--{name}" if value.lower() == "true" else f"--no-{name}")
        elif name != "script":
            flags += [f"--{name}", *words]
    which = file.stem if file.parent == ROOT else str(file)
    digest = hashlib.sha256(json.dumps([which, *flags]).encode()).hexdigest()[:8]
    place = f"{env}-task{values['task']}" if "task" in values else env
    run = expanded(runs_dir).absolute() / re.sub("[/:]", "_", f"{place}__{file.stem}__{seed}__{digest}")
    command = (sys.executable, str(file), *flags, "--no-progress", "--run-dir", str(run))
    return Job(shlex.join([which, *flags]), run, run.with_name(f"{run.name}.log"), command)


def state_of(job: Job) -> tuple[str, str]:
    """Returns done, running, stopped or waiting, and what there is to say about it."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        result = json.loads((job.run / "result.json").read_text())
        scores = []
        for part in result.get("grid", [result]):
            scores.append(f"{combination_name(part.get('values', {}))} {part['score']:.3g}".strip())
        return "done", f"score {', '.join(scores)}"
    if not job.run.exists():
        return "waiting", ""
    return "running" if held(job.run) else "stopped", f"at step {last_step(job.run):,}"


def run_here(jobs: list[Job], workers: int, gpus: list[str], signals: dict[int, float]) -> dict[Job, tuple[str, str]]:
    """Runs the jobs that are neither done nor run by another process, `workers` at a time, and waits for all others.
    Returns the states of those that failed, with the reason. signals: one in it ends the sweep."""
    own: dict[int, tuple[Job, subprocess.Popen]] = {}  # by worker
    failed: dict[Job, tuple[str, str]] = {}
    left, told = list(jobs), False
    while own or (left and not signals):
        stopping = bool(signals)  # may come at any time
        for worker, (job, process) in list(own.items()):
            if stopping and not told:
                process.terminate()  # it saves and ends
            if (code := process.poll()) is not None:
                del own[worker]
                state: tuple[str, str] = state_of(job)
                if state[0] == "running":
                    left.append(job)
                elif state[0] != "done" and not signals:
                    state = "failed", reason_of(code, job.log)
                    failed[job] = state
                say(f"{state[0]:8} {job.title}  {state[1]}")
        told = stopping
        idle = [worker for worker in range(workers) if worker not in own]
        for job in list(left):
            now = state_of(job)[0] if idle and not signals else "running"
            if now != "running":
                left.remove(job)
            if now not in ("running", "done"):
                worker = idle.pop(0)
                own[worker] = job, start(job, worker, workers, gpus)
        time.sleep(0.2)
    return failed


def start(job: Job, worker: int, workers: int, gpus: list[str]) -> subprocess.Popen:
    """Starts a job on the worker's own cores and, if there are any, its own GPU."""
    say(f"start    {job.title}")
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # an error is then the last line of the log
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
    if 0 < len(gpus) < workers:
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    pin = None
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        mine = [core for i, core in enumerate(cores) if i * workers // len(cores) == worker]
        pin = functools.partial(os.sched_setaffinity, 0, mine or [cores[worker % len(cores)]])
    with open(job.log, "ab") as log:
        # In a session of its own, the job gets no signal from the terminal but the sweep's.
        return subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            preexec_fn=pin,
        )  # fmt: skip


def reason_of(code: int, log: Path) -> str:
    """Why a job ended without a result: the last line of its log that says something."""
    if code < 0 or code > 128:
        return f"killed by signal {abs(code) % 128}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line.strip("-") and not line.startswith("For simplicity, JAX has")]
    return lines[-1] if code and lines else "ended without a result.json"


class SlurmJob:
    """Runs a job's command on a SLURM node, where only installed packages can be imported. submitit calls `checkpoint`
    when SLURM warns of the time limit, and queues the job again: the same command goes on with the run."""

    def __call__(self, command: tuple[str, ...], log: Path) -> None:
        deaf = functools.partial(signal.signal, signal.SIGUSR2, signal.SIG_IGN)  # SLURM warns all processes of the job
        with open(log, "ab") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, preexec_fn=deaf)
        if code := self.process.wait():
            raise RuntimeError(f"exit code {code}, see {log}")

    def checkpoint(self, *arguments: Any) -> Any:
        import submitit

        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.process.pid, signal.SIGTERM)
            # Popen.wait would wait for itself, because this runs in a signal handler.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(SlurmJob(), *arguments)


def submit(jobs: list[Job], args: argparse.Namespace) -> None:
    """Queues the jobs as one job array. Raises UserError if jobs of this sweep are in the queue, or SLURM refuses."""
    require("submitit", "--slurm", "sweep")
    import submitit

    folder = jobs[0].run.parent
    name = f"sweep-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    options = {"time": "24:00:00", "cpus-per-task": "4", "requeue": True, **dict(args.slurm)}
    try:
        executor = submitit.SlurmExecutor(folder / "slurm", max_num_timeout=1_000_000)
        ask = ["squeue", "--noheader", "--format=%i", f"--name={name}"]
        if queued := subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split():
            raise UserError(f"jobs of this sweep are in SLURM's queue; to queue others, end them: scancel {queued[0]}")
        executor.update_parameters(
            job_name=name, array_parallelism=args.workers or len(jobs), signal_delay_s=120,
            additional_parameters=options,
        )  # fmt: skip
        entries = executor.map_array(SlurmJob(), *zip(*((job.command, job.log) for job in jobs)))
    except (RuntimeError, OSError, subprocess.CalledProcessError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"--slurm: {str(error).strip().splitlines()[-1]}") from None
    say(f"{len(entries)} jobs are in SLURM's queue as {entries[0].job_id.partition('_')[0]}; --status shows the runs")


def read_jobs(args: argparse.Namespace) -> list[Job]:
    """The jobs of the file, with what the command line says of all of them."""
    given = {key: value for key in KEYS if (value := getattr(args, key))}
    settings: dict[str, list[str]] = {}
    for flag, value in args.set:
        # The comma of --set grid=alpha=1,3 is --grid's.
        settings.setdefault(flag, []).extend([value] if "=" in value else value.split(","))
    blocks = read_blocks(args.file) if args.file else [{"settings": {}}]
    return make_jobs([block | given | {"settings": block["settings"] | settings} for block in blocks], args.runs_dir)


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 if all jobs are done, 1 if not, 128 + the signal that ended the sweep."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("file", nargs="?", type=Path, help="YAML file with the blocks of the sweep")
    for key in KEYS:
        add(f"--{key}", nargs="+")
    add("--set", action="append", type=assignment, default=[], metavar="FLAG=VALUE[,VALUE]", help="a script's flag")
    add("--runs-dir", type=Path, default=Path("runs/sweep"), help="folder of the run directories (runs/sweep)")
    add("--workers", type=positive, help="jobs at the same time (1; on SLURM as many as it lets run)")
    add("--gpus", nargs="+", default=[], help="GPUs of this machine, dealt to the workers")
    add("--status", action="store_true", help="print the table of the jobs and do nothing")
    slurm = "queue the jobs on SLURM with these options of sbatch (cpus-per-task=4 time=24:00:00; extra `sweep`)"
    add("--slurm", nargs="*", type=assignment, metavar="OPTION=VALUE", help=slurm)
    args = parser.parse_args(argv)
    if args.gpus and args.slurm is not None:
        raise UserError("--gpus are this machine's; on SLURM take --slurm gpus-per-node=1.")
    jobs, signals = read_jobs(args), dict[int, float]()  # signal -> when it came

    def stop(number: int, _) -> None:
        # A second one, a second or more later, ends the sweep without waiting for its jobs. `timeout` sends one twice.
        if signals and time.monotonic() - min(signals.values()) >= 1:
            os._exit(128 + number)
        signals.setdefault(number, time.monotonic())

    failed: dict[Job, tuple[str, str]] = {}
    left = [job for job in jobs if state_of(job)[0] not in ("done", "running")]
    if args.slurm is not None and left and not args.status:
        submit(left, args)
        return 0
    if args.slurm is None and not args.status:
        jobs[0].run.parent.mkdir(parents=True, exist_ok=True)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, stop)
        failed = run_here(jobs, args.workers or 1, args.gpus, signals)
    states = {job: failed.get(job) or state_of(job) for job in jobs}
    counts = Counter(state for state, _ in states.values())
    say(f"{len(jobs)} jobs: {', '.join(f'{number} {state}' for state, number in counts.items())}")
    for job, (state, note) in states.items():
        say(f"{state:8} {job.title}  {note}".rstrip())
    return 128 + next(iter(signals)) if signals else int(counts["done"] < len(jobs))


if __name__ == "__main__":
    with one_line_errors("sweep"):
        sys.exit(main(sys.argv[1:]))
