"""One page from run directories: ours beside the papers' numbers, intervals over seeds, curves, sources of the numbers.

    python tools/report.py runs -o report.html                 # self-contained; also report.md, report.csv
    python tools/report.py runs --save results                 # config, result and metrics of finished runs, to be kept
    python tools/report.py results --readme README.md          # the table between the README's two marker comments

Scores are the benchmarks': success in percent, mean of the last three evaluations, on OGBench; the normalized return of
the last one on D4RL, beside a paper's if the data are D4RL's files, not Minari's or one's own. A mean comes with its
95% interval over seeds (Student's t), an interquartile mean with that of a stratified bootstrap. Papers' numbers:
tools/paper_results.csv, with the source of each.
"""

import csv
import io
import shutil
import sys
from pathlib import Path

import numpy as np
from page import page
from read_runs import Group, iqm_interval, mean_interval, read_runs
from shared import Parser, read_json
from tables import LIST_HEADER, Papers, benchmark, find_paper, hardware, list_row, read_papers, updates

from common import UserError
from common.cli import one_line_errors
from common.files import write_atomically, write_json

CSV_COLUMNS = """env task algo data official_data settings reduced metric seeds mean ci95_low ci95_high iqm scores
updates updates_per_second wall_seconds device paper_mean paper_std paper_seeds paper_steps paper_source runs"""
MARKERS = ("<!-- results: written by tools/report.py -->", "<!-- end of results -->")


def markdown_table(rows: list[list[str]]) -> str:
    """The first row is the header."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)


def markdown(groups: list[Group], papers: Papers) -> str:
    """A table with one row per group, and what its numbers mean."""
    table = markdown_table([LIST_HEADER, *(list_row(group, papers) for group in groups)])
    note = (
        "Success in percent, on D4RL the normalized return. Ours: the mean over seeds [95% interval, Student's t]; "
        "settings: what differs from the script's preset. Papers: mean ± standard deviation, at full size on the "
        "official data; none beside Minari's data or one's own file, nor where a paper gives none for the task."
    )
    return f"{table}\n\n{note}\n"


def readme_text(groups: list[Group], papers: Papers) -> str:
    """The benchmark's table, with the cells that are still empty, and below it what else was run on a paper's tasks,
    also by an algorithm for which there is no published number: of each algorithm its largest runs."""
    rows, others = benchmark(groups, papers)
    tasks = {(env, task) for env, task, _ in papers}
    others = largest([group for group in others if group.comparable and (group.env, str(group.task or "")) in tasks])
    text = markdown_table(rows) + "\n"
    if others:
        which = "of several runs the longest, if possible of the preset's sizes"
        text += f"\nSmaller, with other settings, or on other data; {which}:\n\n{markdown(others, papers)}"
    return text


def largest(groups: list[Group]) -> list[Group]:
    """Of each task, data and algorithm those of the preset's sizes, if there are any, and of these those with the most
    updates: a choice that does not look at the score."""
    alike: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        alike.setdefault((group.place, group.words, group.algo), []).append(group)
    return [group for each in alike.values() for group in each if size(group) == max(map(size, each))]


def size(group: Group) -> tuple[bool, int]:
    """Whether networks, batches and numbers of samples are the preset's at least, and the updates."""
    return not set(group.smaller) - {"steps", "eval_episodes"}, updates(group)


def write_csv(groups: list[Group], papers: Papers, file) -> None:
    """One row per group, numbers without rounding."""
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(CSV_COLUMNS.split())
    for group in groups:
        results = [seed.result for seed in group.seeds]
        paper = find_paper(papers, group) or ("", "", "", "", "")
        rows.writerow([
            group.env, group.task or "", group.algo, group.data, group.official, group.settings_text, group.reduced,
            group.metric, " ".join(str(seed.seed) for seed in group.seeds), *mean_interval(group.scores, group.bounds),
            iqm_interval([group.scores])[0], " ".join(f"{score:.6g}" for score in group.scores), updates(group),
            np.mean([result["updates_per_second"] for result in results]),
            np.mean([result["wall_seconds"] for result in results]), hardware(group), *paper,
            " ".join(dict.fromkeys(seed.run.name for seed in group.seeds)),
        ])  # fmt: skip


def write_readme(path: Path, table: str) -> None:
    """Replaces what stands between the two marker lines. Raises UserError if they are not there."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8.") from None
    before, first, rest = text.partition(MARKERS[0])
    _, last, after = rest.partition(MARKERS[1])
    if not (first and last):
        raise UserError(f"{path} needs the lines {MARKERS[0]} and {MARKERS[1]}, between which the table goes.")
    write_atomically(path, f"{before}{first}\n\n{table}\n{last}{after}")


def save(groups: list[Group], folder: Path) -> None:
    """Copies config.json, result.json and metrics.csv of the finished runs; absolute paths lose their folders."""
    for run in dict.fromkeys(seed.run for group in groups for seed in group.seeds):
        content = {name: _without_folders(read_json(run / name)) for name in ("config.json", "result.json")}
        target, number = folder / run.name, 1
        while (there := read_json(target / "config.json")) and not _same_run(there, content["config.json"]):
            number += 1  # jobs of a sweep that began in the same second, in folders of their own
            target = folder / f"{run.name}-{number}"
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name, values in content.items():
                write_json(target / name, values)
            if (run / "metrics.csv").exists():
                shutil.copyfile(run / "metrics.csv", target / "metrics.csv")
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}.") from None
        print(target)


def _same_run(one: dict, other: dict) -> bool:
    """Of two configurations of one name: whether they are those of one run, which --steps may have changed."""
    return one["args"] | {"steps": None} == other["args"] | {"steps": None}


def _without_folders(value):
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def main(argv: list[str]) -> None:
    parser = Parser("tools/report.py", __doc__)
    parser.add_argument("runs", type=Path, help="folder with run directories, at any depth")
    parser.add_argument(
        "-o", "--out", type=Path, action="append", default=[], help="NAME.html, .md or .csv; repeatable"
    )
    parser.add_argument("--readme", type=Path, help="write the table between the marker comments of this file")
    parser.add_argument("--save", type=Path, help="copy the small files of finished runs to this folder")
    args = parser.parse_args(argv)
    for path in args.out:
        if path.suffix not in (".html", ".md", ".csv"):
            raise UserError(f"-o {path}: the name must end in .html, .md or .csv.")
    if not (args.out or args.readme or args.save):
        raise UserError("say what to write: -o report.html, --readme README.md or --save results.")
    if args.save and args.save.resolve().is_relative_to(args.runs.resolve()):
        raise UserError(f"--save {args.save}: the runs are there already; name a folder outside of {args.runs}.")
    groups, left_out = read_runs(args.runs)
    papers = read_papers()
    for path in args.out:
        text = io.StringIO()
        if path.suffix == ".csv":
            write_csv(groups, papers, text)
        else:
            is_page = path.suffix == ".html"
            text.write(page(groups, left_out, papers, args.runs) if is_page else markdown(groups, papers))
        write_atomically(path, text.getvalue())
        print(path)
    if args.readme:
        write_readme(args.readme, readme_text(groups, papers))
    if args.save:
        save(groups, args.save)
    for run, reason in left_out:
        print(f"left out {run.relative_to(args.runs)}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    with one_line_errors("report"):
        main(sys.argv[1:])
