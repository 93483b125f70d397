"""One run: its directory, log, progress and result.

`runs/<env>-task<k>__<algo>__<seed>__<time>/` holds

    config.json         arguments, versions, git commit, device, dataset
    metrics.csv         a line per seed (with --grid of each combination) and interval or evaluation; TensorBoard too
    checkpoint.msgpack  the state of all seeds and the evaluations so far, written to another name, then renamed
    result.json         written when the run ends well, with curve.png, rollouts.png, film.gif
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common import UserError, checkpoints, cli, d4rl
from common.arguments import absolute_paths, script_of
from common.cli import Args
from common.files import lock, remove_parts, write_json
from common.grid import combination_name, member_names, members
from common.plots import draw_run
from common.progress import ProgressBar, say
from common.results import by_combination, circumstances, make_result, score_lines
from common.signals import Signals
from common.transitions import Dataset

# What an evaluation can report, in the order of metrics.csv.
EVALUATED = ("success", "support", "return", "length", "normalized")


@dataclass
class Progress:
    """What has happened so far; a checkpoint holds it beside the state."""

    step: int = 0
    evaluations: list[dict] = field(default_factory=list)  # step, and name -> one value per member (common/grid.py)
    updates: int = 0  # of which the time was taken,
    seconds: float = 0.0  # in which they ran: without compilation, evaluation, logging
    wall_seconds: float = 0.0
    metrics_bytes: int = 0  # length of metrics.csv

    @property
    def updates_per_second(self) -> float:
        """Mean over all training; all seeds advance together."""
        return self.updates / self.seconds if self.seconds else 0.0


class Run:
    """The directory and the log of one run, as a context manager that closes all files.

    metrics: names of what `log` will be given. A new directory is made, or with args.resume an old one is opened.
    Raises UserError if that cannot be done.
    """

    def __init__(self, args: Args, dataset: Dataset, metrics: Sequence[str]):
        self.args, self.dataset, self.interval = args, dataset, args.log_every or 1
        self.members, self.names = members(args), member_names(args)
        names = [*self.members[0].values, *(f"eval/{name}" for name in EVALUATED), *metrics]
        self.columns = ["step", "seed", *names, "charts/updates_per_second"]
        self.rollouts: dict[str, Any] = {"paths": [], "film": None}  # of the last evaluation, for the pictures
        self.playing: list[tuple[int, Future]] = []  # at most one evaluation on its way, and its step
        with contextlib.ExitStack() as files:
            self.signals = Signals()
            files.callback(self.signals.close)
            self.directory = Path(args.resume) if args.resume else make_directory(args, dataset)
            if not lock(self.directory, files):
                raise UserError(f"{self.directory}: another process is working on this run.")
            remove_parts(self.directory)
            self.done, self.content = self._open_old() if args.resume else (Progress(), None)
            self.saved_step, self.began = self.done.step, time.monotonic()
            self.csv = files.enter_context(_open_metrics(self.directory / "metrics.csv", self.columns, self.done))
            self.writers = [files.enter_context(contextlib.closing(writer)) for writer in self._event_writers()]
            self.tracker = self._start_tracking(files) if args.track else None
            bar = ProgressBar("train", args.steps, "update", initial=self.done.step, shown=args.progress)
            self.bar = files.enter_context(bar)
            self.files = files.pop_all()
        if args.grid:
            say(f"grid    {' '.join(args.grid)}: {len(self.members)} trained side by side")
        say(f"run     {self.directory}")

    def _open_old(self) -> tuple[Progress, bytes | None]:
        """Progress and state of the checkpoint, if there is one yet."""
        if (record := cli.read_config(self.directory)["dataset"])["sha256"] != self.dataset.sha256:
            raise UserError(f"--resume {self.directory}: the dataset is not the one that the run began with.")
        # A file that has moved has lost what stood beside it.
        self.dataset = dataclasses.replace(self.dataset, source=record["source"], collection=record["collection"])
        if not ((self.directory / checkpoints.FILE).exists() or (self.directory / "result.json").exists()):
            say("NOTE    there is no checkpoint yet; the run begins again")
            return Progress(), None
        checkpoint = checkpoints.load(self.directory)
        content = checkpoint.pop("state")
        done = Progress(**checkpoint | {"evaluations": json.loads(checkpoint["evaluations"])})
        if self.args.steps < done.step:
            raise UserError(f"--steps {self.args.steps} is less than the {done.step} that the run has done.")
        return done, content

    def _event_writers(self) -> list:
        import tensorboardX  # a second, which importing a script for its functions does not need

        purge = self.done.step + 1 if self.args.resume else None
        return [tensorboardX.SummaryWriter(str(self.directory / name), purge_step=purge) for name in self.names]

    def _start_tracking(self, files: contextlib.ExitStack):
        import wandb  # an optional package

        name, about = self.directory.name, cli.read_config(self.directory)
        key = hashlib.sha256(str(self.directory.absolute()).encode()).hexdigest()[:8]  # a sweep's names may be equal
        try:
            tracker = wandb.init(project="offline-rl-jax", id=f"{name}-{key}", name=name, resume="allow", config=about)
        except wandb.errors.Error as error:  # no key, no server
            self._remove_if_empty()
            raise UserError(f"--track: {' '.join(str(error).split())}") from None
        tracker.define_metric("*", step_metric="step")  # of its own, because an evaluation may come late
        files.callback(tracker.finish)
        return tracker

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        with contextlib.suppress(OSError):  # a full disk has been reported already
            self.files.close()
        if mendable := cli.as_user_error(error):
            self._remove_if_empty()
            raise UserError(f"{mendable} {self._what_is_kept()}".rstrip()) from None

    def _remove_if_empty(self) -> bool:
        """Whether nothing had been done: then nothing is kept."""
        if empty := not (self.args.resume or self.done.evaluations or self.done.step):
            shutil.rmtree(self.directory, ignore_errors=True)
        return empty

    def _what_is_kept(self) -> str:
        if self.saved_step:
            return f"The checkpoint of step {self.saved_step:,} is kept; go on with: {self._how_to_resume()}"
        return f"There was no checkpoint yet; the log is in {self.directory}." if self.directory.exists() else ""

    def _how_to_resume(self) -> str:
        script = script_of(type(self.args))
        script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
        return f"python {shlex.quote(str(script))} --resume {shlex.quote(str(self.directory))}"

    @property
    def step(self) -> int:
        """Updates so far."""
        return self.done.step

    def stopping(self) -> bool:
        """Whether Ctrl-C, SIGTERM or SIGHUP asked for an end."""
        return self.signals.number is not None

    def restore(self, state: Any) -> Any:
        """The state of the checkpoint in the structure of `state`; `state` itself where there is none. From here on
        config.json says what has changed.

        Raises UserError if the checkpoint holds another state than this run's.
        """
        if self.content is not None:
            state, self.content = checkpoints.restore(state, self.content), None
            say(f"resumed at step {self.step:,}")
        if self.args.resume:
            self._write_changes()
        return state

    def _write_changes(self) -> None:
        config, steps = cli.read_config(self.directory), self.args.steps
        before = config["args"]
        after = before | {"steps": steps} | absolute_paths(self.args)
        if steps != before["steps"]:
            say(f"NOTE    --steps {before['steps']:,} -> {steps:,}; a decay over --steps changes too")
            (self.directory / "result.json").unlink(missing_ok=True)
        if after != before:
            write_json(self.directory / "config.json", config | {"args": after})

    def log(self, metrics: dict[str, np.ndarray], seconds: float) -> None:
        """Counts and logs one interval. metrics: name -> (members,) means over it; seconds that it took.

        Raises UserError if one is not finite; the last checkpoint is kept.
        """
        self.done.step += self.interval
        self.done.updates += self.interval
        self.done.seconds += seconds
        for name, values in metrics.items():
            if len(bad := np.flatnonzero(~np.isfinite(values))):
                raise UserError(f"{name} of {self._who(int(bad[0]))} is not finite at step {self.step:,}.")
        speed = np.full(len(self.members), self.interval / seconds)
        self._write(self.step, metrics | {"charts/updates_per_second": speed})
        self._log_played(wait=False)
        self.bar.update(self.interval)

    def _who(self, i: int) -> str:
        member = self.members[i]
        return ", ".join(filter(None, [combination_name(member.values), f"seed {member.seed}"]))

    def evaluation_due(self) -> bool:
        """Whether this step is to be evaluated and has not been."""
        begun = [evaluation["step"] for evaluation in self.done.evaluations] + [step for step, _ in self.playing]
        return self.step not in begun and (self.step % self.args.eval_every == 0 or self.step >= self.args.steps)

    def log_evaluation(self, results: Future) -> None:
        """Logs what an Evaluator promises for this step, as soon as it is there and before a checkpoint is written.

        Raises what the evaluation raised, here or at a later call.
        """
        self._log_played(wait=True)
        self.playing = [(self.step, results)]
        self._log_played(wait=False)

    def _log_played(self, wait: bool) -> None:
        if not self.playing or not (wait or self.playing[0][1].done()):
            return
        step, future = self.playing.pop()
        if (results := future.result()) is None:  # stopped on the way
            return
        if self.dataset.reference:
            results |= {"normalized": d4rl.normalized(results["return"], self.dataset.reference)}
        self.rollouts = results
        means = {name: results[name].mean(axis=1) for name in EVALUATED if name in results}
        self.done.evaluations.append({"step": step} | {name: x.tolist() for name, x in means.items()})
        self._write(step, {f"eval/{name}": x for name, x in means.items()})
        speed = f"  {self.done.updates_per_second:,.0f} updates/s" if self.done.updates else ""
        for values, (evaluation,) in by_combination(self.args, self.done.evaluations[-1:]):
            who = f"{combination_name(values)}  " if values else ""
            shown = "  ".join(f"{name} {' '.join(f'{x:.3g}' for x in evaluation[name])}" for name in means)
            say(f"step {step:>9,}  {who}{shown}{speed}")

    def _write(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        rows = csv.DictWriter(self.csv, self.columns)
        try:
            for i, (member, name, writer) in enumerate(zip(self.members, self.names, self.writers)):
                values = {metric: float(x[i]) for metric, x in metrics.items()}
                rows.writerow({"step": step, "seed": member.seed} | member.values | values)
                for metric, value in values.items():
                    writer.add_scalar(metric, value, step)
                if self.tracker:
                    prefix = f"{name}/" if name else ""  # one curve per member, not their mixture
                    self.tracker.log({"step": step} | {prefix + metric: value for metric, value in values.items()})
            self.csv.flush()
        except OSError as error:
            raise UserError(f"cannot write to {self.directory}: {error.strerror}.") from None

    def save_due(self) -> bool:
        """Whether a checkpoint is due at this step."""
        return self.step % self.args.save_every == 0 and self.step > self.saved_step

    def save(self, state: Any) -> None:
        """Writes the checkpoint; where that fails, the old one stays.

        Raises UserError if parameters are not finite or the disk is full.
        """
        if (i := checkpoints.not_finite(state)) is not None:
            raise UserError(f"parameters of {self._who(i)} are not finite at step {self.step:,}.")
        self._log_played(wait=True)  # a resume would neither repeat it nor know its result
        try:
            self.csv.flush()
            os.fsync(self.csv.fileno())  # the checkpoint counts on these rows
        except OSError as error:
            raise UserError(f"cannot write to {self.directory}: {error.strerror}.") from None
        self.done.metrics_bytes = self.csv.tell()
        progress = dataclasses.asdict(self.done) | {"wall_seconds": self._wall_seconds()}
        checkpoints.save(self.directory, state, progress | {"evaluations": json.dumps(self.done.evaluations)})
        self.saved_step = self.step

    def _wall_seconds(self) -> float:
        return self.done.wall_seconds + time.monotonic() - self.began

    def finish(self, state: Any) -> Path:
        """Ends the run: saves, and either writes result.json and the pictures, or, after a signal, says how to go on
        and exits with 128 + the signal's number. Returns the directory."""
        self._log_played(wait=True)
        if (number := self.signals.number) and self._remove_if_empty():
            say("stopped before anything was done; nothing is kept")
            sys.exit(128 + number)
        self.save(state)  # with the evaluation of this step, which a checkpoint of the same step lacks
        self.bar.close()
        if number:
            say(f"stopped at step {self.step:,}, saved; go on with\n  {self._how_to_resume()}\n{self.directory}")
            sys.exit(128 + number)
        result = make_result(self.args, self.dataset, self.done.evaluations) | {
            "updates_per_second": self.done.updates_per_second,
            "wall_seconds": self._wall_seconds(),
        }
        write_json(self.directory / "result.json", result)
        say("\n".join(score_lines(result)))
        data = self.dataset.actions if self.dataset.source == "builtin" else None
        drawn = draw_run(self.directory, result, self.dataset.make_env, self.rollouts, data, say)
        if drawn:
            say(f"see     {', '.join(path.name for path in drawn)}")
        say(str(self.directory))
        return self.directory


def make_directory(args: Args, dataset: Dataset) -> Path:
    """A new run directory with its config.json. Raises UserError if it cannot be written."""
    task = f"-task{dataset.task}" if dataset.task else ""
    env, algorithm = dataset.name.replace("/", "_").replace(":", "_"), cli.algorithm_name(type(args))
    name = f"{env}{task}__{algorithm}__{args.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
    paths = absolute_paths(args)
    if dataset.source == "collected" and args.dataset is None:
        paths["data"] = "collect"  # and does not download the official data if the network is back
    config = {"algo": algorithm, "args": dataclasses.asdict(args) | paths} | circumstances(dataset)
    directory, number = Path(args.runs_dir) / name, 1
    while True:
        try:
            directory.mkdir(parents=True)
            break
        except FileExistsError:  # many jobs may start in the same second
            if not Path(args.runs_dir).is_dir():
                raise UserError(f"--runs-dir {args.runs_dir} is not a folder.") from None
            number += 1
            directory = Path(args.runs_dir) / f"{name}-{number}"
        except OSError as error:
            raise UserError(f"cannot make a run directory in {args.runs_dir}: {error.strerror}.") from None
    try:
        write_json(directory / "config.json", config)
    except UserError:
        directory.rmdir()
        raise
    return directory


def _open_metrics(path: Path, columns: Sequence[str], done: Progress):
    """metrics.csv, at the end of what the checkpoint remembers; what was logged after it will be logged again."""
    try:
        size = path.stat().st_size if path.exists() else 0
        if size < done.metrics_bytes:
            what = f"{path} has {size:,} of the {done.metrics_bytes:,} bytes that the checkpoint remembers"
            raise UserError(f"{what}: bring it back, or start a new run.")
        file = open(path, "r+" if path.exists() else "w+", newline="")
        file.truncate(done.metrics_bytes)
        file.seek(0, io.SEEK_END)
        if file.tell() == 0:
            csv.writer(file).writerow(columns)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.") from None
    return file
