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
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from common import UserError, d4rl
from common.arguments import (
    A,
    Args,
    DataArgs,
    EvaluationArgs,
    RunArgs,
    algorithm_name,
    check_types,
    fits,
    flag_of,
    plain,
    script_of,
)
from common.devices import backend, host, keep_compiled_programs
from common.environments import BANDITS, resolve_name
from common.files import expanded
from common.progress import say
from common.signals import interrupts_remembered

MAY_CHANGE_ON_RESUME = ("resume", "data_dir", "dataset", "eval_workers", "track", "capture_video", "progress", "steps")

# -------------------------------------------------------------------------------------------------- from words to Args


def launch(main: Callable[[Any], Any], args_class: type[Args], presets: dict[str, dict]) -> None:
    """Parses the command line and runs `main(args)`. A UserError becomes one line on standard error and exit code 2."""
    with one_line_errors(algorithm_name(args_class)), interrupts_remembered():
        main(parse(args_class, presets, sys.argv[1:]))


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """A UserError, or what is as good as one, becomes one line on standard error and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path with an accent, where the terminal knows ASCII only
    try:
        yield
    except KeyboardInterrupt:  # before a run was set up
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if (mendable := as_user_error(error)) is None:
            raise
        print(f"{program}: error: {mendable}", file=sys.stderr)
        sys.exit(2)


def as_user_error(error: BaseException | None) -> UserError | None:
    """What a person can mend: a UserError, a folder that one may not enter, a device whose memory is full."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, PermissionError) and error.filename:
        return UserError(f"{error.filename}: {error.strerror}.")
    if "RESOURCE_EXHAUSTED" in str(error):
        what = str(error).splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2].rstrip(".") or "memory is full"
        return UserError(f"{what}. Fewer --num-seeds or --grid values, a smaller --batch-size or network need less.")
    return None


def parse(args_class: type[A], presets: dict[str, dict], argv: Sequence[str]) -> A:
    """Arguments from defaults, then the environment's preset, then the command line; or, with --resume, from the run's
    `config.json`. Raises UserError for what cannot be used."""
    without_help = [word for word in argv if word not in ("-h", "--help")]
    if sum(word.partition("=")[0] == "--grid" for word in argv) > 1:  # the last would win, without a word
        raise UserError("--grid is given twice; write all after one: --grid alpha=1,3 discount=0.9,0.99")
    given = command_line(args_class, without_help, args_class())
    if given.resume is not None:
        return _resumed_args(args_class, argv, given.resume)
    name = _preset_name(given.env)
    preset = presets.get(name, {})
    for unknown in preset.keys() - typing.get_type_hints(args_class).keys():
        raise UserError(f"the preset of {name} has {unknown}, which Args does not; is it another algorithm's?")
    args = command_line(args_class, argv, args_class(**preset))
    if not any(word.partition("=")[0] in ("--log-every", "--log_every") for word in argv):
        args = _with_log_interval(args)
    args.check()
    if args.dataset is None and args.env not in BANDITS and not d4rl.resolve(args.env):
        resolve_name(args.env, args.task)  # before anything is said about it
    values = " ".join(f"{key}={getattr(args, key)}" for key in preset)
    say(f"preset  {name}: {values}" if values else f"preset  none for {name}: the script's defaults, untuned")
    return args


def args_for(args_class: type[A], presets: dict[str, dict], env: str, changes: dict[str, Any]) -> A:
    """The arguments that `--env` gives on the command line, with these changes on top. Raises UserError for a value of
    the wrong type."""
    args = plain(args_class(**{"env": env} | presets.get(_preset_name(env), {}) | changes))
    check_types(args)
    return args if "log_every" in changes else _with_log_interval(args)


def prepare(args: A) -> A:
    """The first thing of every `main`: arguments and devices checked, with an interval if none was asked for; compiled
    programs are kept for the next start. Raises UserError."""
    args = plain(args)
    check_types(args)
    _check_script(type(args))
    if args.resume is not None:
        _check_resumed(args, args.resume)
    host()  # or one line that says why there is none, before data are looked for
    keep_compiled_programs()
    args = args if args.log_every is not None else _with_log_interval(args)
    args.check()
    return args


def _check_script(args_class: type) -> None:
    """Raises UserError for a changed copy that has kept its name: its runs would be taken for the original's."""
    script = script_of(args_class).resolve()
    original = Path(__file__).resolve().parent.parent / script.name
    if original.exists() and original != script:
        raise UserError(f"{script} has the name of {original}, whose runs its own would be taken for; rename it.")


def _with_log_interval(args: A) -> A:
    """An interval that divides what is asked for. On a CPU, large networks take seconds per update: short dispatches
    keep progress lively."""
    usual = args.log_every or (100 if backend() == "cpu" else 5_000)
    interval = math.gcd(usual, args.steps, args.eval_every, args.save_every) or usual
    if interval * 10 <= min(usual, args.steps):
        say(f"NOTE    --log-every {interval}: --steps, --eval-every and --save-every share no more, and it is slower")
    return dataclasses.replace(args, log_every=interval)


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
        flags = [flag_of(x.name) for x in dataclasses.fields(args_class)]
        close = difflib.get_close_matches(unknown[0], flags, n=1, cutoff=0.65)  # --lr is not --grid
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


# -------------------------------------------------------------------------------------------------- from a run to Args


def read_config(directory: str | Path) -> dict:
    """config.json of a run. Raises UserError if there is none or if it is not one."""
    folder = expanded(directory)
    try:
        config = json.loads((folder / "config.json").read_text())
        whole = config["dataset"].keys() >= {"name", "source", "sha256", "observation_dim", "action_dim"}
        if isinstance(config["algo"], str) and isinstance(config["args"], dict) and whole:
            return config
    except FileNotFoundError:
        raise UserError(f"{folder}: there is no config.json, so this is not a run directory.") from None
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
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
        if not fits(value, hints[name]):
            raise UserError(f"{directory}: config.json has {value!r} for {flag_of(name)}.")
    return args_class(**values)


def _resumed_args(args_class: type[A], argv: Sequence[str], directory: str) -> A:
    args = command_line(args_class, argv, _saved_args(args_class, os.path.expanduser(directory)))
    args.check()
    return args


def _saved_args(args_class: type[A], directory: str) -> A:
    try:
        return args_of(args_class, directory)
    except UserError as error:
        raise UserError(f"--resume {error}") from None


def _check_resumed(args: Args, directory: str) -> None:
    """Raises UserError for what cannot change, and for a run that has nothing to do."""
    saved = _saved_args(type(args), directory)
    for field in dataclasses.fields(args):
        before, flag = getattr(saved, field.name), flag_of(field.name)
        if getattr(args, field.name) != before and field.name not in MAY_CHANGE_ON_RESUME:
            raise UserError(f"--resume takes {flag} from the run ({before}); start a new run to change it.")
    if (Path(directory) / "result.json").exists() and args.steps <= saved.steps:
        raise UserError(f"--resume {directory}: this run has ended; larger --steps would go on.")
