"""DriftQL against the authors' code (numbers in tests/golden) and on problems whose answer is known."""

from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import driftql
from common.buffers import make_buffer, sample
from common.critics import MLP, Critic
from common.datasets import Dataset

GOLDEN = Path(__file__).parent / "golden"


def cases(name):
    return [pytest.param(np.load(path), id=path.stem) for path in sorted(GOLDEN.glob(f"{name}_*.npz"))]


def assert_close(value, case, key):
    """The fixtures' tolerance: 1e-5, or twice the error that the authors' own float32 makes."""
    tolerance = max(1e-5, 2 * float(case["f32_err"]))
    np.testing.assert_allclose(np.asarray(value), case[key], rtol=1e-5, atol=tolerance)


# ------------------------------------------------------------------------------------------------ the authors' numbers


@pytest.mark.parametrize("case", cases("drift_field"))
def test_drift_field_matches_the_authors(case):
    field = jax.jit(driftql.drift_field, static_argnames="kernel")
    drift, attraction, repulsion = field(case["gen"], case["action"], float(case["temp"]), kernel=str(case["kernel"]))
    assert_close(drift, case, "V")
    assert_close(attraction, case, "V_attract")
    assert_close(repulsion, case, "V_repel")


@pytest.mark.parametrize("case", cases("drift_field"))
def test_drift_field_has_finite_gradients(case):
    """Also through the field itself, which the loss never does: N = 1, equal candidates, candidates on the corner."""

    def total(candidates):
        drift, _, _ = driftql.drift_field(candidates, case["action"], float(case["temp"]), str(case["kernel"]))
        return jnp.sum(drift**2)

    assert np.isfinite(jax.grad(total)(case["gen"])).all()


@pytest.mark.parametrize("case", cases("drift_loss"))
def test_drift_loss_and_its_gradient_match_the_authors(case):
    loss = lambda x: driftql.drift_loss(x, case["actions"], float(case["temp"]), str(case["kernel"]))  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(case["gen"])
    assert_close(value, case, "loss")
    assert_close(gradient, case, "grad_gen")


@pytest.mark.parametrize("case", cases("td_targets"))
def test_td_loss_and_target_match_the_authors(case):
    inputs = [case[key] for key in ("next_q", "rewards", "masks")]
    loss = lambda q: driftql.td_loss(q, *inputs, float(case["discount"]), str(case["q_agg"]))  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(case["q"]))
    assert_close(value, case, "critic_loss")
    assert_close(gradient, case, "grad_q")
    # The gradient is 2 (q - target) / (E B), so the target can be read off it.
    for target in case["q"] - gradient * case["q"].size / 2:
        assert_close(target, case, "target")


def test_td_target_gets_no_gradient():
    case = np.load(GOLDEN / "td_targets_00.npz")
    rest = (case["rewards"], case["masks"], 0.99, "min")
    gradient = jax.grad(lambda next_q: driftql.td_loss(case["q"], next_q, *rest))(case["next_q"])
    assert not np.any(gradient)


def golden_params(case, prefix):
    """Parameters of a fixture in the layout of common.critics."""
    layers = {}
    for key in case.files:
        if key.startswith(f"{prefix}."):
            layer, leaf = key[len(prefix) + 1 :].split(".")
            kind, i = layer.split("_")
            layers.setdefault(f"{'Dense' if kind == 'dense' else 'LayerNorm'}_{i}", {})[leaf] = jnp.asarray(case[key])
    return layers


def critic_params(case, prefix):
    return {"params": {"VmapMLP_0": golden_params(case, prefix)}}


@pytest.mark.parametrize("case", cases("mlp"))
def test_networks_match_the_authors(case):
    hidden = tuple(case["hidden_dims"])
    obs, actions, times = (jnp.asarray(case[key]) for key in ("obs", "actions", "times"))
    value = Critic(hidden).apply(critic_params(case, "param.value"), obs, actions)
    assert_close(value, case, "value_out")
    actor = driftql.Actor(hidden, actions.shape[-1])
    assert_close(actor.apply({"params": golden_params(case, "param.onestep")}, obs, actions), case, "onestep_out")
    flow = MLP(hidden, actions.shape[-1])
    inputs = jnp.concatenate([obs, actions, times], axis=-1)
    assert_close(flow.apply({"params": golden_params(case, "param.actor")}, inputs), case, "actor_out")


@pytest.mark.parametrize("case", cases("agent_step"))
def test_a_whole_update_matches_the_authors(case):
    """Losses, gradients and the target's step at fixed parameters and batch, in the mean over 4096 random keys."""
    args = driftql.Args(
        hidden_dims=tuple(int(x) for x in case["hp.value_hidden_dims"]),
        alpha=float(case["hp.alpha"]),
        temperature=float(case["hp.drift_temp"]),
        kernel=str(case["hp.kernel"]),
        discount=float(case["hp.discount"]),
        q_agg=str(case["hp.q_agg"]),
        num_candidates=int(case["hp.drift_ngen"]),
        target_rate=float(case["hp.tau"]),
    )
    agent = driftql.make_agent(args, int(case["obs_dim"]), int(case["action_dim"]))
    params = {
        "actor": {"params": golden_params(case, "param.actor_bc_drift")},
        "critic": critic_params(case, "param.critic"),
    }
    target = critic_params(case, "param.target_critic")
    state = agent.init(jax.random.PRNGKey(0))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), state.params, params)
    state = state._replace(params=params, target_critic=target)
    batch = {key[6:]: jnp.asarray(case[key]) for key in case.files if key.startswith("batch.")}

    def gradient_and_metrics(key):
        after, metrics = agent.update(state._replace(key=key), batch)
        # Adam's first moment after its first step is 0.1 times the gradient.
        gradient = jax.tree.map(lambda mu: mu / (1 - 0.9), after.optimizer_state[0].mu)
        return gradient, metrics | {"total": metrics["losses/critic"] + metrics["losses/actor"]}

    keys = jax.random.split(jax.random.PRNGKey(1), 4096)
    gradients, metrics = jax.jit(lambda keys: jax.lax.map(gradient_and_metrics, keys, batch_size=256))(keys)

    names = {
        "losses/critic": "critic.critic_loss",
        "train/q_mean": "critic.q_mean",
        "train/q_min": "critic.q_min",
        "train/q_max": "critic.q_max",
        "losses/actor": "actor.actor_loss",
        "losses/drift": "actor.bc_drift_loss_raw",
        "losses/q": "actor.q_loss",
        "total": "total_loss",
    }
    for ours, theirs in names.items():
        values, mean = np.asarray(metrics[ours], np.float64), case[f"mean.{theirs}"]
        error = np.hypot(case[f"se.{theirs}"], values.std() / 64)
        assert abs(values.mean() - mean) <= 4.5 * error + 1e-5 * max(1, abs(mean)), ours

    modules = {"actor": golden_gradients(case, "actor_bc_drift"), "critic": golden_gradients(case, "critic")}
    for module, theirs in modules.items():
        tree = gradients[module]["params"]
        ours = flax.traverse_util.flatten_dict(tree if module == "actor" else tree["VmapMLP_0"])
        assert ours.keys() == theirs.keys()
        for name, (mean, se) in theirs.items():
            values = np.asarray(ours[name], np.float64)
            scale = np.sqrt(se**2 + values.var(axis=0) / 4096 + 1e-12)
            assert np.max(np.abs(values.mean(axis=0) - mean) / scale) < 6, (module, name)

    # The target moves towards the critic as it was before the gradient step.
    after, _ = agent.update(state, batch)
    expected = jax.tree.map(lambda old, new: 0.995 * old + 0.005 * new, target, params["critic"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.target_critic, expected)


def golden_gradients(case, module):
    means, errors = golden_params(case, f"grad_mean.{module}"), golden_params(case, f"grad_se.{module}")
    flat = flax.traverse_util.flatten_dict
    return {name: (np.asarray(mean), np.asarray(flat(errors)[name])) for name, mean in flat(means).items()}


# ------------------------------------------------------------------------------------------ problems with known answers


def make_dataset(observations, actions, rewards, masks, terminals):
    """A dataset as `--dataset` would load it; rows whose terminals are 2 hold a final state only."""
    f32 = lambda x: np.array(x, np.float32)  # noqa: E731
    rows = np.flatnonzero(np.array(terminals) < 2).astype(np.int32)
    return Dataset(
        "probe", None, None, "builtin", None, None, f32(observations), f32(actions), f32(rewards), f32(masks), rows, 1
    )  # fmt: skip


def train(dataset, steps, **changes):
    defaults = {
        "hidden_dims": (32, 32),
        "batch_size": 32,
        "learning_rate": 3e-3,
        "target_rate": 0.05,
        "num_candidates": 4,
    }
    args = driftql.Args(**{**defaults, **changes})
    agent = driftql.make_agent(args, dataset.observation_dim, dataset.action_dim)
    buffer = make_buffer(dataset)

    @jax.jit
    def run(state):
        def step(state, _):
            key, batch_key = jax.random.split(state.key)
            return agent.update(state._replace(key=key), sample(buffer, batch_key, args.batch_size))

        return jax.lax.scan(step, state, length=steps)

    state, metrics = run(agent.init(jax.random.PRNGKey(0)))
    return agent, state, metrics


def test_critic_finds_the_known_values():
    """Constant reward, delayed reward, a mask of 0 in the middle of a trajectory, a time limit with mask 1."""
    rows = [
        # state, reward, mask, terminal, value at discount 0.5
        (0.0, 1.0, 0.0, 1, 1.0),  # one step, reward 1
        (1.0, 0.0, 1.0, 0, 0.25),  # reward 1 after two more steps: discounted once per step
        (2.0, 0.0, 1.0, 0, 0.5),
        (3.0, 1.0, 0.0, 1, 1.0),
        (4.0, 0.0, 0.0, 0, 0.0),  # mask 0 stops the bootstrap though the trajectory goes on to reward 1 ...
        (5.0, 1.0, 0.0, 0, 1.0),
        (6.0, 0.0, 1.0, 2, None),
        (7.0, 1.0, 1.0, 0, 2.0),  # ... and a trajectory's end does not stop it: reward 1 for ever is 1 / (1 - 0.5)
        (7.0, 0.0, 1.0, 2, None),
    ]
    states, rewards, masks, terminals, values = zip(*rows)
    dataset = make_dataset([[x - 3.5] for x in states], [[0.3]] * len(rows), rewards, masks, terminals)
    _, state, _ = train(dataset, 5000, discount=0.5, alpha=100.0, batch_size=64)
    known = [i for i, value in enumerate(values) if value is not None]
    critic = Critic((32, 32))
    q = critic.apply(state.params["critic"], dataset.observations[known], dataset.actions[known]).mean(axis=0)
    np.testing.assert_allclose(q, [values[i] for i in known], atol=0.06)


def test_of_two_actions_the_policy_takes_the_better_one():
    dataset = make_dataset([[1.0]] * 2, [[-0.5], [0.5]], [0.0, 1.0], [0.0, 0.0], [1, 1])
    agent, state, _ = train(dataset, 2000, alpha=0.1)
    actions = agent.act(state, jnp.ones((200, 1)), jax.random.PRNGKey(1))
    assert np.mean(actions > 0.25) > 0.95


def test_repulsion_keeps_the_candidates_apart():
    """The drift moves the policy onto the data. With the repulsion's sign flipped or left out, the candidates fall onto
    one point within these updates; a wide kernel holds them apart. (In the long run gradient noise shrinks the spread
    in a problem with one action: a point is where that noise vanishes.)"""
    dataset = make_dataset([[1.0]], [[0.4]], [0.0], [0.0], [1])
    settings = {"alpha": 100.0, "temperature": 5.0, "kernel": "gaussian", "num_candidates": 16, "learning_rate": 3e-4}
    agent, before, _ = train(dataset, 0, **settings)
    _, after, _ = train(dataset, 150, **settings)
    spread, mean = [], []
    for state in (before, after):
        actions = np.asarray(agent.act(state, jnp.ones((1000, 1)), jax.random.PRNGKey(1)))
        spread.append(actions.std())
        mean.append(actions.mean())
    assert abs(mean[0] - 0.4) > 0.2
    assert mean[1] == pytest.approx(0.4, abs=0.05)
    assert spread[1] > 0.5 * spread[0]


def test_actions_are_clipped_and_depend_on_the_key():
    agent = driftql.make_agent(driftql.Args(hidden_dims=(8,)), 3, 2)
    state = agent.init(jax.random.PRNGKey(0))
    observations = 100 * jax.random.normal(jax.random.PRNGKey(1), (50, 3))
    actions = agent.act(state, observations, jax.random.PRNGKey(2))
    assert np.abs(actions).max() == 1.0
    assert not np.array_equal(actions, agent.act(state, observations, jax.random.PRNGKey(3)))
