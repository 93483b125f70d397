"""How the files stand to each other: imports run one way, each script alone, a script's core small."""

import ast
import os
import subprocess
import sys

from helpers import ROOT, SCRIPTS

# A module imports only from modules that stand before it.
ORDER = (
    "critics", "buffers", "system", "workers", "args",
    "data.dataset", "data.bandits", "data.files", "data.ogbench",
    "data.own", "data.d4rl", "data.procedures", "data.collect", "data",
    "seeds", "evaluation", "states", "checkpoints", "plots", "runs", "online",
)  # fmt: skip
PATHS = [
    *(ROOT / f"{name}.py" for name in SCRIPTS),
    *(path for folder in ("common", "tools") for path in sorted((ROOT / folder).rglob("*.py"))),
]
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in PATHS}
RANK = {name: i for i, name in enumerate(["common", *(f"common.{name}" for name in ORDER)])}
RANK |= {name: 100 for name in SCRIPTS}  # they do not import each other
RANK |= {name: 102 for name in FILES if name.startswith("tools.")}
RANK |= {"tools.shared": 101.0, "tools.plot": 101.5}  # which other tools import, by their plain names
LATE = {("common.data.ogbench", "common.data.collect")}  # inside a function, because most runs need no collection
ALGORITHM = ("jax", "flax", "optax", "numpy", *sys.stdlib_module_names)


def imports(tree: ast.AST) -> list[tuple[str, ast.AST]]:
    """Each name that is imported, module by module and as in FILES where it is ours, and its statement."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]  # from common import checkpoints
            found += [(name if name in FILES else str(node.module), node) for name in full]
    return [(f"tools.{name}" if f"tools.{name}" in FILES else name, node) for name, node in found]


TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
GRAPH = {name: imports(tree) for name, tree in TREES.items()}


def test_every_module_has_its_place_and_imports_only_what_is_before_it():
    assert FILES.keys() <= RANK.keys()
    for name, found in GRAPH.items():
        for other, node in found:
            if other in FILES:
                inside = node not in TREES[name].body
                assert inside if (name, other) in LATE else RANK[other] < RANK[name], f"{name} imports {other}"
    for name in ("common.critics", "common.buffers"):
        assert not [other for other, _ in GRAPH[name] if other in FILES], name


def test_what_the_algorithm_needs_stands_above_the_cut(script):
    above, _, below = (ROOT / f"{script.__name__}.py").read_text().partition("-- cut here")
    assert below
    for other, node in imports(ast.parse(above)):
        if other == "common.args":
            assert [alias.name for alias in node.names] == ["BaseArgs"]
        else:
            assert other in ("common.critics", "common.buffers") or other.split(".")[0] in ALGORITHM, other
    assert sum(len((ROOT / "common" / name).read_text().splitlines()) for name in ("critics.py", "buffers.py")) <= 110


LOADED = """
import sys, common.evaluation, common.args
assert "jax" not in sys.modules
import runpy
root, sys.argv = sys.argv[1], sys.argv[2:]
runpy.run_path(root + "/driftql.py", run_name="__main__")
files = {getattr(module, "__file__", None) or "" for module in sys.modules.values()}
print(*sorted(file for file in files if file.startswith(root + "/")), sep="\\n", file=sys.stderr)
"""


def test_a_script_loads_little_of_ours_and_only_the_core_imports_jax(tmp_path):
    """Workers and the processes beside a sweep's jobs do not pay seconds and hundreds of megabytes for it."""
    for name, found in GRAPH.items():
        if name.startswith("common.data") or name in ("common", "common.system", "common.workers"):
            assert not {"jax", "jaxlib", "flax", "optax"} & {other.split(".")[0] for other, _ in found}, name
    flags = ["--env", "bandit", "--steps", "100", "--hidden-dims", "8", "--eval-episodes", "4", "--no-progress"]
    command = [sys.executable, "-c", LOADED, str(ROOT), "driftql.py", *flags, "--run-dir", "run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
    loaded = [file for file in done.stderr.splitlines() if file.startswith(f"{ROOT}/common/")]
    lines = {file: len(open(file).readlines()) for file in loaded}
    assert 5 < len(lines) <= 16, lines
    assert sum(lines.values()) <= 2000, (sum(lines.values()), lines)
