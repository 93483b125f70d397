"""--grid: values of a number that only enters arithmetic, trained side by side in one program, like seeds.

    --grid alpha=1,3,10 discount=0.99,0.995    # six combinations, each with all the seeds

What is trained side by side are the members. They are one leading axis of every array: all seeds of the first
combination, then those of the second, and so on; the last name changes fastest. Without --grid they are the seeds.
"""

import dataclasses
import difflib
import itertools
import typing
from typing import Any, NamedTuple

from common import UserError


class Member(NamedTuple):
    """What one index of the leading axis stands for."""

    values: dict[str, float]  # name -> value, as the flag of that name; empty without --grid
    seed: int


def members(args: Any) -> list[Member]:
    """Of a run with these arguments (cli.Args), in the order of the leading axis. Raises UserError as `combinations`
    does."""
    return [Member(values, args.seed + i) for values in combinations(args) for i in range(args.num_seeds)]


def single(args: Any, values: dict[str, Any]) -> Any:
    """The arguments of a run of one combination alone."""
    return dataclasses.replace(args, grid=None, **values)


def member_names(args: Any) -> list[str]:
    """A name for each member, which can be a folder's: seed1, alpha=3/seed1, with a single seed alpha=3. Empty for a
    run of one seed without --grid."""
    parts = [(combination_name(m.values), f"seed{m.seed}" * (args.num_seeds > 1)) for m in members(args)]
    return ["/".join(filter(None, part)) for part in parts]


def combination_name(values: dict[str, float]) -> str:
    """alpha=3,discount=0.99; empty without --grid."""
    return ",".join(f"{name}={value:.12g}" for name, value in values.items())


def combinations(args: Any) -> list[dict[str, float]]:
    """All combinations of the values in `args.grid`, name -> value; one without names if there is no grid. Raises
    UserError if a name or value cannot be in a grid, or is there twice."""
    axes = parse_grid(type(args), args.grid or ())
    found = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    if axes:
        single(args, {}).check()  # what is wrong without a grid is not its fault
    for values in found if axes else []:
        try:
            single(args, values).check()
        except UserError as error:
            raise UserError(f"--grid {combination_name(values)}: {error}") from None
    return found


def parse_grid(args_class: type, words: tuple[str, ...]) -> dict[str, list[float]]:
    """Name -> values, from words like alpha=1,3. Raises UserError for what is not one, says it twice, or names an
    argument that cannot be in a grid."""
    hints = typing.get_type_hints(args_class)
    arithmetic = [name for name, hint in hints.items() if float in (hint, *typing.get_args(hint))]
    axes: dict[str, list[float]] = {}
    for word in words:
        name, equals, listed = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not (name and equals):
            raise UserError(f"--grid {word}: write it as --grid alpha=1,3,10, without spaces in it.")
        if name not in hints:
            close = difflib.get_close_matches(name, arithmetic, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it can have {', '.join(arithmetic)}."
            raise UserError(f"--grid {word}: there is no {name}; {hint}")
        if name not in arithmetic:
            # A size or a choice makes another program.
            can, sweep = ", ".join(arithmetic), "tools/sweep.py, a run per value"
            raise UserError(f"--grid {word}: one program can have {can} in a grid; for {name} there is {sweep}.")
        try:
            values = [float(value) for value in listed.split(",")]
        except ValueError:
            raise UserError(f"--grid {word}: values are numbers with commas between them, as in {name}=1,3.") from None
        if name in axes or len({combination_name({name: value}) for value in values}) < len(values):
            raise UserError(f"--grid {' '.join(words)}: every name and every value may be there once.")
        axes[name] = values
    return axes


def results_by_combination(result: dict[str, Any]) -> list[tuple[dict[str, float], dict[str, Any]]]:
    """(values, result) of each combination, from a run's result.json: what a run with these values alone would have
    written there. Of a run without --grid, its own."""
    return [(part["values"], result | part) for part in result["grid"]] if "grid" in result else [({}, result)]
