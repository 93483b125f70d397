"""The pictures of a run. Plots need matplotlib (extra `plot`); what cannot be drawn is a line that says why."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from common import UserError
from common.environments import BANDITS
from common.files import replacing
from common.grid import combination_name, results_by_combination

COLORS = {"wall": "0.75", "data": "0.6", "policy": "#0072b2", "goal": "#d55e00"}


def draw_run(
    directory: Path,
    result: dict[str, Any],
    make_env: Callable[..., gymnasium.Env],
    rollouts: dict[str, Any],
    data: np.ndarray | None,
    say: Callable[[str], None],
) -> list[Path]:
    """curve.png, rollouts.png and film.gif, as far as there is something to draw. Returns what was drawn. Nothing that
    goes wrong here is raised: the run has its result.

    result: of result.json; rollouts: of an Evaluator, `paths` and `film`; data: actions (N, 2) of a bandit's dataset.
    """
    drawn = []
    for name, draw in (
        ("curve.png", lambda path: draw_curve(path, directory.name, result)),
        ("rollouts.png", lambda path: draw_rollouts(path, result, make_env, rollouts["paths"], data)),
        ("film.gif", lambda path: save_film(path, rollouts["film"])),
    ):
        try:
            if draw(directory / name):
                drawn.append(directory / name)
        except Exception as error:  # a full disk, no matplotlib, a renderer: all the same here
            say(f"no {name}: {error}")
    return drawn


def draw_curve(path: Path, title: str, result: dict[str, Any]) -> bool:
    """D4RL's score, success, or return over training, one line per seed and their mean. With --grid the mean over seeds
    of each combination. result: of result.json."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 3.6))
    found, num_seeds = results_by_combination(result), len(result["seeds"])
    evaluations = found[0][1]["evaluations"]
    name = next(name for name in ("normalized", "success", "return") if name in evaluations[0])
    steps = [evaluation["step"] for evaluation in evaluations]
    # Each (evaluations, seeds).
    curves = [np.array([evaluation[name] for evaluation in each["evaluations"]]) for _, each in found]
    mean = f"mean of {num_seeds} seeds" if num_seeds > 1 else None
    if "grid" in result:
        for i, (values, _) in enumerate(found):
            color = plt.colormaps["viridis"](i / len(found))
            axes.plot(steps, curves[i].mean(axis=1), color=color, lw=1.5, marker=".", label=combination_name(values))
        axes.legend(title=mean, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    else:
        axes.plot(steps, curves[0], color=COLORS["policy"], alpha=0.35 if mean else 1, lw=1.2, marker=".")
        if mean:
            axes.plot(steps, curves[0].mean(axis=1), color=COLORS["policy"], lw=2.5, label=mean)
            axes.legend(frameon=False)
    if name == "success":
        axes.set_ylim(-0.03, 1.03)
    axes.set(xlabel="gradient steps", ylabel="normalized return" if name == "normalized" else name, title=title)
    axes.title.set_fontsize(8)
    axes.grid(alpha=0.3)
    save_figure(figure, path, 150, bbox_inches="tight")
    return True


def draw_rollouts(
    path: Path,
    result: dict[str, Any],
    make_env: Callable[..., gymnasium.Env],
    paths: list[np.ndarray],
    data: np.ndarray | None = None,
) -> bool:
    """The last evaluation of the first seed, with --grid of the first combination. On a bandit: the data and the
    policy's actions. In a maze: where each episode went. False for other environments.

    result: names `env` and `task`; paths: xy positions (T, 2) of each episode; data: actions (N, 2).
    """
    name, task = result["env"], result["task"]
    if not len(paths) or not len(paths[0]):
        return False
    plt = pyplot()
    title = f"{name} task {task}" if task else name
    title += f", {combination_name(result['grid'][0]['values'])}" if "grid" in result else ""
    figure, axes = plt.subplots(figsize=(5, 5))
    if name in BANDITS:
        if data is not None:
            axes.scatter(*data[:2000].T, s=3, c=COLORS["data"], label="data")
        axes.scatter(*np.concatenate(paths).T, s=5, c=COLORS["policy"], alpha=0.6, label="policy")
        for center, mean in zip(*BANDITS[name][:2]):
            axes.annotate(f"reward {mean:g}", center, (0, 16), textcoords="offset points", ha="center")
        axes.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), title=f"{title}: data and policy")
    else:
        env = make_env()
        if not env.has_wrapper_attr("maze_map"):
            plt.close(figure)
            env.close()
            return False
        for trajectory in paths:
            axes.plot(*trajectory.T, color=COLORS["policy"], lw=0.8, alpha=0.5)
            axes.plot(*trajectory[0], ".", color=COLORS["policy"], ms=4)
        draw_maze(plt, axes, env)
        axes.set_title(f"{title}: {len(paths)} episodes")
        env.close()
    axes.set_aspect("equal")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, frameon=False)
    save_figure(figure, path, 150, bbox_inches="tight")
    return True


def draw_maze(plt: Any, axes: Any, env: gymnasium.Env) -> None:
    """Walls and goal of a maze."""
    env.reset(seed=0)
    for i, j in np.argwhere(np.array(env.get_wrapper_attr("maze_map")) == 1):
        x, y = env.get_wrapper_attr("ij_to_xy")((i, j))
        axes.add_patch(plt.Rectangle((x - 2, y - 2), 4, 4, color=COLORS["wall"], lw=0))
    axes.plot(*env.get_wrapper_attr("cur_goal_xy"), "*", color=COLORS["goal"], ms=18, label="goal")
    axes.set(xticks=[], yticks=[])
    axes.autoscale_view()


def save_film(path: Path, film: list[np.ndarray] | None) -> bool:
    """Frames as an animated picture; False if none were asked for."""
    if not film:
        return False
    import imageio.v3  # comes with ogbench, and only films need it

    with replacing(path) as temporary:
        imageio.v3.imwrite(temporary, np.stack(film), duration=40, loop=0)
    return True


def pyplot() -> Any:
    """matplotlib.pyplot without a screen. Raises UserError with what to install."""
    try:
        import matplotlib  # optional, and a second
    except ImportError:
        raise UserError("pictures need matplotlib: uv pip install -e '.[plot]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def check_picture(path: Path, kinds: Sequence[str] | None = None) -> None:
    """Raises UserError if no picture can be written there, which is better known before the work for it than after.
    Makes the folder. kinds: of files; None are those that matplotlib writes."""
    kinds = kinds or sorted(pyplot().Figure().canvas.get_supported_filetypes())
    if path.suffix[1:] not in kinds:
        raise UserError(f"{path}: the name must end in .{' or .'.join(kinds)}.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.") from None
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: its folder is read-only.")


def save_figure(figure: Any, path: Path, dpi: int, **options) -> None:
    """Writes a picture. Raises UserError if that fails, and leaves the one that was there."""
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=dpi, **options)
    finally:
        pyplot().close(figure)
