"""tools/play.py: a run's policy plays again what the run's last evaluation was, and more."""

import shutil
import sys
from pathlib import Path

import gymnasium
import imageio.v3
import numpy as np
import pytest
from fakes import Recorder
from helpers import result_of

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
    folder = str(tmp_path_factory.mktemp("runs") / "bandit")
    return driftql.main(driftql.args_for("bandit", run_dir=folder, seed=3, num_seeds=2, eval_episodes=8, **TINY))


def ask(run, *words) -> dict:
    """What play.py finds, with one process and no bar."""
    return play.play([str(run), "--workers", "1", *map(str, words)])


def test_the_last_evaluation_again(bandit, capsys):
    results, last = ask(bandit), result_of(bandit)["evaluations"][-1]
    for name in ("success", "return", "length", "support"):
        np.testing.assert_array_equal(results[name].mean(axis=1), last[name])
    out = capsys.readouterr().out
    assert "driftql on bandit after 4 updates" in out
    assert "seed 3: 8 episodes" in out and "seed 4: 8 episodes" in out


def test_one_seed_and_more_episodes_that_begin_with_the_same(bandit, tmp_path):
    eight, more = ask(bandit), ask(bandit, "--seed", 4, "--episodes", 20, "--rollouts", tmp_path / "where.png")
    # One seed and 20 episodes are another program than two and eight: the last digit may differ (jax 0.6 does).
    np.testing.assert_allclose(more["return"][0, :8], eight["return"][1], rtol=1e-6)
    assert more["return"].shape == (1, 20)
    assert (tmp_path / "where.png").stat().st_size


def test_combinations_of_a_grid(tmp_path, capsys):
    grid = ("alpha=1,3", "discount=0.9,0.99")
    run = driftql.main(driftql.args_for("bandit", run_dir=str(tmp_path), grid=grid, eval_episodes=4, **TINY))
    every, three = ask(run), ask(run, "--grid", "alpha=3")
    assert every["return"].shape == (4, 4)
    np.testing.assert_allclose(three["return"], every["return"][2:], rtol=1e-6)
    assert "alpha=3,discount=0.99, seed 0: 4 episodes" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"has alpha=1,discount=0\.9, seed 0; "):
        ask(run, "--grid", "alpha=7")


def test_a_maze_on_its_own_task_and_another_without_its_data(data_dir, tmp_path):
    gone = tmp_path / "data"
    shutil.copytree(data_dir, gone)
    where = dict(data_dir=str(gone), data="cache", run_dir=str(tmp_path / "run"))
    run = driftql.main(driftql.args_for("pointmaze-medium-navigate", eval_episodes=2, **where, **TINY))
    shutil.rmtree(gone)
    results, other = ask(run, "--rollouts", tmp_path / "where.png"), ask(run, "--task", 3, "--episodes", 1)
    np.testing.assert_array_equal(results["length"].mean(axis=1), result_of(run)["evaluations"][-1]["length"])
    with pytest.raises(UserError, match="task 0"):
        ask(run, "--task", 0)
    assert (tmp_path / "where.png").stat().st_size
    assert np.linalg.norm(other["paths"][0][0] - results["paths"][0][0]) > 1  # another start


class Camera(Recorder):
    """Needs no OpenGL: a frame is as bright as steps were made."""

    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        assert self.render_mode == "rgb_array"
        return np.full((4, 4, 3), 20 * self.t, np.uint8)


def test_a_film_of_every_fourth_frame(bandit, tmp_path, monkeypatch):
    load = driftql.load
    monkeypatch.setattr(driftql, "load", lambda args: play.dataclasses.replace(load(args), make_env=Camera))
    stopped = tmp_path / "stopped"  # before its last step
    shutil.copytree(bandit, stopped)
    (stopped / "result.json").unlink()
    for run in (bandit, stopped):
        ask(run, "--seed", 3, "--film", tmp_path / f"{run.name}.gif")
        frames = imageio.v3.imread(tmp_path / f"{run.name}.gif")
        assert len(frames) == 3
        assert [round(float(frame.mean()) / 20) for frame in frames] == [0, 4, 8]
