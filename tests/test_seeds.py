"""Seeds and combinations of --grid side by side: each gives what it gives alone. Policies of a run that is there."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, launch_in_process, metrics_of, result_of, state_of, tiny_args, tiny_flags, whole_and_killed

import driftql
from common import UserError, args, checkpoints
from common.buffers import make_buffer
from common.data import load_dataset
from common.seeds import side_by_side


def functions_of(script, given, num_updates: int = 2):
    """init, train and act of a run on the bandit."""

    def train_interval(agent, state, buffer):
        return script.train_chunk(agent, state, buffer, given.batch_size, num_updates)

    return side_by_side(given, lambda args: script.make_agent(args, 1, 2), train_interval)


DEVICES = """
import os, sys
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
sys.path[:0] = [sys.argv[1], os.path.join(sys.argv[1], "tests")]
import driftql, jax, numpy as np
from test_seeds import functions_of, load_dataset, make_buffer, tiny_args
from common.seeds import place
init, train, _ = functions_of(driftql, tiny_args(driftql, num_seeds=4), 50)
buffer = make_buffer(load_dataset("bandit").arrays)
one, (state, shared) = train(init(), buffer)[1], place(init(), buffer)
state, four = train(state, shared)
print([shard.data.shape[0] for shard in state.state.step.addressable_shards], shared.rewards.is_fully_replicated)
jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), four, one)
print(len(place(jax.numpy.zeros(6), buffer)[0].addressable_shards))
"""


def test_seeds_spread_over_devices():
    """Four devices and four seeds: the same numbers as on one device. Six seeds stay on one, which is said."""
    words = [sys.executable, "-c", DEVICES, str(ROOT)]
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    note = "NOTE    6 side by side cannot be shared evenly by 4 devices; only the first works"
    assert [line for line in output if not line.startswith("device")] == ["[1, 1, 1, 1] True", note, "1"]


FIRST = 2**32 - 2  # the largest seeds that there are
ALPHAS, RATES = (1.0, 10.0), (5e-4, 2e-3)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """The directory of a grid of two seeds, which was killed after a checkpoint and some more updates and then
    resumed; that of the same grid without interruption; the two runs (alpha, rate, seed) that are done alone."""
    folder, words = tmp_path_factory.mktemp("runs"), ("alpha=1,10", "learning_rate=0.0005,0.002")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.runs.draw_run", lambda *_: [])  # seconds
        given = tiny_args(driftql, grid=words, seed=FIRST, num_seeds=2, run_dir=str(folder / "whole"))
        whole, alone = whole_and_killed(driftql, given, 30, folder / "killed"), {}
        for alpha, rate, seed in ((1.0, 2e-3, FIRST + 1), (10.0, 5e-4, FIRST)):
            own = {"alpha": alpha, "learning_rate": rate, "seed": seed, "run_dir": str(folder / f"{alpha}")}
            alone[alpha, rate, seed] = driftql.main(tiny_args(driftql, **own))
        launch_in_process(driftql, "--no-progress", "--resume", folder / "killed")
    return folder / "killed", whole, alone


@pytest.mark.xdist_group("grid")
def test_each_seed_of_each_combination_gives_what_it_gives_alone(grid):
    """Not bit for bit: a product of several members adds in another order, and a rate that is an array is rounded once
    more; members differ by far more. A grid that was killed gives bit for bit what it gives without interruption."""
    directory, whole, alone = grid
    rows, parts, state = metrics_of(directory), result_of(directory)["grid"], state_of(directory)
    assert (rows, parts) == (metrics_of(whole), result_of(whole)["grid"])
    jax.tree.map(np.testing.assert_array_equal, state, state_of(whole))
    assert state["values"]["alpha"] == pytest.approx(np.repeat(ALPHAS, 4))
    assert state["values"]["learning_rate"] == pytest.approx(np.tile(np.repeat(RATES, 2), 2))
    for (alpha, rate, seed), run in alone.items():
        names = {"alpha": alpha, "learning_rate": rate, "seed": seed}
        own_rows = [row for row in rows if all(float(row[name]) == x for name, x in names.items())]
        for row, other in zip(own_rows, metrics_of(run), strict=True):
            assert row.keys() - {"alpha", "learning_rate"} == other.keys()
            for name in other:  # one of 16 episodes may fall on the other side of a border
                allowed = 0.07 if name in ("eval/success", "eval/support", "eval/rarest_mode") else 1e-3
                assert float(row[name] or -1) == pytest.approx(float(other[name] or -1), rel=allowed, abs=allowed), name
        part, own = ALPHAS.index(alpha) * 2 + RATES.index(rate), seed - FIRST
        mine = jax.tree.map(lambda x: x[2 * part + own], state["state"])  # noqa: B023
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[0], atol=1e-4), mine, state_of(run)["state"])
        found, result = parts[part], result_of(run)
        assert found["values"] == {"alpha": alpha, "learning_rate": rate}
        assert found["score_is"] == result["score_is"]
        assert found["score_per_seed"][own] == pytest.approx(result["score_per_seed"][0], abs=0.07)
        assert [list(x) for x in found["evaluations"]] == [list(x) for x in result["evaluations"]]
    losses = [row["losses/actor"] for row in rows if row["step"] == "40" and "losses/actor" in row]
    assert len(losses) == len(set(losses)) == 8
    folders = sorted(path for path in directory.iterdir() if path.is_dir())
    names = [f"alpha={alpha:g},learning_rate={rate:g}" for alpha in ALPHAS for rate in RATES]
    assert [path.name for path in folders] == sorted(names)
    assert all(list((path / f"seed{FIRST + 1}").glob("events*")) for path in folders)


@pytest.mark.xdist_group("grid")
def test_a_policy_is_chosen_by_values_and_seed(grid, monkeypatch):
    """It acts as that of the run alone does, which needs no values; that one as its agent does."""
    directory, _, alone = grid
    (alpha, rate, seed), run = next(iter(alone.items()))
    values = {"alpha": alpha, "learning_rate": rate}
    policy = checkpoints.load_policy(directory, seed, **values)
    expected = dataclasses.replace(args.read_args(driftql.Args, run), run_dir=policy.args.run_dir)
    assert (policy.args, policy.step) == (expected, 40)
    monkeypatch.setenv("HOME", str(run.parent))
    observations, key = jnp.linspace(-1, 1, 5)[:, None], jax.random.PRNGKey(0)
    own = checkpoints.load_policy(f"~/{run.name}")
    np.testing.assert_allclose(policy.act(observations, key), own.act(observations, key), atol=1e-3)
    np.testing.assert_allclose(own.act(observations, key), own.agent.act(own.state, observations, key), atol=1e-6)
    for seed, other in ((FIRST, {}), (None, {"alpha": 77}), (5, values), (FIRST, {"discount": 0.99})):
        with pytest.raises(UserError, match=f"choose one seed and combination that is there: alpha=1,.*seed {FIRST}"):
            checkpoints.load_policy(directory, seed, **other)
    with pytest.raises(UserError, match="is not a run"):
        checkpoints.load_policy(run.parent)


def test_every_number_of_every_script_may_be_in_a_grid(script):
    """Nothing in an agent decides by one while it is traced. A field that no longer may has to be refused by name."""
    names = [field.name for field in dataclasses.fields(script.Args) if "float" in str(field.type)]
    names.remove("p_random")
    assert {"learning_rate", "discount", "target_rate"} < set(names)
    init, train, act = functions_of(script, tiny_args(script, grid=tuple(f"{name}=0.25,0.5" for name in names)))
    state, buffer = jax.eval_shape(init), make_buffer(load_dataset("bandit").arrays)
    assert state.state.step.shape == (2 ** len(names),)
    after, _ = jax.eval_shape(train, state, buffer)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    observations, keys = jnp.zeros((2 ** len(names), 3, 1)), jnp.zeros((2 ** len(names), 2), jnp.uint32)
    assert jax.eval_shape(jax.vmap(act), state, observations, keys).shape == (2 ** len(names), 3, 2)


@pytest.mark.parametrize(("name", "line"), [("load", "return load_dataset("), ("main", "dataset = load(args)")])
def test_a_grid_of_what_a_script_reads_elsewhere_is_refused(tmp_path, fails, name, line):
    """Its own `load` or `main` would take one value for all combinations."""
    source, path = (ROOT / "driftql.py").read_text(), tmp_path / f"alpha_in_{name}.py"
    path.write_text(source.replace(f"    {line}", f"    float(args.alpha)\n    {line}"))
    script = checkpoints.import_script(path.stem, path)
    message = fails(script, *tiny_flags("driftql"), "--grid", "alpha=1,3")
    assert "--grid alpha: this script reads alpha outside of make_agent" in message


def test_a_run_does_not_decide_what_is_imported(ended, tmp_path, monkeypatch):
    """Not from its own folder, nor from the current one: it may be somebody else's. Its script can be named."""
    mine, own = tmp_path / "mine.py", (ended / "config.json").read_text()
    config = {name: x for name, x in json.loads(own).items() if name != "sha256"}
    monkeypatch.chdir(ended)
    monkeypatch.setattr(sys, "path", ["", str(ended), *sys.path])
    for name in ("evil", "driftql"):
        (ended / f"{name}.py").write_text("open('was here', 'w')")
    for name in ("evil", "json", "../ended/evil", "tests.helpers"):
        (ended / "config.json").write_text(json.dumps(config | {"algo": name}))
        with pytest.raises(UserError, match=re.escape(f"the run was made by {name}.py, which is not in {ROOT}")):
            checkpoints.load_policy(ended)
    (ended / "config.json").write_text(own)
    assert checkpoints.load_policy(ended).step == 40
    assert not (ended / "was here").exists()
    (ended / "config.json").write_text(json.dumps(config | {"algo": "mine"}))
    mine.write_text((ROOT / "driftql.py").read_text())
    assert checkpoints.load_policy(ended, script=mine).step == 40
    with pytest.raises(UserError, match=r"was made by mine\.py"):
        checkpoints.load_policy(ended, script=ROOT / "driftql.py")
