"""common/collect/train_ant.py: SAC finds a known answer, and what it saves is what collection walks with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import UserError
from common.collect import procedures
from common.collect import train_ant as sac


def test_sac_finds_the_best_action_and_its_value():
    """Reward -(a - 0.5 s)^2 at s = -1 or 1, the next state random: the best action is 0.5 s, in both states."""
    args = sac.Args(out="", hidden_dims=(32, 32), learning_rate=3e-3, batch_size=256, discount=0.5)
    init, update, act = sac.make_sac(args, observation_dim=1, action_dim=1)
    state, rng = init(jax.random.PRNGKey(0)), np.random.default_rng(0)
    for _ in range(900):
        s, a = rng.choice([-1.0, 1.0], (256, 1)), rng.uniform(-1, 1, (256, 1))
        batch = {"observations": s, "actions": a, "rewards": -((a - 0.5 * s)[:, 0] ** 2)}
        batch["next_observations"] = rng.choice([-1.0, 1.0], (256, 1))
        state = update(state, jax.tree.map(jnp.asarray, batch))
    states = np.array([[-1.0], [1.0]])
    np.testing.assert_allclose(act(state.params["actor"], states, None), 0.5 * states, atol=0.12)
    # Entropy is held at its target, -0.5 per action dimension: wide enough to explore, narrow enough to aim.
    actions = np.asarray(act(state.params["actor"], np.repeat(states[1:], 4000, axis=0), jax.random.PRNGKey(1)))
    assert 0.05 < actions.std() < 0.4


def test_sac_values_entropy():
    """No reward, entropy weight 1: the policy spreads over [-1, 1], entropy log 2, which each further step adds."""
    args = sac.Args(out="", hidden_dims=(32, 32), learning_rate=3e-3, discount=0.5)
    init, update, _ = sac.make_sac(args, observation_dim=1, action_dim=1)
    state, rng = init(jax.random.PRNGKey(0)), np.random.default_rng(0)
    for _ in range(800):
        batch = {"observations": jnp.ones((256, 1)), "actions": jnp.asarray(rng.uniform(-1, 1, (256, 1)))}
        state = update(state, batch | {"rewards": jnp.zeros(256), "next_observations": jnp.ones((256, 1))})
        state.params["log_entropy_weight"] = jnp.zeros(())
    q = sac.Critic(args.hidden_dims).apply(state.params["critic"], jnp.ones((1, 1)), jnp.zeros((1, 1)))
    np.testing.assert_allclose(q, 0.5 * np.log(2) / (1 - 0.5), atol=0.1)


def test_a_short_training_saves_the_policy_that_collection_reads(tmp_path, monkeypatch):
    path, steps, trained = tmp_path / "expert", [], []  # NumPy would add an ending
    save = sac.save
    monkeypatch.setattr(sac, "is_upside_down", lambda env: bool(steps.append(1)))
    monkeypatch.setattr(sac, "save", lambda path, actor, dim: (trained.append(actor), save(path, actor, dim)))
    sac.main(sac.Args(out=str(path), updates=3, num_envs=2, warmup=300, eval_every=3, eval_episodes=1))
    assert len(steps) == 1000  # one evaluation of one episode
    assert [file.name for file in tmp_path.iterdir()] == ["expert"]
    with np.load(path) as saved, np.load(procedures.ANT_EXPERT) as shipped:
        assert {name: x.shape for name, x in saved.items()} == {name: x.shape for name, x in shipped.items()}
    monkeypatch.setattr(procedures, "ANT_EXPERT", path)
    _, _, act = sac.make_sac(sac.Args(out=""), observation_dim=29, action_dim=8)
    x = np.random.default_rng(0).standard_normal(29)
    np.testing.assert_allclose(procedures._load_ant_expert()(x), act(trained[0], x, None), atol=1e-5)


def test_upside_down_is_the_torso_pointing_down():
    env = sac.make_env(sac.Args(out=""))
    env.reset(seed=0)
    assert not sac.is_upside_down(env)
    env.unwrapped.data.qpos[3:7] = (0, 1, 0, 0)  # half a turn about x
    assert sac.is_upside_down(env)
    env.close()


def test_a_folder_that_is_not_there_is_said_before_the_training(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        sac.main(sac.Args(out=str(tmp_path / "nowhere" / "expert.npz")))
