"""Pictures of one study: the policies on a bandit, learning curves, the effect of random actions in the data, and
what a critic believes.

`bandit` trains every script that is there on a 2-D bandit with its preset and draws them side by side: the data, then
each policy's actions early and late in training. `curves` and `corruption` draw finished runs, all below a folder.
`values` maps Q of the data's actions over a maze, by the last checkpoint of each run: where the policy is drawn to.

    python tools/plot.py bandit                                         # writes docs/bandit-comparison.png
    python tools/plot.py bandit --env bandit-corners --out docs/bandit-corners-comparison.png
    python tools/plot.py bandit --scripts driftql idql --seed 1
    python tools/plot.py curves runs --out docs/curves                  # a picture per environment, task and dataset
    python tools/plot.py corruption runs --out docs/corruption.png
    python tools/plot.py values runs/antmaze-large-navigate-task1__* --out docs/values.png
"""

import functools
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from curves import draw_runs
from read_runs import TITLES, script_is_here
from shared import ROOT, Parser
from tqdm import tqdm

from common import UserError
from common.buffers import make_buffer, sample
from common.checkpoints import Policy, load_policy
from common.cli import algorithm_name, one_line_errors
from common.datasets import load_dataset
from common.devices import keep_compiled_programs
from common.environments import BANDITS
from common.plots import COLORS, check_picture, draw_maze, pyplot, save_figure

CHUNKS, EARLY = 20, 2  # training in so many parts; "early" is after the second
NUM_ACTIONS = 1_000
NUM_TRANSITIONS = 50_000


def policy_actions(name: str, env: str, seed: int, bar: tqdm) -> dict[int, np.ndarray]:
    """Trains one script on its preset. Returns updates -> (NUM_ACTIONS, 2) actions of the agent, early and late."""
    script = importlib.import_module(name)
    args, dataset = script.args_for(env), load_dataset(env)
    agent = script.make_agent(args, dataset.observation_dim, dataset.action_dim)

    @jax.jit
    def train(state, buffer):
        return script.train_chunk(agent, state, buffer, args.batch_size, args.steps // CHUNKS)[0]

    state, buffer, actions = agent.init(jax.random.PRNGKey(seed)), make_buffer(dataset), {}
    observations = jnp.ones((NUM_ACTIONS, dataset.observation_dim))
    for chunk in range(1, CHUNKS + 1):
        state = jax.block_until_ready(train(state, buffer))
        bar.update()
        if chunk in (EARLY, CHUNKS):
            actions[int(state.step)] = np.asarray(jax.jit(agent.act)(state, observations, jax.random.PRNGKey(seed)))
    return actions


def draw_bandit(env: str, seed: int, names: list[str], out: Path) -> None:
    """Data in the first column, then one column per script: early above, late below."""
    plt = pyplot()
    data = load_dataset(env).actions[:2_000]
    figure, axes = plt.subplots(2, 1 + len(names), figsize=(2.6 * (1 + len(names)), 5.6), squeeze=False)
    for panel in axes.flat:
        panel.scatter(*data.T, s=2, c=COLORS["data"])
        panel.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xticks=[], yticks=[], aspect="equal")
    axes[0, 0].set_title("data")
    axes[1, 0].remove()
    for center, reward in zip(*BANDITS[env][:2]):
        axes[0, 0].annotate(f"reward {reward:g}", center, (0, 14), textcoords="offset points", ha="center", fontsize=8)
    with tqdm(total=CHUNKS * len(names), dynamic_ncols=True) as bar:
        for column, name in zip(axes.T[1:], names):
            bar.set_description(name)
            for panel, (step, actions) in zip(column, policy_actions(name, env, seed, bar).items()):
                panel.scatter(*actions.T, s=3, c=COLORS["policy"], alpha=0.6)
                panel.set_xlabel(f"{step:,} updates")
            column[0].set_title(TITLES.get(name, name))
    figure.tight_layout()
    save_figure(figure, out, 110)
    print(out)


def draw_values(runs: list[Path], grid: list[str], out: Path) -> None:
    """The mean Q of the data's transitions in each place of the maze, one picture per run, all of the same colours.
    grid: the combination of runs that have one, alpha=3.

    Raises UserError for a run that is not of a maze.
    """
    plt, maps = pyplot(), []

    @functools.cache  # runs of one study share their data
    def data_and_batch(*where):
        data = load_dataset(*where)
        return data, sample(make_buffer(data), jax.random.PRNGKey(0), NUM_TRANSITIONS)

    for run in runs:
        policy = load_policy(run, None, **combination(grid))
        args = policy.args
        data, batch = data_and_batch(
            args.env, args.task, args.data, args.data_dir, args.dataset, args.collect_episodes, args.rewards
        )
        env = data.make_env()
        if not env.has_wrapper_attr("maze_map"):
            raise UserError(f"{run}: {data.name} is not a maze with a map (Minari's have none).")
        maps.append((policy, env, np.asarray(batch["observations"][:, :2]), np.asarray(q_of(policy, batch))))
    low, high = np.percentile([q for *_, q in maps], [1, 99])
    rows = 1 if len(maps) < 4 else 2
    columns = -(-len(maps) // rows)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 3.8 * rows), squeeze=False, layout="constrained")
    for panel in axes.flat[len(maps) :]:
        panel.remove()
    for panel, (policy, env, positions, q) in zip(axes.flat, maps):
        metres = np.ptp(positions, axis=0).astype(int)  # one place is about a metre wide
        drawn = panel.hexbin(*positions.T, C=q, gridsize=metres, vmin=low, vmax=high, cmap="viridis", linewidths=0.2)
        draw_maze(plt, panel, env)
        name = algorithm_name(type(policy.args))
        panel.set(title=f"{TITLES.get(name, name)}, seed {policy.args.seed}, {policy.step:,} updates", aspect="equal")
        env.close()
    figure.colorbar(drawn, ax=axes, label="Q of the data's actions, mean over critics", shrink=0.8)
    save_figure(figure, out, 110)
    print(out)


def combination(words: list[str]) -> dict[str, float]:
    """Name -> value, of words like alpha=3."""
    try:
        pairs = [word.split("=") for word in words]
        return {name.lstrip("-").replace("-", "_"): float(value) for name, value in pairs}
    except ValueError:
        raise UserError(f"--grid {' '.join(words)}: write it as --grid alpha=3, one value of each name.") from None


def q_of(policy: Policy, batch: dict[str, jax.Array]) -> jax.Array:
    """Q (B,) of a batch's transitions, mean over the ensemble: what the script's critic loss reports of each alone."""
    state = policy.state

    def of_one(transition):
        batch = jax.tree.map(lambda x: x[None], transition)
        return policy.agent.losses["critic"](state.params["critic"], state, batch, jax.random.PRNGKey(0))[1]

    return jax.jit(jax.vmap(of_one))(batch)["train/q_mean"]


def main() -> None:
    parser = Parser("tools/plot.py", __doc__)
    pictures = parser.add_subparsers(dest="picture", required=True)
    bandit = pictures.add_parser("bandit", help="all policies on a bandit")
    bandit.add_argument("--env", choices=list(BANDITS), default="bandit")
    bandit.add_argument("--scripts", nargs="+", default=list(TITLES), help="one's own too, from the current folder")
    bandit.add_argument("--seed", type=int, default=0)
    bandit.add_argument("--out", type=Path, default=ROOT / "docs" / "bandit-comparison.png")
    curves = pictures.add_parser("curves", help="learning curves of finished runs")
    corruption = pictures.add_parser("corruption", help="score over the share of random actions in the data")
    for parser_of_runs, out in ((curves, Path("curves")), (corruption, Path("corruption.png"))):
        parser_of_runs.add_argument("runs", type=Path, help="folder with run directories, at any depth")
        parser_of_runs.add_argument("--out", type=Path, default=out)
    values = pictures.add_parser("values", help="what a critic believes of the places in a maze")
    values.add_argument("runs", type=Path, nargs="+", help="run directories")
    values.add_argument("--grid", nargs="+", default=[], help="of runs with one, this combination: alpha=3")
    values.add_argument("--out", type=Path, default=Path("values.png"))
    args = parser.parse_args()
    if args.picture != "curves":
        check_picture(args.out)
    if args.picture in ("curves", "corruption"):
        return draw_runs(args.picture, args.runs, args.out)
    if args.picture == "values":
        return draw_values(args.runs, args.grid, args.out)
    for name in args.scripts:
        if not script_is_here(name):
            raise UserError(f"there is no {name}.py at the root or in the current folder.")
    keep_compiled_programs()
    draw_bandit(args.env, args.seed, args.scripts, args.out)


if __name__ == "__main__":
    with one_line_errors("plot"):
        main()
