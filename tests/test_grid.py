"""--grid: each combination gives what a run with its values alone gives; its name stands in all that the run leaves;
what cannot be in a grid is refused."""

import csv
import dataclasses
import functools
import json
import re
import sys
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CHEAP, ROOT, launch, metrics_of, result_of, state_of, tiny_args, whole_and_killed

import driftql
import idql
from common import UserError, cli, grid, runs
from common.buffers import make_buffer
from common.checkpoints import load_policy
from common.datasets import load_dataset
from common.runs import Run
from common.seeds import over_grid

sys.path.insert(0, str(ROOT / "tools"))

import curves
import play
import read_runs
import report
import tables

SMALL = dict(hidden_dims=(8,), steps=40, log_every=10, eval_every=20, save_every=20, eval_workers=1, num_seeds=2)
GRIDS = {"driftql": ("alpha", (1.0, 3.0, 10.0)), "fql": ("learning_rate", (5e-4, 2e-3, 1e-2))}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in GRIDS])
def trained(request, tmp_path_factory):
    """Directory of a grid that was killed after a checkpoint and some more updates, and resumed; that of the same grid
    without interruption; the runs of each value alone."""
    script, (name, values) = import_module(request.param), GRIDS[request.param]
    folder = tmp_path_factory.mktemp("runs")
    word = f"{name}={','.join(map(str, values))}"
    args = tiny_args(script, **SMALL, grid=(word,), runs_dir=str(folder / "grids"))
    directory = folder / "grids" / f"bandit__{request.param}__0__20000101-000000"  # older than the whole one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "draw_run", lambda *_: [])  # seconds
        whole = whole_and_killed(script, args, 30, directory)
        own = {x: {name: x, "runs_dir": str(folder / f"{x}")} for x in values}
        alone = {x: script.main(tiny_args(script, **SMALL, **changes)) for x, changes in own.items()}
    launch(script, "--no-progress", "--resume", directory)
    return directory, whole, alone, name


def numbers(rows: list[dict]) -> np.ndarray:
    """Rows of metrics.csv without what names the member; -1 where there is nothing."""
    kept = [name for name in rows[0] if name not in ("seed", *(name for name, _ in GRIDS.values()))]
    return np.array([[float(row[name] or -1) for name in kept] for row in rows])


def test_each_combination_gives_what_it_gives_alone(trained):
    """Also after a kill in the middle. Not bit for bit: a batched product adds in another order, and a rate that is an
    array is rounded once more."""
    directory, _, alone, name = trained
    rows, parts = metrics_of(directory), result_of(directory)["grid"]
    found = {}
    for i, (value, run) in enumerate(alone.items()):
        for seed in (0, 1):
            mine = [row for row in rows if (float(row[name]), row["seed"]) == (value, str(seed))]
            theirs = [row for row in metrics_of(run) if row["seed"] == str(seed)]
            found[value, seed] = numbers(mine)
            np.testing.assert_allclose(numbers(mine), numbers(theirs), rtol=2e-3, atol=1e-4)
        state, other = state_of(directory), state_of(run)
        assert state["values"][name] == pytest.approx(np.repeat(list(alone), 2))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x[2 * i : 2 * i + 2], y, atol=1e-4), state["state"], other)  # noqa: B023
        part, whole = parts[i], result_of(run)
        assert part["values"] == {name: value}
        assert part["score_is"] == whole["score_is"]
        assert part["score_per_seed"] == pytest.approx(whole["score_per_seed"], abs=0.07)  # one of 16 episodes
        assert [list(x) for x in part["evaluations"]] == [list(x) for x in whole["evaluations"]]
        for mine, theirs in zip(part["evaluations"], whole["evaluations"]):
            assert mine["step"] == theirs["step"]
            assert all(x == pytest.approx(theirs[key], rel=2e-3, abs=1e-4) for key, x in mine.items())
    each = list(found.values())
    assert min(np.abs(a - b).max() for i, a in enumerate(each) for b in each[:i]) > 0.05


def test_a_grid_goes_on_as_if_nothing_had_happened(trained):
    directory, whole, *_ = trained
    jax.tree.map(np.testing.assert_array_equal, state_of(directory), state_of(whole))
    assert metrics_of(directory) == metrics_of(whole)
    assert result_of(directory)["grid"] == result_of(whole)["grid"]


def test_all_that_a_grid_leaves_names_the_combinations(trained):
    directory, _, alone, name = trained
    texts = [f"{name}={value:g}" for value in alone]
    assert sorted(path.name for path in directory.iterdir() if path.is_dir()) == sorted(texts)
    assert all(list((directory / text / "seed1").glob("events*")) for text in texts)
    assert metrics_of(directory)[0].keys() - metrics_of(alone[next(iter(alone))])[0].keys() == {name}
    assert (directory / "curve.png").exists()
    result = result_of(directory)
    assert not {"score", "score_per_seed", "evaluations"} & result.keys()  # of nothing in particular
    assert load_config(directory)["args"]["grid"] == [f"{name}={','.join(map(str, alone))}"]


def load_config(directory):
    return json.loads((directory / "config.json").read_text())


def test_a_policy_of_a_grid_is_that_of_its_values(trained):
    directory, _, alone, name = trained
    for i, (value, run) in enumerate(alone.items()):
        policy, other = load_policy(directory, 1, **{name: value}), load_policy(run, 1)
        assert jax.tree.structure(policy.state) == jax.tree.structure(other.state)
        mine = jax.tree.map(lambda x: x[2 * i + 1], state_of(directory)["state"]["params"])  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, policy.state.params, mine)
        assert dataclasses.replace(policy.args, runs_dir="") == dataclasses.replace(other.args, runs_dir="")
    assert policy.act(jnp.zeros((4, 1)), jax.random.PRNGKey(0)).shape == (4, 2)
    with pytest.raises(UserError, match=rf"has a grid; choose one of {name}="):
        load_policy(directory)
    with pytest.raises(UserError, match=rf"has no {name}=7: its grid is {name}="):
        load_policy(directory, **{name: 7})
    with pytest.raises(UserError, match="trained without --grid"):
        load_policy(run, **{name: 7})


def test_play_shows_the_last_evaluation_of_each_or_of_one(trained, capsys):
    directory, _, alone, name = trained
    parts = result_of(directory)["grid"]
    everything = play.play(play.Args(str(directory), workers=1, progress=False))
    last = np.concatenate([part["evaluations"][-1]["return"] for part in parts])
    np.testing.assert_allclose(everything["return"].mean(axis=1), last, rtol=1e-5)
    capsys.readouterr()
    value = list(alone)[2]
    one = play.play(play.Args(str(directory), workers=1, progress=False, seed=1, grid=(f"{name}={value}",)))
    np.testing.assert_allclose(one["return"].mean(axis=1), last[5:], rtol=1e-5)
    assert f"{name}={value:g} seed 1: 16 episodes" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"has no {name}=7"):
        play.play(play.Args(str(directory), grid=(f"{name}=7",)))


def test_the_report_has_a_row_and_a_curve_for_each_combination(trained, tmp_path):
    directory, whole, alone, name = trained
    groups, left_out = read_runs.read_runs(directory.parent)
    older, newer = sorted((directory, whole), key=lambda run: run.name.rpartition("__")[2])
    assert dict(left_out)[older].startswith("seed 0 of ")
    assert newer.name in dict(left_out)[older] and len(left_out) == 1
    assert [group.settings[name] for group in groups] == list(alone)
    parts = result_of(newer)["grid"]
    for group, part in zip(groups, parts):
        assert group.scores / 100 == pytest.approx(part["score_per_seed"])
        assert [seed.curve[-1] for seed in group.seeds] == [(40, x) for x in part["evaluations"][-1]["success"]]
    axes = curves.draw_curves(groups).axes[0]
    assert len(axes.lines) == 3
    assert [name.replace("_", "-") in text.get_text() for text in axes.get_legend().texts] == [True] * 3

    # Beside runs of one value each, a combination is that setting once more.
    together, _ = read_runs.read_runs(directory.parent.parent)
    assert len(together) == 3

    report.main([str(directory.parent), "-o", str(tmp_path / "r.html"), "-o", str(tmp_path / "r.csv")])
    with open(tmp_path / "r.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scores"].split() for row in rows] == [[f"{100 * x:.6g}" for x in p["score_per_seed"]] for p in parts]
    words = tables.command(load_config(newer)).split()
    script = import_module(result_of(newer)["algo"])
    assert cli.parse(script.Args, script.PRESETS, words[2:]).grid == tuple(load_config(newer)["args"]["grid"])


# ---------------------------------------------------------------------------------------------------- names and numbers


def test_members_are_all_seeds_of_each_combination():
    args = driftql.args_for("bandit", seed=4, num_seeds=2, grid=("alpha=1,3", "target-rate=1e-3"))
    assert grid.members(args) == [
        ({"alpha": alpha, "target_rate": 0.001}, seed) for alpha in (1.0, 3.0) for seed in (4, 5)
    ]
    assert grid.member_names(args)[1:3] == ["alpha=1,target_rate=0.001/seed5", "alpha=3,target_rate=0.001/seed4"]
    assert grid.member_names(dataclasses.replace(args, num_seeds=1))[1] == "alpha=3,target_rate=0.001"
    assert grid.member_names(dataclasses.replace(args, grid=None)) == ["seed4", "seed5"]
    assert grid.member_names(driftql.args_for("bandit")) == [""]


def test_every_number_of_every_script_may_be_in_a_grid(script):
    """Nothing in an agent decides by one while it is traced. A field that no longer may has to be refused by name."""
    names = [field.name for field in dataclasses.fields(script.Args) if "float" in str(field.type)]
    assert {"learning_rate", "discount", "target_rate"} < set(names)
    args = tiny_args(script, grid=tuple(f"{name}=0.25,0.5" for name in names), **CHEAP.get(script.__name__, {}))
    dataset = load_dataset("bandit")

    def train_interval(agent, state, buffer):
        return script.train_chunk(agent, state, buffer, args.batch_size, 2)

    init, train, act = over_grid(args, lambda args: script.make_agent(args, 1, 2), train_interval)
    state, buffer = jax.eval_shape(init), make_buffer(dataset)
    assert state.state.step.shape == (2 ** len(names),)
    after, _ = jax.eval_shape(jax.vmap(train, in_axes=(0, None)), state, buffer)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    observations, keys = jnp.zeros((2 ** len(names), 3, 1)), jnp.zeros((2 ** len(names), 2), jnp.uint32)
    assert jax.eval_shape(jax.vmap(act), state, observations, keys).shape == (2 ** len(names), 3, 2)


def test_a_value_that_only_acting_uses():
    """IDQL's temperature: each member acts with its own."""
    args = tiny_args(idql, grid=("sampling_temperature=0,1",), hidden_dims=(8,), diffusion_steps=5, num_samples=1)
    agent_of = functools.partial(idql.make_agent, observation_dim=1, action_dim=2)
    init, _, act = over_grid(args, agent_of)
    state, observations, key = jax.jit(init)(), jnp.zeros((4, 1)), jax.random.PRNGKey(1)
    actions = jax.jit(jax.vmap(act, in_axes=(0, None, None)))(state, observations, key)
    for i, value in enumerate((0.0, 1.0)):
        agent = agent_of(dataclasses.replace(args, grid=None, sampling_temperature=value))
        one = jax.tree.map(lambda x: x[i], state.state)  # noqa: B023
        np.testing.assert_allclose(actions[i], jax.jit(agent.act)(one, observations, key), atol=1e-5)
    assert np.abs(np.diff(actions, axis=0)).max(axis=(1, 2)).min() > 0.05


def test_a_loss_that_is_not_finite_names_its_combination(tmp_path):
    args = tiny_args(driftql, grid=("alpha=1,3",), num_seeds=2, runs_dir=str(tmp_path))
    values = np.array([0.0, 0.0, 0.0, np.nan])
    message = "losses/actor of alpha=3, seed 1 is not finite at step 50"
    with pytest.raises(UserError, match=message), Run(args, load_dataset("bandit"), ["losses/actor"]) as run:
        run.log({"losses/actor": values}, 1.0)
    message = "parameters of alpha=3, seed 0 are not finite at step 50.*There was no checkpoint yet; the log is in"
    with pytest.raises(UserError, match=message), Run(args, load_dataset("bandit"), ["losses/actor"]) as run:
        run.log({"losses/actor": np.zeros(4)}, 1.0)
        run.save({"weights": np.array([0.0, 0.0, np.inf, 0.0])})
    assert not (run.directory / "checkpoint.msgpack").exists()


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alpha"], "write it as --grid alpha=1,3,10"),
        (["=3"], "write it as --grid alpha=1,3,10"),
        (["alhpa=1,3"], "there is no alhpa; did you mean alpha?"),
        (["foo=1"], "there is no foo; it can have learning_rate, discount"),
        (["num-candidates=4,8"], "for num_candidates there is tools/sweep.py"),
        (["hidden_dims=64,128"], "for hidden_dims there is tools/sweep.py"),
        (["kernel=laplace,gaussian"], "for kernel there is tools/sweep.py"),
        (["alpha=1,many"], "values are numbers"),
        (["alpha="], "values are numbers"),
        (["alpha=1,1.0"], "may be there once"),
        (["alpha=1", "alpha=3"], "may be there once"),
        (["alpha=1,-3"], "--grid alpha=-3: --alpha -3.0 must be a finite number, 0 or more"),
        (["discount=0.9,nan"], "must be a finite number"),
        (["alpha=1,3", "discount=0.9,1.1"], "--discount 1.1 must lie between 0 and 1"),
        (["temperature=0.1,0"], "--temperature 0 must be positive"),
        ([], "needs at least one value"),
    ],
)
def test_what_cannot_be_in_a_grid_is_one_line(words, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        driftql.args_for("bandit", grid=tuple(words)).check()
    assert "\n" not in str(error.value)


def test_a_grid_is_not_blamed_for_the_other_arguments():
    with pytest.raises(UserError, match=r"^--batch-size 7"):
        idql.args_for("bandit", grid=("expectile=0.5,0.9",), batch_size=7).check()


def test_a_mistake_in_a_grid_leaves_nothing(fails):
    """Nor does one that only shows with a value of the second name."""
    assert "tools/sweep.py" in fails(driftql, "--env", "bandit", "--grid", "num-candidates=4,8")
    assert "between 0 and 1" in fails(driftql, "--env", "bandit", "--grid", "alpha=1,3", "discount=0.9,2")
    assert "given twice" in fails(driftql, "--env", "bandit", "--grid", "alpha=1,3", "--grid", "discount=0.9")


def test_a_grid_stays_as_it_is_on_resume(trained, fails):
    directory, *_ = trained
    script = import_module(result_of(directory)["algo"])
    assert "--resume takes --grid from the run" in fails(script, "--resume", directory, "--grid", "discount=0.9")
