"""What result.json and config.json say: the score, and what it depends on besides the arguments."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common import installed
from common.cli import Args, algorithm_name
from common.environments import PHYSICS
from common.grid import combination_name, combinations, results_by_combination
from common.transitions import Dataset


def make_result(args: Args, dataset: Dataset, evaluations: list[dict]) -> dict[str, Any]:
    """What result.json holds. evaluations: step, and name -> one value per member.

    With --grid, scores and evaluations stand under `grid`: of each combination its `values`, and what the result of a
    run with these alone would have."""
    parts = [(values, scores(args, dataset, part)) for values, part in by_combination(args, evaluations)]
    about = {
        "algo": algorithm_name(type(args)),
        "env": dataset.name,
        "task": dataset.task,
        "seeds": [args.seed + i for i in range(args.num_seeds)],
        "steps": evaluations[-1]["step"],
    }
    found = {"grid": [{"values": values} | part for values, part in parts]} if args.grid else parts[0][1]
    return about | found | circumstances(dataset)


def scores(args: Args, dataset: Dataset, evaluations: list[dict]) -> dict[str, Any]:
    """The benchmark's score of each seed: on OGBench the success of the last three evaluations, elsewhere of the last
    one. On D4RL it is the normalized return, and the return where the environment knows no success."""
    name = next(name for name in ("normalized", "success", "return") if name in evaluations[-1])
    trained = [evaluation for evaluation in evaluations if evaluation["step"] > 0]
    values = np.array([evaluation[name] for evaluation in trained])  # (evaluations, seeds)
    # Without the one at the end of a shorter run that was extended.
    regular = [evaluation["step"] % args.eval_every == 0 for evaluation in trained[:-1]] + [True]
    counted = values[regular][-3:] if dataset.task else values[-1:]
    score = counted.mean(axis=0)
    what = "normalized return 100 (R - min) / (max - min)" if name == "normalized" else name
    which = f"last {len(counted)} evaluations" if len(counted) > 1 else "last evaluation"
    return {
        "score": float(score.mean()),
        "score_per_seed": score.tolist(),
        "score_is": f"mean {what} of the {which}",
        "last_per_seed": values[-1].tolist(),
        "best_per_seed": values.max(axis=0).tolist(),
        "evaluations": evaluations,
    }


def by_combination(args: Args, evaluations: list[dict]) -> list[tuple[dict[str, float], list[dict]]]:
    """(values, evaluations) of each combination: of every list of one value per member, its part."""
    found = []
    for i, values in enumerate(combinations(args)):
        mine = slice(i * args.num_seeds, (i + 1) * args.num_seeds)
        found.append((values, [{k: x if k == "step" else x[mine] for k, x in each.items()} for each in evaluations]))
    return found


def score_lines(result: dict[str, Any]) -> list[str]:
    """What a person wants to know at the end: how good the policy is now, the protocol's number by its name, the best
    evaluation. With --grid a line per combination, the highest score marked."""
    found = results_by_combination(result)
    if "grid" not in result:
        return [score_line(result)]
    highest, width = (max(x) for x in zip(*((each["score"], len(combination_name(values))) for values, each in found)))
    return [
        f"{combination_name(values):{width}}  {score_line(each)}" + "  <- highest" * (each["score"] == highest)
        for values, each in found
    ]


def score_line(result: dict[str, Any]) -> str:
    """That of one combination."""
    last, best, name = np.mean(result["last_per_seed"]), np.mean(result["best_per_seed"]), result["score_is"].split()[1]
    spread = f" +- {np.std(result['score_per_seed']):.2g}" if len(result["seeds"]) > 1 else ""
    seeds = f", {len(result['seeds'])} seeds" if spread else ""
    score = f"score {result['score']:.3g}{spread} ({result['score_is']}{seeds})"
    return f"{name:7} {last:.3g} at the last evaluation; {score}; best {best:.3g}"


def circumstances(dataset: Dataset) -> dict[str, Any]:
    """What a result depends on besides the arguments, for config.json and result.json."""
    return {
        "dataset": dataset.describe(),
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "physics": PHYSICS,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "ogbench", "gymnasium", "mujoco")
    extra = ("h5py", "minari", "gymnasium-robotics")  # d4rl
    there = [name for name in extra if installed(name.replace("-", "_"))]
    return {"python": platform.python_version()} | {x: importlib.metadata.version(x) for x in (*packages, *there)}


def git_commit() -> str | None:
    """Commit of the checkout, with `+changes` if files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD").strip()
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    # Otherwise git says nothing about a checkout of another user's.
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def device_summary() -> str:
    """One line: device, versions, and a warning where a GPU lies idle."""
    device, v = jax.devices()[0], versions()
    line = f"{len(jax.devices())} x {device.device_kind}, jax {v['jax']}, ogbench {v['ogbench']}, python {v['python']}"
    if device.platform == "cpu" and Path("/proc/driver/nvidia/version").exists():
        line += "\nWARNING this machine has an NVIDIA GPU, but JAX runs on the CPU: uv pip install -e '.[cuda12]'"
    return line
