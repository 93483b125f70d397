"""Pictures of finished runs, for tools/plot.py and tools/report.py: learning curves, and the score over the share of
random actions in the data."""

import itertools
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from read_runs import (
    METRICS,
    SOURCES,
    Group,
    mean_curve,
    mean_interval,
    natural,
    presets,
    random_share,
    read_runs,
    setting_text,
)

from common import UserError
from common.plots import check_picture, pyplot, save_figure

# Okabe and Ito's colours, which most colour-blind people can tell apart; the markers tell the rest.
STYLES = {
    "driftql": ("#0072b2", "o"), "fql": ("#d55e00", "s"), "drol": ("#009e73", "^"), "diffusion_ql": ("#cc79a7", "D"),
    "idql": ("#e69f00", "v"),
}  # fmt: skip
DASHES = ("-", "--", ":", "-.")  # of an algorithm's lines, one after the other
OTHER_STYLES = [("#56b4e9", "P"), ("#000000", "X")]


def style(algo: str) -> dict:
    """Colour and marker of an algorithm, the same in every picture."""
    color, marker = STYLES.get(algo) or OTHER_STYLES[sum(map(ord, algo)) % len(OTHER_STYLES)]
    return {"color": color, "marker": marker}


def shade(color: str, light: float) -> tuple[float, ...]:
    """From 0, half black, over 0.5, the colour itself, to 1, a third white."""
    towards, part = (0.0, 0.5 - light) if light < 0.5 else (1.0, (light - 0.5) * 2 / 3)
    return tuple((1 - part) * x + part * towards for x in pyplot().matplotlib.colors.to_rgb(color))


def by_problem(groups: list[Group]) -> dict[tuple[str, str], list[Group]]:
    """(environment and task, data) -> groups that one picture compares."""
    problems = defaultdict(list)
    for group in groups:
        problems[group.place, group.data].append(group)
    return dict(problems)


def draw_curves(groups: list[Group]):
    """Figure of one problem: mean over seeds, and its 95% interval if they are three or more, over gradient steps. One
    colour per algorithm, one dash per setting; of more settings than there are dashes, a shade for each too."""
    figure, axes = pyplot().subplots(figsize=(5, 3.4))
    for algo in dict.fromkeys(group.algo for group in groups):
        alike = [group for group in groups if group.algo == algo]
        mine = sorted(((_label([group], alike), group) for group in alike), key=lambda each: natural(each[0]))
        for i, ((label, group), dashes) in enumerate(zip(mine, itertools.cycle(DASHES))):
            steps, values = mean_curve(group)
            look = style(algo)
            if len(mine) > len(DASHES):
                look["color"] = shade(look["color"], i / (len(mine) - 1))
            look |= {"ls": dashes, "lw": 1.8, "ms": 5, "markevery": max(1, len(steps) // 8)}
            axes.plot(steps, values[:, 0], label=label, **look)
            if len(group.seeds) > 2:  # that of two seeds would cover the picture
                axes.fill_between(steps, values[:, 1], values[:, 2], color=look["color"], alpha=0.13, lw=0)
    axes.xaxis.set_major_formatter(pyplot().matplotlib.ticker.EngFormatter(sep=""))
    _finish(axes, groups, "gradient steps", groups[0].data)
    return figure


def draw_corruption(groups: list[Group]):
    """Figure with a panel per environment: the score over the share of random actions in the data. Raises UserError if
    there are no runs on data with random actions."""
    places = list(dict.fromkeys(group.place for group in groups if random_share(group) > 0))
    if not places:
        raise UserError("no run is on data with random actions (python -m common.collect ENV --p-random-action P).")
    figure, panels = pyplot().subplots(1, len(places), figsize=(4.6 * len(places), 3.6), squeeze=False)
    figure.subplots_adjust(wspace=0.3)
    for axes, place in zip(panels[0], places):
        here = [group for group in groups if group.place == place and group.data.startswith(SOURCES["collected"])]
        lines, kinds = defaultdict(list), {_without_share(group) for group in here}
        for group in here:
            lines[group.algo, group.settings_text, _without_share(group)].append(group)
        dashes: dict[str, Iterator[str]] = defaultdict(lambda: itertools.cycle(DASHES))
        for i, ((algo, _, kind), line) in enumerate(lines.items()):
            points = sorted((100 * random_share(group), *mean_interval(group.scores, group.bounds)) for group in line)
            share, mean, low, high = np.array(points).T
            others = [group for group in here if group.algo == algo]
            label = _label(line, others, kind.partition("official, ")[2] if len(kinds) > 1 else "")
            error = np.nan_to_num([mean - low, high - mean])
            beside = 0.6 * (i - (len(lines) - 1) / 2)  # so that no interval hides another
            options = {"ls": next(dashes[algo]), "lw": 1.6, "ms": 6, "capsize": 3, "label": label}
            axes.errorbar(share + beside, mean, error, **style(algo), **options)
        axes.set_xticks(sorted({100 * random_share(group) for group in here}))
        data = kinds.pop() if len(kinds) == 1 else SOURCES["collected"]
        _finish(axes, here, "random actions in the data, %", data)
    return figure


def _without_share(group: Group) -> str:
    """What the data are, but for the share of random actions."""
    return re.sub(r", \d+% random actions", "", group.words)


def _label(line: list[Group], others: Sequence[Group], data: str = "") -> str:
    """Algorithm, number of seeds, and the settings in which it differs from `others`, the algorithm's other lines.
    data: what the data are, if that differs too."""
    numbers = sorted({len(group.seeds) for group in line})
    count = " to ".join(map(str, numbers[:1] + numbers[-1:] * (len(numbers) > 1)))
    count += " seed" if numbers == [1] else " seeds"
    names = dict.fromkeys(name for other in others for name in other.settings)
    varied = [name for name in names if len({str(other.settings.get(name)) for other in others}) > 1]
    mine = line[0].settings
    usual = presets(line[0].algo, line[0].env)
    own = [f"{name.replace('_', '-')} {setting_text(mine.get(name, usual.get(name)))}" for name in varied]
    return textwrap.fill(", ".join(filter(None, [line[0].title, *own, data, count])), 32)


def _finish(axes, groups: list[Group], x_label: str, data: str) -> None:
    axes.set(xlabel=x_label, ylabel=METRICS[groups[0].metric])
    if groups[0].metric == "success":
        axes.set_ylim(-3, 103)
    reduced = "; reduced settings" if any(group.reduced for group in groups) else ""
    axes.set_title(textwrap.fill(f"{groups[0].place}; data: {data}{reduced}", 56), fontsize=9.5)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, ncols=2, handlelength=3, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def draw_runs(picture: str, folder: Path, out: Path) -> None:
    """`curves`: a picture per problem in the folder `out`; `corruption`: one picture. Prints their paths."""
    groups, left_out = read_runs(folder)
    if not groups:
        raise UserError(f"none of the {len(left_out)} run directories in {folder} is finished.")
    figures = {}
    if picture == "corruption":
        figures[out] = draw_corruption(groups)
    else:
        for (place, data), problem in by_problem(groups).items():
            name = re.sub(r"[^a-zA-Z0-9%]+", "-", f"{place} {data}").replace("%", "percent")
            endings = itertools.chain([""], (f"-{i}" for i in itertools.count(2)))  # names may differ in signs alone
            path = next(path for ending in endings if (path := out / f"{name}{ending}.png") not in figures)
            figures[path] = draw_curves(problem)
    for path, figure in figures.items():
        check_picture(path)
        save_figure(figure, path, 150, bbox_inches="tight")
        print(path)
