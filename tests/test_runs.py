"""A run from its first line to result.json: directory, logs, evaluations, score, resume, faults."""

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import Future
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    NAME,
    ROOT,
    SCRIPTS,
    assert_same_run,
    launch,
    maze_flags,
    metrics_of,
    result_of,
    start,
    state_of,
    tiny_args,
    tiny_flags,
    wait_for,
    whole_and_killed,
)  # fmt: skip

import driftql
from common import UserError, checkpoints, cli, evaluation
from common.collect import collect
from common.datasets import load_dataset
from common.results import git_commit, make_result
from common.runs import Progress, Run

METRICS = ["losses/critic"]


def played(*values, episodes=2):
    """What an Evaluator returns, one value per seed."""
    success = np.repeat(np.array(values, float)[:, None], episodes, axis=1)
    return {"success": success, "return": 10 * success, "length": success, "paths": [], "film": None}


def promised(results) -> Future:
    future: Future = Future()
    future.set_result(results)
    return future


def interval(*values):
    return {"losses/critic": np.array(values, float)}, 0.5


# ---------------------------------------------------------------------------------------------------------------- a run


@pytest.mark.pictures
def test_what_a_run_leaves_behind(tmp_path, capsys):
    argv = (*tiny_flags(driftql, seed=3, num_seeds=2), "--runs-dir", tmp_path)
    directory = launch(driftql, *argv)
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == str(directory)
    assert "10,000 transitions" in output
    assert directory.name.startswith("bandit__driftql__3__")

    config = json.loads((directory / "config.json").read_text())
    assert config["algo"] == "driftql"
    assert config["args"]["hidden_dims"] == [16, 16]
    assert {"jax", "ogbench", "python", "mujoco"} <= config["versions"].keys()
    assert config["physics"]["mujoco"] == config["versions"]["mujoco"]

    result = result_of(directory)
    assert (result["algo"], result["env"], result["task"], result["seeds"]) == ("driftql", "bandit", None, [3, 4])
    assert result["dataset"]["source"] == "builtin"
    assert [evaluation["step"] for evaluation in result["evaluations"]] == [0, 100, 200]
    assert all(len(evaluation["success"]) == 2 for evaluation in result["evaluations"])
    assert result["score_per_seed"] == result["evaluations"][-1]["success"]  # the last, never the best
    assert result["updates_per_second"] > 0
    assert result["wall_seconds"] > 0

    rows = metrics_of(directory)
    assert [(row["step"], row["seed"]) for row in rows if row["losses/critic"]] == [
        (str(step), str(seed)) for step in (50, 100, 150, 200) for seed in (3, 4)
    ]
    assert rows[-1]["eval/support"]
    for seed in (3, 4):
        assert list((directory / f"seed{seed}").glob("events.out.tfevents.*"))
    for picture in ("curve.png", "rollouts.png"):
        assert (directory / picture).read_bytes()[:4] == b"\x89PNG"
    assert not list(directory.glob(".*"))


def test_a_run_by_hand(tmp_path, capsys):
    """Without a script's `main`: what is given is what is logged."""
    args = tiny_args(driftql, steps=20, log_every=10, eval_every=20, save_every=10, num_seeds=2, runs_dir=str(tmp_path))
    state = {"weights": np.arange(4.0).reshape(2, 2)}
    with Run(args, load_dataset("bandit"), METRICS) as run:
        assert run.restore(state) is state
        assert run.evaluation_due()
        run.log_evaluation(promised(played(0.0, 0.5)))
        assert not run.evaluation_due()
        run.log(*interval(1.0, 2.0))
        assert (run.step, run.save_due(), run.evaluation_due()) == (10, True, False)
        run.save(state)
        assert not run.save_due()
        run.log(*interval(3.0, 4.0))
        assert run.evaluation_due()
        run.log_evaluation(promised(None))  # stopped on the way
        assert run.evaluation_due()
        run.log_evaluation(promised(played(0.5, 1.0)))
        assert not run.stopping()
        directory = run.finish(state)
    shown = [(row["step"], row["seed"], row["losses/critic"], row["eval/success"]) for row in metrics_of(directory)]
    assert shown == [
        ("0", "0", "", "0.0"), ("0", "1", "", "0.5"),
        ("10", "0", "1.0", ""), ("10", "1", "2.0", ""),
        ("20", "0", "3.0", ""), ("20", "1", "4.0", ""),
        ("20", "0", "", "0.5"), ("20", "1", "", "1.0"),
    ]  # fmt: skip
    result = result_of(directory)
    assert (result["score"], result["score_per_seed"], result["steps"]) == (0.75, [0.5, 1.0], 20)
    assert result["updates_per_second"] == pytest.approx(20)
    assert checkpoints.load(directory)["step"] == 20
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("success"))
    assert "0.75 at the last evaluation" in line
    assert "score 0.75 +- 0.25 (mean success of the last evaluation, 2 seeds)" in line


def test_training_goes_on_during_an_evaluation(tmp_path, monkeypatch):
    """As on an accelerator: nothing differs but the order of rows, and a stop loses and repeats no evaluation."""
    args = tiny_args(driftql, steps=300, eval_every=100, save_every=300, runs_dir=str(tmp_path))
    foreground = driftql.main(args)

    logged, real_log, real_play = [], Run.log, evaluation.Evaluator._play

    def log(run, *given):
        real_log(run, *given)
        logged.append(run.step)

    def play(evaluator, state, step, stopping):
        if step < args.steps and not stopping():
            wait_for(lambda: logged and logged[-1] > step)  # in vain, if training waited for the evaluation
        if step == 100 and stop:
            signal.raise_signal(signal.SIGINT)
        return real_play(evaluator, state, step, stopping)

    monkeypatch.setattr(evaluation, "overlaps_training", lambda: True)
    monkeypatch.setattr(evaluation.Evaluator, "_play", play)
    monkeypatch.setattr(Run, "log", log)
    stop = False
    whole = driftql.main(args)
    logged.clear()
    assert metrics_of(whole) != metrics_of(foreground)
    assert sorted(map(str, metrics_of(whole))) == sorted(map(str, metrics_of(foreground)))

    stop = True
    with pytest.raises(SystemExit) as stopped:
        driftql.main(args)
    assert stopped.value.code == 130
    (directory,) = set(tmp_path.iterdir()) - {whole, foreground}
    assert [x["step"] for x in json.loads(checkpoints.load(directory)["evaluations"])] == [0, 100]
    stop = False
    logged.clear()
    driftql.main(dataclasses.replace(args, resume=str(directory)))
    assert sorted(map(str, metrics_of(directory))) == sorted(map(str, metrics_of(foreground)))
    for other in (whole, directory):
        assert result_of(other)["evaluations"] == result_of(foreground)["evaluations"]
        jax.tree.map(np.testing.assert_array_equal, state_of(other), state_of(foreground))


def test_score_is_the_mean_of_the_last_three_evaluations_on_ogbench(data_dir):
    dataset = load_dataset(NAME, data_dir=str(data_dir))
    args = driftql.Args(env=NAME, steps=500_000, num_seeds=2)
    values = [0.0, 0.9, 0.1, 0.2, 0.6, 0.4]
    done = Progress(evaluations=[{"step": 100_000 * i, "success": [x, 2 * x]} for i, x in enumerate(values)])
    result = make_result(args, dataset, done.evaluations)
    assert result["score_per_seed"] == pytest.approx([0.4, 0.8])
    assert result["score"] == pytest.approx(0.6)
    assert result["score_is"] == "mean success of the last 3 evaluations"
    assert result["last_per_seed"] == [0.4, 0.8]
    assert result["best_per_seed"] == [0.9, 1.8]
    # One at the end of a shorter run that was extended does not count: a run straight to the end lacks it.
    extended = [*done.evaluations[:-1], {"step": 450_000, "success": [1, 1]}, done.evaluations[-1]]
    assert make_result(args, dataset, extended)["score_per_seed"] == result["score_per_seed"]
    # Before the first update nothing was learnt: it never counts.
    early = make_result(args, dataset, done.evaluations[:2])
    assert early["score_per_seed"] == [0.9, 1.8]
    # Elsewhere the last one; without success, the return.
    own = dataclasses.replace(dataset, task=None)
    assert make_result(args, own, done.evaluations)["score_per_seed"] == [0.4, 0.8]
    done = Progress(evaluations=[{"step": 1, "return": [7.0, 9.0]}])
    assert make_result(args, own, done.evaluations)["score"] == 8.0


def test_runs_that_start_in_the_same_second_do_not_share_a_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    made = set()
    for _ in range(3):
        with Run(tiny_args(driftql, runs_dir=str(tmp_path)), load_dataset("bandit"), METRICS) as run:
            made.add(run.directory)
    assert len(made) == 3


def test_from_python_as_from_the_command_line(tmp_path):
    """driftql.main(driftql.args_for(...)) does what the command does."""
    changes = {"steps": 100, "eval_every": 50, "save_every": 50, "eval_episodes": 8, "hidden_dims": (8,)}
    argv = [f"{cli.flag_of(name)}={value}" for name, value in changes.items() if name != "hidden_dims"]
    command = launch(driftql, "--env", "bandit", *argv, "--hidden-dims", "8", "--runs-dir", tmp_path, "--no-progress")
    function = driftql.main(driftql.args_for("bandit", **changes, runs_dir=str(tmp_path), progress=False))
    assert_same_run(function, command)
    first, second = (json.loads((path / "config.json").read_text()) for path in (command, function))
    assert first == second


# ---------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(name, tmp_path):
    """Each script through `main`: stopped after a checkpoint and 50 more updates with their rows, resumed, bit for bit
    the same."""
    script, directory = import_module(name), tmp_path / "killed"
    args = tiny_args(script, runs_dir=str(tmp_path), hidden_dims=(8,), num_seeds=2)
    whole = whole_and_killed(script, args, 150, directory)
    (directory / ".new-1-checkpoint.msgpack").touch()  # of a process killed while it wrote
    assert not (directory / "result.json").exists()
    assert metrics_of(directory)[-1]["step"] == "150"
    assert checkpoints.load(directory)["step"] == 100
    assert launch(script, "--no-progress", "--resume", directory) == directory
    assert_same_run(directory, whole)
    assert not list(directory.glob(".*"))


@pytest.mark.xdist_group("maze")
def test_kill_and_resume_is_bit_identical(uninterrupted, data_dir, tmp_path):
    """kill -9 between two checkpoints, with rows logged since the first one; then again before the first one."""
    process = start("driftql.py", *maze_flags(data_dir, tmp_path))
    wait_for(lambda: list(tmp_path.glob("*/checkpoint.msgpack")), process)
    (directory,) = tmp_path.iterdir()
    wait_for(lambda: "\n140," in (directory / "metrics.csv").read_text(), process)
    process.kill()
    process.communicate()
    assert not (directory / "result.json").exists()
    step = checkpoints.load(directory)["step"]
    assert 100 <= step < 600
    output = subprocess.run(
        [sys.executable, str(ROOT / "driftql.py"), "--no-progress", "--resume", str(directory)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert f"resumed at step {step:,}" in output
    assert_same_run(directory, uninterrupted)

    (directory / "result.json").unlink()
    (directory / "checkpoint.msgpack").unlink()  # as if killed before the first checkpoint
    launch(driftql, "--no-progress", "--resume", directory)
    assert_same_run(directory, uninterrupted)


def test_a_tracker_that_cannot_start_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, fails):
    wandb = types.ModuleType("wandb")
    wandb.__spec__, wandb.errors = ModuleSpec("wandb", None, origin="here"), types.SimpleNamespace(Error=KeyError)

    def init(**_):
        raise KeyError("No API key configured.")

    wandb.init = init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert "--track: 'No API key configured.'" in fails(driftql, *tiny_flags(driftql), "--track")


def test_steps_may_change_on_resume(tmp_path, capsys, fails):
    """As if the run had been told so at the start; by one whose rate does not depend on --steps."""
    directory, args = tmp_path / "killed", tiny_args(driftql, hidden_dims=(8,), runs_dir=str(tmp_path / "whole"))
    whole = whole_and_killed(driftql, dataclasses.replace(args, steps=300), 250, directory)
    before = metrics_of(directory)
    assert "--steps 100 is less than the 200 that the run has done" in fails(
        driftql, "--resume", directory, "--steps", 100
    )
    assert metrics_of(directory) == before
    for steps, same in ((200, driftql.main(args)), (300, whole)):
        capsys.readouterr()
        assert launch(driftql, "--no-progress", "--resume", directory, "--steps", steps) == directory
        assert f"-> {steps}; a decay over --steps changes too" in capsys.readouterr().out
        assert_same_run(directory, same)
        assert json.loads((directory / "config.json").read_text())["args"]["steps"] == steps
        assert result_of(directory)["steps"] == steps
        kept = json.loads(checkpoints.load(directory)["evaluations"])  # the last one too, though a save came before it
        assert kept == result_of(directory)["evaluations"]


def test_data_that_have_moved_are_remembered(data_dir, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(data_dir, moved)
    short = ("--steps", 20, "--eval-every", 20, "--save-every", 20)
    directory = launch(driftql, *maze_flags(data_dir, tmp_path), *short)
    launch(driftql, "--resume", directory, "--steps", 40, "--data-dir", moved)
    assert cli.args_of(driftql.Args, directory).data_dir == str(moved)


def test_the_commit_is_known_in_another_user_s_checkout(monkeypatch):
    """git refuses to say anything there, and takes each checkout for one with this variable."""
    if not (commit := git_commit()):
        pytest.skip("this is no checkout")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert git_commit() == commit


def test_a_file_that_has_moved_is_what_it_was(tmp_path):
    """Collected data without the record that stood beside them; the run knows them by their sha256."""
    collected = collect("pointmaze-medium-navigate", tmp_path, 2)
    changes = dict(dataset=str(collected), steps=100, eval_episodes=1, runs_dir=str(tmp_path))
    run = driftql.main(tiny_args(driftql, "pointmaze-medium-navigate", **changes))
    (moved := tmp_path / "moved").mkdir()
    shutil.move(collected, moved)
    launch(driftql, "--resume", run, "--steps", 200, "--dataset", moved / collected.name)
    for file in ("config.json", "result.json"):
        data = json.loads((run / file).read_text())["dataset"]
        assert (data["source"], data["collection"]["episodes"]) == ("collected", 2)


@pytest.mark.xdist_group("finished")
def test_paths_that_the_terminal_cannot_write_are_written_all_the_same(finished, tmp_path):
    directory = tmp_path / "dätä"
    shutil.copytree(finished, directory)
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, ROOT / "driftql.py", "--resume", directory, "--steps", "250"]
    done = subprocess.run(command, capture_output=True, text=True, env=ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == str(directory).replace("ä", "\\xe4")


@pytest.mark.xdist_group("finished")
def test_help_beside_resume_changes_nothing(finished, capsys):
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        launch(driftql, "--resume", finished, "--steps", 1000, "--help")
    assert stop.value.code == 0
    assert "--hidden-dims" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return launch(driftql, *tiny_flags(driftql, hidden_dims=(8,)), "--runs-dir", tmp_path_factory.mktemp("finished"))


@pytest.fixture
def stopped(finished, tmp_path) -> Path:
    """A copy of a finished run without its result: as if it had been killed."""
    directory = tmp_path / "stopped"
    shutil.copytree(finished, directory)
    (directory / "result.json").unlink()
    return directory


def edit_config(directory, change):
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.xdist_group("finished")
def test_resume_refuses_what_it_cannot_continue(finished, stopped, fails, monkeypatch):
    with monkeypatch.context() as no_data:  # it is said before they are looked for
        no_data.setattr(driftql, "load_dataset", None)
        assert "has ended" in fails(driftql, "--resume", finished)
        assert "has ended" in fails(driftql, "--resume", finished, "--steps", 100)
        with pytest.raises(UserError, match="has ended"):
            driftql.main(dataclasses.replace(cli.args_of(driftql.Args, finished), resume=str(finished)))
        with pytest.raises(UserError, match="takes --alpha from the run"):
            driftql.main(dataclasses.replace(cli.args_of(driftql.Args, finished), resume=str(stopped), alpha=77.0))
    content = (stopped / "checkpoint.msgpack").read_bytes()
    for damaged in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1]), b""):
        (stopped / "checkpoint.msgpack").write_bytes(damaged)
        assert "damaged" in fails(driftql, "--resume", stopped)
    (stopped / "checkpoint.msgpack").write_bytes(content)
    edit_config(stopped, lambda config: config["args"].update(hidden_dims=[16]))
    assert "does not fit" in fails(driftql, "--resume", stopped)
    edit_config(stopped, lambda config: config["dataset"].update(sha256="0"))
    assert "dataset" in fails(driftql, "--resume", stopped)
    assert "not a run directory" in fails(driftql, "--resume", stopped.parent)


@pytest.mark.xdist_group("finished")
def test_a_result_without_its_checkpoint_is_not_trained_away(finished, tmp_path, fails):
    directory = tmp_path / "kept"
    shutil.copytree(finished, directory)
    content = (directory / "checkpoint.msgpack").read_bytes()
    files = {name: (directory / name).read_bytes() for name in ("config.json", "metrics.csv", "result.json")}
    for damage in (content + b"x", None):
        (directory / "checkpoint.msgpack").unlink()
        if damage:
            (directory / "checkpoint.msgpack").write_bytes(damage)
        assert "checkpoint.msgpack" in fails(driftql, "--resume", directory, "--steps", 300)
        assert {name: (directory / name).read_bytes() for name in files} == files
    (directory / "checkpoint.msgpack").write_bytes(content)
    edit_config(directory, lambda config: config["args"].update(hidden_dims=[16]))
    files["config.json"] = (directory / "config.json").read_bytes()
    assert "does not fit" in fails(driftql, "--resume", directory, "--steps", 300)
    assert {name: (directory / name).read_bytes() for name in files} == files


def test_the_command_to_go_on_is_one_that_runs(tmp_path, monkeypatch):
    """From another folder than the script's, and with a space in a name."""
    monkeypatch.chdir(tmp_path)
    args = tiny_args(driftql, runs_dir="my runs")
    with pytest.raises(UserError) as error, Run(args, load_dataset("bandit"), METRICS) as run:
        run.restore({})
        run.log(*interval(1.0))
        run.save({})
        run.log(*interval(float("nan")))
    *_, script, resume, directory = shlex.split(str(error.value))
    assert (Path(script), resume) == (ROOT / "driftql.py", "--resume")
    assert (tmp_path / directory / "checkpoint.msgpack").exists()


@pytest.mark.xdist_group("finished")
def test_lost_rows_of_the_log_are_one_clear_line(stopped, fails):
    path = stopped / "metrics.csv"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "bytes that the checkpoint remembers" in fails(driftql, "--resume", stopped)
    assert path.read_bytes() == content[: len(content) // 2]
    path.unlink()
    assert "has 0 of the" in fails(driftql, "--resume", stopped)
    assert not path.exists()
    path.write_bytes(content + b"250,0,what was logged after the checkpoint\n")
    launch(driftql, "--no-progress", "--resume", stopped)
    assert path.read_bytes() == content


@pytest.mark.xdist_group("finished")
def test_one_process_at_a_time_in_a_run_directory(stopped, fails):
    args = cli.args_of(driftql.Args, stopped)
    with Run(dataclasses.replace(args, resume=str(stopped)), load_dataset("bandit"), METRICS):
        before = {path.name: path.stat().st_mtime_ns for path in stopped.iterdir()}
        assert "another process is working on this run" in fails(driftql, "--resume", stopped)
        assert before == {path.name: path.stat().st_mtime_ns for path in stopped.iterdir()}
    launch(driftql, "--no-progress", "--resume", stopped)  # and the lock is free again


@pytest.mark.xdist_group("finished")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_directory_is_one_clear_line(stopped, fails):
    for path in (*stopped.iterdir(), stopped):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert str(stopped) in fails(driftql, "--resume", stopped)
    finally:
        stopped.chmod(0o755)


# ----------------------------------------------------------------------------------------------------------- faults


def test_a_full_disk_says_what_is_kept_and_how_to_go_on(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    args = tiny_args(driftql, steps=20, log_every=10, eval_every=20, save_every=10, runs_dir=str(tmp_path))
    state = {"weights": np.ones(3)}
    with (
        pytest.raises(UserError, match=r"No space left.*checkpoint of step 10 is kept.*driftql.py --resume"),
        Run(args, load_dataset("bandit"), METRICS) as run,
    ):
        run.log(*interval(1.0))
        run.save(state)
        run.log(*interval(1.0))
        monkeypatch.setattr(os, "fsync", full)
        run.save(state)
    assert checkpoints.load(run.directory)["step"] == 10


def test_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint(monkeypatch, tmp_path, capsys):
    """A loss that explodes; the checkpoint from before stays."""
    real = driftql.make_agent

    def explosive(args, *dims):
        agent = real(args, *dims)

        def update(state, batch):
            state, metrics = agent.update(state, batch)
            broken = jnp.where(state.step > 120, jnp.nan, 1.0)
            return state, metrics | {"losses/critic": metrics["losses/critic"] * broken}

        return agent._replace(update=update)

    monkeypatch.setattr(driftql, "make_agent", explosive)
    with pytest.raises(SystemExit) as stop, cli.one_line_errors("driftql"):
        driftql.main(tiny_args(driftql, num_seeds=2, runs_dir=str(tmp_path)))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    (directory,) = tmp_path.iterdir()
    assert "losses/critic of seed 0 is not finite at step 150. The checkpoint of step 100 is kept" in error
    assert f"driftql.py --resume {directory}" in error
    assert checkpoints.load(directory)["step"] == 100
    assert not (directory / "result.json").exists()


def test_a_killed_evaluation_worker_is_one_line_that_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    """By the out-of-memory killer, say, after the first checkpoint."""
    from common.evaluation import Evaluator

    real = Evaluator.__call__

    def killing(self, state, step, *rest):
        if step == 200:
            self.workers.processes[0].kill()
            self.workers.processes[0].join()
        return real(self, state, step, *rest)

    monkeypatch.setattr(Evaluator, "__call__", killing)
    with pytest.raises(SystemExit) as stop, cli.one_line_errors("driftql"):
        driftql.main(tiny_args(driftql, runs_dir=str(tmp_path)))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "worker process died" in error
    (directory,) = tmp_path.iterdir()
    assert f"--resume {directory}" in error


@pytest.mark.pictures
def test_pictures_that_fail_do_not_fail_the_run(monkeypatch, tmp_path, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    directory = launch(driftql, *tiny_flags(driftql, hidden_dims=(8,)), "--runs-dir", tmp_path)
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == str(directory)
    assert f"no curve.png: cannot write {directory / 'curve.png'}: No space left on device." in output
    assert not list(directory.glob("*.png"))
    assert (directory / "result.json").exists()


def test_a_closed_output_does_not_end_a_run(tmp_path):
    """`python driftql.py ... | head -1`"""
    process = start("driftql.py", *tiny_flags(driftql), "--runs-dir", tmp_path)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 0, process.stderr.read()
    error = process.stderr.read()
    process.stderr.close()
    assert not error
    (directory,) = tmp_path.iterdir()
    assert (directory / "result.json").exists()
