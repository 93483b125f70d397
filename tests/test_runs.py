"""A run: its directory, logs and score; what it refuses and leaves as it is; faults of its disk."""

import contextlib
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import flax
import numpy as np
import pytest
from helpers import (
    CHEAP,
    ROOT,
    TINY,
    assert_same_run,
    command,
    files_of,
    launch_in_process,
    metrics_of,
    result_of,
    start,
    tiny_args,
    tiny_flags,
)
from tensorboardX.proto import event_pb2

import driftql
from common import UserError, args, checkpoints, system
from common.data import load_dataset
from common.runs import Run, scores

SMALL = {"hidden_dims": (8,), "eval_workers": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of 200 updates. Do not change it."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    return launch_in_process(driftql, *tiny_flags("driftql", **SMALL), "--run-dir", directory)


@pytest.fixture
def ended(finished, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "ended")


@pytest.fixture
def refused(fails):
    """refused(directory, message, *words): going on is refused with this message, and no file changes."""

    def check(directory, message, *words):
        before = files_of(directory)
        assert message in fails(driftql, "--run-dir", directory, *(words or ("--steps", 300)))
        assert files_of(directory) == before

    return check


# ---------------------------------------------------------------------------------------------------------------- a run


@pytest.mark.pictures
def test_what_a_run_leaves_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = launch_in_process(driftql, *tiny_flags("driftql", seed=3, num_seeds=2))
    assert capsys.readouterr().out.splitlines()[-1] == str(directory)
    assert (directory.parent, directory.name[:20]) == (Path("runs"), "bandit__driftql__3__")
    config, result, rows = args.read_config(directory), result_of(directory), metrics_of(directory)
    assert (config["algo"], config["args"]["hidden_dims"]) == ("driftql", [16, 16])
    assert {"jax", "ogbench", "python", "mujoco"} <= config["versions"].keys()
    assert (result["algo"], result["env"], result["task"], result["seeds"]) == ("driftql", "bandit", None, [3, 4])
    assert [evaluation["step"] for evaluation in result["evaluations"]] == [0, 100, 200]
    assert result["score_per_seed"] == result["evaluations"][-1]["success"]  # the last, never the best
    assert min(result["updates_per_second"], result["wall_seconds"]) > 0
    for name, steps in (("losses/q", (50, 100, 150, 200)), ("eval/support", (0, 100, 200))):
        found = [(row["step"], row["seed"]) for row in rows if row.get(name)]
        assert found == [(str(step), seed) for step in steps for seed in "34"]
    for picture in ("curve.png", "rollouts.png"):
        assert (directory / picture).read_bytes()[:4] == b"\x89PNG"
    assert not list(directory.glob(".*"))


def by_hand(directory: Path) -> Run:
    """A run of two seeds on the bandit's data, without a script's `main`."""
    sizes = {"steps": 20, "log_every": 10, "eval_every": 20, "save_every": 10, "num_seeds": 2}
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


def test_a_run_by_hand(tmp_path):
    """What is given is what is logged. An evaluation that was stopped is due again. On resume TensorBoard forgets what
    was logged since the checkpoint."""
    state, success = {"weights": np.arange(4.0).reshape(2, 2)}, np.array([[0.0, 1.0], [1.0, 1.0]])
    with by_hand(tmp_path / "run") as run:
        assert run.restore(state) is state and run.evaluation_due
        run.log_evaluation({"success": 0 * success, "return": 10 * success, "paths": []})
        assert not run.evaluation_due
        run.log(losses(1.0, 2.0))
        assert (run.step, run.save_due, run.evaluation_due, run.finished) == (10, True, False, False)
        run.save(state)
        run.log(losses(0.0, 0.0))  # and here the process is killed
    with by_hand(tmp_path / "run") as run:
        run.restore(state)
        run.log(losses(3.0, 4.0))
        run.log_evaluation(None)
        assert run.finished and run.evaluation_due
        run.log_evaluation({"success": success, "return": 10 * success, "paths": []})
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
        (0, None, None), (0, None, 10.0), (10, 2.0, None), (20, 0.0, None),
        (0, None, None), (11, None, None), (20, 4.0, None), (20, None, 10.0),
    ]  # fmt: skip
    assert events[0].file_version == "brain.Event:2"
    assert events[5].session_log.status == event_pb2.SessionLog.START


def test_the_score_on_ogbench_is_the_mean_of_the_last_three_evaluations():
    done = [{"step": 100 * i, "success": [x, 2 * x]} for i, x in enumerate([0.0, 0.9, 0.1, 0.2, 0.6, 0.4])]
    whole = scores(100, True, done)
    assert (whole["score_per_seed"], whole["score"]) == (pytest.approx([0.4, 0.8]), pytest.approx(0.6))
    assert (whole["last_per_seed"], whole["best_per_seed"]) == ([0.4, 0.8], [0.9, 1.8])
    # The end of a shorter run that was extended does not count, because a run straight to the end lacks it.
    extended = scores(100, True, [*done[:-1], {"step": 450, "success": [1, 1]}, done[-1]])
    assert extended["score_per_seed"] == whole["score_per_seed"]
    assert scores(100, True, done[:2])["score_per_seed"] == [0.9, 1.8]  # nothing was learnt before the first update
    assert scores(100, False, done)["score_per_seed"] == [0.4, 0.8]


def test_python_and_the_command_line_do_the_same(finished, tmp_path):
    changes = TINY | CHEAP["driftql"] | SMALL | {"run_dir": str(tmp_path / "run"), "progress": False}
    assert_same_run(driftql.main(driftql.args_for("bandit", **changes)), finished)


# ----------------------------------------------------------------------------------------------- the same command again


def test_a_finished_run_is_left_alone(ended, capsys, refused):
    """Also by the whole command once more, and by --help."""
    before = files_of(ended)
    for words in ([], ["--steps", 100], tiny_flags("driftql", **SMALL)):
        command(driftql, "--run-dir", ended, *words)
        output = capsys.readouterr().out
        assert "this run has ended" in output and output.splitlines()[-1] == str(ended)
    with pytest.raises(SystemExit) as stop:
        command(driftql, "--resume", ended, "--steps", 1000, "--help")
    assert (stop.value.code, files_of(ended)) == (0, before)
    result = (ended / "result.json").read_bytes()
    for damaged in (b"", result[:50], b"[]"):
        (ended / "result.json").write_bytes(damaged)
        refused(ended, "result.json is damaged", "--steps", 100)
    (ended / "result.json").unlink()
    command(driftql, "--run-dir", ended)
    assert result_of(ended)["evaluations"] == json.loads(result)["evaluations"]


@pytest.mark.parametrize("words", [["--alpha", 77], ["--seed", 1], ["--hidden-dims", 8, 8], ["--eval-every", 50]])
def test_what_belongs_to_the_run_cannot_be_changed(ended, refused, words):
    refused(ended, f"{words[0]}: the run in {ended} has", "--steps", 400, *words)


def test_a_directory_that_is_no_run_is_left_as_it_is(tmp_path, fails, refused):
    assert "there is no run" in fails(driftql, "--resume", tmp_path / "nothing")
    assert not list(tmp_path.iterdir())
    for name in ("thesis.txt", ".new-thesis.txt"):
        (tmp_path / name).write_text("mine")
    refused(tmp_path, "holds thesis.txt and no run", *tiny_flags("driftql"))
    assert "cannot use" in fails(driftql, *tiny_flags("driftql"), "--run-dir", tmp_path / "thesis.txt")


def test_one_process_at_a_time_works_on_a_run(ended, refused):
    code = "import contextlib, pathlib, sys; from common.system import lock\n"
    code += "with contextlib.ExitStack() as files: print(lock(pathlib.Path(sys.argv[1]), files), flush=True), input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    holder = subprocess.Popen([sys.executable, "-c", code, str(ended)], cwd=ROOT, **pipes)
    assert holder.stdout.readline() == "True\n"
    refused(ended, "another process is working on this run")
    holder.kill()  # the lock ends with the process, however that ends
    holder.communicate()
    command(driftql, "--run-dir", ended, "--steps", 300)
    assert result_of(ended)["steps"] == 300


def test_the_oldest_runs_are_read():
    kept = list((ROOT / "results").glob("*/config.json"))
    assert kept and all(args.read_config(path.parent)["dataset"]["observation_dim"] > 0 for path in kept)


# ------------------------------------------------------------------------------------------------------- what is broken


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
    refused(ended, str(ended), *tiny_flags("driftql", **SMALL | {"steps": 300}))


def test_no_bit_of_a_config_changes_what_it_says(ended):
    content, whole = (ended / "config.json").read_bytes(), args.read_config(ended)
    for at in range(len(content)):
        (ended / "config.json").write_bytes(flipped(content, at))
        with contextlib.suppress(UserError):
            read = args.read_config(ended)  # the name of the digest was hit, which the oldest runs lack
            assert all(read[name] == x for name, x in whole.items() if name != "sha256")


@pytest.mark.parametrize("digest", [True, False])
def test_an_edited_config_is_refused(ended, refused, digest):
    config = json.loads((ended / "config.json").read_text())
    config["args"]["alpha"] = 5.0
    if not digest:  # the checkpoint knows the arguments too
        del config["sha256"]
    (ended / "config.json").write_text(json.dumps(config))
    refused(ended, "was edited" if digest else "the checkpoint belongs to other arguments")


def test_another_checkpoint_in_its_place_is_refused(ended, tmp_path, refused):
    path = ended / checkpoints.FILE
    good = flax.serialization.msgpack_restore(path.read_bytes()[32:])
    other = launch_in_process(driftql, *tiny_flags("driftql", **SMALL, seed=1), "--run-dir", tmp_path / "other")
    path.write_bytes((other / checkpoints.FILE).read_bytes())
    refused(ended, "belongs to other arguments")
    changes = ({"about": 1}, {"about": {}}, {"about": good["about"] | {"step": "200"}})
    without_state = {"about": good["about"]}
    payloads = [flax.serialization.msgpack_serialize(x) for x in (1, without_state, *(good | x for x in changes))]
    for payload in (*payloads, b"\x91" * 100_000 + b"\xc0", b"\xdd\xff\xff\xff\xff"):
        path.write_bytes(hashlib.sha256(payload).digest() + payload)
        refused(ended, "was written by another version")


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_message_and_keeps_the_checkpoint(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(28, "No space left on device")

    message = r"No space left.*What was done is kept: --run-dir .*run goes on"
    with pytest.raises(UserError, match=message), by_hand(tmp_path / "run") as run:
        run.restore({"weights": np.ones(2)})
        run.log(losses(1.0, 1.0))
        run.save({"weights": np.ones(2)})
        run.log(losses(1.0, 1.0))
        monkeypatch.setattr(os, call, full)
        run.save({"weights": np.ones(2)})
    assert checkpoints.load(run.directory)["about"]["step"] == 10
    assert not list(run.directory.glob(".new-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's files")
def test_a_file_that_may_not_grow_ends_the_run_with_one_message(tmp_path):
    """As a full disk, in the middle of a row or of an event."""
    import resource

    flags = tiny_flags("driftql", **SMALL | {"steps": 2_000_000, "log_every": 10, "eval_every": 100_000})
    compiling = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # whose files are larger
    process = start("driftql.py", *flags, "--run-dir", tmp_path / "run", env=compiling)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    _, error = process.communicate(timeout=300)
    assert (process.returncode, error.count("\n")) == (2, 1), error
    assert error.startswith(f"driftql: error: cannot write to {tmp_path / 'run'}: File too large.")
    step = checkpoints.load(tmp_path / "run")["about"]["step"]
    command(driftql, "--run-dir", tmp_path / "run", "--steps", step + 100)
    assert result_of(tmp_path / "run")["steps"] == step + 100 > 100


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_number_that_is_not_finite_names_its_member(tmp_path, bad):
    """The checkpoint from before stays."""
    for values, weights, what in (((1, bad), (1, 1), "losses/critic of"), ((1, 1), (1, bad), "parameters of")):
        message = rf"{what} seed 1 (is|are) not finite at step 10\. What was done is kept: --run-dir"
        with pytest.raises(UserError, match=message), by_hand(tmp_path / what) as run:
            run.restore({"weights": np.ones((2, 3))})
            run.log(losses(*values))
            run.save({"weights": np.array([[1, 1, x] for x in weights])})
        assert checkpoints.load(run.directory)["about"]["step"] == 0


def test_a_platform_that_is_not_there_is_one_message(tmp_path):
    """Before data are loaded, or collected for minutes."""
    nonsense = os.environ | {"JAX_PLATFORMS": "nonsense"}
    process = start("driftql.py", "--env", "bandit", "--run-dir", tmp_path / "run", env=nonsense)
    output, error = process.communicate()
    assert (process.returncode, error.count("\n"), "transitions" in output) == (2, 1, False)
    assert error.startswith("driftql: error: JAX finds no device: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("a bug")])
def test_what_goes_wrong_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "picture.png"
    system.write_atomically(path, b"the old", b" one")
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)), system.replacing(path) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("half of it")
        raise error
    assert files_of(tmp_path) == {path: b"the old one"}


def test_whoever_waits_for_a_lock_says_for_what(tmp_path):
    code = "import pathlib, sys; from common.system import alone\n"
    code += "with alone(pathlib.Path(sys.argv[1]), 'reading'): print('its turn')"
    words = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with system.alone(tmp_path / "lock", "writing"):
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "another process is reading; waiting for it\n"
        assert process.poll() is None
    assert process.communicate(timeout=60)[0] == "its turn\n"


def test_a_reader_that_has_gone_does_not_stop_the_program(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        for _ in range(3):
            system.say("x" * 100_000)
