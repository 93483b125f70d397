"""What one update launches on a GPU, without one: `python tools/kernels.py driftql --num-seeds 8`.

The script's own `train_chunk` is compiled for an H200 (tools/h200.txtpb), and what XLA made of it is counted: kernels
(with cuBLAS and copies), CUDA graphs, launches outside of them, what all kernels read and write, temporary memory. No
times: a GPU that is there would also time its own matrix products against those of cuBLAS, which are taken here.

    uv pip install -e ".[kernels]"  # XLA's compiler for GPUs; neither a GPU nor a driver is needed
    python tools/kernels.py driftql --num-seeds 8 --env cube-single-play --dims 28 5  # any argument of the script
"""

import functools
import importlib
import itertools
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from bench import SCRIPTS, arguments, buffer_shapes, flags
from jax.experimental import topologies
from shared import Parser

from common import UserError, cli
from common.seeds import over_seeds, seed_keys

OPTIONS: dict[str, Any] = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}  # no timing
NO_KERNEL = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "copy-done")


class Instruction(NamedTuple):
    shape: str
    op: str
    arguments: list[str]  # names; of a parameter its number
    attributes: str


def parse(hlo: str) -> dict[str, dict[str, Instruction]]:
    """Computation -> name -> instruction, in the order in which they run; the program itself is called ENTRY."""
    computations: dict[str, dict[str, Instruction]] = {}
    for line in re.sub(r"/\*.*?\*/", "", hlo).splitlines():
        if start := re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line):
            instructions = computations["ENTRY" if start[1] else start[2]] = {}
        elif x := re.match(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)", line):
            instructions[x[1]] = Instruction(x[2], x[3], re.findall(r"[\w.-]+", x[4]), x[5])
    return computations


def num_bytes(shape: str) -> int:
    """Of the arrays in a shape, (f32[2,3], pred[4]); without s8, which is cuBLAS's workspace."""
    arrays = re.findall(r"(?!s8)\b[a-z]+(\d*)\[([\d,]*)\]", shape)
    return sum(int(bits or 8) // 8 * math.prod(map(int, re.findall(r"\d+", dims))) for bits, dims in arrays)


def moved(x: Instruction, around: dict[str, Instruction], inside: dict[str, Instruction]) -> int:
    """Bytes that a kernel reads (of a table, the rows it takes) and writes. around, inside: where it is, what it is."""
    total, numbers = num_bytes(x.shape), {y.arguments[0]: name for name, y in inside.items() if y.op == "parameter"}
    for i, name in enumerate(dict.fromkeys(x.arguments)):
        users = [y for y in inside.values() if numbers.get(str(i)) in y.arguments]
        rows = [y for y in users if y.op in ("gather", "dynamic-slice") and y.arguments[0] == numbers[str(i)]]
        total += sum(num_bytes(y.shape) for y in (users if users and rows == users else [around[name]]))
    return total


def walk(computations: dict[str, dict[str, Instruction]], name: str) -> tuple[int, list[int]]:
    """Bytes that one pass through a computation moves, and how often each loop in it runs, in their order."""
    total, trips = 0, list[int]()
    for x in computations[name].values():
        called = (re.findall(r"(?:body|calls)=%([\w.-]+)", x.attributes) or [""])[0]
        if x.op == "while":
            times = int(re.findall(r'"known_trip_count":\{"n":"(\d+)"', x.attributes)[0])
            inner, nested = walk(computations, called)
            total, trips = total + times * inner, [*trips, times, *nested]
        elif x.op not in NO_KERNEL:
            total += moved(x, computations[name], computations.get(called, {}))
    return total, trips


def indented(lines: list[str]) -> list[str]:
    """The lines up to the first that is not indented, without their indentation."""
    return [line[4:] for line in itertools.takewhile(lambda line: line.startswith("    "), lines)]


def launches(thunks: list[str], trips: Iterator[int], in_graph: bool = False) -> Counter:
    """kernels, graphs, and kernels outside of graphs, in XLA's list of what a program does. trips: as from `walk`."""
    counts: Counter = Counter()
    for i, line in enumerate(thunks):
        kind = line.split()[1] if line[:1].isdigit() else ""
        if kind == "kWhile":
            times, body = next(trips), indented(thunks[thunks.index("  body:", i) + 1 :])
            counts += Counter({name: times * n for name, n in launches(body, trips, in_graph).items()})
        elif kind == "kCommandBuffer":
            counts += Counter(graphs=1) + launches(indented(thunks[i + 1 :]), trips, True)
        elif kind:
            counts += Counter(kernels=1, outside=int(not in_graph))
    return counts


def count(hlo: str, thunks: str) -> dict[str, Any]:
    """The figures of one pass through the loop of a program, from its HLO and its list of thunks."""
    computations, lines = parse(hlo), [line for line in thunks.splitlines() if line != "condition:"]
    loop = next(x for x in computations["ENTRY"].values() if x.op == "while")
    total, trips = walk(computations, re.findall(r"body=%([\w.-]+)", loop.attributes)[0])
    counts = launches(indented(lines[lines.index("  body:") + 1 :]), iter(trips))
    return {name: counts[name] for name in ("kernels", "graphs", "outside")} | {"MiB moved": round(total / 2**20)}


def measure(script: Any, args: Any, dims: tuple[int, int]) -> dict[str, Any]:
    """The figures of one update of all seeds. dims: observation and action dimension. Raises UserError."""
    target = Path(__file__).with_name("h200.txtpb").read_text()
    try:
        gpu = topologies.get_topology_desc("h200", "cuda", topology="1x1x1", target_config=target).devices[0]
    except RuntimeError:
        raise UserError('no compiler for GPUs that fits this JAX: uv pip install -e ".[kernels]"') from None
    array = functools.partial(jax.ShapeDtypeStruct, sharding=jax.sharding.SingleDeviceSharding(gpu))
    agent, buffer = script.make_agent(args, *dims), buffer_shapes(dims, 1_000_000, array)
    state = jax.tree.map(lambda x: array(x.shape, x.dtype), jax.eval_shape(jax.vmap(agent.init), seed_keys(args)))
    chunk = functools.partial(script.train_chunk, agent, batch_size=args.batch_size, num_updates=5_000)
    with tempfile.TemporaryDirectory() as folder:
        program = jax.jit(over_seeds(chunk, state), donate_argnums=0).lower(state, buffer)
        compiled: Any = program.compile(OPTIONS | {"xla_dump_to": folder})
        thunks = next(Path(folder).glob("*thunk_sequence_after_thunk_passes.txt")).read_text()
    temporary = round(compiled.memory_analysis().temp_size_in_bytes / 2**20)
    return count(compiled.as_text(), thunks) | {"MiB temporary": temporary}


def main(argv: list[str]) -> None:
    parser = Parser("tools/kernels.py", __doc__)
    parser.add_argument("script", choices=SCRIPTS)
    parser.add_argument("--dims", type=int, nargs=2, default=[29, 8], help="observation and action dimension")
    known, rest = parser.parse_known_args(argv)
    if min(known.dims) <= 0:
        raise UserError("--dims must be positive.")
    jax.config.update("jax_platforms", "cpu")  # a GPU that is there is left alone
    script = importlib.import_module(known.script)
    args = arguments([known.script], rest, flags(known))[known.script]
    cells = {"script": known.script, "seeds": args.num_seeds} | measure(script, args, tuple(known.dims))
    print(*(f"| {' | '.join(map(str, x))} |" for x in (cells, ["---"] * len(cells), cells.values())), sep="\n")


if __name__ == "__main__":
    with cli.one_line_errors("kernels"):
        main(sys.argv[1:])
