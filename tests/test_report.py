"""tools/report.py and the pictures of finished runs: what is counted, how it is shown, what is left out and why."""

import contextlib
import csv
import html
import itertools
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import plot
import report
import shared
from shared import preset, read_runs

from common.system import lock

NAMED = "| official, sha256 000000 "
OFFICIAL = {"source": "official", "sha256": "0" * 64, "collection": None}
COLLECTED = {"source": "collected", "sha256": "c" * 64}
COLLECTED["collection"] = {"episodes": 1000, "official_episodes": 1000, "p_random_action": 0.0}
ANT = "antmaze-large-navigate"
NUMBERS = itertools.count()


def make_run(
    folder: Path, algo="driftql", env=ANT, task=1, seeds=(0,), finals=None, data=OFFICIAL, metric="success", **changes
) -> Path:
    """A run directory as a script leaves it. finals: score per entry of `seeds`; changes: to the preset."""
    args = preset(algo, env, changes.get("laptop", False)) | {"env": env, "task": task, "seed": seeds[0]}
    args |= {"num_seeds": len(seeds)} | changes
    finals = [0.5] * len(seeds) if finals is None else list(finals)
    steps = [max(0, args["steps"] - (5 - i) * args["eval_every"]) for i in range(6)]
    evaluations = {
        step: {"step": step, metric: [x * min(1, i / 3) for x in finals], "length": [1.0] * len(seeds)}
        for i, step in enumerate(steps)
    }
    about = {"dataset": {"name": env, "path": "/machine/file.npz"} | data, "device": "1 x H100", "git_commit": "abc"}
    result = {"algo": algo, "env": env, "task": task, "seeds": list(seeds), "steps": args["steps"]} | about
    result |= {"evaluations": list(evaluations.values()), "updates_per_second": 100.0, "wall_seconds": 4000.0}
    place = f"{env}-task{task}" if task else env
    path = folder / f"{place.replace('/', '_')}__{Path(algo).name}__{seeds[0]}__{next(NUMBERS):04}"
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"algo": algo, "args": args} | about))
    (path / "result.json").write_text(json.dumps(result))
    return path


def change(path: Path, **values) -> None:
    """Replaces entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def written(folder: Path, kind: str = "md", pictures: bool = False) -> str:
    words = [] if pictures else ["--no-pictures"]
    report.main([str(folder / "runs"), "-o", str(folder / f"report.{kind}"), *words])
    return (folder / f"report.{kind}").read_text()


def rows(text: str) -> list[str]:
    """The rows of all tables, without headers."""
    return [line for line in re.sub(r"\|.*\n\| ---.*", "", text).splitlines() if line.startswith("|")]


# -------------------------------------------------------------------------------------------------------- what is shown


def test_algorithms_are_columns_beside_the_papers_numbers(tmp_path):
    make_run(tmp_path / "runs", seeds=(0,), finals=(0.85,), data=COLLECTED)
    make_run(tmp_path / "runs" / "deeper", seeds=(1,), finals=(0.4,), data=COLLECTED)
    make_run(tmp_path / "runs", "fql", finals=(0.8,), data=COLLECTED)
    make_run(tmp_path / "runs", "drol", finals=(0.7,), data=COLLECTED)
    text = written(tmp_path)
    assert (
        f"\n## {ANT} task 1: success in percent\n\n| data | settings, at the preset's size | DROL | DriftQL | FQL |\n"
        in text
    )
    first, ours, papers = rows(text)
    data = "collected here, not official, sha256 cccccc"
    assert first == f"| {data} | preset | 70 | 85 · 40 (mean 62.5) | 80 |"
    assert ours.startswith(f"| {ANT} task 1 | ours, {data} | 85 · 40 (mean 62.5) | 70 | 80 |")  # DriftQL, DROL, FQL
    assert papers.startswith(f"| {ANT} task 1 | papers, official data | 95 ± 2 |  | 80 ± 8 |")
    assert "91 ± 10" in papers  # ReBRAC, which has no script here
    assert text.count("Sources: arXiv 2606.00350") == 1
    assert "pointmaze" not in text and "cube" not in text  # of the papers, only what was run


def test_sizes_are_never_mixed_in_a_table(tmp_path):
    make_run(tmp_path / "runs", finals=(0.9,))
    make_run(tmp_path / "runs", "fql", steps=300_000)
    make_run(tmp_path / "runs", "drol", steps=300_000, hidden_dims=[256] * 3, finals=(0.3,))
    make_run(tmp_path / "runs", steps=300_000, hidden_dims=[256] * 3, finals=(0.1,))
    make_run(tmp_path / "runs", steps=20_000, hidden_dims=[256] * 3, batch_size=128, finals=(0.2,))
    text = written(tmp_path)
    headings = re.findall("settings, at ([^|]*) ", text)
    small, large = "hidden-dims 256 256 256", "hidden-dims 512 512 512 512"
    sizes = "the preset's size", f"batch-size 256, {small}", f"batch-size 128, {small}", f"batch-size 256, {large}"
    assert headings == list(sizes)
    assert rows(text)[:-2] == [
        f"{NAMED}| preset | 90 |", f"{NAMED}| 300,000 | preset | 30 | 10 |",
        f"{NAMED}| 20,000 | preset | 20 (of 1 evaluation) |", f"{NAMED}| 300,000 | preset | 50 |",
    ]  # fmt: skip
    what, *cells = rows(text)[-2].strip("| ").split(" | ")[1:]
    assert what == "ours, official, sha256 000000" and [cell for cell in cells if cell.strip()] == ["90"]


def test_runs_with_laptop_are_one_table_of_tasks(tmp_path):
    cube, maze = ("cube-single-play", 2), ("pointmaze-medium-navigate", 1)
    make_run(tmp_path / "runs", "driftql", *cube, (0, 1, 2), (0.9, 0.8, 1.0), COLLECTED, laptop=True)
    make_run(tmp_path / "runs", "fql", *cube, (0, 1, 2), (0.5, 0.4, 0.6), COLLECTED, laptop=True)
    make_run(tmp_path / "runs", "fql", *maze, (0,), (1.0,), COLLECTED, laptop=True)
    make_run(tmp_path / "runs", "driftql", "scene-play", 1, (0, 1, 2), (0.9, 0.8, 1.0), COLLECTED, laptop=True)
    make_run(tmp_path / "runs", "fql", *cube, (0,), (0.2,), COLLECTED, laptop=True, alpha=3)
    make_run(tmp_path / "runs", "fql", *cube, (0,), (0.7,), COLLECTED)
    text = written(tmp_path)
    size = "batch-size 64, eval-episodes 50, hidden-dims 64 64 64."
    assert text.count(size) == 1 and "## Over" not in text
    first, second, _, speed, wall, other, *_ = rows(text)
    data = "collected here, not official, sha256 cccccc"
    cells = "90 · 80 · 100 (mean 90) | 50 · 40 · 60 (mean 50)"
    assert first == f"| cube-single-play task 2, 300,000 updates; {data} | {cells} |"
    assert second == f"| pointmaze-medium-navigate task 1, 100,000 updates; {data} |  | 100 |"
    assert speed == "| updates per second, of a run's seeds together | 100 to 100 | 100 to 100 |"
    assert wall == "| minutes in all, of a run's seeds together | 67 to 67 | 67 to 67 |"
    assert other == f"| {data} | preset | 70 |" and "--laptop" in written(tmp_path, "csv")
    assert "| 300,000 | alpha 3 | 20 |" in text and "settings, at the laptop's size" in text


def test_tasks_and_metrics_are_never_mixed_and_data_are_named(tmp_path):
    """Each data once, above rows that have none."""
    make_run(tmp_path / "runs", finals=(0.1,))
    make_run(tmp_path / "runs", finals=(0.2,), alpha=3.0)
    make_run(tmp_path / "runs", finals=(0.3,), task=2)
    make_run(tmp_path / "runs", finals=(0.4,), data=COLLECTED)
    make_run(tmp_path / "runs", finals=(0.5,), data=COLLECTED | {"sha256": "d" * 64})
    make_run(tmp_path / "runs", finals=(0.6,), data=OFFICIAL | {"source": "unverified"})
    own = dict(task=None, data={"source": "user"}, finals=(-1234.5,))
    make_run(tmp_path / "runs", env="Own-v0", metric="return", **own)
    make_run(tmp_path / "runs", env="Own-v0", **own)
    runs, left_out = read_runs([tmp_path / "runs"])
    assert (len(runs), left_out) == (8, [])
    text = written(tmp_path)
    assert re.findall("## (.*)", text.partition("## Beside")[0]) == [
        "Own-v0: return", "Own-v0: success in percent", f"{ANT} task 1: success in percent",
        f"{ANT} task 2: success in percent",
    ]  # fmt: skip
    assert rows(text)[:8] == [
        "| the user's file, file.npz | preset | -1234.5 |",
        "| the user's file, file.npz | preset | -123,450 |",
        "| collected here, not official, sha256 cccccc | preset | 40 |",
        "| collected here, not official, sha256 dddddd | preset | 50 |",
        "| file of unknown origin, sha256 000000 | preset | 60 |",
        f"{NAMED}| preset | 10 at alpha 10 |",
        "|  | alpha 3 | **20** |",
        f"{NAMED}| preset | 30 |",
    ]


def test_what_was_varied_is_named_with_the_best_marked(tmp_path):
    for alpha, score in ((1.0, 0.1), (3.0, 0.2), (10.0, 0.4), (30.0, 0.9)):  # the preset is 10
        make_run(tmp_path / "runs", seeds=(0, 1), finals=(score, score + 0.1), alpha=alpha, data=COLLECTED)
    make_run(tmp_path / "runs", alpha=3.0, q_agg="min", finals=(0.5,), data=COLLECTED)
    make_run(tmp_path / "runs", "fql", data=COLLECTED)
    make_run(tmp_path / "runs", "fql", data=COLLECTED, eval_episodes=20, finals=(0.6,))
    assert rows(written(tmp_path))[:-2] == [
        "| collected here, not official, sha256 cccccc | preset | 40 · 50 (mean 45) at alpha 10, q-agg mean | 50 |",
        "|  | alpha 1 | 10 · 20 (mean 15) |  |",
        "|  | alpha 3 | 20 · 30 (mean 25) |  |",
        "|  | alpha 3, q-agg min | 50 |  |",
        "|  | alpha 30 | **90 · 100 (mean 95)** |  |",
        "|  | eval-episodes 20, eval-every 100,000 |  | 60 |",
    ]


def test_each_combination_of_a_grid_is_a_row(tmp_path):
    run = make_run(tmp_path / "runs", seeds=(0, 1))
    result = json.loads((run / "result.json").read_text())
    evaluations = result.pop("evaluations")
    low = [each | {"success": [0.1, 0.2]} for each in evaluations]
    grid = [{"values": {"alpha": 10.0}, "evaluations": evaluations}, {"values": {"alpha": 3.0}, "evaluations": low}]
    (run / "result.json").write_text(json.dumps(result | {"grid": grid}))
    assert rows(written(tmp_path))[:2] == [
        f"{NAMED}| preset | **50 · 50 (mean 50)** at alpha 10 |", "|  | alpha 3 | 10 · 20 (mean 15) |",
    ]  # fmt: skip
    assert f"driftql.py --env {ANT} --task 1 --seed 1 --alpha 3," in written(tmp_path, "csv")


def test_an_evaluation_off_the_grid_does_not_count(tmp_path):
    run = make_run(tmp_path / "runs", finals=(0.6,))
    result = json.loads((run / "result.json").read_text())
    off = {"step": 1_050_000, "success": [0.0], "length": [1.0]}  # as of a run that was extended by 50,000
    change(run / "result.json", evaluations=[*result["evaluations"], off], steps=1_050_000)
    assert "| preset | 60 |" in written(tmp_path)
    change(run / "result.json", evaluations=result["evaluations"][-1:], steps=1_000_000)
    assert "| preset | 60 (of 1 evaluation) |" in written(tmp_path)
    change(run / "result.json", evaluations=[off | {"success": [0.3]}])
    assert "| preset | 30 (of 1 evaluation) |" in written(tmp_path)  # better than none
    change(run / "result.json", evaluations=[off | {"success": [0.9], "rarest_mode": [0.45]}])  # of a bandit
    assert "| preset | 90 (of 1 evaluation, rarest best mode 45) |" in written(tmp_path)


def test_an_interval_is_given_from_five_seeds_on(tmp_path):
    make_run(tmp_path / "runs", seeds=range(4), finals=(0.1, 0.2, 0.3, 0.4))
    make_run(tmp_path / "runs", "fql", seeds=range(5), finals=(0.1, 0.2, 0.3, 0.4, 0.5))
    make_run(tmp_path / "runs", "idql", seeds=range(5), finals=[1.0] * 5)
    (row,) = [row for row in rows(written(tmp_path)) if row.startswith(f"{NAMED}| preset |")]
    four, five, equal = row.split(" | ")[2:]
    assert four == "10 · 20 · 30 · 40 (mean 25)"
    low, high = map(float, re.fullmatch(r"10 · 20 · 30 · 40 · 50 \(mean 30, (\S+) to (\S+)\)", five).groups())
    assert 16 < low < 20 and 40 < high < 44  # 1.96 sd / sqrt(5) is 12.4
    assert equal == "100 · 100 · 100 · 100 · 100 (mean 100) |"


def test_a_mean_over_tasks_is_of_a_benchmarks_tasks_at_one_size_with_three_seeds_each(tmp_path):
    """Seeds are drawn again within each task: tasks that differ, with seeds that do not, have no interval."""
    for task in (1, 2):
        for algo, scores in (("driftql", (0.1, 0.5, 0.6, 0.9)), ("fql", (0.4 * task,) * 3), ("drol", (0.1, 0.2))):
            seeds = range(len(scores))
            make_run(tmp_path / "runs", algo, task=task, seeds=seeds, finals=scores, eval_episodes=50 * task)
        make_run(tmp_path / "runs", "idql", task=task, seeds=range(3), finals=(0.1, 0.2, 0.3), hidden_dims=[8 * task])
        make_run(tmp_path / "runs", env="pointmaze-medium-navigate", task=task, seeds=range(3), finals=(0.1, 0.2, 0.3))
        other = OFFICIAL | {"sha256": f"{task}" * 64}  # the third task has two datasets
        make_run(tmp_path / "runs", task=3, seeds=range(3 * task, 3 * task + 3), finals=(0.1, 0.2, 0.3), data=other)
    make_run(tmp_path / "runs", env="antmaze-giant-navigate", seeds=range(3), finals=(0.1, 0.2, 0.3), data=COLLECTED)
    table = written(tmp_path).partition("## Over ")[2].partition("\n\n## ")[0]
    what, (drift, fql) = table.splitlines()[2], rows(table)
    assert table.startswith("2 tasks\n")
    assert what == f"{ANT} task 1, {ANT} task 2; success in percent, data: official, at the preset's size."
    assert fql == "| FQL | preset | 60 |  |"
    low, high = map(float, re.fullmatch(r"\| DriftQL \| preset \| 55 \| (\S+) to (\S+) \|", drift).groups())
    assert 25 < low < 40 and 70 < high < 85  # of 1, 5, 6, 9 twice


def test_d4rl_has_normalized_returns_and_papers_only_beside_d4rls_files(tmp_path):
    for source, score in (("d4rl", 61.0), ("minari", 42.0), ("user", 33.0)):
        data = {"source": source, "sha256": source[0] * 64}
        make_run(tmp_path / "runs", env="hopper-medium-v2", task=None, data=data, metric="normalized", finals=(score,))
    text = written(tmp_path)
    assert text.count("## hopper-medium-v2: normalized return\n") == 1
    beside = rows(text.partition("## Beside")[2])
    assert len(beside) == 2 and beside[0].startswith("| hopper-medium-v2 | ours, D4RL's file, sha256 dddddd |  | 61 |")
    assert beside[1].startswith("| hopper-medium-v2 | papers, official data | 90.5 ± 4.6 | 75 ± 6 |")


def test_offline_model_selection_takes_the_evaluation_after_the_lowest_loss_but_rank(tmp_path):
    """As Diffusion-QL's numbers on D4RL: for hopper-medium the third lowest, of means since the evaluation before."""
    what = dict(algo="diffusion_ql", task=None, metric="normalized", data={"source": "d4rl"}, eval_every=100)
    run = make_run(tmp_path / "runs", env="hopper-medium-v2", seeds=(3,), finals=(60.0,), steps=500, **what)
    losses = {50: 1, 100: 1, 150: 6, 200: 0, 250: 2, 300: 2, 350: 5, 400: 5, 450: 8, 500: 8}  # at 200 the mean is 3
    lines = [f"{step},3,1,{loss}\n{step},4,1,{9 - loss}\n{step},3,2,{9 - loss}" for step, loss in losses.items()]
    (run / "train.csv").write_text("\n".join(["step,seed,eta,losses/denoising", *lines]))  # eta 2 is of a grid
    make_run(tmp_path / "runs", env="antmaze-umaze-v2", **what)  # has no number of the kind
    selected = {row["env"]: row["selected_offline"] for row in csv.DictReader(written(tmp_path, "csv").splitlines())}
    assert selected == {"hopper-medium-v2": "40.0", "antmaze-umaze-v2": ""}
    assert "60 (selected offline 40)" in written(tmp_path)
    for damaged in ("step,seed,eta,losses/denoising\n50,3,1,1\n", "step,seed\n50,3\n", "step,seed,eta\n50,"):
        (run / "train.csv").write_text(damaged)
        assert "| preset | 60 |" in written(tmp_path)  # the others are reported whatever is wrong with a log
    (run / "train.csv").unlink()
    assert "| preset | 60 |" in written(tmp_path)


def test_a_row_per_seed_says_how_it_was_made(tmp_path):
    changes = dict(seeds=(2, 3), steps=500_000, hidden_dims=[8, 8], q_agg="min", data=COLLECTED)
    run = make_run(tmp_path / "runs", finals=(1 / 3, 0.5), **changes)
    first, second = csv.DictReader(written(tmp_path, "csv").splitlines())
    assert (float(first.pop("score")), float(second["score"])) == (pytest.approx(100 / 3, abs=1e-9), 50)
    flags = "--task 1 --seed 2 --steps 500000 --hidden-dims 8 8 --q-agg min"
    assert first == {
        "env": ANT, "task": "1", "algo": "driftql", "data": "collected here, not official, sha256 cccccc",
        "metric": "success", "seed": "2", "updates": "500000", "command": f"driftql.py --env {ANT} {flags}",
        "updates_per_second": "100.0", "wall_seconds": "4000.0", "device": "1 x H100", "commit": "abc",
        "selected_offline": "", "rarest_best_mode": "", "run": run.name,
        "paper_mean": "95", "paper_std": "2", "paper_source": "arXiv 2606.00350 Table 3",
    }  # fmt: skip
    page = html.unescape(written(tmp_path, "html"))
    assert "<summary>All finished runs</summary>" in page
    assert all(f"<td>{cell}</td>" in page for cell in ("33.3333", "1 x H100", run.name))


def test_the_kept_runs_of_the_project_are_all_counted(tmp_path, capsys):
    kept = {path.parent.name for path in (shared.ROOT / "results").glob("*/result.json")}
    report.main([str(shared.ROOT / "results"), "-o", str(tmp_path / "table.csv")])
    with open(tmp_path / "table.csv", newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} == kept != set()
    report.main([str(shared.ROOT / "results"), "-o", str(tmp_path / "results.md"), "--no-pictures"])
    assert (tmp_path / "results.md").read_text() == (shared.ROOT / "docs" / "results.md").read_text()
    assert capsys.readouterr().err == ""


# -------------------------------------------------------------------------------------------------- what cannot be read


def test_what_cannot_be_counted_is_left_out_with_the_reason(tmp_path, capsys):
    folder = tmp_path / "runs"
    kept, old, new = make_run(folder, "fql"), make_run(folder, finals=(0.1,)), make_run(folder, finals=(0.7,))
    running, stopped = make_run(folder), make_run(folder, online_steps=500_000)
    for run in (running, stopped):
        (run / "result.json").unlink()
        (run / "train.csv").write_text("step,seed\n10000,0\n30000,0\n40")
    for damage in ('{"algo": "dri', "[]", "{}", '{"algo": "driftql", "evaluations": []}', "\x00", "[" * 100_000):
        (make_run(folder) / "result.json").write_text(damage)
    change(make_run(folder) / "result.json", dataset={"collection": {"episodes": "many"}})
    change(make_run(folder) / "result.json", updates_per_second=None)
    change(make_run(folder) / "config.json", args=None)
    make_run(folder, finals=(math.nan,), seeds=(7,))
    (make_run(folder) / "config.json").unlink()
    with contextlib.ExitStack() as files:
        assert lock(running, files)  # as its process does
        text = written(tmp_path)
    assert "| preset | 70 | 50 |" in text  # DriftQL's and FQL's
    error = capsys.readouterr().err
    lines = error.splitlines()
    assert len(lines) == 14 and all(line.startswith(f"left out {folder}") for line in lines)
    reasons = dict(line.removeprefix(f"left out {folder}/").split(": ", 1) for line in lines)
    assert reasons.pop(old.name) == f"seed 0 was run again with the same settings, {new.name}"
    assert reasons.pop(running.name) == "running, at step 30,000 of 1,000,000"
    assert reasons.pop(stopped.name) == "not finished, at step 30,000 of 1,500,000"
    assert all(reason.startswith("cannot be read (") for reason in reasons.values())
    listed = text.partition("<summary>Left out")[2].partition("</details>")[0]
    assert listed.count("\n- ") == 14 and kept.name not in listed


def test_a_run_never_chooses_code_to_import(tmp_path, monkeypatch):
    run = make_run(tmp_path / "runs", seeds=(0,))
    for file in (tmp_path / "evil.py", run / "evil.py"):
        file.write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("config.json", "result.json"):
        change(run / name, algo="evil")
    assert "| evil |" in written(tmp_path)  # compared with nothing, but shown
    assert not (tmp_path / "imported").exists()


HARMFUL = [
    "<script>alert(1)</script>", "a|b", "[x](http://evil.example)", "`code` **bold** _it_", "![](file:///etc/passwd)",
    "line\nbreak\x1b[31m", "$\\frac{1}{2$", "&amp;", "</details>", "half \ud800 sign",
]  # fmt: skip


@pytest.mark.parametrize("words", HARMFUL)
def test_nothing_that_a_run_holds_is_pasted_raw(tmp_path, words):
    data = {"source": "user", "path": f"/data/{words}", "sha256": words}
    run = make_run(tmp_path / "runs", "fql", env="bandit", task=None, data=data, q_agg=words)
    for name, key in (("config.json", "algo"), ("result.json", "algo"), ("result.json", "git_commit")):
        change(run / name, **{key: words})
    change(run / "result.json", env=words, device=words)
    make_run(tmp_path / "runs", task=None, env=words.replace("/", "").replace("\ud800", ""))
    page = written(tmp_path, "html", True)
    plain = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "table", "thead", "tbody", "tr"}
    plain |= {"details", "summary"}
    assert set(re.findall(r"<(\w+)", page)) <= plain | {"th", "td", "img", "strong"}
    found = re.findall("<tr>(.*?)</tr>", page, re.DOTALL)
    (row,) = [row for row in found if f"<td>{run.name}</td>" in html.unescape(row)]
    cells = [html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", row)]
    shown = " ".join("".join(sign if sign.isprintable() else " " for sign in words).split())
    assert cells[10] == cells[11] == shown
    assert list((tmp_path / "report_files").glob("*.png"))


# ----------------------------------------------------------------------------------------------- arguments and pictures


def test_a_picture_that_cannot_be_drawn_is_a_line(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no\nfont")

    make_run(tmp_path / "runs")
    monkeypatch.setattr(plot, "draw_scores", fail)
    text = written(tmp_path, pictures=True)
    assert "| preset | 50 |" in text and "![" not in text
    assert capsys.readouterr().err == f"no picture of {ANT} task 1: no font\n"


def drawn(monkeypatch, draw, *args) -> list:
    """The panels of the figure that a function draws."""
    figures = []
    monkeypatch.setattr(plot, "save_figure", lambda figure, *_, **__: figures.append(figure))
    draw(*args)
    return figures[-1].axes


def test_curves_have_a_thin_line_per_seed_and_a_thick_mean(tmp_path, monkeypatch):
    for alpha, scores in ((10.0, (0.3, 0.6)), (3.0, (0.1, 0.1))):
        make_run(tmp_path, seeds=(0, 1), finals=scores, alpha=alpha)
    make_run(tmp_path, "fql")
    make_run(tmp_path, "fql", hidden_dims=[8])
    make_run(tmp_path, "fql", data=COLLECTED)
    axes, *others = drawn(monkeypatch, plot.draw_scores, read_runs([tmp_path])[0][1:], tmp_path, "")
    assert len(others) == 1 and "hidden-dims 8" in others[0].get_title()
    thick = {line.get_label(): line for line in axes.lines if line.get_linewidth() > 1}
    assert len(axes.lines) == len(thick) + 4  # one seed is its own mean
    assert set(thick) == {"DriftQL, alpha 10, 2 seeds", "DriftQL, alpha 3, 2 seeds", "FQL, 1 seed"}
    one, other, fql = (thick[label] for label in sorted(thick))
    assert one.get_ydata() == pytest.approx([0, 15, 30, 45, 45, 45])
    assert one.get_color() == other.get_color() != fql.get_color()
    assert one.get_linestyle() != other.get_linestyle()
    assert axes.get_ylabel() == "success in percent"


def test_corruption_is_drawn_over_the_share_of_random_actions(tmp_path, monkeypatch):
    for i, share in enumerate((0.0, 0.2, 0.4)):
        data = COLLECTED | {"sha256": str(i) * 64, "collection": COLLECTED["collection"] | {"p_random_action": share}}
        make_run(tmp_path, data=data, seeds=(0, 1), finals=(0.8 - share, 0.9 - share))
        make_run(tmp_path, data=data, finals=(0.1,), alpha=3.0)
        fewer = data | {"sha256": f"f{i}", "collection": data["collection"] | {"episodes": 200}}
        make_run(tmp_path, "fql", data=fewer, finals=(0.2,))
    (axes,) = drawn(monkeypatch, plot.draw_scores, read_runs([tmp_path])[0], tmp_path, "")
    assert axes.get_xlabel() == "random actions in the data, %"
    means = {line.get_label(): line for line in axes.lines if line.get_linewidth() > 1.7}
    (mean,) = [line for line in means.values() if line.get_ydata() == pytest.approx([85, 65, 45])]
    assert mean.get_xdata().tolist() == pytest.approx([0, 20, 40], abs=1)
    assert any("200 episodes" in " ".join(label.split()) for label in means)
    dots = np.concatenate([line.get_ydata() for line in axes.lines if line.get_marker() == "o"])
    assert {80, 90} <= set(np.round(dots))


def test_each_environment_has_its_own_picture_and_so_has_the_laptops_table(tmp_path):
    make_run(tmp_path / "runs")
    make_run(tmp_path / "runs", task=2)
    make_run(tmp_path / "runs", "fql", "cube-single-play", 2)
    random = COLLECTED | {"collection": COLLECTED["collection"] | {"p_random_action": 0.4}}  # one share is no picture
    make_run(tmp_path / "runs", "fql", "cube-single-play", 2, data=random, laptop=True)
    links = re.findall(r"!\[Scores\]\((.*)\)", written(tmp_path, pictures=True))
    names = "laptop", f"{ANT}-task-1", f"{ANT}-task-2", "cube-single-play-task-2"
    assert links == [f"report_files/{name}.png" for name in names]
    assert all((tmp_path / link).stat().st_size for link in links)
