"""How fast the scripts train, and what that is compared with: `python tools/bench.py`.

Everything is measured in one process, in turns, and reported as the median over the rounds:
  scan      the script's way: dataset on the device, many updates in one compiled program
  host      the way of the authors' code: a NumPy batch from a dataset on the host, one dispatch per update
  authors   with --authors, their agent, their dataset class and their loop, from a clone of their repository
  ceiling   a large matrix product, the most arithmetic per second that this device gives to JAX here
  act       one call of the policy, observations in and actions out, on the host's CPU, where evaluations have it
With --num-seeds, scan trains the seeds side by side, and a line below the table says how that compares with one after
the other inside the program. FLOPs per update come from XLA's cost analysis of one update.

    python tools/bench.py                                                         # all; antmaze shapes and presets
    python tools/bench.py driftql fql --env pointmaze-medium-navigate --dims 2 2  # two of them, the small presets
    python tools/bench.py driftql --num-seeds 8 --rounds 5                        # any argument of the scripts too
    python tools/bench.py driftql --authors ~/their-driftql                       # beside the authors' own code
    python tools/bench.py --json bench.json                                       # all figures, each round's too

The data are random numbers of the right shape: speed does not depend on them. For DROL a line below the table says what
it saves that critic and gradient are evaluated for the winning candidate only.
"""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import importlib
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from shared import ROOT, Parser, check_folder

from common import UserError, cli, devices
from common.buffers import ReplayBuffer, make_buffer, sample
from common.critics import Critic
from common.files import expanded, write_json
from common.results import device_summary, git_commit, versions
from common.seeds import compile_over_seeds, place, seed_keys
from common.transitions import Dataset

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if "def make_agent(" in path.read_text(encoding="utf-8"))
MATMUL = {"cpu": 2048}  # rows and columns of the product that measures the ceiling; elsewhere 8192, to fill a GPU
THEIR_NAMES = {  # what decides the cost of an update: our argument -> its names in the authors' configurations
    "batch_size": ("batch_size", "drift_batch_size"),
    "hidden_dims": ("actor_hidden_dims", "value_hidden_dims", "critic_hidden_dims"),
    "num_candidates": ("drift_ngen", "num_candidates"),
    "noise_dim": ("noise_dim",),
    "flow_steps": ("flow_steps",),
    "diffusion_steps": ("diffusion_steps",),
}


def random_dataset(observation_dim: int, action_dim: int, size: int = 200_000) -> Dataset:
    """A dataset of random numbers, every row but the last a transition."""
    rng = np.random.default_rng(0)
    return Dataset(
        name="random",
        task=None,
        make_env=gymnasium.Env,  # nobody asks for one
        source="builtin",
        path=None,
        sha256=None,
        observations=rng.standard_normal((size, observation_dim), dtype=np.float32),
        actions=rng.uniform(-1, 1, (size, action_dim)).astype(np.float32),
        rewards=rng.standard_normal(size, dtype=np.float32),
        masks=np.ones(size, np.float32),
        rows=np.arange(size - 1, dtype=np.int32),
        num_trajectories=1,
    )


def buffer_shapes(dims: tuple[int, int], size: int, array: Callable = jax.ShapeDtypeStruct) -> ReplayBuffer:
    """A buffer of so many transitions for a program that is only compiled. array(shape, dtype) -> one array's shape."""
    columns = {"observations": (size, dims[0]), "actions": (size, dims[1]), "rewards": (size,), "masks": (size,)}
    shapes: dict[str, Any] = {name: array(shape, "float32") for name, shape in columns.items()}
    return ReplayBuffer(**shapes, rows=array((size,), "int32"))


def seconds_per_call(call: Callable[[], object], budget: float) -> float:
    """Mean wall time of `call`, which is repeated until `budget` seconds have passed. `call` waits for its result."""
    began, count = time.perf_counter(), 0
    while True:
        call()
        count += 1
        elapsed = time.perf_counter() - began
        if elapsed >= budget:
            return elapsed / count


def make_scan(
    script: ModuleType, agent: Any, args: Any, dataset: Dataset, num_updates: int, one_by_one: bool = False
) -> Callable[[], None]:
    """`num_updates` updates of all seeds in one dispatch, compiled as in the script's `main`; or seed by seed."""

    def train_interval(state, buffer):
        return script.train_chunk(agent, state, buffer, args.batch_size, num_updates)

    state, buffer = place(jax.jit(jax.vmap(agent.init))(seed_keys(args)), make_buffer(dataset, args.batch_size))
    train: Callable
    if one_by_one:
        train = jax.jit(lambda s, b: jax.lax.map(functools.partial(train_interval, buffer=b), s), donate_argnums=0)
    else:
        train, _ = compile_over_seeds(train_interval, state, buffer)
    held = [state]

    def call():
        held[0], *rest = train(held[0], buffer)
        jax.block_until_ready(rest)

    return call


def on_host(dataset: Dataset) -> dict[str, np.ndarray]:
    """The transitions as the authors' code has them: a row each, the next observation too."""
    names = ("observations", "actions", "rewards", "masks")
    fields = {name: getattr(dataset, name)[dataset.rows] for name in names}
    return fields | {"next_observations": dataset.observations[dataset.rows + 1]}


def make_host(agent: Any, args: Any, dataset: Dataset, num_updates: int) -> Callable[[], None]:
    """The same number of updates of one seed, each with a batch gathered by NumPy and a dispatch of its own."""
    rng, fields = np.random.default_rng(0), on_host(dataset)
    update = jax.jit(agent.update)
    held = [jax.jit(agent.init)(jax.random.PRNGKey(args.seed))]

    def call():
        for _ in range(num_updates):
            index = rng.integers(len(dataset.rows), size=args.batch_size)
            batch = {name: x[index] for name, x in fields.items()}
            held[0], metrics = update(held[0], batch)
        jax.block_until_ready(metrics)

    call()  # compiles
    return call


def make_authors(folder: Path, name: str, args: Any, dataset: Dataset, num_updates: int) -> Callable[[], None] | None:
    """The same number of updates of one seed by the authors' code: agents/NAME.py and utils/datasets.py in `folder`, as
    FQL's repository has them and those that are built on it, in the loop of its main.py; their settings, with the sizes
    of `args`. None if there is no such agent in it. Raises UserError if it cannot be imported."""
    if not (folder / "agents" / f"{name}.py").exists():
        return None
    if str(folder) not in sys.path:
        sys.path.insert(1, str(folder))  # behind ours, so that no script is hidden
    try:
        module, datasets = (importlib.import_module(x) for x in (f"agents.{name}", "utils.datasets"))
    except ImportError as error:
        raise UserError(f"--authors {folder}: {error}; install what its requirements.txt names.") from None
    except Exception as error:  # whatever stands in their files
        raise UserError(f"--authors {folder}: agents/{name}.py: {type(error).__name__}: {error}") from None
    config = module.get_config()
    for ours, theirs in THEIR_NAMES.items():
        for key in theirs:
            if key in config and getattr(args, ours, None) is not None:
                config[key] = getattr(args, ours)
    is_agent = (x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__)
    agent_class: Any = next((x for x in is_agent if hasattr(x, "create")), None)
    if agent_class is None:
        raise UserError(f"--authors {folder}: agents/{name}.py has no class with a method `create`.")
    terminals = np.zeros(len(dataset.rows), np.float32)
    terminals[-1] = 1
    data = datasets.Dataset.create(**on_host(dataset), terminals=terminals)
    example = data.sample(1)
    held = [agent_class.create(args.seed, example["observations"], example["actions"], config)]

    def call():
        for _ in range(num_updates):
            held[0], metrics = held[0].update(data.sample(args.batch_size))
        jax.block_until_ready(metrics)

    call()  # compiles
    return call


def flops(function: Callable, *inputs) -> float:
    """Of one call, by XLA's cost analysis of the program for a CPU, which is compiled sooner than that for a GPU. It
    counts the body of a loop once, so loops are unrolled for it."""
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    unrolled = mock.patch.object(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    with unrolled, jax.default_device(devices.host()):
        # A function of its own, because an earlier trace of the same one, with loops, would be taken from JAX's cache.
        cost = jax.jit(lambda *inputs: function(*inputs)).lower(*inputs).compile().cost_analysis()
    costs: Any = cost[0] if isinstance(cost, list) else cost  # older versions of JAX give a list
    return float(costs["flops"])


def make_ceiling() -> tuple[Callable[[], object], float]:
    """A product of two large float32 matrices with the backend's default precision, as the networks use it, and how
    many GFLOP it is."""
    size = MATMUL.get(devices.backend(), 8192)
    a = jax.random.normal(jax.random.PRNGKey(0), (size, size))
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    return lambda: multiply(a, a).block_until_ready(), 2 * size**3 / 1e9


def make_act(agent: Any, observation_dim: int, batch: int) -> Callable[[], object]:
    """One call of the policy on the host's CPU, where evaluations have it too."""
    with jax.default_device(devices.host()):
        state, key = jax.device_put((jax.jit(agent.init)(jax.random.PRNGKey(0)), jax.random.PRNGKey(1)), devices.host())
    observations = np.zeros((batch, observation_dim), np.float32)
    act = jax.jit(agent.act)
    np.asarray(act(state, observations, key))
    return lambda: np.asarray(act(state, observations, key))


def what_routing_saves(drol: ModuleType, args: Any, dims: tuple[int, int], rounds: int, seconds: float) -> dict:
    """DROL's actor gradient as in `drol.py`, with the gradient through all K candidates, and with the critic at all of
    them too; the three are equal. Returns way -> median milliseconds and GFLOP."""
    state, key = drol.make_agent(args, *dims).init(jax.random.PRNGKey(0)), jax.random.PRNGKey(1)
    batch = sample(make_buffer(random_dataset(*dims, size=10_000)), key, args.batch_size)
    actor, critic = drol.Actor(args.hidden_dims, dims[1]), Critic(args.hidden_dims)

    def loss(actor_params, state, batch, way):
        def draw(params, latents):  # (B, K, A) -> observations (B, K, S) and actions (B, K, A)
            repeated = jnp.repeat(batch["observations"][:, None], latents.shape[1], axis=1)
            return repeated, jnp.clip(actor.apply(params, repeated, latents), -1, 1)

        latents = drol.sample_latents(key, (args.batch_size, args.num_candidates, dims[1]))
        repeated, candidates = draw(state.params["actor"] if way == "winner" else actor_params, latents)
        winner = drol.route(candidates, batch["actions"])[:, None, None]
        if way == "winner":
            repeated, winners = draw(actor_params, jnp.take_along_axis(latents, winner, axis=1))
        else:
            winners = jnp.take_along_axis(candidates, winner, axis=1)
        if way == "critic at all too":
            q = critic.apply(state.params["critic"], repeated, candidates)  # (2, B, K)
            q = jnp.take_along_axis(q, winner[None, :, :, 0], axis=2)
        else:
            q = critic.apply(state.params["critic"], repeated[:, :1], winners)
        return drol.routed_loss(winners[:, 0], batch["actions"], q[:, :, 0], args.bc_coef, args.q_coef)[0]

    ways = ("winner", "gradient through all", "critic at all too")
    gradients = {way: functools.partial(jax.grad(loss), way=way) for way in ways}
    inputs = (state.params["actor"], state, batch)
    compiled = {way: jax.jit(gradient) for way, gradient in gradients.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}

    def run(call):
        jax.block_until_ready(call(*inputs))

    for call in compiled.values():
        run(call)
    for _, (way, call) in itertools.product(range(rounds), compiled.items()):
        times[way].append(seconds_per_call(functools.partial(run, call), seconds))
    return {
        way: {"ms": statistics.median(times[way]) * 1e3, "gflop": flops(gradients[way], *inputs) / 1e9} for way in ways
    }


def flags(known: argparse.Namespace) -> list[str]:
    """Of a tool's own arguments."""
    return [cli.flag_of(name) for name in vars(known)]


def arguments(names: list[str], argv: list[str], own: list[str]) -> dict[str, Any]:
    """Script -> its arguments, of all before any is measured. own: flags of the tool, one of which may have been meant.
    Raises UserError for what one of the scripts does not take."""
    found = {}
    for name in names:
        script = importlib.import_module(name)
        theirs = [cli.flag_of(field.name) for field in dataclasses.fields(script.Args)]
        for flag in (word.partition("=")[0] for word in argv if word.startswith("--")):
            close = difflib.get_close_matches(flag, [*theirs, *own], n=1)
            if flag not in theirs and close and close[0] in own:
                raise UserError(f"unknown argument {flag}: did you mean {close[0]}?")
        found[name] = cli.parse(script.Args, script.PRESETS, argv)
        if found[name].grid:
            raise UserError("--grid: a combination costs what a seed does; measure --num-seeds.")
    return found


def measure(
    name: str, args: Any, dims: tuple[int, int], rounds: int, seconds: float, authors: Path | None
) -> dict[str, Any]:
    """All figures of one script, units in their names. dims: observation and action dimension; authors: a clone of the
    authors' repository."""
    script = importlib.import_module(name)
    dataset = random_dataset(*dims)
    agent = script.make_agent(args, *dims)

    probe = make_host(agent, args, dataset, 1)
    once = seconds_per_call(probe, min(1.0, seconds))
    # As many updates per dispatch as fit into a round, at most the script's own interval.
    num_updates = int(np.clip(seconds / once, 1, args.log_every))
    ceiling_call, ceiling_gflop = make_ceiling()
    calls: dict[str, Callable[[], object]] = {
        "scan": make_scan(script, agent, args, dataset, num_updates),
        "host": make_host(agent, args, dataset, num_updates),
        "ceiling": ceiling_call,
        "act_1": make_act(agent, dims[0], 1),
        "act_256": make_act(agent, dims[0], 256),
    }
    theirs = make_authors(authors, name, args, dataset, num_updates) if authors else None
    if theirs:
        calls["authors"] = theirs
    if args.num_seeds > 1:
        calls["one_by_one"] = make_scan(script, agent, args, dataset, num_updates, one_by_one=True)
    times: dict[str, list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()  # once unmeasured
    for i in range(rounds):
        for key, call in calls.items():
            training = key in ("scan", "host", "authors", "one_by_one")
            times[key].append(seconds_per_call(call, seconds if training else min(0.5, seconds)))
        speed = num_updates * args.num_seeds / times["scan"][-1]
        cli.say(f"{name}, round {i + 1} of {rounds}: scan {speed:,.1f} updates/s")
    median = {key: statistics.median(values) for key, values in times.items()}

    def scan_over(key):
        """How much faster the scan is, the seeds together, than that way with one seed."""
        return statistics.median(args.num_seeds * x / s for x, s in zip(times[key], times["scan"]))

    batch = sample(make_buffer(dataset), jax.random.PRNGKey(0), args.batch_size)
    gflop = flops(agent.update, jax.eval_shape(agent.init, jax.random.PRNGKey(0)), batch) / 1e9
    scan, ceiling = num_updates * args.num_seeds / median["scan"], ceiling_gflop / median["ceiling"]
    return {
        "script": name,
        "num_seeds": args.num_seeds,
        "updates_per_dispatch": num_updates,
        "scan_updates_per_second": scan,  # of all seeds together
        "host_updates_per_second": num_updates / median["host"],
        "scan_over_host": scan_over("host"),
        "authors_updates_per_second": num_updates / median["authors"] if theirs else None,
        "scan_over_authors": scan_over("authors") if theirs else None,
        "side_by_side_over_one_by_one": statistics.median(o / s for o, s in zip(times["one_by_one"], times["scan"]))
        if args.num_seeds > 1
        else None,
        "gflop_per_update": gflop,
        "gflop_per_second": gflop * scan,
        "ceiling_gflop_per_second": ceiling,
        "share_of_ceiling": gflop * scan / ceiling,
        # One after the other, to choose an action: the reverse steps of a diffusion, then the critic on the samples.
        "passes_per_action": args.diffusion_steps + 1 if hasattr(args, "diffusion_steps") else 1,
        "act_1_ms": median["act_1"] * 1e3,
        "act_256_ms": median["act_256"] * 1e3,
        "seconds_per_call_of_each_round": times,
        "routing": what_routing_saves(script, args, dims, rounds, min(2.0, seconds)) if name == "drol" else None,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The figures of `measure` in Markdown."""
    columns = {
        "script": "{script}",
        "scan, updates/s": "{scan_updates_per_second:,.1f}",
        "host, updates/s": "{host_updates_per_second:,.1f}",
        "scan / host": "{scan_over_host:.2f}",
        "authors, updates/s": "{authors_updates_per_second:,.1f}",
        "scan / authors": "{scan_over_authors:.2f}",
        "GFLOP/update": "{gflop_per_update:.3g}",
        "GFLOP/s": "{gflop_per_second:,.0f}",
        "ceiling, GFLOP/s": "{ceiling_gflop_per_second:,.0f}",
        "share": "{share_of_ceiling:.0%}",
        "passes per action": "{passes_per_action}",
        "act, 1 observation": "{act_1_ms:.2f} ms",
        "act, 256": "{act_256_ms:.2f} ms",
    }
    if all(row["scan_over_authors"] is None for row in rows):
        columns = {name: cell for name, cell in columns.items() if "authors" not in name}
    lines = [" | ".join(columns), "|".join("---" for _ in columns)]
    for row in rows:
        theirs = row["scan_over_authors"] is not None
        cells = (cell if theirs or "authors" not in cell else "" for cell in columns.values())
        lines.append(" | ".join(cells).format(**row))
    notes = [
        "\ndrol: gradient of the actor loss: "
        + "; ".join(f"{way} {x['ms']:.3g} ms, {x['gflop']:.3g} GFLOP" for way, x in row["routing"].items())
        for row in rows
        if row["routing"]
    ]
    for row in rows:
        if row["num_seeds"] > 1:
            times = f"{row['side_by_side_over_one_by_one']:.2f} times as fast as one after the other"
            notes.append(f"\n{row['script']}: {row['num_seeds']} seeds side by side train {times}")
    return "\n".join([*(f"| {line} |" for line in lines), *notes])


def main() -> None:
    usage = "bench.py [SCRIPT ...] [options] [arguments of the scripts]"
    parser = Parser("tools/bench.py", __doc__, usage=usage, allow_abbrev=False)
    parser.add_argument("--dims", type=int, nargs=2, default=(29, 8), help="observation and action dimension")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured, in turns")
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--authors", type=Path, metavar="DIR", help="time the authors' code too, from a clone of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    # By hand, because argparse would take the values of the scripts' own arguments for names of scripts.
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    with cli.one_line_errors("bench"):
        known, rest = parser.parse_known_args(sys.argv[1 + len(names) :])
        for name in names:
            if name not in SCRIPTS:
                raise UserError(f"no script '{name}'; there are {', '.join(SCRIPTS)}.")
        if not (min(*known.dims, known.rounds) > 0 and 0 < known.seconds < math.inf):
            raise UserError("--dims, --rounds and --seconds must be positive.")
        check_folder(known.json)
        authors = known.authors and expanded(known.authors).resolve()
        if authors and not (authors / "agents").is_dir():
            raise UserError(f"--authors {authors} has no folder agents/: clone the authors' repository there.")
        for name in names if authors else []:
            if not (authors / "agents" / f"{name}.py").exists():
                print(f"NOTE    --authors {authors} has no agents/{name}.py", file=sys.stderr)
        settings = (tuple(known.dims), known.rounds, known.seconds, authors)
        devices.keep_compiled_programs()
        with contextlib.redirect_stdout(sys.stderr):  # the table alone goes to standard output
            scripts = arguments(names or SCRIPTS, rest, flags(known))
            rows = [measure(name, args, *settings) for name, args in scripts.items()]
        print(f"\n{device_summary()}\n\n{table(rows)}")
        if known.json:
            about: dict[str, Any] = {"device": device_summary(), "versions": versions(), "git_commit": git_commit()}
            about |= {"command": ["tools/bench.py", *sys.argv[1:]], "rows": rows}
            write_json(known.json, about)


if __name__ == "__main__":
    main()
