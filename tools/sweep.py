"""Many runs: scripts x environments x tasks x seeds x settings, on this machine or on SLURM.

    python tools/sweep.py --scripts driftql fql --envs pointmaze-medium-navigate --seeds 0 1 2 --workers 2
    python tools/sweep.py --scripts driftql --envs cube-single-play --set alpha=10,30,100 --set "hidden-dims=256 256"
    python tools/sweep.py tools/sweeps/corruption.yaml --workers 4 --gpus 0 1 2 3
    python tools/sweep.py tools/sweeps/corruption.yaml --slurm --partition gpu --gpus-per-job 1 --hours 24
    python tools/sweep.py tools/sweeps/corruption.yaml --status

The files in tools/sweeps need data that are collected first: see their heads.

Start the same command again at any time: what is finished is skipped, what was interrupted goes on from its checkpoint,
what is still running is left to run. Ctrl-C, SIGTERM or a lost connection (without nohup or tmux) let the running jobs
save, and end it; on SLURM they stay in its queue. A file (YAML) is a list of blocks; every key but `settings` is also a
flag, and a flag replaces the key in all blocks:

    - scripts: [driftql, fql]
      envs: [pointmaze-medium-navigate]
      tasks: [1, 2]             # left out: the benchmark's default task
      seeds: [0, 1, 2]          # left out: 0
      settings:                 # flags of the scripts; a list is tried value by value, {env} is the environment's name
        alpha: [1, 3, 10]
        hidden-dims: 256 256    # one value of two numbers; a path with blanks needs quotes of its own: "'my data.npz'"
        normalize-q: true       # true and false become --normalize-q and --no-normalize-q

Each job has a folder of its own in --runs-dir: job.json (command, attempts), lock, stdout.txt, stderr.txt, its run
directory. The state of the sweep is these files alone. The lock is held by the job's own processes, so that no job runs
twice, whatever happens to the sweep; on a cluster the file system of --runs-dir must support flock across nodes.
"""

import argparse
import contextlib
import difflib
import getpass
import hashlib
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import yaml
from shared import ROOT, Parser
from sweep_job import Job, look, read_job, runs_here, slurm_id, stop
from sweep_table import Watch, show, status

from common import UserError
from common.cli import one_line_errors
from common.files import write_json

OWN_FLAGS = {"env", "task", "seed", "runs-dir", "resume", "progress", "no-progress"}  # which each job gets
STARTS = 3  # of one job by one sweep, if signals end it: an out-of-memory kill would repeat for ever


# ---------------------------------------------------------------------------------------------------------------- jobs


class Loader(yaml.BaseLoader):
    """Leaves every value as it is written: 1e-4, 0.10 and no are arguments, not numbers or truth values. Refuses a key
    that is there twice, of which YAML's own loaders take the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = _flag(key.value) if isinstance(key.value, str) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _flag(name: str) -> str:
    """batch-size, however it was written."""
    return name.lstrip("-").replace("_", "-")


def read_blocks(path: Path) -> list[dict]:
    """Blocks of a sweep file, all values strings, settings named as `_flag` does. Raises UserError with the line that
    cannot be read."""
    try:
        blocks = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    keys = {"scripts", "envs", "tasks", "seeds", "settings"}
    if not blocks or not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise UserError(f"{path} must be a list of blocks, see tools/sweep.py --help.")
    for unknown in (key for block in blocks for key in block if key not in keys):
        raise UserError(f"{path}: unknown key '{unknown}'; a block has {', '.join(sorted(keys))}.")
    if not all(isinstance(block.get("settings", {}), dict) for block in blocks):
        raise UserError(f"{path}: settings must be `flag: value` pairs.")
    for key, value in (pair for block in blocks for pair in (block | block.get("settings", {})).items()):
        if key != "settings" and not all(isinstance(each, str) for each in _values(value)):
            raise UserError(f"{path}: {key} must be a value or a list of values; several numbers in one: 256 256.")
    named = ({_flag(name): value for name, value in block.get("settings", {}).items()} for block in blocks)
    return [block | {"settings": settings} for block, settings in zip(blocks, named)]


def _values(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def make_jobs(blocks: list[dict], runs_dir: Path) -> list[Job]:
    """All combinations of each block, every job once. Raises UserError for a script that does not exist."""
    combinations = []
    for block in blocks:
        for key in ("scripts", "envs"):
            if not block.get(key):
                raise UserError(f"a sweep needs {key}: --{key} on the command line, or in every block of the file.")
        settings = block.get("settings", {})
        for name in settings.keys() & OWN_FLAGS:
            raise UserError(f"--{name} is no setting: each job gets its own, from the sweep's envs, tasks and seeds.")
        given = {key: value for key, value in block.items() if key != "settings"} | settings
        for key in (key for key, value in given.items() if not key or not value or "" in _values(value)):
            raise UserError(f"{key or '--set'} has no {'value, or an empty one' if key else 'name'}.")
        for key, value in settings.items():
            if twice := [each for each in _values(value) if _values(value).count(each) > 1]:
                raise UserError(f'{key} has {twice[0]} twice; several numbers in one value: "{twice[0]} {twice[0]}".')
        for key in ("tasks", "seeds"):
            for value in (value for value in _values(block.get(key, [])) if not value.isdecimal()):
                raise UserError(f"{key}: {value} is not a whole number; write several as {key}: [1, 2] or --{key} 1 2.")
        _check_seeds(_values(block.get("seeds", ["0"])), _values(settings.get("num-seeds", ["1"])))
        axes = [block["scripts"], block["envs"], block.get("tasks", [None]), block.get("seeds", ["0"])]
        for script, env, task, seed, *values in itertools.product(*map(_values, [*axes, *settings.values()])):
            combinations.append((script, env, task, seed, dict(zip(settings, values))))
    flags = {flag for *_, settings in combinations for flag in settings}
    shown = {flag for flag in flags if len({settings.get(flag) for *_, settings in combinations}) > 1}
    jobs = [_make_job(*combination, shown, runs_dir) for combination in combinations]
    return list({job.folder: job for job in jobs}.values())


def _check_seeds(seeds: list[str], numbers: list[str]) -> None:
    """Raises UserError if jobs that train several seeds side by side would train some of them twice."""
    for number in map(int, filter(str.isdecimal, numbers)):
        first = sorted(map(int, seeds))
        if any(b - a < number for a, b in itertools.pairwise(first)):
            apart = " ".join(str(first[0] + i * number) for i in range(len(first)))
            raise UserError(f"with num-seeds {number} these seeds would be trained more than once; --seeds {apart}?")


def _make_job(script: str, env: str, task: str | None, seed: str, settings: dict, shown: set, runs_dir: Path) -> Job:
    file = Path(script) if script.endswith(".py") else ROOT / f"{script}.py"
    if not file.exists():
        close = difflib.get_close_matches(script, [path.stem for path in ROOT.glob("*.py")], n=1)
        raise UserError(f"there is no {file.name}{f'; did you mean {close[0]}?' if close else '.'}")
    settings = {name: value.replace("{env}", env) for name, value in settings.items()}
    flags = ["--env", env, *(["--task", task] if task else []), "--seed", seed]
    for name, value in sorted(settings.items()):
        if value.lower() in ("true", "false"):
            flags.append(f"--{name}" if value.lower() == "true" else f"--no-{name}")
        else:
            try:
                flags += [f"--{name}", *shlex.split(value)]
            except ValueError as error:
                raise UserError(f"{name}: {value}: {error}.") from None
    # The folder's name is how a job is found again: by all its arguments, and where a script lies that is not ours.
    which = file.stem if file.resolve().parent == ROOT else script
    digest = hashlib.sha256(json.dumps([which, *flags]).encode()).hexdigest()[:8]
    label = f"{env}-task{task}" if task else env
    folder = runs_dir / f"{label}__{file.stem}__{seed}__{digest}".replace("/", "_").replace(":", "_")
    words = [which, env, *(["task", task] if task else []), "seed", seed]
    title = " ".join(words + [f"{key}={value.rpartition('/')[2]}" for key, value in settings.items() if key in shown])
    return Job(title, folder, (sys.executable, str(file), *flags, "--runs-dir", str(folder), "--no-progress"))


# ----------------------------------------------------------------------------------------------------- on this machine


def job_process(folder: Path, worker: int = 0) -> list[str]:
    """The command that runs the job of `folder`."""
    return [sys.executable, str(ROOT / "tools" / "sweep_job.py"), str(folder), str(worker)]


def run_here(jobs: list[Job], workers: int, gpus: list[str], watch: Watch) -> None:
    """Runs all waiting jobs, `workers` at a time, each worker on its own cores and, if there are any, its GPU."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    own: dict[Path, tuple[int, subprocess.Popen]] = {}  # folder -> worker and its process
    starts: Counter[Path] = Counter()
    told: set[int] = set()
    while True:
        statuses = watch(jobs, queued={}, starting=own)
        own = {folder: (worker, process) for folder, (worker, process) in own.items() if process.poll() is None}
        running = {job: s for job, s in statuses.items() if s.state == "running" and job.folder not in own}
        # Jobs that a killed sweep has left running keep the worker they had; those of other machines take none here.
        left = [s for s in running.values() if runs_here(s)]
        busy = {worker for worker, _ in own.values()} | {s.attempt["worker"] for s in left if s.attempt}
        free = [i for i in range(workers) if i not in busy][: max(0, workers - len(own) - len(left))]
        if watch.signal:
            for s in statuses.values():
                if s.state == "running" and s.attempt and s.attempt["pid"] not in told:
                    told.add(s.attempt["pid"])
                    stop(s)
            if not own and not left:
                return
            continue
        startable = [job for job, s in statuses.items() if s.state == "waiting" and starts[job.folder] < STARTS]
        startable = [job for job in startable if job.folder not in own]
        for job, worker in zip(startable, free):
            environment = dict(os.environ)
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
                if workers > len(gpus):
                    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
            try:
                prepare(job)
            except UserError:
                if own or running:  # a disk that is full now may have room when a job has ended
                    break
                raise
            process = subprocess.Popen(job_process(job.folder, worker), env=environment, start_new_session=True)
            if cores:
                mine = [core for i, core in enumerate(cores) if i * workers // len(cores) == worker]
                os.sched_setaffinity(process.pid, mine or {cores[worker % len(cores)]})
            own[job.folder] = (worker, process)
            starts[job.folder] += 1
        if not own and not running and not startable:
            for job, s in statuses.items():
                if s.state == "waiting":
                    print(f"{job.title}: given up after {STARTS} starts, {s.note}", file=sys.stderr)
            return


def prepare(job: Job) -> None:
    """Makes the job's folder; its command is this sweep's, also where the repository, the script or the folder has
    moved. Raises UserError if that cannot be done."""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        record = read_job(job.folder)
        if record["command"] != list(job.command):
            write_json(job.folder / "job.json", record | {"command": job.command})
    except OSError as error:
        raise UserError(f"cannot make {job.folder}: {error.strerror}.") from None


# ------------------------------------------------------------------------------------------------------------ on SLURM


class SlurmJob:
    """What submitit runs on the node. It calls `checkpoint` when SLURM warns of the time limit, and requeues the job
    afterwards."""

    def __init__(self, command: list[str]):
        self.command = command

    def __call__(self) -> int:
        self.process = subprocess.Popen(self.command)
        while self.process.poll() is None:
            time.sleep(1)
        return self.process.returncode

    def checkpoint(self):
        import submitit

        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.process.pid, signal.SIGUSR2)
            # Popen.wait would wait for itself: this runs inside a signal handler, maybe in the middle of poll.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(SlurmJob(self.command))


def run_on_slurm(jobs: list[Job], args: argparse.Namespace, watch: Watch) -> None:
    """Queues what waits, as one job array, and watches it. Jobs stay in the queue if the watcher ends."""
    try:
        import submitit

        executor = submitit.AutoExecutor(args.runs_dir / "slurm", cluster="slurm", slurm_max_num_timeout=1_000_000)
    except ImportError:
        raise UserError("--slurm needs submitit: uv pip install -e '.[sweep]'") from None
    except RuntimeError as error:
        raise UserError(f"--slurm: {error}") from None
    options = {"slurm_partition": args.partition, "gpus_per_node": args.gpus_per_job, "mem_gb": args.memory_gb}
    executor.update_parameters(
        name="sweep", timeout_min=max(1, round(args.hours * 60)), cpus_per_task=args.cpus_per_job,
        slurm_array_parallelism=args.workers or len(jobs), slurm_additional_parameters={"requeue": True},
        slurm_signal_delay_s=args.seconds_to_save, **{key: value for key, value in options.items() if value},
    )  # fmt: skip
    statuses = watch(jobs, queued=slurm_queue())
    new = [job for job, s in statuses.items() if s.state == "waiting" and not s.queued]
    if new:
        for job in new:
            prepare(job)
        try:
            with executor.batch():
                entries = [executor.submit(SlurmJob(job_process(job.folder))) for job in new]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"SLURM refuses the jobs: {str(error).strip().splitlines()[-1]}") from None
        for job, entry in zip(new, entries):
            write_json(job.folder / "slurm.json", {"id": entry.job_id})
    while not watch.signal:
        statuses = watch(jobs, queued=slurm_queue())
        if not any(s.state == "running" or s.queued for s in statuses.values()):
            return
    array = sorted({number.split("_")[0] for job in jobs if (number := slurm_id(job.folder))})
    print(f"the jobs stay in SLURM's queue; scancel {' '.join(array)} ends them", file=sys.stderr)


def slurm_queue() -> dict[str, str] | None:
    """Job id -> state of this user's jobs; None if SLURM does not answer now."""
    # sacct, which submitit would ask, needs an accounting database, which not every cluster has.
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--user={getpass.getuser()}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("--slurm: there is no squeue here; is this a machine of the cluster?") from None
    return None if answer.returncode else dict(line.split() for line in answer.stdout.splitlines())


# --------------------------------------------------------------------------------------------------------- command line


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("tools/sweep.py", __doc__)
    add = parser.add_argument
    add("file", nargs="?", type=Path, help="YAML file with the blocks of the sweep")
    add("--scripts", nargs="+")
    add("--envs", nargs="+")
    add("--tasks", nargs="+")
    add("--seeds", nargs="+")
    add("--set", action="append", default=[], metavar="FLAG=VALUE[,VALUE]", help="flag of the scripts; repeatable")
    add("--runs-dir", type=Path, default=Path("runs/sweep"), help="folder of the jobs (default: runs/sweep)")
    add("--workers", type=int, help="jobs at the same time (default: 1; on SLURM as many as it lets run)")
    add("--gpus", nargs="+", default=[], help="GPUs of this machine, dealt to the workers")
    add("--retry", action="store_true", help="start failed jobs again")
    add("--status", action="store_true", help="print the table and do nothing")
    add("--dry-run", action="store_true", help="print the jobs' commands and do nothing")
    add("--slurm", action="store_true", help="queue the jobs on SLURM (extra `sweep`)")
    add("--partition", help="SLURM partition")
    add("--hours", type=float, default=24, help="SLURM time limit; a job that reaches it saves and is requeued")
    add("--seconds-to-save", type=int, default=120, help="a job's last seconds, to end an evaluation and save (120)")
    add("--cpus-per-job", type=int, default=4)
    add("--gpus-per-job", type=int, default=0)
    add("--memory-gb", type=float)
    args = parser.parse_args(argv)
    if args.runs_dir.exists() and not args.runs_dir.is_dir():
        raise UserError(f"--runs-dir {args.runs_dir} is not a folder.")
    for flag, value in {"--workers": args.workers, "--hours": args.hours}.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{flag} {value} must be positive{', and finite' * (value > 0)}.")
    if args.slurm and args.gpus:
        raise UserError("--gpus are this machine's; on SLURM each job asks for its own: --gpus-per-job 1.")
    if not args.slurm and (args.partition or args.gpus_per_job or args.memory_gb):
        raise UserError("--partition, --gpus-per-job and --memory-gb go with --slurm, without which jobs run here.")
    for pair in args.set:
        if "=" not in pair:
            raise UserError(f"--set {pair} has no = (see tools/sweep.py --help)")
    flags = [_flag(pair.partition("=")[0]) for pair in args.set]
    if twice := [flag for flag in flags if flags.count(flag) > 1]:
        raise UserError(f"--set {twice[0]} is given twice; its values go into one: --set {twice[0]}=1,3")
    if args.status and args.retry:
        raise UserError("--status changes nothing, so leave --retry out.")
    return args


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 if all jobs are done, 1 if not, 128 + the signal after Ctrl-C or SIGTERM."""
    args = parse(argv)
    given = {key: value for key in ("scripts", "envs", "tasks", "seeds") if (value := getattr(args, key))}
    pairs = [pair.split("=", 1) for pair in args.set]
    # The comma of --set grid=alpha=1,3 is --grid's.
    settings = {_flag(flag): [value] if "=" in value else value.split(",") for flag, value in pairs}
    blocks = [block | given for block in (read_blocks(args.file) if args.file else [{}])]
    blocks = [block | {"settings": block.get("settings", {}) | settings} for block in blocks]
    jobs = make_jobs(blocks, args.runs_dir)
    if args.dry_run:
        print("\n".join(shlex.join(job.command) for job in jobs))
        return 0
    if args.retry:
        for job in jobs:
            if look(job.folder).state == "failed":
                record = read_job(job.folder)
                record["attempts"][-1]["exit"] = None
                write_json(job.folder / "job.json", record)
    watch = Watch(seconds=10 if args.slurm else 1)  # squeue asks a machine that all users share
    if args.status:
        queued = slurm_queue() if args.slurm else {}
        statuses = {job: status(job, queued) for job in jobs}
    else:
        with watch:
            run_on_slurm(jobs, args, watch) if args.slurm else run_here(jobs, args.workers or 1, args.gpus, watch)
            statuses = {job: look(job.folder) for job in jobs}
    show(watch.console, statuses)
    return 128 + watch.signal if watch.signal else int(any(s.state != "done" for s in statuses.values()))


if __name__ == "__main__":
    with one_line_errors("sweep"):
        sys.exit(main(sys.argv[1:]))
