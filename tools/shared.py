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
from common.args import BaseArgs
from common.system import lock

PICTURES = ("png", "pdf", "svg", "jpg")
# What a score can be, the first that a run was evaluated for. result.json has success as a share.
METRICS = {"normalized": "normalized return", "success": "success in percent", "return": "return"}
SOURCES = {
    "official": "official", "builtin": "built in", "collected": "collected here, not official",
    "unverified": "file of unknown origin", "user": "the user's file", "d4rl": "D4RL's file",
}  # fmt: skip
SIZE = re.compile(r"^steps$|batch_size$|dims$|width$")  # arguments that decide how large a run is
PRESET_SIZE, LAPTOP_SIZE = "the preset's size", "the laptop's size"
MEASURED = ("eval_every", "eval_episodes")  # arguments that change how a policy is measured, not the policy
# Arguments that no score depends on, or that stand elsewhere: those of every script, but for a few, and of older runs.
IGNORED = {field.name for field in dataclasses.fields(BaseArgs)} | {"runs_dir", "resume", "capture_video"}
IGNORED -= {"steps", "laptop", "online_steps", "online_share", "rewards", *MEASURED}


class Parser(argparse.ArgumentParser):
    """Raises UserError for arguments that cannot be parsed."""

    def __init__(self, doc: str | None = None, **options):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def positive(word: str) -> int:
    """A number of things, of which there must be some."""
    if int(word) < 1:
        raise ValueError
    return int(word)


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
    """Makes the folder of a file. Raises UserError if the file's name does not end in one of `kinds`."""
    if path.suffix[1:] not in kinds:
        raise UserError(f"{path}: the name must end in .{' or .'.join(kinds)}.")
    path.parent.mkdir(parents=True, exist_ok=True)  # its OSError is one line, too


def table(rows: list[list[str]]) -> str:
    """A Markdown table of cells in Markdown, header first. Rows and columns with nothing but a name are left out."""
    columns = [column for column in zip(*rows) if any(column[1:])]
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*columns) if any(cells[1:])]
    return "\n".join([lines[0], f"|{' --- |' * len(columns)}", *lines[1:]])


def last_step(run: Path) -> int:
    """Updates in a run's log, from its last whole line; 0 if there is none."""
    try:
        return int((run / "train.csv").read_text().split("\n")[-2].split(",")[0])
    except (OSError, ValueError, IndexError):
        return 0


def held(run: Path) -> bool:
    """Whether a process is working on the run."""
    with ExitStack() as files:
        return run.is_dir() and not lock(run, files)


class Run(NamedTuple):
    """One seed of a finished run, with --grid of one combination."""

    path: Path
    algo: str
    title: str  # of the algorithm
    env: str
    task: int | None
    place: str  # environment and task
    seed: int
    args: dict[str, Any]  # those that a score depends on
    changed: dict[str, Any]  # those of them that differ from the preset
    source: str  # of the data
    data: str
    random_share: float  # of the data's actions that were replaced by random ones when the data were collected
    metric: str
    score: float
    curve: dict[int, float]  # updates -> value of one evaluation
    counted: int  # evaluations that the score is the mean of
    about: dict[str, Any]  # columns of the report that only say how the run was made

    @property
    def size(self) -> str:
        """The preset's size, or the arguments that decide it but for the number of updates: `hidden-dims 512 512`."""
        if not any(SIZE.search(name) for name in self.changed):
            return LAPTOP_SIZE if self.args.get("laptop") else PRESET_SIZE
        return flags_text({name: x for name, x in self.args.items() if SIZE.search(name) and name != "steps"})

    @property
    def settings(self) -> dict[str, Any]:
        """The other arguments that differ from the preset, but for how the policy was measured."""
        return {x: value for x, value in self.changed.items() if x not in MEASURED and not SIZE.search(x)}


def data_text(dataset: dict[str, Any], how: dict[str, Any], random_share: float) -> str:
    """What the data are: `collected here, not official, 200 episodes, 20% random actions, sha256 64bc07`."""
    source, digest = str(dataset.get("source")), str(dataset.get("sha256") or "")
    words = [SOURCES.get(source, source), Path(str(dataset.get("path"))).name if source == "user" else ""]
    if how.get("episodes") != how.get("official_episodes"):
        words.append(f"{how['episodes']:,} episodes")
    words += [f"{random_share:.0%} random actions" * bool(random_share), f"sha256 {digest[:6]}" * bool(digest)]
    return ", ".join(filter(None, words))


def line(value: Any) -> str:
    """Any text in one line of signs that can be printed."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(value)).split())


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
    """The runs that differ in nothing but the seed and what the caller has split by: environment, data, metric."""
    return split(runs, lambda run: (run.algo, flags_text(run.changed)))


def read_runs(folders: list[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """All finished runs in these folders, at any depth, and (directory, reason) of what is left out, which is also a
    line on standard error. Raises UserError if there is no run."""
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
        except Exception as error:  # whatever is wrong with a run, the others are reported
            known = isinstance(error, UserError)
            left_out.append((path, str(error) if known else f"cannot be read ({type(error).__name__}: {error})"))
    for path, reason in sorted(left_out):
        print(line(f"left out {path}: {reason}"), file=sys.stderr)

    def order(run: Run) -> tuple:
        """Equal things stand together, the preset's size first."""
        where = run.place, run.data, run.metric, run.size != PRESET_SIZE, run.title
        return where, natural(flags_text(run.changed)), run.seed

    return sorted(runs.values(), key=order), sorted(left_out)


def _read_run(path: Path) -> list[Run]:
    """The seeds of a finished run. Raises UserError if it is not finished, and any error if something is missing or no
    number."""
    config = json.loads((path / "config.json").read_text())
    if not (path / "result.json").exists():
        state = "running" if held(path) else "not finished"
        steps = sum(int(config["args"].get(name, 0)) for name in ("steps", "online_steps"))
        raise UserError(f"{state}, at step {last_step(path):,} of {steps:,}")
    result = json.loads((path / "result.json").read_text())
    found = []
    algo, env, task = str(result["algo"]), str(result["env"]), result["task"] and int(result["task"])
    about: dict[str, Any] = {name: float(result[name]) for name in ("updates_per_second", "wall_seconds")}
    about |= {"device": str(result.get("device")), "commit": str(result.get("git_commit"))}
    usual, dataset = preset(algo, env, bool(config["args"].get("laptop"))), result["dataset"]
    how = dataset.get("collection") or {}
    random_share = float(how.get("p_random_action") or 0)
    data = str(dataset.get("source")), data_text(dataset, how, random_share), random_share
    what = path, algo, titles().get(algo, algo), env, task, f"{env} task {task}" if task else env
    for part in result.get("grid", [result]):
        args = usual | config["args"] | part.get("values", {}) | {"steps": int(result["steps"])}
        args = {name: value for name, value in args.items() if name not in IGNORED}
        changed = {name: value for name, value in args.items() if name not in usual or value != usual[name]}
        evaluations = [evaluation for evaluation in part["evaluations"] if evaluation["step"] > 0]
        metric = next(name for name in METRICS if name in evaluations[-1])
        regular = [evaluation for evaluation in evaluations if evaluation["step"] % args["eval_every"] == 0]
        counted = evaluations[-1:] if args.get("online_steps") else (regular or evaluations)[-3 if task else -1 :]
        for i, seed in enumerate(map(int, result["seeds"])):
            scale = 100 if metric == "success" else 1
            score = scale * math.fsum(evaluation[metric][i] for evaluation in counted) / len(counted)
            curve = {int(each["step"]): scale * float(each[metric][i]) for each in part["evaluations"]}
            if not all(map(math.isfinite, [*curve.values(), about["updates_per_second"], about["wall_seconds"]])):
                raise ValueError("a number is not finite")
            rarest = {"rarest_best_mode": 100 * counted[-1]["rarest_mode"][i] if "rarest_mode" in counted[-1] else ""}
            found.append(Run(*what, seed, args, changed, *data, metric, score, curve, len(counted), about | rarest))
    return found


@functools.cache
def preset(algo: str, env: str, laptop: bool) -> dict[str, Any]:
    """The arguments that a script takes for an environment without more flags. Empty for a script that is not at the
    project's root: a run never chooses code to import from elsewhere."""
    if algo not in titles():
        return {}
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only tables are read; another process may be using the GPU
    values = dataclasses.asdict(importlib.import_module(algo).args_for(env, laptop=laptop, log_every=1))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
