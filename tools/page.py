"""The report as one HTML page that refers to nothing outside. Called by tools/report.py."""

import base64
import html
import io
from pathlib import Path

from curves import by_problem, draw_curves
from read_runs import TITLES, Group
from shared import ROOT, duration
from tables import (
    LIST_HEADER,
    Papers,
    aggregates,
    command,
    default_task,
    hardware,
    list_row,
    paper_text,
    reach_text,
    score_text,
)

from common.plots import pyplot

BASELINES = {"drol*": "DROL*", "bc": "BC", "iql": "IQL", "rebrac": "ReBRAC", "ifql": "IFQL", "fbrac": "FBRAC"}
THRESHOLDS = (50, 90)  # success in percent, or a normalized return

COMPARISON = """Success in percent, on D4RL the normalized return. Ours: the mean over seeds [95% interval, Student's
t], a link to its command, data and hardware; a cell without one was not run. Papers: mean ± standard deviation, at full
size on the official data; the source of each is listed below the table. What is tagged
<span class=tag>not official data</span> or <span class=tag>reduced</span> is not comparable with the paper's number
above it. Runs on Minari's data or on one's own file have no such number: they stand in the next table alone."""
FINISHED = """Time to a score: the first evaluation that reaches it, the median over the seeds that do. A single
evaluation is noisy. The time is that of training, all seeds of a run together, with --grid those of all combinations,
without compilation and evaluation."""
OVER_TASKS = """Interquartile mean of all scores [95% interval, stratified bootstrap over seeds], and the mean of the
tasks' means. Only rows over the same tasks can be compared."""
CURVES = "Mean over seeds; shaded: its 95% interval, for three seeds and more."

OPEN_TARGET = """const open = () => { const part = location.hash && document.querySelector(location.hash);
if (part) { part.open = true; part.scrollIntoView() } }; addEventListener("hashchange", open); open()"""


def e(text) -> str:
    return html.escape(str(text))


def page(groups: list[Group], left_out: list[tuple[Path, str]], papers: Papers, folder: Path) -> str:
    """The whole page. folder: to which the paths of `left_out` are shown relative."""
    anchors = {id(group): f"run-{i}" for i, group in enumerate(groups)}
    out = [[f"<code>{e(path.relative_to(folder))}</code>", e(reason)] for path, reason in left_out]
    pictures = "".join(map(picture, by_problem(groups).values()))
    sections = {
        "Ours and the papers'": f"<p>{COMPARISON}</p>{comparison(groups, papers, anchors)}",
        "All finished runs": f"<p>{FINISHED}</p>{finished(groups, papers, anchors)}",
        "Over tasks": f"<p>{OVER_TASKS}</p>{over_tasks(groups)}",
        "Learning curves": f'<p>{CURVES}</p><div class="curves">{pictures}</div>',
        "Where each number is from": "".join(provenance(group, anchors[id(group)]) for group in groups),
        "Left out": table(["directory", "why"], out) if out else "<p>Nothing.</p>",
    }  # fmt: skip
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections.items())
    runs = len({seed.run for group in groups for seed in group.seeds})
    summary = f"{runs} finished runs, {sum(len(group.seeds) for group in groups)} seeds"
    if left_out:
        summary += f"; {len(left_out)} directories left out, the reasons are at the end"
    style = (ROOT / "tools" / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Results</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body><h1>Results</h1><p>{summary}.</p>{body}<script>{OPEN_TARGET}</script></body></html>\n"
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{e(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def folded(title: str, content: str, attributes: str = "") -> str:
    return f"<details{attributes}><summary>{title}</summary>{content}</details>"


def tags(group: Group) -> str:
    words = [*([] if group.official else ["not official data"]), *(["reduced"] if group.reduced else [])]
    return " ".join(f'<span class="tag">{word}</span>' for word in words)


# ----------------------------------------------------------------------------------------------------------- the tables


def comparison(groups: list[Group], papers: Papers, anchors: dict[int, str]) -> str:
    """The papers' tasks x our algorithms. Seen at once: the benchmark's default tasks and all that we ran."""
    rows: dict[str, list[list[str]]] = {"seen": [], "mean": [], "other": [], "D4RL": []}
    for env, task in dict.fromkeys((env, task) for env, task, _ in papers):
        here = [group for group in groups if group.comparable and (group.env, str(group.task or "")) == (env, task)]
        cells = [e(_problem(env, task))]
        for algo in TITLES:
            ours = "".join(ours_cell(group, anchors) for group in here if group.algo == algo)
            cells.append(paper_cell(papers, (env, task, algo)) + ours)
        seen = here or task == default_task(env)
        rows["seen" if seen else {"": "D4RL", "mean": "mean"}.get(task, "other")].append(cells)
    header = ["", *TITLES.values()]
    baselines = [
        [e(_problem(env, task)), *(e(paper_text(papers.get((env, task, name)))) for name in BASELINES)]
        for env, task in dict.fromkeys((env, task) for env, task, algo in papers if algo in BASELINES)
    ]
    sources = [
        [e(env), e(task), e(algo), e(paper_text(paper)), e(paper.source)] for (env, task, algo), paper in papers.items()
    ]
    return (
        table(header, rows["seen"])
        + folded("Papers: means of the five tasks of an environment", table(header, rows["mean"]))
        + folded("Papers: OGBench's other tasks", table(header, rows["other"]))
        + folded("Papers: D4RL", table(header, rows["D4RL"]))
        + folded("Papers: other methods", table(["", *BASELINES.values()], baselines))
        + folded("Papers: the source of each number", table(["", "task", "method", "number", "source"], sources))
    )


def _problem(env: str, task: str) -> str:
    return f"{env} task {task}" if task.isdigit() else f"{env}, mean of tasks" if task else env


def ours_cell(group: Group, anchors: dict[int, str]) -> str:
    number = f'<a href="#{anchors[id(group)]}">{e(score_text(group))}</a>'
    label = f"{len(group.seeds)} seed{'s' * (len(group.seeds) > 1)}; data: {group.data}; {group.settings_text}"
    return f'<div class="ours">{number} {tags(group)}<span class="label">{e(label)}</span></div>'


def paper_cell(papers: Papers, key: tuple[str, str, str]) -> str:
    paper = papers.get(key)
    if paper is None:
        return ""
    facts = [paper.source, f"{paper.seeds} seeds" * bool(paper.seeds), f"{paper.steps} updates" * bool(paper.steps)]
    return f'<div class="paper" title="{e("; ".join(filter(None, facts)))}">paper {e(paper_text(paper))}</div>'


def finished(groups: list[Group], papers: Papers, anchors: dict[int, str]) -> str:
    rows = []
    for group in groups:
        row = dict(zip(LIST_HEADER, map(e, list_row(group, papers))))
        row["ours"] = f'<a href="#{anchors[id(group)]}">{row["ours"]}</a> {tags(group)}'
        row["settings"] = f'<span class="label">{row["settings"]}</span>'
        rows.append([*row.values(), *(e(reach_text(group, threshold)) for threshold in THRESHOLDS)])
    return table([*LIST_HEADER, *(f"time to {threshold}" for threshold in THRESHOLDS)], rows)


def over_tasks(groups: list[Group]) -> str:
    rows = [[e(cell) for cell in row] for row in aggregates(groups)]
    if not rows:
        return "<p>No two tasks were run with the same algorithm, data and settings.</p>"
    return table(["algorithm", "data", "settings", "tasks", "seeds", "score", "IQM", "mean"], rows)


# ------------------------------------------------------------------------------------------------- pictures and sources


def picture(groups: list[Group]) -> str:
    figure, content = draw_curves(groups), io.BytesIO()
    with pyplot().rc_context({"svg.hashsalt": "report"}):  # the same picture is the same text
        figure.savefig(content, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot().close(figure)
    source = base64.b64encode(content.getvalue()).decode()
    alt = f"Learning curves, {groups[0].place}, data: {groups[0].data}"
    return f'<img alt="{e(alt)}" src="data:image/svg+xml;base64,{source}">'


def provenance(group: Group, anchor: str) -> str:
    """Command, data and hardware of a group, where its numbers lead to."""
    runs = {seed.run: seed for seed in group.seeds}
    result = group.seeds[0].result
    data = result["dataset"]
    scores = ", ".join(f"seed {seed.seed}: {score:.4g}" for seed, score in zip(group.seeds, group.scores))
    speed = ", ".join(f"{seed.result['updates_per_second']:,.1f}" for seed in runs.values())
    wall = ", ".join(duration(seed.result["wall_seconds"]) for seed in runs.values())
    commits = ", ".join(sorted({str(seed.result.get("git_commit")) for seed in group.seeds}))
    versions = _of_all(group, "versions")
    transitions = f"{data['transitions']:,} transitions, " if data.get("transitions") else ""
    digest = f"sha256 <code>{e(data['sha256'])}</code>" if data.get("sha256") else "no file"
    facts = {
        "command": f"<pre>{e(chr(10).join(dict.fromkeys(command(seed.config) for seed in runs.values())))}</pre>",
        "data": f"{e(group.data)}; {transitions}{digest}{_collecting(data)}",
        "hardware": f"{e(hardware(group))}; {speed} updates/s; {wall} in all",
        "versions": f"{e(versions)}; commit {e(commits)}",
        "physics": e(_of_all(group, "physics")),
        "score per seed": e(f"{scores} ({result.get('score_is', '')})"),
        "run directories": "<br>".join(f"<code>{e(run.name)}</code>" for run in runs),
    }
    items = "".join(f"<dt>{name}</dt><dd>{fact}</dd>" for name, fact in facts.items())
    title = f"{e(group.place)}, {e(group.title)}: {e(score_text(group))} {tags(group)}"
    title += f'<span class="label">{e(f"data: {group.data}; {group.settings_text}")}</span>'
    return folded(title, f"<dl>{items}</dl>", f' id="{anchor}"')


def _of_all(group: Group, what: str) -> str:
    """`jax 0.10.2 and 0.11.2, numpy 2.4.6`: each value that a part of the results has."""
    values: dict[str, dict[str, None]] = {}
    for name, value in (pair for seed in group.seeds for pair in (seed.result.get(what) or {}).items()):
        values.setdefault(name, {})[str(value)] = None
    return ", ".join(f"{name.replace('_', ' ')} {' and '.join(each)}" for name, each in values.items())


def _collecting(data: dict) -> str:
    """The command that collects such data, if they were collected."""
    how = data.get("collection") or {}
    flags = {"--episodes": "episodes", "--seed": "seed", "--p-random-action": "p_random_action"}
    words = [f"{flag} {how[name]}" for flag, name in flags.items() if how.get(name) is not None]
    return f"<pre>{e(' '.join(['python -m common.collect', data['name'], *words]))}</pre>" if words else ""
