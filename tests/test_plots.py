"""The pictures of a run."""

import functools

import numpy as np
import pytest
from helpers import NAME

from common import plots
from common.data import load_dataset
from common.data.bandits import Bandit
from common.data.ogbench import make_ogbench_env

EVALUATIONS = [{"step": 0, "success": [0, 0.5]}, {"step": 10, "success": [1, 0]}]
RESULT = {"env": "bandit", "task": None, "evaluations": EVALUATIONS}
bandit = functools.partial(Bandit, "bandit")


@pytest.fixture
def shown(monkeypatch):
    """What the next pictures show: their lines, clouds of points and labels."""
    shown = {"lines": [], "points": [], "labels": []}
    save = plots.save_figure

    def looked_at(figure, path, dpi, **options):
        (axes,) = figure.axes
        shown["lines"] += [np.asarray(line.get_xydata(), float) for line in axes.lines]
        shown["labels"] += axes.get_legend_handles_labels()[1]
        shown["points"] += [np.asarray(points.get_offsets(), float) for points in axes.collections]
        save(figure, path, dpi, **options)

    monkeypatch.setattr(plots, "save_figure", looked_at)
    return shown


def test_the_curve_has_a_line_per_seed_and_their_mean_or_one_per_combination(tmp_path, shown):
    assert plots.draw_curve(tmp_path / "curve.png", RESULT)
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    other = [{"step": 0, "success": [0, 0]}, {"step": 10, "success": [0.5, 1]}]
    parts = [{"values": {"alpha": x}, "evaluations": part} for x, part in ((1.0, EVALUATIONS), (3.0, other))]
    assert plots.draw_curve(tmp_path / "grid.png", {"grid": parts})
    ys = [[0, 1], [0.5, 0], [0.25, 0.5], [0.25, 0.5], [0, 0.75]]
    np.testing.assert_allclose(shown["lines"], [[[0, first], [10, last]] for first, last in ys])
    assert shown["labels"][-2:] == ["alpha=1", "alpha=3"]


def test_pictures_of_a_bandit_and_a_maze_show_where_the_policy_went(tmp_path, shown, capsys):
    data, paths = load_dataset("bandit").actions, [np.array([[0.1, 0.2]]), np.array([[0.3, 0.4]])]
    assert plots.draw_run(tmp_path, RESULT, bandit, paths, data) == ["curve.png", "rollouts.png"]
    np.testing.assert_allclose(shown["points"][0], data[:2000])
    np.testing.assert_allclose(shown["points"][1], np.concatenate(paths))
    assert not capsys.readouterr().out
    paths = [np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]]), np.array([[4.0, 4.0], [5.0, 4.0]])]
    env, lines = make_ogbench_env(NAME, 2), len(shown["lines"])
    env.reset(seed=0)
    goal = env.unwrapped.cur_goal_xy
    assert plots.draw_rollouts(tmp_path / "a.png", NAME, 2, lambda: env, paths)
    np.testing.assert_allclose(shown["lines"][lines], paths[0])
    np.testing.assert_allclose(shown["lines"][lines + 2], paths[1])
    assert np.linalg.norm(shown["lines"][-1][0] - goal) < 1.5  # the goal is drawn anew around its cell
    assert not plots.draw_rollouts(tmp_path / "b.png", "Pendulum-v1", None, bandit, paths)  # no maze
