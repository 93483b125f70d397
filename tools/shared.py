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
import stat
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for every tool that imports this file

from common import UserError
from common.system import lock

ROOT = Path(__file__).resolve().parent.parent
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

    def __init__(self, prog: str, description: str | None = None, **options):
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, formatter_class=kind, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


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


def check_output(path: Path, kinds: Sequence[str] = ()) -> None:
    """Raises UserError if a file cannot be written there, which is better known before a long work than after. Makes
    the folder. kinds: endings that the name can have; none are any."""
    if kinds and path.suffix[1:] not in kinds:
        raise UserError(f"{path}: the name must end in .{' or .'.join(kinds)}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: it {'is a folder' if path.is_dir() else 'is in a read-only folder'}.")


def table(rows: list[list[str]]) -> str:
    """A Markdown table of cells in Markdown, header first. Rows and columns with nothing but a name are left out."""
    columns = [column for column in zip(*rows) if any(column[1:])]
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*columns) if any(cells[1:])]
    return "\n".join([lines[0], f"|{' --- |' * len(columns)}", *lines[1:]])


# ------------------------------------------------------------------------------------------------------ files of a run


def read_text(path: Path) -> str:
    """A file of a run. Raises OSError for a link, which is not followed, and for what is no regular file."""
    with open(path, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path.name} is no file")
        return file.read()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run. Raises OSError or ValueError if there is none."""
    content = json.loads(read_text(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no object")
    return content


def last_step(run: Path) -> int:
    """Updates in a run's log, from its last whole line; 0 if there is none."""
    for name in ("train.csv", "metrics.csv"):
        try:
            return int(read_text(run / name).split("\n")[-2].split(",")[0])
        except (OSError, ValueError, IndexError):
            continue
    return 0


def held(run: Path) -> bool:
    """Whether a process is working on the run."""
    with ExitStack() as files:
        return run.is_dir() and not lock(run, files)


# ------------------------------------------------------------------------------------------------------- finished runs


class Run(NamedTuple):
    """Seeds that were trained in the same way: those of one directory, with --grid those of one combination in it; or,
    in a group, those of several directories."""

    path: Path
    algo: str
    env: str
    task: int | None
    args: dict[str, Any]  # those that a score depends on
    changed: dict[str, Any]  # those of them that differ from the preset
    dataset: dict[str, Any]
    metric: str
    scores: dict[int, float]  # seed -> score
    curves: dict[int, dict[int, float]]  # seed -> updates -> value of one evaluation
    counted: int  # evaluations that the score is the mean of
    commit: str
    device: str
    speed: float  # updates per second
    seconds: float

    @property
    def title(self) -> str:
        return titles().get(self.algo, self.algo)

    @property
    def place(self) -> str:
        return f"{self.env} task {self.task}" if self.task else self.env

    @property
    def unit(self) -> str:
        """What the score counts: `success in percent`."""
        return METRICS[self.metric]

    @property
    def size(self) -> dict[str, Any]:
        """The arguments of its size, if they are not the preset's."""
        size = {name: value for name, value in self.changed.items() if SIZE.search(name)}
        return size | {"steps": self.args["steps"]} if size else {}

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


def flags_text(values: dict[str, Any]) -> str:
    """`hidden-dims 256 256, steps 300,000`."""
    return ", ".join(f"{name.replace('_', '-')} {value_text(value)}" for name, value in sorted(values.items()))


def value_text(value: Any) -> str:
    """`256 256`, `300,000`, `0.1`."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if type(value) is int else f"{value:g}" if type(value) is float else str(value)


def natural(text: str) -> list[tuple[float, str]]:
    """Sort key that puts `alpha 30` before `alpha 100`."""
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", text.replace(",", ""))
    return [(float(part), "") if part[0].isdigit() else (math.inf, part) for part in parts]


def varied(runs: list[Run]) -> list[str]:
    """The arguments in which the runs differ."""
    return [name for name in sorted(runs[0].args) if len({value_text(run.args.get(name)) for run in runs}) > 1]


def split(runs: list[Run], key) -> list[list[Run]]:
    """The runs with equal keys, in the order of their first."""
    found: dict[Any, list[Run]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return list(found.values())


def blocks(runs: list[Run]) -> list[list[Run]]:
    """The runs that can be compared: of one environment, task, data, metric and size."""
    return split(runs, _block)


def _block(run: Run) -> tuple[Any, ...]:
    """What the runs of a block share. The preset's size is sorted first, then its networks for other times."""
    rest = flags_text(run.size | {"steps": 0})
    return run.env, run.task or 0, run.data, run.metric, bool(run.size), rest, run.args["steps"] * bool(run.size)


def read_runs(folders: list[Path]) -> tuple[list[Run], list[Run], list[tuple[Path, str]]]:
    """All runs in these folders, at any depth: groups of seeds that differ in nothing else, the finished runs, and
    (directory, reason) of what is left out. Raises UserError if there is no run. Links are not followed."""
    runs: list[Run] = []
    left_out: list[tuple[Path, str]] = []
    for path in _directories(folders):
        try:
            config = read_json(path / "config.json")
            if os.path.lexists(path / "result.json"):
                runs += _read_run(path, config, read_json(path / "result.json"))
            else:
                state, steps = "running" if held(path) else "not finished", int(config["args"]["steps"])
                left_out.append((path, f"{state}, at step {last_step(path):,} of {steps:,}"))
        except Exception as error:  # whatever is wrong with a run, the others are reported
            left_out.append((path, f"cannot be read ({type(error).__name__}: {error})"))
    groups: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: (run.path.name.rpartition("__")[2], run.path), reverse=True):
        digest = str(run.dataset.get("sha256"))
        key = json.dumps([run.algo, run.env, run.task, run.metric, run.args["steps"], run.changed, run.data, digest])
        group = groups.setdefault(key, run._replace(scores={}, curves={}))
        for seed in list(run.scores):
            if seed in group.scores:
                left_out.append((run.path, f"seed {seed} was run again with the same settings, {group.path.name}"))
                del run.scores[seed]
            else:
                group.scores[seed], group.curves[seed] = run.scores[seed], run.curves[seed]
    found = [group._replace(scores=dict(sorted(group.scores.items()))) for group in groups.values()]
    found.sort(key=lambda g: (*_block(g)[:-1], g.args["steps"], g.title, natural(flags_text(g.args))))
    return found, [run for run in runs if run.scores], sorted(left_out)


def _directories(folders: list[Path]) -> list[Path]:
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder.")
        for path, names, files in os.walk(folder):
            names.sort()
            if {"config.json", "result.json", "checkpoint.msgpack"} & set(files):
                found.append(Path(path))
                names.clear()
    if not found:
        raise UserError(f"there is no run directory in {', '.join(map(str, folders))}.")
    return list(dict.fromkeys(found))


def _read_run(path: Path, config: dict[str, Any], result: dict[str, Any]) -> list[Run]:
    """The combinations of a finished run. Raises any error if something is missing or no number."""
    found = []
    algo, env, task = str(result["algo"]), str(result["env"]), result["task"] and int(result["task"])
    commit, device = (str(result.get(name)) for name in ("git_commit", "device"))
    speed, seconds = (float(result[name]) for name in ("updates_per_second", "wall_seconds"))
    for part in result.get("grid", [result]):
        args = config["args"] | part.get("values", {}) | {"steps": int(result["steps"])}
        args = {name: value for name, value in args.items() if name not in _ignored()}
        usual = preset(algo, env)
        changed = {name: value for name, value in args.items() if name not in usual or value != usual[name]}
        evaluations = [evaluation for evaluation in part["evaluations"] if evaluation["step"] > 0]
        metric = next(name for name in METRICS if name in evaluations[-1])
        regular = [evaluation for evaluation in evaluations if evaluation["step"] % args["eval_every"] == 0]
        counted = (regular or evaluations)[-3 if task else -1 :]
        scale, scores, curves = 100 if metric == "success" else 1, {}, {}
        for i, seed in enumerate(map(int, result["seeds"])):
            scores[seed] = scale * math.fsum(evaluation[metric][i] for evaluation in counted) / len(counted)
            curves[seed] = {int(each["step"]): scale * float(each[metric][i]) for each in part["evaluations"]}
            if not all(map(math.isfinite, [*curves[seed].values(), speed, seconds])):
                raise ValueError("a number is not finite")
        about = args, changed, dict(result["dataset"]), metric
        run = Run(path, algo, env, task, *about, scores, curves, len(counted), commit, device, speed, seconds)
        flags_text(changed) + run.data  # an error in these is one of this run alone
        found.append(run)
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
