"""What README.md and docs/own-algorithm.md show: take the algorithm out of a script, change its `load`."""

import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers import CHEAP, NAME, ROOT, launch_in_process, result_of, tiny_args, tiny_flags, wait_for

from common import checkpoints, states
from common.data import load_dataset
from common.runs import Run

BEFORE = """
import sys
sys.path.insert(0, ".")
sys.modules |= dict.fromkeys({others})
import numpy as np
rng, losses = np.random.default_rng(0), []
observations, actions = rng.normal(size=(500, 3)), rng.uniform(-1, 1, (500, 2))
terminals = np.arange(500) % 5 == 4
arrays = dict(observations=observations, actions=actions, masks=1 - terminals, terminals=terminals)
arrays["rewards"] = 3 + observations[:, 0] - abs(actions[:, 1])
"""
AFTER = """
assert losses[-1] < 0.5 * losses[0], losses
assert actions.shape == (500, 2)
ours = [module.__file__ for module in sys.modules.values() if module and module.__name__.startswith("common.")]
assert len(ours) == 2 and all(file.startswith(sys.argv[1]) for file in ours), ours
"""
OTHERS = ["ogbench", "gymnasium", "tyro", "mujoco", "tensorboardX", "tqdm", "cloudpickle", "matplotlib", *(
    f"common.{path.stem}" for path in (ROOT / "common").iterdir() if path.stem not in ("critics", "buffers", "__init__")
)]  # fmt: skip


def test_the_algorithm_can_be_taken_out(script, tmp_path):
    """By the README's commands and example: the part above the cut and two files learn from NumPy arrays where nothing
    else can be imported. The base class of the arguments is all that has to be written."""
    name, readme = script.__name__, (ROOT / "README.md").read_text()
    section = readme.partition("## Read a script, and take it out")[2].partition("\n## ")[0]
    (bash, python), elsewhere = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL), tmp_path / "elsewhere"
    commands = bash.replace("driftql", name).replace("elsewhere", str(elsewhere))
    subprocess.run(["bash", "-ec", commands], cwd=ROOT, check=True)
    old, new = re.search(r"replace `(.*?)` by `(.*?)`", section).groups()
    source = (elsewhere / f"my_{name}.py").read_text()
    assert source.count(f"\n{old}\n") == 1
    (elsewhere / f"my_{name}.py").write_text(source.replace(old, new))
    settings = {"hidden_dims": (32, 32), "learning_rate": 1e-3, "discount": 0.1} | CHEAP[name]
    for shown, small in {
        "my_driftql": f"my_{name}",
        "hidden_dims=(256, 256), alpha=10": f"**{settings!r}",
        "observation_dim=29, action_dim=8": "observation_dim=3, action_dim=2",
        "batch_size=256, num_updates=1_000": "batch_size=32, num_updates=100",
        "range(100)": "range(5)",
        "buffer=buffer)\n": 'buffer=buffer)\n    losses.append(metrics["losses/critic"])\n',
    }.items():
        assert python.count(shown) == 1
        python = python.replace(shown, small)
    program = BEFORE.replace("{others}", repr(OTHERS)) + python + AFTER
    subprocess.run([sys.executable, "-I", "-c", program, elsewhere], cwd=elsewhere, check=True)


@pytest.fixture
def changed(tmp_path, data_dir):
    """changed(name, number): docs/own-algorithm.md's diff applied to DriftQL, as a module, and the flags of a short run
    on the small maze."""

    def apply(name: str, number: int):
        diff = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "own-algorithm.md").read_text(), re.DOTALL)[number]
        path = tmp_path / "driftql.py"
        path.write_text((ROOT / "driftql.py").read_text())
        subprocess.run(["patch", "-p1", "--fuzz=0"], input=diff, cwd=tmp_path, text=True, check=True)
        return checkpoints.import_script(name, path.rename(tmp_path / f"{name}.py")), [
            *tiny_flags("driftql", NAME, steps=20, eval_every=10, save_every=10, eval_episodes=1),
            *("--data-dir", data_dir, "--run-dir", tmp_path / "run"),
        ]

    return apply


def test_n_step_returns_as_in_the_document(changed, data_dir):
    script, flags = changed("with_n_step", 0)
    data = load_dataset(NAME, data_dir=str(data_dir))
    ours = script.load(tiny_args(script, NAME, data_dir=str(data_dir), n_step=3, discount=0.9))
    start, end = data.rows[0], data.rows[99]  # of a trajectory that never reaches the goal: -1 at each step
    np.testing.assert_allclose(ours.rewards[[start, end]], [-(1 + 0.9 + 0.81), -1])
    np.testing.assert_allclose(ours.masks[[start, end]], [0.81, 1])
    np.testing.assert_array_equal(ours.next_observations[[start, end]], data.observations[[start + 3, end + 1]])
    assert result_of(launch_in_process(script, *flags, "--n-step", 3))["steps"] == 20


def test_action_chunks_as_in_the_document_train_go_on_and_are_played(changed, tmp_path, monkeypatch):
    script, flags = changed("chunked", 1)
    real = Run.log

    def log(run, metrics):
        real(run, metrics)
        if run.step == 10:
            signal.raise_signal(signal.SIGTERM)
            wait_for(lambda: run.signals.number)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), monkeypatch.context() as patch:
        patch.setattr(Run, "log", log)
        launch_in_process(script, *flags)
    assert signal.getsignal(signal.SIGTERM) == before
    assert states.load(tmp_path / "run")["about"]["step"] == 10
    run = launch_in_process(script, "--run-dir", tmp_path / "run")
    last = result_of(run)["evaluations"][-1]
    assert (result_of(run)["dataset"]["action_dim"], last["step"]) == (10, 20)
    assert last["length"][0] <= 200  # OGBench's 1,000 steps by fives
    play = [sys.executable, ROOT / "tools" / "play.py", run, "--script", tmp_path / "chunked.py"]
    played = subprocess.run(play, capture_output=True, text=True, cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    assert "chunked on" in played.stdout
    assert all(f"{name} {last[name][0]:.4g} " in played.stdout for name in ("return", "length"))
