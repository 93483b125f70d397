"""Tables of finished runs: the algorithms and what was varied, beside the papers' numbers, and how each run was made.

    python tools/report.py runs -o report.html     # with a row per run; pictures are in report_files/
    python tools/report.py runs -o report.md --no-pictures
    python tools/report.py runs/sweep other/run -o table.csv    # a row per seed, numbers without rounding

Scores are the benchmarks': success in percent, the mean of the last three evaluations, on OGBench; the normalized
return of the last evaluation on D4RL. The papers' numbers are in tools/paper_results.csv, with the source of each.

A mean over tasks is taken over tasks that the papers report, so not over bandits, small mazes or your own environments.
It needs three seeds in each of at least two tasks, at one size, and all on official data, or all on collected ones.
Runs with --laptop have a table of their own instead.
"""

import csv
import functools
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import plot
import shared
from scipy.stats import trim_mean
from shared import LAPTOP_SIZE, PRESET_SIZE, Run, flags_text, line, split, table, titles, value_text

from common.args import one_line_errors
from common.system import require, say, write_atomically

OTHER_METHODS = {"drol*": "DROL*", "bc": "BC", "iql": "IQL", "rebrac": "ReBRAC", "ifql": "IFQL", "fbrac": "FBRAC"}
INTRODUCTION = """Each cell lists the score of every seed, with their mean if there are several, and from five seeds on
its 95% bootstrap interval. On OGBench a score is the mean of the last three evaluations, elsewhere it is the last one.
A bandit's rarest best mode is the share of actions near the best mode that is met least: 50 is the most of two modes.
A row that names no data has those of the row above. The best of several settings at one size is bold. "Selected
offline" is the evaluation that a paper's model selection by the denoising loss takes. The papers' numbers are mean ±
standard deviation over seeds."""
IQM = functools.partial(trim_mean, proportiontocut=0.25)  # the half in the middle (Agarwal et al., arXiv 2108.13264)
STYLE = """body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; display: block; overflow-x: auto; margin-bottom: 1em } img { max-width: 100% }
td, th { border: 1px solid #ccc; padding: .2em .6em; text-align: left; vertical-align: top; min-width: 5em }
td:first-child { min-width: 9em }"""
ESCAPED = str.maketrans({sign: f"&#{ord(sign)};" for sign in "<>&|[]`*\\$~"})


def text(value: Any) -> str:
    """A text of a run as Markdown without a meaning: no HTML, link, code, emphasis or end of a cell."""
    # Underscores may stay inside a word, where a single one has no meaning.
    return re.sub(r"__+|(?<!\w)_|_(?!\w)", lambda match: "&#95;" * len(match[0]), line(value).translate(ESCAPED))


def number(value: float) -> str:
    return f"{round(value, 1) + 0.0:g}" if abs(value) < 1e5 else f"{value:,.0f}"


def score_text(runs: list[Run]) -> str:
    """`85 · 40 (mean 62.5)`: every seed's score; from five seeds on with an interval."""
    scores, notes = [run.score for run in runs], []
    if len(scores) > 1:
        notes.append(f"mean {number(mean(runs))}")
    if len(scores) >= 5:
        notes.append(interval([scores], np.mean))
    if runs[0].task and runs[0].counted < 3:
        notes.append(f"of {runs[0].counted} evaluation{'s' * (runs[0].counted > 1)}")
    if "" not in (chosen := [selected(run) for run in runs]):
        notes.append(f"selected offline {' · '.join(map(number, chosen))}")
    if "" not in (modes := [run.about["rarest_best_mode"] for run in runs]):
        notes.append(f"rarest best mode {' · '.join(map(number, modes))}")
    return " · ".join(map(number, scores)) + (f" ({', '.join(filter(None, notes))})" if notes else "")


def mean(runs: list[Run]) -> float:
    return float(np.mean([run.score for run in runs]))


def interval(tasks: list[list[float]], statistic: Callable[..., np.ndarray]) -> str:
    """`60 to 80`: 95% of a statistic's values when the seeds are drawn again, with replacement, within each task. Empty
    if all seeds of a task are equal."""
    if all(len(set(scores)) == 1 for scores in tasks):
        return ""
    rng = np.random.default_rng(0)
    drawn = [np.array(scores)[rng.integers(len(scores), size=(9_999, len(scores)))] for scores in tasks]
    return " to ".join(map(number, np.percentile(statistic(np.hstack(drawn), axis=1), (2.5, 97.5))))


@functools.cache
def read_papers() -> dict[tuple[str, ...], dict[str, str]]:
    """(environment, task, algorithm) -> the row of tools/paper_results.csv."""
    with open(Path(__file__).with_name("paper_results.csv"), newline="", encoding="utf-8") as file:
        return {(row["env"], row["task"], row["algo"]): row for row in csv.DictReader(file)}


def find_paper(run: Run, algo: str) -> dict[str, str]:
    """The published number for a run's task; empty if there is none, or if the run's data are others."""
    comparable = run.metric != "return" and run.source not in ("user", "minari") and not run.args.get("online_steps")
    return read_papers().get((run.env, str(run.task or ""), algo), {}) if comparable else {}


def published(runs: list[Run]) -> list[Run]:
    """The runs on tasks that a paper has numbers for."""
    return [run for run in runs if any(find_paper(run, algo) for algo in titles() | OTHER_METHODS)]


def paper_text(row: dict[str, str]) -> str:
    return (f"{float(row['mean']):g}" if row else "") + (f" ± {float(row['std']):g}" if row.get("std") else "")


def task_tables(runs: list[Run]) -> list[str]:
    """Interquartile means over the same tasks, of all algorithms and settings that have them, as --help says."""

    def settings(run: Run) -> str:
        updates = {} if run.size == PRESET_SIZE else {"steps": run.args["steps"]}  # the preset's differ between tasks
        return flags_text(run.settings | updates)

    parts: list[str] = []
    for alike in split(published(runs), lambda run: (run.metric, run.source, run.size)):
        found: dict[tuple[str, ...], list[list[str]]] = {}  # tasks -> a row per algorithm and settings
        for same in split(alike, lambda run: (run.algo, settings(run))):
            tasks = [x for x in split(same, lambda run: run.place) if len({run.data for run in x}) == 1]
            tasks = [x for x in tasks if len({run.seed for run in x}) == len(x) >= 3]
            if len(tasks) > 1:
                scores = [[run.score for run in seeds] for seeds in tasks]
                names = [text(same[0].title), text(settings(same[0])) or "preset"]
                row = [*names, number(float(IQM(np.hstack(scores)))), interval(scores, IQM)]
                found.setdefault(tuple(seeds[0].place for seeds in tasks), []).append(row)
        for places, rows in found.items():
            what = f"{shared.METRICS[alike[0].metric]}, data: {shared.SOURCES.get(alike[0].source)}, at {alike[0].size}"
            head = ["algorithm", "settings", "interquartile mean", "95% bootstrap interval"]
            parts += [f"## Over {len(places)} tasks", f"{text(', '.join(places))}; {text(what)}.", table([head, *rows])]
    return parts


def paper_table(runs: list[Run]) -> list[str]:
    """Laid out like the papers' tables: for each task that was run a row of their numbers, under ours at the preset's
    size."""
    names, sources = titles() | OTHER_METHODS, dict[str, None]()
    rows = [["task", "", *names.values()]]
    for here in split(published(runs), lambda run: run.place):
        ours = [run for run in here if run.size == PRESET_SIZE and not run.settings]
        for alike in split(ours, lambda run: run.data):
            cells = {seeds[0].algo: score_text(seeds) for seeds in split(alike, lambda run: run.algo)}
            row = [alike[0].place, f"ours, {alike[0].data}", *(cells.get(algo, "") for algo in names)]
            rows.append([text(cell) for cell in row])
        theirs = [find_paper(here[0], algo) for algo in names]
        rows.append([text(here[0].place), "papers, official data", *map(paper_text, theirs)])
        sources |= dict.fromkeys(row["source"] for row in theirs if row)
    heading = "## Beside the papers' tables"
    return [heading, table(rows), f"Sources: {'; '.join(sources)}."] if sources else []


def selected(run: Run) -> Any:
    """The score of the evaluation that offline model selection takes, where a paper's number is of such a one, else "".
    The loss of denoising since the evaluation before it is the lowest, or the lowest but one or two."""
    if not (rank := find_paper(run, run.algo).get("selection_rank")):
        return ""
    losses: dict[int, list[float]] = {step: [] for step in run.curve if step}
    try:
        with open(run.path / "train.csv", newline="") as file:
            for row in csv.DictReader(file):  # the values of a grid are columns too
                same = all(float(row[x]) == run.args[x] for x in row.keys() & run.args.keys())
                if int(row["seed"]) == run.seed and same:
                    after = min(step for step in losses if step >= int(row["step"]))
                    losses[after].append(float(row["losses/denoising"]))
        order = sorted((step for step in losses if losses[step]), key=lambda step: np.mean(losses[step]))
        return run.curve[order[int(rank)]]
    except (OSError, ValueError, TypeError, LookupError):  # the log is missing, damaged or too short
        return ""


def markdown(runs: list[Run], left_out: list[tuple[Path, str]], folder: Path | None) -> str:
    """All tables. folder: of the pictures, None for none."""
    parts = ["# Results", INTRODUCTION.replace("\n", " "), *laptop_table(runs, folder)]
    others = [run for run in runs if not in_laptop_table(run)]
    for here in split(others, lambda run: run.place):
        for alike in split(here, lambda run: run.metric):
            parts.append(f"## {text(here[0].place)}: {shared.METRICS[alike[0].metric]}")
            parts += [score_table(block) for block in split(alike, lambda run: run.size)]
        parts += pictures(here, folder, here[0].place)
    parts += task_tables(others) + paper_table(others)
    if left_out:
        reasons = [f"- {text(path.name)}: {text(reason)}" for path, reason in left_out]
        parts.append(folded("Left out: unfinished, repeated or damaged", "\n".join(reasons)))
    return "\n\n".join(parts) + "\n"


def folded(title: str, content: str) -> str:
    """A part that is shown when its title is clicked. GitHub reads it so, and the library by its `md_in_html`."""
    return f'<details markdown="1"><summary>{title}</summary>\n\n{content}\n\n</details>'


def score_table(runs: list[Run]) -> str:
    """Runs of one size: a row per data (named once), number of updates, and settings; a column per algorithm."""
    columns = {run.algo: text(run.title) for run in sorted(runs, key=lambda run: run.title)}
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for alike in split(runs, lambda run: (run.data, run.algo, run.args["steps"])):
        lines, varied = shared.same_settings(alike), {name for run in alike for name in run.settings}
        for seeds in lines:
            run, cell = seeds[0], text(score_text(seeds))
            updates = "" if run.size == PRESET_SIZE else f"{run.args['steps']:,}"
            row = run.data, updates, flags_text(run.settings)
            if run.algo in rows.get(row, {}):  # the same settings, measured in another way
                named = {name: run.args.get(name) for name in (*run.settings, *shared.MEASURED)}
                row = run.data, updates, flags_text(named)
            if varied and len(lines) > 1:
                cell = f"**{cell}**" if mean(seeds) == max(map(mean, lines)) else cell
                cell += "" if run.settings else f" at {text(flags_text({name: run.args.get(name) for name in varied}))}"
            rows.setdefault(row, {})[run.algo] = cell
    found, above = [["data", "updates", f"settings, at {text(runs[0].size)}", *columns.values()]], ""
    for row in sorted(rows, key=lambda row: [shared.natural(cell) for cell in row]):
        data, updates, settings = map(text, row)
        cells = [data * (data != above), updates, settings or "preset", *(rows[row].get(algo, "") for algo in columns)]
        found, above = [*found, cells], data
    return table(found)


def in_laptop_table(run: Run) -> bool:
    """Whether a run has the settings of --laptop and no others."""
    return run.size == LAPTOP_SIZE and not run.settings


def laptop_table(runs: list[Run], folder: Path | None) -> list[str]:
    """The runs with --laptop: a row per task, its updates and its data, a column per algorithm."""
    if not (runs := [run for run in runs if in_laptop_table(run)]):
        return []
    columns = {run.algo: text(run.title) for run in sorted(runs, key=lambda run: run.title)}
    rows = [["task, updates and data", *columns.values()]]
    for alike in split(runs, lambda run: (run.place, run.args["steps"], run.data)):
        cells = {seeds[0].algo: text(score_text(seeds)) for seeds in split(alike, lambda run: run.algo)}
        what = f"{alike[0].place}, {alike[0].args['steps']:,} updates; {alike[0].data}"
        rows.append([text(what), *(cells.get(algo, "") for algo in columns)])
    for name, unit, label in (("updates_per_second", 1, "updates per second"), ("wall_seconds", 60, "minutes in all")):
        taken = [[run.about[name] / unit for run in runs if run.algo == algo] for algo in columns]
        rows.append([f"{label}, of a run's seeds together", *(f"{min(x):.0f} to {max(x):.0f}" for x in taken)])
    size = flags_text({name: runs[0].args[name] for name in ("hidden_dims", "batch_size", "eval_episodes")})
    what = f"{text(size)}. Score: {shared.METRICS[runs[0].metric]}."
    return ["## With `--laptop`", what, table(rows), *pictures(runs, folder, "laptop")]


def command(run: Run) -> str:
    """The script's flags that differ from the preset, but for those of the data."""
    flags = [f"{run.algo}.py --env {run.env}", *([f"--task {run.task}"] if run.task else []), f"--seed {run.seed}"]
    flags += ["--laptop"] * bool(run.args.get("laptop"))
    for name, value in run.changed.items():
        flag, words = name.replace("_", "-"), value_text(value).replace(",", "")
        flags.append(f"--{'no-' * (not value)}{flag}" if isinstance(value, bool) else f"--{flag} {words}")
    return " ".join(flags)


def rows_of_seeds(runs: list[Run]) -> list[list[Any]]:
    """A row per seed with all that is known of it, header first."""
    rows = []
    for run in sorted(runs, key=lambda run: run.path):
        row: dict[str, Any] = {"env": run.env, "task": run.task or "", "algo": run.algo, "seed": run.seed}
        row |= {"data": run.data, "command": command(run), "updates": run.args["steps"]}
        row |= {"metric": run.metric, "score": run.score, "selected_offline": selected(run)}
        paper = {f"paper_{name}": find_paper(run, run.algo).get(name, "") for name in ("mean", "std", "source")}
        rows.append(row | run.about | {"run": run.path.name} | paper)
    return [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []


def spreadsheet(rows: list[list[Any]]) -> str:
    """The rows as CSV."""
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows(rows)
    return content.getvalue()


def pictures(here: list[Run], folder: Path | None, name: str) -> list[str]:
    """Links to the pictures of runs, drawn into the folder, if there is one, in files of this name. What cannot be
    drawn is a line on standard error."""
    if folder is None:
        return []
    try:
        return [f"![Scores]({quote(f'{folder.name}/{path.name}')})" for path in plot.draw_scores(here, folder, name)]
    except Exception as error:  # whatever it is, the tables are written
        print(line(f"no picture of {name}: {error}"), file=sys.stderr)
        return []


def page(content: str) -> str:
    """The Markdown as an HTML page."""
    require("markdown", "an HTML report", "report")
    import markdown  # an optional package

    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Results</title>'
    body = markdown.markdown(content, extensions=["tables", "md_in_html"])
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n'


def main(argv: list[str]) -> None:
    parser = shared.Parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories, or folders with some at any depth")
    parser.add_argument("-o", "--out", type=Path, required=True, help="NAME.html, NAME.md or NAME.csv")
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="tables alone")
    args = parser.parse_args(argv)
    shared.check_output(args.out, ("html", "md", "csv"))
    runs, left_out = shared.read_runs(args.runs)
    if args.out.suffix == ".csv":
        content = spreadsheet(rows_of_seeds(runs))
    else:
        folder = args.out.with_name(f"{args.out.stem}_files") if args.pictures else None
        content = markdown(runs, left_out, folder)
    if args.out.suffix == ".html":
        rows = [[text(value_text(cell)) for cell in row] for row in rows_of_seeds(runs)] or [["none"]]
        content = page(f"{content}\n{folded('All finished runs', table(rows))}\n")
    write_atomically(args.out, content.encode())
    say(str(args.out))


if __name__ == "__main__":
    with one_line_errors("report"):
        main(sys.argv[1:])
