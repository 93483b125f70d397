"""FQL against the authors' code: numbers in tests/golden. What it learns: test_learning.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled, make_dataset
from parity import assert_close, cases, check_agent_step, check_td_loss, golden_field, mlp_params, shared_args
from test_learning import train

import fql


@pytest.mark.parametrize("case", cases("flow_matching"))
def test_interpolation_matches_the_authors(case):
    x_t, velocity = fql.interpolate(case["x_0"], case["x_1"], case["t"])
    assert_close(x_t, case, "x_t")
    assert_close(velocity, case, "velocity")
    predicted = golden_field(case)(x_t, case["t"])
    assert_close(jnp.mean((predicted - velocity) ** 2), case, "loss")


@pytest.mark.parametrize("case", cases("flow_euler"))
def test_euler_integration_matches_the_authors(case):
    integrate = jax.jit(lambda noise: fql.integrate_flow(golden_field(case), noise, int(case["flow_steps"])))
    assert_close(integrate(case["noise"]), case, "actions")


def test_a_straight_flow_is_integrated_exactly_and_clipped_only_at_the_end():
    """The velocity depends on x, so clipping on the way would change where the points go."""
    noise = jnp.array([[3.0, -0.25]])
    actions = fql.integrate_flow(lambda x, t: jnp.array([[0.5, 0.1]]) - noise, noise, 7)
    np.testing.assert_allclose(actions, [[0.5, 0.1]], atol=1e-6)
    # From 3 the second coordinate is pushed only while the first one is beyond 2.
    actions = fql.integrate_flow(lambda x, t: jnp.stack([-2 + 0 * x[:, 0], x[:, 0] > 2], axis=-1), noise, 4)
    np.testing.assert_allclose(actions, [[1.0, 0.25]], atol=1e-6)
    actions = fql.integrate_flow(lambda x, t: jnp.full_like(x, 9.0) * jnp.array([1, -1]), noise, 4)
    np.testing.assert_allclose(actions, [[1.0, -1.0]])


@pytest.mark.parametrize("case", cases("td_targets"))
def test_td_loss_matches_the_authors(case):
    check_td_loss(fql.td_loss, case)


@pytest.mark.parametrize("case", cases("mlp"))
def test_networks_match_the_authors(case):
    hidden, action_dim = tuple(case["hidden_dims"]), case["actions"].shape[-1]
    obs, actions, times = (jnp.asarray(case[key]) for key in ("obs", "actions", "times"))
    one_step = fql.Actor(hidden, action_dim).apply(mlp_params(case, "param.onestep"), obs, actions)
    assert_close(one_step, case, "onestep_out")
    velocity = fql.Flow(hidden, action_dim).apply(mlp_params(case, "param.actor"), obs, actions, times)
    assert_close(velocity, case, "actor_out")


@pytest.mark.parametrize("case", cases("agent_step_fql"))
def test_a_whole_update_matches_the_authors(case):
    args = fql.Args(
        **shared_args(case),
        alpha=float(case["hp.alpha"]),
        flow_steps=int(case["hp.flow_steps"]),
        normalize_q=bool(case["hp.normalize_q_loss"]),
    )
    actor = {"one_step": "actor_onestep_flow", "flow": "actor_bc_flow"}
    metrics = {
        "losses/flow": "actor.bc_flow_loss",
        "losses/distill": "actor.distill_loss",
        "losses/q": "actor.q_loss",
    }
    check_agent_step(fql, args, case, actor, metrics)


def test_flow_steps_changes_the_distillation_and_nothing_else():
    """One step from noise is not where ten steps lead; the same random numbers otherwise."""
    batch = {"observations": jnp.ones((8, 3)), "actions": jnp.full((8, 2), 0.3), "rewards": jnp.ones(8)}
    batch |= {"next_observations": batch["observations"], "masks": jnp.ones(8)}
    metrics = []
    for flow_steps in (1, 10):
        agent = compiled(fql.make_agent(fql.Args(hidden_dims=(8,), batch_size=8, flow_steps=flow_steps), 3, 2))
        metrics.append(agent.update(agent.init(jax.random.PRNGKey(0)), batch)[1])
    one, ten = metrics
    assert abs(one["losses/distill"] - ten["losses/distill"]) > 1e-4
    for name in ("losses/flow", "losses/q", "losses/critic"):
        np.testing.assert_allclose(one[name], ten[name], rtol=1e-6)


def test_the_flow_reproduces_the_data():
    """Behaviour alone, two modes: the flow carries noise to both, and so does the one-step policy that imitates it."""
    dataset = make_dataset([[0.0]] * 2, [[-0.6], [0.6]], [0.0] * 2, [0.0] * 2, [1, 1])
    agent, state = train(fql, dataset, 1000, hidden_dims=(32, 32), batch_size=128, alpha=100.0)
    flow, observations = fql.Flow((32, 32), 1), jnp.zeros((500, 1))
    noise = jax.random.normal(jax.random.PRNGKey(1), (500, 1))
    velocity_fn = lambda x, t: flow.apply(state.params["actor"]["flow"], observations, x, t)  # noqa: E731
    teacher = np.asarray(fql.integrate_flow(velocity_fn, noise, 10))
    policy = np.asarray(agent.act(state, observations, jax.random.PRNGKey(1)))
    for actions in (teacher, policy):
        assert np.mean(np.abs(np.abs(actions) - 0.6) < 0.2) > 0.85
        assert 0.4 < np.mean(actions > 0) < 0.6
