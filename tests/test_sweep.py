"""tools/sweep.py: every job runs once, whatever is killed. With SLOW_TESTS=1 the jobs are real ones of driftql.py."""

import contextlib
import errno
import getpass
import io
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from helpers import ROOT, alive
from rich.console import Console

sys.path.insert(0, str(ROOT / "tools"))

import sweep
import sweep_job
import sweep_table
from shared import read_json

from common import UserError

STANDIN = ("--scripts", str(Path(__file__).with_name("standin.py")), "--envs", "bandit")
DRIFTQL = ("--scripts", "driftql", "--envs", "bandit", "--set", "hidden-dims=16 16", "--set", "num-candidates=2")
DRIFTQL += ("--set", "batch-size=16", "--set", "steps=40000", "--set", "log-every=200", "--set", "eval-every=20000")
DRIFTQL += ("--set", "save-every=2000", "--set", "eval-episodes=16", "--set", "eval-workers=1")
slow = pytest.mark.skipif("SLOW_TESTS" not in os.environ, reason="takes minutes; set SLOW_TESTS=1")
KINDS = [pytest.param(STANDIN, id="standin"), pytest.param(DRIFTQL, id="driftql", marks=slow)]
SEEDS = ("--seeds", *map(str, range(12)))


STARTED: list[subprocess.Popen] = []


def start(folder: Path, *argv) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tools" / "sweep.py"), "--runs-dir", str(folder), *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    STARTED.append(subprocess.Popen(command, start_new_session=True, **pipes))
    return STARTED[-1]


@pytest.fixture(autouse=True)
def nothing_runs_on(tmp_path):
    """A test that fails in the middle leaves no processes behind."""
    yield
    while STARTED:
        STARTED.pop().kill()
    for path in tmp_path.rglob("job.json"):
        for attempt in (read_json(path) or {"attempts": []})["attempts"]:
            if attempt["exit"] is None and alive(attempt["pid"]):
                os.kill(attempt["pid"], signal.SIGKILL)


@contextlib.contextmanager
def handlers_restored():
    """A sweep in this process leaves its own."""
    before = {number: signal.getsignal(number) for number in sweep_table.NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def attempts(folder: Path) -> dict[Path, list[dict]]:
    """Job folder -> its attempts so far."""
    return {path.parent: (read_json(path) or {"attempts": []})["attempts"] for path in folder.glob("*/job.json")}


def wait_for(condition, seconds: float = 120):
    """The first true value of condition()."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return value


def in_the_middle(folder: Path, at_least: int = 1) -> list[tuple[Path, dict]]:
    """Jobs that run, have saved something and are not done; none if they are fewer than `at_least`."""
    running = [(job, tries[-1]) for job, tries in attempts(folder).items() if tries and tries[-1]["exit"] is None]
    running = [(job, last) for job, last in running if list(job.glob("*/checkpoint.msgpack")) and alive(last["pid"])]
    running = [(job, last) for job, last in running if not list(job.glob("*/result.json"))]
    return running if len(running) >= at_least else []


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def results(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/result.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_twelve_jobs_survive_the_death_of_the_sweep_and_of_a_job(tmp_path, kind):
    first = start(tmp_path, *kind, *SEEDS, "--workers", "2")
    wait_for(lambda: len(results(tmp_path)) >= 3, 600)
    number = 2 if kind is STANDIN else 1  # real jobs train for a short part of their time
    (victim, attempt), *survivors = wait_for(lambda: in_the_middle(tmp_path, number), 600)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    os.kill(attempt["pid"], signal.SIGKILL)
    for job, last in survivors:  # their scripts live on without the process that waits for them
        waiting = parent(last["pid"])
        os.kill(waiting, signal.SIGKILL)
        wait_for(lambda pid=waiting: not alive(pid))
        assert sweep_job.look(job).state in ("running", "done")
    done_before = {path: path.stat().st_mtime_ns for path in results(tmp_path)}

    second = start(tmp_path, *kind, *SEEDS, "--workers", "2")
    output, errors = second.communicate(timeout=900)
    assert second.returncode == 0, errors
    assert "12 jobs: 12 done" in output
    tries = attempts(tmp_path)
    assert len(tries) == 12
    assert len(results(tmp_path)) == 12 == len(list(tmp_path.glob("*/*/config.json")))  # none lost, none twice
    assert {job: len(each) for job, each in tries.items() if len(each) > 1} == {victim: 2}
    assert tries[victim][1]["from_step"] > 0
    assert all(len(tries[job]) == 1 for job, _ in survivors)  # what ran on was left to run
    assert all(path.stat().st_mtime_ns == then for path, then in done_before.items())


def test_a_job_never_runs_beside_itself(tmp_path):
    """Two sweeps of the same jobs at the same time."""
    sweeps = [start(tmp_path, *STANDIN, "--seeds", "0", "1", "2", "--workers", "3") for _ in range(2)]
    for each in sweeps:
        output, errors = each.communicate(timeout=120)
        assert each.returncode == 0, errors
        assert "3 jobs: 3 done" in output
    assert [path.read_text() for path in tmp_path.glob("*/*/starts.txt")] == ["0\n"] * 3


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    argv = (*STANDIN, "--seeds", "0", "1", "2", "--workers", "2", "--set", "steps=600")
    first = start(tmp_path, *argv)
    jobs = wait_for(lambda: in_the_middle(tmp_path, 2))
    os.kill(first.pid, signal.SIGINT)
    output, errors = first.communicate(timeout=60)
    assert first.returncode == 130, errors
    assert not any(alive(last["pid"]) for _, last in jobs)
    assert [attempts(tmp_path)[job][-1]["exit"] for job, _ in jobs] == [143, 143]
    assert "interrupted at step" in output
    second = start(tmp_path, *argv)
    assert "3 jobs: 3 done" in second.communicate(timeout=60)[0]
    assert sorted(len(path.read_text().split()) for path in tmp_path.glob("*/*/starts.txt")) == [1, 2, 2]


def test_a_failed_job_says_why_and_runs_again_only_with_retry(tmp_path):
    argv = (*STANDIN, "--set", "fail=2")
    for retry, tried in (((), 1), ((), 1), (("--retry",), 2)):
        process = start(tmp_path, *argv, *retry)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "1 failed" in output
        assert "standin: error: there is no such file." in output
        (tries,) = attempts(tmp_path).values()
        assert len(tries) == tried


def test_an_end_without_a_result_is_a_failure(tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"command": ["python", "-c", "pass"], "attempts": []}))
    assert subprocess.run(sweep.job_process(tmp_path)).returncode == 0
    assert sweep_job.look(tmp_path)[:5] == ("failed", 0, 0, 0.0, "ended without a result.json")


def test_a_job_goes_on_where_its_script_and_folder_are_now(tmp_path):
    """What begins with an old command, or with a damaged job.json, is started with that of this sweep."""
    (job,) = sweep.make_jobs([{"scripts": "fql", "envs": "bandit"}], tmp_path)
    for old in ({"command": ["python", "/elsewhere/fql.py"], "attempts": [{"exit": 3}]}, {}, {"command": []}):
        job.folder.mkdir(exist_ok=True)
        (job.folder / "job.json").write_text(json.dumps(old))
        sweep.prepare(job)
        assert sweep_job.read_job(job.folder) == {"command": list(job.command), "attempts": old.get("attempts", [])}


def test_a_disk_that_is_full_for_a_moment_does_not_end_a_sweep(tmp_path, monkeypatch, capsys):
    real, full = sweep.prepare, []

    def prepare(job):
        if len(list(tmp_path.glob("*/job.json"))) == 1 and not full:  # the first job runs, the second finds no room
            full.append(job)
            raise UserError("No space left on device.")
        real(job)

    monkeypatch.setattr(sweep, "prepare", prepare)
    argv = [*STANDIN, "--seeds", "0", "1", "--workers", "2", "--runs-dir", str(tmp_path)]
    with handlers_restored():
        assert sweep.main(argv) == 0
    assert full and "2 jobs: 2 done" in capsys.readouterr().out

    def no_room(job):
        raise UserError("No space left on device.")

    monkeypatch.setattr(sweep, "prepare", no_room)
    with pytest.raises(UserError, match="No space left"):  # nothing runs that could make room
        sweep.run_here(sweep.make_jobs([{"scripts": "fql", "envs": "bandit"}], tmp_path), 1, [], sweep_table.Watch(0))


def test_a_job_whose_folder_is_full_runs_all_the_same(tmp_path, monkeypatch):
    def write(*_):
        raise UserError("No space left on device.")

    (tmp_path / "job.json").write_text(json.dumps({"command": ["python", "-c", "open('ran', 'w')"], "attempts": []}))
    monkeypatch.setattr(sweep_job, "write_json", write)
    monkeypatch.setattr(sweep_job.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    assert sweep_job.run_job(tmp_path, 0) == 0
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("number", sweep_table.NUMBERS)
def test_a_sweep_notes_what_asks_it_to_stop(number, capfd):
    """A connection that is lost too; but not where it is ignored, as under nohup."""
    with handlers_restored():
        signal.signal(number, signal.SIG_DFL)
        with sweep_table.Watch(0) as watch:
            signal.raise_signal(number)
            assert watch.signal == number
        signal.signal(number, signal.SIG_IGN)
        with sweep_table.Watch(0) as watch:
            signal.raise_signal(number)
            assert watch.signal is None


def test_whoever_reads_a_sweep_may_leave(tmp_path):
    """`sweep.py ... | head -1`"""
    process = start(tmp_path, *STANDIN, "--seeds", "0", "1", "2")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""
    assert len(results(tmp_path)) == 3


def test_the_terminal_of_a_sweep_may_go(tmp_path):
    terminal, its_side = pty.openpty()
    command = [sys.executable, str(ROOT / "tools" / "sweep.py"), "--runs-dir", str(tmp_path), *STANDIN, "--seeds"]
    options = {"stdout": its_side, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    STARTED.append(subprocess.Popen([*command, "0", "1"], env=os.environ | {"TERM": "xterm"}, **options))
    os.close(its_side)
    os.read(terminal, 1000)  # the table is drawn
    os.close(terminal)
    _, errors = STARTED[-1].communicate(timeout=60)
    assert (STARTED[-1].returncode, errors) == (0, "")
    assert len(results(tmp_path)) == 2


def test_a_table_that_cannot_be_drawn_becomes_lines():
    def update(*_, **__):
        raise OSError("Input/output error")

    watch = sweep_table.Watch(0)
    watch.live = types.SimpleNamespace(update=update)
    assert watch([], queued={}) == {} and watch.live is None


def test_workers_have_cores_and_gpus_of_their_own(tmp_path, monkeypatch):
    """Two workers on this machine's cores and two GPUs."""
    script = tmp_path / "where.py"
    script.write_text(
        "import os, sys; print(sorted(os.sched_getaffinity(0)), os.environ['CUDA_VISIBLE_DEVICES']); sys.exit(2)"
    )
    argv = ("--scripts", str(script), "--envs", "bandit", "--seeds", "0", "1", "--workers", "2", "--gpus", "5", "7")
    start(tmp_path / "runs", *argv).communicate(timeout=60)
    said = sorted(path.read_text().split("] ") for path in tmp_path.glob("runs/*/stdout.txt"))
    assert sorted(gpu.strip() for _, gpu in said) == ["5", "7"]
    if len(os.sched_getaffinity(0)) > 1:
        first, second = (set(cores.strip("[]").split(", ")) for cores, _ in said)
        assert not first & second


def test_what_another_machine_runs_takes_no_worker_here(tmp_path, monkeypatch):
    """Of the same --runs-dir. What a killed sweep has left running on this one does, whatever number it has."""
    block = {"scripts": "fql", "envs": "bandit", "seeds": ["0", "1", "2"]}
    jobs = sweep.make_jobs([block], tmp_path)
    for host, expected in (("elsewhere", 2), (socket.gethostname(), 1)):
        attempt = {"host": host, "worker": 7, "pid": 0, "exit": None}
        states = {jobs[0]: sweep_job.Status("running", attempt=attempt)}
        started = []

        class Process:
            pid = os.getpid()

            def __init__(self, command, started=started, **_):
                started.append(command)

            def poll(self):
                return None

        looks = []

        def watch(jobs, states=states, looks=looks, **_):
            looks.append(1)
            if len(looks) > 2:
                raise InterruptedError
            return {job: states.get(job, sweep_job.Status("waiting")) for job in jobs}

        watch.signal = None
        monkeypatch.setattr(sweep.subprocess, "Popen", Process)
        monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)  # not of this process
        with pytest.raises(InterruptedError):
            sweep.run_here(jobs, 2, [], watch)
        assert len(started) == expected


def test_a_job_that_signals_end_again_and_again_is_given_up(tmp_path, capsys):
    script = tmp_path / "killed.py"
    script.write_text("import os; os.kill(os.getpid(), 9)")
    argv = ["--scripts", str(script), "--envs", "bandit", "--runs-dir", str(tmp_path / "runs")]
    with handlers_restored():
        assert sweep.main(argv) == 1
    error = capsys.readouterr().err
    assert "seed 0: given up after 3 starts" in error and "killed by signal 9" in error


def test_a_file_system_without_locks_is_one_clear_line(tmp_path, monkeypatch):
    def without(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(sweep_job.fcntl, "flock", without)
    assert sweep_job.look(tmp_path).state == "waiting"
    with pytest.raises(SystemExit, match="must support flock"):
        sweep_job.run_job(tmp_path, 0)
    with pytest.raises(UserError, match="must support flock"):
        sweep_job.look(tmp_path)


def test_a_run_directory_may_go_while_it_is_looked_at(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")

    def read_and_remove(path):
        if path.name == "config.json":
            shutil.rmtree(run, ignore_errors=True)
            return {"args": {}}
        return None

    monkeypatch.setattr(sweep_job, "read_json", read_and_remove)
    assert sweep_job.look(tmp_path).state == "waiting"


# ---------------------------------------------------------------------------------------------------------------- jobs


def commands(tmp_path, text: str, *argv) -> list[list[str]]:
    (tmp_path / "sweep.yaml").write_text(text)
    blocks = sweep.read_blocks(tmp_path / "sweep.yaml")
    return [list(job.command[1:]) for job in sweep.make_jobs(blocks, tmp_path)]


def test_a_file_is_the_product_of_each_block(tmp_path):
    text = """
    - scripts: [driftql, fql]
      envs: cube-single-play
      tasks: [1, 2]
      settings: {alpha: [1, 1e1], hidden-dims: 256 256, dataset: "{env}.npz"}
    - scripts: fql
      envs: [bandit, bandit]
      seeds: [3]
      settings: {normalize_q: False}
    """
    made = commands(tmp_path, text)
    assert len(made) == 9  # 2 x 2 x 2, and the twice-named bandit once
    expected = (
        "--env cube-single-play --task 1 --seed 0 --alpha 1e1 --dataset cube-single-play.npz --hidden-dims 256 256"
    )
    assert " ".join(made[1][1:14]) == expected
    assert made[-1][0].endswith("fql.py")
    assert made[-1][1:6] == ["--env", "bandit", "--seed", "3", "--no-normalize-q"]


def test_a_script_of_ones_own_is_another_job_than_ours_of_the_same_name(tmp_path):
    own = tmp_path / "driftql.py"
    own.write_text("")
    block = {"scripts": ["driftql", str(own), str(ROOT / "driftql.py")], "envs": "bandit"}
    ours, theirs = sweep.make_jobs([block], tmp_path)
    assert (ours.command[1], theirs.command[1]) == (str(ROOT / "driftql.py"), str(own))
    assert (ours.title, theirs.title) == ("driftql bandit seed 0", f"{own} bandit seed 0")


def test_a_file_that_is_not_text_is_one_clear_line(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(
        "- {scripts: fql, envs: bandit, settings: {dataset: d\u00e4ta}}".encode("latin-1")
    )
    with pytest.raises(UserError, match="is not text in UTF-8"):
        sweep.read_blocks(tmp_path / "latin.yaml")


def test_every_sweep_file_of_the_repository_can_be_read():
    for path in (ROOT / "tools" / "sweeps").glob("*.yaml"):
        assert sweep.make_jobs(sweep.read_blocks(path), Path("runs")), path


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--envs", "bandit"], "needs scripts"),
        (["--scripts", "driftkl", "--envs", "bandit"], "no driftkl.py; did you mean driftql?"),
        (["--scripts", "fql", "--envs", "bandit", "--set", "alpha"], "--set alpha has no ="),
        (["--scripts", "fql", "--envs", "bandit", "--workers", "0"], "--workers 0 must be positive"),
        (
            ["--scripts", "fql", "--envs", "bandit", "--slurm", "--hours", "inf"],
            "--hours inf must be positive, and finite",
        ),
        (["--scripts", "fql", "--envs", "bandit", "--slurm", "--hours", "-3"], "--hours -3.0 must be positive."),
        (
            ["--scripts", "fql", "--envs", "bandit", "--partition", "gpu"],
            "go with --slurm, without which jobs run here",
        ),
        (
            ["--scripts", "fql", "--envs", "bandit", "--slurm", "--gpus", "0"],
            "each job asks for its own: --gpus-per-job",
        ),
        (["--scripts", "fql", "--envs", "bandit", "--wrokers", "1"], "unrecognized arguments: --wrokers"),
        (["nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--scripts", "fql", "--envs", "bandit", "--seeds", "0,1"], "seeds: 0,1 is not a whole number"),
        (["--scripts", "fql", "--envs", "bandit", "--tasks", "1", "one"], "tasks: one is not a whole number"),
        (["--scripts", "fql", "--envs", "bandit", "--set", "alpha="], "alpha has no value, or an empty one"),
        (
            ["--scripts", "fql", "--envs", "bandit", "--set", "batch_size=1", "--set", "batch-size=3"],
            "--set batch-size is given twice",
        ),
        (["--scripts", "fql", "--envs", "bandit", "--set", "=1"], "--set has no name"),
        (
            ["--scripts", "fql", "--envs", "bandit", "--set", "hidden-dims=16,16"],
            'hidden-dims has 16 twice; several numbers in one value: "16 16"',
        ),
        (
            ["--scripts", "fql", "--envs", "bandit", "--seeds", "0", "1", "--set", "num-seeds=3"],
            "with num-seeds 3 these seeds would be trained more than once; --seeds 0 3?",
        ),
        (["--scripts", "fql", "--envs", "bandit", "--runs-dir", __file__], "test_sweep.py is not a folder"),
        (["--scripts", "fql", "--envs", "bandit", "--set", "seed=1"], "--seed is no setting"),
        (["--scripts", "fql", "--envs", "bandit", "--set", "dataset=it's"], "dataset: it's: No closing quotation"),
        (["--scripts", "fql", "--envs", "bandit", "--status", "--retry"], "leave --retry out"),
    ],
)
def test_bad_arguments_are_one_clear_line(argv, expected):
    with pytest.raises(UserError, match=expected.replace("?", r"\?")) as error:
        sweep.main(argv)
    assert "\n" not in str(error.value)


def test_the_comma_of_a_grid_does_not_make_two_jobs(tmp_path, capsys):
    sets = ("--set", "grid=alpha=1,3", "--set", "learning-rate=1e-3,1e-4")
    sweep.main(["--scripts", "fql", "--envs", "bandit", *sets, "--runs-dir", str(tmp_path), "--dry-run"])
    jobs = capsys.readouterr().out.splitlines()
    assert [job.count("--grid alpha=1,3 ") for job in jobs] == [1, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scripts: [fql]", "must be a list of blocks"),
        ("- {scripts: fql, env: bandit}", "unknown key 'env'"),
        ("- {scripts: [fql, envs: bandit}", "is not YAML"),
        ("- {scripts: fql, envs: bandit, settings: [alpha]}", "settings must be"),
        ("- {scripts: [[fql, idql]], envs: bandit}", "scripts must be a value or"),
        ("- {scripts: fql, envs: bandit, seeds: {a: 1}}", "seeds must be a value or"),
        ("- {scripts: fql, envs: bandit, seeds: }", "seeds has no value"),
        ("- {scripts: fql, envs: bandit, tasks: []}", "tasks has no value"),
        ("- {scripts: fql, envs: bandit, settings: {alpha: []}}", "alpha has no value"),
        ("- {scripts: fql, envs: bandit, settings: {--alpha: [1, '']}}", "alpha has no value"),
        ("- {scripts: fql, envs: bandit, settings: {runs_dir: here}}", "--runs-dir is no setting"),
        ("- {scripts: fql, envs: bandit, settings: {lr_decay: 1, lr-decay: 2}}", "lr-decay is there twice"),
        ("- {scripts: fql, envs: bandit, scripts: drol}", "scripts is there twice"),
        ("[]", "must be a list of blocks"),
        ("- {scripts: fql, envs: bandit, settings: {hidden-dims: [[8, 8], [9, 9]]}}", "hidden-dims must be a value or"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, text, expected):
    with pytest.raises(UserError, match=expected) as error:
        commands(tmp_path, text)
    assert "\n" not in str(error.value)


def test_without_submitit_slurm_is_one_line_on_standard_error(tmp_path):
    (tmp_path / "submitit.py").write_text("raise ImportError")
    process = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "sweep.py"), *STANDIN, "--slurm", "--runs-dir", str(tmp_path / "runs")],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert process.returncode == 2
    assert process.stderr == "sweep: error: --slurm needs submitit: uv pip install -e '.[sweep]'\n"


def test_the_table_says_what_runs_and_when_it_ends(tmp_path):
    job, other = (sweep_job.Job(f"{name} bandit seed 0", tmp_path / name, ()) for name in ("driftql", "fql"))
    running = sweep_job.Status("running", step=40_000, steps=100_000, rate=100.0)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(sweep_table.table({other: sweep_job.Status("waiting"), job: running}))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert lines[0] == "2 jobs: 1 running, 1 waiting, about 27 min left"
    assert lines[2] == "running driftql bandit seed 0 40,000 / 100,000 100 10 min"


# --------------------------------------------------------------------------------------------------------------- SLURM


CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=2
KillWait=15
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster of this machine alone, with two CPUs, in the folder of the test."""
    pytest.importorskip("submitit", reason="no SLURM test: submitit is not installed (extra `sweep`)")
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
    if missing or getpass.getuser() != "root":
        pytest.skip(f"no SLURM test: needs root and {', '.join(missing) or 'nothing else'} (slurm-wlm, munge)")
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    with socket.socket() as a, socket.socket() as b:
        ports = [each.bind(("127.0.0.1", 0)) or each.getsockname()[1] for each in (a, b)]
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, ports=ports, folder=folder, user="root"))
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    munge = [
        "munged",
        "--force",
        "--foreground",
        *(f"--{x}={folder}/munge.{x.split('-')[0]}" for x in ("socket", "pid-file", "seed-file", "log-file")),
    ]
    daemons = []
    try:
        for command in ([*munge, f"--key-file={folder}/key"], ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c"]):
            with open(folder / f"{command[0]}.out", "w") as log:
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
            time.sleep(1)
        try:
            wait_for(lambda: "idle" in subprocess.run(["sinfo"], capture_output=True, text=True).stdout, 20)
        except AssertionError:
            logs = "\n".join(path.read_text()[-500:] for path in folder.glob("*.out"))
            pytest.skip(f"no SLURM test: its daemons do not come up here:\n{logs}")
        yield folder
        subprocess.run(["scancel", "--user=root"])
        wait_for(lambda: not sweep.slurm_queue(), 60)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


@pytest.mark.parametrize("kind", KINDS)
def test_twelve_jobs_on_slurm_with_one_cancelled_and_one_requeued(tmp_path, slurm, kind):
    folder = tmp_path / "runs"
    steps = ("--set", "steps=800") if kind is STANDIN else ()
    argv = (*kind, *SEEDS, *steps, "--slurm", "--partition", "test", "--cpus-per-job", "1", "--workers", "12")
    first = start(folder, *argv)
    (cancelled, _), (requeued, _) = wait_for(lambda: in_the_middle(folder, 2), 600)
    first.kill()  # the jobs stay in the queue, and the second sweep finds them there
    first.wait()
    second = start(folder, *argv)
    assert second.stdout.readline()  # it has seen that both run
    subprocess.run(["scontrol", "requeue", read_json(requeued / "slurm.json")["id"]], check=True)
    subprocess.run(["scancel", read_json(cancelled / "slurm.json")["id"]], check=True)
    output, errors = second.communicate(timeout=1200)
    assert second.returncode == 1, (output, errors)
    assert "12 jobs: 1 waiting, 11 done" in output  # nobody undoes a cancellation but the next sweep
    third = start(folder, *argv)
    output, errors = third.communicate(timeout=600)
    assert third.returncode == 0, (output, errors)
    tries = attempts(folder)
    assert len(results(folder)) == 12 == len(list(folder.glob("*/*/config.json")))
    assert {job: len(each) for job, each in tries.items() if len(each) > 1} == {cancelled: 2, requeued: 2}
    assert all(tries[job][1]["from_step"] > 0 for job in (cancelled, requeued))


def test_a_job_at_its_time_limit_saves_is_requeued_and_goes_on(tmp_path, slurm):
    """submitit's SIGUSR2, sent by hand: SLURM's time limits are whole minutes."""
    folder = tmp_path / "runs"
    process = start(folder, *STANDIN, "--set", "steps=1500", "--slurm", "--cpus-per-job", "1")
    ((job, _),) = wait_for(lambda: in_the_middle(folder), 60)
    subprocess.run(["scancel", "--signal=USR2", read_json(job / "slurm.json")["id"]], check=True)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, (output, errors)
    (tries,) = attempts(folder).values()
    assert [each["exit"] for each in tries] == [143, 0]
    assert tries[1]["from_step"] > 0
    assert json.loads(results(folder)[0].read_text())["steps"] == 1500
