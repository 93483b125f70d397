"""What holds for every script at the top: the same parts in the same order, nothing shared but common/."""

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from conftest import ROOT, SCRIPTS

import driftql
from common import runs
from common.datasets import BANDITS, OGBENCH_NAMES


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def test_scripts_share_nothing_but_common(script):
    assert not imports(ROOT / f"{script.__name__}.py") & set(SCRIPTS)
    for path in (ROOT / "common").glob("*.py"):
        assert not imports(path) & set(SCRIPTS), path


def test_parts_stand_in_the_same_order(script):
    order = ["Args", "PRESETS", "Actor", "TrainState", "Agent", "make_agent", "main"]
    tree = ast.parse(inspect.getsource(script))
    names = [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    names += [node.targets[0].id for node in tree.body if isinstance(node, ast.Assign)]
    lines = {node.name: node.lineno for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    lines |= {node.targets[0].id: node.lineno for node in tree.body if isinstance(node, ast.Assign)}
    present = [name for name in order if name in names]
    assert present == sorted(present, key=lines.get)
    assert {"Args", "PRESETS", "TrainState", "Agent", "make_agent", "main"} <= set(names)
    assert "arxiv.org" in script.__doc__


def test_main_is_the_same_everywhere(script):
    """So is the agent's interface: who has read one script can read all, and a fix reaches all."""
    for name in ("Agent", "main"):
        assert inspect.getsource(getattr(script, name)) == inspect.getsource(getattr(driftql, name)), name


def test_every_argument_and_public_function_is_documented(script):
    for cls in (runs.Args, script.Args):
        (body,) = ast.parse(inspect.getsource(cls)).body
        for field, following in zip(body.body, [*body.body[1:], None]):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(following, ast.Expr), f"{cls.__name__}.{field.target.id} has no docstring"
    for name, function in inspect.getmembers(script, inspect.isfunction):
        if function.__module__ == script.__name__ and name != "main":
            assert function.__doc__, name
            assert all(p.annotation is not p.empty for p in inspect.signature(function).parameters.values()), name


def test_presets_are_valid_arguments(script):
    fields = {field.name for field in dataclasses.fields(script.Args)}
    assert script.PRESETS.keys() <= {*OGBENCH_NAMES, *BANDITS, *getattr(script, "D4RL", {})}
    for env, preset in script.PRESETS.items():
        assert preset.keys() <= fields, env
        runs.check(script.Args(**preset))
    assert {"bandit", "bandit-corners", "pointmaze-medium-navigate"} <= script.PRESETS.keys()


def test_agent_is_three_pure_functions(script):
    """One state in, one out; the same inputs give the same outputs; everything that changes is in the state."""
    args = script.Args(hidden_dims=(8, 8), batch_size=4)
    agent = script.make_agent(args, 5, 2)
    state = agent.init(jax.random.PRNGKey(0))
    batch = {
        "observations": jnp.ones((4, 5)),
        "actions": jnp.full((4, 2), 0.3),
        "rewards": jnp.ones(4),
        "masks": jnp.ones(4),
        "next_observations": jnp.ones((4, 5)),
    }
    first, metrics = agent.update(state, batch)
    second, _ = agent.update(state, batch)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert jax.tree.structure(first) == jax.tree.structure(state)
    assert int(first.step) == 1
    assert not np.array_equal(first.key, state.key)
    assert all(name.startswith(("losses/", "train/")) and x.shape == () for name, x in metrics.items())
    actions = agent.act(state, jnp.ones((3, 5)), jax.random.PRNGKey(1))
    assert actions.shape == (3, 2)


def test_help_works_from_any_folder(script, tmp_path):
    command = [sys.executable, str(ROOT / f"{script.__name__}.py"), "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "--num-seeds" in output


def test_bench_prints_a_row_per_script():
    argv = ["--dims", "3", "2", "--rounds", "1", "--seconds", "0.1", "--hidden-dims", "16", "--batch-size", "8"]
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), *argv]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    header, _, *rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows] == SCRIPTS
    for row in rows:
        cells = dict(zip(header, row))
        assert float(cells["scan / host"]) > 0
        assert float(cells["GFLOP/update"]) > 0
    assert "critic at all too" in output
