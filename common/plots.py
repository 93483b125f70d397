"""The pictures of a run. They need matplotlib (extra `plot`)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common import UserError
from common.args import combination_name
from common.data.bandits import BANDITS
from common.system import replacing, say

COLORS = {"wall": "0.75", "data": "0.6", "policy": "#0072b2", "goal": "#d55e00"}


def draw_run(
    directory: Path, result: dict[str, Any], make_env: Callable, paths: list[np.ndarray], data: np.ndarray | None
) -> list[str]:
    """Draws curve.png and, on a bandit or in a maze, rollouts.png. Returns the names of what was drawn.

    Nothing that goes wrong here is raised, because the run has its result. result: of result.json; paths: xy positions
    of the last evaluation's episodes; data: actions (N, 2) of a bandit's dataset.
    """
    drawn = []
    for name, draw, *inputs in (
        ("curve.png", draw_curve, result),
        ("rollouts.png", draw_rollouts, result["env"], result["task"], make_env, paths, data),
    ):
        try:
            if draw(directory / name, *inputs):
                drawn.append(name)
        except Exception as error:  # a full disk, no matplotlib
            say(f"no {name}: {error}")
    return drawn


def draw_curve(path: Path, result: dict[str, Any]) -> bool:
    """D4RL's score, success, or return over training: a thin line per seed and a thick one for their mean; with --grid
    the mean of each combination. The title is the folder's name. result: of result.json."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 3.6))
    parts = result.get("grid", [result])
    name = next(x for x in ("normalized", "success", "return") if x in parts[0]["evaluations"][-1])
    for i, part in enumerate(parts):
        steps = [evaluation["step"] for evaluation in part["evaluations"]]
        curves = np.array([evaluation[name] for evaluation in part["evaluations"]])  # (evaluations, seeds)
        color = plt.colormaps["viridis"](i / len(parts)) if len(parts) > 1 else COLORS["policy"]
        if len(parts) == 1 and curves.shape[1] > 1:
            axes.plot(steps, curves, color=color, alpha=0.35, lw=1)
        axes.plot(steps, curves.mean(axis=1), color=color, lw=2, label=combination_name(part.get("values", {})))
    if len(parts) > 1:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    if "online_steps" in result:
        axes.axvspan(result["steps"], steps[-1], color="0.92", lw=0)  # the online phase
    if name == "success":
        axes.set_ylim(-0.03, 1.03)
    axes.set(xlabel="updates", ylabel="normalized return" if name == "normalized" else name)
    axes.set_title(path.parent.name.replace("$", r"\$"), fontsize=8)
    axes.grid(alpha=0.3)
    save_figure(figure, path, 150, bbox_inches="tight")
    return True


def draw_rollouts(
    path: Path, env: str, task: int | None, make_env: Callable, paths: list[np.ndarray], data: np.ndarray | None = None
) -> bool:
    """The episodes of the first member. On a bandit: the data, and the policy's actions. In a maze: where each episode
    went. Returns False for other environments. Arguments as for `draw_run`."""
    if not any(map(len, paths)):
        return False
    maze = None if env in BANDITS else make_env()
    if maze and not maze.has_wrapper_attr("maze_map"):
        return False
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(5, 5))
    title = f"{env} task {task}" if task else env
    if maze is None:
        if data is not None:
            axes.scatter(*data[:2000].T, s=3, c=COLORS["data"], label="data")
        axes.scatter(*np.concatenate(paths).T, s=5, c=COLORS["policy"], alpha=0.6, label="policy")
        for center, mean in zip(*BANDITS[env][:2]):
            axes.annotate(f"reward {mean:g}", center, (0, 16), textcoords="offset points", ha="center")
        axes.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), title=f"{title}: data and policy")
    else:
        for trajectory in paths:
            axes.plot(*trajectory.T, color=COLORS["policy"], lw=0.8, alpha=0.5)
            axes.plot(*trajectory[0], ".", color=COLORS["policy"], ms=4)
        maze.reset(seed=0)
        for i, j in np.argwhere(np.array(maze.get_wrapper_attr("maze_map")) == 1):
            x, y = maze.get_wrapper_attr("ij_to_xy")((i, j))
            axes.add_patch(plt.Rectangle((x - 2, y - 2), 4, 4, color=COLORS["wall"], lw=0))
        axes.plot(*maze.get_wrapper_attr("cur_goal_xy"), "*", color=COLORS["goal"], ms=18, label="goal")
        axes.set(xticks=[], yticks=[], title=f"{title}: {len(paths)} episodes")
        axes.autoscale_view()
    axes.set_aspect("equal")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, frameon=False)
    save_figure(figure, path, 150, bbox_inches="tight")
    return True


def pyplot() -> Any:
    """matplotlib.pyplot without a screen. Raises UserError with what to install."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's kernel names a backend that may not be installed here
    try:
        import matplotlib.pyplot  # optional, and a second
    except ImportError:
        raise UserError("pictures need matplotlib: uv pip install -e '.[plot]'") from None
    return matplotlib.pyplot


def save_figure(figure: Any, path: Path, dpi: int, **options) -> None:
    """Writes a picture. Raises UserError if that fails, and leaves the one that was there."""
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=dpi, **options)
    finally:
        pyplot().close(figure)
