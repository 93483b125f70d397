"""DROL against the authors' code: numbers in tests/golden. What it learns: test_learning.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled
from parity import (
    agent_params,
    assert_close,
    assert_trees_close,
    cases,
    check_agent_step,
    check_td_loss,
    critic_params,
    fixed_agent,
    mlp_params,
    shared_args,
)

import drol
from common.critics import Critic


@pytest.mark.parametrize("case", cases("drol_latents"))
def test_latents_are_uniform_in_the_ball(case):
    """Radius and second moments as the authors', and as the exact values; 5 standard errors."""
    n, dim, radius = 200_000, int(case["A"]), float(case["R"])
    latents = np.asarray(drol.sample_latents(jax.random.PRNGKey(0), (n // 4, 4, dim)), np.float64).reshape(n, dim)
    norms, error = np.linalg.norm(latents, axis=1), float(case["radius_std"]) / np.sqrt(n)
    assert norms.max() <= radius * (1 + 1e-6)
    assert abs(norms.mean() - case["radius_mean"]) < 5 * np.sqrt(2) * error
    assert abs(norms.mean() - case["exact_radius_mean"]) < 5 * error
    assert norms.std() == pytest.approx(float(case["radius_std"]), rel=0.01)
    for level, theirs, exact in zip(case["quantile_levels"], case["radius_quantiles"], case["exact_radius_quantiles"]):
        # Standard error of a quantile: sqrt(p (1 - p) / n) over the density A r^(A - 1) / R^A.
        quantile_error = np.sqrt(level * (1 - level) / n) * radius**dim / (dim * exact ** (dim - 1))
        assert abs(np.quantile(norms, level) - exact) < 5 * quantile_error
        assert abs(np.quantile(norms, level) - theirs) < 5 * np.sqrt(2) * quantile_error
    entry_error = np.sqrt(case["exact_cov_diag"] / n)
    assert np.abs(latents.mean(axis=0)).max() < 5 * entry_error
    exact_cov = case["exact_cov_diag"] * np.eye(dim)
    product_error = np.sqrt((latents[:, :, None] * latents[:, None, :]).var(axis=0) / n)
    assert np.all(np.abs(np.cov(latents.T) - exact_cov) < 5 * product_error)
    assert np.all(np.abs(np.cov(latents.T) - case["cov"]) < 5 * np.sqrt(2) * product_error)


def test_a_direction_of_length_zero_is_no_nan(monkeypatch):
    """In one dimension float32 normals are exactly 0 about once in ten million draws."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.zeros(shape))
    np.testing.assert_array_equal(drol.sample_latents(jax.random.PRNGKey(0), (5, 1)), 0)


def golden_q(case, candidates):
    """The fixtures' critics, (E, B, K). Where the authors' agent takes their mean: an ensemble of that one."""
    of_action = jnp.einsum("bka,ea->ebk", candidates, case["w"])
    of_state = jnp.einsum("bs,es->eb", case["obs"], case["u"])
    q = jnp.tanh(of_action + of_state[..., None])
    return q.mean(axis=0, keepdims=True) if str(case["actor_q_agg"]) == "mean" else q


@pytest.mark.parametrize("case", cases("drol_routing"))
def test_routing_loss_and_gradient_match_the_authors(case):
    def loss(raw):
        candidates = jnp.clip(raw, -1, 1)
        winner = drol.route(candidates, case["actions"])[:, None]
        q = jnp.take_along_axis(golden_q(case, candidates), winner[None], axis=-1).squeeze(-1)
        winners = jnp.take_along_axis(candidates, winner[..., None], axis=1).squeeze(1)
        return drol.routed_loss(winners, case["actions"], q, float(case["bc_coef"]), float(case["q_coef"]))

    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(case["candidates"])
    assert_close(value, case, "actor_loss")
    assert_close(metrics["losses/actor"], case, "actor_loss")
    assert_close(metrics["losses/bc"], case, "bc_loss")
    assert_close(metrics["losses/q"], case, "q_loss")
    assert_close(gradient, case, "grad_candidates")
    winner = drol.route(jnp.clip(case["candidates"], -1, 1), case["actions"])
    np.testing.assert_array_equal(winner, case["winner"])
    losers = np.arange(case["candidates"].shape[1]) != np.asarray(winner)[:, None]
    assert not np.any(np.asarray(gradient)[losers])


def test_a_vanishing_q_does_not_divide_by_zero():
    winners, actions = jnp.zeros((3, 1)), jnp.ones((3, 1))
    value, _ = drol.routed_loss(winners, actions, jnp.zeros((2, 3)), 1.0, 1.0)
    assert value == 1.0


@pytest.mark.parametrize("case", cases("td_targets"))
def test_td_loss_matches_the_authors(case):
    check_td_loss(drol.td_loss, case)


@pytest.mark.parametrize("case", cases("mlp"))
def test_networks_match_the_authors(case):
    actor = drol.Actor(tuple(case["hidden_dims"]), case["actions"].shape[-1])
    assert_close(actor.apply(mlp_params(case, "param.onestep"), case["obs"], case["actions"]), case, "onestep_out")


def golden_args(case):
    return drol.Args(
        **shared_args(case),
        bc_coef=float(case["hp.bc_coef"]),
        q_coef=float(case["hp.q_coef"]),
        num_candidates=int(case["hp.num_candidates"]),
    )


@pytest.mark.parametrize("case", cases("agent_step_drol"))
def test_a_whole_update_matches_the_authors(case):
    metrics = {"losses/bc": "actor.bc_loss", "losses/q": "actor.q_loss"}
    check_agent_step(drol, golden_args(case), case, "actor_onestep_flow", metrics)


@pytest.mark.parametrize("case", cases("agent_step_drol"))
def test_the_winner_alone_gives_the_loss_and_gradient_of_all_candidates(case):
    """The update evaluates critic and gradient for the winners only; here all K are, with the same random numbers."""
    args, params = golden_args(case), agent_params(case, "param", "actor_onestep_flow")
    target = critic_params(case, "param.target_critic")
    agent, state, batch = fixed_agent(drol, args, case, params, target_critic=target)
    actor_key = jax.random.PRNGKey(1)
    ours, metrics = jax.jit(jax.grad(agent.losses["actor"], has_aux=True))(params["actor"], state, batch, actor_key)

    actor, critic = drol.Actor(args.hidden_dims, int(case["action_dim"])), Critic(args.hidden_dims)
    repeated = jnp.repeat(batch["observations"][:, None], args.num_candidates, axis=1)
    latents = drol.sample_latents(actor_key, (args.batch_size, args.num_candidates, int(case["action_dim"])))

    def loss_of_all(actor_params):
        candidates = jnp.clip(actor.apply(actor_params, repeated, latents), -1, 1)
        q = critic.apply(params["critic"], repeated, candidates)  # (2, B, K)
        winner = jnp.argmin(jnp.sum((candidates - batch["actions"][:, None]) ** 2, axis=-1), axis=-1)
        is_winner = jax.nn.one_hot(winner, args.num_candidates)  # (B, K); the others get a gradient of zero
        winners = jnp.einsum("bk,bka->ba", is_winner, candidates)
        its_q = jnp.einsum("bk,ebk->eb", is_winner, q)
        loss, metrics = drol.routed_loss(winners, batch["actions"], its_q, args.bc_coef, args.q_coef)
        return loss, metrics | {"train/spread": jnp.sqrt(candidates.var(axis=1)).mean()}

    gradient, of_all = jax.jit(jax.grad(loss_of_all, has_aux=True))(params["actor"])
    for name, value in of_all.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    assert_trees_close(ours, gradient, rtol=1e-4, atol=1e-6)


def test_acting_draws_its_latents_from_the_ball():
    """Seen through an actor that gives a tenth of its latent: far to the right, GELU is the identity. The candidates'
    latents are those of the authors' update, above."""
    dim = 3
    agent = compiled(drol.make_agent(drol.Args(hidden_dims=(dim,), num_candidates=2), 2, dim))
    state = agent.init(jax.random.PRNGKey(0))
    hidden = {"kernel": jnp.eye(5, dim, -2), "bias": jnp.full(dim, 20.0)}
    last = {"kernel": 0.1 * jnp.eye(dim), "bias": jnp.full(dim, -2.0)}
    actor = {"params": {"Dense_0": hidden, "Dense_1": last}}
    state = state._replace(params=state.params | {"actor": actor})
    latents = 10 * np.asarray(agent.act(state, jnp.ones((20_000, 2)), jax.random.PRNGKey(1)))
    norms = np.linalg.norm(latents, axis=1)
    assert norms.max() <= np.sqrt(dim) * 1.001
    assert norms.mean() == pytest.approx(np.sqrt(dim) * dim / (dim + 1), rel=0.01)
    assert np.abs(latents.mean(axis=0)).max() < 0.05
