"""A run from the command line to result.json: arguments, seeds, resume, signals, files, errors."""

import contextlib
import csv
import dataclasses
import functools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, start

import driftql
from common import UserError, runs
from common.datasets import load_dataset

TINY = ("--hidden-dims", "16", "16", "--num-candidates", "4", "--batch-size", "32")
BANDIT = ("--env", "bandit", *TINY, "--steps", "200", "--log-every", "50", "--eval-every", "100", "--save-every", "100")


def run(monkeypatch, tmp_path, *argv) -> Path:
    """driftql.py in this process; returns the run directory."""
    before = set(tmp_path.glob("runs/*"))
    command = [
        "driftql.py",
        "--no-progress",
        "--eval-episodes",
        "64",
        "--runs-dir",
        str(tmp_path / "runs"),
        *map(str, argv),
    ]
    monkeypatch.setattr(sys, "argv", command)
    runs.launch(driftql.main, driftql.Args, driftql.PRESETS)
    (new,) = set(tmp_path.glob("runs/*")) - before
    return new


def metrics_of(directory: Path) -> list[dict]:
    """Rows of metrics.csv without the timing column."""
    with open(directory / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("charts/updates_per_second")
    return rows


def state_of(directory: Path) -> dict:
    return flax.serialization.msgpack_restore(runs.load_checkpoint(directory)["state"])


# ------------------------------------------------------------------------------------------------------------ arguments


def parsed(*argv):
    return runs.parse(driftql.Args, driftql.PRESETS, list(argv))


def test_preset_is_chosen_by_env_and_flags_win(capsys):
    args = parsed("--env", "cube-double-play", "--alpha", "7")
    assert (args.alpha, args.num_candidates, args.noise_dim, args.kernel) == (7, 4, 8, "gaussian")
    assert "alpha=7" in capsys.readouterr().out
    assert parsed("--env", "cube-double-play-singletask-task3-v0").noise_dim == 8
    args = parsed("--env", "antmaze-medium-navigate")
    assert args == dataclasses.replace(driftql.Args(), env="antmaze-medium-navigate", log_every=args.log_every)
    assert "none for antmaze-medium-navigate" in capsys.readouterr().out


def test_log_interval_divides_what_is_asked_for():
    for steps in ("1000", "750", "1000000"):
        args = parsed("--env", "cube-double-play", "--steps", steps)
        assert all(x % args.log_every == 0 for x in (args.steps, args.eval_every, args.save_every))
    assert parsed("--env", "cube-double-play", "--log-every", "2000").log_every == 2000


def test_presets_are_the_published_ones():
    """Spot checks against table 6 and the README of the authors' code."""
    args = parsed("--env", "puzzle-4x4-play")
    assert (args.alpha, args.temperature, args.kernel, args.discount, args.q_agg) == (
        300,
        0.8,
        "gaussian",
        0.99,
        "mean",
    )
    args = parsed("--env", "humanoidmaze-medium-navigate")
    assert (args.alpha, args.temperature, args.kernel, args.discount, args.q_agg) == (65, 0.5, "laplace", 0.998, "mean")
    assert (args.batch_size, args.hidden_dims, args.num_candidates, args.learning_rate) == (256, (512,) * 4, 32, 3e-4)


def test_help_shows_the_presets_values(capsys):
    with pytest.raises(SystemExit) as stop:
        parsed("--env", "scene-play", "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: 250)" in text or "(default: 250.0)" in text
    assert all(f"--{field.name.replace('_', '-')}" in text for field in dataclasses.fields(driftql.Args))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--env", "antmaze-larg-navigate"], "did you mean antmaze-large-navigate"),
        (["--alhpa", "3"], "did you mean --alpha?"),
        (["stray"], "unknown argument stray"),
        (["--alpha", "much"], "could not convert string to float: 'much'"),
        (["--kernel", "cubic"], "invalid choice 'cubic' for argument '--kernel'"),
        (["--env", "pointmaze-medium-navigate", "--task", "6"], "tasks 1 to 5"),
        (["--env", "pointmaze-medium-navigate", "--task", "0"], "--task 0 must be positive"),
        (["--env", "bandit", "--task", "1"], "no tasks"),
        (
            ["--env", "bandit", "--batch-size", "10001"],
            "--batch-size 10001 is larger than the dataset (10000 transitions)",
        ),
        (["--env", "bandit", "--batch-size", "0"], "--batch-size 0 must be positive"),
        (["--env", "bandit", "--hidden-dims", "64", "-1"], "--hidden-dims -1 must be positive"),
        (["--env", "bandit", "--steps", "-5"], "--steps -5 must be positive"),
        (["--env", "bandit", "--num-seeds", "0"], "--num-seeds 0 must be positive"),
        (["--env", "bandit", "--seed", "-1"], "--seed -1 must be 0 or more"),
        (["--env", "bandit", "--seed", "4294967296"], "32-bit"),
        (["--env", "bandit", "--alpha", "nan"], "--alpha nan must be a finite number"),
        (["--env", "bandit", "--discount", "1.5"], "--discount 1.5 must lie between 0 and 1"),
        (["--env", "bandit", "--temperature", "0"], "--temperature 0.0 must be positive"),
        (["--env", "bandit", "--steps", "1000", "--log-every", "300"], "not a multiple of --log-every 300"),
        (["--resume", "nowhere"], "nowhere: there is no config.json"),
    ],
)
def test_bad_arguments_are_one_clear_line(argv, expected, fails):
    assert expected in fails(driftql, *argv)


def test_places_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "runs", Path("/proc/runs")):
        monkeypatch.setattr(sys, "argv", ["driftql.py", *BANDIT, "--runs-dir", str(place)])
        with pytest.raises(SystemExit) as stop:
            runs.launch(driftql.main, driftql.Args, driftql.PRESETS)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.count("\n") == 1
        assert str(place) in error


# ---------------------------------------------------------------------------------------------------------------- a run


def test_what_a_run_leaves_behind(monkeypatch, tmp_path, capsys):
    directory = run(monkeypatch, tmp_path, *BANDIT, "--seed", "3", "--num-seeds", "2")
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == str(directory)
    assert "10,000 transitions" in output
    assert directory.name.startswith("bandit__driftql__3__")

    config = json.loads((directory / "config.json").read_text())
    assert config["algo"] == "driftql"
    assert config["args"]["hidden_dims"] == [16, 16]
    assert {"jax", "ogbench", "python"} <= config["versions"].keys()

    result = json.loads((directory / "result.json").read_text())
    assert (result["algo"], result["env"], result["task"], result["seeds"]) == ("driftql", "bandit", None, [3, 4])
    assert result["dataset"]["source"] == "builtin"
    assert [evaluation["step"] for evaluation in result["evaluations"]] == [0, 100, 200]
    assert all(len(evaluation["success"]) == 2 for evaluation in result["evaluations"])
    assert result["score_per_seed"] == result["evaluations"][-1]["success"]  # the last, never the best
    assert result["updates_per_second"] > 0

    rows = metrics_of(directory)
    assert [(row["step"], row["seed"]) for row in rows if row["losses/critic"]] == [
        (str(step), str(seed)) for step in (50, 100, 150, 200) for seed in (3, 4)
    ]
    assert rows[-1]["eval/support"]
    for seed in (3, 4):
        assert list((directory / f"seed{seed}").glob("events.out.tfevents.*"))
    for picture in ("curve.png", "rollouts.png"):
        assert (directory / picture).read_bytes()[:4] == b"\x89PNG"
    assert not list(directory.glob("*.tmp"))


def test_score_is_the_mean_of_the_last_three_evaluations_on_ogbench(data_dir, tmp_path):
    dataset = load_dataset("pointmaze-medium-navigate", data_dir=str(data_dir))
    args = driftql.Args(env="pointmaze-medium-navigate", runs_dir=str(tmp_path), steps=500_000, num_seeds=2)
    record = runs.Run(args, dataset)
    record.began = time.monotonic()
    values = [0.0, 0.9, 0.1, 0.2, 0.6, 0.4]
    record.evaluations = [{"step": 100_000 * i, "success": [x, 2 * x]} for i, x in enumerate(values)]
    result = record._result()
    assert result["score_per_seed"] == pytest.approx([0.4, 0.8])
    assert result["score"] == pytest.approx(0.6)
    assert result["last_per_seed"] == [0.4, 0.8]
    assert result["best_per_seed"] == [0.9, 1.8]


def test_runs_that_start_in_the_same_second_do_not_share_a_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    args = driftql.Args(env="bandit", runs_dir=str(tmp_path))
    made = {runs.Run(args, load_dataset("bandit")).directory for _ in range(3)}
    assert len(made) == 3


def test_each_seed_gives_what_it_gives_alone(monkeypatch, tmp_path):
    """Seeds 5, 6, 7 together and one by one. Vmapped matrix products add in another order, which training amplifies:
    1e-3 after 200 updates is that; seeds differ by far more."""
    together = metrics_of(run(monkeypatch, tmp_path, *BANDIT, "--seed", 5, "--num-seeds", 3))
    alone = {seed: metrics_of(run(monkeypatch, tmp_path, *BANDIT, "--seed", seed)) for seed in (5, 6, 7)}
    for seed, rows in alone.items():
        joint = [row for row in together if row["seed"] == str(seed)]
        assert [row["step"] for row in joint] == [row["step"] for row in rows]
        for a, b in zip(joint, rows):
            for name in a:
                if a[name] or b[name]:
                    tolerance = 0.05 if name in ("eval/success", "eval/support") else 1e-3
                    assert float(a[name]) == pytest.approx(float(b[name]), rel=tolerance, abs=tolerance), name
    losses = [float(alone[seed][-2]["losses/critic"]) for seed in alone]
    assert len({round(loss, 2) for loss in losses}) == 3


def test_results_do_not_depend_on_the_log_interval(monkeypatch, tmp_path):
    first = run(monkeypatch, tmp_path, *BANDIT)
    second = run(monkeypatch, tmp_path, *BANDIT, "--log-every", 100)
    jax.tree.map(np.testing.assert_array_equal, state_of(first), state_of(second))


DEVICES = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
sys.path.insert(0, sys.argv[1])
import jax
import driftql
from common import runs
from common.buffers import make_buffer
from common.datasets import load_dataset
args = driftql.Args(env="bandit", num_seeds=4)
state = jax.vmap(driftql.make_agent(args, 1, 2).init)(runs.seed_keys(args))
state, buffer = runs.place(state, make_buffer(load_dataset("bandit")))
print([shard.data.shape[0] for shard in state.step.addressable_shards], buffer.rewards.is_fully_replicated)
sys.argv = ["driftql.py", *sys.argv[2:]]
runs.launch(driftql.main, driftql.Args, driftql.PRESETS)
"""


def test_seeds_spread_over_devices(monkeypatch, tmp_path):
    """Two devices, four seeds: the same numbers as on one device."""
    import subprocess

    argv = (*BANDIT, "--num-seeds", "4", "--eval-episodes", "64", "--no-progress")
    command = [sys.executable, "-c", DEVICES, str(ROOT), *argv, "--runs-dir", str(tmp_path / "two")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert output[0] == "[2, 2] True"
    two, one = metrics_of(Path(output[-1])), metrics_of(run(monkeypatch, tmp_path, *BANDIT, "--num-seeds", 4))
    for a, b in zip(two, one):
        if a["losses/critic"]:
            assert float(a["losses/critic"]) == pytest.approx(float(b["losses/critic"]), rel=1e-3)


# ------------------------------------------------------------------------------------------- stopping, resuming, errors


def maze_command(data_dir: Path, runs_dir: Path) -> list:
    return [
        "--env", "pointmaze-medium-navigate", "--data-dir", data_dir, "--runs-dir", runs_dir, *TINY,
        "--steps", 4000, "--log-every", 100, "--eval-every", 1000, "--save-every", 500, "--eval-episodes", 4,
    ]  # fmt: skip


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def uninterrupted(data_dir, tmp_path_factory) -> Path:
    process = start("driftql.py", *maze_command(data_dir, tmp_path_factory.mktemp("whole")))
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return Path(output.splitlines()[-1])


def assert_same_run(directory: Path, other: Path):
    jax.tree.map(np.testing.assert_array_equal, state_of(directory), state_of(other))
    assert metrics_of(directory) == metrics_of(other)
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (directory, other))
    assert first["evaluations"] == second["evaluations"]
    assert first["score_per_seed"] == second["score_per_seed"]


def test_kill_and_resume_is_bit_identical(uninterrupted, data_dir, tmp_path):
    """kill -9 between two checkpoints, with rows logged since the first one; then again before the first one."""
    process = start("driftql.py", *maze_command(data_dir, tmp_path))
    wait_for(lambda: list(tmp_path.glob("*/checkpoint.msgpack")), process)
    (directory,) = tmp_path.iterdir()
    wait_for(
        lambda: any(line.startswith("700,") for line in (directory / "metrics.csv").read_text().splitlines()), process
    )
    process.kill()
    process.communicate()
    assert not (directory / "result.json").exists()
    step = runs.load_checkpoint(directory)["step"]
    assert 500 <= step < 4000

    resumed = start("driftql.py", "--resume", directory)
    output, error = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, error
    assert f"resumed at step {step:,}" in output
    assert_same_run(directory, uninterrupted)

    (directory / "result.json").unlink()
    (directory / "checkpoint.msgpack").unlink()  # as if killed before the first checkpoint
    resumed = start("driftql.py", "--resume", directory)
    assert resumed.wait(timeout=300) == 0
    assert_same_run(directory, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_say_how_to_go_on(uninterrupted, data_dir, tmp_path, number):
    process = start("driftql.py", *maze_command(data_dir, tmp_path), start_new_session=True)
    wait_for(lambda: list(tmp_path.glob("*/metrics.csv")), process)
    (directory,) = tmp_path.iterdir()
    wait_for(lambda: "\n300," in (directory / "metrics.csv").read_text(), process)
    os.killpg(process.pid, number)  # the workers get it too, as with Ctrl-C or a batch system
    output, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in error
    assert f"--resume {directory}" in output
    assert output.splitlines()[-1] == str(directory)
    resumed = start("driftql.py", "--resume", directory)
    assert resumed.wait(timeout=300) == 0
    assert_same_run(directory, uninterrupted)


def test_resume_refuses_what_it_cannot_continue(monkeypatch, tmp_path, uninterrupted, capsys):
    directory = tmp_path / "run"

    def refused(*argv) -> str:
        monkeypatch.setattr(sys, "argv", ["driftql.py", "--resume", str(directory), *argv])
        with pytest.raises(SystemExit) as stop:
            runs.launch(driftql.main, driftql.Args, driftql.PRESETS)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    def restart():
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(uninterrupted, directory)

    def edit_config(change):
        config = json.loads((directory / "config.json").read_text())
        change(config)
        (directory / "config.json").write_text(json.dumps(config))

    restart()
    assert "has ended" in refused()
    (directory / "result.json").unlink()
    assert "--alpha from the run" in refused("--alpha", "3")

    content = (directory / "checkpoint.msgpack").read_bytes()
    for damaged in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1]), b""):
        (directory / "checkpoint.msgpack").write_bytes(damaged)
        assert "damaged" in refused()

    restart()
    (directory / "result.json").unlink()
    edit_config(lambda config: config["args"].update(hidden_dims=[8]))
    assert "does not fit" in refused()
    edit_config(lambda config: config["dataset"].update(sha256="0"))
    assert "dataset" in refused()
    edit_config(lambda config: config["args"].pop("alpha"))
    assert "another version" in refused()
    edit_config(lambda config: config.update(algo="fql"))
    assert "made by fql.py" in refused()
    (directory / "config.json").write_text("{")
    assert "config.json is damaged" in refused()
    (directory / "config.json").unlink()
    assert "not a run directory" in refused()


def small_run(tmp_path, **changes):
    args = driftql.Args(
        env="bandit", hidden_dims=(8,), batch_size=16, steps=20, log_every=10, eval_every=20, save_every=10,
        num_candidates=2, runs_dir=str(tmp_path), progress=False, **changes,
    )  # fmt: skip
    return args, load_dataset("bandit")


@contextlib.contextmanager
def a_run_with_a_checkpoint(tmp_path):
    """A run at step 20, its checkpoint at step 10, and the state to save next."""
    args, dataset = small_run(tmp_path)
    state = jax.vmap(driftql.make_agent(args, 1, 2).init)(runs.seed_keys(args))
    with runs.Run(args, dataset) as record:
        record._open_metrics(["losses/critic"])
        record.step = 10
        record.save(state)
        record.step = 20
        yield record, state
    assert runs.load_checkpoint(record.directory)["step"] == 10


def test_a_kill_while_the_checkpoint_is_written_loses_nothing(tmp_path, monkeypatch):
    """The process dies after half of the new checkpoint; the old one is whole."""

    class Killed(BaseException):
        pass

    def dies(descriptor):
        os.ftruncate(descriptor, 100)
        raise Killed

    with a_run_with_a_checkpoint(tmp_path) as (record, state), monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "fsync", dies)
        record.save(state)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with a_run_with_a_checkpoint(tmp_path) as (record, state):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"No space left.*step 10 is kept"):
            patch.setattr(os, "fsync", full)
            record.save(state)
        assert not list(record.directory.glob("*.tmp"))


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    with a_run_with_a_checkpoint(tmp_path) as (record, state):
        broken = state._replace(params=jax.tree.map(lambda x: x.at[0].set(jnp.inf), state.params))
        with pytest.raises(UserError, match="not finite"):
            record.save(broken)


def test_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint(monkeypatch, tmp_path, capsys):
    """A learning rate that explodes; the checkpoint from before stays."""
    real = driftql.make_agent

    def explosive(args, *dims):
        agent = real(args, *dims)

        def update(state, batch):
            state, metrics = agent.update(state, batch)
            broken = jnp.where(state.step > 120, jnp.nan, 1.0)
            return state, metrics | {"losses/critic": metrics["losses/critic"] * broken}

        return agent._replace(update=update)

    monkeypatch.setattr(driftql, "make_agent", explosive)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path, *BANDIT, "--num-seeds", 2)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "losses/critic of seed 0 is not finite at step 150. The checkpoint of step 100 is kept" in error
    (directory,) = (tmp_path / "runs").iterdir()
    assert runs.load_checkpoint(directory)["step"] == 100
    assert not (directory / "result.json").exists()


def test_one_compilation_serves_all_chunks_and_evaluations(monkeypatch, tmp_path):
    """A retrace in the loop would cost seconds per interval."""
    traces = {"update": 0, "act": 0}
    real = driftql.make_agent

    def counting(args, *dims):
        agent = real(args, *dims)

        def count(name, function, *inputs):
            traces[name] += 1
            return function(*inputs)

        return agent._replace(
            update=functools.partial(count, "update", agent.update), act=functools.partial(count, "act", agent.act)
        )

    monkeypatch.setattr(driftql, "make_agent", counting)
    run(monkeypatch, tmp_path, *BANDIT)
    assert traces == {"update": 1, "act": 1}


def test_an_unfinished_run_can_be_loaded_and_played(uninterrupted, data_dir):
    """The ten lines of the README: parameters from a checkpoint, actions for an observation."""
    config = json.loads((uninterrupted / "config.json").read_text())["args"]
    args = driftql.Args(**{**config, "hidden_dims": tuple(config["hidden_dims"])})
    agent = driftql.make_agent(args, observation_dim=2, action_dim=2)
    empty = jax.vmap(agent.init)(runs.seed_keys(args))
    state = flax.serialization.from_bytes(empty, runs.load_checkpoint(uninterrupted)["state"])
    first_seed = jax.tree.map(lambda x: x[0], state)
    actions = agent.act(first_seed, jnp.zeros((5, 2)), jax.random.PRNGKey(0))
    assert actions.shape == (5, 2)
