"""README.md's numbers and the successes in the lab notes come out of results/ again. Sentences with † are about runs
that were not kept. docs/results.md is compared in test_report.py."""

import csv
import json
import re
from collections import defaultdict

from helpers import ROOT

NUMBER = r"(?:0(?:\.\d+)?|1)"  # a success
LIST = re.compile(rf"(?<![\d.,]){NUMBER}(?:(?:, and |, | and | · ){NUMBER})+(?![\d.]|,\d)")
MEASURES = ("seed", "num_seeds", "run_dir", "progress", "data", "data_dir", "eval_workers", "log_every", "save_every")


def kept() -> list[dict]:
    """Each seed of each kept run: algorithm, environment, the arguments that matter, and its curve, step -> success."""
    found = []
    for path in sorted(ROOT.glob("results/*/result.json")):
        result, config = json.loads(path.read_text()), json.loads((path.parent / "config.json").read_text())
        settings = {name: x for name, x in config["args"].items() if name not in MEASURES}
        for part in result.get("grid", [result]):
            about = {name: result[name] for name in ("algo", "env", "task")} | {"data": result["dataset"]["sha256"]}
            about |= {"settings": settings | part.get("values", {}), "path": path.parent}
            for i, seed in enumerate(result["seeds"]):
                evaluations = [x for x in part["evaluations"] if "success" in x]
                found.append(about | {"seed": seed, "curve": {x["step"]: x["success"][i] for x in evaluations}})
    return found


RUNS = kept()


def sequences() -> list[list[float]]:
    """The curves of all seeds, with and without what is not on the grid of --eval-every, and at each step the values of
    all seeds of the same settings."""
    together, curves = defaultdict(list), []
    for run in RUNS:
        for step, value in run["curve"].items():
            alike = {name: x for name, x in run["settings"].items() if name != "steps"}
            together[run["algo"], run["env"], run["data"], json.dumps(alike), step].append(value)
        regular = [x for step, x in run["curve"].items() if step % run["settings"]["eval_every"] == 0]
        curves += [list(run["curve"].values()), regular]
    with open(ROOT / "docs" / "antmaze-authors.csv", newline="") as file:
        for row in csv.DictReader(file):
            together[row["q_agg"]] += [float(row["success"])] if row["success"] else []
    return curves + list(together.values())


def test_success_in_the_lab_notes_is_that_of_kept_runs():
    """Each list of successes, in a sentence, a cell or a row of a table, is part of a curve, or the seeds of a step."""
    found, text = sequences(), (ROOT / "docs" / "lab-notes.md").read_text().partition("\n## Speed")[0]  # which is all †
    told = []
    for line in re.sub(r"\n(?![\n|*-])", " ", text).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        rows = [cell for cell in cells[1:] if re.fullmatch(NUMBER, cell)]
        sentences = cells or re.split(r"(?<=[.;:]) ", line)
        lists = [match[0] for sentence in sentences if "†" not in sentence for match in LIST.finditer(sentence)]
        told += [re.findall(NUMBER, words) for words in lists] + ([rows] if len(rows) > 3 else [])
    told = [[float(x) for x in words] for words in told if len(words) > 2]
    unknown = [x for x in told if not any(x == y[i : i + len(x)] for y in found for i in range(len(y)))]
    assert len(told) > 60 and not unknown, unknown


def test_the_table_of_the_readme_is_that_of_kept_runs():
    """Of each task, algorithm and seed one run with --laptop: the mean of its last three evaluations, in percent."""
    block = (ROOT / "README.md").read_text().partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    head, _, *rows = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("|")]
    titles = {"DriftQL": "driftql", "FQL": "fql", "DROL": "drol", "Diffusion-QL": "diffusion_ql", "IDQL": "idql"}
    assert len(rows) == 4 and head == list(titles) and "three layers of 64, batches of 64" in block
    for place, *cells in rows:
        for algo, cell in zip(titles.values(), cells, strict=True):
            found = {}
            for run in RUNS:
                laptop = run["settings"].get("laptop") and not run["settings"].get("online_steps")
                if laptop and (run["algo"], f"{run['env']} task {run['task']}") == (algo, place):
                    assert (run["seed"] in found, run["settings"]["hidden_dims"]) == (False, [64] * 3)
                    found[run["seed"]] = f"{100 * sum(list(run['curve'].values())[-3:]) / 3:.0f}"
            assert list(found) == [0, 1, 2] and cell == " · ".join(found.values()), (place, algo)
