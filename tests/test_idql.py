"""IDQL against the authors' code (numbers in tests/golden), and part by part by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import acting, compiled, small_agent
from parity import (
    assert_close,
    assert_trees_close,
    cases,
    check_actions,
    check_means,
    check_number,
    check_schedule,
    check_td_loss,
    check_updates,
    draw,
    fixed_diffusion_agent,
    golden_field,
    gradient_of,
    tree,
)

import diffusion_ql
import idql
from common.critics import Critic

# ------------------------------------------------------------------------------------------------ the authors' numbers


def schedule_of(case):
    """The authors' chains were recorded with other schedules too, which Diffusion-QL makes."""
    return idql.Schedule(*diffusion_ql.make_schedule(int(case["T"]), str(case["schedule"]))[:5])


@pytest.mark.parametrize("case", [c for c in cases("diffusion_schedules") if c.values[0]["schedule"] == "vp"])
def test_schedule_matches_the_authors(case):
    check_schedule(idql.make_schedule(int(case["T"])), case)


@pytest.mark.parametrize("case", cases("ddpm_sampler_idql"))
def test_reverse_steps_match_the_authors(case):
    """Step by step, and as the chain that the agent uses. (The fixtures hold the last actions only.) One of them does
    not clip between the steps, ours always does: the step is linear but for the clip, so a small input evades it."""
    schedule = schedule_of(case)
    eps_fn, temperature = golden_field(case), float(case["temperature"])
    scale = 1 if case["clip_sampler"] else 2**20
    x = jnp.asarray(case["x_T"])
    for t in reversed(range(int(case["T"]))):
        inputs = (x / scale, eps_fn(x, t) / scale, t, case["z"][t] / scale)
        x = scale * idql.reverse_step(*inputs, schedule, temperature)
    assert_close(jnp.clip(x, -1, 1), case, "actions")
    if case["clip_sampler"]:
        chain = jax.jit(lambda x, noise: idql.reverse_chain(eps_fn, x, noise, schedule, temperature))
        assert_close(chain(case["x_T"], case["z"]), case, "actions")


@pytest.mark.parametrize("case", cases("ddpm_sampler_idql"))
def test_one_reverse_step_is_ddpms_algorithm_2(case):
    """In float64, clipped; at the first, a middle and the last step. Chains hide much of a step behind the clip."""
    schedule, num_steps = schedule_of(case), int(case["T"])
    rng, betas = np.random.default_rng(0), np.asarray(schedule.betas, np.float64)
    for t in (num_steps - 1, num_steps // 2, 0):
        x, eps, z = 0.5 * rng.standard_normal((3, 7, 2))
        bar = np.prod(1 - betas[: t + 1])
        mean = (x - betas[t] / np.sqrt(1 - bar) * eps) / np.sqrt(1 - betas[t])
        expected = np.clip(mean + (np.sqrt(betas[t]) * 0.5 * z if t else 0), -1, 1)
        ours = idql.reverse_step(*(jnp.asarray(v, jnp.float32) for v in (x, eps)), t, jnp.asarray(z), schedule, 0.5)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("case", cases("expectile"))
def test_expectile_loss_and_its_gradient_match_the_authors(case):
    loss = lambda v: idql.expectile_loss(case["q"].min(axis=0) - v, float(case["expectile"]))  # noqa: E731
    v = jnp.asarray(case["v"])
    assert_close(loss(v), case, "per_sample")
    assert_close(loss(v).mean(), case, "loss")
    assert_close(jax.grad(lambda v: loss(v).mean())(v), case, "grad_v")


@pytest.mark.parametrize("case", cases("td_targets"))
def test_td_loss_and_target_match_the_authors(case):
    def td_loss(q, next_q, rewards, masks, discount, q_agg):
        next_v = next_q.min(axis=0) if q_agg == "min" else next_q.mean(axis=0)
        return idql.td_loss(q, next_v, rewards, masks, discount)

    check_td_loss(td_loss, case)


@pytest.mark.parametrize("case", cases("agent_step_idql"))
def test_the_whole_agent_matches_the_authors(case):
    """Losses and gradients at fixed parameters; two updates; and actions, whose draws are compared in the mean."""
    hp = {key[3:]: case[key].tolist() for key in case.files if key.startswith("hp.")}
    args = idql.Args(
        hidden_dims=tuple(hp["hidden_dims"]),
        actor_width=hp["actor_width"],
        critic_batch_size=hp["critic_batch_size"],
        learning_rate=hp["actor_lr"],
        discount=hp["discount"],
        target_rate=hp["tau"],
        actor_target_rate=hp["actor_tau"],
        expectile=hp["critic_hyperparam"],
        num_samples=hp["N"],
        steps=hp["decay_steps"] // 2,
    )
    agent, state, batch = fixed_diffusion_agent(idql, args, case, ("actor", "value", "critic"))
    for name, metrics in (
        ("value", {"losses/value": "value_loss", "train/v_mean": "v"}),
        ("critic", {"losses/critic": "critic_loss", "train/q_mean": "q"}),
    ):
        grads, values = gradient_of(agent, name, state, batch)
        assert_trees_close(grads, tree(case, f"grad.{name}"))
        for ours, theirs in metrics.items():
            np.testing.assert_allclose(values[ours], case[f"metric.{theirs}"], rtol=1e-5, atol=1e-6)
    grads, values = draw(lambda key, state, batch: gradient_of(agent, "actor", state, batch, key), state, batch)
    check_means(grads, tree(case, "grad_mean.actor"), tree(case, "grad_se.actor"))
    check_number(values["losses/actor"], case, "actor_loss")

    check_updates(agent, state, batch, case, exact=("value", "critic", "target_critic"))  # nothing random in them
    check_actions(agent, state, case)


# -------------------------------------------------------------------------------------------------------- whole updates

make = functools.partial(small_agent, idql, actor_target_rate=0.2, expectile=0.8, critic_batch_size=6)


def test_dropout_takes_a_tenth_before_the_layer_norm_in_training():
    """Of what goes into a block: zeros there, the rest scaled up; what comes out of LayerNorm is normal again."""
    actor = idql.Actor(64, 2)
    inputs = (jnp.ones((200, 3)), jnp.ones((200, 2)), 1)
    params = actor.init(jax.random.PRNGKey(0), *inputs)
    (first, _), (second, seen) = (
        actor.apply(params, *inputs, training=True, rngs={"dropout": key}, capture_intermediates=True)
        for key in jax.random.split(jax.random.PRNGKey(1))
    )
    for other in (second, actor.apply(params, *inputs)):  # another key, and no dropout
        assert not np.allclose(first, other)
    seen = seen["intermediates"]
    before, dropped, normal = (
        np.asarray(seen[f"{name}_0"]["__call__"][0]) for name in ("Dense", "Dropout", "LayerNorm")
    )
    kept = dropped != 0
    assert kept.mean() == pytest.approx(0.9, abs=0.015)
    np.testing.assert_allclose(dropped[kept], before[kept] / 0.9, rtol=1e-5)
    centered = dropped - dropped.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(dropped.var(axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(normal, centered / deviation, rtol=1e-4, atol=2e-5)
    assert all(
        np.mean(np.asarray(seen[f"Dropout_{i}"]["__call__"][0]) == 0) == pytest.approx(0.1, abs=0.015) for i in range(3)
    )


def test_the_sampling_temperature_scales_the_noise_of_the_steps_alone():
    """Not x_T: at temperature 0, what varies between actions is the first draw, in full."""
    agent, state, _, args = make(num_samples=1, sampling_temperature=0.0)
    observations = jnp.broadcast_to(jnp.arange(3) / 2.0, (500, 3))
    actions = acting(agent, state, 500)
    x_key, _ = jax.random.split(jax.random.PRNGKey(2))
    x = jax.random.normal(x_key, (500, 1, 2))[:, 0]
    actor = idql.Actor(16, 2)
    eps_fn = jax.jit(lambda x, t: actor.apply(state.target_actor, observations, x, t))
    schedule = idql.make_schedule(args.diffusion_steps)
    expected = idql.reverse_chain(eps_fn, x, jnp.zeros((args.diffusion_steps, 500, 2)), schedule, 1.0)
    np.testing.assert_allclose(actions, expected, atol=1e-4)
    assert np.asarray(actions).std(axis=0).min() > 0.05


def test_nothing_flows_from_q_to_the_policy():
    agent, state, batch, _ = make()
    after, metrics = agent.update(state, batch)
    params = {"actor": state.params["actor"]} | {
        name: jax.tree.map(lambda x: 3 * x + 1, state.params[name]) for name in ("value", "critic")
    }
    other_batch = batch | {name: 5 * batch[name] + 1 for name in ("rewards", "masks", "next_observations")}
    target_critic = jax.tree.map(lambda x: -x, state.target_critic)
    other, other_metrics = agent.update(state._replace(params=params, target_critic=target_critic), other_batch)
    assert metrics["losses/critic"] != other_metrics["losses/critic"]
    for part in (lambda s: s.params["actor"], lambda s: s.target_actor, lambda s: s.optimizer_state["actor"]):
        jax.tree.map(np.testing.assert_array_equal, part(after), part(other))


# ----------------------------------------------------------------------------------------- targets, optimisers, acting


def adam_step(params, gradients, moments, count, rate):
    """Adam, written out; returns parameters and moments after the step."""
    mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradients)
    nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, moments[1], gradients)
    corrected = lambda m, v: m / (1 - 0.9**count) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)  # noqa: E731
    return jax.tree.map(lambda p, m, v: p - rate * corrected(m, v), params, mu, nu), (mu, nu)


@pytest.mark.parametrize(("count", "share"), [(0, 1.0), (500, 0.853553), (1000, 0.5), (2000, 0.0)])
def test_the_actor_takes_two_steps_of_adam_each_on_its_half_of_the_batch(count, share):
    """Its target moves after each; its rate falls as half a cosine over twice --steps. share: at the first step."""
    agent, state, batch, _ = make()
    optimizer_state = state.optimizer_state | {
        "actor": optax.tree_utils.tree_set(state.optimizer_state["actor"], count=jnp.int32(count))
    }
    state = state._replace(optimizer_state=optimizer_state)
    after, _ = agent.update(state, batch)
    actor, target = state.params["actor"], state.target_actor
    moments = (jax.tree.map(jnp.zeros_like, actor),) * 2
    _, *keys = jax.random.split(state.key, 3)
    gradient = jax.jit(jax.grad(agent.losses["actor"], has_aux=True))
    for i, rows in enumerate((slice(0, 4), slice(4, 8))):
        half = {name: x[rows] for name, x in batch.items()}
        rate = 0.05 * (0.5 + 0.5 * np.cos(np.pi * min(1, (count + i) / 2000)))
        assert rate == pytest.approx(0.05 * share, rel=0.01, abs=1e-7)
        actor, moments = adam_step(actor, gradient(actor, state, half, keys[i])[0], moments, count + i + 1, rate)
        target = jax.tree.map(lambda old, new: 0.8 * old + 0.2 * new, target, actor)
    assert_trees_close(after.params["actor"], actor, rtol=1e-3, atol=2e-4)
    assert_trees_close(after.target_actor, target, rtol=1e-3, atol=2e-4)
    if share == 1.0:  # and the two halves are not the same
        once, _ = agent.update(state, batch | {"actions": batch["actions"].at[4:].add(0.5)})
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), once.params["actor"], after.params["actor"])
        assert max(jax.tree.leaves(moved)) > 1e-3


def test_the_rates_of_value_and_critic_stay():
    agent, state, batch, _ = make()
    for count in (0, 1000, 5000):
        counted = optax.tree_utils.tree_set(state.optimizer_state, count=jnp.int32(count))
        after, _ = agent.update(state._replace(optimizer_state=counted), batch)
        for name in ("value", "critic"):
            moments = (jax.tree.map(jnp.zeros_like, state.params[name]),) * 2
            gradient = jax.tree.map(lambda mu: 10 * mu, after.optimizer_state[name][0].mu)  # it was 0 before
            expected, _ = adam_step(state.params[name], gradient, moments, count + 1, 0.05)
            assert_trees_close(after.params[name], expected)


def test_acting_takes_the_sample_with_the_highest_min_q():
    """By the mean of min Q over many choices, against the maximum over groups of unchosen actions."""
    agent, state, _, args = make(num_samples=10)
    single, *_ = make(num_samples=1)
    critic = Critic(args.hidden_dims, activation=jax.nn.relu, layer_norm=False)

    def q(actions):
        repeated = jnp.broadcast_to(jnp.arange(3) / 2.0, (*actions.shape[:-1], 3))
        return np.asarray(critic.apply(state.target_critic, repeated, actions), np.float64)

    raw = q(acting(single, state, 100_000)).reshape(2, -1, 10)
    chosen = q(acting(agent, state, 10_000)).min(axis=0)
    error = chosen.std() / 100
    assert abs(chosen.mean() - raw.min(axis=0).max(axis=1).mean()) < 5 * error
    by_mean = np.take_along_axis(raw.min(axis=0), raw.mean(axis=0).argmax(axis=1)[:, None], axis=1)
    assert abs(chosen.mean() - by_mean.mean()) > 20 * error  # ... not that with the highest mean Q


def test_acting_uses_the_target_actor_and_the_target_critic():
    agent, state, _, _ = make()
    params = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params)
    unused = acting(agent, state, 50, params=params)
    np.testing.assert_array_equal(unused, acting(agent, state, 50))
    assert np.abs(unused).max() <= 1


def test_networks_have_the_papers_shapes():
    agent = compiled(idql.make_agent(idql.Args(), 29, 8))
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(agent.init, jax.random.PRNGKey(0)).params)
    kernels = lambda tree: [tree[f"Dense_{i}"]["kernel"] for i in range(9) if f"Dense_{i}" in tree]  # noqa: E731
    actor = shapes["actor"]["params"]
    assert actor["frequencies"] == (32,)  # a cosine and a sine of each
    assert kernels(actor["MLP_0"]) == [(64, 128), (128, 128)]
    blocks = 3 * [(256, 1024), (1024, 256)]
    assert kernels(actor) == [(8 + 29 + 128, 256), *blocks, (256, 8)]
    assert kernels(shapes["critic"]["params"]["VmapMLP_0"]) == [(2, 37, 256), (2, 256, 256), (2, 256, 1)]
    assert kernels(shapes["value"]["params"]) == [(29, 256), (256, 256), (256, 1)]
    narrow = compiled(idql.make_agent(idql.Args(hidden_dims=(8, 4)), 29, 8))
    actor = jax.eval_shape(narrow.init, jax.random.PRNGKey(0)).params["actor"]["params"]
    assert actor["Dense_0"]["kernel"].shape == (8 + 29 + 128, 8)
