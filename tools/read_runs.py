"""Run directories as they lie on the disk, for the other tools, and the statistics over their seeds."""

import contextlib
import dataclasses
import functools
import importlib
import json
import math
import os
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats
from shared import ROOT, last_step, read_json

from common import UserError
from common.files import lock
from common.grid import combination_name, results_by_combination

TITLES = {"driftql": "DriftQL", "fql": "FQL", "drol": "DROL", "diffusion_ql": "Diffusion-QL", "idql": "IDQL"}
# What a score may be, the first that a run was evaluated for, and how it is called. In result.json, success is a share.
METRICS = {"normalized": "normalized return", "success": "success, %", "return": "return"}
# What no score depends on, or what stands in a column of its own.
NOT_SETTINGS = {
    "env", "task", "data", "data_dir", "dataset", "collect_episodes", "seed", "num_seeds", "log_every",
    "eval_workers", "save_every", "runs_dir", "resume", "track", "capture_video", "progress", "grid",
}  # fmt: skip
SIZES = {
    "steps", "batch_size", "critic_batch_size", "hidden_dims", "actor_width", "num_candidates", "num_samples",
    "eval_episodes",
}  # fmt: skip
SOURCES = {
    "official": "official", "builtin": "built in", "collected": "collected here, not official",
    "unverified": "unverified file", "user": "own file", "d4rl": "D4RL by its name",
    "minari": "Minari, not D4RL's files",
}  # fmt: skip
OFFICIAL = ("official", "builtin", "d4rl")
OTHER_DATA = ("user", "minari")  # of the same name at most: a paper's number says nothing about them

# ---------------------------------------------------------------------------------------------------- reading the runs


class Seed(NamedTuple):
    """One seed of one finished run, with --grid of one combination."""

    run: Path
    config: dict
    result: dict  # as a run of this combination alone would have written it
    seed: int
    score: float  # as in result.json
    curve: list[tuple[int, float]]  # (gradient step, score)


class Group(NamedTuple):
    """The seeds that were trained in the same way on the same data: one number of a table, one line of a plot."""

    algo: str
    env: str
    task: int | None
    source: str  # of the data, one of SOURCES
    words: str  # what the data are
    settings: dict  # what differs from the script's preset
    smaller: tuple[str, ...]  # those of them that are sizes below the preset's
    metric: str  # one of METRICS
    seeds: list[Seed]
    digest: str = ""  # beginning of the data's sha256, where the words are those of other data too

    @property
    def data(self) -> str:
        return f"{self.words}, sha256 {self.digest}" if self.digest else self.words

    @property
    def reduced(self) -> bool:
        return bool(self.smaller)

    @property
    def title(self) -> str:
        return TITLES.get(self.algo, self.algo)

    @property
    def place(self) -> str:
        return f"{self.env} task {self.task}" if self.task else self.env

    @property
    def settings_text(self) -> str:
        text = ", ".join(f"{name.replace('_', '-')} {setting_text(value)}" for name, value in self.settings.items())
        what = "reduced" if self.reduced else "changed" if presets(self.algo, self.env) else "of a script not here"
        text = f"{what}: {text}" if text else "preset"
        counted = sum(evaluation["step"] > 0 for evaluation in self.seeds[0].result["evaluations"])
        return text if counted > 2 or not self.task else f"{text}; score of {counted} evaluation{'s' * (counted > 1)}"

    @property
    def official(self) -> bool:
        """Whether the data are those of the benchmark, as the papers' are."""
        return self.source in OFFICIAL

    @property
    def comparable(self) -> bool:
        """Whether a paper's number may stand beside the score, with a remark if the data are not official."""
        return self.metric != "return" and self.source not in OTHER_DATA

    @property
    def scores(self) -> np.ndarray:
        """(seeds,) success in percent, or a return."""
        return np.array([seed.score for seed in self.seeds]) * self.scale

    @property
    def scale(self) -> float:
        return 100.0 if self.metric == "success" else 1.0

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which a score must lie. A normalized return may be negative, or more than 100."""
        return (0, 100) if self.metric == "success" else (-math.inf, math.inf)


def setting_text(value) -> str:
    """A value of the command line for the eye: `256 256`, `300,000`."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def read_runs(folder: Path) -> tuple[list[Group], list[tuple[Path, str]]]:
    """All runs below `folder`: the groups of the finished ones, and (directory, reason) of what is left out.

    Raises UserError if there is no run below it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder.")
    members: dict[tuple, dict[int, Seed]] = defaultdict(dict)  # key of the group -> its seeds
    repeated: dict[tuple[Path, Path], list[str]] = defaultdict(list)  # older and newer run -> seeds that both have
    left_out = []
    directories = _directories(folder)
    if not directories:
        raise UserError(f"there is no run directory in {folder}.")
    for run in directories:
        read = _read_run(run)
        if isinstance(read, str):
            left_out.append((run, read))
            continue
        for key, seed in read:
            older = members[key].get(seed.seed)
            if older and _time(older) > _time(seed):
                seed, older = older, seed
            if older:
                combination = combination_name(older.result.get("values", {}))
                repeated[older.run, seed.run].append(f"{seed.seed}{f' of {combination}' * bool(combination)}")
            members[key][seed.seed] = seed
    for (run, newer), twice in repeated.items():
        left_out.append((run, f"seed {', '.join(twice)}: ran again with the same settings and data, {newer.name}"))
    groups = _tell_apart([_group(key, [found[seed] for seed in sorted(found)]) for key, found in members.items()])
    order = {algo: i for i, algo in enumerate(TITLES)}
    groups.sort(key=lambda g: (g.env, g.task or 0, g.data, order.get(g.algo, 99), g.algo, natural(g.settings_text)))
    return groups, sorted(left_out)


def natural(text: str) -> list[tuple[float, str]]:
    """Sort key that puts `alpha 30` before `alpha 100`."""
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", text)
    return [(float(part), "") if part[0].isdigit() else (math.inf, part) for part in parts]


def _directories(folder: Path) -> list[Path]:
    """Run directories, and the folders of a sweep's jobs that left none."""
    found = []
    for path, folders, files in os.walk(folder):
        folders.sort()
        if {"config.json", "result.json", "metrics.csv", "checkpoint.msgpack"} & set(files):
            found.append(Path(path))
            folders.clear()
        elif "job.json" in files:
            folders[:] = [name for name in folders if "__" in name]
            if not folders and (read_json(Path(path) / "job.json") or {}).get("attempts"):
                found.append(Path(path))
        elif Path(path).name.count("__") == 3 and not folders and not files:
            found.append(Path(path))
    return found


def _time(seed: Seed) -> str:
    """When the run began, from its name: the files' times do not survive a checkout."""
    return seed.run.name.rpartition("__")[2]


def _read_run(run: Path) -> list[tuple[tuple, Seed]] | str:
    """Each seed, with the key of its group; or why the run is left out."""
    if (attempts := (read_json(run / "job.json") or {}).get("attempts")) is not None:
        reason = attempts[-1]["reason"] or "it left none"
        return "running, at its start" if _held(run / "lock") else f"failed before there was a run: {reason}"
    config, result = read_json(run / "config.json"), read_json(run / "result.json")
    if config is None:
        return "damaged: config.json cannot be read" if (run / "config.json").exists() else "foreign: no config.json"
    if not isinstance(config.get("algo"), str) or not isinstance(config.get("args"), dict):
        return "foreign: config.json is not of these scripts"
    if wrong := _wrong_arguments(config["args"]):
        return f"damaged: config.json has no {wrong} that a run could have"
    if result is None:
        if (run / "result.json").exists():
            return "damaged: result.json cannot be read"
        return _why_unfinished(run, config)
    try:
        return [x for values, part in results_by_combination(result) for x in _seeds(run, config, values, part)]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration) as error:
        return f"damaged: result.json is not complete ({type(error).__name__}: {error})"


def _wrong_arguments(args: dict) -> str | None:
    """The first argument that is needed here and is of the wrong type."""
    types: dict[str, type] = {"env": str, "seed": int, "steps": int}
    needed = [name for name, kind in types.items() if not isinstance(args.get(name), kind)]
    known = {name: args[name] for name in SIZES & args.keys() if (name, args[name]) != ("actor_width", None)}
    sizes = [name for name, value in known.items() if not isinstance(value, (int, float, list))]
    return next(iter(needed + sorted(sizes)), None)


def _why_unfinished(run: Path, config: dict) -> str:
    step, steps = last_step(run), config["args"]["steps"]
    where = f"at step {step:,} of {steps:,}"
    attempts = (read_json(run.parent / "job.json") or {}).get("attempts") or [{}]
    if attempts[-1].get("reason"):
        return f"not finished, {where}: {attempts[-1]['reason']}"
    return f"running, {where}" if _held(run) else f"not finished, {where}: interrupted or failed"


def _held(path: Path) -> bool:
    """Whether a process holds the lock of this folder or file."""
    with contextlib.ExitStack() as files:
        return path.exists() and not lock(path, files)


def _seeds(run: Path, config: dict, values: dict, result: dict) -> list[tuple[tuple, Seed]]:
    """Of one combination. values: those of --grid; result: as a run of them alone would have written it."""
    metric = next(name for name in METRICS if name in result["evaluations"][-1])
    data, settings = result["dataset"], changed_settings(result["algo"], result["env"], config["args"] | values)
    # With the source: one's own file may be a copy of an official one, but nothing in the run says so.
    data_key = (str(data.get("source")), data.get("sha256"))
    key = (result["algo"], result["env"], result["task"], data_key, json.dumps(settings), metric)
    seeds = []
    for i, (seed, score) in enumerate(zip(result["seeds"], result["score_per_seed"], strict=True)):
        curve = [(evaluation["step"], float(evaluation[metric][i])) for evaluation in result["evaluations"]]
        if not all(map(math.isfinite, (score, result["steps"], result["updates_per_second"], result["wall_seconds"]))):
            raise ValueError("a number is not finite")
        seeds.append((key, Seed(run, config, result, seed, float(score), curve)))
    return seeds


def _group(key: tuple, seeds: list[Seed]) -> Group:
    algo, env, task, (source, _), settings, metric = key
    data, settings = seeds[0].result["dataset"], json.loads(settings)
    preset = presets(algo, env)
    sizes = [name for name in settings if name in SIZES and None not in (settings[name], preset.get(name))]
    smaller = tuple(name for name in sizes if _size(settings[name]) < _size(preset[name]))
    return Group(algo, env, task, source, describe_data(data), settings, smaller, metric, seeds)


def _tell_apart(groups: list[Group]) -> list[Group]:
    """With a digest where data of the same words are not the same."""
    digests = [str(group.seeds[0].result["dataset"].get("sha256")) for group in groups]
    alike = defaultdict(set)
    for group, digest in zip(groups, digests):
        alike[group.place, group.words].add(digest)
    return [
        group._replace(digest=digest[:6]) if len(alike[group.place, group.words]) > 1 else group
        for group, digest in zip(groups, digests)
    ]


def _size(value) -> float:
    return sum(value) if isinstance(value, (list, tuple)) else value


def describe_data(dataset: dict) -> str:
    """`collected here, not official, 200 episodes, 20% random actions`, from the dataset's record in a run."""
    source, collection = str(dataset.get("source")), dataset.get("collection") or {}
    words = [SOURCES.get(source, source)]
    if source == "user":
        words[0] += f" {Path(dataset['path']).name}"
    if collection.get("episodes") != collection.get("official_episodes"):
        words.append(f"{collection['episodes']:,} episodes")
    if collection.get("p_random_action"):
        words.append(f"{collection['p_random_action']:.0%} random actions")
    return ", ".join(words)


def random_share(group: Group) -> float:
    """Share of the data's actions that were replaced by random ones when the data were collected."""
    return (group.seeds[0].result["dataset"].get("collection") or {}).get("p_random_action") or 0.0


def changed_settings(algo: str, env: str, args: dict) -> dict:
    """The arguments that differ from what the script takes for this environment if nothing is said."""
    preset = presets(algo, env)
    names = [name for name in args if name not in NOT_SETTINGS]
    return {name: args[name] for name in names if name not in preset or args[name] != preset[name]}


def script_is_here(algo: str) -> bool:
    """Whether it stands at the root or, as one's own may, in the current folder."""
    return any((folder / f"{algo}.py").exists() for folder in (ROOT, Path.cwd()))


@functools.cache
def presets(algo: str, env: str) -> dict:
    """Arguments of the script for an environment, defaults included; empty for a script that is not here."""
    if not script_is_here(algo):
        return {}
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only tables are read; another process may use the GPU
    try:
        script = importlib.import_module(algo)
        values = dataclasses.asdict(script.args_for(env, log_every=1))  # not compared; to choose one would start JAX
    except Exception as error:  # one's own script may be half written, or another file of that name
        print(f"NOTE    {algo}.py has no presets to compare with ({type(error).__name__}: {error})", file=sys.stderr)
        return {}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


# ---------------------------------------------------------------------------------------------------------- statistics


def mean_interval(values: np.ndarray, bounds: tuple[float, float] = (-np.inf, np.inf)) -> tuple[float, float, float]:
    """Mean of (n,) values and its 95% interval, Student's t, cut to what is possible. NaN for the interval of one."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))
    return mean, max(mean - half, bounds[0]), min(mean + half, bounds[1])


def iqm_interval(tasks: list[np.ndarray], samples: int = 5_000) -> tuple[float, float, float]:
    """Interquartile mean over the scores of all tasks, (seeds,) each, and its 95% interval by stratified bootstrap:
    seeds are drawn within each task (arXiv 2108.13264). NaN for the interval where a task has one seed.

    As rliable computes it, which we do not use: archived in 2025, with dependencies of fixed old versions, and it
    needs the same number of seeds for every task.
    """
    value = float(scipy.stats.trim_mean(np.concatenate(tasks), 0.25))
    if any(len(scores) < 2 for scores in tasks):
        return value, math.nan, math.nan
    rng = np.random.default_rng(0)
    drawn = np.concatenate([rng.choice(scores, (samples, len(scores))) for scores in tasks], axis=1)
    low, high = np.percentile(scipy.stats.trim_mean(drawn, 0.25, axis=1), [2.5, 97.5])
    return value, float(low), float(high)


def time_to_score(group: Group, threshold: float) -> tuple[int, float, float] | None:
    """When an evaluation first reaches `threshold` (in the score's unit): (seeds that do, their median of gradient
    steps, their median of training seconds, all seeds of a run together); None if none does."""
    reached = []
    for seed in group.seeds:
        steps = [step for step, value in seed.curve if step > 0 and value * group.scale >= threshold]
        if steps:
            reached.append((steps[0], steps[0] / (seed.result["updates_per_second"] or math.nan)))
    if not reached:
        return None
    steps, seconds = np.median(np.array(reached), axis=0)
    return len(reached), float(steps), float(seconds)


def mean_curve(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Gradient steps at which all seeds were evaluated, (n,), and mean, low and high end of the interval, (n, 3)."""
    curves = [dict(seed.curve) for seed in group.seeds]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = [np.array([curve[step] for curve in curves]) * group.scale for step in steps]
    return np.array(steps), np.array([mean_interval(value, group.bounds) for value in values]).reshape(-1, 3)
