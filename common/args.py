"""The command line of every script. Flags come on top of the environment's preset, or of the arguments of a run that is
there. The values of `--grid` are parsed here too."""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import functools
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro

from common import UserError
from common.system import expanded, write_json

# Flags that may differ when a run goes on. All others belong to the run, and its checkpoint is tied to them.
MAY_CHANGE = (
    "steps", "run_dir", "data", "data_dir", "dataset", "eval_workers", "progress",
    "track", "wandb_project", "wandb_entity", "wandb_group",
)  # fmt: skip


@dataclass(frozen=True)
class BaseArgs:
    """What every script takes. Each script adds the arguments of its algorithm."""

    env: str = "antmaze-large-navigate"
    """dataset of OGBench or D4RL (hopper-medium), bandit, bandit-corners, or with --dataset any gymnasium id"""
    task: int | None = None
    """OGBench task, 1 to 5; None is the benchmark's default task"""
    seed: int = 0
    """seed of parameters, batches and evaluation"""
    num_seeds: int = 1
    """train this many seeds side by side: seed, seed + 1, ..."""
    grid: tuple[str, ...] | None = None
    """train several values of a number side by side, each with all seeds: alpha=1,3,10 discount=0.99,0.995"""
    steps: int = 1_000_000
    """updates; a larger number extends a run that has ended"""
    log_every: int | None = None
    """updates per row of train.csv, whose losses are averaged. None: up to 5000 on a GPU, 100 on a CPU"""
    save_every: int = 100_000
    """updates between checkpoints"""
    run_dir: Annotated[str | None, tyro.conf.arg(aliases=["--resume"])] = None
    """directory of the run. If a run is there, go on with it. None makes a new directory in runs/"""
    track: bool = False
    """log to Weights & Biases too (needs the extra `track`)"""
    wandb_project: str = "offline-rl-jax"
    """project that --track logs to"""
    wandb_entity: str | None = None
    """user or team that --track logs to"""
    wandb_group: str | None = None
    """group of the run in Weights & Biases"""
    progress: bool = True
    """show progress: a bar on a terminal, elsewhere a line a minute"""

    data: Literal["auto", "cache", "download", "collect"] = "auto"
    """cache: only files that are there; download: from the benchmark's host; collect: made on this machine, not the
    official data; auto: cache, else download, else collect"""
    data_dir: str | None = None
    """folder of data files; None is ~/.ogbench/data, for D4RL ~/.d4rl/datasets"""
    collect_episodes: int | None = None
    """training episodes if data are collected; None is OGBench's number"""
    dataset: str | None = None
    """your own npz file, minari:NAME, or a file in the layout of the --env's benchmark (docs/data.md)"""
    rewards: Literal["usual", "cql_antmaze", "standardized", "returns_1000"] = "usual"
    """of D4RL, as the presets' authors treat them: r - 1 on antmaze and raw elsewhere; 4 (r - 0.5); (r - mean) / std;
    1000 r / (best return - worst return)"""

    eval_every: int = 100_000
    """updates between evaluations; there is one before the first update too"""
    eval_episodes: int = 50
    """episodes per evaluation and seed"""
    eval_workers: int | None = None
    """processes that run environments; None is one per core"""

    def check(self) -> None:
        """A script raises ValueError here for values that its algorithm cannot use."""


A = TypeVar("A", bound=BaseArgs)


def flag_of(field: str) -> str:
    """--num-seeds for num_seeds."""
    return f"--{field.replace('_', '-')}"


def script_of(args_class: type) -> Path:
    """The file of the script that the arguments belong to. Raises UserError if there is none."""
    try:
        return Path(inspect.getfile(args_class)).absolute()
    except (OSError, TypeError):  # a notebook's cell, the interpreter's prompt
        raise UserError("Args and make_agent must stand in a file, by which a run finds them again.") from None


def validate(args: BaseArgs) -> None:
    """Raises UserError for what no run can use: counts must be positive, other numbers finite and not negative (unless
    the default is), discounts and target rates at most 1, and intervals multiples of --log-every."""
    values = vars(args)
    for field in dataclasses.fields(args):
        value, usual = values[field.name], field.default if isinstance(field.default, int | float) else 1
        for number in value if isinstance(value, tuple) else [value]:
            needed = ""
            if type(number) is int and usual >= 0 and number < min(usual, 1):
                needed = "be positive" if usual else "be 0 or more"
            elif isinstance(number, float) and not (abs(number) < 3.4e38 and (usual < 0 or number >= 0)):
                needed = "be a finite number, 0 or more" if usual >= 0 else "be a finite number"
            elif isinstance(number, float) and number > 1 and field.name.endswith(("discount", "target_rate")):
                needed = "lie between 0 and 1"
            if needed:
                raise UserError(f"{flag_of(field.name)} {number} must {needed}.")
        if value == ():
            raise UserError(f"{flag_of(field.name)} needs at least one value.")
    if args.seed + args.num_seeds > 2**32:
        raise UserError(f"--seed {args.seed} is too large: seeds are 32-bit numbers.")
    for name in ("steps", "eval_every", "save_every"):
        if args.log_every is not None and values[name] % args.log_every:
            what = f"{flag_of(name)} {values[name]}"
            raise UserError(f"{what} is not a multiple of --log-every {args.log_every}; change one of the two.")
    try:
        args.check()
    except ValueError as error:
        raise UserError(str(error)) from None


# -------------------------------------------------------------------------------------------------- from words to Args


def launch(main: Callable[[Any], Any], args_class: type[BaseArgs], presets: dict[str, dict]) -> None:
    """Parses the command line and runs main(args). A UserError becomes one message on standard error, exit code 2."""
    with one_line_errors(script_of(args_class).stem):
        args = parse(args_class, presets, sys.argv[1:])
        keep_compiled_programs()
        main(args)


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turns an error that the user can fix into one message on standard error and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an accent in a path, on a terminal that knows ASCII only
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # of --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if (fixable := as_user_error(error)) is None:
            raise
        print(f"{program}: error: {fixable}", file=sys.stderr)
        sys.exit(2)


def as_user_error(error: BaseException | None) -> UserError | None:
    """The error as a UserError, if the user can fix it: the system refuses a file, or a device's memory is full."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.filename:
        return UserError(f"{error.filename}: {error.strerror}.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # names no file
        return UserError(f"cannot write: {error.strerror}.")
    if isinstance(error, RuntimeError) and "nable to initialize backend" in str(error):  # JAX_PLATFORMS names it
        return UserError(f"JAX finds no device: {error}")
    if "RESOURCE_EXHAUSTED" in str(error):
        what = str(error).splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2].rstrip(".") or "memory is full"
        return UserError(f"{what}. Fewer --num-seeds or --grid values, a smaller --batch-size or network need less.")
    return None


def parse(args_class: type[A], presets: dict[str, dict], argv: Sequence[str]) -> A:
    """Arguments from a command line. With --run-dir of a run that is there, the run's own arguments are the defaults.

    Raises UserError for what cannot be used; tyro ends the process with exit code 2 for what it cannot parse.
    """
    words = [_without_exponent(word) for word in argv]
    if sum(word.partition("=")[0] == "--grid" for word in words) > 1:  # tyro would take the last without a word
        raise UserError("--grid is given twice; write all after one: --grid alpha=1,3 discount=0.9,0.99")
    directory, saved = _flag_value(words, "run-dir", "run_dir", "resume"), None
    if directory and expanded(directory).joinpath("config.json").exists():
        saved = read_args(args_class, directory)
    elif directory and _flag_value(words, "resume"):
        raise UserError(f"--resume {directory}: there is no run. To begin one there, write --run-dir.")
    preset = {} if saved else preset_of(presets, args_class, _flag_value(words, "env") or args_class.env)
    args = tyro.cli(
        args_class,
        prog=script_of(args_class).name,
        description=(sys.modules[args_class.__module__].__doc__ or "").partition("\n\n")[0],
        args=words,
        default=saved or args_class(**preset),
    )
    if args.run_dir:
        args = dataclasses.replace(args, run_dir=os.path.expanduser(args.run_dir))
    if args.dataset and args.dataset.startswith("minari:") and _flag_value(words, "env") is None:
        args = dataclasses.replace(args, env=args.dataset)  # which names its own environment
    for name, value in vars(saved).items() if saved else ():
        if name not in MAY_CHANGE and value != vars(args)[name]:
            raise UserError(f"{flag_of(name)}: the run in {directory} has {value}; begin another run to change it.")
    if not saved:
        values = " ".join(f"{name}={vars(args)[name]}" for name in preset)
        print(f"preset  {args.env}: {values}" if values else f"preset  none for {args.env}: untuned defaults")
    return finish(args, bool(saved) or _flag_value(words, "log-every", "log_every") is not None)


def preset_args(args_class: type[A], presets: dict[str, dict], env: str, changes: dict[str, Any]) -> A:
    """The arguments that `--env` gives on the command line, with these changes on top."""
    return finish(args_class(**{"env": env} | preset_of(presets, args_class, env) | changes), "log_every" in changes)


def preset_of(presets: dict[str, dict], args_class: type, env: str) -> dict[str, Any]:
    """The preset of an environment, whose name may have D4RL's version or OGBench's task in it."""
    name = env if env in presets else re.sub(r"(-singletask(-task\d+)?)?(-v\d+)?$", "", env)
    for unknown in presets.get(name, {}).keys() - typing.get_type_hints(args_class).keys():
        raise UserError(f"the preset of {name} has {unknown}, which Args does not; is it another algorithm's?")
    return presets.get(name, {})


def finish(args: A, interval_given: bool) -> A:
    """Checked arguments. A --log-every that was not given on the command line is made to divide the other intervals.
    With --grid, reading one of its arguments outside of make_agent is an error."""
    if not interval_given:
        import jax  # the script has imported it

        # Short intervals keep progress lively on a CPU. JAX raises here if JAX_PLATFORMS names what is not there.
        usual = 100 if jax.default_backend() == "cpu" else 5_000
        every = math.gcd(args.log_every or usual, args.steps, args.eval_every, args.save_every)
        args = dataclasses.replace(args, log_every=every)
    validate(args)
    if args.grid is None:
        return args
    for values in combinations(args):
        try:
            validate(single(args, values))
        except UserError as error:
            raise UserError(f"--grid {combination_name(values)}: {error}") from None
    hidden = {name: property(functools.partial(_refuse, name)) for name in parse_grid(type(args), args.grid)}
    kind: Any = type(type(args).__name__, (type(args),), hidden | {"__module__": type(args).__module__})
    varied = object.__new__(kind)
    vars(varied).update(vars(args))
    return varied


def _refuse(name: str, _: BaseArgs) -> None:
    where = "outside of make_agent, where a grid has no single value"
    raise UserError(f"--grid {name}: this script reads {name} {where}; tools/sweep.py trains a run per value.")


def keep_compiled_programs() -> None:
    """Keeps compiled programs in ~/.cache/offline-rl-jax, or where JAX_COMPILATION_CACHE_DIR says."""
    import jax  # the script has imported it

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/offline-rl-jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # small programs too, there are dozens
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    @functools.cache
    def say_once(folder):
        print(f"NOTE    {folder} has damaged files or cannot be written: programs are compiled again", file=sys.stderr)

    def show(message, *where, **options):
        if "persistent compilation cache" in str(message):  # JAX warns for each of dozens of programs
            say_once(jax.config.jax_compilation_cache_dir)
        else:
            show_others(message, *where, **options)

    show_others, warnings.showwarning = warnings.showwarning, show


def _flag_value(words: Sequence[str], *names: str) -> str | None:
    """The last value of a flag on a command line, before it is parsed as a whole."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(*(f"--{name}" for name in names), dest="value", nargs="?")
    return parser.parse_known_args(list(words))[0].value


def _without_exponent(word: str) -> str:
    """1000000 for 1e6 and --steps=1000000 for --steps=1e6, because counts may be written so."""
    match = re.fullmatch(r"(--[\w-]+=)?(\d+(?:\.\d+)?e\d{1,2})", word)
    whole = match and float(match[2]).is_integer()
    return f"{match[1] or ''}{int(float(match[2]))}" if match and whole else word


# -------------------------------------------------------------------------------------------------- from a run to Args


def read_config(directory: str | Path) -> dict[str, Any]:
    """config.json of a run. Raises UserError if there is none, or if it is damaged."""
    path = expanded(directory) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        digest = digest_of({name: x for name, x in config.items() if name != "sha256"})
        whole = all(isinstance(config[name], kind) for name, kind in (("algo", str), ("args", dict), ("dataset", dict)))
        if whole and config.get("sha256", digest) == digest:  # older runs have none
            return config
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError):
            raise UserError(f"{directory} is not a run: {path}: {error.strerror}.") from None
    raise UserError(f"{path} is damaged, or was edited.")


def write_config(directory: Path, args: BaseArgs, content: dict[str, Any], changes: dict[str, Any]) -> None:
    """Writes config.json: the script, its arguments with these changes, and `content`, with a digest of them all."""
    paths = {name: value for name in ("data_dir", "dataset") if (value := vars(args)[name]) and ":" not in value}
    absolute = {name: os.path.abspath(os.path.expanduser(path)) for name, path in paths.items()}
    arguments = vars(args) | absolute | changes | {"run_dir": None}
    config = content | {"algo": script_of(type(args)).stem, "args": arguments}
    config.pop("sha256", None)
    write_json(directory / "config.json", config | {"sha256": digest_of(config)})


def digest_of(content: Any) -> str:
    """SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_args(args_class: type[A], directory: str | Path) -> A:
    """The arguments that a run was made with. Raises UserError if another script or version made it."""
    config, script = read_config(directory), script_of(args_class)
    if config["algo"] != script.stem:
        raise UserError(f"{directory}: this run was made by {config['algo']}.py; go on with that script.")
    values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in config["args"].items()}
    fields = {field.name for field in dataclasses.fields(args_class)}
    if different := sorted(fields ^ values.keys()):
        made = f"another version of {script.name} (commit {config.get('git_commit')})"
        raise UserError(f"{directory} was made by {made}, which differs in {flag_of(different[0])}.")
    return args_class(**values | {"run_dir": str(directory)})


# ----------------------------------------------------------------------------------------------------------------- grid


class Member(NamedTuple):
    """What is trained at one index of the leading axis."""

    values: dict[str, float]  # of the combination; empty without --grid
    seed: int

    @property
    def name(self) -> str:
        """alpha=3, seed 1."""
        return ", ".join(filter(None, [combination_name(self.values), f"seed {self.seed}"]))


def members(args: BaseArgs) -> list[Member]:
    """All seeds of the first combination, then those of the second, and so on. Without --grid there is one
    combination, which changes nothing."""
    return [Member(values, args.seed + i) for values in combinations(args) for i in range(args.num_seeds)]


def single(args: A, values: dict[str, Any]) -> A:
    """The arguments of a run of one combination alone."""
    base = next(cls for cls in type(args).__mro__ if "__dataclass_fields__" in vars(cls))  # not `finish`'s
    return base(**vars(args) | {"grid": None} | values)


def combination_name(values: dict[str, float]) -> str:
    """alpha=3,discount=0.99; empty without --grid."""
    return ",".join(f"{name}={value:.12g}" for name, value in values.items())


def combinations(args: BaseArgs) -> list[dict[str, float]]:
    """All combinations of the grid's values, name -> value; the last name changes fastest."""
    axes = parse_grid(type(args), args.grid or ())
    return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]


def combinations_of(args: BaseArgs) -> list[tuple[dict[str, float], slice]]:
    """Each combination, and where its members stand on the leading axis."""
    n = args.num_seeds
    return [(values, slice(i * n, i * n + n)) for i, values in enumerate(combinations(args))]


def parse_grid(args_class: type, words: Sequence[str]) -> dict[str, list[float]]:
    """Name -> values, from words like alpha=1,3. Raises UserError for what is not one, says it twice, or names an
    argument that cannot be in a grid."""
    hints = typing.get_type_hints(args_class)
    arithmetic = [name for name, hint in hints.items() if float in (hint, *typing.get_args(hint))]
    axes: dict[str, list[float]] = {}
    for word in words:
        name, _, listed = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if name not in arithmetic:
            close = difflib.get_close_matches(name, arithmetic, n=1)
            hint = f"did you mean {close[0]}?" if close else "for others there is tools/sweep.py, a run per value."
            raise UserError(f"--grid {word}: one program can have {', '.join(arithmetic)} in a grid; {hint}")
        try:
            values = [float(value) for value in listed.split(",")]
        except ValueError:
            raise UserError(f"--grid {word}: write it as --grid {name}=1,3,10, without spaces in it.") from None
        if name in axes or len({combination_name({name: value}) for value in values}) < len(values):
            raise UserError(f"--grid {' '.join(words)}: every name and every value may be there once.")
        axes[name] = values
    return axes
