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


def batch_of(case):
    return {key[6:]: jnp.asarray(case[key]) for key in case.files if key.startswith("batch.")}


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


def draw(function, *inputs, num_draws=4096):
    """function(key, *inputs) for so many keys, the results along axis 0."""

    @jax.jit  # with inputs, not constants: what XLA folds comes out otherwise with jax 0.6
    def draws(keys, *inputs):
        return jax.lax.map(lambda key: function(key, *inputs), keys, batch_size=256)

    return draws(jax.random.split(jax.random.PRNGKey(1), num_draws), *inputs)


def fixed_agent(script, args, case, names):
    """Of a diffusion method: the agent, its state with the fixture's parameters of these networks and its targets, and
    the batch."""
    agent = compiled(script.make_agent(args, int(case["obs_dim"]), int(case["action_dim"])))
    params = {name: tree(case, f"param.{name}") for name in names}
    targets = {name: tree(case, f"param.{name}") for name in ("target_actor", "target_critic")}
    state = agent.init(jax.random.PRNGKey(0))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), state.params, params)
    return agent, state._replace(params=params, **targets), batch_of(case)


def moved_by_updates(agent, state, batch, num_updates):
    """How far so many updates on the same batch move each network and target, for 1,024 keys."""

    def networks(state):
        return state.params | {"target_actor": state.target_actor, "target_critic": state.target_critic}

    def updates(key, state, batch):
        after = jax.lax.fori_loop(0, num_updates, lambda _, s: agent.update(s, batch)[0], state._replace(key=key))
        return jax.tree.map(jnp.subtract, networks(after), networks(state))

    return draw(updates, state, batch, num_draws=1024)


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


def check_td_loss(td_loss, case):
    """Loss, gradient and target, and that the target gets no gradient."""
    rest = case["rewards"], case["masks"], float(case["discount"]), str(case["q_agg"])
    value, gradient = jax.value_and_grad(td_loss)(jnp.asarray(case["q"]), case["next_q"], *rest)
    assert_close(value, case, "critic_loss")
    assert_close(gradient, case, "grad_q")
    # The gradient is 2 (q - target) / (E B), so the target can be read off it.
    for target in case["q"] - gradient * case["q"].size / 2:
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


def check_agent_step(script, args, case, layout, metric_names):
    """Losses, gradients and the target's step at fixed parameters and batch, in the mean over 4096 random keys.

    layout(prefix) -> the script's `params`, filled with the fixture's arrays of that prefix;
    metric_names: the script's -> the fixture's, besides those of the critic and the total.
    """
    agent = compiled(script.make_agent(args, int(case["obs_dim"]), int(case["action_dim"])))
    params, target = layout("param"), critic_params(case, "param.target_critic")
    state = agent.init(jax.random.PRNGKey(0))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), state.params, params)
    state = state._replace(params=params, target_critic=target)
    batch = batch_of(case)

    def gradient_and_metrics(key, state, batch):
        critic_key, actor_key = jax.random.split(key)
        gradients, metrics = {}, {}
        for name, key in (("critic", critic_key), ("actor", actor_key)):
            gradients[name], values = jax.grad(agent.losses[name], has_aux=True)(state.params[name], state, batch, key)
            metrics |= values
        return gradients, metrics | {"total": metrics["losses/critic"] + metrics["losses/actor"]}

    gradients, metrics = draw(gradient_and_metrics, state, batch)

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
    check_means(gradients, layout("grad_mean"), layout("grad_se"))

    # An update is a step of Adam along these gradients.
    after, update_metrics = jax.jit(agent.update)(state, batch)
    _, critic_key, actor_key = jax.random.split(state.key, 3)
    for name, key in (("critic", critic_key), ("actor", actor_key)):
        gradient, values = jax.jit(jax.grad(agent.losses[name], has_aux=True))(params[name], state, batch, key)
        assert_trees_close(jax.tree.map(lambda mu: mu / (1 - 0.9), after.optimizer_state[0].mu[name]), gradient)
        assert_trees_close({key: update_metrics[key] for key in values}, values)

    # The target moves towards the critic as it was before the gradient step.
    rate = args.target_rate
    expected = jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, target, params["critic"])
    assert_trees_close(after.target_critic, expected, rtol=1e-5, atol=1e-7)
