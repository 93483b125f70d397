"""Pictures of a study: the policies on a bandit, learning curves, the effect of random actions, what a critic believes.

`bandit` trains scripts on a 2-D bandit with their presets and draws the data, and each policy's actions early and late
in training. `curves` and `corruption` draw finished runs, all below a folder. `values` maps Q of the data's actions
over a maze, by the last checkpoint of each run: where the policy is drawn to.

    python tools/plot.py bandit                                         # writes docs/bandit-comparison.png
    python tools/plot.py bandit --env bandit-corners --out docs/bandit-corners-comparison.png
    python tools/plot.py curves runs --out docs/curves                  # a picture per environment, task and dataset
    python tools/plot.py corruption runs --out docs/corruption.png
    python tools/plot.py values runs/antmaze-large-navigate-task1__* --out docs/values.png
"""

import importlib
import itertools
import re
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from shared import PICTURES, Parser, Run, blocks, check_output, flags_text, read_runs, split, titles, varied

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


def file_name(run: Run, taken: Collection[str], folder: str = "") -> str:
    """A name for the curves of a run's problem and size, which is not among `taken`."""
    words = f"{run.place} {run.data} {flags_text(run.size)}".replace("%", " percent").replace(",", "")
    name = folder + re.sub(r"[^a-zA-Z0-9]+", "-", words)[:150].strip("-")
    return next(file for i in itertools.count(1) if (file := f"{name}{f'-{i}' * (i > 1)}.png") not in taken)


def look(run: Run, lines: list[Run]) -> dict[str, Any]:
    """Colour of the algorithm, the same in every picture, and a dash for each of its lines in this one."""
    index = [*titles(), run.algo].index(run.algo)
    dashes = list(dict.fromkeys(flags_text(other.changed) for other in lines if other.algo == run.algo))
    dash = DASHES[dashes.index(flags_text(run.changed)) % len(DASHES)]
    return {"color": PALETTE[index % len(PALETTE)], "ls": dash}


def label(run: Run, lines: list[Run]) -> str:
    """Algorithm, the values in which it differs from its other lines, and the number of seeds."""
    own = {name: run.args.get(name) for name in varied([other for other in lines if other.algo == run.algo])}
    seeds = f"{len(run.scores)} seed{'s' * (len(run.scores) > 1)}"
    return plain(", ".join(filter(None, [run.title, flags_text(own), seeds])), 36)


def draw_curves(runs: list[Run], path: Path) -> None:
    """Scores over updates, of one problem: a thin line per seed, a thick one for their mean."""
    figure, axes = pyplot().subplots(figsize=(6, 3.6))
    for run in runs:
        curves = list(run.curves.values())
        for curve in curves if len(curves) > 1 else []:
            axes.plot(list(curve), list(curve.values()), lw=0.7, alpha=0.4, **look(run, runs))
        steps = sorted(set.intersection(*map(set, curves)))
        mean = [np.mean([curve[step] for curve in curves]) for step in steps]
        axes.plot(steps, mean, lw=2.2, label=label(run, runs), **look(run, runs))
    axes.xaxis.set_major_formatter(pyplot().matplotlib.ticker.EngFormatter(sep=""))
    finish(axes, runs[0], "updates", runs[0].data)
    save_figure(figure, path, 100, bbox_inches="tight")


def draw_corruption(runs: list[Run], path: Path) -> None:
    """The score over the share of random actions in the data, a panel per environment: a dot per seed, and a line
    through the means. Raises UserError if there are no runs on data with random actions."""
    places = {run.place: None for run in runs if run.random_share}
    if not places:
        raise UserError("no run is on data with random actions (common.data.collect ENV --p-random-action P).")
    figure, panels = pyplot().subplots(1, len(places), figsize=(4.6 * len(places), 3.6), squeeze=False)
    for axes, place in zip(panels[0], places):
        here = [run for run in runs if run.place == place and run.dataset.get("collection")]
        lines = split(here, lambda run: (run.algo, flags_text(run.changed), without_share(run)))
        for i, line in enumerate(lines):
            line.sort(key=lambda run: run.random_share)
            x = np.array([100 * run.random_share for run in line]) + 0.6 * (i - (len(lines) - 1) / 2)  # side by side
            other = f", {without_share(line[0])}" if len(set(map(without_share, here))) > 1 else ""
            shown = look(line[0], here) | {"label": label(line[0], here) + plain(other, 36)}
            axes.plot(x, [np.mean(list(run.scores.values())) for run in line], lw=1.8, **shown)
            for position, run in zip(x, line):
                axes.plot([position] * len(run.scores), run.scores.values(), "o", ms=3, alpha=0.5, color=shown["color"])
        axes.set_xticks(sorted({100 * run.random_share for run in here}))
        finish(axes, here[0], "random actions in the data, %", "collected here, not official")
    save_figure(figure, path, 150, bbox_inches="tight")


def without_share(run: Run) -> str:
    """What the data are, but for the share of random actions."""
    return re.sub(r", \d+% random actions|, sha256 \w+", "", run.data)


def finish(axes: Any, run: Run, x_label: str, data: str) -> None:
    axes.set(xlabel=x_label, ylabel=run.unit)
    if run.metric == "success":
        axes.set_ylim(-3, 103)
    axes.set_title(plain(f"{run.place}; data: {data}", 64), fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2, handlelength=3, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def draw_runs(picture: str, folder: Path, out: Path) -> None:
    """`curves`: a picture per problem and size in the folder `out`; `corruption`: one picture."""
    groups, _, left_out = read_runs([folder])
    if not groups:
        raise UserError(f"none of the {len(left_out)} run directories in {folder} is finished.")
    if picture == "corruption":
        draw_corruption(groups, out)
        return say(str(out))
    taken: list[str] = []
    for problem in blocks(groups):
        taken.append(file_name(problem[0], taken))
        check_output(out / taken[-1])
        draw_curves(problem, out / taken[-1])
        say(str(out / taken[-1]))


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

    state, buffer, actions = jax.jit(agent.init)(jax.random.PRNGKey(seed)), make_buffer(dataset.arrays), {}
    observations = jnp.ones((NUM_ACTIONS, dataset.observation_dim))
    for chunk in range(1, CHUNKS + 1):
        state = jax.block_until_ready(train(state, buffer))
        bar.update()
        if chunk in (EARLY, CHUNKS):
            key = jax.random.PRNGKey(seed)
            actions[chunk * (args.steps // CHUNKS)] = np.asarray(jax.jit(agent.act)(state, observations, key))
    return actions


def draw_bandit(env: str, seed: int, names: list[str], out: Path) -> None:
    """Data in the first column, then one column per script: early above, late below."""
    plt = pyplot()
    script = importlib.import_module(names[0])
    data = script.load(script.args_for(env)).actions[:2_000]
    figure, axes = plt.subplots(2, 1 + len(names), figsize=(2.6 * (1 + len(names)), 5.6), squeeze=False)
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
    say(str(out))


def draw_values(runs: list[Path], seed: int | None, values: dict[str, Any], out: Path) -> None:
    """The mean Q of the data's transitions in each place of the maze, one picture per run, all of the same colours.
    seed, values: which one of several members of a run. Raises UserError for a run that is not of a maze."""
    import jax

    from common.buffers import make_buffer, sample
    from common.checkpoints import load_policy

    plt, maps = pyplot(), []
    for run in runs:
        policy = load_policy(run, seed, **values)
        script = importlib.import_module(type(policy.args).__module__)
        dataset = script.load(policy.args)
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
        title = titles()[type(policy.args).__module__]
        panel.set(title=f"{title}, seed {policy.args.seed}, {policy.step:,} updates", aspect="equal")
        env.close()
    figure.colorbar(drawn, ax=axes, label="Q of the data's actions, mean over critics", shrink=0.8)
    save_figure(figure, out, 110)
    say(str(out))


def q_of(policy: Any, batch: dict[str, Any]) -> Any:
    """Q (B,) of a batch's transitions, mean over the ensemble: what the script's critic loss reports of each alone."""
    import jax

    def of_one(transition):
        batch = jax.tree.map(lambda x: x[None], transition)
        critic = policy.state.params["critic"]
        return policy.agent.losses["critic"](critic, policy.state, batch, jax.random.PRNGKey(0))[1]["train/q_mean"]

    return jax.jit(jax.vmap(of_one))(batch)


def pair(word: str) -> tuple[str, float]:
    """Name and value, of a word like alpha=3."""
    name, value = word.split("=")
    return name.lstrip("-").replace("-", "_"), float(value)


def main(argv: list[str] | None = None) -> None:
    parser = Parser("tools/plot.py", __doc__)
    pictures = parser.add_subparsers(dest="picture", required=True)
    bandit = pictures.add_parser("bandit", help="policies on a bandit")
    bandit.add_argument("--env", choices=list(BANDITS), default="bandit")
    bandit.add_argument("--scripts", nargs="+", choices=list(titles()), default=list(titles()))
    bandit.add_argument("--seed", type=int, default=0)
    bandit.add_argument("--out", type=Path, default=Path("docs/bandit-comparison.png"))
    curves = pictures.add_parser("curves", help="learning curves of finished runs")
    corruption = pictures.add_parser("corruption", help="score over the share of random actions in the data")
    for parser_of_runs, out in ((curves, Path("curves")), (corruption, Path("corruption.png"))):
        parser_of_runs.add_argument("runs", type=Path, help="folder with run directories, at any depth")
        parser_of_runs.add_argument("--out", type=Path, default=out)
    values = pictures.add_parser("values", help="what a critic believes of the places in a maze")
    values.add_argument("runs", type=Path, nargs="+", help="run directories")
    values.add_argument("--seed", type=int, help="of runs with several seeds, this one (the first)")
    values.add_argument(
        "--grid", nargs="+", type=pair, default=[], help="of runs with a grid, this combination: alpha=3"
    )
    values.add_argument("--out", type=Path, default=Path("values.png"))
    args = parser.parse_args(argv)
    if args.picture != "curves":
        check_output(args.out, PICTURES)
    if args.picture in ("curves", "corruption"):
        draw_runs(args.picture, args.runs, args.out)
    elif args.picture == "values":
        draw_values(args.runs, args.seed, dict(args.grid), args.out)
    else:
        keep_compiled_programs()
        draw_bandit(args.env, args.seed, args.scripts, args.out)


if __name__ == "__main__":
    with one_line_errors("plot"):
        main()
