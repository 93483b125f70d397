"""How fast the scripts train and act: `python tools/bench.py`.

Everything is measured in one process, in turns, and reported as the median over the rounds:
  scan      the script's way: dataset on the device, many updates in one compiled program
  host      the way of the authors' code: a NumPy batch from a dataset on the host, one dispatch per update
  act       one call of the policy of one member, for 1 and for 50 observations, from the host and back to it
With --num-seeds or --grid, scan trains side by side, and its updates are those of all members together.

    python tools/bench.py                                                         # all; antmaze shapes and presets
    python tools/bench.py --scripts driftql fql --env pointmaze-medium-navigate --dims 2 2  # two, the small presets
    python tools/bench.py --scripts driftql --num-seeds 8 --updates 2000          # any argument of the scripts too
    python tools/bench.py --scripts driftql --profile trace                       # one call of scan for TensorBoard

The data are random numbers of the right shape, because speed does not depend on them.
"""

import contextlib
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from shared import Parser, positive, table, titles

from common.args import BaseArgs, keep_compiled_programs, members, one_line_errors, parse
from common.buffers import make_buffer
from common.seeds import place, side_by_side
from common.system import say

ACT_BATCHES, ACT_CALLS = (1, 50), 50


def random_arrays(dims: tuple[int, int], size: int = 200_000) -> dict[str, np.ndarray]:
    """A dataset of random numbers in one trajectory. dims: of observations and actions."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.standard_normal((size, dims[0]), dtype=np.float32),
        "actions": rng.uniform(-1, 1, (size, dims[1])).astype(np.float32),
        "rewards": rng.standard_normal(size, dtype=np.float32),
        "masks": np.ones(size, np.float32),
        "terminals": (np.arange(size) == size - 1).astype(np.float32),
    }


def make_scan(script: ModuleType, args: BaseArgs, arrays: dict, dims: tuple[int, int], updates: int) -> Callable:
    """`updates` updates of all seeds in one dispatch, compiled as in the script's `main`."""

    def train_interval(agent, state, buffer):
        return script.train_chunk(agent, state, buffer, args.batch_size, updates)

    init, train, _ = side_by_side(args, lambda args: script.make_agent(args, *dims), train_interval)
    held, buffer = place(init(), make_buffer(arrays))

    def call():
        nonlocal held
        held, metrics = train(held, buffer)
        jax.block_until_ready(metrics)

    return call


def make_host(agent: Any, args: BaseArgs, arrays: dict, updates: int) -> Callable:
    """The same number of updates of one seed, each with a batch gathered by NumPy and a dispatch of its own."""
    rng, update = np.random.default_rng(0), jax.jit(agent.update)
    fields = {name: arrays[name][:-1] for name in ("observations", "actions", "rewards", "masks")}
    fields["next_observations"] = arrays["observations"][1:]
    held = jax.jit(agent.init)(jax.random.PRNGKey(args.seed))

    def call():
        nonlocal held
        for _ in range(updates):
            index = rng.integers(len(fields["rewards"]), size=args.batch_size)
            held, metrics = update(held, {name: x[index] for name, x in fields.items()})
        jax.block_until_ready(metrics)

    return call


def make_act(agent: Any, dims: tuple[int, int], batch: int) -> Callable:
    """Calls of the policy, with observations from the host and actions back to it."""
    state, key = jax.jit(agent.init)(jax.random.PRNGKey(0)), jax.random.PRNGKey(1)
    observations, act = np.zeros((batch, dims[0]), np.float32), jax.jit(agent.act)
    return lambda: [np.asarray(act(state, observations, key)) for _ in range(ACT_CALLS)]


def measure(name: str, args: Any, dims: tuple[int, int], updates: int, rounds: int, profile: Path | None) -> list[str]:
    """The row of one script in the table."""
    script, arrays = importlib.import_module(name), random_arrays(dims)
    agent = script.make_agent(args, *dims)
    calls = {"scan": make_scan(script, args, arrays, dims, updates), "host": make_host(agent, args, arrays, updates)}
    calls |= {f"act {batch}": make_act(agent, dims, batch) for batch in ACT_BATCHES}
    times: dict[str, list[float]] = {key: [] for key in calls}
    for i in range(rounds + 1):
        for key, call in calls.items():
            began = time.perf_counter()
            call()
            if i:  # the first round compiles
                times[key].append(time.perf_counter() - began)
    if profile:
        with jax.profiler.trace(str(profile)):
            calls["scan"]()
    count = len(members(args))
    scan, host, *acts = (statistics.median(values) for values in times.values())
    ratio = statistics.median(count * h / s for h, s in zip(times["host"], times["scan"]))
    rates = [f"{updates * count / scan:,.1f}", f"{updates / host:,.1f}", f"{ratio:.2f}"]
    return [name, str(count), *rates, *(f"{seconds * 1e3 / ACT_CALLS:.2f}" for seconds in acts)]


def main(argv: list[str]) -> None:
    parser = Parser(__doc__, allow_abbrev=False)
    parser.add_argument("--scripts", nargs="+", choices=list(titles()), default=list(titles()))
    parser.add_argument("--dims", type=positive, nargs=2, default=(29, 8), help="observation and action dimension")
    parser.add_argument("--updates", type=positive, default=100, help="per call (100; on a GPU take thousands)")
    parser.add_argument("--rounds", type=positive, default=3, help="how often each is measured, in turns")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="write JAX's profile of a call to this folder")
    known, rest = parser.parse_known_args(argv)
    keep_compiled_programs()
    with contextlib.redirect_stdout(sys.stderr):  # the table alone goes to standard output
        scripts = {name: importlib.import_module(name) for name in known.scripts}
        args = {name: parse(script.Args, script.PRESETS, rest) for name, script in scripts.items()}
        settings = (tuple(known.dims), known.updates, known.rounds, known.profile)
        rows = [measure(name, each, *settings) for name, each in args.items()]
    say(f"{len(jax.devices())} x {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    header = ["script", "side by side", "scan, updates/s", "host, updates/s", "scan / host"]
    say(table([[*header, *(f"act {batch}, ms" for batch in ACT_BATCHES)], *rows]))


if __name__ == "__main__":
    with one_line_errors("bench"):
        main(sys.argv[1:])
