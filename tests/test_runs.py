"""A run: its directory, logs and score; what it refuses and leaves as it is; faults of its disk."""

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import flax
import jax
import numpy as np
import pytest
from helpers import CHEAP, ROOT, TINY, assert_same_run, command, files_of, launch_in_process, metrics_of, result_of

# isort: split
from helpers import start, state_of, tiny_args, tiny_flags
from tensorboardX.proto import event_pb2

import driftql
from common import UserError, args, states
from common.data import load_dataset
from common.runs import Run, scores


@pytest.fixture
def refused(fails):
    """refused(directory, message, *words): going on is refused with this message, and no file changes."""

    def check(directory, message, *words):
        before = files_of(directory)
        assert message in fails(driftql, "--run-dir", directory, *(words or ("--steps", 60)))
        assert files_of(directory) == before

    return check


@pytest.mark.pictures
def test_what_a_run_leaves_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = launch_in_process(driftql, *tiny_flags("driftql", seed=3, num_seeds=2))
    assert capsys.readouterr().out.splitlines()[-1] == str(directory)
    assert (directory.parent, directory.name[:20]) == (Path("runs"), "bandit__driftql__3__")
    config, result, rows = args.read_config(directory), result_of(directory), metrics_of(directory)
    assert (config["algo"], config["args"]["hidden_dims"]) == ("driftql", [8])
    assert {"jax", "ogbench", "python", "mujoco"} <= config["versions"].keys()
    assert (result["algo"], result["env"], result["task"], result["seeds"]) == ("driftql", "bandit", None, [3, 4])
    assert [evaluation["step"] for evaluation in result["evaluations"]] == [0, 20, 40]
    assert result["score_per_seed"] == result["evaluations"][-1]["success"]  # the last, never the best
    assert min(result["updates_per_second"], result["wall_seconds"]) > 0
    for name, steps in (("losses/q", (10, 20, 30, 40)), ("eval/support", (0, 20, 40))):
        found = [(row["step"], row["seed"]) for row in rows if row.get(name)]
        assert found == [(str(step), seed) for step in steps for seed in "34"]
    for picture in ("curve.png", "rollouts.png"):
        assert (directory / picture).read_bytes()[:4] == b"\x89PNG"
    assert not list(directory.glob(".*"))


def by_hand(directory: Path) -> Run:
    """A run of two seeds on the bandit's data, without a script's `main`."""
    sizes = {"steps": 20, "log_every": 10, "eval_every": 20, "save_every": 10, "num_seeds": 2, "progress": True}
    return Run(tiny_args(driftql, **sizes, run_dir=str(directory)), load_dataset("bandit"))


def losses(*values: float) -> dict:
    return {"losses/critic": np.array(values, float)}


def events_of(folder: Path) -> list:
    """All events of TensorBoard's files. Each has its length, a checksum, itself and a checksum."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_a_run_by_hand(tmp_path, monkeypatch):
    """What is given is what is logged. An evaluation that was stopped is due again. On resume TensorBoard forgets what
    was logged since the checkpoint. The bar's time does not begin before the first update."""
    state, success = {"weights": np.arange(4.0).reshape(2, 2)}, np.array([[0.0, 1.0], [1.0, 1.0]])
    with by_hand(tmp_path / "run") as run:
        assert run.restore(state) is state and run.evaluation_due
        run.log_evaluation({"success": 0 * success, "return": 10 * success, "paths": []})
        assert not run.evaluation_due
        run.bar.start_t = run.bar.last_print_t = 0.0  # long ago
        run.log(losses(1.0, 2.0))
        assert run.bar.format_dict["elapsed"] < 100
        assert (run.step, run.save_due, run.evaluation_due, run.finished) == (10, True, False, False)
        run.save(state)
        run.log(losses(0.0, 0.0))  # and here the process is killed
    with by_hand(tmp_path / "run") as run:
        monkeypatch.setattr("common.runs.circumstances", None)  # the commit is that of the start
        run.restore(state)
        run.log(losses(3.0, 4.0))
        run.log_evaluation(None)
        assert run.finished and run.evaluation_due
        modes = {"mode_0": success, "mode_1": 1 - success}
        run.log_evaluation({"success": success, "return": 10 * success, "paths": []} | modes)
        assert run.evaluations[-1]["rarest_mode"] == [0.5, 0.0]
        directory = run.finish(state)
    rows = metrics_of(directory)
    assert [(row["step"], row["seed"], row.get("losses/critic", row.get("eval/return"))) for row in rows] == [
        ("10", "0", "1.0"), ("10", "1", "2.0"), ("20", "0", "3.0"), ("20", "1", "4.0"),
        ("0", "0", "5.0"), ("0", "1", "10.0"), ("20", "0", "5.0"), ("20", "1", "10.0"),
    ]  # fmt: skip
    result = result_of(directory)
    assert (result["score"], result["score_per_seed"], result["steps"]) == (0.75, [0.5, 1.0], 20)
    events = events_of(directory / "seed1")
    values = [{value.tag: value.simple_value for value in event.summary.value} for event in events]
    assert [(event.step, x.get("losses/critic"), x.get("eval/return")) for event, x in zip(events, values)] == [
        (0, None, None), (1, None, None), (0, None, 10.0), (10, 2.0, None), (20, 0.0, None),
        (0, None, None), (11, None, None), (20, 4.0, None), (20, None, 10.0),
    ]  # fmt: skip
    assert events[0].file_version == "brain.Event:2"
    assert events[6].session_log.status == event_pb2.SessionLog.START


def test_the_score_on_ogbench_is_the_mean_of_the_last_three_evaluations():
    each = enumerate([0.0, 0.9, 0.1, 0.2, 0.6, 0.4])
    done = [{"step": 100 * i, "return": [0, 0], "success": [x, 2 * x]} for i, x in each]

    def score(three, evaluations):
        return scores(100, three, evaluations, slice(None))

    whole = score(True, done)
    assert (whole["score_per_seed"], whole["score"]) == (pytest.approx([0.4, 0.8]), pytest.approx(0.6))
    assert (whole["last_per_seed"], whole["best_per_seed"]) == ([0.4, 0.8], [0.9, 1.8])
    # The end of a shorter run that was extended does not count, because a run straight to the end lacks it.
    extended = score(True, [*done[:-1], {"step": 450, "return": [0, 0], "success": [1, 1]}, done[-1]])
    assert extended["score_per_seed"] == whole["score_per_seed"]
    assert score(True, done[:2])["score_per_seed"] == [0.9, 1.8]  # nothing was learnt before the first update
    assert score(False, done)["score_per_seed"] == [0.4, 0.8]
    found = score(True, [{"step": 100, "return": [5]}, {"step": 200, "return": [6], "success": [1]}])
    assert [x["success"] for x in found["evaluations"]] == [[0], [1]]  # none had been reported before


def test_python_does_what_the_command_line_does_and_the_log_interval_changes_nothing(finished, tmp_path):
    changes = TINY | CHEAP["driftql"] | {"run_dir": str(tmp_path / "run"), "progress": False, "log_every": 20}
    run = driftql.main(driftql.args_for("bandit", **changes))
    jax.tree.map(np.testing.assert_array_equal, state_of(run), state_of(finished))
    assert result_of(run)["evaluations"] == result_of(finished)["evaluations"]


def test_a_finished_run_is_left_alone(ended, capsys, refused):
    """Also by the whole command once more, by --help, and where other flags are asked for."""
    before = files_of(ended)
    for words in ([], tiny_flags("driftql")):
        command(driftql, "--run-dir", ended, *words)
        output = capsys.readouterr().out
        assert "this run has ended" in output and output.splitlines()[-1] == str(ended)
    for words in (["--alpha", 77], ["--seed", 1], ["--hidden-dims", 8, 8], ["--eval-every", 50]):
        refused(ended, f"{words[0]}: the run in {ended} has", "--steps", 400, *words)
    with pytest.raises(SystemExit) as stop:
        command(driftql, "--resume", ended, "--steps", 1000, "--help")
    assert (stop.value.code, files_of(ended)) == (0, before)
    evaluations = result_of(ended)["evaluations"]
    (ended / "result.json").unlink()
    refused(ended, "--steps 20 is less than the 40 that the run has done", "--steps", 20)
    command(driftql, "--run-dir", ended)
    assert result_of(ended)["evaluations"] == evaluations


def test_larger_steps_extend_a_run_and_one_process_at_a_time_works_on_it(ended, tmp_path, refused, capsys):
    """As if it had been told so at the start."""
    code = "import contextlib, pathlib, sys; from common.system import lock\n"
    code += "with contextlib.ExitStack() as files: print(lock(pathlib.Path(sys.argv[1]), files), flush=True), input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    holder = subprocess.Popen([sys.executable, "-c", code, str(ended)], cwd=ROOT, **pipes)
    assert holder.stdout.readline() == "True\n"
    refused(ended, "another process is working on this run")
    holder.kill()  # the lock ends with the process, however that ends
    holder.communicate()
    command(driftql, "--run-dir", ended, "--steps", 60)
    assert "40 steps become 60; a decay over them changes too" in capsys.readouterr().out
    straight = launch_in_process(driftql, *tiny_flags("driftql", steps=60), "--run-dir", tmp_path / "straight")
    assert_same_run(ended, straight)
    assert args.read_args(driftql.Args, ended).steps == result_of(ended)["steps"] == 60


def test_a_directory_that_is_no_run_is_left_as_it_is(tmp_path, fails, refused):
    assert "there is no run" in fails(driftql, "--resume", tmp_path / "nothing")
    assert not list(tmp_path.iterdir())
    for name in ("thesis.txt", ".new-thesis.txt"):
        (tmp_path / name).write_text("mine")
    refused(tmp_path, "holds thesis.txt and no run", *tiny_flags("driftql"))
    assert "thesis.txt: File exists." in fails(driftql, *tiny_flags("driftql"), "--run-dir", tmp_path / "thesis.txt")


def test_other_data_are_refused(tmp_path, data_dir, fails):
    flags = tiny_flags("driftql", "pointmaze-medium-navigate", data_dir=data_dir, steps=10, eval_episodes=1)
    run, data = launch_in_process(driftql, *flags, "--run-dir", tmp_path / "run"), tmp_path / "other"
    data.mkdir()
    (file,) = data_dir.glob("*-v0.npz")
    np.savez(data / file.name, **dict(np.load(file)) | {"qvel": np.zeros(606)})
    config = args.read_config(run)
    args.write_config(run, args.read_args(driftql.Args, run), config, {"data_dir": str(data)})
    assert "the dataset is not the one that the run began with" in fails(driftql, "--run-dir", run, "--steps", 20)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("name", ["checkpoint.msgpack", "config.json", "train.csv", "eval.csv"])
def test_a_damaged_file_is_one_message_and_nothing_changes(ended, refused, name):
    content = (ended / name).read_bytes()
    half, end = len(content) // 2, len(content) - 1
    noted = b"# looks good\n" + content
    for damaged in (content[:half], b"", flipped(content, 0), flipped(content, half), flipped(content, end), noted):
        (ended / name).write_bytes(damaged)
        refused(ended, str(ended / name))
    (ended / "result.json").unlink()
    (ended / name).unlink()
    refused(ended, str(ended), *tiny_flags("driftql", steps=60))


def test_an_edited_config_is_refused(ended, refused):
    """Not those of the oldest runs, which have no digest."""
    kept = list((ROOT / "results").glob("*/config.json"))
    assert kept and all(args.read_config(path.parent)["dataset"]["observation_dim"] > 0 for path in kept)
    config = json.loads((ended / "config.json").read_text())
    config["args"]["alpha"] = 5.0
    for message in ("was edited", "the checkpoint belongs to other arguments"):
        (ended / "config.json").write_text(json.dumps(config))
        refused(ended, message)
        config.pop("sha256", None)  # the checkpoint knows the arguments too


def test_another_checkpoint_in_its_place_is_refused(ended, refused):
    path = ended / states.FILE
    good = flax.serialization.msgpack_restore(path.read_bytes()[32:])
    other, older = (good | {"about": x} for x in (good["about"] | {"identity": "of another run"}, {"step": 40}))
    for checkpoint, message in ((other, "belongs to other arguments"), (older, "was written by another version")):
        payload = flax.serialization.msgpack_serialize(checkpoint)
        path.write_bytes(hashlib.sha256(payload).digest() + payload)
        refused(ended, message)


@pytest.mark.parametrize("fault", ["fsync", "replace", "row"])
def test_a_full_disk_is_one_message_and_keeps_the_checkpoint(tmp_path, monkeypatch, fault):
    def full(*_):
        raise OSError(28, "No space left on device")

    message = r"No space left.*What was done is kept: --run-dir .*run goes on"
    with pytest.raises(UserError, match=message), by_hand(tmp_path / "run") as run:
        run.restore({"weights": np.ones(2)})
        run.log(losses(1.0, 1.0))
        run.save({"weights": np.ones(2)})
        if fault == "row":
            (run.directory / "train.csv").unlink()
            (run.directory / "train.csv").symlink_to("/dev/full")
        run.log(losses(1.0, 1.0))
        monkeypatch.setattr(os, fault, full)
        run.save({"weights": np.ones(2)})
    assert states.load(run.directory)["about"]["step"] == 10
    assert not list(run.directory.glob(".new-*"))


def test_a_number_that_is_not_finite_names_its_member(tmp_path):
    """The checkpoint from before stays."""
    for values, weights, what in (((1, np.nan), (1, 1), "losses/critic of"), ((1, 1), (1, -np.inf), "parameters of")):
        message = rf"{what} seed 1 (is|are) not finite at step 10\. What was done is kept: --run-dir"
        with pytest.raises(UserError, match=message), by_hand(tmp_path / what) as run:
            run.restore({"weights": np.ones((2, 3))})
            run.log(losses(*values))
            run.save({"weights": np.array([[1, 1, x] for x in weights])})
        assert states.load(run.directory)["about"]["step"] == 0


def test_a_platform_that_is_not_there_is_one_message(tmp_path):
    """Before data are loaded, or collected for minutes. A real process: exit code 2, one line, no directory."""
    nonsense = os.environ | {"JAX_PLATFORMS": "nonsense"}
    process = start("driftql.py", "--env", "bandit", "--run-dir", tmp_path / "run", env=nonsense)
    output, error = process.communicate()
    assert (process.returncode, error.count("\n"), "transitions" in output) == (2, 1, False)
    assert error.startswith("driftql: error: JAX finds no device: ")
    assert not list(tmp_path.iterdir())
