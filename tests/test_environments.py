"""Names, tasks and the environments themselves: OGBench's, any other, and the bandits."""

import os
import re
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from helpers import NAME, ROOT

from common import UserError
from common.environments import OGBENCH_NAMES, Bandit, make_ogbench_env, make_user_env, resolve_name

# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("env", "task", "expected"),
    [
        (NAME, None, (NAME, 1)),
        (f"{NAME}-v0", 3, (NAME, 3)),
        ("cube-double-play", None, ("cube-double-play", 2)),
        ("puzzle-4x4-play-singletask-v0", None, ("puzzle-4x4-play", 4)),
        ("antmaze-large-navigate-singletask-task5-v0", None, ("antmaze-large-navigate", 5)),
    ],
)
def test_short_names_and_full_ids(env, task, expected):
    assert resolve_name(env, task) == expected


def test_a_module_in_the_current_folder_may_register_an_environment(tmp_path, monkeypatch):
    (tmp_path / "reaching.py").write_text(
        "import gymnasium\ngymnasium.register('Reach-v0', 'gymnasium.envs.classic_control:PendulumEnv')"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert make_user_env("reaching:Reach-v0").observation_space.shape == (3,)


@pytest.mark.parametrize(
    "made",
    [
        "environments import make_raw_ogbench_env; make_raw_ogbench_env('pointmaze-medium-v0')",
        "d4rl_environments import make_env; make_env('hopper-medium', 'd4rl', 1000)",
    ],
)
def test_a_renderer_that_is_missing_is_one_line(made):
    """Also on a machine whose MUJOCO_GL names what this one has: MuJoCo refuses a name that it does not know, too."""
    program = f"from common import cli\nwith cli.one_line_errors('it'):\n    from common.{made}"
    env = os.environ | {"MUJOCO_GL": "none-such", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"it: error: MuJoCo .* MUJOCO_GL=none-such \(.*\); unset it; .*\n", done.stderr), done.stderr


def test_default_task_is_ogbenchs():
    """One environment of each domain, asked itself (0 means: the default)."""
    import ogbench  # noqa: F401

    for name in ("pointmaze-medium-navigate", "humanoidmaze-medium-navigate", "antsoccer-arena-navigate", "scene-play"):
        base = "-".join(name.split("-")[:-1])
        env = gymnasium.make(f"{base}-singletask-v0")
        env.reset(seed=0)
        assert resolve_name(name)[1] == env.unwrapped.cur_task_id, name
        env.close()


def test_every_name_has_an_environment():
    import ogbench  # noqa: F401

    for name in OGBENCH_NAMES:
        gymnasium.spec(f"{'-'.join(name.split('-')[:-1])}-singletask-task5-v0")


def test_success_is_computed_after_the_action():
    """The papers' OGBench 1.1.0 behaviour; newer versions default to before the action."""
    env = make_ogbench_env(NAME, 1)
    assert env.unwrapped._success_timing == "post"
    env.close()


def test_the_arms_environments_are_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        env = make_ogbench_env("cube-single-play", 1)
        env.reset(seed=0)
        env.step(np.zeros(5))
    env.close()


def test_a_name_that_ogbench_does_not_have():
    with pytest.raises(UserError, match="did you mean antmaze-large-navigate"):
        resolve_name("antmaze-larg-navigate")
    with pytest.raises(UserError, match="pixel"):
        resolve_name("visual-cube-single-play")
    with pytest.raises(UserError, match="tasks 1 to 5"):
        resolve_name(NAME, task=6)
    with pytest.raises(UserError, match="give one of them"):
        resolve_name(f"{NAME}-singletask-task2-v0", task=3)


def test_bandit_success_and_support():
    env = Bandit("bandit")
    for action, success, support in [((0.8, 0.1), 1, 1), ((0, -0.65), 1, 1), ((0, 0.8), 0, 1), ((0.5, 0.5), 0, 0)]:
        env.reset(seed=0)
        _, _, terminated, _, info = env.step(np.array(action))
        assert terminated
        assert (info["success"], info["support"]) == (success, support), action
