"""Diffusion-QL against the authors' code (numbers in tests/golden), and part by part by hand."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import acting, compiled, small_agent
from parity import (
    assert_close,
    assert_moved,
    assert_trees_close,
    cases,
    check_actions,
    check_means,
    check_number,
    check_schedule,
    check_td_loss,
    check_updates,
    draw_losses,
    fixed_diffusion_agent,
    golden_field,
    gradient_of,
    tree,
)

import diffusion_ql
from common.critics import MLP, Critic, mish

# ------------------------------------------------------------------------------------------------ the authors' numbers


@pytest.mark.parametrize("case", cases("diffusion_schedules"))
def test_schedule_matches_the_authors(case):
    schedule = diffusion_ql.make_schedule(int(case["T"]), str(case["schedule"]))
    check_schedule(schedule, case)
    assert_close(schedule.posterior_action, case, "posterior_mean_coef1")
    assert_close(schedule.posterior_x, case, "posterior_mean_coef2")
    assert_close(schedule.posterior_std**2, case, "posterior_variance")
    if case["schedule"] == "vp":
        jax.tree.map(np.testing.assert_array_equal, diffusion_ql.make_schedule(int(case["T"])), schedule)


@pytest.mark.parametrize("case", cases("ddpm_sampler_ql"))
def test_each_reverse_step_and_the_whole_chain_match_the_authors(case):
    schedule = diffusion_ql.make_schedule(int(case["T"]), str(case["schedule"]))
    eps_fn, num_steps = golden_field(case), int(case["T"])
    for t in reversed(range(num_steps)):
        x = jnp.asarray(case["chain"][num_steps - 1 - t], jnp.float32)
        after = diffusion_ql.reverse_step(x, eps_fn(x, t), t, case["z"][t], schedule)
        tolerance = max(1e-5, 2 * float(case["f32_err"]))
        np.testing.assert_allclose(after, case["chain"][num_steps - t], rtol=1e-5, atol=tolerance)
    chain = jax.jit(lambda x, noise: diffusion_ql.reverse_chain(eps_fn, x, noise, schedule))
    assert_close(chain(case["x_T"], case["z"]), case, "actions")


@pytest.mark.parametrize("case", [case for case in cases("td_targets") if case.values[0]["q_agg"] == "min"])
def test_td_loss_and_target_match_the_authors(case):
    def td_loss(q, next_q, rewards, masks, discount, _):
        return diffusion_ql.td_loss(q, next_q[..., None], rewards, masks, discount)

    check_td_loss(td_loss, case, summed=True)


def test_the_td_target_takes_the_maximum_over_samples_first():
    q, rewards, masks = jnp.zeros((2, 1)), jnp.ones(1), jnp.ones(1)
    # Maxima 4 and 3; the minimum over critics first would give 2.
    next_q = jnp.array([[[4.0, 0.0, 2.0]], [[1.0, 3.0, 2.0]]])
    assert diffusion_ql.td_loss(q, next_q, rewards, masks, 0.5) == pytest.approx(2 * (1 + 0.5 * 3) ** 2)


@pytest.mark.parametrize(("max_q_backup", "num_actions"), [(False, 1), (True, 10)])
def test_max_q_backup_draws_ten_next_actions_for_each_state(max_q_backup, num_actions):
    agent, state, batch, args = make(max_q_backup=max_q_backup)
    with mock.patch.object(jax.random, "normal", wraps=jax.random.normal) as normal:
        jax.eval_shape(agent.losses["critic"], state.params["critic"], state, batch, state.key)
    first, steps = (8, num_actions, 2), (args.diffusion_steps, 8, num_actions, 2)
    assert [call.args[1] for call in normal.call_args_list] == [first, steps]


@pytest.mark.parametrize("case", cases("agent_step_diffusion_ql"))
def test_the_whole_agent_matches_the_authors(case):
    """Losses and gradients at fixed parameters; three updates, the last of which moves the target actor; and actions.
    All are random, and compared in the mean."""
    hp = {key[3:]: case[key].tolist() for key in case.files if key.startswith("hp.")}
    args = diffusion_ql.Args(
        hidden_dims=tuple(hp["hidden_dims"]),
        learning_rate=hp["lr"],
        critic_learning_rate=hp["critic_lr"],
        discount=hp["discount"],
        target_rate=hp["tau"],
        eta=hp["eta"],
        grad_norm=hp["grad_norm"],
        max_q_backup=hp["max_q_backup"],
    )
    agent, state, batch = fixed_diffusion_agent(diffusion_ql, args, case, ("actor", "critic"))
    state = state._replace(step=jnp.int32(hp["step"]))
    grads, metrics = draw_losses(agent, state, batch)
    for name in state.params:
        check_means(grads[name], tree(case, f"grad_mean.{name}"), tree(case, f"grad_se.{name}"))
    for ours, theirs in {"critic": "critic", "actor": "actor", "denoising": "bc", "q": "ql"}.items():
        check_number(metrics[f"losses/{ours}"], case, f"{theirs}_loss")

    check_updates(agent, state, batch, case)
    check_actions(agent, state, case)


# -------------------------------------------------------------------------------------------------------- whole updates

make = functools.partial(small_agent, diffusion_ql, eta=3.0, grad_norm=1e9)


def make_critic(args):
    return Critic(args.hidden_dims, layer_norm=args.critic_layer_norm, **diffusion_ql.TORCH)


def gradients(state):
    """Adam's first moment after its first step is 0.1 times the gradient."""
    return {name: jax.tree.map(lambda mu: 10 * mu, s[1][0].mu) for name, s in state.optimizer_state.items()}


def test_the_whole_chain_carries_gradient():
    """d action / d x_T by hand: each reverse step multiplies by a number that is known where nothing is clipped."""
    schedule = diffusion_ql.make_schedule(5)
    w = 0.3
    x, noise = jnp.full((1, 1), 0.01), jnp.zeros((5, 1, 1))
    chain = lambda w, x: diffusion_ql.reverse_chain(lambda x, t: w * x, x, noise, schedule).sum()  # noqa: E731
    by_hand = 1.0
    for t in range(5):
        clean = (1 - schedule.noise[t] * w) / schedule.signal[t]
        by_hand *= schedule.posterior_action[t] * clean + schedule.posterior_x[t]
    assert jax.grad(chain, argnums=1)(w, x)[0, 0] == pytest.approx(float(by_hand), rel=1e-4)
    step = 1e-2
    numeric = (chain(w + step, x) - chain(w - step, x)) / (2 * step)
    assert jax.grad(chain)(w, x) == pytest.approx(float(numeric), rel=1e-2)


# ----------------------------------------------------------------------------------------- targets, optimisers, acting


def test_actor_and_target_critic_follow_the_critic_after_its_step():
    agent, state, batch, _ = make()
    after, _ = agent.update(state, batch)
    stepped = state._replace(params=state.params | {"critic": after.params["critic"]})
    actor_key = jax.random.split(state.key, 3)[2]
    assert_trees_close(gradients(after)["actor"], gradient_of(agent, "actor", stepped, batch, actor_key)[0])
    assert_moved(after.target_critic, state.target_critic, after.params["critic"], 0.3)


def test_target_actor_moves_every_fifth_update_from_the_thousandth_on():
    agent, state, batch, _ = make()
    for step, moves in [(0, 0), (5, 0), (995, 0), (999, 0), (1000, 1), (1001, 0), (1004, 0), (1005, 1), (5003, 0)]:
        after, _ = agent.update(state._replace(step=jnp.int32(step)), batch)
        assert_moved(after.target_actor, state.target_actor, after.params["actor"], 0.005 * moves)
        if not moves:
            jax.tree.map(np.testing.assert_array_equal, after.target_actor, state.target_actor)


def test_gradients_are_clipped_each_network_on_its_own():
    agent, state, batch, _ = make()
    clipping, *_ = make(grad_norm=0.5)
    raw, clipped = (
        gradients(a.update(state, batch | {"rewards": 50 * batch["rewards"]})[0]) for a in (agent, clipping)
    )
    norms = {name: float(optax.global_norm(g)) for name, g in raw.items()}
    assert min(norms.values()) > 1
    assert max(norms.values()) / min(norms.values()) > 1.5
    for name in ("actor", "critic"):
        assert optax.global_norm(clipped[name]) == pytest.approx(0.5, rel=1e-3)
    expected = jax.tree.map(lambda g: g * 0.5 / norms["critic"], raw["critic"])
    assert_trees_close(clipped["critic"], expected, rtol=1e-3, atol=1e-6)


def test_acting_draws_one_of_the_samples_with_probability_softmax_q():
    """By the means of the lower and of the higher Q over many choices, against softmax weights on groups of unchosen
    actions. Both critics have the same mean, so that each is the lower one at many actions."""
    agent, state, _, args = make(num_samples=10)
    single, *_ = make(num_samples=1)
    target = jax.tree.map(lambda x: x, state.target_critic)
    last = target["params"]["VmapMLP_0"]["Dense_2"]
    last["kernel"] = 30 * last["kernel"]

    def q(actions):
        repeated = jnp.broadcast_to(jnp.arange(3) / 2.0, (*actions.shape[:-1], 3))
        return np.asarray(make_critic(args).apply(target, repeated, actions), np.float64)

    unchosen = acting(single, state, 100_000)
    last["bias"] = last["bias"] - q(unchosen).mean(axis=1, keepdims=True)
    assert 0.2 < np.mean(np.diff(q(unchosen), axis=0) > 0) < 0.8
    raw = np.sort(q(unchosen), axis=0).reshape(2, -1, 10)
    chosen = np.sort(q(acting(agent, state, 10_000, target_critic=target)), axis=0)
    weights = np.exp(raw[0] - raw[0].max(axis=1, keepdims=True))
    expected = ((raw * weights).sum(axis=2) / weights.sum(axis=1)).mean(axis=1)
    error = chosen.std(axis=1) / 100
    assert raw[0].max(axis=1).mean() - expected[0] > 20 * error[0]  # neither the best one ...
    assert expected[0] - raw[0].mean() > 20 * error[0]  # ... nor any one
    assert np.all(np.abs(chosen.mean(axis=1) - expected) < 5 * error)


def test_acting_uses_the_online_actor_and_the_target_critic():
    agent, state, _, _ = make()
    nan = lambda tree: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tree)  # noqa: E731
    params = {"actor": state.params["actor"], "critic": nan(state.params["critic"])}
    unused = acting(agent, state, 50, params=params, target_actor=nan(state.target_actor))
    np.testing.assert_array_equal(unused, acting(agent, state, 50))
    assert np.abs(unused).max() <= 1


def test_networks_have_the_papers_shapes():
    agent = compiled(diffusion_ql.make_agent(diffusion_ql.Args(), 29, 8))
    shapes = jax.eval_shape(agent.init, jax.random.PRNGKey(0)).params
    kernels = lambda tree: [tree[f"Dense_{i}"]["kernel"].shape for i in range(len(tree))]  # noqa: E731
    actor, critic = shapes["actor"]["params"], shapes["critic"]["params"]
    assert kernels(actor["MLP_0"]) == [(16, 32), (32, 16)]
    assert kernels(actor["MLP_1"]) == [(8 + 16 + 29, 256), (256, 256), (256, 256), (256, 8)]
    assert kernels(critic["VmapMLP_0"]) == [(2, 37, 256), (2, 256, 256), (2, 256, 256), (2, 256, 1)]


def test_mish_and_its_gradient_are_exact_where_the_exponential_overflows_too():
    x32 = np.concatenate([np.linspace(-50, 50, 2_001), [-1e30, -1e4, 88.0, 1e4, 1e30]]).astype(np.float32)
    x = x32.astype(np.float64)
    with np.errstate(over="ignore"):
        fraction = np.tanh(np.logaddexp(0, x))
        slope = fraction + x * (1 - fraction**2) / (1 + np.exp(-x))
    np.testing.assert_allclose(mish(x32), x * fraction, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(jax.grad(mish))(x32), slope, rtol=0, atol=1e-5)


def test_layer_norm_is_the_critics_alone_and_comes_after_mish():
    _, state, batch, args = make(critic_layer_norm=True)
    for without in (state.params["actor"], make()[1].params):
        assert "LayerNorm" not in str(jax.tree.structure(without))
    params = state.params["critic"]["params"]["VmapMLP_0"]
    q = make_critic(args).apply(state.params["critic"], batch["observations"], batch["actions"])
    for i in range(2):
        x = np.concatenate([batch["observations"], batch["actions"]], axis=-1)
        for layer in range(2):
            dense, norm = params[f"Dense_{layer}"], params[f"LayerNorm_{layer}"]
            x = x @ dense["kernel"][i] + dense["bias"][i]
            x = x * np.tanh(np.log1p(np.exp(x)))
            x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
            x = x * norm["scale"][i] + norm["bias"][i]
        expected = x @ params["Dense_2"]["kernel"][i] + params["Dense_2"]["bias"][i]
        np.testing.assert_allclose(q[i], expected[:, 0], rtol=1e-4, atol=1e-5)


def test_time_embedding_is_the_transformers():
    """16 numbers: sines, then cosines, of t times frequencies from 1 down to 1/10000."""
    actor, zeros = diffusion_ql.Actor((4,), 1), jnp.zeros((1, 1))
    params = actor.init(jax.random.PRNGKey(0), zeros, zeros, 0)
    _, inside = actor.apply(params, zeros, zeros, 3, capture_intermediates=True)
    frequencies = 10_000.0 ** -(np.arange(8) / 7)
    waves = np.concatenate([np.sin(3 * frequencies), np.cos(3 * frequencies)])
    expected = MLP((32,), 16, activation=mish).apply({"params": params["params"]["MLP_0"]}, waves)
    np.testing.assert_allclose(inside["intermediates"]["MLP_0"]["__call__"][0], expected, rtol=1e-4, atol=1e-5)
