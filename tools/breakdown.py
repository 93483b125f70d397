"""Where the time of an update goes: `python tools/breakdown.py driftql`.

The script's own `train_chunk` on random data, once under JAX's profiler. The times of the program's instructions (on a
GPU, of its kernels) are added up twice: by what they compute, and by the network whose pass they belong to. A fusion
counts as a matrix product if it has one, else as its last instruction.

    python tools/breakdown.py fql --env pointmaze-medium-navigate --dims 2 2   # any argument of the script

On a CPU, use one core (`taskset -c 0`): of a product on several threads the profiler may see a part.
On a GPU the kernels of the profiled program are launched one by one, because the profiler does not see into a CUDA
graph. How long an update takes is measured with the graph: what it takes beyond the sum of its kernels, the GPU waits.
"""

import contextlib
import functools
import gzip
import importlib
import json
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
from bench import SCRIPTS, arguments, flags, random_dataset, seconds_per_call
from kernels import Instruction, parse
from shared import Parser

from common import UserError, cli
from common.buffers import make_buffer
from common.results import device_summary
from common.seeds import over_seeds, seed_keys

CONTAINERS = ("while", "call", "conditional")  # their time is that of what they hold
RANDOM = re.compile("threefry|random|_normal|_uniform|randint|bernoulli")
ROUNDS = 5


def kind(x: Instruction, computations: dict[str, dict[str, Instruction]]) -> str:
    """What an instruction computes."""
    inside = computations.get((re.findall(r"calls=%([\w.-]+)", x.attributes) or [""])[0], {}).values()
    if any(y.op == "dot" or "cublas" in y.attributes for y in (x, *inside)):
        return "matrix products"
    if RANDOM.search(op_name(x)) or x.shape.startswith("u32["):  # only keys and bits are unsigned
        return "random numbers"
    if any(y.op == "gather" for y in (x, *inside)):
        return "gathers"
    return "copies" if x.op == "copy" else "elementwise, sums"


def part(x: Instruction) -> str:
    """The network whose pass an instruction belongs to, and the direction."""
    networks = re.findall(r"\b[A-Z]\w*", op_name(x))  # Flax's names, of the module that was called first
    if not networks:
        return "outside of them"
    return f"{networks[0]}, {'backward' if 'transpose(' in op_name(x) else 'forward'}"


def op_name(x: Instruction) -> str:
    """Where in the source an instruction comes from, as JAX writes it."""
    return (re.findall(r'op_name="([^"]*)"', x.attributes) or [""])[0]


def durations(folder: Path) -> dict[str, float]:
    """Instruction -> seconds, of what the profiler has written there."""
    with gzip.open(next(folder.rglob("*.trace.json.gz"))) as file:
        events = json.load(file)["traceEvents"]
    names = {(e["pid"], e.get("tid"), e["name"]): e["args"]["name"] for e in events if "name" in e.get("args", {})}
    seconds: dict[str, float] = defaultdict(float)
    for e in events:
        if "hlo_op" in e.get("args", {}):
            # A GPU's kernels stand on its streams, and once more on lines that were made from them.
            gpu = "GPU" in names.get((e["pid"], None, "process_name"), "")
            if not gpu or "Stream" in names.get((e["pid"], e["tid"], "thread_name"), ""):
                seconds[e["args"]["hlo_op"]] += e["dur"] / 1e6
    return seconds


def add_up(seconds: dict[str, float], computations: dict[str, dict[str, Instruction]]) -> dict[str, dict[str, float]]:
    """The two tables, row -> seconds, from those of the instructions."""
    instructions = {name: x for computation in computations.values() for name, x in computation.items()}
    tables: dict[str, dict[str, float]] = {"what": defaultdict(float), "whose": defaultdict(float)}
    for name, spent in seconds.items():
        x = instructions.get(name)
        if x is None or x.op not in CONTAINERS:
            tables["what"][kind(x, computations) if x else "other kernels"] += spent
            tables["whose"][part(x) if x else "other kernels"] += spent
    return tables


def measure(script: Any, args: Any, dims: tuple[int, int], updates: int) -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds of an update of all seeds, and what they are spent on: for each table a row's name -> seconds."""
    agent, buffer = script.make_agent(args, *dims), make_buffer(random_dataset(*dims))
    state = jax.jit(jax.vmap(agent.init))(seed_keys(args))
    chunk = functools.partial(script.train_chunk, agent, batch_size=args.batch_size, num_updates=updates)
    program = jax.jit(over_seeds(chunk, state)).lower(state, buffer)
    as_trained = program.compile()
    on_gpu = jax.devices()[0].platform == "gpu"
    profiled = program.compile({"xla_gpu_enable_command_buffer": ""}) if on_gpu else as_trained

    def call(compiled):
        jax.block_until_ready(compiled(state, buffer))

    call(as_trained), call(profiled)
    whole = statistics.median(seconds_per_call(functools.partial(call, as_trained), 0.5) for _ in range(ROUNDS))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call(profiled)
        seconds = durations(Path(folder))
    if not seconds:
        raise UserError("the profiler has recorded nothing: a GPU needs CUPTI and permission, a CPU JAX 0.7 or later.")
    tables = add_up(seconds, parse(str(profiled.as_text())))
    return whole / updates, {title: {name: spent / updates for name, spent in x.items()} for title, x in tables.items()}


def main(argv: list[str]) -> None:
    parser = Parser("tools/breakdown.py", __doc__)
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("--dims", type=int, nargs=2, default=[29, 8], help="observation and action dimension")
    parser.add_argument("--updates", type=int, default=20, help="in one dispatch")
    known, rest = parser.parse_known_args(argv)
    if min(*known.dims, known.updates) <= 0:
        raise UserError("--dims and --updates must be positive.")
    script = importlib.import_module(known.script)
    with contextlib.redirect_stdout(sys.stderr):  # the tables alone go to standard output
        args = arguments([known.script], rest, flags(known))[known.script]
    whole, tables = measure(script, args, tuple(known.dims), known.updates)
    print(f"{device_summary()}\n{known.script}: {1e3 * whole:.3g} ms per update, of all seeds")
    for title, rows in tables.items():
        total = sum(rows.values())
        print(f"\n| {title} | µs per update | share |\n|---|---|---|")
        for name, spent in sorted(rows.items(), key=lambda row: -row[1]):
            print(f"| {name} | {1e6 * spent:,.0f} | {spent / total:.0%} |")
        print(f"| all, under the profiler | {1e6 * total:,.0f} | |")


if __name__ == "__main__":
    with cli.one_line_errors("breakdown"):
        main(sys.argv[1:])
