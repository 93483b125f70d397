"""How training grows, in three pictures: `python tools/scaling.py driftql fql`.

  updates/s of all seeds together, over the number of seeds that train side by side in one program
  time per update, over the number that an algorithm's cost grows with: candidates, flow steps, diffusion steps
  device memory, over the transitions in the dataset: state, dataset, and what the compiled program needs on the way

Times are measured in one process in turns; the median of the rounds is drawn.

    python tools/scaling.py driftql fql                           # shapes and presets of antmaze-large-navigate
    python tools/scaling.py --hidden-dims 64 64 --steps 1000     # all five; any argument that all of them take
    python tools/scaling.py --json scaling.json                   # the figures too
"""

import contextlib
import dataclasses
import functools
import importlib
import itertools
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
from bench import SCRIPTS, arguments, buffer_shapes, flags, make_scan, random_dataset, seconds_per_call
from curves import style
from read_runs import TITLES
from shared import Parser, check_folder
from tqdm import tqdm

from common import UserError, cli, devices
from common.files import write_json
from common.plots import check_picture, pyplot, save_figure
from common.results import device_summary, git_commit, versions
from common.seeds import over_seeds, seed_keys

SEEDS: tuple[int, ...] = (1, 2, 4, 8, 16)
PASSES: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
SIZES = (100_000, 1_000_000, 3_000_000, 10_000_000)
COUNTS = ("num_candidates", "flow_steps", "diffusion_steps")  # the five have one of them each


def measure(scripts: dict[str, Any], dims: tuple[int, int], rounds: int, updates: int) -> dict[str, Any]:
    """Script -> `updates_per_second`, `milliseconds` and `mebibytes`, each a list of [x, value], and what x `counts` in
    the second. scripts: with the arguments of each; updates: per dispatch."""
    dataset, calls = random_dataset(*dims), {}
    found: dict[str, dict[str, Any]] = {}
    for name, args in scripts.items():
        script: Any = importlib.import_module(name)
        count = next((field for field in COUNTS if hasattr(args, field)), None)
        found[name] = {"counts": count, "mebibytes": mebibytes(script, args, dims)}
        varied = [("updates_per_second", "num_seeds", SEEDS)] + ([("milliseconds", count, PASSES)] if count else [])
        for what, field, values in varied:
            for value in values:
                changed = dataclasses.replace(args, **{field: value})
                agent = script.make_agent(changed, *dims)
                calls[name, what, value] = make_scan(script, agent, changed, dataset, updates)
    times: dict[tuple, list[float]] = {key: [] for key in calls}
    for _, (key, call) in tqdm(list(itertools.product(range(rounds + 1), calls.items())), "measured", disable=None):
        times[key].append(seconds_per_call(call, 0.5))
    for (name, what, value), each in times.items():
        once = statistics.median(each[1:]) / updates  # the first round warms up
        figure = value / once if what == "updates_per_second" else 1e3 * once
        found[name].setdefault(what, []).append([value, figure])
    return found


def mebibytes(script: Any, args: Any, dims: tuple[int, int]) -> list[list[float]]:
    """[transitions, MiB] of the arguments of the compiled program, state and dataset, and what it needs on the way,
    which does not depend on the dataset. The state's place is used again for the new one."""
    agent = script.make_agent(args, *dims)
    state = jax.eval_shape(jax.vmap(agent.init), seed_keys(args))
    chunk = functools.partial(script.train_chunk, agent, batch_size=args.batch_size, num_updates=args.log_every)
    compiled = jax.jit(over_seeds(chunk, state), donate_argnums=0).lower(state, buffer_shapes(dims, SIZES[0])).compile()
    memory: Any = compiled.memory_analysis()
    arrays = [jax.tree.leaves((state, buffer_shapes(dims, size))) for size in SIZES]
    held = [sum(x.size * x.dtype.itemsize for x in each) for each in arrays]
    return [[size, (bytes_held + memory.temp_size_in_bytes) / 2**20] for size, bytes_held in zip(SIZES, held)]


def draw(found: dict[str, Any], title: str, path: Path) -> None:
    """Three pictures side by side, one colour per algorithm."""
    figure, axes = pyplot().subplots(1, 3, figsize=(12, 3.8))
    for name, figures in found.items():
        for panel, what in zip(axes, ("updates_per_second", "milliseconds", "mebibytes")):
            if what not in figures:  # an algorithm of one's own that has no such number
                continue
            suffix = f", {figures['counts'].replace('_', ' ')}" if what == "milliseconds" else ""
            panel.plot(*zip(*figures[what]), **style(name), label=f"{TITLES.get(name, name)}{suffix}", lw=1.8, ms=5)
    labels = (
        ("seeds side by side", "updates/s of all seeds", SEEDS),
        ("candidates or steps, as the legend says", "ms per update", PASSES),
        ("transitions in the dataset", "device memory, MiB", SIZES),
    )
    for panel, (x, y, ticks) in zip(axes, labels):
        panel.set(xlabel=x, ylabel=y, xscale="log", yscale="log" if panel is axes[2] else "linear")
        panel.set_xticks(ticks, [f"{tick:g}" if tick < 1e4 else f"{tick / 1e6:g}M" for tick in ticks])
        panel.xaxis.set_minor_locator(pyplot().NullLocator())
        panel.grid(alpha=0.3, which="both")
        panel.legend(frameon=False, fontsize=8)
    for panel in axes[:2]:
        panel.set_ylim(bottom=0)
    axes[2].yaxis.set_major_formatter("{x:,.0f}")
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    save_figure(figure, path, 130)


def main(argv: list[str]) -> None:
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    parser = Parser("tools/scaling.py", __doc__)
    parser.add_argument("--dims", type=int, nargs=2, default=(29, 8), help="observation and action dimension")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured, in turns")
    parser.add_argument("--updates", type=int, default=20, help="in one dispatch")
    parser.add_argument("--out", type=Path, default=Path("scaling.png"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    known, rest = parser.parse_known_args(argv[len(names) :])
    if unknown := [name for name in names if name not in SCRIPTS]:
        raise UserError(f"no script '{unknown[0]}'; there are {', '.join(SCRIPTS)}.")
    if min(*known.dims, known.rounds, known.updates) <= 0:
        raise UserError("--dims, --rounds and --updates must be positive.")
    check_picture(known.out)
    check_folder(known.json)
    devices.keep_compiled_programs()
    with contextlib.redirect_stdout(sys.stderr):
        scripts = arguments(names or SCRIPTS, rest, flags(known))
        found = measure(scripts, tuple(known.dims), known.rounds, known.updates)
    draw(found, f"{device_summary()}; {' '.join(rest) or 'the presets'}", known.out)
    if known.json:
        about: dict[str, Any] = {"device": device_summary(), "versions": versions(), "git_commit": git_commit()}
        about |= {"command": ["tools/scaling.py", *argv], "scripts": found}
        write_json(known.json, about)
    print(known.out)


if __name__ == "__main__":
    with cli.one_line_errors("scaling"):
        main(sys.argv[1:])
