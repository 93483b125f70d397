"""Plays the policy of a run again: `python tools/play.py RUN`.

    python tools/play.py runs/...                                       # the run's last evaluation, all seeds
    python tools/play.py runs/... --episodes 500 --seed 1 --task 3      # more episodes, one seed, another task
    python tools/play.py runs/... --grid alpha=3                        # one combination of a run with --grid
    python tools/play.py runs/... --film film.gif --rollouts where.png  # of the first seed
    python tools/play.py runs/... --pictures                            # curve.png and rollouts.png of the run anew

An episode depends on the seed, the checkpoint's step and its own number alone: the first ones are those of the run's
last evaluation. Another task has another start and goal; the policy still does what it was trained for.
"""

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.append(os.getcwd())  # one's own script may stand there

from common import UserError, cli, d4rl, d4rl_environments
from common.checkpoints import find_members, load_members
from common.datasets import load_dataset
from common.environments import BANDITS, Bandit, make_ogbench_env, make_user_env, resolve_name
from common.evaluation import Evaluator
from common.grid import combination_name, members, parse_grid
from common.plots import check_picture, draw_rollouts, draw_run, pyplot, save_film
from common.seeds import over_grid


@dataclasses.dataclass(frozen=True)
class Args:
    run: Annotated[str, tyro.conf.Positional]
    """directory of the run"""
    episodes: int | None = None
    """per seed; None is the run's --eval-episodes"""
    task: int | None = None
    """OGBench task, 1 to 5; None is the run's"""
    seed: int | None = None
    """which one of the run's seeds; None is all"""
    grid: tuple[str, ...] | None = None
    """which combinations of a run with --grid, alpha=3 or alpha=1,3; None is all"""
    workers: int | None = None
    """processes that run environments; None is one per core"""
    film: Path | None = None
    """animated GIF of the first episode (needs OpenGL; without a screen set MUJOCO_GL=egl)"""
    rollouts: Path | None = None
    """picture of where the episodes went, in a maze or on a bandit"""
    pictures: bool = False
    """draw the pictures of a run that has ended anew, in its directory"""
    progress: bool = True
    """show a progress bar on a terminal"""


def env_maker(config: dict[str, Any], task: int | None) -> Callable[..., gymnasium.Env]:
    """What makes the environment of a run, without its data. config: of config.json; task: None where there are none.
    Can be sent to another process, because it consists of functions of `common`."""
    name, source = config["dataset"]["name"], config["dataset"]["source"]
    if name in BANDITS:
        return functools.partial(Bandit, name)
    if task is not None:
        return functools.partial(make_ogbench_env, name, task)
    if known := d4rl.resolve(name, suggest=False):
        simulator, steps = "minari" if source == "minari" else "d4rl", d4rl.TASKS[known[0]].steps
        return functools.partial(d4rl_environments.make_env, known[0], simulator, steps)
    return functools.partial(make_user_env, name)


def play(args: Args) -> dict[str, Any]:
    """Plays and draws what `args` ask for. Returns the evaluation's results (common/evaluation.py).

    Raises UserError for what is not there or cannot be drawn."""
    config = cli.read_config(args.run)
    name = config["dataset"]["name"]
    has_tasks = config["dataset"]["task"] is not None
    if args.task is not None and not has_tasks:
        raise UserError(f"--task {args.task}: {name} has no tasks.")
    if args.pictures and (args.task, args.episodes, args.seed, args.grid) != (None, None, None, None):
        raise UserError("--pictures shows the run's own evaluation; leave --task, --episodes, --seed and --grid out.")
    if any(x is not None and x < 1 for x in (args.episodes, args.workers)):
        raise UserError("--episodes and --workers must be positive.")
    result = _read_result(Path(args.run)) if args.pictures else {}
    if args.pictures:
        pyplot()  # says at once what is missing
    for path, kinds in ((args.rollouts, None), (args.film, ("gif",))):
        if path:
            check_picture(Path(path), kinds)
    task = resolve_name(name, config["dataset"]["task"] if args.task is None else args.task)[1] if has_tasks else None
    make_env = env_maker(config, task)
    if args.rollouts and name not in BANDITS:
        with contextlib.closing(make_env()) as env:
            if not env.has_wrapper_attr("maze_map"):
                raise UserError(f"--rollouts: {name} is neither a bandit nor a maze with a map (Minari's have none).")

    agent_of, trained, state, step = load_members(args.run)
    chosen = parse_grid(type(trained), args.grid or ())
    kept = [word for word in trained.grid or () if not parse_grid(type(trained), (word,)).keys() & chosen.keys()]
    settings = dataclasses.replace(
        trained,
        seed=trained.seed if args.seed is None else args.seed, num_seeds=trained.num_seeds if args.seed is None else 1,
        grid=(*kept, *(args.grid or ())) or None,
        steps=step, capture_video=args.film is not None, progress=args.progress,
        eval_episodes=args.episodes or trained.eval_episodes, eval_workers=args.workers,
    )  # fmt: skip
    indices = [find_members(args.run, trained, member.seed, member.values)[0] for member in members(settings)]
    state = jax.tree.map(lambda x: x[jnp.array(indices)], state)
    *_, act = over_grid(settings, agent_of)
    with Evaluator(settings, make_env, act) as evaluate:
        results = evaluate(state, step).result()
    assert results is not None  # nobody asks for a stop
    if known := d4rl.resolve(name, suggest=False):
        results["normalized"] = d4rl.normalized(results["return"], d4rl.TASKS[known[0]].reference)

    cli.say(f"{config['algo']} on {name}{f' task {task}' if task else ''} after {step:,} updates")
    for i, member in enumerate(members(settings)):
        who = " ".join(filter(None, [combination_name(member.values), f"seed {member.seed}"]))
        cli.say(f"{who}: {settings.eval_episodes} episodes, {_means(results, i)}")
    data = load_dataset(name).actions if name in BANDITS else None
    if args.film and save_film(Path(args.film), results["film"]):
        cli.say(f"see     {args.film}")
    if args.rollouts:
        shown = {"env": name, "task": task} | ({"grid": [members(settings)[0]._asdict()]} if settings.grid else {})
        draw_rollouts(Path(args.rollouts), shown, make_env, results["paths"], data)
        cli.say(f"see     {args.rollouts}")
    if args.pictures:
        drawn = draw_run(Path(args.run), result, make_env, results, data, cli.say)
        if not drawn:
            raise UserError(f"{args.run}: nothing could be drawn.")
        cli.say(f"see     {', '.join(str(path) for path in drawn)}")
    return results


def _means(results: dict[str, Any], i: int) -> str:
    """Mean of each figure of seed i over episodes, and the standard error of that mean."""
    figures = {name: np.asarray(x[i]) for name, x in results.items() if name not in ("paths", "film")}
    return ", ".join(f"{name} {x.mean():.4g} (s.e. {x.std() / np.sqrt(len(x)):.2g})" for name, x in figures.items())


def _read_result(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / "result.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"{directory}: there is no result.json, so the run has not ended well.") from None


if __name__ == "__main__":
    with cli.one_line_errors("play"):
        play(cli.command_line(Args, sys.argv[1:], program="python tools/play.py"))
