"""Comparison with numbers from the authors' code (tests/golden, where a file is one configuration)."""

from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"


def cases(name):
    """The files of one kind, as parameters of a test."""
    return [pytest.param(np.load(path), id=path.stem) for path in sorted(GOLDEN.glob(f"{name}_*.npz"))]


def assert_close(value, case, key):
    """The fixtures' tolerance: 1e-5, or twice the error that the authors' own float32 makes."""
    tolerance = max(1e-5, 2 * float(case["f32_err"])) if "f32_err" in case else 1e-5
    np.testing.assert_allclose(np.asarray(value), case[key], rtol=1e-5, atol=tolerance)


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
    agent = script.make_agent(args, int(case["obs_dim"]), int(case["action_dim"]))
    params, target = layout("param"), critic_params(case, "param.target_critic")
    state = agent.init(jax.random.PRNGKey(0))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), state.params, params)
    state = state._replace(params=params, target_critic=target)
    batch = {key[6:]: jnp.asarray(case[key]) for key in case.files if key.startswith("batch.")}

    def gradient_and_metrics(key):
        after, metrics = agent.update(state._replace(key=key), batch)
        # Adam's first moment after its first step is 0.1 times the gradient.
        gradient = jax.tree.map(lambda mu: mu / (1 - 0.9), after.optimizer_state[0].mu)
        return gradient, metrics | {"total": metrics["losses/critic"] + metrics["losses/actor"]}

    num_keys = 4096
    keys = jax.random.split(jax.random.PRNGKey(1), num_keys)
    gradients, metrics = jax.jit(lambda keys: jax.lax.map(gradient_and_metrics, keys, batch_size=256))(keys)

    names = {
        "losses/critic": "critic.critic_loss",
        "train/q_mean": "critic.q_mean",
        "train/q_min": "critic.q_min",
        "train/q_max": "critic.q_max",
        "losses/actor": "actor.actor_loss",
        "total": "total_loss",
    }
    for ours, theirs in (names | metric_names).items():
        values, mean = np.asarray(metrics[ours], np.float64), case[f"mean.{theirs}"]
        error = np.hypot(case[f"se.{theirs}"], values.std() / np.sqrt(num_keys))
        assert abs(values.mean() - mean) <= 4.5 * error + 1e-5 * max(1, abs(mean)), ours

    flat = flax.traverse_util.flatten_dict
    means, errors = flat(layout("grad_mean")), flat(layout("grad_se"))
    assert means.keys() == flat(gradients).keys()
    for name, values in flat(gradients).items():
        values, mean, error = (np.asarray(x, np.float64) for x in (values, means[name], errors[name]))
        scale = np.sqrt(error**2 + values.var(axis=0) / num_keys + 1e-12)
        assert np.max(np.abs(values.mean(axis=0) - mean) / scale) < 6, name

    # The target moves towards the critic as it was before the gradient step.
    after, _ = agent.update(state, batch)
    rate = args.target_rate
    expected = jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, target, params["critic"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.target_critic, expected)
