"""The online phase: what joins the data, how it is drawn, and that it goes on where it was."""

import dataclasses
import shutil
from unittest import mock

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NAME, assert_same_run, launch_in_process, result_of, state_of, tiny_args, whole_and_killed

import driftql
import fql
from common import UserError, checkpoints
from common.buffers import make_buffer, sample
from common.data.bandits import load_bandit
from common.online import Online, sample_both
from common.runs import Run
from common.seeds import side_by_side

NOTE = "here its episode goes another way; a new one begins"
ONLINE = {"steps": 20, "online_steps": 40, "save_every": 10, "eval_episodes": 2}


class Counts(gymnasium.Env):
    """Observes how many steps were made. A success after five is its end, a time limit after three in each second."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    episodes = -1

    def reset(self, seed=None, options=None):
        self.count, self.episodes = 0, self.episodes + 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        success, limit = self.count == 5, self.count == 3 and self.episodes % 2 == 1
        return np.full(1, self.count, np.float32), self.count / 2, success, limit, {"success": float(success)}


def rows_of(directory, members: int = 1):
    """s, a, r, m and s' of the steps (T, members, ...) in the file of a bandit's run."""
    return np.split(np.fromfile(directory / "online.bin", np.float32).reshape(-1, members, 6), [1, 3, 4, 5], axis=2)


def test_a_transition_is_what_the_environment_returned(tmp_path, monkeypatch):
    """The last observation of an episode is kept; the mask is 0 at a success, 1 at a time limit. Rewards are treated as
    the data's are, but not in the log."""
    data = dataclasses.replace(load_bandit("bandit", "auto"), make_env=Counts, treatment=(1.0, 0.5))
    monkeypatch.setattr(driftql, "load", lambda _: data)
    run = driftql.main(tiny_args(driftql, **ONLINE, run_dir=str(tmp_path / "run")))
    s, a, r, mask, following = (x[:16, 0] for x in rows_of(run))
    np.testing.assert_array_equal(s[:, 0], [0, 1, 2, 3, 4, 0, 1, 2] * 2)
    np.testing.assert_array_equal(following, s + 1)
    np.testing.assert_array_equal(r, (following / 2 - 1) / 0.5)
    np.testing.assert_array_equal(mask[:, 0], [1, 1, 1, 1, 0, 1, 1, 1] * 2)
    assert np.abs(a).max() <= 1 and len(np.unique(a)) > 8
    header, first, *_ = (run / "explore.csv").read_text().splitlines()
    assert header == "step,seed,explore/return,explore/success,explore/length"
    assert [float(x) for x in first.split(",")] == [30, 0, (7.5 + 3) / 2, 0.5, 4]
    result, last = result_of(run), "mean success of the last evaluation"
    assert (result["steps"], result["online_steps"], result["score_is"]) == (20, 40, last)
    assert result["offline_score"] == np.mean(result["evaluations"][1]["success"])
    assert checkpoints.load_policy(run).step == 60


@pytest.mark.parametrize("env", ["bandit", NAME])
def test_a_killed_run_goes_on_in_the_middle_of_an_episode(env, data_dir, tmp_path, capsys):
    """Bit for bit, rows too, whatever the number of workers. An episode that went another way, as on another machine,
    is left, which is said."""
    given = tiny_args(fql, env, **ONLINE, num_seeds=2, data_dir=str(data_dir), run_dir=str(tmp_path / "whole"))
    whole, killed = whole_and_killed(fql, given, 50, tmp_path / "killed"), tmp_path / "killed"
    with open(killed / "online.bin", "ab") as file:
        file.write(b"written after the checkpoint")
    other = shutil.copytree(killed, tmp_path / "other")
    launch_in_process(fql, "--no-progress", "--resume", killed, "--eval-workers", 1)
    assert_same_run(killed, whole)
    for name in ("online.bin", "explore.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert NOTE not in capsys.readouterr().out
    if env == NAME:
        with mock.patch("numpy.array_equal", lambda *_: False):
            launch_in_process(fql, "--no-progress", "--resume", other)
        assert capsys.readouterr().out.count(NOTE) == 2
        (other / "online.bin").write_bytes(b"damaged")
        with pytest.raises(UserError, match=r"online\.bin was changed or damaged"):
            launch_in_process(fql, "--no-progress", "--resume", other, "--online-steps", 60)


def test_an_offline_run_is_extended_and_a_seed_gives_what_it_gives_alone(tmp_path):
    """Up to rounding, as offline."""
    both = driftql.main(tiny_args(driftql, steps=20, num_seeds=2, run_dir=str(tmp_path / "both")))
    launch_in_process(driftql, "--no-progress", "--resume", both, "--online-steps", 20)
    alone = driftql.main(tiny_args(driftql, steps=20, online_steps=20, seed=1, run_dir=str(tmp_path / "alone")))
    for x, y in zip(rows_of(both, 2), rows_of(alone)):
        np.testing.assert_allclose(x[:, 1], y[:, 0], atol=1e-4)
    mine = jax.tree.map(lambda x: x[1], state_of(both)["state"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[0], atol=1e-4), mine, state_of(alone)["state"])
    with pytest.raises(UserError, match="--steps: the online phase began after 20; --online-steps extends it"):
        launch_in_process(driftql, "--no-progress", "--resume", both, "--steps", 30)


def test_a_batch_is_drawn_from_both():
    """Without online rows it is the offline batch, to the bit; else as often as they are, or as the share says."""
    arrays = {"observations": np.arange(100.0)[:, None], "actions": np.zeros((100, 2)), "rewards": np.arange(100.0)}
    buffer = make_buffer(arrays | {"masks": np.ones(100), "terminals": np.arange(100) % 10 == 9})  # 90 transitions
    rows, key = -1 - jnp.arange(60.0)[:, None] * jnp.ones(6), jax.random.PRNGKey(0)
    for share, expected in ((None, 0.25), (0.5, 0.5), (0.25, 0.25)):
        empty, offline = sample_both(buffer, rows, 0, key, 512, share), sample(buffer, key, 512)
        jax.tree.map(np.testing.assert_array_equal, empty, offline)
        batch = sample_both(buffer, rows, 30, key, 6000, share)
        online = np.asarray(batch["rewards"] < 0)
        assert online.mean() == pytest.approx(expected, abs=0 if share else 0.02)
        assert share is None or online[:40].sum() == 40 * expected
        assert set(np.unique(batch["rewards"])) == {*range(-30, 0), *(x for x in range(100) if x % 10 < 9)}
        np.testing.assert_array_equal(batch["observations"][:, 0], batch["rewards"])
        np.testing.assert_array_equal(batch["next_observations"][:, 0], batch["rewards"] + ~online)


def test_no_program_copies_the_rows(tmp_path):
    """Memory of `add` and `update` does not grow with them."""

    def agent_of(args):
        return fql.make_agent(args, 1, 2)

    found = []
    for steps in (20, 200_000):
        args = tiny_args(fql, online_steps=steps, num_seeds=2, run_dir=str(tmp_path / str(steps)))
        with Run(args, dataset := fql.load(args)) as run:
            init, _, act = side_by_side(args, agent_of)
            state, buffer, run.step = run.restore(init()), make_buffer(dataset.arrays), args.steps
            online = Online(run, agent_of, act, state, buffer)
            adding = online.add.lower(online.rows, np.zeros((2, 6), np.float32), 3)
            updating = online.update.lower(state, online.zeros, buffer, online.rows, 3)
        found.append([x.compile().memory_analysis().temp_size_in_bytes for x in (adding, updating)])
    assert found[0] == found[1]
