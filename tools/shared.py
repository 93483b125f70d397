"""What several tools need: the scripts at the project's root, and the finished runs in a folder."""

import argparse
import ast
import dataclasses
import functools
import importlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for every tool that imports this file

from common import UserError
from common.system import lock

PICTURES = ("png", "pdf", "svg", "jpg")
# What a score can be, the first that a run was evaluated for. result.json has success as a share.
METRICS = {"normalized": "normalized return", "success": "success in percent", "return": "return"}
SOURCES = {
    "official": "official", "builtin": "built in", "collected": "collected here, not official",
    "unverified": "file of unknown origin", "user": "the user's file", "d4rl": "D4RL's file",
}  # fmt: skip
SIZE = re.compile(r"^steps$|batch_size$|dims$|width$")  # arguments that decide how large a run is
MEASURED = ("eval_every", "eval_episodes")  # arguments that change how a policy is measured, not the policy


class Parser(argparse.ArgumentParser):
    """Raises UserError for arguments that cannot be parsed."""

    def __init__(self, doc: str | None = None, **options):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def pair(word: str) -> tuple[str, float]:
    """Name and value of a word like alpha=3, which chooses a combination of a run with --grid."""
    name, value = word.split("=")
    return name.lstrip("-").replace("-", "_"), float(value)


@functools.cache
def titles() -> dict[str, str]:
    """Algorithm -> title, of every script at the project's root that defines make_agent. The title is from the first
    line of the docstring: the abbreviation in parentheses, or the words before the first comma."""
    found = {}
    for path in sorted(ROOT.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "make_agent" for node in module.body):
            name = (ast.get_docstring(module) or path.stem).partition(",")[0].strip()
            found[path.stem] = name.rpartition("(")[2].rstrip(")")
    return found


def check_output(path: Path, kinds: Sequence[str]) -> None:
    """Makes the folder of a file. Raises UserError if the file cannot be written there, or if its name does not end in
    one of `kinds`. This is better known before a long work than after."""
    if path.suffix[1:] not in kinds:
        raise UserError(f"{path}: the name must end in .{' or .'.join(kinds)}.")
    path.parent.mkdir(parents=True, exist_ok=True)  # its OSError is one line, too
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: it is a folder, or in a read-only one.")


def table(rows: list[list[str]]) -> str:
    """A Markdown table of cells in Markdown, header first. Rows and columns with nothing but a name are left out."""
    columns = [column for column in zip(*rows) if any(column[1:])]
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*columns) if any(cells[1:])]
    return "\n".join([lines[0], f"|{' --- |' * len(columns)}", *lines[1:]])


# ------------------------------------------------------------------------------------------------------ files of a run


def last_step(run: Path) -> int:
    """Updates in a run's log, from its last whole line; 0 if there is none."""
    for name in ("train.csv", "metrics.csv"):
        try:
            return int((run / name).read_text().split("\n")[-2].split(",")[0])
        except (OSError, ValueError, IndexError):
            continue
    return 0


def held(run: Path) -> bool:
    """Whether a process is working on the run."""
    with ExitStack() as files:
        return run.is_dir() and not lock(run, files)


# ------------------------------------------------------------------------------------------------------- finished runs


class Run(NamedTuple):
    """One seed of a finished run, with --grid of one combination."""

    path: Path
    algo: str
    env: str
    task: int | None
    seed: int
    args: dict[str, Any]  # those that a score depends on
    changed: dict[str, Any]  # those of them that differ from the preset
    dataset: dict[str, Any]
    metric: str
    score: float
    curve: dict[int, float]  # updates -> value of one evaluation
    counted: int  # evaluations that the score is the mean of
    about: dict[str, Any]  # columns of the report that only say how the run was made

    @property
    def title(self) -> str:
        return titles().get(self.algo, self.algo)

    @property
    def place(self) -> str:
        return f"{self.env} task {self.task}" if self.task else self.env

    @property
    def preset_size(self) -> bool:
        return not any(SIZE.search(name) for name in self.changed)

    @property
    def networks(self) -> str:
        """Its size, but for the number of updates: `batch-size 256, hidden-dims 512 512`."""
        return flags_text({name: value for name, value in self.args.items() if SIZE.search(name) and name != "steps"})

    @property
    def settings(self) -> dict[str, Any]:
        """The other arguments that differ from the preset, but for how the policy was measured."""
        return {x: value for x, value in self.changed.items() if x not in MEASURED and not SIZE.search(x)}

    @property
    def random_share(self) -> float:
        """Share of the data's actions that were replaced by random ones when the data were collected."""
        return float((self.dataset.get("collection") or {}).get("p_random_action") or 0)

    @property
    def data(self) -> str:
        """What the data are: `collected here, not official, 200 episodes, 20% random actions, sha256 64bc07`."""
        source, how = str(self.dataset.get("source")), self.dataset.get("collection") or {}
        words = [SOURCES.get(source, source)]
        if source == "user":
            words.append(Path(str(self.dataset.get("path"))).name)
        if how.get("episodes") != how.get("official_episodes"):
            words.append(f"{how['episodes']:,} episodes")
        if self.random_share:
            words.append(f"{self.random_share:.0%} random actions")
        digest = self.dataset.get("sha256")
        return ", ".join([*words, f"sha256 {str(digest)[:6]}"] if digest else words)

    @property
    def order(self) -> tuple:
        """Sort key, by which equal things stand together."""
        where = self.place, self.data, self.metric, not self.preset_size
        return *where, self.title, natural(flags_text(self.changed)), self.seed


def flags_text(values: dict[str, Any]) -> str:
    """`hidden-dims 256 256, steps 300,000`."""
    return ", ".join(f"{name.replace('_', '-')} {value_text(value)}" for name, value in sorted(values.items()))


def value_text(value: Any) -> str:
    """`256 256`, `300,000`, `0.1`."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if type(value) is int else f"{value:g}" if type(value) is float else str(value)


def natural(text: str) -> str:
    """Sort key that puts `alpha 30` before `alpha 100`."""
    return re.sub(r"\d+(\.\d+)?", lambda number: f"{float(number[0]):024.9f}", text.replace(",", ""))


def split(runs: list[Run], key: Callable) -> list[list[Run]]:
    """The runs with equal keys, in the order of their first."""
    found: dict[Any, list[Run]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return list(found.values())


def same_settings(runs: list[Run]) -> list[list[Run]]:
    """The runs that differ in nothing but the seed, of one environment, dataset and metric."""
    return split(runs, lambda run: (run.algo, flags_text(run.changed)))


def read_runs(folders: list[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """All finished runs in these folders, at any depth, and (directory, reason) of what is left out. Raises UserError
    if there is no run."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder.")
    names = ("config.json", "result.json", "checkpoint.msgpack")
    paths = {file.parent for folder in folders for name in names for file in folder.rglob(name)}
    if not paths:
        raise UserError(f"there is no run directory in {', '.join(map(str, folders))}.")
    runs: dict[str, Run] = {}
    left_out: list[tuple[Path, str]] = []
    for path in sorted(paths, key=lambda path: (path.name.rpartition("__")[2], path), reverse=True):  # newest first
        try:
            for run in _read_run(path):
                key = json.dumps([run.algo, run.place, run.metric, run.args["steps"], run.changed, run.data, run.seed])
                if runs.setdefault(key, run) is not run:
                    again = f"seed {run.seed} was run again with the same settings, {runs[key].path.name}"
                    left_out.append((path, again))
        except UserError as error:
            left_out.append((path, str(error)))
        except Exception as error:  # whatever is wrong with a run, the others are reported
            left_out.append((path, f"cannot be read ({type(error).__name__}: {error})"))
    return sorted(runs.values(), key=lambda run: run.order), sorted(left_out)


def _read_run(path: Path) -> list[Run]:
    """The seeds of a finished run. Raises UserError if it is not finished, and any error if something is missing or no
    number."""
    config = json.loads((path / "config.json").read_text())
    if not (path / "result.json").exists():
        state, steps = "running" if held(path) else "not finished", int(config["args"]["steps"])
        raise UserError(f"{state}, at step {last_step(path):,} of {steps:,}")
    result = json.loads((path / "result.json").read_text())
    found = []
    algo, env, task = str(result["algo"]), str(result["env"]), result["task"] and int(result["task"])
    about: dict[str, Any] = {name: float(result[name]) for name in ("updates_per_second", "wall_seconds")}
    about |= {"device": str(result.get("device")), "commit": str(result.get("git_commit"))}
    usual = preset(algo, env)
    for part in result.get("grid", [result]):
        args = config["args"] | part.get("values", {}) | {"steps": int(result["steps"])}
        args = {name: value for name, value in args.items() if name not in _ignored()}
        changed = {name: value for name, value in args.items() if name not in usual or value != usual[name]}
        evaluations = [evaluation for evaluation in part["evaluations"] if evaluation["step"] > 0]
        metric = next(name for name in METRICS if name in evaluations[-1])
        regular = [evaluation for evaluation in evaluations if evaluation["step"] % args["eval_every"] == 0]
        counted = (regular or evaluations)[-3 if task else -1 :]
        for i, seed in enumerate(map(int, result["seeds"])):
            scale = 100 if metric == "success" else 1
            score = scale * math.fsum(evaluation[metric][i] for evaluation in counted) / len(counted)
            curve = {int(each["step"]): scale * float(each[metric][i]) for each in part["evaluations"]}
            if not all(map(math.isfinite, [*curve.values(), about["updates_per_second"], about["wall_seconds"]])):
                raise ValueError("a number is not finite")
            what = path, algo, env, task, seed, args, changed, dict(result["dataset"]), metric
            found.append(Run(*what, score, curve, len(counted), about))
            found[-1].order  # noqa: B018  (an error in it is one of this run alone)
    return found


@functools.cache
def _ignored() -> set[str]:
    """Arguments that no score depends on, or that stand elsewhere: those of every script, but for a few."""
    from common.args import BaseArgs

    shared = {field.name for field in dataclasses.fields(BaseArgs)} - {"steps", "rewards", *MEASURED}
    return shared | {"runs_dir", "resume", "capture_video"}  # of older runs


@functools.cache
def preset(algo: str, env: str) -> dict[str, Any]:
    """The arguments that a script takes for an environment if none are given. Empty for a script that is not at the
    project's root: a run never chooses code to import from elsewhere."""
    if algo not in titles():
        return {}
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only tables are read; another process may be using the GPU
    try:
        values = dataclasses.asdict(importlib.import_module(algo).args_for(env, log_every=1))
    except Exception as error:  # a script may be half written
        print(f"NOTE    {algo}.py has no preset to compare with ({type(error).__name__}: {error})", file=sys.stderr)
        return {}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
