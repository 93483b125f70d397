"""A run from the command line to `result.json`: arguments and presets, run directory, logs, checkpoints, signals."""

import contextlib
import csv
import dataclasses
import difflib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import json
import math
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX
import tyro
from tqdm import tqdm

from common import UserError
from common.buffers import ReplayBuffer
from common.datasets import Dataset, resolve_name
from common.pictures import plot_curve, plot_rollouts, save_film


@dataclass(frozen=True)
class Args:
    """What every script takes; each adds the arguments of its algorithm."""

    env: str = "antmaze-large-navigate"
    """OGBench dataset (short name or full id), bandit, bandit-corners, or with --dataset any gymnasium id"""
    task: int | None = None
    """OGBench task, 1 to 5; None is the benchmark's default"""
    data: Literal["auto", "cache", "download", "collect"] = "auto"
    """cache: only files that are there; download: OGBench's host; collect: made on this machine, not the official data;
    auto: cache, else download, else collect"""
    data_dir: str | None = None
    """folder with OGBench's npz files; None is ~/.ogbench/data. Collected data go to its subfolder `collected`"""
    collect_episodes: int | None = None
    """training episodes if data are collected; None is OGBench's number"""
    dataset: str | None = None
    """your own npz file, or one in OGBench's format for an OGBench --env (formats: common/datasets.py)"""
    seed: int = 0
    """seed of parameters, batches and evaluation"""
    num_seeds: int = 1
    """train this many seeds side by side: seed, seed + 1, ..."""
    steps: int = 1_000_000
    """gradient steps"""
    log_every: int | None = None
    """updates per dispatch, over which losses are averaged; None is 5000 on a GPU and 100 on a CPU, if that divides"""
    eval_every: int = 100_000
    """updates between evaluations; there is one before the first update too"""
    eval_episodes: int = 50
    """episodes per evaluation and seed"""
    eval_workers: int | None = None
    """processes that run environments; None is one per core"""
    save_every: int = 100_000
    """updates between checkpoints"""
    runs_dir: str = "runs"
    """where run directories are made"""
    resume: str | None = None
    """directory of a run to go on with; takes all other arguments from there"""
    track: bool = False
    """log to Weights & Biases too (needs the extra `track`)"""
    capture_video: bool = False
    """film one episode of the final policy: film.gif (needs OpenGL; without a screen set MUJOCO_GL=egl)"""
    progress: bool = True
    """show progress bars on a terminal"""


MAY_CHANGE_ON_RESUME = ("resume", "data_dir", "eval_workers", "track", "capture_video", "progress")


# ------------------------------------------------------------------------------------------------------- command line


def launch(main: Callable[[Any], None], args_class: type, presets: dict[str, dict]) -> None:
    """Parses the command line and runs `main(args)`. A UserError becomes one line on standard error and exit code 2."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/offline-rl-jax").expanduser()))
    with one_line_errors(algorithm_name(args_class)):
        main(parse(args_class, presets, sys.argv[1:]))


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """A UserError becomes one line on standard error and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before a run was set up, or the second Ctrl-C
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


def parse(args_class: type, presets: dict[str, dict], argv: list[str]) -> Any:
    """Arguments from defaults, then the environment's preset, then the command line; or, with --resume, from the run's
    `config.json`. Raises UserError for what cannot be used."""
    without_help = [word for word in argv if word not in ("-h", "--help")]
    given = command_line(args_class, without_help, args_class())
    if given.resume is not None:
        return _resumed_args(args_class, without_help, given.resume)
    name = _preset_name(given)
    args = _with_log_interval(command_line(args_class, argv, args_class(**presets.get(name, {}))))
    check(args)
    values = " ".join(f"{key}={getattr(args, key)}" for key in presets.get(name, {}))
    print(f"preset  {name}: {values}" if values else f"preset  none for {name}: the script's defaults, untuned")
    return args


def _with_log_interval(args: Any) -> Any:
    """On a CPU, large networks take seconds per update: short dispatches keep progress and signals responsive."""
    if args.log_every is not None:
        return args
    usual = 100 if jax.default_backend() == "cpu" else 5_000
    return dataclasses.replace(args, log_every=math.gcd(usual, args.steps, args.eval_every, args.save_every) or usual)


def _preset_name(args: Any) -> str:
    with contextlib.suppress(UserError):  # load_dataset says what is wrong with the name
        return resolve_name(args.env)[0]
    return args.env


def command_line(
    args_class: type, argv: list[str], default: Any = tyro.MISSING_NONPROP, program: str | None = None
) -> Any:
    """tyro's parser, its boxed messages reduced to one line. `program` is what --help calls it; None is the script."""
    program = program or f"{algorithm_name(args_class)}.py"
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            args, unknown = tyro.cli(args_class, prog=program, args=argv, default=default, return_unknown_args=True)
    except SystemExit as stop:
        if not stop.code:
            raise
        # A title, then the message up to a rule; without Unicode, there is a rule under the title too.
        lines = [line.strip("│ ") for line in box.getvalue().splitlines()[1:]]
        after_title = itertools.dropwhile(lambda line: not line.strip("-"), lines)
        message = itertools.takewhile(lambda line: line.strip("─-╰╯"), after_title)
        raise UserError(f"{' '.join(message)} (see {program} --help)") from None
    if unknown:
        flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(args_class)]
        close = difflib.get_close_matches(unknown[0], flags, n=1)
        hint = f"did you mean {close[0]}?" if close else f"see {program} --help."
        raise UserError(f"unknown argument {unknown[0]}: {hint}")
    return args


def check(args: Any) -> None:
    """Raises UserError for numbers that no run can use. Counts must be positive, rates finite and not negative."""
    for field in dataclasses.fields(args):
        value, flag = getattr(args, field.name), f"--{field.name.replace('_', '-')}"
        for number in value if isinstance(value, tuple) else [value]:
            if isinstance(number, int) and not isinstance(number, bool) and number < (field.name != "seed"):
                raise UserError(f"{flag} {number} must be {'0 or more' if field.name == 'seed' else 'positive'}.")
            if isinstance(number, float) and not (math.isfinite(number) and number >= 0):
                raise UserError(f"{flag} {number} must be a finite number, 0 or more.")
    for name in ("discount", "target_rate"):
        if getattr(args, name, 0) > 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} must lie between 0 and 1.")
    if args.seed + args.num_seeds > 2**32:
        raise UserError(f"--seed {args.seed} is too large: seeds are 32-bit numbers.")
    for name in ("steps", "eval_every", "save_every"):
        if args.log_every is not None and getattr(args, name) % args.log_every:
            flag, value = f"--{name.replace('_', '-')}", getattr(args, name)
            raise UserError(f"{flag} {value} is not a multiple of --log-every {args.log_every}; change one of the two.")


def algorithm_name(args_class: type) -> str:
    """driftql for the arguments of driftql.py."""
    return Path(inspect.getfile(args_class)).stem


def _resumed_args(args_class: type, argv: list[str], directory: str) -> Any:
    folder, algorithm = Path(directory), algorithm_name(args_class)
    try:
        config = json.loads((folder / "config.json").read_text())
        saved, owner = config["args"], config["algo"]
    except FileNotFoundError:
        raise UserError(f"--resume {folder}: there is no config.json, so this is not a run directory.") from None
    except OSError as error:
        raise UserError(f"--resume {folder}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--resume {folder}: config.json is damaged.") from None
    if owner != algorithm:
        raise UserError(f"--resume {folder}: this run was made by {owner}.py; go on with that script.")
    names = {field.name for field in dataclasses.fields(args_class)}
    if set(saved) != names:
        raise UserError(
            f"--resume {folder}: made by another version of {algorithm}.py (commit {config['git_commit']})."
        )
    saved = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    args = command_line(args_class, argv, args_class(**saved))
    changed = [name for name in names - set(MAY_CHANGE_ON_RESUME) if getattr(args, name) != saved[name]]
    if changed:
        flag = changed[0].replace("_", "-")
        raise UserError(f"--resume takes --{flag} from the run ({saved[changed[0]]}); start a new run to change it.")
    check(args)
    return args


# ----------------------------------------------------------------------------------------------------- seeds, devices


def seed_keys(args: Any) -> jax.Array:
    """One PRNG key per seed, (num_seeds, 2)."""
    return jax.vmap(jax.random.PRNGKey)(args.seed + jnp.arange(args.num_seeds, dtype=jnp.uint32))


def place(state: Any, buffer: ReplayBuffer) -> tuple[Any, ReplayBuffer]:
    """With several devices, and seeds that divide evenly among them: the seeds spread, the dataset on each of them."""
    devices, num_seeds = jax.devices(), len(jax.tree.leaves(state)[0])
    if len(devices) == 1 or num_seeds % len(devices):
        return state, buffer
    mesh = jax.sharding.Mesh(devices, ("seeds",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seeds"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(state, spread), jax.device_put(buffer, everywhere)


# --------------------------------------------------------------------------------------------------------------- run


class Run:
    """The bookkeeping of one run, as a context manager. In `runs/<env>-task<k>__<algo>__<seed>__<time>/`:

    config.json         arguments, versions, git commit, device, dataset
    metrics.csv         one line per seed and log interval or evaluation; TensorBoard events hold the same
    checkpoint.msgpack  the state of all seeds and the evaluations so far, written to another name, then renamed
    result.json         written when the run ends well
    curve.png, rollouts.png, film.gif

    Leaving it closes all files. The first Ctrl-C or SIGTERM sets `stopping()`; the second one ends the process.
    """

    def __init__(self, args: Any, dataset: Dataset):
        self.args, self.dataset = args, dataset
        self.algorithm = algorithm_name(type(args))
        self.seeds = [args.seed + i for i in range(args.num_seeds)]
        self.step = self.saved_step = self.measured_updates = 0
        self.measured_seconds, self.seconds_before = 0.0, 0.0
        self.evaluations: list[dict] = []
        self.paths: list[np.ndarray] = []
        self.film: list[np.ndarray] | str | None = None
        self.signal: int | None = None
        self.checkpoint: dict | None = None
        if args.batch_size > len(dataset.rows):
            raise UserError(
                f"--batch-size {args.batch_size} is larger than the dataset ({len(dataset.rows)} transitions)."
            )
        if args.track and importlib.util.find_spec("wandb") is None:
            raise UserError("--track needs Weights & Biases: uv pip install -e '.[track]'")
        if args.resume:
            self.directory = Path(args.resume)
            self._open_old()
        else:
            self.directory = self._make_directory()

    def _make_directory(self) -> Path:
        args, dataset = self.args, self.dataset
        task = f"-task{dataset.task}" if dataset.task else ""
        env = dataset.name.replace("/", "_").replace(":", "_")
        name = f"{env}{task}__{self.algorithm}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
        # Many jobs may start in the same second.
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
            directory = Path(args.runs_dir) / f"{name}{suffix}"
            try:
                directory.mkdir(parents=True)
            except FileExistsError:
                if not Path(args.runs_dir).is_dir():
                    raise UserError(f"--runs-dir {args.runs_dir} is not a folder.") from None
                continue
            except OSError as error:
                raise UserError(f"cannot make a run directory in {args.runs_dir}: {error.strerror}.") from None
            break
        paths = {
            key: str(Path(getattr(args, key)).expanduser().absolute())
            for key in ("data_dir", "dataset")
            if getattr(args, key) is not None
        }  # so that --resume finds them from any folder
        if dataset.source == "collected" and args.dataset is None:
            paths["data"] = "collect"  # and does not download the official data if the network is back
        config = {"algo": self.algorithm, "args": dataclasses.asdict(args) | paths} | self._circumstances()
        try:
            _write(directory / "config.json", json.dumps(config, indent=2).encode())
        except UserError:
            directory.rmdir()
            raise
        return directory

    def _circumstances(self) -> dict:
        return {
            "dataset": self.dataset.describe(),
            "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
            "versions": versions(),
            "git_commit": git_commit(),
        }

    def _open_old(self) -> None:
        """Reads the checkpoint of a run that is resumed, if there is one yet."""
        config = json.loads((self.directory / "config.json").read_text())
        if config["dataset"]["sha256"] != self.dataset.sha256:
            raise UserError(f"--resume {self.directory}: the dataset is not the one that the run began with.")
        if (self.directory / "result.json").exists():
            raise UserError(f"--resume {self.directory}: this run has ended, see its result.json.")
        if (self.directory / "checkpoint.msgpack").exists():
            self.checkpoint = load_checkpoint(self.directory)
            self.step = self.saved_step = self.checkpoint["step"]
            self.evaluations = json.loads(self.checkpoint["evaluations"])
            self.seconds_before = self.checkpoint["seconds"]
            self.measured_updates, self.measured_seconds = self.checkpoint["speed"]

    def __enter__(self):
        self.began = time.monotonic()
        print(self.dataset.summary())
        print(f"device  {device_summary()}")
        print(f"run     {self.directory}", flush=True)
        self.old_handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old_handlers[number] = signal.signal(number, self._on_signal)
        self.bar = tqdm(
            total=self.args.steps, initial=self.step, unit="update", unit_scale=True, smoothing=0.1, dynamic_ncols=True,
            disable=None if self.args.progress else True,
        )  # fmt: skip
        self.writers = [
            tensorboardX.SummaryWriter(str(folder), purge_step=self.step + 1 if self.args.resume else None)
            for folder in self._writer_folders()
        ]
        self.csv = None
        self.tracker = self._start_tracking() if self.args.track else None
        return self

    def _start_tracking(self):
        import wandb

        config = json.loads((self.directory / "config.json").read_text())
        name = self.directory.name
        return wandb.init(project="offline-rl-jax", id=name, name=name, resume="allow", config=config)

    def _writer_folders(self) -> list[Path]:
        if len(self.seeds) == 1:
            return [self.directory]
        return [self.directory / f"seed{seed}" for seed in self.seeds]

    def __exit__(self, *_):
        self.bar.close()
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):  # a full disk has been reported already
            for file in (*self.writers, *([self.csv] if self.csv else [])):
                file.close()
        if self.tracker:
            self.tracker.finish()

    def _on_signal(self, number: int, _) -> None:
        self.signal = number
        for each in self.old_handlers:
            signal.signal(each, signal.SIG_DFL)
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping at the end of this interval; Ctrl-C again stops at once and loses what is not saved\n")

    def stopping(self) -> bool:
        """Whether Ctrl-C or SIGTERM asked for an end."""
        return self.signal is not None

    def say(self, line: str) -> None:
        """A line above the progress bar."""
        self.bar.write(line)
        sys.stdout.flush()

    # -- training

    def restore(self, state: Any) -> Any:
        """The state of the checkpoint in the structure of `state`; `state` itself in a new run.

        Raises UserError if the checkpoint holds another state than this run's.
        """
        if self.checkpoint is None:
            return state
        try:
            restored = flax.serialization.from_bytes(state, self.checkpoint["state"])
            same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, state, restored)
        except (ValueError, KeyError, AttributeError):
            same = False
        if not jax.tree.all(same):
            raise UserError(f"--resume {self.directory}: the checkpoint does not fit the run's config.json.")
        self.checkpoint = self.checkpoint | {"state": b""}  # the bytes are not needed again
        self.say(f"resumed at step {self.step:,}")
        return jax.tree.map(jnp.asarray, restored)

    def compile(self, train_chunk: Callable, state: Any, buffer: ReplayBuffer) -> Callable:
        """`train_chunk(state, buffer) -> (state, metrics)`, compiled ahead, so that speeds leave compilation out. Its
        first argument is donated: its buffers are reused."""
        began = time.monotonic()
        lowered = jax.jit(train_chunk, donate_argnums=0).lower(state, buffer)
        compiled = lowered.compile()
        self._open_metrics(sorted(lowered.out_info[1]))
        self.say(f"compiled in {time.monotonic() - began:.1f} s: {self.args.log_every:,} updates per dispatch")

        def timed(state, buffer):
            self.chunk_began = time.monotonic()
            return compiled(state, buffer)

        return timed

    def log(self, metrics: dict[str, jax.Array]) -> None:
        """Counts and logs one interval. metrics: name -> (num_seeds,) means over it.

        Raises UserError if one is not finite; the last checkpoint is kept.
        """
        metrics = {name: np.asarray(x, np.float64) for name, x in metrics.items()}  # waits for the device
        seconds = time.monotonic() - self.chunk_began
        self.step += self.args.log_every
        self.measured_updates += self.args.log_every
        self.measured_seconds += seconds
        for name, values in metrics.items():
            if not np.isfinite(values).all():
                seed = self.seeds[int(np.flatnonzero(~np.isfinite(values))[0])]
                raise UserError(f"{name} of seed {seed} is not finite at step {self.step:,}. {self._what_is_kept()}")
        speed = self.args.log_every / seconds
        self._write_metrics(metrics | {"charts/updates_per_second": np.full(len(self.seeds), speed)})
        self.bar.update(self.args.log_every)

    def _what_is_kept(self) -> str:
        if self.saved_step:
            return f"The checkpoint of step {self.saved_step:,} is kept in {self.directory}."
        return f"There was no checkpoint yet; the log is in {self.directory}."

    # -- evaluation

    def evaluation_due(self) -> bool:
        """Whether this step is to be evaluated and has not been."""
        done = any(evaluation["step"] == self.step for evaluation in self.evaluations)
        return not done and (self.step % self.args.eval_every == 0 or self.step >= self.args.steps)

    def log_evaluation(self, results: dict | None) -> None:
        """Logs what an Evaluator returned (nothing if it was stopped on the way)."""
        if results is None:
            return
        self.paths, self.film = results["paths"], results["film"]
        means = {name: x.mean(axis=1) for name, x in results.items() if name not in ("paths", "film")}
        self.evaluations.append({"step": self.step} | {name: x.tolist() for name, x in means.items()})
        self._write_metrics({f"eval/{name}": x for name, x in means.items()})
        shown = "  ".join(f"{name} {_per_seed(x)}" for name, x in means.items())
        speed = f"  {self.updates_per_second():,.0f} updates/s" if self.measured_updates else ""
        self.say(f"step {self.step:>9,}  {shown}{speed}")

    def updates_per_second(self) -> float:
        """Mean over all training so far, without compilation, evaluation and logging; all seeds advance together."""
        return self.measured_updates / self.measured_seconds if self.measured_seconds else 0.0

    # -- files

    def _open_metrics(self, names: list[str]) -> None:
        evaluated = [f"eval/{name}" for name in ("success", "support", "return", "length")]
        self.columns = ["step", "seed", *evaluated, *names, "charts/updates_per_second"]
        path = self.directory / "metrics.csv"
        try:
            self.csv = open(path, "r+" if path.exists() else "w+", newline="")
            # What was logged after the checkpoint will be logged again.
            self.csv.truncate(self.checkpoint["metrics_bytes"] if self.checkpoint else 0)
            self.csv.seek(0, io.SEEK_END)
            if self.csv.tell() == 0:
                csv.writer(self.csv).writerow(self.columns)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}.") from None

    def _write_metrics(self, metrics: dict[str, np.ndarray]) -> None:
        rows = csv.DictWriter(self.csv, self.columns)
        try:
            for i, (seed, writer) in enumerate(zip(self.seeds, self.writers)):
                values = {name: float(x[i]) for name, x in metrics.items()}
                rows.writerow({"step": self.step, "seed": seed} | values)
                for name, value in values.items():
                    writer.add_scalar(name, value, self.step)
                if self.tracker:  # one curve per seed, not their mixture
                    prefix = f"seed{seed}/" if len(self.seeds) > 1 else ""
                    self.tracker.log({prefix + name: value for name, value in values.items()}, step=self.step)
            self.csv.flush()
        except OSError as error:
            raise UserError(f"cannot write to {self.directory}: {error.strerror}. {self._what_is_kept()}") from None

    def save_due(self) -> bool:
        """Whether a checkpoint is due at this step."""
        return self.step % self.args.save_every == 0 and self.step > self.saved_step

    def save(self, state: Any) -> None:
        """Writes the checkpoint. A kill at any moment leaves either the old or the new one.

        Raises UserError if parameters are not finite (the old one stays) or the disk is full.
        """
        state = jax.device_get(state)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(state) if x.dtype.kind == "f"):
            raise UserError(f"parameters are not finite at step {self.step:,}. {self._what_is_kept()}")
        self.csv.flush()
        content = {
            "step": self.step,
            "state": flax.serialization.to_bytes(state),
            "evaluations": json.dumps(self.evaluations),
            "metrics_bytes": self.csv.tell(),
            "seconds": self._wall_seconds(),
            "speed": [self.measured_updates, self.measured_seconds],
        }
        payload = flax.serialization.msgpack_serialize(content)
        try:
            _write(self.directory / "checkpoint.msgpack", hashlib.sha256(payload).digest() + payload)
        except UserError as error:
            raise UserError(f"{error} {self._what_is_kept()}") from None
        self.saved_step = self.step

    def _wall_seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def finish(self, state: Any) -> None:
        """Ends the run: saves, and either writes result.json and the pictures, or, after a signal, says how to go on
        and exits with 128 + the signal's number."""
        if self.step > self.saved_step or not (self.directory / "checkpoint.msgpack").exists():
            self.save(state)
        self.bar.close()
        if self.stopping():
            print(f"stopped at step {self.step:,}, saved; go on with")
            print(f"  python {self.algorithm}.py --resume {self.directory}")
            print(self.directory, flush=True)
            sys.exit(128 + self.signal)
        result = self._result()
        _write(self.directory / "result.json", json.dumps(result, indent=2).encode())
        pictures = [
            plot_curve(self.directory / "curve.png", self.directory.name, self.evaluations, self.seeds),
            plot_rollouts(self.directory / "rollouts.png", self.dataset, self.paths),
            save_film(self.directory / "film.gif", self.film),
        ]
        score = np.array(result["score_per_seed"])
        print(
            f"score   {score.mean():.3g}" + (f" +- {score.std():.2g} over {len(score)} seeds" if len(score) > 1 else "")
        )
        if any(pictures):
            print(f"see     {', '.join(path.name for path in pictures if path)}")
        print(self.directory, flush=True)

    def _result(self) -> dict:
        """The benchmark's score: on OGBench the success of the last three evaluations, elsewhere of the last one. Where
        the environment knows no success, the return."""
        name = "success" if "success" in self.evaluations[-1] else "return"
        trained = [np.array(evaluation[name]) for evaluation in self.evaluations if evaluation["step"] > 0]
        score = np.mean(trained[-3:] if self.dataset.task else trained[-1:], axis=0)
        return {
            "algo": self.algorithm,
            "env": self.dataset.name,
            "task": self.dataset.task,
            "seeds": self.seeds,
            "steps": self.step,
            "score": float(score.mean()),
            "score_per_seed": score.tolist(),
            "score_is": f"mean {name} of the last {min(3, len(trained)) if self.dataset.task else 1} evaluations",
            "last_per_seed": trained[-1].tolist(),
            "best_per_seed": np.max(trained, axis=0).tolist(),
            "evaluations": self.evaluations,
            "updates_per_second": self.updates_per_second(),
            "wall_seconds": self._wall_seconds(),
        } | self._circumstances()


def load_checkpoint(directory: str | Path) -> dict:
    """The checkpoint of a run: `step`, `state` (bytes for flax.serialization.from_bytes, leading axis: seeds) and the
    log's state. Raises UserError if it is missing or damaged."""
    path = Path(directory) / "checkpoint.msgpack"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        raise UserError(f"{path} is damaged: its checksum is wrong.")
    return flax.serialization.msgpack_restore(payload)


def _write(path: Path, content: bytes) -> None:
    """All or nothing: written to a temporary name, flushed to the disk, renamed."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}.") from None


def _per_seed(values: np.ndarray) -> str:
    return " ".join(f"{x:.3g}" for x in values)


# ------------------------------------------------------------------------------------------------------ circumstances


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "ogbench", "gymnasium", "mujoco")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def git_commit() -> str | None:
    """Commit of the checkout, with `+changes` if files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD").strip()
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout


def device_summary() -> str:
    """One line: device, versions, and a warning where a GPU lies idle."""
    device, v = jax.devices()[0], versions()
    line = f"{len(jax.devices())} x {device.device_kind}, jax {v['jax']}, ogbench {v['ogbench']}, python {v['python']}"
    if device.platform == "cpu" and Path("/proc/driver/nvidia/version").exists():
        line += "\nWARNING this machine has an NVIDIA GPU, but JAX runs on the CPU: uv pip install -e '.[cuda12]'"
    return line
