"""Comparison with numbers from the authors' code (tests/golden, where a file is one configuration)."""

from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiled

GOLDEN = Path(__file__).parent / "golden"


def cases(name):
    """The files of one kind, as parameters of a test."""
    files = sorted(GOLDEN.glob(f"{name}_*.npz"))
    return [pytest.param(np.load(path), id=path.stem, marks=pytest.mark.golden) for path in files]


def assert_close(value, case, key):
    """The fixtures' tolerance: 1e-5, or twice the error that the authors' own float32 makes."""
    tolerance = max(1e-5, 2 * float(case["f32_err"])) if "f32_err" in case else 1e-5
    np.testing.assert_allclose(np.asarray(value), case[key], rtol=1e-5, atol=tolerance)


def assert_trees_close(ours, theirs, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


def assert_moved(after, before, goal, rate):
    """That a target has moved by this share of the way to its goal."""
    expected = jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, before, goal)
    assert_trees_close(after, expected, rtol=1e-5, atol=1e-7)


def golden_field(case):
    """The fixtures' stand-in for the network that the steps of a chain or a flow ask, a function of (x, t)."""
    return lambda x, t: jnp.sin(case["obs"] @ case["W1"]) + x @ case["W2"] + t * case["b"]


def assert_same_mean(ours, theirs, name):
    """Two samples of the same random number, or array of them, along axis 0."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    error = np.sqrt(ours.var(axis=0) / len(ours) + theirs.var(axis=0) / len(theirs) + 1e-12)
    worst = np.max(np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) / error)
    assert worst < 6, f"{name}: {worst:.1f} standard errors"


def assert_same_spread(ours, theirs, name):
    """The standard deviations of two samples: one draw for a whole batch has the right mean and another spread."""
    variances, errors = [], []
    for sample in (ours, theirs):
        deviations = np.asarray(sample, np.float64) - np.mean(sample, dtype=np.float64)
        variances.append(np.mean(deviations**2))
        errors.append((np.mean(deviations**4) - variances[-1] ** 2) / len(sample))
    distance = abs(variances[0] - variances[1]) / np.sqrt(sum(errors) + 1e-24)
    assert distance < 6, f"{name}: variances {variances}"


def tree(case, prefix):
    """A network's parameters, or figures of the same shape, whose names in the fixture are ours."""
    arrays = {key[len(prefix) + 1 :]: case[key] for key in case.files if key.startswith(f"{prefix}.")}
    return {
        "params": flax.traverse_util.unflatten_dict({k: jnp.asarray(x, jnp.float32) for k, x in arrays.items()}, ".")
    }


def check_means(draws, means, errors):
    """Trees of random arrays, the draws along axis 0, against the authors' means and standard errors."""
    draws, means, errors = (flax.traverse_util.flatten_dict(x) for x in (draws, means, errors))
    assert means.keys() == draws.keys()
    for name, values in draws.items():
        values, mean, error = (np.asarray(x, np.float64) for x in (values, means[name], errors[name]))
        scale = np.sqrt(error**2 + values.var(axis=0) / len(values) + 1e-12)
        assert np.max(np.abs(values.mean(axis=0) - mean) / scale) < 6, name


def check_number(values, case, name):
    """The draws of a random number against the authors' mean, and their spread: two draws from one key would add up to
    another."""
    values, mean = np.asarray(values, np.float64), case[f"mean.{name}"]
    error = np.hypot(case[f"se.{name}"], values.std() / np.sqrt(len(values)))
    assert abs(values.mean() - mean) <= 4.5 * error + 1e-5 * max(1, abs(mean)), name
    deviations, spread = values - values.mean(), values.std()
    error = np.sqrt(max(np.mean(deviations**4) - spread**4, 0) / (2 * len(values))) / max(spread, 1e-12)
    assert abs(spread - case[f"std.{name}"]) <= 4.5 * error + 1e-5 * max(1, abs(mean)), name


def check_schedule(schedule, case):
    """The constants that both diffusion methods have."""
    assert all(x.dtype == jnp.float32 for x in schedule)
    assert_close(schedule.betas, case, "betas")
    assert_close(schedule.alphas, case, "alphas")
    assert_close(schedule.alpha_bars, case, "alpha_hats")
    assert_close(1 / schedule.signal, case, "sqrt_recip_alpha_hats")
    assert_close(schedule.noise / schedule.signal, case, "sqrt_recipm1_alpha_hats")


def draw(function, *inputs, num_draws=4096):
    """function(key, *inputs) for so many keys, the results along axis 0."""

    @jax.jit  # with inputs, not constants: what XLA folds comes out otherwise with jax 0.6
    def draws(keys, *inputs):
        return jax.lax.map(lambda key: function(key, *inputs), keys, batch_size=256)

    return draws(jax.random.split(jax.random.PRNGKey(1), num_draws), *inputs)


def draw_losses(agent, state, batch):
    """Gradients and metrics of critic and actor for 4,096 keys."""

    def losses(key, state, batch):
        gradients, metrics = {}, {}
        for (name, loss), loss_key in zip(agent.losses.items(), jax.random.split(key)):
            gradients[name], values = jax.grad(loss, has_aux=True)(state.params[name], state, batch, loss_key)
            metrics |= values
        return gradients, metrics

    return draw(losses, state, batch)


def fixed_agent(script, args, case, params, **targets):
    """The agent, its state with these parameters and targets, and the fixture's batch."""
    agent = compiled(script.make_agent(args, int(case["obs_dim"]), int(case["action_dim"])))
    state = agent.init(jax.random.PRNGKey(0))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), state.params, params)
    batch = {key[6:]: jnp.asarray(case[key]) for key in case.files if key.startswith("batch.")}
    return agent, state._replace(params=params, **targets), batch


def gradient_of(agent, name, state, batch, key=None):
    """The gradient of one loss at the state's parameters of that name, and the loss's metrics."""
    return jax.jit(jax.grad(agent.losses[name], has_aux=True))(state.params[name], state, batch, key)


def fixed_diffusion_agent(script, args, case, names):
    """The same with the fixture's parameters of these networks and of both targets."""
    params, targets = (
        {name: tree(case, f"param.{name}") for name in group} for group in (names, ("target_actor", "target_critic"))
    )
    return fixed_agent(script, args, case, params, **targets)


def check_updates(agent, state, batch, case, exact=()):
    """How far the fixture's number of updates on the same batch moves each network and target, for 1,024 keys. exact:
    those in which nothing is random."""
    num_updates = int(case["hp.updates"])

    def networks(state):
        return state.params | {"target_actor": state.target_actor, "target_critic": state.target_critic}

    def updates(key, state, batch):
        after = jax.lax.fori_loop(0, num_updates, lambda _, s: agent.update(s, batch)[0], state._replace(key=key))
        return jax.tree.map(jnp.subtract, networks(after), networks(state))

    for name, moved in draw(updates, state, batch, num_draws=1024).items():
        if name in exact:
            assert_trees_close(jax.tree.map(lambda x: x[0], moved), tree(case, f"moved.{name}"), atol=3e-6)
        else:
            check_means(moved, tree(case, f"moved_mean.{name}"), tree(case, f"moved_se.{name}"))


def check_actions(agent, state, case):
    """Mean and spread of the actions in one state, for 1,024 keys."""
    inputs = (state, case["act.observation"][None])
    actions = np.asarray(draw(lambda key, state, s: agent.act(state, s, key)[0], *inputs, num_draws=1024))
    assert_same_mean(actions, case["act.actions"], "actions")
    for i in range(actions.shape[1]):
        assert_same_spread(actions[:, i], case["act.actions"][:, i], f"action {i}")


def mlp_params(case, prefix):
    """Parameters of a fixture, or figures of the same shape, in the layout of common.critics.MLP."""
    layers = {}
    for key in case.files:
        if key.startswith(f"{prefix}."):
            layer, leaf = key[len(prefix) + 1 :].split(".")
            kind, i = layer.split("_")
            layers.setdefault(f"{'Dense' if kind == 'dense' else 'LayerNorm'}_{i}", {})[leaf] = jnp.asarray(case[key])
    return {"params": layers}


def critic_params(case, prefix):
    """The same in the layout of common.critics.Critic."""
    return {"params": {"VmapMLP_0": mlp_params(case, prefix)["params"]}}


def check_td_loss(td_loss, case, summed=False):
    """Loss, gradient and target, and that the target gets no gradient. summed: the loss is a sum over the critics. The
    fixture's gradient is always that of their mean."""
    rest = case["rewards"], case["masks"], float(case["discount"]), str(case["q_agg"])
    value, gradient = jax.value_and_grad(td_loss)(jnp.asarray(case["q"]), case["next_q"], *rest)
    assert_close(value, case, "critic_loss_sum" if summed else "critic_loss")
    scale = len(case["q"]) if summed else 1
    assert_close(gradient, {"grad_q": scale * case["grad_q"], "f32_err": case["f32_err"]}, "grad_q")
    # The gradient is scale * 2 (q - target) / (E B), so the target can be read off it.
    for target in case["q"] - gradient * case["q"].size / 2 / scale:
        assert_close(target, case, "target")
    assert not np.any(jax.grad(td_loss, argnums=1)(case["q"], case["next_q"], *rest))


def shared_args(case):
    """What the fixtures of all agents say in the same words."""
    return dict(
        hidden_dims=tuple(int(x) for x in case["hp.value_hidden_dims"]),
        batch_size=int(case["hp.batch_size"]),
        discount=float(case["hp.discount"]),
        q_agg=str(case["hp.q_agg"]),
        target_rate=float(case["hp.tau"]),
    )


def agent_params(case, prefix, actor):
    """A script's `params`, filled with the fixture's arrays of that prefix. actor: the fixture's name of the actor, or
    the names of its parts as a dictionary."""
    networks = jax.tree.map(lambda name: mlp_params(case, f"{prefix}.{name}"), actor)
    return {"actor": networks, "critic": critic_params(case, f"{prefix}.critic")}


def check_agent_step(script, args, case, actor, metric_names):
    """Losses, gradients and the target's step at fixed parameters and batch, in the mean over 4096 random keys.

    actor: as for agent_params; metric_names: the script's -> the fixture's, besides those of the critic and the total.
    """
    params, target = agent_params(case, "param", actor), critic_params(case, "param.target_critic")
    agent, state, batch = fixed_agent(script, args, case, params, target_critic=target)
    gradients, metrics = draw_losses(agent, state, batch)
    metrics["total"] = metrics["losses/critic"] + metrics["losses/actor"]
    names = {
        "losses/critic": "critic.critic_loss",
        "train/q_mean": "critic.q_mean",
        "train/q_min": "critic.q_min",
        "train/q_max": "critic.q_max",
        "losses/actor": "actor.actor_loss",
        "total": "total_loss",
    }
    for ours, theirs in (names | metric_names).items():
        check_number(metrics[ours], case, theirs)
    check_means(gradients, agent_params(case, "grad_mean", actor), agent_params(case, "grad_se", actor))

    # An update is a step of Adam along these gradients.
    after, update_metrics = agent.update(state, batch)
    _, critic_key, actor_key = jax.random.split(state.key, 3)
    for name, key in (("critic", critic_key), ("actor", actor_key)):
        gradient, values = gradient_of(agent, name, state, batch, key)
        assert_trees_close(jax.tree.map(lambda mu: mu / (1 - 0.9), after.optimizer_state[0].mu[name]), gradient)
        assert_trees_close({key: update_metrics[key] for key in values}, values)

    # The target moves towards the critic as it was before the gradient step.
    assert_moved(after.target_critic, target, params["critic"], args.target_rate)
