"""DriftQL against the authors' code: numbers in tests/golden. What it learns: test_learning.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled, make_dataset
from parity import assert_close, cases, check_agent_step, check_td_loss, critic_params, mlp_params, shared_args
from test_learning import train

import driftql
from common.critics import Critic


@pytest.mark.parametrize("case", cases("drift_field"))
def test_drift_field_matches_the_authors(case):
    """And has finite gradients, which the loss never takes: N = 1, equal candidates, candidates on the corner."""

    def total(candidates):
        field = driftql.drift_field(candidates, case["action"], float(case["temp"]), str(case["kernel"]))
        return jnp.sum(field[0] ** 2), field

    gradient, (drift, attraction, repulsion) = jax.jit(jax.grad(total, has_aux=True))(case["gen"])
    assert_close(drift, case, "V")
    assert_close(attraction, case, "V_attract")
    assert_close(repulsion, case, "V_repel")
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("case", cases("drift_loss"))
def test_drift_loss_and_its_gradient_match_the_authors(case):
    loss = lambda x: driftql.drift_loss(x, case["actions"], float(case["temp"]), str(case["kernel"]))  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(case["gen"])
    assert_close(value, case, "loss")
    assert_close(gradient, case, "grad_gen")


@pytest.mark.parametrize("case", cases("td_targets"))
def test_td_loss_matches_the_authors(case):
    check_td_loss(driftql.td_loss, case)


@pytest.mark.parametrize("case", cases("mlp"))
def test_networks_match_the_authors(case):
    hidden = tuple(case["hidden_dims"])
    obs, actions = jnp.asarray(case["obs"]), jnp.asarray(case["actions"])
    assert_close(Critic(hidden).apply(critic_params(case, "param.value"), obs, actions), case, "value_out")
    actor = driftql.Actor(hidden, actions.shape[-1])
    assert_close(actor.apply(mlp_params(case, "param.onestep"), obs, actions), case, "onestep_out")


@pytest.mark.parametrize("case", cases("agent_step_driftql"))
def test_a_whole_update_matches_the_authors(case):
    args = driftql.Args(
        **shared_args(case),
        alpha=float(case["hp.alpha"]),
        temperature=float(case["hp.drift_temp"]),
        kernel=str(case["hp.kernel"]),
        num_candidates=int(case["hp.drift_ngen"]),
    )
    metrics = {"losses/drift": "actor.bc_drift_loss_raw", "losses/q": "actor.q_loss"}
    check_agent_step(driftql, args, case, "actor_bc_drift", metrics)


def test_repulsion_keeps_the_candidates_apart():
    """The drift moves the policy onto the data. With the repulsion's sign flipped or left out, the candidates fall onto
    one point within these updates; a wide kernel holds them apart. (In the long run gradient noise shrinks the spread
    in a problem with one action: a point is where that noise vanishes.)"""
    dataset = make_dataset([[1.0]], [[0.4]], [0.0], [0.0], [1])
    settings = {"alpha": 100.0, "temperature": 5.0, "kernel": "gaussian", "num_candidates": 16, "learning_rate": 3e-4}
    agent, before = train(driftql, dataset, 0, **settings)
    _, after = train(driftql, dataset, 150, **settings)
    spread, mean = [], []
    for state in (before, after):
        actions = np.asarray(agent.act(state, jnp.ones((1000, 1)), jax.random.PRNGKey(1)))
        spread.append(actions.std())
        mean.append(actions.mean())
    assert abs(mean[0] - 0.4) > 0.2
    assert mean[1] == pytest.approx(0.4, abs=0.05)
    assert spread[1] > 0.5 * spread[0]


def test_the_actor_s_noise_has_the_dimension_that_was_asked_for():
    """Also where it is larger than the action's, or smaller; none given, it is the action's."""
    for noise_dim, expected in ((None, 2), (1, 1), (7, 7)):
        agent = compiled(driftql.make_agent(driftql.Args(hidden_dims=(4,), noise_dim=noise_dim), 3, 2))
        state = agent.init(jax.random.PRNGKey(0))
        kernel = state.params["actor"]["params"]["Dense_0"]["kernel"]
        assert kernel.shape == (3 + expected, 4)
        # Each of them reaches the action.
        observations = jnp.zeros((1000, 3))
        for i in range(3, 3 + expected):
            alone = jax.tree.map(jnp.copy, state.params["actor"])
            alone["params"]["Dense_0"]["kernel"] = jnp.zeros_like(kernel).at[i].set(kernel[i])
            actions = agent.act(state._replace(params=state.params | {"actor": alone}), observations, state.key)
            assert actions.std(axis=0).min() > 1e-3
