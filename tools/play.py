"""Plays the policy of a run's last checkpoint: `python tools/play.py RUN`.

    python tools/play.py runs/...                                       # the run's last evaluation again, all seeds
    python tools/play.py runs/... --episodes 500 --seed 1 --task 3      # more episodes, one seed, another task
    python tools/play.py runs/... --grid alpha=3                        # one combination of a run with --grid
    python tools/play.py runs/... --film film.gif --rollouts where.png  # of the first seed
    python tools/play.py runs/... --pictures                            # draw the run's pictures anew

An episode depends only on the seed, the checkpoint's step and the episode's number, so the first ones are those of the
run's last evaluation. Another task has another start and goal; the policy still does what it was trained for.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
from shared import PICTURES, Parser, check_output, read_json

from common import UserError
from common.args import combination_name, members, one_line_errors, parse_grid, read_config
from common.checkpoints import load_members
from common.data.bandits import BANDITS
from common.evaluation import Evaluator
from common.plots import draw_rollouts, draw_run
from common.seeds import side_by_side
from common.system import expanded, replacing, say


class Filmed(gymnasium.Wrapper):
    """Writes every fourth frame of the first episode as an animated picture."""

    def __init__(self, env: gymnasium.Env, path: Path):
        super().__init__(env)
        self.path, self.steps = path, 0
        self.frames: list[np.ndarray] = []

    def step(self, action: Any):
        if self.steps % 4 == 0:
            self.frames.append(np.asarray(self.env.render()))
            if self.frames[0].ndim != 3:
                raise UserError("--film: this environment has no pictures.")
        self.steps += 1
        result = super().step(action)
        if result[2] or result[3]:
            import imageio.v3  # comes with ogbench, and only films need it

            with replacing(self.path) as temporary:
                imageio.v3.imwrite(temporary, np.stack(self.frames), duration=40, loop=0)
        return result


def make_filmed(make_env: Callable[..., gymnasium.Env], path: Path) -> gymnasium.Env:
    """The environment with a camera. Raises UserError if it cannot draw pictures here."""
    try:
        env = make_env(render_mode="rgb_array")
        env.reset(seed=0)
        env.render()
    except Exception as error:  # each of MuJoCo's renderers has its own
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"--film cannot be made here ({why}); without a screen, try MUJOCO_GL=egl or osmesa.") from None
    return Filmed(env, path)


def play(argv: list[str]) -> dict[str, Any]:
    """Plays and draws what the arguments ask for. Returns the evaluation's results (common/evaluation.py)."""
    parser = Parser("tools/play.py", __doc__)
    parser.add_argument("run", type=expanded, help="directory of the run")
    parser.add_argument("--episodes", type=int, help="per seed (the run's --eval-episodes)")
    parser.add_argument("--task", type=int, help="OGBench task, 1 to 5 (the run's)")
    parser.add_argument("--seed", type=int, help="one of the run's seeds (all)")
    parser.add_argument("--grid", nargs="+", help="combinations of a run with --grid: alpha=3 or alpha=1,3 (all)")
    parser.add_argument("--workers", type=int, help="processes that run environments (one per core)")
    parser.add_argument("--film", type=Path, metavar="FILE.gif", help="film of the first episode (needs OpenGL)")
    parser.add_argument("--rollouts", type=Path, metavar="FILE.png", help="where episodes went in a maze or a bandit")
    parser.add_argument("--pictures", action="store_true", help="draw the run's own pictures anew")
    parser.add_argument("--script", type=Path, help="file of the algorithm, if it is not at the project's root")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    args = parser.parse_args(argv)
    if args.pictures and (args.task, args.episodes, args.seed, args.grid) != (None, None, None, None):
        raise UserError("--pictures shows the run's own evaluation; leave --task, --episodes, --seed and --grid out.")
    if any(x is not None and x < 1 for x in (args.episodes, args.workers)):
        raise UserError("--episodes and --workers must be positive.")
    if args.rollouts:
        check_output(args.rollouts, PICTURES)
    if args.film:
        check_output(args.film, ("gif",))
    if args.pictures:
        try:
            result = read_json(args.run / "result.json")
        except (OSError, ValueError):
            raise UserError(f"{args.run}: there is no result.json, so the run has not ended well.") from None

    source = read_config(args.run)["dataset"]["source"]
    module, trained, state, step = load_members(args.run, args.script)
    task = trained.task if args.task is None else args.task
    changes: dict[str, Any] = {"data": "none", "task": task}
    dataset = module.load(dataclasses.replace(trained, **changes))
    if args.rollouts and dataset.name not in BANDITS and not dataset.make_env().has_wrapper_attr("maze_map"):
        raise UserError(f"--rollouts: {dataset.name} is neither a bandit nor a maze with a map.")
    data = module.load(trained).actions if source == "builtin" else None

    chosen = parse_grid(type(trained), args.grid or ())
    found = [
        (i, member)
        for i, member in enumerate(members(trained))
        if args.seed in (None, member.seed) and all(member.values.get(x) in values for x, values in chosen.items())
    ]
    there = {(name, value) for _, member in found for name, value in member.values.items()}
    if not found or any((name, value) not in there for name, values in chosen.items() for value in values):
        raise UserError(f"{args.run} has {'; '.join(member.name for member in members(trained))}.")
    indices, played = np.array([i for i, _ in found]), [member for _, member in found]
    state = jax.tree.map(lambda x: x[indices], state)

    def agent_of(args):
        return module.make_agent(args, dataset.observation_dim, dataset.action_dim)

    *_, act = side_by_side(trained, agent_of)
    seeds, episodes = [member.seed for member in played], args.episodes or trained.eval_episodes
    with Evaluator(dataset.make_env, act, seeds, episodes, args.workers, args.progress) as evaluate:
        results = evaluate(state, step)
    assert results is not None  # nothing asks for a stop
    if dataset.reference:
        low, high = dataset.reference
        results["normalized"] = 100 * (results["return"] - low) / (high - low)

    place = f"{dataset.name} task {dataset.task}" if dataset.task else dataset.name
    say(f"{module.__name__} on {place} after {step:,} updates")
    for i, member in enumerate(played):
        figures = {name: np.asarray(x[i]) for name, x in results.items() if name != "paths"}
        means = (f"{name} {x.mean():.4g} (s.e. {x.std() / np.sqrt(len(x)):.2g})" for name, x in figures.items())
        who = " ".join(filter(None, [combination_name(member.values), f"seed {member.seed}"]))
        say(f"{who}: {episodes} episodes, {', '.join(means)}")
    if args.film:
        make_env = functools.partial(make_filmed, dataset.make_env, args.film)
        with Evaluator(make_env, act, seeds[:1], 1, 1, args.progress) as evaluate:
            evaluate(jax.tree.map(lambda x: x[:1], state), step)
        say(f"see     {args.film}")
    if args.rollouts:
        draw_rollouts(args.rollouts, dataset.name, dataset.task, dataset.make_env, results["paths"], data)
        say(f"see     {args.rollouts}")
    if args.pictures:
        if not (drawn := draw_run(args.run, result, dataset.make_env, results["paths"], data)):
            raise UserError(f"{args.run}: nothing could be drawn.")
        say(f"see     {', '.join(str(args.run / name) for name in drawn)}")
    return results


if __name__ == "__main__":
    with one_line_errors("play"):
        play(sys.argv[1:])
