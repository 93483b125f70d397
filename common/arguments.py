"""The arguments that every script takes, and what is wrong with them."""

import dataclasses
import inspect
import os
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from common import UserError, grid, installed
from common.files import expanded

FLOAT32_MAX = 3.4e38  # beyond it, what trains is infinite


@dataclass(frozen=True)
class RunArgs:
    """run"""

    env: str = "antmaze-large-navigate"
    """OGBench dataset (short name or full id), D4RL's (hopper-medium), bandit, bandit-corners, or with --dataset any
    gymnasium id"""
    task: int | None = None
    """OGBench task, 1 to 5; None is the benchmark's default, which the run says"""
    seed: int = 0
    """seed of parameters, batches and evaluation"""
    num_seeds: int = 1
    """train this many seeds side by side: seed, seed + 1, ..."""
    grid: tuple[str, ...] | None = None
    """train several values of a number side by side too, each with all seeds: alpha=1,3,10 discount=0.99,0.995"""
    steps: int = 1_000_000
    """updates; with --resume they may change"""
    log_every: int | None = None
    """updates per line of the log, whose losses are averaged; must divide the other intervals. None: up to 5000 on a
    GPU, 100 on a CPU"""
    save_every: int = 100_000
    """updates between checkpoints"""
    runs_dir: str = "runs"
    """where run directories are made"""
    resume: str | None = None
    """directory of a run to go on with; takes all other arguments from there"""
    track: bool = False
    """log to Weights & Biases too (needs the extra `track`)"""
    progress: bool = True
    """how far it is: bars on a terminal, elsewhere a line a minute"""


@dataclass(frozen=True)
class DataArgs:
    """data"""

    data: Literal["auto", "cache", "download", "collect"] = "auto"
    """cache: only files that are there; download: OGBench's host, for D4RL Minari's; collect: made on this machine, not
    the official data; auto: cache, else download, else collect"""
    data_dir: str | None = None
    """folder with OGBench's npz files; None is ~/.ogbench/data. Collected data go to its subfolder `collected`. For
    D4RL: with its HDF5 files or Minari's datasets; None is ~/.d4rl/datasets, then ~/.minari/datasets"""
    collect_episodes: int | None = None
    """training episodes if data are collected; None is OGBench's number"""
    dataset: str | None = None
    """your own npz file, or one in OGBench's format for an OGBench --env, or an HDF5 file in D4RL's layout for a D4RL
    --env (formats: common/transitions.py, common/d4rl.py)"""
    rewards: Literal["usual", "cql_antmaze", "standardized", "returns_1000"] = "usual"
    """of D4RL, as the presets' authors treat them: r - 1 on antmaze and raw elsewhere; 4 (r - 0.5); (r - mean) / std;
    1000 r / (best return - worst return)"""


@dataclass(frozen=True)
class EvaluationArgs:
    """evaluation"""

    eval_every: int = 100_000
    """updates between evaluations; there is one before the first update too"""
    eval_episodes: int = 50
    """episodes per evaluation and seed"""
    eval_workers: int | None = None
    """processes that run environments; None is one per core"""
    capture_video: bool = False
    """film one episode of the final policy: film.gif (needs OpenGL; without a screen set MUJOCO_GL=egl)"""


@dataclass(frozen=True)
class Args(EvaluationArgs, DataArgs, RunArgs):
    """What every script takes; each adds the arguments of its algorithm."""

    def check(self) -> None:
        """Raises UserError for what no run can use: counts must be positive, other numbers finite and not negative
        (unless the default is 0, or negative, too), discounts and target rates at most 1, intervals multiples of
        --log-every."""
        if self.track and not installed("wandb"):
            raise UserError("--track needs Weights & Biases: uv pip install -e '.[track]'")
        for field in dataclasses.fields(self):
            value, flag = getattr(self, field.name), flag_of(field.name)
            usual = field.default if isinstance(field.default, int | float) else 1
            if value == ():
                raise UserError(f"{flag} needs at least one value.")
            for number in value if isinstance(value, tuple) else [value]:
                if type(number) is int and usual >= 0 and number < min(usual, 1):
                    raise UserError(f"{flag} {number} must be {'positive' if usual else '0 or more'}.")
                if isinstance(number, float) and not (abs(number) < FLOAT32_MAX and (usual < 0 or number >= 0)):
                    raise UserError(f"{flag} {number} must be a finite number{', 0 or more' * (usual >= 0)}.")
            if (field.name == "discount" or field.name.endswith("target_rate")) and value > 1:
                raise UserError(f"{flag} {value} must lie between 0 and 1.")
        if self.seed + self.num_seeds > 2**32:
            raise UserError(f"--seed {self.seed} is too large: seeds are 32-bit numbers.")
        for name in ("steps", "eval_every", "save_every"):
            if self.log_every is not None and getattr(self, name) % self.log_every:
                what = f"{flag_of(name)} {getattr(self, name)}"
                raise UserError(f"{what} is not a multiple of --log-every {self.log_every}; change one of the two.")
        grid.combinations(self)


A = TypeVar("A", bound=Args)


def check_types(args: Args) -> None:
    """Raises UserError for a value that the command line would not have accepted."""
    for name, hint in typing.get_type_hints(type(args)).items():
        if not fits(value := getattr(args, name), hint):
            options = ", ".join(typing.get_args(hint)) if typing.get_origin(hint) is Literal else ""
            what = f"one of {options}" if options else f"of type {hint if typing.get_args(hint) else hint.__name__}"
            raise UserError(f"{flag_of(name)} {value!r} must be {what}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return value in options
    if isinstance(hint, types.UnionType):
        return any(fits(value, option) for option in options)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(x, options[0]) for x in value)
    return type(value) in ((int, float) if hint is float else (hint,))


def plain(args: A) -> A:
    """NumPy's numbers, lists and paths, and 3 for 3.0, which Python code may give, as a command line would have given
    them."""

    def simple(value, hint):
        if isinstance(value, list | tuple):
            return tuple(simple(x, None) for x in value)
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        value = value.item() if getattr(value, "shape", None) == () else value
        return float(value) if type(value) is int and float in (hint, *typing.get_args(hint)) else value

    hints = typing.get_type_hints(type(args))
    values = {field.name: simple(getattr(args, field.name), hints[field.name]) for field in dataclasses.fields(args)}
    folders = {name: os.path.expanduser(values[name]) for name in ("runs_dir", "resume") if values[name]}
    return dataclasses.replace(args, **values | folders)


def absolute_paths(args: Args) -> dict[str, str]:
    """Where the data are, so that --resume finds them from any folder."""
    given = {key: getattr(args, key) for key in ("data_dir", "dataset") if getattr(args, key) is not None}
    return {key: str(expanded(value).absolute()) for key, value in given.items()}


def script_of(args_class: type) -> Path:
    """The file that the arguments stand in. Raises UserError if there is none."""
    try:
        return Path(inspect.getfile(args_class)).absolute()
    except (OSError, TypeError):  # a notebook's cell, the interpreter's prompt
        raise UserError("Args and make_agent must stand in a file, by which a run finds them again.") from None


def algorithm_name(args_class: type) -> str:
    """driftql for the arguments of driftql.py."""
    return script_of(args_class).stem


def flag_of(field: str) -> str:
    """--num-seeds for num_seeds."""
    return f"--{field.replace('_', '-')}"
