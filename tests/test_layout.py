"""How the files stand to each other: imports run one way, each script alone, `common/` small."""

import ast
from pathlib import Path

import pytest
from helpers import ROOT, SCRIPTS

FOLDERS = ("common", "common/collect", "tools")
FILES = [
    *(ROOT / f"{name}.py" for name in SCRIPTS),
    *(path for f in FOLDERS for path in sorted((ROOT / f).glob("*.py"))),
]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
# Slow or optional, so that it may be imported when it is needed:
LATE = ("jax", "ogbench", "tensorboardX", "wandb", "matplotlib", "imageio", "h5py", "minari", "mujoco")
LATE += ("gymnasium_robotics", "submitit")


def imported(node: ast.AST) -> list[str]:
    """Names of the modules that a statement imports, those of this project as in MODULES."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    full = [f"{node.module}.{alias.name}" for alias in node.names]  # from common import cli
    return [name if name in MODULES else str(node.module) for name in full]


def imports(path: Path) -> dict[str, bool]:
    """Module -> whether all of its imports stand inside functions."""
    tree, found = ast.parse(path.read_text()), {}
    inside = {id(x) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for x in ast.walk(f)}
    for node in ast.walk(tree):
        for name in imported(node):
            # Tools find one another by their plain names.
            name = f"tools.{name}" if f"tools.{name}" in MODULES else name
            found[name] = found.get(name, True) and id(node) in inside
    return found


GRAPH = {module: imports(path) for module, path in MODULES.items()}


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Names along a circle, or nothing."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        circle = next((found for other in sorted(graph[name]) if (found := visit(other, [*way, name]))), [])
        done.add(name)
        return circle

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_find_circle_finds_one():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_circle_of_imports_between_files():
    assert len(MODULES) > 20
    graph = {module: {name for name in names if name in MODULES} for module, names in GRAPH.items()}
    assert not find_circle(graph)


def test_no_circle_of_imports_between_folders():
    """Scripts and tools stand above common/; of common/collect, what is below it in common/ may not import it."""
    graph: dict[str, set[str]] = {}

    def place(module: str) -> str:
        top = module.split(".")[0]
        return "scripts" if top in SCRIPTS else top

    for module, names in GRAPH.items():
        graph.setdefault(place(module), set()).update(place(name) for name in names if name in MODULES)
    assert not find_circle({name: others - {name} for name, others in graph.items()})
    collect = {name for module, names in GRAPH.items() if "collect" in module for name in names}
    users = {module for module, names in GRAPH.items() if any("common.collect" in name for name in names)}
    assert not collect & {module for module in users if "collect" not in module}


def test_only_third_parties_are_imported_late():
    for module, names in GRAPH.items():
        late = {name for name, is_late in names.items() if is_late}
        assert not late & MODULES.keys(), module
        allowed = {name for name in late if name.split(".")[0] in LATE}
        assert late == allowed, f"{module} imports {late - allowed} inside a function"


def test_scripts_share_nothing_but_common():
    for module, names in GRAPH.items():
        if not module.startswith("tools"):
            assert not set(SCRIPTS) & {name.split(".")[0] for name in names}, module


def test_the_files_of_common_are_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "common").glob("*.py")}
    assert max(lengths.values()) <= 350, lengths


def test_each_file_says_what_it_is():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize("name", ["workers", "transitions", "environments", "files", "collect.procedures", "collect"])
def test_workers_do_not_pay_for_jax(name):
    """Nor does what the workers and the processes beside a sweep's jobs import: seconds, hundreds of megabytes each."""
    seen, waiting = set(), [f"common.{name}"]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            early = [other for other, late in GRAPH[module].items() if not late]
            assert not {"jax", "flax", "optax"} & {other.split(".")[0] for other in early}, module
            waiting += [other for other in early if other in MODULES]
