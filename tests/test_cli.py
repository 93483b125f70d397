"""Arguments: defaults, presets, flags, checks, and the one line that a mistake gets."""

import dataclasses
import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NAME, ROOT, tiny_args, tiny_flags

import driftql
import idql
from common import UserError, cli, datasets
from common.datasets import load_dataset


def parsed(*argv):
    return cli.parse(driftql.Args, driftql.PRESETS, list(argv))


# -------------------------------------------------------------------------------------------------------------- presets


def test_preset_is_chosen_by_env_and_flags_win(capsys):
    args = parsed("--env", "cube-double-play", "--alpha", "7")
    assert (args.alpha, args.num_candidates, args.noise_dim, args.kernel) == (7, 4, 8, "gaussian")
    assert "alpha=7" in capsys.readouterr().out
    assert parsed("--env", "cube-double-play-singletask-task3-v0").noise_dim == 8
    args = parsed("--env", "antmaze-medium-navigate")
    assert args == dataclasses.replace(driftql.Args(), env="antmaze-medium-navigate", log_every=args.log_every)
    assert "none for antmaze-medium-navigate" in capsys.readouterr().out


def test_presets_are_the_published_ones():
    """Spot checks against table 6 and the README of the authors' code."""
    args = parsed("--env", "puzzle-4x4-play")
    found = (args.alpha, args.temperature, args.kernel, args.discount, args.q_agg)
    assert found == (300, 0.8, "gaussian", 0.99, "mean")
    args = parsed("--env", "humanoidmaze-medium-navigate")
    assert (args.alpha, args.temperature, args.kernel, args.discount, args.q_agg) == (65, 0.5, "laplace", 0.998, "mean")
    assert (args.batch_size, args.hidden_dims, args.num_candidates, args.learning_rate) == (256, (512,) * 4, 32, 3e-4)


def test_from_python_as_from_the_command_line(script):
    """args_for is what --env gives, with or without changes."""
    for env in ("bandit", "antmaze-large-navigate", f"{NAME}-singletask-task3-v0", "antmaze-medium-navigate"):
        assert script.args_for(env) == cli.parse(script.Args, script.PRESETS, ["--env", env])
    changed = script.args_for("bandit", batch_size=512, hidden_dims=(3, 4), log_every=250)
    argv = ["--env", "bandit", "--batch-size", "512", "--hidden-dims", "3", "4", "--log-every", "250"]
    assert changed == cli.parse(script.Args, script.PRESETS, argv)
    with pytest.raises(TypeError, match="alhpa"):
        script.args_for("bandit", alhpa=3)


# ------------------------------------------------------------------------------------------------------------- interval


def test_log_interval_divides_what_is_asked_for():
    for steps in ("1000", "750", "1000000"):
        args = parsed("--env", "cube-double-play", "--steps", steps)
        assert all(x % args.log_every == 0 for x in (args.steps, args.eval_every, args.save_every))
    assert parsed("--env", "cube-double-play", "--log-every", "2000").log_every == 2000


def test_a_preset_s_interval_adapts_to_what_is_asked_for():
    """Nobody asked for the bandit's 500."""
    args = parsed("--env", "bandit", "--steps", "300")
    assert args.steps == 300
    assert all(x % args.log_every == 0 for x in (args.steps, args.eval_every, args.save_every))
    assert args == driftql.args_for("bandit", steps=300)
    assert parsed("--env", "bandit").log_every == driftql.PRESETS["bandit"]["log_every"]


def test_an_interval_that_makes_training_slow_is_said(capsys):
    parsed("--env", "bandit", "--steps", "300")
    assert "NOTE" not in capsys.readouterr().out
    assert parsed("--env", "bandit", "--steps", "2001").log_every == 1
    assert "NOTE    --log-every 1: " in capsys.readouterr().out


def test_a_whole_number_may_have_an_exponent():
    args = parsed("--env", "bandit", "--steps", "1e6", "--hidden-dims", "6.4e1", "32", "--num-seeds=2e0")
    assert (args.steps, args.hidden_dims, args.num_seeds) == (1_000_000, (64, 32), 2)
    assert type(args.steps) is int
    assert parsed("--seed", str(2**31 - 1 + 2**30)).seed == 2**31 - 1 + 2**30  # beyond what a float32 can tell apart


# ----------------------------------------------------------------------------------------------------------------- help


def test_help_shows_the_presets_values(capsys):
    with pytest.raises(SystemExit) as stop:
        parsed("--env", "scene-play", "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: 250)" in text or "(default: 250.0)" in text
    assert all(f"--{field.name.replace('_', '-')}" in text for field in dataclasses.fields(driftql.Args))


def test_help_is_in_groups(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        cli.parse(script.Args, script.PRESETS, ["--help"])
    text = capsys.readouterr().out
    titles = ["run options", "data options", "evaluation options", "algorithm options"]
    places = [text.find(title) for title in titles]
    assert places == sorted(places)
    assert min(places) > 0
    own = text[places[-1] :]
    for field in dataclasses.fields(script.Args):
        line = re.compile(rf"^\W*{cli.flag_of(field.name)}\b", re.MULTILINE)
        assert bool(line.search(own)) == (field.name in script.Args.__annotations__), field.name
    for start, end in zip(places, [*places[1:], len(text)]):
        assert text[start:end].count("\n") < 50  # a screen


def test_help_works_from_any_folder(tmp_path):
    command = [sys.executable, str(ROOT / "driftql.py"), "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "--num-seeds" in output


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--env", "antmaze-larg-navigate"], "did you mean antmaze-large-navigate"),
        (["--alhpa", "3"], "did you mean --alpha?"),
        (["--lr", "3"], "unknown argument --lr: see driftql.py --help."),
        (["stray"], "unknown argument stray"),
        (["--alpha", "much"], "could not convert string to float: 'much'"),
        (["--env", "bandit", "--steps", "1.5"], "--steps"),
        (["--env", "bandit", "--steps", "inf"], "--steps"),
        (["--env", "bandit", "--steps", "1e400"], "--steps"),
        (["--env", "bandit", "--steps", "1.23e1"], "--steps"),
        (["--env", "bandit", "--steps", "nan"], "--steps"),
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
        (["--env", "bandit", "--hidden-dims"], "--hidden-dims"),
        (["--env", "bandit", "--steps", "-5"], "--steps -5 must be positive"),
        (["--env", "bandit", "--num-seeds", "0"], "--num-seeds 0 must be positive"),
        (["--env", "bandit", "--seed", "-1"], "--seed -1 must be 0 or more"),
        (["--env", "bandit", "--seed", "4294967296"], "32-bit"),
        (["--env", "bandit", "--alpha", "nan"], "--alpha nan must be a finite number"),
        (["--env", "bandit", "--alpha", "1e39"], "--alpha 1e+39 must be a finite number"),  # beyond float32
        (["--env", "bandit", "--learning-rate", "-1"], "--learning-rate -1.0 must be a finite number, 0 or more"),
        (["--env", "bandit", "--discount", "1.5"], "--discount 1.5 must lie between 0 and 1"),
        (["--env", "bandit", "--target-rate", "2"], "--target-rate 2.0 must lie between 0 and 1"),
        (["--env", "bandit", "--temperature", "0"], "--temperature 0 must be positive"),
        (["--env", "bandit", "--steps", "1000", "--log-every", "300"], "not a multiple of --log-every 300"),
        (["--resume", "nowhere"], "nowhere: there is no config.json"),
    ],
)
def test_bad_arguments_are_one_clear_line(argv, expected, fails, monkeypatch):
    monkeypatch.setattr(datasets, "_find_file", lambda *_: pytest.fail("looked for data"))
    assert expected in fails(driftql, *argv)


@pytest.mark.parametrize(
    ("name", "argv", "expected"),
    [
        ("idql", ["--actor-target-rate", "2"], "--actor-target-rate 2.0 must lie between 0 and 1"),
        ("idql", ["--expectile", "1"], "--expectile 1.0 must lie between 0 and 1"),
        ("idql", ["--expectile", "0"], "--expectile 0.0 must lie between 0 and 1"),
        ("idql", ["--actor-width", "0"], "--actor-width 0 must be positive"),
        ("idql", ["--sampling-temperature", "-1"], "--sampling-temperature -1.0 must be a finite number"),
        ("diffusion_ql", ["--grad-norm", "0"], "--grad-norm 0 must be positive"),
        ("diffusion_ql", ["--critic-learning-rate", "inf"], "--critic-learning-rate inf must be a finite number"),
        ("fql", ["--flow-steps", "0"], "--flow-steps 0 must be positive"),
        ("drol", ["--num-candidates", "0"], "--num-candidates 0 must be positive"),
        ("drol", ["--bc-coef", "nan"], "--bc-coef nan must be a finite number"),
    ],
)
def test_each_algorithm_checks_its_numbers(name, argv, expected, fails):
    assert expected in fails(__import__(name), "--env", "bandit", *argv)


def test_from_python_the_same_numbers_are_refused(tmp_path):
    for script, change, message in ((driftql, {"discount": 1.5}, "--discount"), (idql, {"expectile": 1.0}, "--expec")):
        with pytest.raises(UserError, match=message):
            script.main(tiny_args(script, runs_dir=str(tmp_path), **change))
    with pytest.raises(UserError, match="at least one value"):
        driftql.main(tiny_args(driftql, runs_dir=str(tmp_path), hidden_dims=()))
    assert not list(tmp_path.iterdir())


def test_nothing_is_said_of_a_name_that_does_not_exist(capsys):
    for argv in (["--env", "antmaze-larg-navigate"], ["--env", NAME, "--task", "6"]):
        with pytest.raises(UserError):
            parsed(*argv)
        assert "preset" not in capsys.readouterr().out


def test_a_mistyped_dataset_is_reported_as_that(fails, tmp_path):
    error = fails(driftql, "--env", "MyEnvironment-v0", "--dataset", tmp_path / "typo.npz")
    assert "typo.npz does not exist" in error
    assert "environment" not in error.replace("MyEnvironment", "")


def test_places_that_cannot_be_written(tmp_path, fails):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "runs", Path("/proc/runs")):
        assert str(place) in fails(driftql, *tiny_flags(driftql), "--runs-dir", place)


# -------------------------------------------------------------------------------------------------------- config.json


DATASET = {"name": "bandit", "source": "builtin", "sha256": None, "observation_dim": 1, "action_dim": 2}


def write_config(directory: Path, **changes) -> None:
    args = {"args": json.loads(json.dumps(dataclasses.asdict(driftql.args_for("bandit"))))}
    config = {"algo": "driftql", "git_commit": "abc", "dataset": DATASET} | args | changes
    (directory / "config.json").write_text(json.dumps(config))


def test_the_arguments_of_a_run_come_back(tmp_path):
    write_config(tmp_path)
    assert cli.args_of(driftql.Args, tmp_path) == driftql.args_for("bandit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "many"}, "config.json has 'many' for --steps"),
        ({"steps": 1e6}, "config.json has 1000000.0 for --steps"),
        ({"hidden_dims": 64}, "config.json has 64 for --hidden-dims"),
        ({"hidden_dims": [64, "x"]}, "for --hidden-dims"),
        ({"kernel": "cubic"}, "config.json has 'cubic' for --kernel"),
        ({"alpha": None}, "config.json has None for --alpha"),
        ({"track": 1}, "config.json has 1 for --track"),
        ({"extra": 1}, "another version of driftql.py (commit abc), which differs in --extra"),
    ],
)
def test_a_config_with_wrong_values_is_one_clear_line(changes, message, tmp_path, fails):
    args = json.loads(json.dumps(dataclasses.asdict(driftql.args_for("bandit"))))
    write_config(tmp_path, args=args | changes)
    assert message in fails(driftql, "--resume", tmp_path)


def test_a_config_with_missing_keys_is_one_clear_line(tmp_path, fails):
    write_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("algo", "args", "dataset"):
        (tmp_path / "config.json").write_text(json.dumps({k: x for k, x in config.items() if k != key}))
        assert "config.json is damaged" in fails(driftql, "--resume", tmp_path)
    for key in DATASET:
        write_config(tmp_path, dataset={k: x for k, x in DATASET.items() if k != key})
        assert "config.json is damaged" in fails(driftql, "--resume", tmp_path)
    for content in ("{", "[]", "null", '{"algo": 1, "args": {}, "dataset": {}}'):
        (tmp_path / "config.json").write_text(content)
        assert "config.json is damaged" in fails(driftql, "--resume", tmp_path)
    del config["args"]["alpha"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "another version of driftql.py (commit abc), which differs in --alpha" in fails(
        driftql, "--resume", tmp_path
    )
    write_config(tmp_path, algo="fql")
    assert "made by fql.py" in fails(driftql, "--resume", tmp_path)


def test_python_code_is_checked_as_the_command_line_is():
    for changes, message in (
        ({"q_agg": "max"}, "--q-agg 'max' must be one of mean, min."),
        ({"kernel": "Laplace"}, "--kernel 'Laplace' must be one of laplace, gaussian."),
        ({"steps": 1e3}, "--steps 1000.0 must be of type int."),
        ({"alpha": "3"}, "--alpha '3' must be of type float."),
        ({"hidden_dims": 16}, "--hidden-dims 16 must be of type tuple[int, ...]."),
        ({"task": True}, "--task True must be of type int | None."),
    ):
        for use in (lambda x: driftql.args_for("bandit", **x), lambda x: driftql.main(driftql.Args(env="bandit", **x))):
            with pytest.raises(UserError, match=re.escape(message)):
                use(changes)


def test_python_code_may_give_numbers_of_numpy_lists_and_paths():
    given = {"alpha": np.float32(3), "seed": np.int64(3), "hidden_dims": [8, np.int32(9)], "runs_dir": Path("~/r")}
    args = driftql.args_for("bandit", **given)
    assert args == driftql.args_for("bandit", alpha=3.0, seed=3, hidden_dims=(8, 9), runs_dir=str(Path.home() / "r"))
    args.check()
    json.dumps(dataclasses.asdict(args))


def test_whole_numbers_are_decimal_ones_where_those_are_meant():
    """alpha=0 is --alpha 0, which is allowed."""
    args = driftql.args_for("bandit", alpha=0, discount=1)
    assert (repr(args.alpha), repr(args.discount), repr(args.steps)) == ("0.0", "1.0", "4000")
    args.check()


@dataclass(frozen=True)
class OwnArgs(cli.Args):
    log_std_min: float = -5.0
    shift: int = -1
    warmup: int = 0
    width: int = 8


def test_a_number_may_be_what_its_default_is():
    """Negative or 0; the others of one's own follow the house's rule."""
    OwnArgs().check()
    OwnArgs(log_std_min=-20.0, shift=-3, warmup=5).check()
    for changes, message in (
        ({"log_std_min": -math.inf}, "--log-std-min -inf must be a finite number."),
        ({"warmup": -1}, "--warmup -1 must be 0 or more."),
        ({"width": 0}, "--width 0 must be positive."),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            OwnArgs(**changes).check()


def test_a_copied_preset_of_another_algorithm_is_one_line():
    with pytest.raises(UserError, match="the preset of bandit has kernel, which Args does not"):
        cli.parse(OwnArgs, {"bandit": {"kernel": "laplace"}}, ["--env", "bandit"])


def test_a_changed_copy_with_the_name_of_a_script_is_refused(tmp_path):
    """Its runs would be taken for the original's, by the report and by load_policy."""
    copy = tmp_path / "driftql.py"
    shutil.copyfile(ROOT / "driftql.py", copy)
    args = [sys.executable, copy, "--env", "bandit", "--runs-dir", tmp_path / "runs"]
    done = subprocess.run(args, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"driftql: error: {copy} has the name of {ROOT / 'driftql.py'}, whose runs its own would be taken for; "
        f"rename it.\n"
    )
    assert not (tmp_path / "runs").exists()


def test_arguments_of_a_notebook_s_cell_are_one_line():
    """A run could not find them again."""
    cell = {"Args": cli.Args, "dataclass": dataclass, "__name__": "__main__"}
    exec("@dataclass(frozen=True)\nclass Mine(Args):\n    beta: float = 1.0", cell)
    cell["Mine"].__module__ = "a_notebook"
    with pytest.raises(UserError, match="must stand in a file"):
        cli.algorithm_name(cell["Mine"])


def test_resume_takes_the_arguments_of_the_run(tmp_path, fails):
    write_config(tmp_path)
    assert "--alpha from the run" in fails(driftql, "--resume", tmp_path, "--alpha", "3")
    args = cli.parse(
        driftql.Args, driftql.PRESETS, ["--resume", str(tmp_path), "--steps", "8e3", "--eval-workers", "1"]
    )
    assert args == dataclasses.replace(driftql.args_for("bandit"), resume=str(tmp_path), steps=8_000, eval_workers=1)


def test_an_interrupt_before_a_run_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop, cli.one_line_errors("driftql"):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_folder_that_one_may_not_enter_is_one_line(monkeypatch, capsys):
    def denied(path, **_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "exists", denied)  # as below another user's folder, up to Python 3.13
    with pytest.raises(SystemExit) as stop, cli.one_line_errors("driftql"):
        load_dataset("Pendulum-v1", dataset="/home/other/mine.npz")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "driftql: error: /home/other/mine.npz: Permission denied.\n"


@pytest.mark.parametrize("flag", ["--data-dir", "--dataset", "--resume"])
def test_a_home_that_there_is_not_is_one_line(flag, capsys):
    with pytest.raises(SystemExit) as stop, cli.one_line_errors("driftql"):
        driftql.main(parsed("--env", NAME, "--data", "cache", flag, "~nobody-of-us/x"))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "~nobody-of-us/x" in error and error.count("\n") == 1


def test_a_full_device_is_one_line_and_says_what_is_kept(tmp_path, monkeypatch, capsys):
    """In the middle of training, and before it."""
    args = tiny_args(driftql, runs_dir=str(tmp_path))
    compiled, calls = driftql.compile_over_seeds, []

    def filling(train, state, buffer):
        real, names = compiled(train, state, buffer)

        def train(state, buffer):
            calls.append(1)
            if len(calls) == 4:
                jnp.zeros(2**45)
            return real(state, buffer)

        return train, names

    monkeypatch.setattr(driftql, "compile_over_seeds", filling)
    with pytest.raises(SystemExit) as stop, cli.one_line_errors("driftql"):
        driftql.main(args)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Fewer --num-seeds or --grid values" in error and "is kept; go on with: python" in error
    with pytest.raises(SystemExit), cli.one_line_errors("driftql"):
        jnp.zeros(2**45)
    assert "driftql: error: Out of memory allocating" in capsys.readouterr().err
