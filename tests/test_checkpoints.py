"""A state to a file and back, exactly; a policy from a run; faults while a checkpoint is written."""

import dataclasses
import json
import os
import shutil
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SCRIPTS, compiled, launch, tiny_args, tiny_flags

import driftql
from common import UserError, checkpoints, seeds


def saved_state(num_seeds=1, **changes):
    args = tiny_args(driftql, hidden_dims=(8,), num_seeds=num_seeds, **changes)
    return jax.jit(jax.vmap(compiled(driftql.make_agent(args, 1, 2)).init))(seeds.seed_keys(args))


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = saved_state(num_seeds=2)
    checkpoints.save(tmp_path, state, {"step": 7, "wall_seconds": 0.1})
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.FILE]
    checkpoint = checkpoints.load(tmp_path)
    assert (checkpoint["step"], checkpoint["wall_seconds"]) == (7, 0.1)
    restored = checkpoints.restore(saved_state(num_seeds=2, seed=9), checkpoint["state"])
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert all(a.dtype == b.dtype for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state)))


def test_another_state_does_not_fit(tmp_path):
    checkpoints.save(tmp_path, saved_state(), {})
    content = checkpoints.load(tmp_path)["state"]
    for other in (saved_state(num_seeds=2), saved_state()._replace(step=jnp.zeros(1)), {"a": jnp.zeros(3)}):
        with pytest.raises(UserError, match="does not fit"):
            checkpoints.restore(other, content)


def test_a_damaged_or_missing_checkpoint_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*checkpoint.msgpack: No such file"):
        checkpoints.load(tmp_path)
    checkpoints.save(tmp_path, saved_state(), {})
    path = tmp_path / checkpoints.FILE
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            checkpoints.load(tmp_path)


def test_a_kill_while_the_checkpoint_is_written_loses_nothing(tmp_path, monkeypatch):
    """The process dies after half of the new checkpoint; the old one is whole."""

    class Killed(BaseException):
        pass

    def dies(descriptor):
        os.ftruncate(descriptor, 100)
        raise Killed

    checkpoints.save(tmp_path, saved_state(), {"step": 10})
    monkeypatch.setattr(os, "fsync", dies)
    with pytest.raises(Killed):
        checkpoints.save(tmp_path, saved_state(seed=1), {"step": 20})
    assert checkpoints.load(tmp_path)["step"] == 10


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    checkpoints.save(tmp_path, saved_state(), {"step": 10})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoints.save(tmp_path, saved_state(seed=1), {"step": 20})
    assert checkpoints.load(tmp_path)["step"] == 10
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.FILE]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(bad):
    weights = np.zeros((3, 4, 5), np.float32)
    assert checkpoints.not_finite({"weights": weights, "step": np.arange(3)}) is None
    weights[1:, 2, 3] = bad
    assert checkpoints.not_finite({"bias": np.zeros(3), "weights": jnp.array(weights), "step": np.arange(3)}) == 1


# ------------------------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_policy_acts_as_its_run_does(name, tmp_path, monkeypatch):
    """Of each seed of a checkpoint that was saved by hand: what the agent gives with the same state and key."""
    script = import_module(name)
    args = tiny_args(script, seed=3, num_seeds=2, hidden_dims=(8,))
    agent = compiled(script.make_agent(args, 3, 2))
    states = jax.jit(jax.vmap(agent.init))(seeds.seed_keys(args))
    checkpoints.save(tmp_path, states, {"step": 40})
    dataset = {"name": "", "source": "user", "sha256": None, "observation_dim": 3, "action_dim": 2}
    config = {"algo": name, "args": vars(args), "dataset": dataset}
    (tmp_path / "config.json").write_text(json.dumps(config))
    observations, key = jnp.ones((5, 3)), jax.random.PRNGKey(1)
    for seed, index in ((None, 0), (3, 0), (4, 1)):
        policy = checkpoints.load_policy(str(tmp_path), seed)
        assert (policy.args, policy.step) == (dataclasses.replace(args, seed=3 + index, num_seeds=1), 40)
        state = jax.tree.map(lambda x: x[index], states)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, policy.state, state)
        actions = policy.act(observations, key)
        assert actions.shape == (5, 2)
        if name == "driftql":  # once is enough: `act` is the agent's, compiled
            np.testing.assert_allclose(actions, agent.act(state, observations, key), atol=1e-6)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert checkpoints.load_policy(f"~/{tmp_path.name}").step == 40
    with pytest.raises(UserError, match="has seeds 3 to 4, not 5"):
        checkpoints.load_policy(tmp_path, 5)


def test_a_policy_needs_a_run_with_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        checkpoints.load_policy(tmp_path)
    directory = launch(driftql, *tiny_flags(driftql, steps=100), "--runs-dir", tmp_path)
    assert checkpoints.load_policy(directory).step == 100
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"algo": "helpers"}))
    with pytest.raises(UserError, match=r"helpers\.py, which has no Args and make_agent"):
        checkpoints.load_policy(directory)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / checkpoints.FILE).unlink()
    with pytest.raises(UserError, match="cannot read"):
        checkpoints.load_policy(directory)
    shutil.rmtree(directory)
