"""Arguments: presets, flags, checks, and the message that a mistake gets."""

import dataclasses
import json
import math
import re
from importlib import import_module

import jax.numpy as jnp
import pytest
from helpers import NAME, tiny_args

import driftql
from common import UserError
from common import args as common_args
from common.args import BaseArgs, flag_of, validate
from common.runs import Run


def parsed(*argv):
    return common_args.parse(driftql.Args, driftql.PRESETS, list(argv))


OGBENCH = [(f"cube-double-play{x}", "cube-double-play") for x in ("", "-v0", "-singletask-v0", "-singletask-task3-v0")]


def test_the_preset_is_chosen_by_env_and_flags_win(capsys):
    """OGBench's task and D4RL's version may stand in the name."""
    for env, preset in [*OGBENCH, ("hopper-medium-replay-v2", "hopper-medium-replay"), ("antmaze-medium-navigate", "")]:
        args = parsed("--env", env, "--alpha", "7")
        expected = dataclasses.replace(driftql.Args(**driftql.PRESETS.get(preset, {})), alpha=7, env=env)
        assert args == dataclasses.replace(expected, log_every=args.log_every)
        assert ("alpha=7" in capsys.readouterr().out) == bool(preset)


def test_from_python_as_from_the_command_line(script):
    for env in ("bandit", "antmaze-large-navigate", f"{NAME}-singletask-task3-v0"):
        assert script.args_for(env) == common_args.parse(script.Args, script.PRESETS, ["--env", env])
    changed = script.args_for("bandit", batch_size=512, hidden_dims=(3, 4), log_every=250)
    argv = ["--env", "bandit", "--batch-size", "512", "--hidden-dims", "3", "4", "--log-every", "250"]
    assert changed == common_args.parse(script.Args, script.PRESETS, argv)
    laptop = script.args_for("cube-single-play", laptop=True)
    assert laptop == common_args.parse(script.Args, script.PRESETS, ["--env", "cube-single-play", "--laptop"])
    assert laptop == script.args_for("cube-single-play", laptop=True, **script.PRESETS["cube-single-play laptop"])
    with pytest.raises(UserError, match="--discount"):
        script.args_for("bandit", discount=1.5)


def test_log_interval_divides_what_is_asked_for():
    """Unless it is given. That of a preset is not: nobody asked for the bandit's 500. Counts may have an exponent."""
    for env in ("cube-double-play", "bandit"):
        for steps in (300, 400, 1_000_000):
            args = parsed("--env", env, "--steps", f"{steps}" if steps < 1000 else "1e6")
            assert all(x % args.log_every == 0 for x in (steps, args.eval_every, args.save_every))
            assert args == driftql.args_for(env, steps=steps)
    assert parsed("--env", "bandit").log_every == driftql.PRESETS["bandit"]["log_every"]
    assert parsed("--env", "cube-double-play", "--log-every", "2000").log_every == 2000


def test_help_names_every_argument(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stop:
        common_args.parse(script.Args, script.PRESETS, ["--env", "bandit", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(script.Args):
        assert re.search(rf"^\W*(--.*, )?{flag_of(field.name)}\b", text, re.MULTILINE), field.name
    assert f"(default: {script.PRESETS['bandit']['steps']})" in text  # the preset's values


# What is said of a mistake: command lines that make it.
MISTAKES = {
    "": "driftql --alhpa 3; driftql --lr 3; driftql stray; driftql --steps 1.5;"
    "driftql --steps 1e400; driftql --steps nan",
    "much": "driftql --alpha much",
    "cubic": "driftql --kernel cubic",
    "did you mean antmaze-large-navigate": "driftql --env antmaze-larg-navigate",
    "tasks 1 to 5": f"driftql --task 6 --env {NAME}",
    "must be a finite number, 1 or more": "driftql --steps -5; driftql --hidden-dims 64 -1; idql --actor-width 0",
    "must be a finite number, 0 or more": "driftql --seed -1; driftql --alpha -3 --grid discount=0.9; fql --alpha 1e39",
    "needs at least one value": "driftql --hidden-dims; driftql --grid",
    "must be positive": "driftql --temperature 0",
    "32-bit": "driftql --seed 4294967296",
    "must be a finite number": "driftql --alpha nan; driftql --learning-rate -1;"
    "drol --bc-coef nan; idql --sampling-temperature -1; diffusion_ql --critic-learning-rate inf",
    "must lie between 0 and 1": "driftql --discount 1.5; idql --expectile 1; fql --p-random 2;"
    "driftql --discount 1 --grid discount=1.5",
    "must be even": "idql --batch-size 33",
    "is not a multiple of --log-every 300": "driftql --steps 1000 --log-every 300",
    "there is no run": "driftql --resume nowhere; driftql --resume ~no-user/x",
    "is given twice": "driftql --grid=alpha=1 --grid=discount=0.9",
    "did you mean alpha?": "driftql --grid alhpa=1,3",
    "one program can have online_share, learning_rate, discount": "driftql --grid num-candidates=4,8",
    "for others there is tools/sweep.py": "driftql --grid kernel=laplace,gaussian",
    "write it as --grid alpha=1,3,10": "driftql --grid alpha; driftql --grid alpha=1,many",
    "may be there once": "driftql --grid alpha=1,1.0; driftql --grid alpha=1 alpha=3",
    "--alpha -3.0 must be a finite number, 0 or more": "driftql --alpha 1 --grid alpha=1,-3",
    "typo.npz does not exist": "driftql --dataset typo.npz --env MyEnvironment-v0",
    "--laptop has no settings for antmaze-giant-navigate": "fql --laptop --env antmaze-giant-navigate",
    "~no-user/x": f"driftql --data-dir ~no-user/x --data cache --env {NAME}",
}


@pytest.mark.parametrize(("words", "expected"), [(words, x) for x, y in MISTAKES.items() for words in y.split(";")])
def test_a_mistake_on_the_command_line_is_a_clear_message(words, expected, fails):
    script, *argv = words.split()
    error = fails(import_module(script), *([] if "--env" in argv else ["--env", "bandit"]), *argv)
    assert expected in error and argv[0].lstrip("-").partition("=")[0] in error


def test_a_number_of_your_own_may_be_what_its_default_is():
    """Negative or 0. Other numbers follow the usual rule."""
    fields = [("log_std_min", float, -5.0), ("shift", int, -1), ("warmup", int, 0), ("width", int, 8)]
    own = dataclasses.make_dataclass("OwnArgs", fields, bases=(BaseArgs,), frozen=True)
    validate(own(log_std_min=-20.0, shift=-3, warmup=5))
    for changes, message in (
        ({"log_std_min": -math.inf}, "--log-std-min -inf must be a finite number."),
        ({"warmup": -1}, "--warmup -1 must be a finite number, 0 or more."),
        ({"width": 0}, "--width 0 must be a finite number, 1 or more."),
    ):
        with pytest.raises(UserError, match=message):
            validate(own(**changes))
    with pytest.raises(UserError, match="the preset of bandit has kernel, which Args does not"):
        common_args.parse(own, {"bandit": {"kernel": "laplace"}}, ["--env", "bandit"])


def test_an_error_is_one_line_and_says_what_is_kept(tmp_path, monkeypatch, capsys):
    """Also where the device is full."""
    for error, code in ((KeyboardInterrupt(), 130), (PermissionError(13, "Permission denied", "/home/other"), 2)):
        with pytest.raises(SystemExit) as stop, common_args.one_line_errors("mine"):
            raise error
        assert stop.value.code == code
    assert capsys.readouterr().err == "\ninterrupted\nmine: error: /home/other: Permission denied.\n"
    real = Run.log
    monkeypatch.setattr(Run, "log", lambda run, x: (real(run, x), jnp.zeros(2 ** (45 * (run.step == 20)))))
    with pytest.raises(SystemExit) as stop, common_args.one_line_errors("driftql"):
        driftql.main(tiny_args(driftql, run_dir=str(tmp_path / "run")))
    error = capsys.readouterr().err
    assert (stop.value.code, error.startswith("driftql: error: Out of memory allocating")) == (2, True)
    assert "Fewer --num-seeds or --grid values" in error and f"--run-dir {tmp_path / 'run'} goes on" in error


def test_a_run_s_arguments_are_the_defaults_when_it_goes_on_unless_they_are_another_s(tmp_path, fails):
    common_args.write_config(tmp_path, driftql.args_for("bandit"), {"git_commit": "abc", "dataset": {}}, {})
    own = dataclasses.replace(driftql.args_for("bandit"), run_dir=str(tmp_path))
    for flag in ("--run-dir", "--resume"):
        changed = parsed(flag, str(tmp_path), "--steps", "8e3", "--eval-workers", "1")
        assert changed == dataclasses.replace(own, steps=8_000, eval_workers=1)
    assert parsed("--env", "bandit", "--run-dir", str(tmp_path), "--alpha", "2") == own  # the same command again
    config = json.loads((tmp_path / "config.json").read_text())
    del config["sha256"]  # as in older runs
    fewer = config | {"args": {name: x for name, x in config["args"].items() if name != "alpha"}}
    for content, message in (
        ([], "config.json is damaged"),
        (config | {"algo": "fql"}, "made by fql.py"),
        (fewer, "another version of driftql.py (commit abc), which differs in --alpha"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert message in fails(driftql, "--run-dir", tmp_path)
