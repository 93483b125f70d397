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
    "steps", "online_steps", "run_dir", "data", "data_dir", "dataset", "eval_workers", "progress",
    "track", "wandb_project", "wandb_entity", "wandb_group",
)  # fmt: skip


@dataclass(frozen=True)
class BaseArgs:
    """What every script takes. Each script adds the arguments of its algorithm."""

    env: str = "antmaze-large-navigate"
    """dataset of OGBench or D4RL (hopper-medium), bandit, bandit-corners, or with --dataset any gymnasium id"""
    task: int | None = None
    """OGBench task, 1 to 5; None is the benchmark's default task"""
    laptop: bool = False
    """take settings of one small size, the same in all scripts, for the tasks of tools/sweeps/laptop.yaml"""
    seed: int = 0
    """seed of parameters, batches and evaluation"""
    num_seeds: int = 1
    """train this many seeds side by side: seed, seed + 1, ..."""
    grid: tuple[str, ...] | None = None
    """train several values of a number side by side, each with all seeds: alpha=1,3,10 discount=0.99,0.995"""
    steps: int = 1_000_000
    """updates; a larger number extends a run that has ended"""
    online_steps: int = 0
    """updates after those, each with a step of the policy in the environment, which joins the data. Of DriftQL, DROL
    and Diffusion-QL no online results are published. IDQL's released script freezes the actor; here it goes on"""
    online_share: float | None = None
    """share of an online update's batch that is drawn from online steps, 0.5 is half; None draws from all data alike"""
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
    p_random: float = 0.0
    """share of actions that are replaced by random ones if data are collected"""
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
    the default is), discounts, target rates and shares at most 1, and intervals multiples of --log-every."""
    for field in dataclasses.fields(args):
        value = vars(args)[field.name]
        if value == ():
            raise UserError(f"{flag_of(field.name)} needs at least one value.")
        usual = field.default if isinstance(field.default, int | float) else 1
        most = 1 if field.name.endswith(("discount", "target_rate", "share", "random")) else 3.4e38  # float32's largest
        for number in value if isinstance(value, tuple) else [value]:
            least = -most if usual < 0 else min(usual, 1) if type(number) is type(usual) is int else 0
            if type(number) in (int, float) and not least <= number <= most:
                bound = f", {least:g} or more" * (least >= 0)
                needed = "lie between 0 and 1" if most == 1 else f"be a finite number{bound}"
                raise UserError(f"{flag_of(field.name)} {number} must {needed}.")
    if args.seed + args.num_seeds > 2**32:
        raise UserError(f"--seed {args.seed} is too large: seeds are 32-bit numbers.")
    for name in ("steps", "online_steps", "eval_every", "save_every"):
        if args.log_every and (value := vars(args)[name]) % args.log_every:
            what = f"{flag_of(name)} {value} is not a multiple of --log-every {args.log_every}"
            raise UserError(f"{what}; change one of the two.")
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


def as_user_error(error: BaseException) -> UserError | None:
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
    flags = [word.partition("=")[0].replace("_", "-") for word in words]
    if flags.count("--grid") > 1:  # tyro would take the last without a word
        raise UserError("--grid is given twice; write all after one: --grid alpha=1,3 discount=0.9,0.99")
    # The defaults depend on the environment and on the run, which are found before all flags are parsed.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--env", nargs="?")
    parser.add_argument("--online-steps", "--online_steps", nargs="?")
    parser.add_argument("--laptop", action="store_true")
    parser.add_argument("--run-dir", "--run_dir", "--resume", nargs="?")
    early, _ = parser.parse_known_args(words)
    directory, saved, preset = early.run_dir, None, {}
    if directory and expanded(directory).joinpath("config.json").exists():
        saved = read_args(args_class, directory)
    elif directory and "--resume" in flags:
        raise UserError(f"--resume {directory}: there is no run. To begin one there, write --run-dir.")
    else:
        online = early.online_steps not in (None, "0")
        preset = preset_of(presets, args_class, early.env or args_class.env, early.laptop, online)
    args = tyro.cli(
        args_class,
        prog=script_of(args_class).name,
        description=(sys.modules[args_class.__module__].__doc__ or "").partition("\n\n")[0],
        args=words,
        default=saved or args_class(**preset),
    )
    if args.run_dir:
        args = dataclasses.replace(args, run_dir=os.path.expanduser(args.run_dir))
    if args.dataset and args.dataset.startswith("minari:") and not early.env:
        args = dataclasses.replace(args, env=args.dataset)  # which names its own environment
    for name, value in vars(saved).items() if saved else ():
        if name not in MAY_CHANGE and value != vars(args)[name]:
            raise UserError(f"{flag_of(name)}: the run in {directory} has {value}; begin another run to change it.")
    args = finish(args, interval_given=saved is not None or "--log-every" in flags)
    if not saved:
        values = " ".join(f"{name}={vars(args)[name]}" for name in preset)
        print(f"preset  {args.env}: {values or 'none; untuned defaults'}")
    return args


def _without_exponent(word: str) -> str:
    """1000000 for 1e6 and --steps=1000000 for --steps=1e6, because counts may be written so."""
    match = re.fullmatch(r"(|--[\w-]+=)(\d+(?:\.\d+)?e\d{1,2})", word)
    return f"{match[1]}{float(match[2]):.0f}" if match and float(match[2]).is_integer() else word


def preset_args(args_class: type[A], presets: dict[str, dict], env: str, changes: dict[str, Any]) -> A:
    """The arguments that `--env` gives on the command line, with these changes on top."""
    preset = preset_of(presets, args_class, env, changes.get("laptop", False), bool(changes.get("online_steps")))
    return finish(args_class(**{"env": env} | preset | changes), "log_every" in changes)


def preset_of(
    presets: dict[str, dict], args_class: type, env: str, laptop: bool = False, online: bool = False
) -> dict[str, Any]:
    """The preset of an environment, whose name may have D4RL's version or OGBench's task in it. `NAME laptop` and
    `NAME online` are what differs with --laptop and in a run with an online phase.

    Raises UserError if --laptop is given and has no settings for this environment.
    """
    name = env if env in presets else re.sub(r"(-singletask(-task\d+)?)?(-v\d+)?$", "", env)
    preset = presets.get(name, {}) | (presets.get(f"{name} online", {}) if online else {})
    if laptop:
        if f"{name} laptop" not in presets:
            known = [key.removesuffix(" laptop") for key in presets if key.endswith(" laptop")]
            raise UserError(f"--laptop has no settings for {env}; it has them for {', '.join(known)}.")
        preset |= presets[f"{name} laptop"]
    for unknown in preset.keys() - typing.get_type_hints(args_class).keys():
        raise UserError(f"the preset of {env} has {unknown}, which Args does not; is it another algorithm's?")
    return preset


def finish(args: A, interval_given: bool) -> A:
    """Checked arguments. A --log-every that was not given on the command line is made to divide the other intervals.
    With --grid, reading one of its arguments outside of make_agent is an error."""
    if args.log_every is None or not interval_given:
        import jax  # the script has imported it

        platform = jax.default_backend()  # raises before data are loaded, if JAX_PLATFORMS names one that is not there
        usual = args.log_every or (100 if platform == "cpu" else 5_000)  # short ones keep progress lively on a CPU
        interval = math.gcd(usual, args.steps, args.online_steps, args.eval_every, args.save_every)
        args = dataclasses.replace(args, log_every=interval)
    validate(args)
    if args.grid is None:
        return args
    for values, _ in combinations_of(args):
        validate(single(args, values))

    def refuse(name, _):
        where = "outside of make_agent, where a grid has no single value"
        raise UserError(f"--grid {name}: this script reads {name} {where}; tools/sweep.py trains a run per value.")

    hidden: dict[str, Any] = {name: property(functools.partial(refuse, name)) for name in values}
    varied = type(type(args).__name__, (type(args),), hidden | {"__module__": type(args).__module__})
    object.__setattr__(args, "__class__", varied)
    return args


def keep_compiled_programs() -> None:
    """Keeps compiled programs in ~/.cache/offline-rl-jax, or where JAX_COMPILATION_CACHE_DIR says."""
    import jax  # the script has imported it

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/offline-rl-jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # small programs too, there are dozens
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Where the cache is damaged or cannot be written, programs are compiled again; JAX would warn for each of dozens.
    warnings.filterwarnings("ignore", ".*persistent compilation cache")


# -------------------------------------------------------------------------------------------------- from a run to Args


def read_config(directory: str | Path) -> dict[str, Any]:
    """config.json of a run. Raises UserError if there is none, or if it is damaged."""
    path = expanded(directory) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        digest = config.pop("sha256", None)  # older runs have none
        if digest in (None, digest_of(config)) and config.keys() >= {"algo", "args", "dataset"}:
            return config
    except OSError as error:
        raise UserError(f"{directory} is not a run: {path}: {error.strerror}.") from None
    except (ValueError, TypeError, AttributeError):  # not JSON, or not an object
        pass
    raise UserError(f"{path} is damaged, or was edited.")


def write_config(directory: Path, args: BaseArgs, content: dict[str, Any], changes: dict[str, Any]) -> None:
    """Writes config.json: the script, its arguments with these changes, and `content`, with a digest of them all."""
    paths = {name: value for name in ("data_dir", "dataset") if (value := vars(args)[name]) and ":" not in value}
    absolute = {name: os.path.abspath(os.path.expanduser(path)) for name, path in paths.items()}
    arguments = vars(args) | absolute | changes | {"run_dir": None}
    config = content | {"algo": script_of(type(args)).stem, "args": arguments}
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
    """All seeds of the first combination, then those of the second, and so on."""
    return [Member(values, args.seed + i) for values, _ in combinations_of(args) for i in range(args.num_seeds)]


def combinations_of(args: BaseArgs) -> list[tuple[dict[str, float], slice]]:
    """Each combination of the grid's values, name -> value, and where its members stand on the leading axis. The last
    name changes fastest. Without --grid there is one combination, which changes nothing.

    Raises UserError for what is not like alpha=1,3, is there twice, or names an argument that cannot be in a grid.
    """
    hints, axes = typing.get_type_hints(type(args)), {}
    del hints["p_random"]  # all combinations share the data
    arithmetic = [name for name, hint in hints.items() if float in (hint, *typing.get_args(hint))]
    for word in args.grid or ():
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
        if name in axes or len({f"{value:.12g}" for value in values}) < len(values):
            raise UserError(f"--grid {' '.join(args.grid or ())}: every name and every value may be there once.")
        axes[name] = values
    found = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    return [(values, slice(i * args.num_seeds, (i + 1) * args.num_seeds)) for i, values in enumerate(found)]


def combination_name(values: dict[str, float]) -> str:
    """alpha=3,discount=0.99; empty without --grid."""
    return ",".join(f"{name}={value:.12g}" for name, value in values.items())


def single(args: A, values: dict[str, Any]) -> A:
    """The arguments of a run of one combination alone."""
    base = next(cls for cls in type(args).__mro__ if "__dataclass_fields__" in vars(cls))  # not `finish`'s
    return base(**vars(args) | {"grid": None} | values)
