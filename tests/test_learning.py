"""Every script on problems whose answer is known: the critic's values, the better of two actions."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, compiled, make_dataset

from common import UserError
from common.args import flag_of, parse
from common.buffers import make_buffer, sample

SMALL = {"hidden_dims": (32, 32), "batch_size": 32, "learning_rate": 3e-3, "target_rate": 0.05}
# Strong behaviour cloning, so that the values are those of the data's action; and weak, so that the policy improves.
# A script that needs something else to learn the small problems (fewer candidates, another rate) says it here.
CLONE = {
    "driftql": {"alpha": 100.0, "num_candidates": 4},
    "fql": {"alpha": 100.0},
    "drol": {"bc_coef": 100.0, "num_candidates": 4},
    "diffusion_ql": {"eta": 0.0, "lr_decay": False, "diffusion_steps": 20},
}
IMPROVE = {
    "driftql": {"alpha": 0.1, "num_candidates": 4},
    "fql": {"alpha": 0.1},
    "drol": {"bc_coef": 0.1, "num_candidates": 4},
    "diffusion_ql": {"eta": 5.0},
}


def settings_of(script, table, given: str) -> dict:
    """What the table says of this script, or its author on the command line, with the words that a script takes."""
    values = dict(word.partition("=")[::2] for word in re.split(r",(?=[\w-]+=)", given)) if given else {}
    words = [part for name, value in values.items() for part in (flag_of(name), *value.strip("()").split(","))]
    try:
        args = parse(script.Args, {}, words)
    except (SystemExit, UserError) as error:
        raise pytest.UsageError(f"{given}: write NAME=VALUE,NAME=VALUE of {script.__name__}.Args ({error}).") from None
    names = [name.replace("-", "_") for name in values]
    return table.get(script.__name__, {}) | {name: getattr(args, name) for name in names}


@pytest.fixture
def clone(script, pytestconfig):
    return settings_of(script, CLONE, pytestconfig.getoption("clone"))


@pytest.fixture
def improve(script, pytestconfig):
    return settings_of(script, IMPROVE, pytestconfig.getoption("improve"))


def train(script, dataset, steps, **changes):
    """A small agent of this script after so many updates, and its state."""
    args = script.Args(**(SMALL | changes))
    agent = compiled(script.make_agent(args, dataset.observation_dim, dataset.action_dim))
    state, buffer = agent.init(jax.random.PRNGKey(0)), make_buffer(dataset.arrays)
    chunk = jax.jit(lambda state, buffer: script.train_chunk(agent, state, buffer, args.batch_size, steps)[0])
    # Thousands of updates: here the code's optimisation is worth its time, unlike that of the rest of tests.
    return agent, chunk.lower(state, buffer).compile({"xla_backend_optimization_level": 2})(state, buffer)


def test_critic_finds_the_known_values(script, clone):
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
    settings = {"discount": 0.5, "batch_size": 64, "target_rate": 0.1} | clone
    agent, state = train(script, dataset, 2500, **settings)
    buffer = make_buffer(dataset.arrays)

    def q(row):
        """train/q_mean of a batch that is this transition over and over: no need to know the script's networks."""
        batch = sample(buffer._replace(rows=jnp.full(1, row)), state.key, 64)
        return agent.losses["critic"](state.params["critic"], state, batch, state.key)[1]["train/q_mean"]

    found = jax.jit(jax.vmap(q))(jnp.asarray(dataset.rows))
    np.testing.assert_allclose(found, [value for value in values if value is not None], atol=0.06)


def test_of_two_actions_the_policy_takes_the_better_one(script, improve):
    dataset = make_dataset([[1.0]] * 2, [[-0.5], [0.5]], [0.0, 1.0], [0.0, 0.0], [1, 1])
    agent, state = train(script, dataset, 800, **improve)
    actions = agent.act(state, jnp.ones((200, 1)), jax.random.PRNGKey(1))
    assert np.mean(actions > 0.25) > 0.95


def test_an_algorithm_of_ones_own_is_probed_with_its_own_settings(tmp_path):
    """A copy of a script with another loss, as the README tells it; with a broken one the probes fail."""
    source = (ROOT / "driftql.py").read_text()
    loss = "loss = args.alpha * drift + q_loss"
    assert source.count(loss) == 1
    probes = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "test_learning.py")]
    probes += ["-k", "better_one", "--script", "mine.py", "--improve", "alpha=0.1,num-candidates=2"]
    for changed, works in (("2 * args.alpha * drift + 2 * q_loss", True), ("args.alpha * drift - q_loss", False)):
        (tmp_path / "mine.py").write_text(source.replace(loss, f"loss = {changed}"))
        run = subprocess.run(probes, cwd=tmp_path, capture_output=True, text=True)
        assert (run.returncode == 0) is works, run.stdout
        assert "1 passed" in run.stdout or not works
