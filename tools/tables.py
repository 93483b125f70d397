"""What stands in the cells of the report's tables: scores with intervals, the papers' numbers, commands."""

import csv
import math
import shlex
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from read_runs import METRICS, NOT_SETTINGS, TITLES, Group, iqm_interval, mean_interval, presets, time_to_score
from shared import ROOT, duration

# OGBench's default task, on which its papers tune; 2 where the environment is not named here.
DEFAULT_TASKS = {"antmaze": "1", "humanoidmaze": "1", "antsoccer": "4", "puzzle": "4"}

# ------------------------------------------------------------------------------------------------- the papers' numbers


class Paper(NamedTuple):
    mean: float
    std: float | None
    seeds: str
    steps: str
    source: str


Papers = dict[tuple[str, str, str], Paper]
"""(environment, task: `1` to `5`, `mean` or empty, algorithm) -> the published score, in percent or as D4RL counts"""


def read_papers() -> Papers:
    with open(ROOT / "tools" / "paper_results.csv", newline="", encoding="utf-8") as file:
        return {
            (row["env"], row["task"], row["algo"]): Paper(
                float(row["mean"]), float(row["std"]) if row["std"] else None, row["seeds"], row["steps"], row["source"]
            )
            for row in csv.DictReader(file)
        }


def default_task(env: str) -> str:
    """Of an OGBench environment, as the papers' numbers name it."""
    return DEFAULT_TASKS.get(env.split("-")[0], "2")


# --------------------------------------------------------------------------------------------------------------- ours


def score_text(group: Group) -> str:
    """`63.0 [51.2, 74.8]`; the mean alone for one seed."""
    return interval_text(*mean_interval(group.scores, group.bounds))


def interval_text(value: float, low: float, high: float) -> str:
    return f"{value:.1f}" + ("" if math.isnan(low) else f" [{low:.1f}, {high:.1f}]")


def paper_text(paper: Paper | None) -> str:
    if paper is None:
        return ""
    return f"{paper.mean:g}" + (f" ± {paper.std:g}" if paper.std is not None else "")


def updates(group: Group) -> int:
    """Gradient steps of the runs; they are part of the settings, so the runs of a group share them."""
    return group.seeds[0].result["steps"]


def reach_text(group: Group, threshold: float) -> str:
    """`120,000 updates, 45 min (3 of 4 seeds)`."""
    if group.metric == "return":  # of any size
        return ""
    reached = time_to_score(group, threshold)
    if reached is None:
        return "not reached"
    number, steps, seconds = reached
    return f"{steps:,.0f} updates, {duration(seconds)} ({number} of {len(group.seeds)} seeds)"


def hardware(group: Group) -> str:
    return "; ".join(sorted({str(seed.result.get("device")) for seed in group.seeds}))


def command(config: dict) -> str:
    """The command line that gives a run with this config.json: what differs from the script's preset."""
    args, algo = config["args"], config["algo"]
    preset = presets(algo, args["env"])
    words = ["python", f"{algo}.py", "--env", args["env"]]
    rest = [name for name in args if name not in NOT_SETTINGS]
    for name in ["task", "seed", "num_seeds", "grid", "dataset", "data", "collect_episodes", *rest]:
        value = args.get(name)
        if value is None or (name in preset and value == preset[name] and name != "seed"):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            # A file's folder is the affair of the machine on which it ran.
            value = Path(value).name if name == "dataset" else value
            words += [f"--{flag}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return shlex.join(words)


def find_paper(papers: Papers, group: Group) -> Paper | None:
    """The published score for a group's task, whatever settings the group has; none for data of another origin."""
    return papers.get((group.env, str(group.task or ""), group.algo)) if group.comparable else None


def aggregates(groups: list[Group]) -> list[list[str]]:
    """Rows (algorithm, data, settings, tasks, seeds, score, IQM, mean) over two or more tasks run in the same way."""
    alike = defaultdict(list)
    for group in groups:
        if group.metric != "return":
            alike[group.title, group.data, group.settings_text, group.metric].append(group)
    rows = []
    for (title, data, settings, metric), members in alike.items():
        if len(members) < 2:
            continue
        scores = [group.scores for group in members]
        tasks = ", ".join(group.place for group in members)
        seeds = ", ".join(str(len(each)) for each in scores)
        mean = np.mean([each.mean() for each in scores])
        iqm = interval_text(*iqm_interval(scores))
        rows.append([title, data, settings, f"{len(scores)}: {tasks}", seeds, METRICS[metric], iqm, f"{mean:.1f}"])
    return rows


def benchmark(groups: list[Group], papers: Papers) -> tuple[list[list[str]], list[Group]]:
    """OGBench's default tasks x algorithms, header first: score and number of seeds, empty where nothing was run on
    official data with the script's preset. And the groups that stand in no cell."""
    tasks = [(env, task) for env, task in dict.fromkeys((env, task) for env, task, _ in papers) if task.isdigit()]
    cells = {
        (group.env, str(group.task), group.algo): group for group in groups if group.official and not group.settings
    }
    rows, shown = [["", *TITLES.values()]], set()
    for env, task in tasks:
        if task == default_task(env):
            found = [cells.get((env, task, algo)) for algo in TITLES]
            rows.append([env, *(f"{score_text(group)}, {_seeds(group)}" if group else "" for group in found)])
            shown |= {id(group) for group in found}
    return rows, [group for group in groups if id(group) not in shown]


# --------------------------------------------------------------------------------------------------------------- rows

LIST_HEADER = ["environment", "algorithm", "ours", "paper", "data", "settings", "seeds", "updates"]


def _seeds(group: Group) -> str:
    return f"{len(group.seeds)} seed{'s' if len(group.seeds) > 1 else ''}"


def list_row(group: Group, papers: Papers) -> list[str]:
    """One row under LIST_HEADER, as plain text."""
    ours, paper = score_text(group), paper_text(find_paper(papers, group))
    return [
        group.place,
        group.title,
        ours if group.metric == "success" else f"{ours} ({METRICS[group.metric]})",
        f"{paper} (official data)" if paper and not group.official else paper,
        group.data,
        group.settings_text,
        str(len(group.seeds)),
        f"{updates(group):,}",
    ]
