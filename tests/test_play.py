"""tools/play.py: a run's policy plays again what the run's last evaluation was, and more."""

import json
import shutil
import sys
from pathlib import Path

import imageio.v3
import numpy as np
import pytest

import driftql
from common import UserError

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import play

TINY = dict(hidden_dims=(8,), batch_size=8, num_candidates=2, noise_dim=2, eval_workers=1, progress=False)
TINY |= dict(steps=4, log_every=2, eval_every=4, save_every=4)


pytestmark = pytest.mark.xdist_group("play")


@pytest.fixture(scope="module")
def bandit(tmp_path_factory):
    """Directory of a run of two seeds, 3 and 4, eight episodes each."""
    folder = str(tmp_path_factory.mktemp("runs"))
    return driftql.main(driftql.args_for("bandit", runs_dir=folder, seed=3, num_seeds=2, eval_episodes=8, **TINY))


def ask(run, **options):
    """What play.py finds, with one process and no bar."""
    return play.play(play.Args(str(run), workers=1, progress=False, **options))


def test_the_last_evaluation_again_and_the_pictures_of_it(bandit, capsys):
    curve, rollouts = bandit / "curve.png", bandit / "rollouts.png"
    curve.unlink()
    rollouts.unlink()
    results, last = ask(bandit, pictures=True), json.loads((bandit / "result.json").read_text())["evaluations"][-1]
    for name in ("success", "return", "length", "support"):
        np.testing.assert_array_equal(results[name].mean(axis=1), last[name])
    assert curve.stat().st_size and rollouts.stat().st_size
    out = capsys.readouterr().out
    assert "driftql on bandit after 4 updates" in out
    assert "seed 3: 8 episodes" in out and "seed 4: 8 episodes" in out


def test_one_seed_and_more_episodes_that_begin_with_the_same(bandit, tmp_path):
    eight, more = ask(bandit), ask(bandit, seed=4, episodes=20, rollouts=tmp_path / "where.png")
    # One seed and 20 episodes are another program than two and eight: the last digit may differ (jax 0.6 does).
    np.testing.assert_allclose(more["return"][0, :8], eight["return"][1], rtol=1e-6)
    assert more["return"].shape == (1, 20)
    assert (tmp_path / "where.png").stat().st_size


def test_a_maze_on_its_own_task_and_another(data_dir, tmp_path):
    where = dict(data_dir=str(data_dir), data="cache", runs_dir=str(tmp_path))
    args = driftql.args_for("pointmaze-medium-navigate", eval_episodes=2, **where, **TINY)
    run = driftql.main(args)
    results, other = ask(run, rollouts=tmp_path / "where.png"), ask(run, task=3, episodes=1)
    with pytest.raises(UserError, match="task 0"):
        ask(run, task=0)
    assert results["success"].shape == (1, 2)
    assert (tmp_path / "where.png").stat().st_size
    assert np.linalg.norm(other["paths"][0][0] - results["paths"][0][0]) > 1  # another start


def test_a_film(bandit, tmp_path, monkeypatch):
    """Of frames that need no OpenGL."""
    frames = [np.full((4, 4, 3), shade, np.uint8) for shade in (0, 100, 200)]
    monkeypatch.setattr("common.evaluation.play_film", lambda *_, **__: frames)
    stopped = tmp_path / "stopped"  # before its last step
    shutil.copytree(bandit, stopped)
    (stopped / "config.json").write_text((bandit / "config.json").read_text().replace('"steps": 4', '"steps": 400'))
    for run in (bandit, stopped):
        ask(run, seed=3, film=tmp_path / f"{run.name}.gif")
        assert len(imageio.v3.imread(tmp_path / f"{run.name}.gif")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(task=2), "has no tasks"),
        (dict(task=0), "has no tasks"),
        (dict(seed=7), "has seeds 3 to 4, not 7"),
        (dict(episodes=0), "must be positive"),
        (dict(pictures=True, episodes=3), "leave --task, --episodes, --seed and --grid out"),
        (dict(film="film.gif"), "no pictures"),
        (dict(film="film.mp4"), r"must end in \.gif"),
        (dict(rollouts="where.foo"), r"where\.foo: the name must end in"),
        (dict(rollouts="/dev/null/where.png"), "cannot write /dev/null/where.png"),
    ],
)
def test_what_cannot_be_done_is_one_line(bandit, options, message):
    with pytest.raises(UserError, match=message) as error:
        ask(bandit, **options)
    assert "\n" not in str(error.value)


def test_where_an_arm_went_is_refused_before_it_is_played(bandit, tmp_path, monkeypatch):
    """By a run that says it is one."""
    config = json.loads((bandit / "config.json").read_text())
    config["dataset"] |= {"name": "cube-single-play", "task": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(play, "load_members", None)
    with pytest.raises(UserError, match="cube-single-play is neither a bandit nor a maze"):
        ask(tmp_path, rollouts=tmp_path / "where.png")


def test_neither_a_run_nor_one_that_ended(bandit, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        ask(tmp_path)
    (tmp_path / "config.json").write_text((bandit / "config.json").read_text())
    with pytest.raises(UserError, match=r"no result\.json"):
        ask(tmp_path, pictures=True)
