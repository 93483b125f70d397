"""One run: its directory, logs, progress and result.

`runs/<env>-task<k>__<algo>__<seed>__<time>/`, or the directory that --run-dir names, holds

    config.json           arguments, versions, git commit, device, dataset
    train.csv, eval.csv   a row per member (a seed of a combination) and interval or evaluation; TensorBoard's files too
    explore.csv           with --online-steps a row per member and interval: the episodes that ended in it
    online.bin            the online transitions
    checkpoint.msgpack    the state of all members, and where the logs ended
    result.json           written when the run ends well, with curve.png and rollouts.png

The same command, given again, goes on from the checkpoint: rows of the logs that are newer are dropped and come again.
"""

import contextlib
import csv
import faulthandler
import hashlib
import importlib.metadata
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np

from common import UserError, states
from common.args import (
    MAY_CHANGE,
    BaseArgs,
    as_user_error,
    combination_name,
    combinations_of,
    digest_of,
    members,
    read_config,
    script_of,
    write_config,
)
from common.data.dataset import PHYSICS, Dataset
from common.evaluation import FIGURES, MODES
from common.plots import draw_run
from common.system import ROOT, lock, progress_bar, require, say, write_json
from common.workers import STOP_SIGNALS

PATIENCE = 30  # seconds; a program for a GPU compiles in half of them


class Run(contextlib.AbstractContextManager):
    """The directory and the logs of one run, as a context manager.

    Raises UserError if the directory cannot be used: another process works on it, something in it is damaged, or it
    does not belong to these arguments and data.
    """

    def __init__(self, args: BaseArgs, dataset: Dataset):
        self.args, self.dataset, self.members = args, dataset, members(args)
        self.seeds = [member.seed for member in self.members]
        # alpha=3/seed1: where there are several, TensorBoard and Weights & Biases tell them apart by it.
        seed = "seed{}" if args.num_seeds > 1 else ""
        self.folders = [PurePosixPath(combination_name(m.values), seed.format(m.seed)) for m in self.members]
        # What ties a checkpoint to its run.
        arguments = {name: value for name, value in vars(args).items() if name not in MAY_CHANGE}
        self.identity = digest_of([script_of(type(args)).stem, arguments, dataset.name, dataset.sha256])
        # What a checkpoint brings back. logs: length and digest of what each held then.
        self.step = self.updates = 0  # updates: those whose time, in seconds, was taken
        self.seconds = self.wall_seconds = 0.0
        self.evaluations: list[dict[str, Any]] = []  # step, and name -> one value per member
        self.episodes: list[list[int]] = []  # online, of each member: which one it is in, and the step it began at
        nothing = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
        names = ("train.csv", "eval.csv", "explore.csv", "online.bin")[: 4 if args.online_steps else 2]
        self.logs: dict[str, dict[str, Any]] = dict.fromkeys(names, nothing)
        self.digests: dict[str, Any] = {}  # of the logs, to go on with
        self.total = args.steps + args.online_steps
        self.online: Any = None  # common.online.Online, once that phase has begun

        self.circumstances = circumstances(dataset)  # now, because files may change while it trains
        self.rollouts: list[np.ndarray] = []  # paths of the last evaluation, for the picture
        self.mark = 0.0  # when the next interval began
        self.timed = False  # the first interval is not, because it compiles
        say(dataset.summary())
        with contextlib.ExitStack() as stack:
            self.signals = StopSignals(stack)
            self.directory = Path(args.run_dir) if args.run_dir else new_directory(args, dataset)
            self._open(stack)
            self.began = time.monotonic() - self.wall_seconds
            self.events_from = self.step + 1
            self.events_file = f"events.out.tfevents.{time.time_ns()}.{platform.node()}.{os.getpid()}"
            self.tracker = self._start_tracking(stack) if args.track else None
            bar = progress_bar("train", self.total, "update", initial=self.step, shown=args.progress)
            self.bar = stack.enter_context(bar)
            self.stack = stack.pop_all()
        if args.grid:
            say(f"grid    {' '.join(args.grid)}: {len(self.members)} trained side by side")
        say(f"run     {self.directory}")

    def _open(self, stack: contextlib.ExitStack) -> None:
        """Locks and checks the directory, and only then makes its files what they were at the checkpoint."""
        directory, steps, online = self.directory, self.args.steps, self.args.online_steps
        directory.mkdir(parents=True, exist_ok=True)
        for _ in range(10):  # a report that looks whether the run is alive holds the lock for an instant
            if lock(directory, stack):
                break
            time.sleep(0.1)
        else:
            raise UserError(f"{directory}: another process is working on this run.")
        there = sorted(path.name for path in directory.iterdir() if not path.name.startswith(".new-"))
        if there and "config.json" not in there:
            raise UserError(f"{directory} holds {there[0]} and no run; name an empty or a new directory.")
        self.new = not there
        stack.callback(self._remove_if_empty)
        config = self.circumstances if self.new else read_config(directory)
        if config["dataset"]["sha256"] != self.dataset.sha256:
            raise UserError(f"{directory}: the dataset is not the one that the run began with.")
        self.saved: Any = None  # the state of the checkpoint
        # A checkpoint is older than the first row of the logs: where there are rows or a result, it must be there.
        rows = any(path.stat().st_size for path in directory.glob("*.csv"))
        if rows or {states.FILE, "result.json"} & set(there):
            checkpoint = states.load(directory)
            about, self.saved = checkpoint["about"], checkpoint["state"]
            if about["identity"] != self.identity:
                raise UserError(f"{directory}: the checkpoint belongs to other arguments or data than config.json.")
            vars(self).update(about | {"logs": self.logs | about["logs"]})
        before = [steps, online] if self.new else [config["args"].get(name, 0) for name in ("steps", "online_steps")]
        if self.total < self.step:
            given = f"--steps {steps}{f' --online-steps {online}' * bool(online)}"
            raise UserError(f"{given} is less than the {self.step} that the run has done.")
        if steps != before[0] < self.step:
            raise UserError(f"--steps: the online phase began after {before[0]}; --online-steps extends it.")
        for name, end in self.logs.items():
            path = directory / name
            self.digests[name] = hashlib.sha256(path.read_bytes()[: end["bytes"]] if path.exists() else b"")
            if self.digests[name].hexdigest() != end["sha256"]:
                raise UserError(f"{path} was changed or damaged: bring it back as it was, or begin another run.")

        for part in directory.glob(".new-*"):  # left by a process that was killed while it wrote
            part.unlink()
        if before != [steps, online]:
            say(f"NOTE    {before[0] + before[1]:,} steps become {self.total:,}; a decay over them changes too")
            (directory / "result.json").unlink(missing_ok=True)
        # Collected data stay the run's data, also when the network is back.
        collected = self.dataset.source == "collected" and self.args.dataset is None
        write_config(directory, self.args, config, {"data": "collect"} if collected else {})
        for name, end in self.logs.items():
            with open(directory / name, "ab") as file:
                file.truncate(end["bytes"])

    def _start_tracking(self, stack: contextlib.ExitStack) -> Any:
        require("wandb", "--track", "track")
        import wandb  # an optional package

        args, name = self.args, self.directory.name
        key = digest_of(str(self.directory.absolute()))[:8]  # names of runs may be equal
        try:
            tracker = wandb.init(
                project=args.wandb_project, entity=args.wandb_entity, group=args.wandb_group,
                id=f"{name}-{key}", name=name, resume="allow", config=read_config(self.directory),
            )  # fmt: skip
        except wandb.errors.Error as error:  # no key, no server
            raise UserError(f"--track: {' '.join(str(error).split())}") from None
        tracker.define_metric("*", step_metric="step")
        stack.callback(tracker.finish)
        return tracker

    def __exit__(self, kind, error, traceback):
        with contextlib.suppress(OSError):  # a full disk has been reported already
            self.stack.close()
        if error and (fixable := as_user_error(error)):
            kept = f" What was done is kept: --run-dir {self.directory} goes on." if self.directory.exists() else ""
            raise UserError(f"{fixable}{kept}") from None

    def _remove_if_empty(self) -> None:
        """Removes a new directory in which nothing was done."""
        if self.new and not self.step and not self.evaluations:
            shutil.rmtree(self.directory, ignore_errors=True)

    def restore(self, state: Any) -> Any:
        """The state of the checkpoint in the structure of `state`. Where there is none, `state` becomes the first
        checkpoint, so that a full disk is found before the training. Raises UserError if it does not fit."""
        if self.saved is None:
            self.save(state)
        else:
            state, self.saved = states.restore(state, self.saved), None
            say(f"resumed at step {self.step:,}")
        self.mark = time.monotonic()
        return state

    def stopping(self) -> bool:
        """Whether a signal has asked the run to end, which is answered herewith."""
        if self.signals.number:
            faulthandler.cancel_dump_traceback_later()
        return self.signals.number != 0

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to train."""
        return self.stopping() or self.step >= self.total

    @property
    def evaluation_due(self) -> bool:
        """Whether this step is to be evaluated, and has not been."""
        due = self.step % self.args.eval_every == 0 or self.step in (self.args.steps, self.total)
        return due and not self.stopping() and all(x["step"] != self.step for x in self.evaluations)

    @property
    def save_due(self) -> bool:
        """Whether a checkpoint is due at this step."""
        return self.step % self.args.save_every == 0

    def log(self, metrics: dict[str, jax.Array]) -> None:
        """Counts and logs one interval. metrics: name -> (members,), means over it.

        Raises UserError if one is not finite; the last checkpoint is kept.
        """
        values = {name: np.asarray(x, np.float64) for name, x in metrics.items()}  # waits for the device
        explored = {name: values.pop(name) for name in metrics if name.startswith("explore/")}
        seconds, interval = time.monotonic() - self.mark, self.args.log_every or 1
        self.step += interval
        if self.timed:
            self.updates, self.seconds = self.updates + interval, self.seconds + seconds
        else:
            self.bar.unpause()  # its clock starts here: a first evaluation of failures may take minutes
        self.timed = True
        for name, x in values.items():
            if len(bad := np.flatnonzero(~np.isfinite(x))):
                raise UserError(f"{name} of {self.members[bad[0]].name} is not finite at step {self.step:,}.")
        values |= {"charts/updates_per_second": np.full(len(self.members), interval / seconds)}
        self._write("train.csv", values, list(values))
        if explored:
            self._write("explore.csv", explored, ["explore/return", "explore/success", "explore/length"])
        self.bar.update(interval)
        self.mark = time.monotonic()

    def log_evaluation(self, results: dict[str, Any] | None) -> None:
        """Logs what an Evaluator returned for this step: None if it was stopped."""
        if results is not None:
            self.rollouts = results.pop("paths")
            if self.dataset.reference:  # D4RL's score, from the returns of a random policy and of an expert
                low, high = self.dataset.reference
                results["normalized"] = 100 * (results["return"] - low) / (high - low)
            means = {name: x.mean(axis=1) for name, x in results.items()}
            if modes := [means.pop(name) for name in MODES if name in means]:
                means["rarest_mode"] = np.min(modes, axis=0)
            self.evaluations.append({"step": self.step} | {name: x.tolist() for name, x in means.items()})
            metrics = {f"eval/{name}": x for name, x in means.items()}
            self._write("eval.csv", metrics, [f"eval/{name}" for name in FIGURES])
            for values, part in combinations_of(self.args):
                shown = [f"{name} {short(x[part])}" for name, x in means.items()]
                speed = f"{self.updates / self.seconds:,.0f} updates/s" if self.seconds else ""
                say("  ".join(filter(None, [f"step {self.step:>9,}", combination_name(values), *shown, speed])))
        self.mark = time.monotonic()

    def _write(self, log: str, metrics: dict[str, np.ndarray], columns: Sequence[str]) -> None:
        # NaN, the mean of no episodes, is left out.
        rows = [{name: float(x[i]) for name, x in metrics.items() if x[i] == x[i]} for i in range(len(self.members))]
        with open(self.directory / log, "a", newline="") as file:
            names = ["step", "seed", *self.members[0].values, *columns]
            writer = csv.DictWriter(file, names, lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            for member, row in zip(self.members, rows):
                writer.writerow({"step": self.step, "seed": member.seed} | member.values | row)
        for folder, row in zip(self.folders, rows):
            append_events(self.directory / folder / self.events_file, self.step, row, self.events_from)
        if self.tracker:
            named = {str(folder / name): x for folder, row in zip(self.folders, rows) for name, x in row.items()}
            self.tracker.log({"step": self.step} | named)

    def save(self, state: Any) -> None:
        """Writes the checkpoint; where that fails, the old one stays.

        Raises UserError if parameters are not finite or the disk is full.
        """
        state = jax.device_get(state)  # once, for the check and for the file
        for x in jax.tree.leaves(state):
            finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
            if not finite.all():
                name = self.members[finite.argmin()].name
                raise UserError(f"parameters of {name} are not finite at step {self.step:,}.")
        if self.online:
            self.online.append_rows()
        for name in self.logs:
            with open(self.directory / name, "rb") as file:
                file.seek(self.logs[name]["bytes"])
                self.digests[name].update(file.read())
                os.fsync(file.fileno())  # the checkpoint counts on these rows
                self.logs[name] = {"bytes": file.tell(), "sha256": self.digests[name].hexdigest()}
        self.wall_seconds = time.monotonic() - self.began
        states.save(self.directory, state, {name: vars(self)[name] for name in states.ABOUT})
        self.mark = time.monotonic()

    def finish(self, state: Any) -> Path:
        """Ends the run: writes result.json and the pictures, and returns the directory. After a signal it saves and
        exits with 128 + the signal's number instead."""
        args, dataset, path = self.args, self.dataset, self.directory / "result.json"
        ended, number = path.exists(), self.signals.number
        if number or not ended:
            self.save(state)  # with the evaluation of this step
        self.bar.close()
        if number:
            self.new = False  # so that the directory stays, also where nothing was trained
            say(f"stopped at step {self.step:,}; --run-dir {self.directory} goes on\n{self.directory}")
            sys.exit(128 + number)
        found = []
        for values, part in combinations_of(args):
            if args.online_steps:  # as in FQL's paper, the scores of both phases are of one evaluation
                before = [x for x in self.evaluations if x["step"] <= args.steps]
                offline = scores(1, False, before, part)
                x = scores(1, False, self.evaluations, part)
                x |= {f"offline_{name}": offline[name] for name in ("score", "score_per_seed")}
            else:
                x = scores(args.eval_every, bool(dataset.task), self.evaluations, part)
            found.append((values, x))
            score = f"{combination_name(values)} {short(x['score_per_seed'])}".lstrip()
            say(f"score   {score} ({x['score_is']}); last evaluation {short(x['last_per_seed'])}")
            if args.online_steps:
                say(f"offline {short(x['offline_score_per_seed'])}, before the online phase")
        if ended:
            say("this run has ended; larger --steps would go on")
        else:
            grid = {"grid": [{"values": values} | x for values, x in found]}
            result = {
                "algo": script_of(type(args)).stem,
                "env": dataset.name,
                "task": dataset.task,
                "seeds": self.seeds[: args.num_seeds],
                "steps": min(self.step, args.steps),
                **({"online_steps": args.online_steps} if args.online_steps else {}),
                **(grid if args.grid else found[0][1]),
                **self.circumstances,
                "updates_per_second": self.updates / self.seconds if self.seconds else 0.0,
                "wall_seconds": self.wall_seconds,
            }
            write_json(path, result)
            data = dataset.actions if dataset.source == "builtin" else None
            drawn = draw_run(self.directory, result, dataset.make_env, self.rollouts, data)
            say(f"see     {', '.join(['result.json', *drawn])}")
        say(str(self.directory))
        return self.directory


def new_directory(args: BaseArgs, dataset: Dataset) -> Path:
    """A directory in runs/ that is not there yet."""
    task = f"-task{dataset.task}" if dataset.task else ""
    name = f"{dataset.name}{task}__{script_of(type(args)).stem}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
    directory = Path("runs", name.replace("/", "_").replace(":", "_"))
    try:
        directory.mkdir(parents=True)
    except FileExistsError:  # many jobs may start in the same second
        directory = directory.with_name(f"{directory.name}-{os.getpid()}")
    return directory


def append_events(file: Path, step: int, row: dict[str, float], forget_from: int) -> None:
    """Appends the values of one step to a file of TensorBoard's. Raises OSError if that fails.

    A SummaryWriter would have a thread, a queue and an open file for each member, and hang when a disk is full for a
    moment. forget_from: step from which TensorBoard forgets what an interrupted process wrote into an older file.
    """
    from tensorboardX.proto import event_pb2, summary_pb2  # half a second, which importing a script does not need
    from tensorboardX.record_writer import masked_crc32c

    events = []
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        events = [{"file_version": "brain.Event:2"}, {"step": forget_from, "session_log": start}]
    values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in row.items()]
    events.append({"step": step, "summary": summary_pb2.Summary(value=values)})
    with open(file, "ab") as out:
        for event in events:
            content = event_pb2.Event(wall_time=time.time(), **event).SerializeToString()
            for part in (struct.pack("<Q", len(content)), content):
                out.write(part + struct.pack("<I", masked_crc32c(part)))


def scores(eval_every: int, three: bool, evaluations: list[dict], part: slice) -> dict[str, Any]:
    """The benchmark's score of each seed: D4RL's normalized return, else success, else the return.

    evaluations: step, and name -> one value per member. part: the members of one combination. three: whether the score
    is the mean of the last three evaluations (OGBench), and not the last one. The one at the end of a run does not
    count if it is not a multiple of eval_every.
    """
    reported = [name for name in FIGURES if any(name in x for x in evaluations)]
    none = [0.0] * len(evaluations[0]["return"])  # of a success that no episode had reported yet
    evaluations = [{"step": x["step"]} | {name: x.get(name, none)[part] for name in reported} for x in evaluations]
    name = next(name for name in ("normalized", "success", "return") if name in reported)
    trained = [evaluation for evaluation in evaluations if evaluation["step"] > 0]
    values = np.array([x[name] for x in trained])
    regular = [x["step"] % eval_every == 0 for x in trained]
    counted = values[regular if any(regular) else slice(None)][-3 if three else -1 :]
    score = counted.mean(axis=0)
    what = "normalized return 100 (R - min) / (max - min)" if name == "normalized" else name
    which = f"last {len(counted)} evaluations" if len(counted) > 1 else "last evaluation"
    return {
        "score": float(score.mean()),
        "score_per_seed": score.tolist(),
        "score_is": f"mean {what} of the {which}",
        "last_per_seed": values[-1].tolist(),
        "best_per_seed": values.max(axis=0).tolist(),
        "evaluations": evaluations,
    }


def short(values: Sequence[float]) -> str:
    """1,234 0.123: three digits of each, without an exponent where the number is large."""
    return " ".join(f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}" for x in values)


def circumstances(dataset: Dataset) -> dict[str, Any]:
    """What a result depends on besides the arguments, for config.json and result.json. git_commit has `+changes` if
    files differ from it, and is None outside of a checkout."""
    versions = {"python": platform.python_version()}
    packages = "jax jaxlib flax optax numpy ogbench gymnasium mujoco h5py minari gymnasium-robotics"
    for package in packages.split():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # the last three are optional
            versions[package] = importlib.metadata.version(package)
    # --git-dir: without it, git would ask the folders around this one, or the repository whose hook runs this.
    git = "git --git-dir=.git describe --always --exclude='*' --abbrev=12 --dirty=+changes"
    commit = subprocess.run(git, shell=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "dataset": dataset.describe(),
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "physics": PHYSICS,
        "versions": versions,
        "git_commit": commit or None,
    }


class StopSignals:
    """Ctrl-C, SIGTERM and SIGHUP. `number` becomes that of the first one, after which the run ends well. Another one,
    a second or more later, ends the process at once. So does the first, showing where, if the run does not answer in
    PATIENCE, because something hangs. An ignored signal, as SIGHUP is under nohup, stays ignored.

    Python calls a handler when a compiled program has returned, which is once per interval at least.
    """

    def __init__(self, stack: contextlib.ExitStack):
        self.number, self.since = 0, 0.0
        with contextlib.suppress(ValueError):  # only the main thread may have handlers
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    stack.callback(signal.signal, number, signal.signal(number, self._receive))

    def _receive(self, number: int, _: Any) -> None:
        if not self.number:
            self.number, self.since = number, time.monotonic()
            faulthandler.dump_traceback_later(PATIENCE, exit=True, file=2)
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nstopping at the end of this interval; Ctrl-C again stops at once\n")
        elif time.monotonic() - self.since >= 1:  # `timeout` and batch systems send one twice
            os._exit(128 + number)
