"""The pictures at the end of a run. The plots need matplotlib (extra `plot`); without it none are drawn, and one line
says so."""

import functools
from pathlib import Path

import numpy as np

from common.datasets import BANDITS, Dataset

COLORS = {"wall": "0.75", "data": "0.6", "policy": "#0072b2", "goal": "#d55e00"}


def plot_curve(path: Path, title: str, evaluations: list[dict], seeds: list[int]) -> Path | None:
    """Success (or return) over training, one line per seed and their mean."""
    plt = _pyplot()
    if plt is None:
        return None
    name = "success" if "success" in evaluations[0] else "return"
    steps = [evaluation["step"] for evaluation in evaluations]
    values = np.array([evaluation[name] for evaluation in evaluations])  # (evaluations, seeds)
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for i in range(len(seeds)):
        axes.plot(steps, values[:, i], color=COLORS["policy"], alpha=0.35 if len(seeds) > 1 else 1, lw=1.2, marker=".")
    if len(seeds) > 1:
        axes.plot(steps, values.mean(axis=1), color=COLORS["policy"], lw=2.5, label=f"mean of {len(seeds)} seeds")
        axes.legend(frameon=False)
    if name == "success":
        axes.set_ylim(-0.03, 1.03)
    axes.set(xlabel="gradient steps", ylabel=name, title=title)
    axes.title.set_fontsize(8)
    axes.grid(alpha=0.3)
    return _save(plt, figure, path)


def plot_rollouts(path: Path, dataset: Dataset, paths: list[np.ndarray]) -> Path | None:
    """The last evaluation of the first seed. On a bandit: the data and the policy's actions. In a maze: where each
    episode went. None for other environments."""
    if not paths or not len(paths[0]) or (plt := _pyplot()) is None:
        return None
    figure, axes = plt.subplots(figsize=(5, 5))
    if dataset.name in BANDITS:
        shown = slice(0, 2000)
        axes.scatter(*dataset.actions[shown].T, s=3, c=COLORS["data"], label="data")
        axes.scatter(*np.concatenate(paths).T, s=5, c=COLORS["policy"], alpha=0.6, label="policy")
        for center, mean in zip(*BANDITS[dataset.name][:2]):
            axes.annotate(f"reward {mean:g}", center, (0, 16), textcoords="offset points", ha="center")
        axes.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), title=f"{dataset.name}: data and policy")
    else:
        env = dataset.make_env()
        maze = env.unwrapped
        if not hasattr(maze, "maze_map"):
            plt.close(figure)
            env.close()
            return None
        env.reset(seed=0)
        for i, j in np.argwhere(maze.maze_map == 1):
            x, y = maze.ij_to_xy((i, j))
            axes.add_patch(plt.Rectangle((x - 2, y - 2), 4, 4, color=COLORS["wall"], lw=0))
        for trajectory in paths:
            axes.plot(*trajectory.T, color=COLORS["policy"], lw=0.8, alpha=0.5)
            axes.plot(*trajectory[0], ".", color=COLORS["policy"], ms=4)
        axes.plot(*maze.cur_goal_xy, "*", color=COLORS["goal"], ms=18, label="goal")
        axes.set(title=f"{dataset.name} task {dataset.task}: {len(paths)} episodes", xticks=[], yticks=[])
        axes.autoscale_view()
        env.close()
    axes.set_aspect("equal")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, frameon=False)
    return _save(plt, figure, path)


def save_film(path: Path, film: list[np.ndarray] | str | None) -> Path | None:
    """Frames as an animated picture; prints why if there are none though they were asked for."""
    if isinstance(film, str):
        print(f"no film: {film}")
    if not film or isinstance(film, str):
        return None
    try:
        import imageio.v3
    except ImportError:
        print("no film: pip install imageio")
        return None
    imageio.v3.imwrite(path, np.stack(film), duration=40, loop=0)
    return path


@functools.cache
def _pyplot():
    """matplotlib.pyplot without a screen, or None."""
    try:
        import matplotlib
    except ImportError:
        print("no pictures: pip install matplotlib")
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def _save(plt, figure, path: Path) -> Path:
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
    return path
