"""Pictures of a study: the policies on a bandit, learning curves, the effect of random actions, what a critic believes.

`bandit` trains scripts on a 2-D bandit with their presets and draws the data, and each policy's actions early and late
in training. `curves` and `corruption` draw finished runs, all below a folder. `values` maps Q of the data's actions
over a maze, by the last checkpoint of each run: where the policy is drawn to.

    python tools/plot.py bandit                                         # writes docs/bandit-comparison.png
    python tools/plot.py bandit --env bandit-corners --out docs/bandit-corners-comparison.png
    python tools/plot.py curves runs --out docs/curves                  # a picture per environment and task
    python tools/plot.py corruption runs --out docs/corruption.png
    python tools/plot.py values runs/antmaze-large-navigate-task1__* --out docs/values.png
"""

import importlib
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import shared
from shared import PICTURES, Parser, Run, check_output, flags_text, pair, read_runs, same_settings, split, titles

from common import UserError
from common.args import keep_compiled_programs, one_line_errors
from common.data.bandits import BANDITS
from common.plots import COLORS, draw_maze, pyplot, save_figure
from common.system import progress_bar, say

# Okabe and Ito's colours, which most colour-blind people can tell apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", ":", "-.")
CHUNKS, EARLY = 20, 2  # training in so many parts; "early" is after the second
NUM_ACTIONS = 1_000
NUM_TRANSITIONS = 50_000

# -------------------------------------------------------------------------------------------------------- finished runs


def plain(words: str, width: int) -> str:
    """Text of a run for matplotlib: in lines, without formulas and signs that cannot be printed."""
    return textwrap.fill("".join(sign for sign in words if sign.isprintable()).replace("$", r"\$"), width)


def look(run: Run, lines: list[list[Run]]) -> dict[str, Any]:
    """Label of a line, colour of its algorithm, the same in every picture, and a dash for each of the algorithm's lines
    in this one. The label has the values in which the algorithm's lines differ, and the number of seeds."""
    same = [seeds for seeds in lines if seeds[0].algo == run.algo]
    differs = [
        x for x in run.args if len({str(seeds[0].args.get(x)) for seeds in same}) > 1 and x not in shared.MEASURED
    ]
    index, seeds = next((i, seeds) for i, seeds in enumerate(same) if run in seeds)
    count = len({other.seed for other in seeds})
    words = [run.title, flags_text({x: run.args[x] for x in differs}), f"{count} seed{'s' * (count > 1)}"]
    color = PALETTE[[*titles(), run.algo].index(run.algo) % len(PALETTE)]
    return {"color": color, "ls": DASHES[index % len(DASHES)], "label": plain(", ".join(filter(None, words)), 36)}


def finish(axes: Any, run: Run, x_label: str, title: str) -> None:
    axes.set(xlabel=x_label, ylabel=shared.METRICS[run.metric])
    if run.metric == "success":
        axes.set_ylim(-3, 103)
    axes.set_title(plain(title, 64), fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2, handlelength=3, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def draw_curves(runs: list[Run], folder: Path) -> Path:
    """Scores over updates in one environment: a thin line per seed, a thick one for their mean. There is a panel for
    each dataset, and for the preset's size and all other sizes, as there are tables in a report. Returns the file."""
    panels = [same_settings(x) for x in split(runs, lambda run: (run.place, run.data, run.metric, run.preset_size))]
    heights = [3.2 + 0.25 * len(lines) for lines in panels]
    options = {"height_ratios": heights, "figsize": (6, sum(heights)), "layout": "constrained", "squeeze": False}
    figure, grid = pyplot().subplots(len(panels), **options)
    for axes, lines in zip(grid.flat, panels):
        for seeds in lines:
            shown = look(seeds[0], lines)
            for run in seeds if len(seeds) > 1 else []:
                axes.plot(list(run.curve), list(run.curve.values()), lw=0.7, alpha=0.4, **shown | {"label": None})
            steps = sorted(set.intersection(*(set(run.curve) for run in seeds)))
            axes.plot(steps, [np.mean([run.curve[step] for run in seeds]) for step in steps], lw=2.2, **shown)
        axes.xaxis.set_major_formatter(pyplot().matplotlib.ticker.EngFormatter(sep=""))
        run = lines[0][0]
        size = "the preset's size" if run.preset_size else "other sizes"
        finish(axes, run, "updates", f"{run.place}; data: {run.data}; {size}")
    path = folder / f"{picture_name(runs[0])}.png"
    check_output(path, PICTURES)
    save_figure(figure, path, 100)
    return path


def picture_name(run: Run) -> str:
    """The name of an environment's picture."""
    return re.sub(r"\W+", "-", run.place)[:100].strip("-")


def draw_corruption(runs: list[Run], path: Path) -> None:
    """The score over the share of random actions in the data, a panel per environment: a dot per seed, and a line
    through the means. Raises UserError if there are no runs on data with random actions."""
    places = list(dict.fromkeys(run.place for run in runs if run.random_share))
    if not places:
        raise UserError("no run is on data with random actions (common.data.collect ENV --p-random-action P).")
    figure, panels = pyplot().subplots(1, len(places), figsize=(4.6 * len(places), 3.6), squeeze=False)
    for axes, place in zip(panels[0], places):
        here = [run for run in runs if run.place == place]
        lines = split(here, lambda run: (run.algo, flags_text(run.changed), without_share(run)))
        lines = [line for line in lines if any(run.random_share for run in line)]
        for i, line in enumerate(lines):
            line.sort(key=lambda run: run.random_share)
            shown = look(line[0], lines)
            if len({without_share(other[0]) for other in lines}) > 1:
                shown["label"] += plain(f", {without_share(line[0])}", 36)
            x = np.array([100 * run.random_share + 0.5 * i for run in line])  # beside the other lines
            y = np.array([run.score for run in line])
            axes.plot(x, y, "o", ms=3, alpha=0.5, color=shown["color"])
            axes.plot(np.unique(x), [y[x == share].mean() for share in np.unique(x)], lw=1.8, **shown)
        axes.set_xticks(sorted({100 * run.random_share for run in here}))
        finish(axes, here[0], "random actions in the data, %", f"{place}; data: collected here, not official")
    save_figure(figure, path, 150, bbox_inches="tight")


def without_share(run: Run) -> str:
    """What the data are, but for the share of random actions."""
    return re.sub(r", \d+% random actions|, sha256 \w+", "", run.data)


# ------------------------------------------------------------------------------------------------------------- policies


def policy_actions(name: str, env: str, seed: int, bar: Any) -> dict[int, np.ndarray]:
    """Trains one script with its preset. Returns updates -> actions (NUM_ACTIONS, 2) of the policy, early and late."""
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

    key = jax.random.PRNGKey(seed)
    state, buffer, actions = jax.jit(agent.init)(key), make_buffer(dataset.arrays), {}
    observations = jnp.ones((NUM_ACTIONS, dataset.observation_dim))
    for chunk in range(1, CHUNKS + 1):
        state = jax.block_until_ready(train(state, buffer))
        bar.update()
        if chunk in (EARLY, CHUNKS):
            actions[chunk * (args.steps // CHUNKS)] = np.asarray(jax.jit(agent.act)(state, observations, key))
    return actions


def draw_bandit(env: str, seed: int, names: list[str], out: Path) -> None:
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
    with progress_bar("train", CHUNKS * len(names), "part") as bar:
        for column, name in zip(axes.T[1:], names):
            for panel, (step, actions) in zip(column, policy_actions(name, env, seed, bar).items()):
                panel.scatter(*actions.T, s=3, c=COLORS["policy"], alpha=0.6)
                panel.set_xlabel(f"{step:,} updates")
            column[0].set_title(titles()[name])
    figure.tight_layout()
    save_figure(figure, out, 110)


def draw_values(runs: list[Path], seed: int | None, values: dict[str, Any], out: Path) -> None:
    """The mean Q of the data's transitions in each place of the maze, one picture per run, all of the same colours.
    seed, values: which one of several members of a run. Raises UserError for a run that is not of a maze."""
    import jax

    from common.buffers import make_buffer, sample
    from common.checkpoints import load_policy

    plt, maps = pyplot(), []
    for run in runs:
        policy = load_policy(run, seed, **values)
        dataset = importlib.import_module(type(policy.args).__module__).load(policy.args)
        env = dataset.make_env()
        if not env.has_wrapper_attr("maze_map"):
            raise UserError(f"{run}: {dataset.name} is not a maze with a map.")
        batch = sample(make_buffer(dataset.arrays), jax.random.PRNGKey(0), NUM_TRANSITIONS)
        maps.append((policy, env, np.asarray(batch["observations"])[:, :2], np.asarray(q_of(policy, batch))))
    low, high = np.percentile([q for *_, q in maps], [1, 99])
    figure, axes = plt.subplots(1, len(maps), figsize=(5 * len(maps), 3.8), squeeze=False, layout="constrained")
    for panel, (policy, env, positions, q) in zip(axes.flat, maps):
        metres = np.maximum(np.ptp(positions, axis=0).astype(int), 1)  # one place is about a metre wide
        drawn = panel.hexbin(*positions.T, C=q, gridsize=metres, vmin=low, vmax=high, cmap="viridis", linewidths=0.2)
        draw_maze(plt, panel, env)
        title = titles().get(type(policy.args).__module__, run.name)
        panel.set(title=f"{title}, seed {policy.args.seed}, {policy.step:,} updates", aspect="equal")
    figure.colorbar(drawn, ax=axes, label="Q of the data's actions, mean over critics", shrink=0.8)
    save_figure(figure, out, 110)


def q_of(policy: Any, batch: dict[str, Any]) -> Any:
    """Q (B,) of a batch's transitions, mean over the ensemble: what the script's critic loss reports of each alone."""
    import jax

    def of_one(transition):
        batch = jax.tree.map(lambda x: x[None], transition)
        critic = policy.state.params["critic"]
        return policy.agent.losses["critic"](critic, policy.state, batch, jax.random.PRNGKey(0))[1]["train/q_mean"]

    return jax.jit(jax.vmap(of_one))(batch)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    pictures = parser.add_subparsers(dest="picture", required=True)
    bandit = pictures.add_parser("bandit", help="policies on a bandit")
    bandit.add_argument("--env", choices=list(BANDITS), default="bandit")
    bandit.add_argument("--scripts", nargs="+", choices=list(titles()), default=list(titles()))
    bandit.add_argument("--seed", type=int, default=0)
    bandit.add_argument("--out", type=Path, default=Path("docs/bandit-comparison.png"))
    curves = pictures.add_parser("curves", help="learning curves of finished runs")
    corruption = pictures.add_parser("corruption", help="score over the share of random actions in the data")
    for finished, out in ((curves, "curves"), (corruption, "corruption.png")):
        finished.add_argument("runs", type=Path, help="folder with run directories, at any depth")
        finished.add_argument("--out", type=Path, default=Path(out))
    values = pictures.add_parser("values", help="what a critic believes of the places in a maze")
    values.add_argument("runs", type=Path, nargs="+", help="run directories")
    values.add_argument("--seed", type=int, help="of runs with several seeds, this one (the first)")
    values.add_argument("--grid", nargs="+", type=pair, default=[], help="of runs with a grid, this one: alpha=3")
    values.add_argument("--out", type=Path, default=Path("values.png"))
    args = parser.parse_args(argv)
    if args.picture != "curves":
        check_output(args.out, PICTURES)
    if args.picture == "bandit":
        keep_compiled_programs()
        draw_bandit(args.env, args.seed, args.scripts, args.out)
    elif args.picture == "values":
        draw_values(args.runs, args.seed, dict(args.grid), args.out)
    else:
        runs, left_out = read_runs([args.runs])
        if not runs:
            raise UserError(f"none of the {len(left_out)} run directories in {args.runs} is finished.")
        if args.picture == "corruption":
            draw_corruption(runs, args.out)
        for here in split(runs, picture_name) if args.picture == "curves" else []:
            draw_curves(here, args.out)
    say(str(args.out))


if __name__ == "__main__":
    with one_line_errors("plot"):
        main()
