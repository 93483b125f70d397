"""Pictures of a study: the policies on a bandit, learning curves, the effect of random actions.

`bandit` trains scripts on a 2-D bandit with their presets and draws the data, and each policy's actions early and late
in training. `curves` and `corruption` draw finished runs, all below a folder.

    python tools/plot.py bandit                                         # writes docs/bandit-comparison.png
    python tools/plot.py bandit --env bandit-corners --out docs/bandit-corners-comparison.png
    python tools/plot.py curves runs --out docs/curves                  # a picture per environment and task
    python tools/plot.py corruption runs --out docs/corruption.png
"""

import importlib
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shared
from shared import PICTURES, Parser, Run, check_output, flags_text, line, read_runs, same_settings, split, titles

from common import UserError
from common.args import keep_compiled_programs, one_line_errors
from common.data.bandits import BANDITS
from common.plots import COLORS, pyplot, save_figure
from common.system import progress_bar, say

# Okabe and Ito's colours, which most colour-blind people can tell apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", ":", "-.")
CHUNKS, EARLY = 20, 2  # training in so many parts; "early" is after the second
NUM_ACTIONS = 1_000


def plain(words: str, width: int) -> str:
    """Text of a run for matplotlib: in lines, without formulas and signs that cannot be printed."""
    return textwrap.fill(line(words).replace("$", r"\$"), width)


def look(seeds: list[Run], lines: list[list[Run]]) -> dict[str, Any]:
    """Label of a line, colour of its algorithm, the same in every picture, and a dash for each of the algorithm's lines
    in this one. The label has the values and the data in which lines differ, and the number of seeds."""
    run, same = seeds[0], [other for other in lines if other[0].algo == seeds[0].algo]
    differs = [x for x in run.args if len({str(other[0].args.get(x)) for other in same}) > 1]
    count = len({each.seed for each in seeds})
    words = [run.title, flags_text({x: run.args[x] for x in differs if x not in shared.MEASURED})]
    words += [f"{count} seed{'s' * (count > 1)}"]
    words += [without_share(run)] * (len({without_share(other[0]) for other in lines}) > 1)
    color = PALETTE[[*titles(), run.algo].index(run.algo) % len(PALETTE)]
    dash = DASHES[same.index(seeds) % len(DASHES)]
    return {"color": color, "ls": dash, "label": plain(", ".join(filter(None, words)), 36)}


def finish(axes: Any, run: Run, x_label: str, title: str) -> None:
    axes.set(xlabel=x_label, ylabel=shared.METRICS[run.metric])
    if run.metric == "success":
        axes.set_ylim(-3, 103)
    axes.set_title(plain(title, 64), fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2, handlelength=3, loc="upper center", bbox_to_anchor=(0.5, -0.26))


def draw_lines(axes: Any, lines: list[list[Run]], points: Callable[[Run], dict[Any, float]]) -> None:
    """A thin line per run through its points (x -> score), or a dot, and a thick line through the means."""
    for seeds in lines:
        shown, found = look(seeds, lines), [points(run) for run in seeds]
        for curve in found if len(found) > 1 else []:
            thin = {"lw": 0.7, "alpha": 0.4, "marker": "o" * (len(curve) == 1), "ms": 3, "label": None}
            axes.plot(list(curve), list(curve.values()), **shown | thin)
        at = sorted(set().union(*found))
        axes.plot(at, [np.mean([curve[x] for curve in found if x in curve]) for x in at], lw=2.2, **shown)


def draw_curves(runs: list[Run], folder: Path) -> Path:
    """Scores over updates in one environment. There is a panel for each dataset, and for the preset's size and all
    other sizes, as there are tables in a report. Returns the file."""
    panels = [same_settings(x) for x in split(runs, lambda run: (run.place, run.data, run.metric, run.other_size))]
    heights = [3.2 + 0.25 * len(lines) for lines in panels]
    options = {"height_ratios": heights, "figsize": (6, sum(heights)), "layout": "constrained", "squeeze": False}
    figure, grid = pyplot().subplots(len(panels), **options)
    for axes, lines in zip(grid.flat, panels):
        draw_lines(axes, lines, lambda run: run.curve)
        axes.xaxis.set_major_formatter(pyplot().matplotlib.ticker.EngFormatter(sep=""))
        run = lines[0][0]
        size = "other sizes" if run.other_size else "the preset's size"
        finish(axes, run, "updates", f"{run.place}; data: {run.data}; {size}")
    path = folder / f"{picture_name(runs[0])}.png"
    check_output(path, PICTURES)
    save_figure(figure, path, 100)
    return path


def picture_name(run: Run) -> str:
    """The name of an environment's picture."""
    return re.sub(r"\W+", "-", run.place)[:100].strip("-")


def draw_corruption(runs: list[Run], path: Path) -> None:
    """The score over the share of random actions in the data, a panel per environment. Raises UserError if there are no
    runs on data with random actions."""
    places = list(dict.fromkeys(run.place for run in runs if run.random_share))
    if not places:
        raise UserError("no run is on data with random actions (common.data.collect ENV --p-random-action P).")
    figure, panels = pyplot().subplots(1, len(places), figsize=(4.6 * len(places), 3.6), squeeze=False)
    for axes, place in zip(panels[0], places):
        here = [run for run in runs if run.place == place]
        lines = split(here, lambda run: (run.algo, flags_text(run.changed), without_share(run)))
        lines = [alike for alike in lines if any(run.random_share for run in alike)]
        draw_lines(axes, lines, lambda run: {100 * run.random_share: run.score})
        axes.set_xticks(sorted({100 * run.random_share for run in here}))
        finish(axes, here[0], "random actions in the data, %", f"{place}; data: collected here, not official")
    save_figure(figure, path, 150, bbox_inches="tight")


def without_share(run: Run) -> str:
    """What the data are, but for the share of random actions."""
    return re.sub(r", \d+% random actions|, sha256 \w+", "", run.data)


def policy_actions(name: str, env: str) -> Iterator[tuple[int, np.ndarray]]:
    """Trains one script with its preset. Yields updates and actions (NUM_ACTIONS, 2) of the policy, early and late."""
    import jax
    import jax.numpy as jnp

    from common.buffers import make_buffer

    script = importlib.import_module(name)
    args = script.args_for(env)
    dataset = script.load(args)
    agent = script.make_agent(args, dataset.observation_dim, dataset.action_dim)

    @jax.jit
    def train(state, buffer):
        return script.train_chunk(agent, state, buffer, args.batch_size, args.steps // CHUNKS)[0]

    key = jax.random.PRNGKey(0)
    state, buffer = jax.jit(agent.init)(key), make_buffer(dataset.arrays)
    observations = jnp.ones((NUM_ACTIONS, dataset.observation_dim))
    with progress_bar(name, CHUNKS, "part") as bar:
        for chunk in range(1, CHUNKS + 1):
            state = jax.block_until_ready(train(state, buffer))
            bar.update()
            if chunk in (EARLY, CHUNKS):
                yield chunk * (args.steps // CHUNKS), np.asarray(jax.jit(agent.act)(state, observations, key))


def draw_bandit(env: str, names: list[str], out: Path) -> None:
    """Data in the first column, then one column per script: early above, late below."""
    script = importlib.import_module(names[0])
    data = script.load(script.args_for(env)).actions[:2_000]
    figure, axes = pyplot().subplots(2, 1 + len(names), figsize=(2.6 * (1 + len(names)), 5.6), squeeze=False)
    for panel in axes.flat:
        panel.scatter(*data.T, s=2, c=COLORS["data"])
        panel.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xticks=[], yticks=[], aspect="equal")
    axes[0, 0].set_title("data")
    axes[1, 0].remove()
    for center, reward in zip(*BANDITS[env][:2]):
        axes[0, 0].annotate(f"reward {reward:g}", center, (0, 14), textcoords="offset points", ha="center", fontsize=8)
    for column, name in zip(axes.T[1:], names):
        for panel, (step, actions) in zip(column, policy_actions(name, env)):
            panel.scatter(*actions.T, s=3, c=COLORS["policy"], alpha=0.6)
            panel.set_xlabel(f"{step:,} updates")
        column[0].set_title(titles()[name])
    figure.tight_layout()
    save_figure(figure, out, 110)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    pictures = parser.add_subparsers(dest="picture", required=True)
    bandit, *finished = (pictures.add_parser(name) for name in ("bandit", "curves", "corruption"))
    bandit.add_argument("--env", choices=list(BANDITS), default="bandit")
    bandit.add_argument("--scripts", nargs="+", choices=list(titles()), default=list(titles()))
    bandit.add_argument("--out", type=Path, default=Path("docs/bandit-comparison.png"))
    for picture, out in zip(finished, ("curves", "corruption.png")):
        picture.add_argument("runs", type=Path, nargs="+", help="folders with run directories, at any depth")
        picture.add_argument("--out", type=Path, default=Path(out))
    args = parser.parse_args(argv)
    if args.picture == "curves":
        if not (runs := read_runs(args.runs)[0]):
            raise UserError("none of these runs is finished.")
        for here in split(runs, picture_name):
            say(str(draw_curves(here, args.out)))
        return
    check_output(args.out, PICTURES)
    if args.picture == "bandit":
        keep_compiled_programs()
        draw_bandit(args.env, args.scripts, args.out)
    else:
        draw_corruption(read_runs(args.runs)[0], args.out)
    say(str(args.out))


if __name__ == "__main__":
    with one_line_errors("plot"):
        main()
