"""Tables of finished runs: what was varied, the algorithms beside the papers' numbers, and how each number was made.

    python tools/report.py runs -o report.html     # or report.md; learning curves are in report_files/
    python tools/report.py runs/sweep other/run -o table.csv    # a row per seed, numbers without rounding

Scores are the benchmarks': success in percent, the mean of the last three evaluations, on OGBench; the normalized
return of the last evaluation on D4RL. The papers' numbers are in tools/paper_results.csv, with the source of each.
"""

import csv
import datetime
import io
import re
import sys
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import scipy.stats
from shared import Parser, Run, blocks, check_output, flags_text, read_runs, split, table, titles, value_text, varied

from common.args import one_line_errors
from common.system import require, say, write_atomically

MOST_PICTURES = 60  # environments
OTHER_METHODS = {"drol*": "DROL*", "bc": "BC", "iql": "IQL", "rebrac": "ReBRAC", "ifql": "IFQL", "fbrac": "FBRAC"}
INTRODUCTION = """Scores: success in percent, on OGBench the mean of the last three evaluations; on D4RL the normalized
return of the last evaluation. Each cell lists the score of every seed. With several seeds their mean follows, and from
five seeds on its 95% bootstrap interval. The papers' numbers are mean ± standard deviation over seeds, for the official
data and the papers' sizes. Tables never mix sizes."""
STYLE = """body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; display: block; overflow-x: auto } img { max-width: 100% }
td, th { border: 1px solid #ccc; padding: .2em .6em; text-align: left; vertical-align: top }"""
ESCAPED = str.maketrans({sign: f"&#{ord(sign)};" for sign in "<>&|[]`*\\$~"})


def line(value: Any) -> str:
    """Any text in one line of signs that can be printed."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(value)).split())


def text(value: Any) -> str:
    """A text of a run as Markdown without a meaning: no HTML, link, code, emphasis or end of a cell."""
    return re.sub(r"(?<!\w)_|_(?!\w)", "&#95;", line(value).translate(ESCAPED))


def number(value: float) -> str:
    return f"{round(value, 1) + 0.0:g}" if abs(value) < 1e5 else f"{value:,.0f}"


def score_text(run: Run) -> str:
    """`85 · 40 (mean 62.5)`: every seed's score; from five seeds on with an interval."""
    scores, notes = list(run.scores.values()), []
    if len(scores) > 1:
        notes.append(f"mean {number(mean(run))}")
    if len(scores) >= 5:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # equal scores
            options = {"method": "percentile", "random_state": np.random.default_rng(0)}
            low, high = scipy.stats.bootstrap((scores,), np.mean, **options).confidence_interval
        notes.append(f"{number(low)} to {number(high)}")
    if run.task and run.counted < 3:
        notes.append(f"of {run.counted} evaluation{'s' * (run.counted > 1)}")
    return " · ".join(map(number, scores)) + (f" ({', '.join(notes)})" if notes else "")


def mean(run: Run) -> float:
    return float(np.mean(list(run.scores.values())))


# -------------------------------------------------------------------------------------------------------------- papers


def read_papers() -> dict[tuple[str, ...], dict[str, str]]:
    """(environment, task, algorithm) -> the row of tools/paper_results.csv."""
    with open(Path(__file__).with_name("paper_results.csv"), newline="", encoding="utf-8") as file:
        return {(row["env"], row["task"], row["algo"]): row for row in csv.DictReader(file)}


def find_paper(papers: dict, run: Run, algo: str) -> dict[str, str]:
    """The published number for a run's task; empty if there is none, or if the run's data are others."""
    comparable = run.metric != "return" and run.dataset.get("source") not in ("user", "minari")
    return papers.get((run.env, str(run.task or ""), algo), {}) if comparable else {}


def paper_text(row: dict[str, str]) -> str:
    return (f"{float(row['mean']):g}" if row else "") + (f" ± {float(row['std']):g}" if row.get("std") else "")


def paper_tables(groups: list[Run], papers: dict) -> list[str]:
    """All published numbers for the tasks that were run."""
    names = titles() | OTHER_METHODS
    sources: dict[str, None] = {}
    rows = {"task": ["task", *names.values()]}
    for group in groups:
        found = [find_paper(papers, group, name) for name in names]
        sources |= {row["source"]: None for row in found if row}
        if any(found):
            rows[group.place] = [text(group.place), *map(paper_text, found)]
    if not sources:
        return []
    return ["## The papers' numbers for these tasks", table(list(rows.values())), f"Sources: {'; '.join(sources)}."]


# --------------------------------------------------------------------------------------------------------------- report


def markdown(groups: list[Run], runs: list[Run], left_out: list[tuple[Path, str]], pictures: list[str]) -> str:
    """The report. pictures: where the learning curves of each block are, or nothing."""
    papers, parts = read_papers(), ["# Results", INTRODUCTION]
    if len({group.place for group in groups}) > MOST_PICTURES:
        parts.append(f"Learning curves are drawn for up to {MOST_PICTURES} environments; these are more.")
    before = None
    for block, picture in zip(blocks(groups), pictures):
        one = block[0]
        rest = flags_text({name: value for name, value in one.size.items() if name != "steps"})
        size = f"{one.args['steps']:,} updates, {text(rest) or 'the rest as in the preset'}"
        data = f"Data: {text(one.data)}. Score: {one.unit}."
        if (one.place, data) != before:
            parts += [f"## {text(one.place)}", data]
        before = one.place, data
        parts += [f"### {size if one.size else 'The preset size'}", *block_tables(block, papers)]
        parts += [f"![Learning curves]({quote(picture)})"] if picture else []
    parts += paper_tables(groups, papers)
    rows = [["run", "command", "score", "data", "updates per second", "time", "device", "commit"]]
    for run in sorted(runs, key=lambda run: run.path):
        cells = [run.path.name, command(run), score_text(run), run.data, f"{run.speed:,.0f}"]
        cells += [str(datetime.timedelta(seconds=round(run.seconds))), run.device, run.commit]
        rows.append([text(cell) for cell in cells])
    parts += ["## All finished runs", table(rows)] if runs else []
    if left_out:
        rows = [["directory", "why"], *([text(path.name), text(reason)] for path, reason in left_out)]
        summary = f"<summary>{len(left_out)} left out: unfinished, repeated or damaged</summary>"
        parts.append(f'<details markdown="1">{summary}\n\n{table(rows)}\n\n</details>')
    return "\n\n".join(parts) + "\n"


def command(run: Run) -> str:
    """The script's flags that differ from the preset."""
    flags = [f"--env {run.env}", f"--seed {min(run.scores)}"]
    flags += [f"--num-seeds {len(run.scores)}"] if len(run.scores) > 1 else []
    for name, value in run.changed.items():
        flag = name.replace("_", "-")
        flags.append(f"--{'no-' * (not value)}{flag}" if isinstance(value, bool) else f"--{flag} {value_text(value)}")
    return f"{run.algo}.py {' '.join(flags)}"


def block_tables(block: list[Run], papers: dict) -> list[str]:
    """Of runs of one problem and size: a table of what was varied for each algorithm with several settings, then the
    algorithms side by side."""
    found, beside = [], []
    for alike in split(block, lambda run: run.algo):
        if len({flags_text(run.settings) for run in alike}) == 1:
            beside += alike
            continue
        names, best = varied(alike), max(map(mean, alike))
        rows = [[text(alike[0].title), *(text(name.replace("_", "-")) for name in names), "score"]]
        for run in alike:
            cells = [text(value_text(run.args.get(x))) + " (preset)" * (x not in run.changed) for x in names]
            score, is_best = text(score_text(run)), mean(run) == best
            rows.append(["best" if is_best else "", *cells, f"**{score}**" if is_best else score])
        found.append(table(rows))
        beside += [run for run in alike if not run.settings]
    columns = {run.algo: text(run.title) for run in beside}
    shown: dict[str, dict[str, str]] = {}
    for run in beside:
        label = flags_text(run.settings) or "preset"
        if run.algo in shown.get(label, {}):  # the same settings, measured in another way
            label = flags_text({name: value for name, value in run.changed.items() if name not in run.size})
        shown.setdefault(label, {})[run.algo] = text(score_text(run))
    rows = [["settings", *columns.values()]]
    rows += [[text(label), *(row.get(algo, "") for algo in columns)] for label, row in shown.items()]
    paper = [paper_text(find_paper(papers, block[0], algo)) for algo in columns]
    if beside and (not found or len(columns) > 1 or any(paper)):
        found.append(table([*rows, ["paper, official data", *paper]]))
    return found


def draw(groups: list[Run], folder: Path) -> list[str]:
    """Draws the learning curves of each block. Returns their paths relative to the report; an empty one for what could
    not be drawn, which is a line on standard error."""
    found: list[str] = []
    for block in blocks(groups):
        found.append("")
        try:
            if len({group.place for group in groups}) <= MOST_PICTURES:
                from plot import draw_curves, file_name

                folder.mkdir(exist_ok=True)
                name = file_name(block[0], found, f"{folder.name}/")
                draw_curves(block, folder.parent / name)
                found[-1] = name
        except Exception as error:  # whatever it is, the tables are written
            print(line(f"no picture of {block[0].place}: {error}"), file=sys.stderr)
    return found


def page(content: str) -> str:
    """The Markdown as an HTML page."""
    require("markdown", "an HTML report", "report")
    import markdown  # an optional package

    body = markdown.markdown(content, extensions=["tables", "md_in_html"])
    head = f'<meta charset="utf-8"><title>Results</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def rows_of_seeds(runs: list[Run]) -> str:
    """The report as CSV, a row per seed. A text that a spreadsheet would compute gets an apostrophe."""
    papers, content = read_papers(), io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    names = "env task algo data settings metric seed score updates updates_per_second wall_seconds device commit run"
    writer.writerow([*names.split(), "paper_mean", "paper_std", "paper_source"])
    for run in sorted(runs, key=lambda run: run.path):
        paper = find_paper(papers, run, run.algo)
        for seed, score in run.scores.items():
            row = [run.env, run.task or "", run.algo, run.data, flags_text(run.changed), run.metric, seed, score]
            row += [run.args["steps"], run.speed, run.seconds, run.device, run.commit, run.path.name]
            row += [paper.get(name, "") for name in ("mean", "std", "source")]
            row = [line(cell) if isinstance(cell, str) else cell for cell in row]
            writer.writerow(f"'{x}" if isinstance(x, str) and x.startswith(("=", "+", "-", "@")) else x for x in row)
    return content.getvalue()


def main(argv: list[str]) -> None:
    parser = Parser("tools/report.py", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories, or folders with some at any depth")
    parser.add_argument("-o", "--out", type=Path, required=True, help="NAME.html, NAME.md or NAME.csv")
    args = parser.parse_args(argv)
    check_output(args.out, ("html", "md", "csv"))
    groups, runs, left_out = read_runs(args.runs)
    if args.out.suffix == ".csv":
        content = rows_of_seeds(runs)
    else:
        content = markdown(groups, runs, left_out, draw(groups, args.out.with_name(f"{args.out.stem}_files")))
        content = page(content) if args.out.suffix == ".html" else content
    write_atomically(args.out, content.encode())
    for path, reason in left_out:
        print(line(f"left out {path}: {reason}"), file=sys.stderr)
    say(str(args.out))


if __name__ == "__main__":
    with one_line_errors("report"):
        main(sys.argv[1:])
