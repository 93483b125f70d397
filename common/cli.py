"""The command line: the arguments that every script takes, presets, checks, errors of one line."""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from common import UserError, d4rl, grid
from common.devices import backend, host, keep_compiled_programs
from common.environments import BANDITS, resolve_name
from common.progress import say


@dataclass(frozen=True)
class RunArgs:
    """run"""

    env: str = "antmaze-large-navigate"
    """OGBench dataset (short name or full id), D4RL's (hopper-medium), bandit, bandit-corners, or with --dataset any
    gymnasium id"""
    task: int | None = None
    """OGBench task, 1 to 5; None is the benchmark's default"""
    seed: int = 0
    """seed of parameters, batches and evaluation"""
    num_seeds: int = 1
    """train this many seeds side by side: seed, seed + 1, ..."""
    grid: tuple[str, ...] | None = None
    """train several values of a number side by side too, each with all seeds: alpha=1,3,10 discount=0.99,0.995"""
    steps: int = 1_000_000
    """gradient steps; with --resume they may change"""
    log_every: int | None = None
    """updates per dispatch, over which losses are averaged; None is 5000 on a GPU and 100 on a CPU, if that divides"""
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
        """Raises UserError for numbers that no run can use: counts must be positive, others finite and not negative,
        discounts and target rates at most 1, intervals multiples of --log-every."""
        for field in dataclasses.fields(self):
            value, flag = getattr(self, field.name), flag_of(field.name)
            if value == ():
                raise UserError(f"{flag} needs at least one value.")
            for number in value if isinstance(value, tuple) else [value]:
                if isinstance(number, int) and not isinstance(number, bool) and number < (field.name != "seed"):
                    raise UserError(f"{flag} {number} must be {'0 or more' if field.name == 'seed' else 'positive'}.")
                if isinstance(number, float) and not (math.isfinite(number) and number >= 0):
                    raise UserError(f"{flag} {number} must be a finite number, 0 or more.")
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
MAY_CHANGE_ON_RESUME = ("resume", "data_dir", "eval_workers", "track", "capture_video", "progress", "steps")

# -------------------------------------------------------------------------------------------------- from words to Args


def launch(main: Callable[[Any], Any], args_class: type[Args], presets: dict[str, dict]) -> None:
    """Parses the command line and runs `main(args)`. A UserError becomes one line on standard error and exit code 2."""
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
    except KeyboardInterrupt:  # before a run was set up
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


def parse(args_class: type[A], presets: dict[str, dict], argv: Sequence[str]) -> A:
    """Arguments from defaults, then the environment's preset, then the command line; or, with --resume, from the run's
    `config.json`. Raises UserError for what cannot be used."""
    without_help = [word for word in argv if word not in ("-h", "--help")]
    given = command_line(args_class, without_help, args_class())
    if given.resume is not None:
        return _resumed_args(args_class, without_help, given.resume)
    name = _preset_name(given.env)
    args = command_line(args_class, argv, args_class(**presets.get(name, {})))
    if not any(word.partition("=")[0] in ("--log-every", "--log_every") for word in argv):
        args = _with_log_interval(args)
    args.check()
    if args.dataset is None and args.env not in BANDITS and not d4rl.resolve(args.env):
        resolve_name(args.env, args.task)  # before anything is said about it
    values = " ".join(f"{key}={getattr(args, key)}" for key in presets.get(name, {}))
    say(f"preset  {name}: {values}" if values else f"preset  none for {name}: the script's defaults, untuned")
    return args


def args_for(args_class: type[A], presets: dict[str, dict], env: str, changes: dict[str, Any]) -> A:
    """The arguments that `--env` gives on the command line, with these changes on top."""
    args = args_class(**{"env": env} | presets.get(_preset_name(env), {}) | changes)
    return args if "log_every" in changes else _with_log_interval(args)


def prepare(args: A) -> A:
    """The first thing of every `main`: arguments and devices checked, with an interval if none was asked for; compiled
    programs are kept for the next start. Raises UserError."""
    ended = args.resume is not None and (Path(args.resume) / "result.json").exists()
    if ended and args.steps <= read_config(str(args.resume))["args"]["steps"]:
        raise UserError(f"--resume {args.resume}: this run has ended; larger --steps would go on.")
    host()  # or one line that says why there is none, before data are looked for
    keep_compiled_programs()
    args = args if args.log_every is not None else _with_log_interval(args)
    args.check()
    return args


def _with_log_interval(args: A) -> A:
    """An interval that divides what is asked for. On a CPU, large networks take seconds per update: short dispatches
    keep progress lively."""
    usual = args.log_every or (100 if backend() == "cpu" else 5_000)
    return dataclasses.replace(args, log_every=math.gcd(usual, args.steps, args.eval_every, args.save_every) or usual)


def _preset_name(env: str) -> str:
    with contextlib.suppress(UserError):  # what is wrong with the name is said where the data are looked for
        d4rl_task = d4rl.resolve(env)
        return d4rl_task[0] if d4rl_task else resolve_name(env)[0]
    return env


def command_line(args_class: type, argv: Sequence[str], default: Any = None, program: str | None = None) -> Any:
    """tyro's parser, its boxed messages reduced to one line. default: values of the arguments, None is the class's own.
    `program` is what --help calls it; None is the script. Raises UserError."""
    program = program or f"{algorithm_name(args_class)}.py"
    words = [_without_exponent(word) for word in argv]
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            parsed, unknown = tyro.cli(
                tyro.conf.OmitArgPrefixes[_groups(args_class, default)],  # type: ignore[misc]
                prog=program,
                args=words,
                description=(sys.modules[args_class.__module__].__doc__ or "").partition("\n\n")[0],
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # A title, then the message up to a rule; without Unicode, there is a rule under the title too.
        lines = [line.strip("│ ") for line in box.getvalue().splitlines()[1:]]
        after_title = itertools.dropwhile(lambda line: not line.strip("-"), lines)
        message = itertools.takewhile(lambda line: line.strip("─-╰╯"), after_title)
        raise UserError(f"{' '.join(message)} (see {program} --help)") from None
    if unknown:
        close = difflib.get_close_matches(unknown[0], [flag_of(x.name) for x in dataclasses.fields(args_class)], n=1)
        hint = f"did you mean {close[0]}?" if close else f"see {program} --help."
        raise UserError(f"unknown argument {unknown[0]}: {hint}")
    return args_class(**{name: x for group in vars(parsed).values() for name, x in vars(group).items()})


def _without_exponent(word: str) -> str:
    """1000000 for 1e6, --steps=1000000 for --steps=1e6, because counts may be written so; anything else as it is."""
    match = re.fullmatch(r"(--[\w-]+=)?(\d+(?:\.\d+)?e\d{1,2})", word)
    whole = match and float(match[2]).is_integer()
    return f"{match[1] or ''}{int(float(match[2]))}" if match and whole else word


def _groups(args_class: type, default: Any) -> type:
    """The flat arguments as a dataclass of groups, for --help: tyro titles a group with the name of its field."""
    groups, hints = [], typing.get_type_hints(args_class, include_extras=True)
    for owner in (RunArgs, DataArgs, EvaluationArgs, args_class):
        fields = [field for field in dataclasses.fields(args_class) if field.name in owner.__annotations__]
        if not fields or not issubclass(args_class, owner):
            continue
        docs, typed = _field_docs(owner), []
        for field in fields:
            value = field.default if default is None else getattr(default, field.name)
            hint = Annotated[hints[field.name], tyro.conf.arg(help=docs.get(field.name))]  # type: ignore
            typed.append((field.name, hint, dataclasses.field(default=value)))
        title = str(owner.__doc__) if owner is not args_class else "algorithm" if issubclass(owner, Args) else "command"
        group = dataclasses.make_dataclass(title, typed, kw_only=True)
        groups.append((title, Annotated[group, tyro.conf.arg(help="")]))
    return dataclasses.make_dataclass("Arguments", groups)


def _field_docs(cls: type) -> dict[str, str]:
    """The strings under the fields of a dataclass."""
    docs, (body,) = {}, ast.parse(inspect.getsource(cls)).body
    for field, text in itertools.pairwise(getattr(body, "body", [])):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            docs[ast.unparse(field.target)] = " ".join(str(ast.literal_eval(text.value)).split())
    return docs


def algorithm_name(args_class: type) -> str:
    """driftql for the arguments of driftql.py."""
    return Path(inspect.getfile(args_class)).stem


def flag_of(field: str) -> str:
    """--num-seeds for num_seeds."""
    return f"--{field.replace('_', '-')}"


# -------------------------------------------------------------------------------------------------- from a run to Args


def read_config(directory: str | Path) -> dict:
    """config.json of a run. Raises UserError if there is none or if it is not one."""
    folder = Path(directory)
    try:
        config = json.loads((folder / "config.json").read_text())
        if isinstance(config["algo"], str) and isinstance(config["args"], dict) and "sha256" in config["dataset"]:
            return config
    except FileNotFoundError:
        raise UserError(f"{folder}: there is no config.json, so this is not a run directory.") from None
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{folder}: config.json is damaged.")


def args_of(args_class: type[A], directory: str | Path) -> A:
    """The arguments that a run was made with. Raises UserError if another script or version made it."""
    config, algorithm = read_config(directory), algorithm_name(args_class)
    if config["algo"] != algorithm:
        raise UserError(f"{directory}: this run was made by {config['algo']}.py; go on with that script.")
    hints = typing.get_type_hints(args_class)
    wrong = sorted(hints.keys() ^ config["args"].keys())
    if wrong:
        made = f"made by another version of {algorithm}.py (commit {config.get('git_commit')})"
        raise UserError(f"{directory}: {made}, which differs in {flag_of(wrong[0])}.")
    values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in config["args"].items()}
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise UserError(f"{directory}: config.json has {value!r} for {flag_of(name)}.")
    return args_class(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from a JSON file has the type of a field."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return value in options
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in options)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(x, options[0]) for x in value)
    return type(value) in ((int, float) if hint is float else (hint,))


def _resumed_args(args_class: type[A], argv: Sequence[str], directory: str) -> A:
    try:
        saved = args_of(args_class, directory)
    except UserError as error:
        raise UserError(f"--resume {error}") from None
    args = command_line(args_class, argv, saved)
    for field in dataclasses.fields(args):
        before, flag = getattr(saved, field.name), flag_of(field.name)
        if getattr(args, field.name) != before and field.name not in MAY_CHANGE_ON_RESUME:
            raise UserError(f"--resume takes {flag} from the run ({before}); start a new run to change it.")
    args.check()
    return args
