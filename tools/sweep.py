"""Many runs: scripts x environments x tasks x seeds x settings, on this machine or on SLURM.

    python tools/sweep.py --scripts driftql fql --envs pointmaze-medium-navigate --seeds 0 1 2 --workers 2
    python tools/sweep.py --scripts driftql --envs cube-single-play --set alpha=10,30,100 --set "hidden-dims=256 256"
    python tools/sweep.py tools/sweeps/corruption.yaml --workers 4 --gpus 0 1 2 3
    python tools/sweep.py tools/sweeps/corruption.yaml --slurm --partition gpu --gpus-per-job 1 --hours 24
    python tools/sweep.py tools/sweeps/corruption.yaml --status

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
import difflib
import functools
import hashlib
import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from shared import ROOT, Parser, held, last_step, titles

from common import UserError
from common.args import combination_name, one_line_errors
from common.system import expanded, require, say

KEYS = ("scripts", "envs", "tasks", "seeds")
SHOWN = {"script", "env", "task", "seed"}  # flags that stand in every job's title
OWN_FLAGS = SHOWN | {"run-dir", "resume", "progress", "no-progress"}  # the sweep sets them
STARTS = 3  # of one job that signals end: a job that runs out of memory would be killed for ever
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# ---------------------------------------------------------------------------------------------------------------- jobs


class Job(NamedTuple):
    title: str
    run: Path
    log: Path
    command: tuple[str, ...]


def flag_name(name: str) -> str:
    """batch-size, however it was written."""
    return name.lstrip("-").replace("_", "-")


class Loader(yaml.BaseLoader):
    """Leaves every value as it is written, and refuses a key that is there twice."""

    def construct_mapping(self, node, deep=False):
        names = [key.value.lstrip("-").replace("_", "-") for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_blocks(path: Path) -> list[dict]:
    """Returns the blocks of a sweep file. Raises UserError if there are none."""
    try:
        # The base loader leaves every value as it is written: 1e-4, 0.10 and no are not numbers or truth values.
        blocks = yaml.load(path.read_text(encoding="utf-8"), Loader)
        for block in blocks or [None]:
            block["settings"] = {flag_name(name): value for name, value in block.get("settings", {}).items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from None
    except (TypeError, AttributeError):
        raise UserError(f"{path} must be a list of blocks whose settings are pairs, see --help.") from None
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
        for number in map(int, filter(str.isdecimal, axes.get("num-seeds", []))):
            if any(b - a < number for a, b in itertools.pairwise(sorted(map(int, axes["seed"])))):
                raise UserError(f"with num-seeds {number} some seeds would be trained twice; take --seeds 0 {number}.")
        found += [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    varied = {name for flags in found for name in flags if len({other.get(name) for other in found}) > 1}
    jobs = [make_job(flags, varied, runs_dir) for flags in found]
    return list({job.run: job for job in jobs}.values())


def check_values(name: str, value: Any) -> list[str]:
    """One value or several as a list. Raises UserError if they cannot be those of this key or setting."""
    values = value if isinstance(value, list) else [value]
    if not name or not values or not all(isinstance(each, str) and each for each in values):
        raise UserError(f"'{name}' must have a name and a value, or a list of values, none of them empty.")
    if len(set(values)) < len(values):
        raise UserError(f'{name} has a value twice; several numbers in one value: "256 256".')
    if name in ("tasks", "seeds") and not all(map(str.isdecimal, values)):
        raise UserError(f"{name}: {' '.join(values)} must be whole numbers: {name}: [1, 2] or --{name} 1 2.")
    return values


def make_job(values: dict[str, str], varied: set[str], runs_dir: Path) -> Job:
    """The job with these flags; those in `varied` are in its title. Raises UserError for a value that is no value."""
    script, env, seed, task = (values.get(name, "") for name in ("script", "env", "seed", "task"))
    file = Path(script).absolute() if script.endswith(".py") else ROOT / f"{script}.py"
    if not file.exists():
        close = difflib.get_close_matches(script, titles(), n=1)
        raise UserError(f"there is no {file.name}{f'; did you mean {close[0]}?' if close else '.'}")
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
    place = f"{env}-task{task}" if task else env
    run = expanded(runs_dir).absolute() / re.sub("[/:]", "_", f"{place}__{file.stem}__{seed}__{digest}")
    others = [f"{name}={value.rpartition('/')[2]}" for name, value in values.items() if name in varied - SHOWN]
    title = " ".join([which, env, *(["task", task] if task else []), "seed", seed, *others])
    command = (sys.executable, str(file), *flags, "--no-progress", "--run-dir", str(run))
    return Job(title, run, run.with_name(f"{run.name}.log"), command)


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


# ----------------------------------------------------------------------------------------------------- on this machine


class Sweep:
    """Runs jobs on this machine, each worker on its own cores and, if there are any, its own GPU. A worker is a thread,
    from which its jobs inherit the cores."""

    def __init__(self, workers: int, gpus: list[str]):
        self.workers, self.gpus = workers, gpus
        self.worker = threading.local()
        self.own: set[subprocess.Popen] = set()
        self.starts: Counter[Job] = Counter()
        self.changing = threading.Lock()
        self.stopping = threading.Event()
        self.signal = 0

    def stop(self, number: int, _) -> None:
        """Handles a signal: asks the running jobs to save and end. A second signal ends the sweep without them."""
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        self.stopping.set()
        with self.changing:
            for process in self.own:
                process.terminate()

    def run(self, jobs: list[Job]) -> dict[Job, tuple[str, str]]:
        """Runs all jobs that are not done. Returns their states; "failed" comes with the reason."""
        states: dict[Job, tuple[str, str]] = {}
        left = jobs
        while left and not self.stopping.is_set():
            with ThreadPoolExecutor(self.workers, initializer=self._begin, initargs=(itertools.count(),)) as pool:
                states |= zip(left, pool.map(self._attend, left))
            # What a signal ended or another process runs comes again when everything else is done.
            left = [job for job in left if states[job][0] not in ("done", "failed")]
            self.stopping.wait(1 if left else 0)
        return {job: states[job] if states.get(job, ("",))[0] == "failed" else state_of(job) for job in jobs}

    def _begin(self, numbers: Iterator[int]) -> None:
        """Gives a worker its environment variables and its cores."""
        worker = next(numbers)
        self.worker.environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # an error is then the last line of the log
        if self.gpus:
            self.worker.environment["CUDA_VISIBLE_DEVICES"] = self.gpus[worker % len(self.gpus)]
        if 0 < len(self.gpus) < self.workers:
            self.worker.environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            mine = [core for i, core in enumerate(cores) if i * self.workers // len(cores) == worker]
            os.sched_setaffinity(0, mine or [cores[worker % len(cores)]])

    def _attend(self, job: Job) -> tuple[str, str]:
        """Runs a job, unless it is done or another process runs it. Returns its state."""
        if self.stopping.is_set() or state_of(job)[0] in ("done", "running"):
            return state_of(job)
        say(f"start    {job.title}")
        self.starts[job] += 1
        with open(job.log, "ab") as log, self.changing:
            # In a session of its own, the job gets no signal from the terminal but the sweep's.
            process = subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.worker.environment,
                start_new_session=True,
            )  # fmt: skip
            self.own.add(process)
            if self.stopping.is_set():
                process.terminate()
        code = process.wait()
        with self.changing:
            self.own.remove(process)
        state = state_of(job)
        if state[0] not in ("done", "running") and not self.stopping.is_set():
            if 0 <= code <= 128:
                state = "failed", last_line(job.log) if code else "ended without a result.json"
            elif self.starts[job] == STARTS:
                state = "failed", f"given up after {STARTS} starts, killed by signal {abs(code) % 128}"
        say(f"{state[0]:8} {job.title}  {state[1]}")
        return state


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line.strip("-") and not line.startswith("For simplicity, JAX has")]
    return lines[-1] if lines else "no reason given"


# ------------------------------------------------------------------------------------------------------------ on SLURM


class SlurmJob:
    """Runs one command on a SLURM node, where only installed packages can be imported. submitit calls `checkpoint` when
    SLURM warns of the time limit, and queues the job again: the same command goes on with the run."""

    def __init__(self, command: tuple[str, ...], log: Path):
        self.command, self.log = command, log

    def __call__(self) -> None:
        deaf = functools.partial(signal.signal, signal.SIGUSR2, signal.SIG_IGN)  # SLURM warns all processes of the job
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, preexec_fn=deaf)
        if code := self.process.wait():
            raise RuntimeError(f"exit code {code}, see {self.log}")

    def checkpoint(self):
        import submitit

        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.process.pid, signal.SIGTERM)
            # Popen.wait would wait for itself, because this runs in a signal handler.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(SlurmJob(self.command, self.log))


def submit(jobs: list[Job], args: argparse.Namespace) -> None:
    """Queues the jobs as one job array. Raises UserError if jobs of this sweep are in the queue, or SLURM refuses."""
    require("submitit", "--slurm", "sweep")
    import submitit

    name = f"sweep-{hashlib.sha256(str(jobs[0].run.parent).encode()).hexdigest()[:8]}"
    options = {"slurm_partition": args.partition, "gpus_per_node": args.gpus_per_job, "mem_gb": args.memory_gb}
    try:
        executor = submitit.AutoExecutor(args.runs_dir / "slurm", cluster="slurm", slurm_max_num_timeout=1_000_000)
        ask = ["squeue", "--noheader", "--format=%i", f"--name={name}"]
        if queued := subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split():
            raise UserError(f"jobs of this sweep are in SLURM's queue; to queue others, end them: scancel {queued[0]}")
        executor.update_parameters(
            name=name, timeout_min=max(1, round(args.hours * 60)), cpus_per_task=args.cpus_per_job,
            slurm_array_parallelism=args.workers or len(jobs), slurm_additional_parameters={"requeue": True},
            slurm_signal_delay_s=args.seconds_to_save, **{key: value for key, value in options.items() if value},
        )  # fmt: skip
        with executor.batch():
            entries = [executor.submit(SlurmJob(job.command, job.log)) for job in jobs]
    except (RuntimeError, OSError, subprocess.CalledProcessError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"--slurm: {str(error).strip().splitlines()[-1]}") from None
    say(f"{len(entries)} jobs are in SLURM's queue as {entries[0].job_id.partition('_')[0]}; --status shows the runs")


# --------------------------------------------------------------------------------------------------------- command line


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("file", nargs="?", type=Path, help="YAML file with the blocks of the sweep")
    for key in KEYS:
        add(f"--{key}", nargs="+")
    add("--set", action="append", default=[], metavar="FLAG=VALUE[,VALUE]", help="flag of the scripts; repeatable")
    add("--runs-dir", type=Path, default=Path("runs/sweep"), help="folder of the run directories (runs/sweep)")
    add("--workers", type=int, help="jobs at the same time (1; on SLURM as many as it lets run)")
    add("--gpus", nargs="+", default=[], help="GPUs of this machine, dealt to the workers")
    add("--status", action="store_true", help="print the table of the jobs and do nothing")
    add("--dry-run", action="store_true", help="print the jobs' commands and do nothing")
    add("--slurm", action="store_true", help="queue the jobs on SLURM (extra `sweep`)")
    add("--partition", help="SLURM partition")
    add("--hours", type=float, default=24, help="SLURM time limit; a job that reaches it saves and is queued again")
    add("--seconds-to-save", type=int, default=120, help="a job's last seconds, to end an evaluation and save (120)")
    add("--cpus-per-job", type=int, default=4)
    add("--gpus-per-job", type=int, default=0)
    add("--memory-gb", type=float)
    args = parser.parse_args(argv)
    if not (args.workers is None or args.workers > 0) or not 0 < args.hours < math.inf:
        raise UserError("--workers and --hours must be positive and finite.")
    if args.gpus if args.slurm else args.partition or args.gpus_per_job or args.memory_gb:
        raise UserError("--gpus are this machine's; --partition, --gpus-per-job and --memory-gb go with --slurm.")
    return args


def read_jobs(args: argparse.Namespace) -> list[Job]:
    """The jobs of the file, with what the command line says of all of them."""
    given = {key: value for key in KEYS if (value := getattr(args, key))}
    settings: dict[str, list[str]] = {}
    for flag, equals, value in (pair.partition("=") for pair in args.set):
        if not equals:
            raise UserError(f"--set {flag} has no =, as in --set alpha=1,3")
        # The comma of --set grid=alpha=1,3 is --grid's.
        settings.setdefault(flag_name(flag), []).extend([value] if "=" in value else value.split(","))
    blocks = read_blocks(args.file) if args.file else [{"settings": {}}]
    return make_jobs([block | given | {"settings": block["settings"] | settings} for block in blocks], args.runs_dir)


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 if all jobs are done, 1 if not, 128 + the signal that ended the sweep."""
    args = parse(argv)
    jobs, sweep = read_jobs(args), Sweep(args.workers or 1, args.gpus)
    if args.dry_run:
        say("\n".join(shlex.join(job.command) for job in jobs))
        return 0
    if not args.status:
        jobs[0].run.parent.mkdir(parents=True, exist_ok=True)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN and not args.slurm:  # nohup ignores SIGHUP
                signal.signal(number, sweep.stop)
    states = {job: state_of(job) for job in jobs} if args.status or args.slurm else sweep.run(jobs)
    left = [job for job, (state, _) in states.items() if state not in ("done", "running")]
    if args.slurm and left and not args.status:
        submit(left, args)
        return 0
    counts = Counter(state for state, _ in states.values())
    say(f"{len(jobs)} jobs: {', '.join(f'{number} {state}' for state, number in counts.items())}")
    for job, (state, note) in states.items():
        say(f"{state:8} {job.title}  {note}".rstrip())
    return 128 + sweep.signal if sweep.signal else int(counts["done"] < len(jobs))


if __name__ == "__main__":
    with one_line_errors("sweep"):
        sys.exit(main(sys.argv[1:]))
