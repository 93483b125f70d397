"""tools/sweep.py: every job is done once, whatever is killed. The jobs are those of a stand-in for the scripts."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import wait_for

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import sweep

from common import UserError
from common.system import lock

ROOT = sweep.ROOT
STANDIN = ("--scripts", str(Path(__file__).with_name("standin.py")), "--envs", "bandit")
SIX = (*STANDIN, "--seeds", *map(str, range(6)), "--workers", "2")


def processes(folder: Path) -> list[int]:
    """Processes other than this one with the folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


@pytest.fixture
def runs(tmp_path):
    """The folder of a sweep. A test that fails in the middle leaves no processes behind."""
    yield tmp_path / "runs"
    for pid in processes(tmp_path / "runs"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start(folder: Path, *argv) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tools" / "sweep.py"), "--runs-dir", str(folder), *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes)


def in_the_middle(folder: Path) -> list[Path]:
    """Runs that are being worked on, have done something and are not done."""
    began = [path.parent for path in folder.glob("*/train.csv") if sweep.last_step(path.parent)]
    return [run for run in began if sweep.held(run) and not (run / "result.json").exists()]


def outcome(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """What each job of a sweep has come to: its last state and its result."""
    runs = [path.parent for path in folder.glob("*/result.json")]
    return {run.name: ((run / "checkpoint.msgpack").read_bytes(), (run / "result.json").read_bytes()) for run in runs}


def starts(folder: Path) -> dict[str, list[int]]:
    """Steps at which the stand-in began or went on, of each run that did not only begin once."""
    found = {path.parent.name: [int(x) for x in path.read_text().split()] for path in folder.glob("*/starts.txt")}
    return {name: steps for name, steps in found.items() if steps != [0]}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a sweep of six jobs comes to if nothing disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = start(folder, *SIX)
    assert (done.communicate()[1], done.returncode) == ("", 0)
    return outcome(folder)


# --------------------------------------------------------------------------------------------------- whatever is killed


def test_the_death_of_the_sweep_and_of_a_job(expected, runs):
    first = start(runs, *SIX)
    wait_for(lambda: list(runs.glob("*/result.json")))
    # Of those that have just begun, so that none ends before it is killed.
    victim, *_ = wait_for(lambda: [run for run in in_the_middle(runs) if sweep.last_step(run) <= 60])
    survivors = [run for run in in_the_middle(runs) if run != victim]
    first.kill()
    for pid in processes(victim):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    assert all(processes(run) or (run / "result.json").exists() for run in survivors)  # they go on

    second = start(runs, *SIX)
    output, errors = second.communicate(timeout=900)
    assert (second.returncode, errors) == (0, ""), output
    assert "6 jobs: 6 done" in output
    assert outcome(runs) == expected
    assert not processes(runs)
    assert starts(runs).keys() == {victim.name}  # nothing ran beside itself
    assert starts(runs)[victim.name][1] > 0


@pytest.mark.parametrize("number", sweep.SIGNALS)
def test_a_stop_saves_and_the_same_command_goes_on(expected, runs, number):
    first = start(runs, *SIX)
    wait_for(lambda: in_the_middle(runs))
    os.kill(first.pid, number)
    output, errors = first.communicate(timeout=120)
    assert (first.returncode, errors) == (128 + number, "")
    assert "stopped" in output and "waiting" in output
    assert not processes(runs)
    second = start(runs, *SIX)
    assert "6 jobs: 6 done" in second.communicate(timeout=900)[0]
    assert outcome(runs) == expected
    assert starts(runs)  # the jobs went on from what they had saved
    assert all(len(steps) == 2 and steps[1] > 0 for steps in starts(runs).values())


def test_a_job_never_runs_beside_itself(runs):
    """Two sweeps of the same jobs at the same time, of more workers than one of them has."""
    sweeps = [start(runs, *STANDIN, "--seeds", "0", "1", "2", "--workers", workers) for workers in ("1", "3")]
    for each in sweeps:
        output, errors = each.communicate(timeout=120)
        assert each.returncode == 0, errors
        assert "3 jobs: 3 done" in output
    assert len(outcome(runs)) == 3 and not starts(runs)


def test_what_another_process_runs_is_waited_for_without_a_worker(runs):
    first = start(runs, *STANDIN, "--set", "steps=9000")
    (run,) = wait_for(lambda: in_the_middle(runs))
    first.kill()
    first.wait()
    second = start(runs, *STANDIN, "--set", "steps=9000,20", "--workers", "1")
    wait_for(lambda: list(runs.glob("*/result.json")))
    assert second.poll() is None and processes(run)
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=60)
    assert processes(run)  # only what the sweep has started gets its signals


def test_a_failed_job_says_why_and_is_tried_again(runs):
    for _ in range(2):
        process = start(runs, *STANDIN, "--set", "fail=2")
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "1 jobs: 1 failed" in output
        assert "failed   " in output.splitlines()[-1]
        assert output.splitlines()[-1].endswith("--fail 2  standin: error: there is no such file.")
    (log,) = runs.glob("*.log")
    assert log.read_text().count("there is no such file") == 2


def test_how_a_job_can_end_badly(runs):
    runs.mkdir()
    for code, reason in {
        "pass": "ended without a result.json",
        "import os; os.kill(os.getpid(), 9)": "killed by signal 9",
        "import sys; sys.exit(143)": "killed by signal 15",
        "raise ValueError('it broke')": "ValueError: it broke",
    }.items():
        script = runs.with_name("bad.py")
        script.write_text(f"print('begin', flush=True)\n{code}")
        (job,) = make(f"- {{scripts: {script}, envs: bandit}}", runs)
        assert sweep.run_here([job], 1, [], []) == {job: ("failed", reason)}
        assert job.log.read_text().count("begin") == 1
        job.log.unlink()


def test_workers_have_cores_and_gpus_of_their_own(runs):
    """Two workers on this machine's cores and two GPUs."""
    script = runs.with_name("where.py")
    text = "import os, sys, time; print(sorted(os.sched_getaffinity(0)), os.environ['CUDA_VISIBLE_DEVICES'])"
    script.write_text(f"import time; time.sleep(1); {text}; sys.exit(2)")
    argv = ("--scripts", str(script), "--envs", "bandit", "--seeds", "0", "1", "--workers", "2", "--gpus", "5", "7")
    start(runs, *argv).communicate(timeout=60)
    said = [path.read_text().split("] ") for path in runs.glob("*.log")]
    assert sorted(gpu.strip() for _, gpu in said) == ["5", "7"]
    if len(os.sched_getaffinity(0)) > 1:
        first, second = (set(cores.strip("[]").split(", ")) for cores, _ in said)
        assert not first & second


def test_status_says_how_far_everything_is_and_starts_nothing(runs, capsys):
    argv = [*STANDIN, "--seeds", "0", "1", "2", "3", "--runs-dir", str(runs), "--status"]
    jobs = make(f"- {{scripts: {STANDIN[1]}, envs: bandit, seeds: [0, 1, 2, 3]}}", runs)
    assert sweep.main(argv) == 1
    assert not runs.exists()
    for job, step in zip(jobs[:3], (40, 60, 80)):
        job.run.mkdir(parents=True)
        (job.run / "train.csv").write_text(f"step,seed\n20,0\n{step},0\n{step + 1}")
    (jobs[2].run / "result.json").write_text('{"grid": [{"values": {"alpha": 3.0}, "score": 0.925}]}')
    capsys.readouterr()
    with contextlib.ExitStack() as files:
        assert lock(jobs[0].run, files)
        sweep.main(argv)
    first, *rows = capsys.readouterr().out.splitlines()
    assert first == "4 jobs: 1 running, 1 stopped, 1 done, 1 waiting"
    assert [" ".join(row.split()).replace(f"{STANDIN[1]} --env bandit --seed", "X") for row in rows] == [
        "running X 0 at step 40", "stopped X 1 at step 60", "done X 2 score alpha=3 0.925", "waiting X 3",
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- jobs


def make(text: str, folder: Path) -> list[sweep.Job]:
    folder.parent.joinpath("sweep.yaml").write_bytes(text.encode("latin-1"))
    return sweep.make_jobs(sweep.read_blocks(folder.parent / "sweep.yaml"), folder)


def test_a_file_is_the_product_of_each_block(runs):
    text = """
    - scripts: [driftql, fql]
      envs: cube-single-play
      tasks: [1, 2]
      settings: {hidden-dims: 256 256, alpha: [1, 1e1], dataset: "'{env} 2.npz'"}
    - {scripts: fql, envs: bandit, seeds: [3], settings: {normalize_q: False, eta: -1.5}}
    - {scripts: fql, envs: bandit, seeds: [3], settings: {normalize_q: False, eta: -1.5}}
    """
    jobs = make(text, runs)
    assert len(jobs) == 9  # 2 x 2 x 2, and the repeated block once
    expected = "--env cube-single-play --task 1 --seed 0 --alpha 1e1 --dataset"
    assert jobs[1].command[2:] == (
        *expected.split(), "cube-single-play 2.npz", "--hidden-dims", "256", "256", "--no-progress", "--run-dir",
        str(jobs[1].run),
    )  # fmt: skip
    assert jobs[-1].command[1] == str(ROOT / "fql.py")
    expected = "--env bandit --seed 3 --eta -1.5 --no-normalize-q --no-progress --run-dir"
    assert list(jobs[-1].command[2:]) == [*expected.split(), str(jobs[-1].run)]
    assert jobs[1].run.parent == runs
    assert jobs[1].run.name.startswith("cube-single-play-task1__driftql__0__")
    flags = "--task 1 --seed 0 --alpha 1e1 --dataset 'cube-single-play 2.npz' --hidden-dims 256 256"
    assert jobs[1].title == f"driftql --env cube-single-play {flags}"
    assert len({job.run for job in jobs}) == 9


def test_a_script_of_your_own_is_another_job_than_ours_of_the_same_name(runs):
    own = runs.with_name("driftql.py")
    own.write_text("")
    ours, theirs = make(f"- {{scripts: [driftql, {own}, {ROOT}/driftql.py], envs: bandit}}", runs)
    assert (ours.title, theirs.title) == ("driftql --env bandit --seed 0", f"{own} --env bandit --seed 0")
    assert theirs.command[1] == str(own)


def test_a_bad_file_is_one_clear_line(runs):
    for text, expected in (
        ("scripts: [fql]", "is no list of blocks"),
        ("- {scripts: fql, env: bandit}", "'env' is neither"),
        ("- {scripts: fql, envs: d\u00e4ta}", "'utf-8' codec can't decode"),
        ("- {scripts: [fql, envs: bandit}", "sweep.yaml is no list of blocks"),
        ("- {scripts: [[fql, idql]], envs: bandit}", "'scripts' must have a name and a value"),
        ("- {scripts: fql, envs: bandit, settings: {--alpha: [1, '']}}", "'alpha' must have a name and a value"),
    ):
        with pytest.raises(UserError, match=expected) as error:
            make(text, runs)
        assert "\n" not in str(error.value)


def test_the_comma_of_a_grid_does_not_make_two_jobs(runs, capsys):
    sets = ("--set", "grid=alpha=1,3", "--set", "learning-rate=1e-3,1e-4")
    sweep.main(["--scripts", "fql", "--envs", "bandit", *sets, "--runs-dir", str(runs), "--status"])
    _, *jobs = capsys.readouterr().out.splitlines()
    assert [job.count("--grid alpha=1,3 ") for job in jobs] == [1, 1]
    assert not runs.exists()


# --------------------------------------------------------------------------------------------------------------- SLURM


@pytest.fixture
def submitit(monkeypatch):
    """A stand-in for submitit, which records what it is asked for, and an empty queue."""
    asked = SimpleNamespace(jobs=[], parameters={})

    class Executor:
        def __init__(self, folder, max_num_timeout):
            self.update_parameters = asked.parameters.update

        def map_array(self, function, *columns):
            asked.jobs = [(function, *row) for row in zip(*columns)]
            return [SimpleNamespace(job_id=f"7_{i}") for i in range(len(asked.jobs))]

    helpers = SimpleNamespace(DelayedSubmission=lambda *job: job)
    errors = SimpleNamespace(utils=SimpleNamespace(FailedJobError=OSError))
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(SlurmExecutor=Executor, helpers=helpers, core=errors))
    monkeypatch.setattr(sweep, "require", lambda *_: None)
    asked.queue = ""
    monkeypatch.setattr(sweep.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=asked.queue))
    return asked


def test_the_jobs_that_are_left_become_one_job_array(runs, submitit, capsys):
    argv = [*STANDIN, "--seeds", "0", "1", "2", "--runs-dir", str(runs), "--slurm", "partition=gpu", "time=1:00:00"]
    done, *jobs = make(f"- {{scripts: {STANDIN[1]}, envs: bandit, seeds: [0, 1, 2]}}", runs)
    done.run.mkdir(parents=True)
    (done.run / "result.json").write_text('{"score": 1.0}')
    assert sweep.main(argv) == 0
    assert "2 jobs are in SLURM's queue as 7;" in capsys.readouterr().out
    assert [job[1:] for job in submitit.jobs] == [(job.command, job.log) for job in jobs]
    assert submitit.parameters["additional_parameters"] == {
        "partition": "gpu", "time": "1:00:00", "cpus-per-task": "4", "requeue": True,
    }  # fmt: skip
    submitit.queue = "7_1\n7_2"
    with pytest.raises(UserError, match="scancel 7_1"):
        sweep.main(argv)


def test_a_slurm_job_saves_at_its_time_limit_and_is_queued_again(runs, submitit):
    (job,) = make(f"- {{scripts: {STANDIN[1]}, envs: bandit, settings: {{steps: 3000}}}}", runs)
    runs.mkdir()
    slurm = sweep.SlurmJob()

    def run():
        with pytest.raises(RuntimeError):
            slurm(job.command, job.log)

    running = threading.Thread(target=run)
    running.start()
    wait_for(lambda: in_the_middle(runs))
    again, *arguments = slurm.checkpoint(job.command, job.log)
    running.join(timeout=60)
    assert sweep.state_of(job)[0] == "stopped" and arguments == [job.command, job.log]
    again(*arguments)
    assert sweep.state_of(job)[0] == "done" and starts(runs)
