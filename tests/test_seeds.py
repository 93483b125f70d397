"""Seeds and combinations of --grid side by side: each gives what it gives alone. Policies of a run that is there."""

import dataclasses
import json
import re
import subprocess
import sys
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CHEAP,
    ROOT,
    SCRIPTS,
    launch_in_process,
    metrics_of,
    result_of,
    state_of,
    tiny_args,
    tiny_flags,
    whole_and_killed,
)

import driftql
from common import UserError, args, checkpoints
from common.buffers import make_buffer
from common.data import load_dataset
from common.seeds import place, side_by_side

SMALL = dict(hidden_dims=(8,), steps=40, log_every=10, eval_every=20, save_every=20, eval_workers=1, num_seeds=2)
GRIDS = {"driftql": ("alpha", (1.0, 3.0, 10.0)), "fql": ("learning_rate", (5e-4, 2e-3, 1e-2))}


def functions_of(script, given, num_updates: int = 2):
    """init, train and act of a run on the bandit."""

    def train_interval(agent, state, buffer):
        return script.train_chunk(agent, state, buffer, given.batch_size, num_updates)

    return side_by_side(given, lambda args: script.make_agent(args, 1, 2), train_interval)


def assert_close(rows: list[dict], others: list[dict], tolerance: float) -> None:
    """Rows of two members, but for what names them. One of 16 episodes may fall on the other side of a border."""
    named = ("seed", *(name for name, _ in GRIDS.values()))
    for row, other in zip(rows, others, strict=True):
        assert row.keys() - named == other.keys() - named
        for name in row.keys() - named:
            allowed = 0.07 if name in ("eval/success", "eval/support") else tolerance
            assert float(row[name] or -1) == pytest.approx(float(other[name] or -1), rel=allowed, abs=allowed), name


# ---------------------------------------------------------------------------------------------------------------- seeds


def test_each_seed_gives_what_it_gives_alone(tmp_path):
    """The three largest seeds together, and each alone. Products of several seeds add in another order, which training
    amplifies: 1e-3 after 200 updates is that; seeds differ by far more."""
    flags, first = [*tiny_flags("driftql"), "--run-dir"], 2**32 - 3
    together = metrics_of(launch_in_process(driftql, *flags, tmp_path / "all", "--seed", first, "--num-seeds", 3))
    for seed in range(first, first + 3):
        alone = metrics_of(launch_in_process(driftql, *flags, tmp_path / str(seed), "--seed", seed))
        assert_close([row for row in together if row["seed"] == str(seed)], alone, 1e-3)
    returns = [float(row["eval/return"]) for row in together if row["step"] == "200" and "eval/return" in row]
    assert len({round(x, 2) for x in returns}) == 3


def test_results_do_not_depend_on_the_log_interval(tmp_path):
    flags = tiny_flags("driftql")
    runs = [launch_in_process(driftql, *flags, "--log-every", n, "--run-dir", tmp_path / str(n)) for n in (50, 100)]
    jax.tree.map(np.testing.assert_array_equal, *map(state_of, runs))


DEVICES = """
import os, sys
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
sys.path[:0] = [sys.argv[1], os.path.join(sys.argv[1], "tests")]
import jax, numpy as np
from test_seeds import trained
from common.seeds import place
state, buffer, metrics = trained()
print([shard.data.shape[0] for shard in state.state.step.addressable_shards], buffer.rewards.is_fully_replicated)
np.savez(sys.argv[2], **metrics)
print(len(place(jax.numpy.zeros(6), buffer)[0].addressable_shards))
"""


def trained():
    """Four seeds after 50 updates: state, buffer, metrics."""
    init, train, _ = functions_of(driftql, tiny_args(driftql, num_seeds=4), 50)
    state, buffer = place(init(), make_buffer(load_dataset("bandit").arrays))
    state, metrics = train(state, buffer)
    return state, buffer, metrics


def test_seeds_spread_over_devices(tmp_path):
    """Four devices and four seeds: the same numbers as on one device. Six seeds stay on one, which is said."""
    words = [sys.executable, "-c", DEVICES, str(ROOT), str(tmp_path / "four.npz")]
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    note = "NOTE    6 side by side cannot be shared evenly by 4 devices; only the first works"
    assert [line for line in output if not line.startswith("device")] == ["[1, 1, 1, 1] True", note, "1"]
    four, one = np.load(tmp_path / "four.npz"), trained()[2]
    assert set(four) == set(one)
    for name, x in four.items():
        np.testing.assert_allclose(x, one[name], rtol=1e-3, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------------- grid


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in GRIDS])
def grid_runs(request, tmp_path_factory):
    """The directory of a grid that was killed after a checkpoint and some more updates, and resumed; that of the same
    grid without interruption; the runs of each value alone; the name of the value."""
    script, (name, values) = import_module(request.param), GRIDS[request.param]
    folder = tmp_path_factory.mktemp("runs")
    given = tiny_args(script, **SMALL, grid=(f"{name}={','.join(map(str, values))}",), run_dir=str(folder / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.runs.draw_run", lambda *_: [])  # seconds
        whole = whole_and_killed(script, given, 30, folder / "killed")
        own = {x: {name: x, "run_dir": str(folder / f"{x}")} for x in values}
        alone = {x: script.main(tiny_args(script, **SMALL, **changes)) for x, changes in own.items()}
        launch_in_process(script, "--no-progress", "--resume", folder / "killed")
    return folder / "killed", whole, alone, name


def test_each_combination_gives_what_it_gives_alone(grid_runs):
    """Not bit for bit: a product of several members adds in another order, and a rate that is an array is rounded once
    more. A grid that was killed gives bit for bit what it gives without interruption."""
    directory, whole, alone, name = grid_runs
    rows, parts, state = metrics_of(directory), result_of(directory)["grid"], state_of(directory)
    assert (rows, parts) == (metrics_of(whole), result_of(whole)["grid"])
    jax.tree.map(np.testing.assert_array_equal, state, state_of(whole))
    assert state["values"][name] == pytest.approx(np.repeat(list(alone), 2))
    for i, (value, run) in enumerate(alone.items()):
        for seed in "01":
            mine = [row for row in rows if (float(row[name]), row["seed"]) == (value, seed)]
            assert_close(mine, [row for row in metrics_of(run) if row["seed"] == seed], 2e-3)
        own = jax.tree.map(lambda x: x[2 * i : 2 * i + 2], state["state"])  # noqa: B023
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), own, state_of(run)["state"])
        result = result_of(run)
        assert (parts[i]["values"], parts[i]["score_is"]) == ({name: value}, result["score_is"])
        assert parts[i]["score_per_seed"] == pytest.approx(result["score_per_seed"], abs=0.07)
        assert [list(x) for x in parts[i]["evaluations"]] == [list(x) for x in result["evaluations"]]
    losses = [row["losses/actor"] for row in rows if row["step"] == "40" and "losses/actor" in row]
    assert len(losses) == len(set(losses)) == 6
    texts = [f"{name}={value:g}" for value in alone]
    assert sorted(path.name for path in directory.iterdir() if path.is_dir()) == sorted(texts)
    assert all(list((directory / text / "seed1").glob("events*")) for text in texts)


def test_a_policy_of_a_grid_is_chosen_by_its_values_and_seed(grid_runs):
    directory, _, alone, name = grid_runs
    value = list(alone)[1]
    policy = checkpoints.load_policy(directory, 1, **{name: value})
    assert (vars(policy.args)[name], policy.args.seed, policy.args.num_seeds, policy.args.grid) == (value, 1, 1, None)
    observations, key = jnp.linspace(-1, 1, 5)[:, None], jax.random.PRNGKey(0)
    own = checkpoints.load_policy(alone[value], 1)
    np.testing.assert_allclose(policy.act(observations, key), own.act(observations, key), atol=1e-3)
    for seed, values in ((0, {}), (None, {name: 77}), (5, {name: value}), (0, {"discount": 0.99})):
        with pytest.raises(UserError, match=f"choose one seed and combination that is there: {name}="):
            checkpoints.load_policy(directory, seed, **values)


def test_every_number_of_every_script_may_be_in_a_grid(script):
    """Nothing in an agent decides by one while it is traced. A field that no longer may has to be refused by name."""
    names = [field.name for field in dataclasses.fields(script.Args) if "float" in str(field.type)]
    assert {"learning_rate", "discount", "target_rate"} < set(names)
    given = tiny_args(script, grid=tuple(f"{name}=0.25,0.5" for name in names), **CHEAP.get(script.__name__, {}))
    init, train, act = functions_of(script, given)
    state, buffer = jax.eval_shape(init), make_buffer(load_dataset("bandit").arrays)
    assert state.state.step.shape == (2 ** len(names),)
    after, _ = jax.eval_shape(train, state, buffer)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    observations, keys = jnp.zeros((2 ** len(names), 3, 1)), jnp.zeros((2 ** len(names), 2), jnp.uint32)
    assert jax.eval_shape(jax.vmap(act), state, observations, keys).shape == (2 ** len(names), 3, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alhpa=1,3"], "did you mean alpha?"),
        (["num-candidates=4,8"], "one program can have learning_rate, discount"),
        (["kernel=laplace,gaussian"], "for others there is tools/sweep.py"),
        (["alpha"], "write it as --grid alpha=1,3,10"),
        (["alpha=1,many"], "write it as --grid alpha=1,3,10"),
        (["alpha=1,1.0"], "may be there once"),
        (["alpha=1", "alpha=3"], "may be there once"),
        (["alpha=1,-3"], "--grid alpha=-3: --alpha -3.0 must be a finite number, 0 or more"),
        (["alpha=1,3", "discount=0.9,1.1"], "--discount 1.1 must lie between 0 and 1"),
        (["discount=0.9", "--grid", "alpha=1,3"], "--grid is given twice"),
        (["alpha=1,3", "--batch-size", "0"], "error: --batch-size 0 must be positive"),  # no combination is blamed
    ],
)
def test_what_cannot_be_in_a_grid_is_one_message(fails, words, message):
    assert message in fails(driftql, *tiny_flags("driftql"), "--grid", *words)


@pytest.mark.parametrize(("name", "line"), [("load", "return load_dataset("), ("main", "dataset = load(args)")])
def test_a_grid_of_what_a_script_reads_elsewhere_is_refused(tmp_path, fails, name, line):
    """Its own `load` or `main` would take one value for all combinations."""
    source, path = (ROOT / "driftql.py").read_text(), tmp_path / f"alpha_in_{name}.py"
    path.write_text(source.replace(f"    {line}", f"    float(args.alpha)\n    {line}"))
    script = checkpoints.import_script(path.stem, path)
    message = fails(script, *tiny_flags("driftql"), "--grid", "alpha=1,3")
    assert "--grid alpha: this script reads alpha outside of make_agent" in message
    flags = tiny_flags("driftql", **SMALL | {"num_seeds": 1})
    assert launch_in_process(script, *flags, "--grid", "discount=0.9,0.99", "--run-dir", tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------- policies


def run_by_hand(script, directory, given):
    """A run's config.json and checkpoint, on data with 3 numbers to observe and 2 to act. Returns the states."""
    state = side_by_side(given, lambda args: script.make_agent(args, 3, 2))[0]()
    directory.mkdir()
    checkpoints.save(directory, state, {"step": 40, "logs": {}, "identity": ""})
    args.write_config(directory, given, {"dataset": {"observation_dim": 3, "action_dim": 2}}, {})
    return state.state


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_policy_acts_as_its_run_does(name, tmp_path, monkeypatch):
    """Of each seed of a checkpoint: what the agent gives with the same state and key."""
    script, directory = import_module(name), tmp_path / "run"
    given = tiny_args(script, seed=3, num_seeds=2, hidden_dims=(8,))
    states = run_by_hand(script, directory, given)
    act = jax.jit(script.make_agent(given, 3, 2).act)
    monkeypatch.setenv("HOME", str(tmp_path))
    for seed, index in ((None, 0), (3, 0), (4, 1)):
        policy = checkpoints.load_policy("~/run", seed)
        assert (policy.args.seed, policy.args.num_seeds, policy.step) == (3 + index, 1, 40)
        state = jax.tree.map(lambda x: x[index], states)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, policy.state, state)
        given = jnp.ones((5, 3)), jax.random.PRNGKey(1)
        np.testing.assert_allclose(policy.act(*given), act(state, *given), atol=1e-6)
    with pytest.raises(UserError, match="choose one seed and combination that is there: seed 3; seed 4"):
        checkpoints.load_policy(directory, 5)
    (directory / checkpoints.FILE).unlink()
    for folder, message in ((directory, "cannot read"), (tmp_path, "is not a run")):
        with pytest.raises(UserError, match=message):
            checkpoints.load_policy(folder)


def test_a_run_does_not_decide_what_is_imported(tmp_path, monkeypatch):
    """Not from its own folder, nor from the current one: it may be somebody else's. Its script can be named."""
    directory, mine = tmp_path / "run", tmp_path / "mine.py"
    run_by_hand(driftql, directory, tiny_args(driftql, hidden_dims=(8,)))
    own = (directory / "config.json").read_text()
    config = {name: x for name, x in json.loads(own).items() if name != "sha256"}
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", ["", str(directory), *sys.path])
    for name in ("evil", "driftql"):
        (directory / f"{name}.py").write_text("open('was here', 'w')")
    for name in ("evil", "json", "../run/evil", "tests.helpers"):
        (directory / "config.json").write_text(json.dumps(config | {"algo": name}))
        with pytest.raises(UserError, match=re.escape(f"the run was made by {name}.py, which is not in {ROOT}")):
            checkpoints.load_policy(directory)
    (directory / "config.json").write_text(own)
    assert checkpoints.load_policy(directory).step == 40
    assert not (directory / "was here").exists()
    (directory / "config.json").write_text(json.dumps(config | {"algo": "mine"}))
    mine.write_text((ROOT / "driftql.py").read_text())
    assert checkpoints.load_policy(directory, script=mine).step == 40
    with pytest.raises(UserError, match=r"was made by mine\.py"):
        checkpoints.load_policy(directory, script=ROOT / "driftql.py")
