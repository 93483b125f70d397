"""The report and the pictures of finished runs: what is counted, how it is labelled, what is left out and why."""

import contextlib
import csv
import dataclasses
import importlib
import json
import math
import os
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, make_dataset

sys.path.insert(0, str(ROOT / "tools"))

import curves
import read_runs
import report
from read_runs import iqm_interval, mean_interval
from tables import aggregates, command, find_paper, reach_text, read_papers

from common import UserError, d4rl
from common.cli import one_line_errors
from common.files import lock
from common.results import make_result
from common.runs import EVALUATED, make_directory

VERSIONS = {"python": "3.11.0", "jax": "0.6"}
COLLECTED = {"source": "collected", "sha256": "c" * 64, "transitions": 1_000_000}
COLLECTED["collection"] = {"episodes": 1000, "official_episodes": 1000, "p_random_action": 0.0}
OFFICIAL = {"source": "official", "sha256": "0" * 64, "transitions": 1_000_000, "collection": None}


def make_run(
    folder: Path,
    algo="driftql",
    env="antmaze-large-navigate",
    task=1,
    seeds=(0,),
    finals=None,
    data=OFFICIAL,
    changes=None,
) -> Path:
    """A run directory as a script leaves it. finals: score per entry of `seeds`; changes: to the preset."""
    changes = changes or {}
    args = (
        read_runs.presets(algo, env)
        | {"env": env, "task": task, "seed": seeds[0], "num_seeds": len(seeds), "runs_dir": "/machine/runs"}
        | changes
    )
    finals = np.array(finals if finals is not None else [0.5] * len(seeds))
    steps = [args["steps"] * i // 5 for i in range(6)]
    evaluations = [
        {
            "step": step,
            "success": (finals * min(1, i / 3)).tolist(),
            "return": [0.0] * len(seeds),
            "length": [1.0] * len(seeds),
        }
        for i, step in enumerate(steps)
    ]
    dataset = {"name": env, "path": "/machine/data/file.npz"} | data
    config = {
        "algo": algo,
        "args": args,
        "dataset": dataset,
        "device": "1 x H100",
        "versions": VERSIONS,
        "git_commit": "abc",
    }
    result = {
        "algo": algo, "env": env, "task": task, "seeds": list(seeds), "steps": args["steps"],
        "score": float(finals.mean()), "score_per_seed": finals.tolist(), "evaluations": evaluations,
        "score_is": "mean success of the last 3 evaluations", "updates_per_second": 100.0, "wall_seconds": 4000.0,
        "dataset": dataset, "device": "1 x H100", "versions": VERSIONS, "git_commit": "abc",
    }  # fmt: skip
    path = folder / f"{env}-task{task}__{algo}__{seeds[0]}__{time.time_ns()}"
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "result.json").write_text(json.dumps(result))
    (path / "metrics.csv").write_text("step,seed,eval/success\n" + "".join(f"{step},0,0.5\n" for step in steps))
    return path


def make_d4rl_run(folder: Path, env="hopper-medium", source="d4rl", scores=(50.0,), **changes) -> Path:
    """A run directory of driftql.py, written by the functions that a run calls. scores: of seeds 0, 1, ..."""
    script = importlib.import_module("driftql")
    args = script.args_for(env, num_seeds=len(scores), runs_dir=str(folder), **changes)
    about = {"name": "-".join(d4rl.resolve(env)), "source": source, "path": "/machine/file.hdf5", "sha256": "e" * 64}
    tiny = make_dataset(np.zeros((3, 4)), np.zeros((3, 2)), np.zeros(3), np.ones(3), np.zeros(3))
    dataset = dataclasses.replace(tiny, **about, reference=d4rl.TASKS[env].reference)
    evaluations = [
        {name: [x * i / 2 for x in scores] if name == "normalized" else [0.25] * len(scores) for name in EVALUATED}
        | {"step": args.steps * i // 2}
        for i in range(3)
    ]
    path = make_directory(args, dataset)
    result = make_result(args, dataset, evaluations) | {"updates_per_second": 100.0, "wall_seconds": 20.0}
    (path / "result.json").write_text(json.dumps(result))
    return path


def unfinished(folder: Path, step: int) -> Path:
    path = make_run(folder)
    (path / "result.json").unlink()
    (path / "metrics.csv").write_text(f"step,seed\n{step},0\n")
    return path


# -------------------------------------------------------------------------------------------------- what is read, how


def test_seeds_of_several_runs_are_one_group(tmp_path):
    make_run(tmp_path, seeds=(0, 1), finals=(0.2, 0.4))
    make_run(tmp_path / "deeper" / "still", seeds=(2,), finals=(0.9,))
    ((group,), left_out) = read_runs.read_runs(tmp_path)
    assert not left_out
    assert group.scores == pytest.approx([20, 40, 90])


def test_data_settings_and_tasks_are_never_mixed(tmp_path):
    make_run(tmp_path)
    make_run(tmp_path, task=2)
    make_run(tmp_path, data=COLLECTED)
    make_run(tmp_path, data=COLLECTED | {"source": "unverified", "sha256": "d" * 64})
    make_run(tmp_path, changes={"steps": 300_000, "hidden_dims": [256] * 3})
    make_run(tmp_path, changes={"alpha": 30.0})
    groups, _ = read_runs.read_runs(tmp_path)
    assert len(groups) == 6
    labels = {(group.data, group.official, group.reduced, group.settings_text) for group in groups if group.task == 1}
    assert labels == {
        ("official", True, False, "preset"),
        ("collected here, not official", False, False, "preset"),
        ("unverified file", False, False, "preset"),
        ("official", True, True, "reduced: steps 300,000, hidden-dims 256 256 256"),
        ("official", True, False, "changed: alpha 30"),
    }


def test_a_smaller_actor_is_a_reduced_setting(tmp_path):
    make_run(tmp_path, "idql", changes={"actor_width": 128, "critic_batch_size": 256})
    make_run(tmp_path, "idql", env="cube-single-play", task=2, changes={"actor_width": 128})  # the preset's is None
    make_run(tmp_path, "idql", env="cube-single-play", task=2)
    groups, out = read_runs.read_runs(tmp_path)
    smaller = [(group.smaller, group.settings_text) for group in groups]
    reduced = ("actor_width",), "reduced: actor-width 128"
    assert sorted(smaller) == [((), "changed: actor-width 128"), ((), "preset"), reduced] and not out


def test_data_of_the_same_words_that_differ_are_told_apart(tmp_path):
    for digest in "ab":
        make_run(tmp_path, data={"source": "user", "path": f"/{digest}/my.npz", "sha256": digest * 64})
    make_run(tmp_path, task=2, data={"source": "user", "path": "/c/my.npz", "sha256": "c" * 64})
    groups, _ = read_runs.read_runs(tmp_path)
    assert [group.data for group in groups] == [
        "own file my.npz, sha256 aaaaaa", "own file my.npz, sha256 bbbbbb", "own file my.npz"
    ]  # fmt: skip


def test_a_script_that_cannot_be_imported_has_no_presets(tmp_path, monkeypatch, capsys):
    (tmp_path / "half_written.py").write_text("def main(")
    run = make_run(tmp_path / "runs")
    for name in ("config.json", "result.json"):
        (run / name).write_text((run / name).read_text().replace('"driftql"', '"half_written"'))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    read_runs.presets.cache_clear()
    ((group,), _) = read_runs.read_runs(tmp_path / "runs")
    assert group.settings_text.startswith("of a script not here: steps 1,000,000, ")
    assert "NOTE    half_written.py has no presets to compare with (SyntaxError: " in capsys.readouterr().err


def test_a_score_of_fewer_evaluations_than_three_says_so(tmp_path):
    result = make_run(tmp_path) / "result.json"
    content = json.loads(result.read_text())
    for kept, text in ((3, "preset"), (2, "preset; score of 2 evaluations"), (1, "preset; score of 1 evaluation")):
        result.write_text(
            json.dumps(content | {"evaluations": [content["evaluations"][i] for i in (0, *range(-kept, 0))]})
        )
        ((group,), _) = read_runs.read_runs(tmp_path)
        assert group.settings_text == text


def test_the_preset_of_one_s_own_script_is_read_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "own_ql.py").write_text("from driftql import *")
    run = make_run(tmp_path / "runs", changes={"alpha": 30.0})
    for name in ("config.json", "result.json"):
        (run / name).write_text((run / name).read_text().replace('"driftql"', '"own_ql"'))
    monkeypatch.syspath_prepend(tmp_path)  # as a tool's start does
    for folder, text in (
        (tmp_path / "runs", "of a script not here: steps 1,000,000, "),
        (tmp_path, "changed: alpha 30"),
    ):
        monkeypatch.chdir(folder)
        read_runs.presets.cache_clear()
        ((group,), _) = read_runs.read_runs(tmp_path / "runs")
        assert group.settings_text.startswith(text)
    read_runs.presets.cache_clear()


def test_collected_data_say_how_they_differ():
    few = {"source": "collected", "collection": {"episodes": 200, "official_episodes": 1000, "p_random_action": 0.3}}
    assert read_runs.describe_data(few) == "collected here, not official, 200 episodes, 30% random actions"


def test_what_cannot_be_counted_is_left_out_with_the_reason(tmp_path):
    kept = make_run(tmp_path, "fql")
    old, new = make_run(tmp_path, finals=(0.1,)), make_run(tmp_path, finals=(0.7,))
    running, stopped = unfinished(tmp_path, 30_000), unfinished(tmp_path, 40_000)
    failed = unfinished(tmp_path / "job", 10_000)
    (failed.parent / "job.json").write_text(
        json.dumps({"attempts": [{"exit": 2, "reason": "driftql: error: no data."}]})
    )
    never = tmp_path / "never"
    never.mkdir()
    (never / "job.json").write_text(json.dumps({"attempts": [{"exit": 2, "reason": "fql: error: no such flag."}]}))
    starts, nothing = tmp_path / "starts", tmp_path / "nothing"
    for job in (starts, nothing):
        job.mkdir()
        (job / "job.json").write_text(json.dumps({"attempts": [{"exit": None, "reason": ""}]}))
        (job / "lock").touch()
    unknown = make_run(tmp_path)
    (unknown / "result.json").write_text('{"algo": "driftql", "evaluations": [{"step": 1}]}')
    broken, half, nan = make_run(tmp_path), make_run(tmp_path), make_run(tmp_path, finals=(math.nan,))
    (broken / "result.json").write_text('{"algo": "dri')
    (half / "result.json").write_text('{"algo": "driftql", "evaluations": []}')
    no_config, foreign, other = make_run(tmp_path), tmp_path / "foreign", make_run(tmp_path)
    (no_config / "config.json").write_text("")
    foreign.mkdir()
    (foreign / "config.json").write_text('{"learning_rate": 1}')
    (other / "config.json").unlink()
    odd = {name: make_run(tmp_path) for name in ("steps", "env", "hidden_dims")}
    for name, run in odd.items():
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"args": config["args"] | {name: None}}))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("not a run")

    with contextlib.ExitStack() as files:
        assert lock(running, files) and lock(starts / "lock", files)  # as their processes do
        groups, left_out = read_runs.read_runs(tmp_path)
    assert {seed.run for group in groups for seed in group.seeds} == {kept, new}
    reasons = dict(left_out)
    assert reasons.pop(old) == f"seed 0: ran again with the same settings and data, {new.name}"
    assert reasons.pop(running) == "running, at step 30,000 of 1,000,000"
    assert reasons.pop(stopped) == "not finished, at step 40,000 of 1,000,000: interrupted or failed"
    assert reasons.pop(failed) == "not finished, at step 10,000 of 1,000,000: driftql: error: no data."
    assert reasons.pop(never) == "failed before there was a run: fql: error: no such flag."
    assert reasons.pop(starts) == "running, at its start"
    assert reasons.pop(nothing) == "failed before there was a run: it left none"
    assert reasons.pop(broken) == "damaged: result.json cannot be read"
    assert reasons.pop(half).startswith("damaged: result.json is not complete")
    assert reasons.pop(unknown).startswith("damaged: result.json is not complete")
    assert reasons.pop(nan).startswith("damaged: result.json is not complete")
    assert reasons.pop(no_config) == "damaged: config.json cannot be read"
    assert reasons.pop(foreign) == "foreign: config.json is not of these scripts"
    assert reasons.pop(other) == "foreign: no config.json"
    for name, run in odd.items():
        assert reasons.pop(run) == f"damaged: config.json has no {name} that a run could have"
    assert not reasons


def test_d4rl_counts_normalized_returns_and_its_presets_are_those_of_any_version(tmp_path):
    make_d4rl_run(tmp_path, scores=(90.0, 110.0, 130.0))
    ((group,), _) = read_runs.read_runs(tmp_path)
    assert (group.metric, group.data) == ("normalized", "D4RL by its name")
    assert (group.env, group.place) == ("hopper-medium-v2", "hopper-medium-v2")
    assert (group.settings_text, group.official) == ("preset", True)
    assert group.scores.tolist() == [90, 110, 130]
    steps, values = read_runs.mean_curve(group)
    assert values[:, 0] == pytest.approx([0, 55, 110])
    assert values[-1] == pytest.approx((110, 60.3, 159.7), abs=0.1)  # a normalized return may be more than 100
    assert read_runs.time_to_score(group, 120) == (1, steps[-1], steps[-1] / 100)
    assert reach_text(group, 120).endswith("(1 of 3 seeds)")
    (axes,) = curves.draw_curves([group]).axes
    assert axes.get_ylabel() == "normalized return"
    assert axes.get_ylim()[1] > 110


def test_rewards_of_d4rl_are_a_setting(tmp_path):
    make_d4rl_run(tmp_path, "pen-human")
    make_d4rl_run(tmp_path, "pen-human", rewards="standardized")
    assert [g.settings_text for g in read_runs.read_runs(tmp_path)[0]] == ["changed: rewards standardized", "preset"]


def test_only_d4rls_own_files_are_compared_with_papers(tmp_path):
    """The same bytes too, if the run took them from a file of which it knows nothing."""
    for source, score in (("d4rl", 61.0), ("minari", 42.0), ("user", 33.0)):
        make_d4rl_run(tmp_path / "runs", source=source, scores=(score,))
    groups, _ = read_runs.read_runs(tmp_path / "runs")
    papers = read_papers()
    found = {group.source: find_paper(papers, group) for group in groups}
    assert found == {"d4rl": papers["hopper-medium-v2", "", "driftql"], "minari": None, "user": None}
    assert found["d4rl"].mean == 75
    text, table, numbers = written(tmp_path, "html", "md", "csv")
    (row,) = [row for row in Page(text).rows if row.startswith("hopper-medium-v2 paper")]
    assert "paper 75 ± 6" in row
    assert "61.0" in row
    assert "42.0" not in row
    assert "33.0" not in row
    steps = f"{groups[0].seeds[0].result['steps']:,}"
    for line in (
        f"61.0 (normalized return) | 75 ± 6 | D4RL by its name | preset | 1 | {steps} |",
        f"42.0 (normalized return) |  | Minari, not D4RL's files | preset | 1 | {steps} |",
        f"33.0 (normalized return) |  | own file file.hdf5 | preset | 1 | {steps} |",
    ):
        assert f"| hopper-medium-v2 | DriftQL | {line}" in table
    rows = {float(row["mean"]): (row["metric"], row["paper_mean"]) for row in csv.DictReader(numbers.splitlines())}
    assert rows == {61: ("normalized", "75.0"), 42: ("normalized", ""), 33: ("normalized", "")}


def test_over_tasks_each_benchmark_has_its_own_score(tmp_path):
    make_run(tmp_path, task=1, finals=(0.2,))
    make_run(tmp_path, task=2, finals=(0.4,))
    make_d4rl_run(tmp_path, "hopper-medium", scores=(110.0,))
    make_d4rl_run(tmp_path, "walker2d-medium", scores=(80.0,))
    make_d4rl_run(tmp_path, "pen-human", "minari", scores=(1.0,))
    rows = [row[1:] for row in aggregates(read_runs.read_runs(tmp_path)[0])]
    both, robots = (
        "antmaze-large-navigate task 1, antmaze-large-navigate task 2",
        "hopper-medium-v2, walker2d-medium-v2",
    )
    assert rows == [
        ["official", "preset", f"2: {both}", "1, 1", "success, %", "30.0", "30.0"],
        ["D4RL by its name", "preset", f"2: {robots}", "1, 1", "normalized return", "95.0", "95.0"],
    ]


# ---------------------------------------------------------------------------------------------------------- statistics


def test_interval_of_the_mean_is_students():
    """Five numbers from a table of Student's t: 2.776 standard errors for four degrees of freedom."""
    values = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
    half = 2.776 * np.std(values, ddof=1) / math.sqrt(5)
    assert mean_interval(values) == pytest.approx((30, 30 - half, 30 + half), abs=0.01)
    assert mean_interval(values, (15, 100))[1] == 15
    assert np.isnan(mean_interval(values[:1])[1:]).all()


def test_interquartile_mean_and_its_stratified_bootstrap():
    """Of eight scores the middle four count. Tasks whose seeds agree have no spread, however much the tasks differ."""
    assert iqm_interval([np.array([0.0, 1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0, 100.0])])[0] == 3.5
    assert iqm_interval([np.full(4, 10.0), np.full(4, 90.0)]) == (50, 50, 50)
    value, low, high = iqm_interval([np.random.default_rng(i).normal(50, 10, 8) for i in range(5)])
    assert 44 < low < value < high < 56
    assert np.isnan(iqm_interval([np.array([1.0]), np.array([2.0])])[1:]).all()
    # One seed does not vary, so the interval would be too narrow.
    assert np.isnan(iqm_interval([*(np.array([x]) for x in range(5, 95, 10)), np.array([60.0, 62.0])])[1:]).all()


def test_time_to_a_score(tmp_path):
    """Success rises by a third of the score per 200,000 updates, at 100 updates per second."""
    make_run(tmp_path, seeds=(0, 1), finals=(0.9, 0.3))
    ((group,), _) = read_runs.read_runs(tmp_path)
    assert read_runs.time_to_score(group, 50) == (1, 400_000, 4_000)
    assert read_runs.time_to_score(group, 20) == (2, 300_000, 3_000)
    assert read_runs.time_to_score(group, 95) is None


def test_a_curve_uses_the_steps_that_all_seeds_share(tmp_path):
    make_run(tmp_path, seeds=(0,), finals=(0.2,))
    path = make_run(tmp_path, seeds=(1,), finals=(0.4,))
    result = json.loads((path / "result.json").read_text())
    del result["evaluations"][2]
    (path / "result.json").write_text(json.dumps(result))
    ((group,), _) = read_runs.read_runs(tmp_path)
    steps, values = read_runs.mean_curve(group)
    assert steps.tolist() == [0, 200_000, 600_000, 800_000, 1_000_000]
    assert values[:, 0] == pytest.approx([0, 10, 30, 30, 30])


def test_the_command_gives_the_run_again(tmp_path):
    run = make_run(tmp_path, seeds=(3, 4), changes={"steps": 1000, "hidden_dims": [8, 8], "alpha": 2.5})
    words = command(json.loads((run / "config.json").read_text())).split()
    assert words[:2] == ["python", "driftql.py"]
    import driftql
    from common import cli

    args = cli.parse(driftql.Args, driftql.PRESETS, words[2:])
    assert (args.env, args.task, args.seed, args.num_seeds) == ("antmaze-large-navigate", 1, 3, 2)
    assert (args.steps, args.hidden_dims, args.alpha, args.temperature) == (1000, (8, 8), 2.5, 0.5)


def test_the_papers_numbers_have_sources():
    papers = read_papers()
    assert (
        papers["antmaze-large-navigate", "1", "driftql"].mean,
        papers["antmaze-large-navigate", "1", "fql"].std,
    ) == (95, 8)
    assert all("arXiv" in paper.source for paper in papers.values())
    assert {env for env, _, algo in papers if algo == "driftql"} >= {"cube-single-play", "puzzle-4x4-play"}


# ---------------------------------------------------------------------------------------------------------- the report


class Page(HTMLParser):
    """Text of each table row, ids, link targets, and what the page loads."""

    def __init__(self, text: str):
        super().__init__()
        self.rows, self.ids, self.targets, self.loads = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        self.targets += [attributes["href"]] if tag == "a" and "href" in attributes else []
        self.loads += [attributes[name] for name in ("src", "srcset") if name in attributes]
        self.loads += [attributes["href"]] if tag == "link" else []
        if tag == "tr":
            self.rows.append("")

    def handle_data(self, data):
        if self.rows:
            self.rows[-1] += f"{data} "


def written(tmp_path, *suffixes) -> list[str]:
    outs = [tmp_path / f"report.{suffix}" for suffix in suffixes]
    report.main([str(tmp_path / "runs"), *(word for out in outs for word in ("-o", str(out)))])
    return [out.read_text() for out in outs]


def test_the_page_is_self_contained_and_every_number_leads_to_its_source(tmp_path):
    make_run(tmp_path / "runs", seeds=(0, 1), finals=(0.2, 0.4), data=COLLECTED, changes={"steps": 300_000})
    make_run(tmp_path / "runs", "fql", seeds=(0, 1, 2), finals=(0.7, 0.8, 0.9))
    make_run(tmp_path / "runs", "drol", "pointmaze-medium-navigate")
    (text,) = written(tmp_path, "html")
    assert written(tmp_path, "html") == [text]  # a change of the file is a change of the results
    page = Page(text)
    assert page.loads
    assert all(source.startswith("data:image/") for source in page.loads)
    assert "http" not in re.sub(r'src="[^"]*"', "", text)
    assert {target.lstrip("#") for target in page.targets} <= page.ids
    (row,) = [row for row in page.rows if row.startswith("antmaze-large-navigate task 1 paper")]
    assert "paper 95 ± 2" in row
    assert "30.0 [0.0, 100.0]" in row
    assert "80.0 [55.2, 100.0]" in row
    # The collected, reduced result says so right behind its number; the official one is not tagged.
    assert re.search(r"30\.0 \[0\.0, 100\.0\]\s+not official data\s+reduced", row)
    assert len(re.findall("not official data", row)) == 1
    assert "python driftql.py --env antmaze-large-navigate --task 1 --seed 0 --num-seeds 2 --steps 300000" in text
    assert COLLECTED["sha256"] in text
    assert "python -m common.collect antmaze-large-navigate --episodes 1000 --p-random-action 0.0" in text
    assert "1 x H100" in text
    empty = [row for row in page.rows if row.startswith("scene-play task 2")]
    assert len(empty) >= 1
    assert "[" not in "".join(empty)


def test_the_page_names_all_versions_and_physics_that_a_number_comes_from(tmp_path):
    for seed, (version, physics) in enumerate((("0.10.2", "3.3"), ("0.11.2", "4.0"), ("0.11.2", "4.0"))):
        run = make_run(tmp_path / "runs", seeds=(seed,))
        result = json.loads((run / "result.json").read_text())
        parts = {"versions": {"jax": version, "numpy": "2"}, "physics": {"mujoco": physics, "geom_margin": "halved"}}
        (run / "result.json").write_text(json.dumps(result | parts))
    (page,) = written(tmp_path, "html")
    assert "jax 0.10.2 and 0.11.2, numpy 2; commit" in page
    assert "mujoco 3.3 and 4.0, geom margin halved" in page


def test_a_full_disk_keeps_the_report_that_was_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    make_run(tmp_path / "runs")
    (tmp_path / "table.md").write_text("the old one")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*table\.md: No space left on device"):
        report.main([str(tmp_path / "runs"), "-o", str(tmp_path / "table.md")])
    assert (tmp_path / "table.md").read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "table.md"]


def test_a_readme_that_is_not_text_is_one_clear_line(tmp_path):
    make_run(tmp_path / "runs")
    (tmp_path / "latin.md").write_bytes("d\u00e4ta".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.md is not text in UTF-8"):
        report.main([str(tmp_path / "runs"), "--readme", str(tmp_path / "latin.md")])


def test_markdown_csv_and_readme(tmp_path, capsys):
    make_run(tmp_path / "runs", seeds=(0, 1), finals=(0.2, 0.4), data=COLLECTED)
    make_run(tmp_path / "runs", finals=(0.99,), data=COLLECTED, changes={"steps": 500_000})
    make_run(tmp_path / "runs", finals=(0.97,), data=COLLECTED | {"sha256": "f" * 64}, changes={"steps": 400_000})
    make_run(tmp_path / "runs", finals=(0.98,), data=COLLECTED, changes={"steps": 2_000_000, "hidden_dims": [256, 256]})
    make_run(tmp_path / "runs", "fql", seeds=(0, 1), finals=(0.8, 0.8))
    # DROL's paper has no number for one task.
    make_run(tmp_path / "runs", "drol", finals=(0.0,), data=COLLECTED, changes={"steps": 300_000})
    make_run(tmp_path / "runs", "drol", finals=(0.97,), data=COLLECTED, changes={"batch_size": 128})
    make_run(tmp_path / "runs", "drol", "pointmaze-medium-navigate")
    unfinished(tmp_path / "runs", 10)
    table, numbers = written(tmp_path, "md", "csv")
    ours = "| DriftQL | 30.0 [0.0, 100.0] | 95 ± 2 (official data) | collected here, not official, sha256 cccccc |"
    assert f"| antmaze-large-navigate task 1 {ours} preset | 2 | 1,000,000 |" in table
    assert "| FQL | 80.0 [80.0, 80.0] | 80 ± 8 | official | preset | 2 | 1,000,000 |" in table
    assert "| DriftQL | 99.0 |" in table
    rows = {row["algo"]: row for row in csv.DictReader(numbers.splitlines()) if row["updates"] == "1000000"}
    assert (float(rows["driftql"]["mean"]), rows["driftql"]["official_data"], rows["fql"]["paper_mean"]) == (
        30.0,
        "False",
        "80.0",
    )
    assert (float(rows["driftql"]["ci95_low"]), float(rows["driftql"]["ci95_high"])) == (0, 100)
    assert "not finished, at step 10" in capsys.readouterr().err

    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{report.MARKERS[0]}\nold table\n{report.MARKERS[1]}\nthe end\n")
    for _ in range(2):  # writing again changes nothing
        report.main([str(tmp_path / "runs"), "--readme", str(readme)])
        text = readme.read_text()
        assert text.startswith("# Title\n")
        assert text.endswith(f"\n{report.MARKERS[1]}\nthe end\n")
        assert "old table" not in text
        # Official data and the preset stand in the benchmark's table; the other run, on collected data, below.
        first, second = text.partition("Smaller, with other settings")[::2]
        assert "| antmaze-large-navigate |  | 80.0 [80.0, 80.0], 2 seeds |  |  |  |" in first
        assert first.count("|  |  |  |  |  |") == 9
        assert "| scene-play |  |  |  |  |  |" in first
        assert ours in second
        # Of several runs the longest of full size, whichever scored higher.
        assert not re.search(r"\b9[789]\.0", second)
        assert "| DROL | 0.0 |  | collected here, not official, sha256 cccccc | reduced: steps 300,000 | 1 |" in second
        assert "FQL" not in second.replace("DriftQL", "")
        assert "pointmaze" not in text


def test_saved_runs_of_one_name_are_both_kept(tmp_path):
    """Jobs of a sweep that began in the same second, and one of them again, longer."""
    runs = [make_run(tmp_path / "runs" / job, changes={"alpha": alpha}) for job, alpha in (("a", 1.0), ("b", 3.0))]
    for run, job in zip(runs, "ab"):
        run.rename(tmp_path / "runs" / job / "same")
    for _ in range(2):
        report.main([str(tmp_path / "runs"), "--save", str(tmp_path / "results")])
        saved = sorted((tmp_path / "results").iterdir())
        assert [path.name for path in saved] == ["same", "same-2"]
    assert {json.loads((path / "config.json").read_text())["args"]["alpha"] for path in saved} == {1.0, 3.0}
    with pytest.raises(UserError, match="are there already"):
        report.main([str(tmp_path / "runs"), "--save", str(tmp_path / "runs")])


def test_saved_results_are_small_and_give_the_same_report(tmp_path):
    run = make_run(tmp_path / "runs" / "job", seeds=(0, 1), finals=(0.2, 0.4), data=COLLECTED)
    (run / "checkpoint.msgpack").write_bytes(bytes(1000))
    unfinished(tmp_path / "runs", 10)
    report.main([str(tmp_path / "runs"), "--save", str(tmp_path / "results")])
    files = {path.relative_to(tmp_path / "results").as_posix() for path in (tmp_path / "results").rglob("*.*")}
    assert files == {f"{run.name}/{name}" for name in ("config.json", "result.json", "metrics.csv")}
    assert "/machine" not in "".join(path.read_text() for path in (tmp_path / "results").rglob("*.json"))
    tables = []
    for folder in ("runs", "results"):
        report.main([str(tmp_path / folder), "-o", str(tmp_path / "table.md")])
        tables.append((tmp_path / "table.md").read_text())
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["{empty}", "-o", "x.html"], "there is no run directory in"),
        (["{empty}/nowhere", "-o", "x.html"], "is not a folder"),
        (["{runs}"], "say what to write"),
        (["{runs}", "-o", "x.pdf"], "must end in .html, .md or .csv"),
        (["{runs}", "-o", "{empty}/no/x.md"], "No such file"),
        (["{runs}", "--readme", "{runs}/README.md"], "cannot read"),
        (["{runs}", "--readme", "{empty}.md"], "needs the lines"),
    ],
)
def test_bad_arguments_are_one_clear_line(tmp_path, argv, expected):
    make_run(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.md").write_text("no markers")
    with pytest.raises(UserError, match=expected) as error:
        report.main([word.format(empty=tmp_path / "empty", runs=tmp_path / "runs") for word in argv])
    assert "\n" not in str(error.value)


def test_an_empty_folder_is_one_line_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors("report"):
        report.main([str(tmp_path), "-o", str(tmp_path / "x.html")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"report: error: there is no run directory in {tmp_path}.\n"
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------ pictures


def test_curves_are_drawn_per_problem_with_one_colour_per_algorithm(tmp_path):
    for algo in ("driftql", "fql"):
        for alpha in (1.0, 3.0):
            make_run(tmp_path / "runs", algo, seeds=(0, 1), finals=(0.3, 0.6), changes={"alpha": alpha})
    make_run(tmp_path / "runs", data=COLLECTED)
    groups, _ = read_runs.read_runs(tmp_path / "runs")
    problems = curves.by_problem(groups)
    assert set(problems) == {
        ("antmaze-large-navigate task 1", "official"),
        ("antmaze-large-navigate task 1", "collected here, not official"),
    }
    figure = curves.draw_curves(problems["antmaze-large-navigate task 1", "official"])
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 6]
    assert [line.get_color() for line in lines] == ["#0072b2", "#0072b2", "#d55e00", "#d55e00"]
    assert len({line.get_linestyle() for line in lines[:2]}) == 2
    assert lines[0].get_ydata()[-1] == pytest.approx(45)
    assert axes.get_ylabel() == "success, %"
    curves.draw_runs("curves", tmp_path / "runs", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_many_settings_have_shades_and_say_their_value(tmp_path):
    for alpha in (1.0, 3.0, 10.0, 30.0, 100.0):
        make_run(tmp_path, changes={"alpha": alpha})
    figure = curves.draw_curves(read_runs.read_runs(tmp_path)[0])
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 6]
    assert len({line.get_color() for line in lines}) == 5
    assert [line.get_label() for line in lines] == [f"DriftQL, alpha {x}, 1 seed" for x in (1, 3, 10, 30, 100)]


def test_pictures_whose_names_differ_in_signs_alone_are_all_kept(tmp_path):
    for name in ("my data.npz", "my-data.npz"):
        make_run(tmp_path / "runs", data={"source": "user", "path": f"/{name}", "sha256": name * 8})
    curves.draw_runs("curves", tmp_path / "runs", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_corruption_of_other_data_is_another_line(tmp_path):
    for episodes, finals in ((1000, 0.8), (200, 0.5)):
        for i, share in enumerate((0.0, 0.4)):
            collection = COLLECTED["collection"] | {"p_random_action": share, "episodes": episodes}
            make_run(
                tmp_path, data=COLLECTED | {"sha256": f"{i}{episodes}", "collection": collection}, finals=(finals,)
            )
    (axes,) = curves.draw_corruption(read_runs.read_runs(tmp_path)[0]).axes
    drawn = [line.get_ydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2]
    assert [50, 50] in drawn and [80, 80] in drawn
    assert axes.get_title().split("data: ")[1].split() == ["collected", "here,", "not", "official"]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["DriftQL, 1 seed", "DriftQL, 200 episodes, 1 seed"]


def test_corruption_is_drawn_over_the_share_of_random_actions(tmp_path):
    for i, share in enumerate((0.0, 0.2, 0.4)):
        data = COLLECTED | {"sha256": str(i) * 64, "collection": COLLECTED["collection"] | {"p_random_action": share}}
        make_run(tmp_path, data=data, seeds=(0, 1), finals=(0.8 - share, 0.9 - share))
        make_run(tmp_path, data=data, finals=(0.1,), changes={"alpha": 3.0})
    figure = curves.draw_corruption(read_runs.read_runs(tmp_path)[0])
    (axes,) = figure.axes
    assert {line.get_linestyle() for line in axes.lines} - {"None"} == {"-", "--"}  # a dash per setting
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "20", "40"]
    (drawn,) = [line for line in axes.lines if line.get_ydata().tolist() == pytest.approx([85, 65, 45])]
    assert drawn.get_xdata().tolist() == pytest.approx([0, 20, 40], abs=0.4)  # the other line is beside it
    assert "random actions" in axes.get_xlabel()


def test_corruption_needs_runs_on_such_data(tmp_path):
    make_run(tmp_path, data=COLLECTED)
    with pytest.raises(UserError, match="no run is on data with random actions"):
        curves.draw_corruption(read_runs.read_runs(tmp_path)[0])
