"""tools/bench.py, the picture of tools/plot.py that needs policies, and what tools/sweeps/ asks of the scripts."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import ROOT, tiny_args

sys.path.insert(0, str(ROOT / "tools"))

import bench
import plot
import shared
import sweep

import driftql
from common.args import one_line_errors, parse, preset_of
from common.data import load_dataset


def test_every_script_has_a_title_without_being_registered(tmp_path, monkeypatch):
    assert shared.titles()["driftql"] == "DriftQL" and shared.titles()["drol"] == "DROL"
    (tmp_path / "own.py").write_text('"""My own method, in one file."""\nimport nowhere\ndef make_agent(): ...')
    (tmp_path / "conftest.py").write_text("def other(): ...")
    monkeypatch.setattr(shared, "ROOT", tmp_path)
    assert shared.titles.__wrapped__() == {"own": "My own method"}


def test_every_sweep_file_of_the_repository_is_jobs_that_the_scripts_accept():
    """As many runs as its head says, each with arguments of its script and a preset for its environment."""
    for path in (ROOT / "tools" / "sweeps").glob("*.yaml"):
        jobs = sweep.make_jobs(sweep.read_blocks(path), Path("runs"))
        assert len(jobs) == sum(map(int, re.findall(r"(\d+) runs", path.read_text()))), path
        for job in jobs:
            script = importlib.import_module(Path(job.command[1]).stem)
            args = parse(script.Args, script.PRESETS, job.command[2:])
            assert preset_of(script.PRESETS, script.Args, args.env, args.laptop), job.title


# --------------------------------------------------------------------------------------------------------------- bench


def test_bench_prints_a_table_alone(tmp_path):
    words = "--scripts drol fql --dims 3 2 --rounds 2 --updates 3 --hidden-dims 16 --batch-size 64 --num-seeds 2"
    argv = [*words.split(), "--profile", str(tmp_path / "trace")]
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "bench.py"), *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    device, _, header, _, *table = done.stdout.splitlines()
    assert "cpu" in device
    cells = [dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | "))) for row in table]
    assert [(row["script"], row["side by side"]) for row in cells] == [("drol", "2"), ("fql", "2")]
    for row in cells:
        assert all(float(row[f"{name}, updates/s"].replace(",", "")) > 0 for name in ("scan", "host"))
        assert float(row["act 1, ms"]) > 0 and float(row["act 50, ms"]) > 0
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_rates_are_of_all_seeds_and_medians(monkeypatch):
    """A round is scan, host, act 1 and act 50. The first is not counted; then a call takes 2, 4 and 6 s."""
    clock = iter([0] * 4 + [x for length in (2, 4, 6) for _ in range(4) for x in (0, length)])
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    for name in ("make_scan", "make_host", "make_act"):
        monkeypatch.setattr(bench, name, lambda *_: lambda: None)
    row = bench.measure("fql", tiny_args(driftql, num_seeds=2, grid=("alpha=1,3",)), (3, 2), 8, 3, None)
    assert row == ["fql", "4", "8.0", "2.0", "4.00", "80.00", "80.00"]


def test_the_ways_of_training_do_the_same_work():
    """As many updates of each seed in one call, and batches of the same meaning."""
    script, args, arrays = driftql, tiny_args(driftql, num_seeds=2), bench.random_arrays((3, 2), size=50)
    seen = []
    agent = script.make_agent(args, 3, 2)

    def update(state, batch):
        seen.append({name: x.shape for name, x in batch.items()})
        jax.debug.callback(lambda *_: seen.append("update"), state.step)
        return agent.update(state, batch)

    bench.make_host(agent._replace(update=update), args, arrays, 4)()
    batch = {"observations": (32, 3), "next_observations": (32, 3), "actions": (32, 2)}
    assert seen[0] == batch | {"rewards": (32,), "masks": (32,)}
    assert seen.count("update") == 4
    scan = bench.make_scan(script, args, arrays, (3, 2), 4)
    for _ in range(2):
        scan()
    (state,) = [cell.cell_contents for cell in scan.__closure__ if hasattr(cell.cell_contents, "state")]
    assert state.state.step.tolist() == [8, 8]


# ----------------------------------------------------------------------------------------------------- plots


def test_policies_on_a_bandit_early_and_late(tmp_path, monkeypatch):
    for steps in (8, 4):
        driftql.main(
            tiny_args(driftql, steps=steps, log_every=2, eval_every=4, save_every=4, run_dir=str(tmp_path / str(steps)))
        )
    figures = []
    monkeypatch.setattr(plot, "save_figure", lambda figure, *_: figures.append(figure))
    plot.main([str(tmp_path), "--out", str(tmp_path / "bandit.png")])
    data, early, late = figures[0].axes
    assert data.get_title() == "data" and early.get_title().startswith("DriftQL")
    assert (early.get_xlabel(), late.get_xlabel()) == ("4 updates", "8 updates")
    shown, actions = data.collections[0].get_offsets(), late.collections[1].get_offsets()
    np.testing.assert_array_equal(shown, load_dataset("bandit").actions[:2_000])
    assert actions.shape == (1_000, 2) and np.abs(actions).max() <= 1


# What a tool says of a mistake: command lines that make it. RUN is a run of a bandit.
MISTAKES = {
    "required: -o": "report results",
    "required: runs": "plot",
    "there is no run directory in": "report tests -o x.md; plot nowhere",
    "must end in .html or .md or .csv": "report results -o x.pdf",
    "cannot write": "report results --no-pictures -o {tmp_path}/folder.md",
    "an HTML report needs markdown: ": "report results --no-pictures -o {tmp_path}/x.html",
    "x.foo: the name must end in": "plot RUN --out x.foo; play RUN --rollouts x.foo; play RUN --film x.foo",
    "the runs must be on one bandit": "plot results --out {tmp_path}/x.png",
    "invalid choice: 'driftl'": "bench --scripts driftl",
    "invalid positive value: ": "bench --dims a 3; sweep --workers 0; play RUN --episodes 0",
    "--critic-batch-size 256": "bench --scripts fql idql --batch-size 64",  # before FQL is measured
    "bandit has no tasks": "play RUN --task 0",
    "has seed 0": "play RUN --seed 7",
    "--film cannot be made here": "play RUN --film {tmp_path}/film.gif",
    "give its path": "play RUN --script nowhere/driftql.py",
    "needs scripts": "sweep --envs bandit",
    "no driftkl.py; there are diffusion_ql, driftql, ": "sweep --envs bandit --scripts driftkl",
    "argument --set: invalid assignment value: 'alpha'": "sweep FQL --set alpha",
    "--gpus are this machine's": "sweep FQL --slurm --gpus 0",
    "nowhere.yaml is no list of blocks": "sweep nowhere.yaml",
    "dataset: it's: No closing quotation": 'sweep FQL --set "dataset=it\'s"',
    "alpha: --track is a flag, not a value": "sweep FQL --set 'alpha=1 --track'",
    "' is neither": "sweep FQL --set run_dir=1; sweep FQL --set no-progress=1; sweep FQL --set env=1",
}


@pytest.mark.parametrize(("words", "expected"), [(words, x) for x, y in MISTAKES.items() for words in y.split(";")])
def test_a_mistake_is_one_clear_message(words, expected, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setitem(sys.modules, "markdown", None)
    monkeypatch.chdir(ROOT)
    (tmp_path / "folder.md").mkdir()
    words = words.replace("FQL", "--scripts fql --envs bandit").replace("RUN", str(finished))
    tool, *argv = shlex.split(words.format(tmp_path=tmp_path))
    module = importlib.import_module(tool)
    with pytest.raises(SystemExit) as stop, one_line_errors(tool):
        (module.play if tool == "play" else module.main)(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and expected in " ".join(error.split()) and "Traceback" not in error


def test_a_tool_is_started_as_a_program():
    """In another folder than the project's."""
    for tool in ("bench", "play", "plot", "report", "sweep", "train_ant"):
        command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--nonsense"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path("/"))
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
