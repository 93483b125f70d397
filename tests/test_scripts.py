"""What holds for every script at the top: the same parts in the same order, an agent of pure functions, its optimiser,
its first parameters, its random keys, its presets."""

import ast
import dataclasses
import functools
import inspect
import json
from importlib import import_module

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import CHEAP, ROOT, SCRIPTS, compiled

import diffusion_ql
import driftql
import idql
from common.args import BaseArgs, validate
from common.buffers import ReplayBuffer
from common.data import bandits, d4rl, ogbench


def test_parts_stand_in_the_same_order(script):
    """Tables are for looking up, not for reading through: last."""
    order = ["Args", "Actor", "TrainState", "Agent", "make_agent", "train_chunk", "load", "main", "PRESETS", "args_for"]
    lines = {}
    for node in ast.parse(inspect.getsource(script)).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            lines[node.name] = node.lineno
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            lines[node.targets[0].id] = node.lineno
    assert sorted(order, key=lines.get) == order
    assert "arxiv.org" in script.__doc__


def test_main_is_the_same_everywhere(script):
    """So is the agent's interface: who has read one script can read all, and a fix reaches all."""
    for name in ("Agent", "train_chunk", "load", "main", "args_for"):
        assert inspect.getsource(getattr(script, name)) == inspect.getsource(getattr(driftql, name)), name


def test_every_argument_and_public_function_is_documented(script):
    for cls in (BaseArgs, script.Args):
        (body,) = ast.parse(inspect.getsource(cls)).body
        for field, following in zip(body.body, [*body.body[1:], None]):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(following, ast.Expr), f"{cls.__name__}.{field.target.id} has no docstring"
    for name, function in inspect.getmembers(script, inspect.isfunction):
        if function.__module__ == script.__name__ and name != "main":
            assert function.__doc__, name
            assert all(p.annotation is not p.empty for p in inspect.signature(function).parameters.values()), name


def test_presets_are_valid_arguments(script):
    names = [name.removesuffix(" online").removesuffix(" laptop") for name in script.PRESETS]
    assert all(env in (*ogbench.OGBENCH_NAMES, *bandits.BANDITS) or d4rl.resolve(env) for env in names)
    for env, preset in script.PRESETS.items():
        assert preset.keys() <= vars(script.Args()).keys(), env
        validate(script.Args(**preset))
    assert {"bandit", "bandit-corners", "pointmaze-medium-navigate"} <= script.PRESETS.keys()
    laptop = {name.removesuffix(" laptop"): x for name, x in script.PRESETS.items() if name.endswith(" laptop")}
    sizes = {(x["hidden_dims"], x.get("critic_batch_size", x["batch_size"])) for x in laptop.values()}
    steps = {env: x["steps"] for env, x in laptop.items()}
    arms = dict.fromkeys(("cube-single-play", "scene-play"), 300_000)
    assert sizes == {((64, 64, 64), 64)}
    assert steps == arms | {"pointmaze-medium-navigate": 100_000, "pointmaze-large-navigate": 200_000}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in SCRIPTS], scope="module")
def problem(request):
    """script, arguments, agent with compiled functions, state, batch: shared by the tests below."""
    script = import_module(request.param)
    args = script.Args(hidden_dims=(8, 8), batch_size=4, **CHEAP[request.param])
    agent = compiled(script.make_agent(args, 5, 2))
    state = agent.init(jax.random.PRNGKey(0))
    batch = {
        "observations": jnp.ones((4, 5)),
        "actions": jnp.full((4, 2), 0.3),
        "rewards": jnp.ones(4),
        "masks": jnp.ones(4),
        "next_observations": jnp.ones((4, 5)),
    }
    return script, args, agent, state, batch


def test_agent_is_three_pure_functions(problem):
    """One state in, one out; the same inputs give the same outputs; everything that changes is in the state."""
    _, _, agent, state, batch = problem
    first, metrics = agent.update(state, batch)
    second, _ = agent.update(state, batch)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert jax.tree.structure(first) == jax.tree.structure(state)
    assert int(first.step) == 1
    assert not np.array_equal(first.key, state.key)
    assert all(name.startswith(("losses/", "train/")) and x.shape == () for name, x in metrics.items())
    actions = agent.act(state, jnp.ones((3, 5)), jax.random.PRNGKey(1))
    assert actions.shape == (3, 2)


def test_actions_are_clipped_and_depend_on_the_key(problem):
    _, _, agent, state, _ = problem
    observations = jax.random.normal(jax.random.PRNGKey(1), (50, 5))
    actions = agent.act(state, observations, jax.random.PRNGKey(2))
    assert not np.array_equal(actions, agent.act(state, observations, jax.random.PRNGKey(3)))
    assert np.abs(agent.act(state, 100 * observations, jax.random.PRNGKey(2))).max() == 1.0


# ------------------------------------------------------------------------------------------------------------ optimiser


def test_with_lr_decay_the_rates_fall_to_zero_as_half_a_cosine(problem):
    script, args, constant, state, batch = problem
    if script is idql:
        pytest.skip("its actor's rate always decays: test_idql.py")
    decaying = compiled(script.make_agent(dataclasses.replace(args, lr_decay=True), 5, 2))
    for step, share in [(0, 1.0), (250_000, 0.853553), (500_000, 0.5), (1_000_000, 0.0), (1_500_000, 0.0)]:
        moved = []
        for agent in (constant, decaying):
            own = agent.init(jax.random.PRNGKey(0))
            counted = optax.tree_utils.tree_set(own.optimizer_state, count=jnp.int32(step))
            after, _ = agent.update(own._replace(optimizer_state=counted), batch)
            moved.append(jax.tree.map(lambda new, old: np.abs(new - old).sum(), after.params, own.params))
        for name in state.params:
            full, part = (sum(jax.tree.leaves(change[name])) for change in moved)
            assert full > 0
            # In Diffusion-QL, the actor sees a critic that moved less before it, so its gradient is another one.
            tolerance = 0.02 if name == "critic" or share in (0, 1) or script is not diffusion_ql else 0.5
            assert part == pytest.approx(share * full, rel=tolerance)


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_every_optimiser_is_adam_with_its_usual_numbers(problem):
    """One step from chosen moments, written down for the parameters that get no gradient: those that multiply the
    observation where it is zero. There epsilon shows (the moments are tiny), and so does any weight decay."""
    script, args, _, state, batch = problem
    changes = {"learning_rate": 0.1} | ({"lr_decay": False} if hasattr(args, "lr_decay") else {})
    agent = compiled(script.make_agent(dataclasses.replace(args, **changes), 5, 2))
    batch = batch | {"observations": jnp.zeros((4, 5)), "next_observations": jnp.zeros((4, 5))}

    @jax.jit
    def gradients(key):
        return {
            name: jax.grad(loss, has_aux=True)(state.params[name], state, batch, key)[0]
            for name, loss in agent.losses.items()
        }

    flat = functools.partial(flax.traverse_util.flatten_dict, sep="/")
    samples = [flat(gradients(jax.random.PRNGKey(i))) for i in range(5)]
    untouched = {name: np.all([sample[name] == 0 for sample in samples], axis=0) for name in samples[0]}
    untouched = {name: rows for name, rows in untouched.items() if rows.any()}
    assert {name.split("/")[0] for name in untouched} == set(state.params)

    first, second, count = 1e-8, 1e-16, 3

    def chosen(node):
        if not is_adam(node):
            return node
        filled = lambda tree, value: jax.tree.map(lambda x: jnp.full_like(x, value), tree)  # noqa: E731
        return node._replace(mu=filled(node.mu, first), nu=filled(node.nu, second), count=filled(node.count, count))

    own = agent.init(jax.random.PRNGKey(0)).optimizer_state
    moments = jax.tree.map(chosen, own, is_leaf=is_adam)
    after = flat(agent.update(state._replace(optimizer_state=moments), batch)[0].params)
    before = flat(state.params)
    steps = []
    for i in (1, 2):  # IDQL's actor takes two
        mu, nu = 0.9**i * first / (1 - 0.9 ** (count + i)), 0.999**i * second / (1 - 0.999 ** (count + i))
        steps.append(mu / (np.sqrt(nu) + 1e-8))
    for name, rows in untouched.items():
        old, new = (np.asarray(tree[name], np.float64)[rows] for tree in (before, after))
        expected = -0.1 * sum(steps[: 2 if name.startswith("actor") and script.__name__ == "idql" else 1])
        np.testing.assert_allclose(new - old, expected, rtol=0, atol=3e-7, err_msg=name)


# ----------------------------------------------------------------------------------------------------- first parameters


def kernel_kind(script: str, name: str) -> str:
    """`fan_avg` is Glorot's uniform, `torch` uniform within +-1 / sqrt(inputs), `lecun` a normal of variance 1 / inputs
    that is cut off at two standard deviations."""
    if script == "diffusion_ql":
        return "torch"
    in_blocks = script == "idql" and name in [f"actor/params/Dense_{i}/kernel" for i in range(1, 7)]
    return "lecun" if in_blocks else "fan_avg"


def test_first_parameters_are_drawn_as_the_authors_do(script):
    """Over many keys, layer by layer: spread and shape of the distribution, biases at zero; ensembles differ inside.
    Targets start as copies of what they follow."""
    width = {"actor_width": 12} if script.__name__ == "idql" else {}
    agent = compiled(script.make_agent(script.Args(hidden_dims=(32, 16), **width), 7, 3))
    state, kernels = jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.PRNGKey(0), 100)), 0
    for name, target in state._asdict().items():
        if name.startswith("target_"):
            jax.tree.map(np.testing.assert_array_equal, target, state.params[name.removeprefix("target_")])
    for name, x in flax.traverse_util.flatten_dict(state.params, sep="/").items():
        x, leaf = np.asarray(x, np.float64), name.split("/")[-1]
        if leaf == "kernel":
            kernels += 1
            *_, inputs, outputs = x.shape
            kind = kernel_kind(script.__name__, name)
            variance = {"fan_avg": 2 / (inputs + outputs), "torch": 1 / 3 / inputs, "lecun": 1 / inputs}[kind]
            spread = np.sqrt(variance)
            limit = spread * (2 / 0.87962566 if kind == "lecun" else np.sqrt(3))
            assert abs(x.std() / spread - 1) < 5 / np.sqrt(2 * x.size), (name, x.std(), spread)
            assert 0.98 * limit < np.abs(x).max() < 1.0001 * limit, name
            assert np.mean(x**4) / spread**4 == pytest.approx(2.37 if kind == "lecun" else 1.8, rel=0.1), name
            if "VmapMLP" in name:
                assert not np.any(x[:, 0] == x[:, 1]), name
        elif leaf == "frequencies":
            assert abs(x.std() - 0.2) < 0.2 * 5 / np.sqrt(2 * x.size), name
            assert np.abs(x).max() > 0.6, name
        else:
            assert (x == {"bias": 0, "scale": 1}[leaf]).all(), name
    assert kernels >= 6


# ----------------------------------------------------------------------------------------------------------------- keys

DRAWS = ("split", "normal", "uniform", "randint", "bernoulli", "categorical", "gumbel", "choice", "truncated_normal")


def test_no_random_key_is_used_twice(problem, monkeypatch):
    """Neither for two draws nor for a draw and a split, in two updates with their batches and in acting. Each draw is
    for all rows of the batch."""
    script, args, _, state, batch = problem
    agent = script.make_agent(args, 5, 2)
    seen, keys = [], []

    def recorded(name, function):
        def draw(key, *inputs, **options):
            result = function(key, *inputs, **options)
            seen.append((name, np.shape(result)))
            keys.append(key)
            return result

        return draw

    def loop(step, carry, xs=None, length=None, **_):
        """jax.lax.scan step by step, so that each step's keys are seen."""
        length, outputs = length or len(jax.tree.leaves(xs)[0]), []
        for inputs in [jax.tree.map(lambda x, i=i: x[i], xs) for i in range(length)]:
            carry, output = step(carry, inputs)
            outputs.append(output)
        return carry, jax.tree.map(lambda *x: jnp.stack(x), *outputs)

    rows, acting = 22, 7
    buffer = ReplayBuffer(*(batch[k] for k in ("observations", "actions", "rewards", "masks")), rows=jnp.arange(3))
    for name in DRAWS:
        monkeypatch.setattr(jax.random, name, recorded(name, getattr(jax.random, name)))

    def shapes(function, *inputs, real=jax.eval_shape):
        """Its draws are not of this run."""
        before = len(keys)
        result = real(function, *inputs)
        del seen[before:], keys[before:]
        return result

    whole = jax.jit
    monkeypatch.setattr(jax.lax, "scan", loop)
    monkeypatch.setattr(jax, "eval_shape", shapes)
    monkeypatch.setattr(jax, "jit", lambda function: function)

    @whole
    def keys_of_a_run(state):
        after, _ = script.train_chunk(agent, state, buffer, rows, 2)
        agent.act(after, jnp.ones((acting, 5)), jax.random.PRNGKey(9))
        return keys

    used = [np.asarray(key).tobytes() for key in keys_of_a_run(state)]
    twice = [what for key, what in zip(used, seen) if used.count(key) > 1]
    assert not twice
    draws = [(name, shape) for name, shape in seen if name != "split" and shape]
    assert len(draws) >= 5
    scalars = [name for name, shape in seen if name != "split" and not shape]
    assert scalars == (["bernoulli"] * 2 if script.__name__ == "diffusion_ql" else [])  # the toss of a coin
    # IDQL's actor learns on halves of the batch; DriftQL draws all candidates of a batch as rows.
    assert all(any(n % (rows // 2) == 0 or n == acting for n in shape) for _, shape in draws), draws


# -------------------------------------------------------------------------------------------------------------- presets


def test_presets_are_the_recorded_ones(script):
    """Every number but those of --laptop, and every default that they build on, against a table with its sources."""
    table = json.loads((ROOT / "tests" / "golden" / "presets.json").read_text())
    plain = lambda values: json.loads(json.dumps(values))  # tuples are lists in JSON  # noqa: E731
    recorded = {name: preset for name, preset in script.PRESETS.items() if not name.endswith(" laptop")}
    assert plain(recorded) == table[script.__name__]["presets"]
    own = {name: getattr(script.Args(), name) for name in script.Args.__annotations__}
    assert plain(own) == table[script.__name__]["defaults"]
    assert {name: getattr(script.Args(), name) for name in table["protocol"]} == table["protocol"]
