"""Plays the policy of a run's last checkpoint: `python tools/play.py RUN`.

    python tools/play.py runs/...                                       # the run's last evaluation again, all seeds
    python tools/play.py runs/... --episodes 500 --seed 1 --task 3      # more episodes, one seed, another task
    python tools/play.py runs/... --grid alpha=3                        # one combination of a run with --grid
    python tools/play.py runs/... --film film.gif --rollouts where.png  # of the first seed

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
from shared import PICTURES, Parser, check_output, positive

from common import UserError
from common.args import members, one_line_errors
from common.checkpoints import load_members
from common.data.bandits import BANDITS
from common.evaluation import Evaluator
from common.plots import draw_rollouts
from common.seeds import side_by_side
from common.system import expanded, replacing, say


def pair(word: str) -> tuple[str, float]:
    """Name and value of a word like alpha=3, which chooses a combination of a run with --grid."""
    name, value = word.split("=")
    return name.lstrip("-").replace("-", "_"), float(value)


class Filmed(gymnasium.Wrapper):
    """Writes every fourth frame of an episode as an animated picture. Raises UserError where none can be drawn."""

    def __init__(self, make_env: Callable[..., gymnasium.Env], path: Path):
        super().__init__(make_env(render_mode="rgb_array"))
        self.path, self.steps = path, 0
        self.frames: list[np.ndarray] = []

    def step(self, action: Any):
        if self.steps % 4 == 0:
            try:
                self.frames.append(np.asarray(self.env.render(), np.uint8))
            except Exception as error:  # each of MuJoCo's renderers has its own
                why = f"{type(error).__name__}: {error}"
                raise UserError(f"--film cannot be made here ({why}); try MUJOCO_GL=egl or osmesa.") from None
        self.steps += 1
        result = super().step(action)
        if result[2] or result[3]:
            import imageio.v3  # comes with ogbench, and only films need it

            with replacing(self.path) as temporary:
                imageio.v3.imwrite(temporary, np.stack(self.frames), duration=40, loop=0)
        return result


def play(argv: list[str]) -> dict[str, Any]:
    """Plays and draws what the arguments ask for. Returns the evaluation's results (common/evaluation.py)."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=expanded, help="directory of the run")
    parser.add_argument("--episodes", type=positive, help="per seed (the run's --eval-episodes)")
    parser.add_argument("--task", type=int, help="OGBench task, 1 to 5 (the run's)")
    parser.add_argument("--seed", type=int, help="one of the run's seeds (all)")
    parser.add_argument("--grid", nargs="+", type=pair, default=[], help="a combination of a run with --grid: alpha=3")
    parser.add_argument("--workers", type=positive, help="processes that run environments (one per core)")
    parser.add_argument("--film", type=Path, metavar="FILE.gif", help="film of the first episode (needs OpenGL)")
    parser.add_argument("--rollouts", type=Path, metavar="FILE.png", help="where episodes went in a maze or a bandit")
    parser.add_argument("--script", type=Path, help="file of the algorithm, if it is not at the project's root")
    args = parser.parse_args(argv)
    for path, kinds in ((args.rollouts, PICTURES), (args.film, ("gif",))):
        if path:
            check_output(path, kinds)
    module, trained, state, step = load_members(args.run, args.script)

    changes: dict[str, Any] = {"data": "none", "task": trained.task if args.task is None else args.task}
    dataset = module.load(dataclasses.replace(trained, **changes))
    data = module.load(trained).actions if dataset.name in BANDITS else None
    played = {
        i: member
        for i, member in enumerate(members(trained))
        if args.seed in (None, member.seed) and dict(args.grid).items() <= member.values.items()
    }
    if not played:
        raise UserError(f"{args.run} has {'; '.join(member.name for member in members(trained))}.")
    state = jax.tree.map(lambda x: x[np.array(list(played))], state)

    def agent_of(args):
        return module.make_agent(args, dataset.observation_dim, dataset.action_dim)

    *_, act = side_by_side(trained, agent_of)
    seeds, episodes = [member.seed for member in played.values()], args.episodes or trained.eval_episodes
    with Evaluator(dataset.make_env, act, seeds, episodes, args.workers) as evaluate:
        results = evaluate(state, step)
    assert results is not None  # nothing asks for a stop
    if dataset.reference:
        low, high = dataset.reference
        results["normalized"] = 100 * (results["return"] - low) / (high - low)

    say(f"{module.__name__} on {dataset.name}{f' task {dataset.task}' * bool(dataset.task)} after {step:,} updates")
    for i, member in enumerate(played.values()):
        figures = {name: np.asarray(x[i]) for name, x in results.items() if name != "paths"}
        means = (f"{name} {x.mean():.4g} (s.e. {x.std() / np.sqrt(len(x)):.2g})" for name, x in figures.items())
        say(f"{member.name}: {episodes} episodes, {', '.join(means)}")
    if args.film:
        make_env = functools.partial(Filmed, dataset.make_env, args.film)
        with Evaluator(make_env, act, seeds[:1], 1, 1) as evaluate:
            evaluate(jax.tree.map(lambda x: x[:1], state), step)
        say(f"see     {args.film}")
    if args.rollouts:
        if not draw_rollouts(args.rollouts, dataset.name, dataset.task, dataset.make_env, results["paths"], data):
            raise UserError(f"--rollouts: {dataset.name} is neither a bandit nor a maze with a map.")
        say(f"see     {args.rollouts}")
    return results


if __name__ == "__main__":
    with one_line_errors("play"):
        play(sys.argv[1:])
