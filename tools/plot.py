"""The policies on a bandit: its data, then a column per algorithm and settings, and a row per number of updates. (Other
pictures of finished runs are drawn by tools/report.py.) For early and late policies, as in the README:

    python tools/sweep.py --scripts driftql fql --envs bandit --set steps=400,4000 --runs-dir runs/bandit
    python tools/plot.py runs/bandit --out bandit.png
"""

import re
import textwrap
from pathlib import Path
from typing import Any

import jax
import numpy as np
import shared
from shared import PICTURES, Parser, Run, check_output, flags_text, line, read_runs, same_settings, split, titles

from common import UserError
from common.args import one_line_errors
from common.checkpoints import load_policy
from common.data import load_dataset
from common.data.bandits import BANDITS
from common.plots import COLORS, pyplot, save_figure
from common.system import say

# Okabe and Ito's colours, which most colour-blind people can tell apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", ":", "-.")


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


def draw_panels(panels: list[tuple], path: Path) -> Path:
    """A panel for each (lines, points, label of x, title): a thin line per run through its points (x -> score), or a
    dot, and a thick line through the means. Three and more panels stand in two columns. Returns the path."""
    columns = 1 + (len(panels) > 2)
    heights = [3 + 0.3 * len(lines) for lines, *_ in panels]  # the legend takes half of what a line adds
    heights = [max(heights[i : i + columns]) for i in range(0, len(panels), columns)]
    figure = pyplot().figure(figsize=(6.5 * columns, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), columns, height_ratios=heights, squeeze=False).flat
    for part, (lines, points, x_label, title) in zip(parts, panels):
        axes, metric = part.subplots(), lines[0][0].metric
        for seeds in lines:
            shown, found = look(seeds, lines), [points(run) for run in seeds]
            for curve in found if len(found) > 1 else []:
                thin = {"lw": 0.7, "alpha": 0.4, "marker": "o" * (len(curve) == 1), "ms": 3, "label": None}
                axes.plot(list(curve), list(curve.values()), **shown | thin)
            at = sorted(set().union(*found))
            axes.plot(at, [np.mean([curve[x] for curve in found if x in curve]) for x in at], lw=2.2, **shown)
        axes.set(xlabel=x_label, ylabel=shared.METRICS[metric], ylim=(-3, 103) if metric == "success" else None)
        axes.xaxis.set_major_formatter(pyplot().matplotlib.ticker.EngFormatter(sep=""))
        axes.set_title(plain(title, 64), fontsize=9)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        part.legend(frameon=False, fontsize=8, ncols=2, handlelength=3, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path, 100)
    return path


def draw_scores(runs: list[Run], folder: Path, name: str) -> list[Path]:
    """The pictures of runs in one environment, in files of this name: learning curves, with a panel for each dataset
    and size, and, of runs on data with random actions, the score over their share. Returns the files."""
    name = re.sub(r"\W+", "-", name)[:100].strip("-")
    panels: list[tuple] = []
    for alike in split(runs, lambda run: (run.data, run.metric, run.size)):
        title = f"{alike[0].place}; data: {alike[0].data}; {alike[0].size}"
        panels.append((same_settings(alike), lambda run: run.curve, "updates", title))
    paths = [draw_panels(panels, folder / f"{name}.png")]
    lines = split(runs, lambda run: (run.algo, flags_text(run.changed), without_share(run)))
    if lines := [alike for alike in lines if len({run.random_share for run in alike}) > 1]:
        share, what = lambda run: {100 * run.random_share: run.score}, "random actions in the data, %"
        paths.append(draw_panels([(lines, share, what, runs[0].place)], folder / f"{name}-random-actions.png"))
    return paths


def without_share(run: Run) -> str:
    """What the data are, but for the share of random actions."""
    return re.sub(r", \d+% random actions|, sha256 \w+", "", run.data)


def draw_bandit(runs: list[Run], path: Path) -> None:
    """Data in the first column, then a column per algorithm and settings: fewer updates above, more below. Of several
    seeds, the first is drawn. Raises UserError if the runs are not on one bandit."""
    envs = {run.env for run in runs} & BANDITS.keys()
    if len(envs) != 1:
        raise UserError(f"the runs must be on one bandit: {' or '.join(BANDITS)}.")
    data, key = load_dataset(envs.pop()), jax.random.PRNGKey(0)
    observations = jax.numpy.ones((1_000, data.observation_dim))
    columns: dict[str, dict[int, Run]] = {}  # title -> updates -> the first seed's run
    for run in runs:
        if run.env == data.name:
            different = {name: x for name, x in run.changed.items() if name not in ("steps", *shared.MEASURED)}
            title = plain(f"{run.title} {flags_text(different)}", 30)
            columns.setdefault(title, {}).setdefault(run.args["steps"], run)
    height, width = max(map(len, columns.values())), 1 + len(columns)
    look = {"xlim": (-1.1, 1.1), "ylim": (-1.1, 1.1), "xticks": [], "yticks": [], "aspect": "equal"}
    options = {"figsize": (2.6 * width, 2.8 * height), "squeeze": False, "subplot_kw": look}
    figure, axes = pyplot().subplots(height, width, **options)
    for panel in axes.flat:
        panel.scatter(*data.actions[:2_000].T, s=2, c=COLORS["data"])
    axes[0, 0].set_title("data")
    for panel in axes[1:, 0]:
        panel.remove()
    for center, reward in zip(*BANDITS[data.name][:2]):
        axes[0, 0].annotate(f"reward {reward:g}", center, (0, 14), textcoords="offset points", ha="center", fontsize=8)
    for column, (title, trained) in zip(axes.T[1:], sorted(columns.items())):
        for panel, (step, run) in zip(column, sorted(trained.items())):
            actions = load_policy(run.path, run.seed).act(observations, key)
            panel.scatter(*np.asarray(actions).T, s=3, c=COLORS["policy"], alpha=0.6)
            panel.set_xlabel(f"{step:,} updates")
        column[0].set_title(title)
    figure.tight_layout()
    save_figure(figure, path, 110)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders with run directories, at any depth")
    parser.add_argument("--out", type=Path, default=Path("bandit.png"), help="the picture (bandit.png)")
    args = parser.parse_args(argv)
    check_output(args.out, PICTURES)
    draw_bandit(read_runs(args.runs)[0], args.out)
    say(str(args.out))


if __name__ == "__main__":
    with one_line_errors("plot"):
        main()
