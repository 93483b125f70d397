"""The pictures of a run."""

import numpy as np
import pytest
from helpers import NAME

from common import UserError, plots
from common.datasets import load_dataset
from common.environments import Bandit, make_ogbench_env


def never(**_):
    raise AssertionError("no environment is needed")


def result(env, task=None, seeds=(0,)):
    evaluations = [{"step": step, "success": [0.1 * step] * len(seeds)} for step in range(3)]
    return {"env": env, "task": task, "evaluations": evaluations, "seeds": list(seeds)}


def lines_and_points(monkeypatch):
    """What the next picture shows: lists of the lines and of the clouds of points in it."""
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


def test_the_curve_has_a_line_per_seed_and_their_mean(tmp_path, monkeypatch):
    shown = lines_and_points(monkeypatch)
    evaluations = [{"step": 0, "success": [0, 0.5]}, {"step": 10, "success": [1, 0]}]
    assert plots.draw_curve(tmp_path / "curve.png", "title", {"seeds": [3, 4], "evaluations": evaluations})
    expected = [[[0, 0], [10, 1]], [[0, 0.5], [10, 0]], [[0, 0.25], [10, 0.5]]]
    np.testing.assert_allclose(shown["lines"], expected)
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_the_curve_of_a_grid_has_a_named_line_per_combination(tmp_path, monkeypatch):
    shown = lines_and_points(monkeypatch)
    ends = {1.0: [1, 0], 3.0: [0.5, 1]}
    parts = [
        {"values": {"alpha": alpha}, "evaluations": [{"step": 0, "success": [0, 0]}, {"step": 10, "success": end}]}
        for alpha, end in ends.items()
    ]
    assert plots.draw_curve(tmp_path / "curve.png", "title", {"seeds": [3, 4], "grid": parts})
    np.testing.assert_allclose(shown["lines"], [[[0, 0], [10, 0.5]], [[0, 0], [10, 0.75]]])
    assert shown["labels"] == ["alpha=1", "alpha=3"]


def test_a_bandit_s_picture_has_the_data_and_the_policy_s_actions(tmp_path, monkeypatch):
    shown = lines_and_points(monkeypatch)
    data, paths = load_dataset("bandit").actions, [np.array([[0.1, 0.2]]), np.array([[0.3, 0.4]])]
    said = []
    rollouts = {"paths": paths, "film": None}
    drawn = plots.draw_run(tmp_path, result("bandit"), Bandit, rollouts, data, said.append)
    assert [path.name for path in drawn] == ["curve.png", "rollouts.png"]
    np.testing.assert_allclose(shown["points"][0], data[:2000])
    np.testing.assert_allclose(shown["points"][1], np.concatenate(paths))
    assert not said


def test_a_maze_s_picture_shows_where_each_episode_went(tmp_path, monkeypatch):
    shown = lines_and_points(monkeypatch)
    paths = [np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]]), np.array([[4.0, 4.0], [5.0, 4.0]])]
    env = make_ogbench_env(NAME, 2)
    env.reset(seed=0)
    goal = env.unwrapped.cur_goal_xy
    assert plots.draw_rollouts(tmp_path / "a.png", result(NAME, 2), lambda: env, paths)
    np.testing.assert_allclose(shown["lines"][0], paths[0])
    np.testing.assert_allclose(shown["lines"][2], paths[1])
    assert np.linalg.norm(shown["lines"][-1][0] - goal) < 1.5  # the goal is drawn anew around its cell
    assert not plots.draw_rollouts(tmp_path / "b.png", result("x"), never, [])
    assert not (tmp_path / "b.png").exists()


def test_a_film_is_an_animation_of_its_frames(tmp_path):
    frames = [np.full((8, 8, 3), 60 * i, np.uint8) for i in range(4)]
    assert plots.save_film(tmp_path / "film.gif", frames)
    import imageio.v3

    assert imageio.v3.imread(tmp_path / "film.gif", index=None).shape[0] == 4
    assert not plots.save_film(tmp_path / "none.gif", None)


def test_where_no_picture_can_be_written_is_known_before(tmp_path):
    plots.check_picture(tmp_path / "new" / "a.png")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(UserError, match=r"a\.foo: the name must end in .*\.png"):
        plots.check_picture(tmp_path / "a.foo")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder\.png is a folder"):
        plots.check_picture(tmp_path / "folder.png")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        plots.check_picture(tmp_path / "file" / "a.png")


def test_what_cannot_be_drawn_is_a_line(tmp_path, monkeypatch):
    def full(_, path, **__):
        path.write_text("half a picture")
        raise OSError(28, "No space left on device")

    said = []
    rollouts = {"paths": [np.zeros((2, 2))], "film": None}
    (tmp_path / "curve.png").write_text("the old one")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert plots.draw_run(tmp_path, result("bandit"), Bandit, rollouts, None, said.append) == []
    names = ("curve.png", "rollouts.png")
    assert said == [f"no {name}: cannot write {tmp_path / name}: No space left on device." for name in names]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the old one"]
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'a.png'}: No space left on device"):
        plots.draw_curve(tmp_path / "a.png", "title", result("bandit"))
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UserError, match="pictures need matplotlib"):
        plots.pyplot()
