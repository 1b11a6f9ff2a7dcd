"""The shape of the code: which room may import which, no import circle, and what starts quickly."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import jtln
from jtln.cli.main import COMMANDS

PACKAGE = Path(jtln.__file__).parent

# From the top to the bottom. A room imports from itself and from the rooms below it.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("study",),
    ("training",),
    ("inference", "reporting"),
    ("module",),
    ("heads", "methods"),
    ("data", "trunks"),
    ("costs",),
    ("transport",),
    ("names",),
    ("temperature",),
    ("distributed",),
    ("storage", "metrics", "schedules"),
    ("assets",),
    ("errors",),
    ("",),  # jtln/__init__.py
)
HYDRA = ("cli", "study")  # the rooms that may import Hydra

Graph = dict[str, set[str]]


def modules(package: Path) -> dict[str, Path]:
    """Every module below a package by its dotted name, ``__init__`` files by their package's."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def nodes(tree: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Every node, but for what only a type checker reads."""
    for node in tree:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from nodes(ast.iter_child_nodes(node))


def imported(name: str, path: Path) -> Iterator[str]:
    """Every dotted name that a file may import, in functions and by relative imports too."""
    for node in nodes(ast.iter_child_nodes(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            above = here[: len(here) - node.level + 1] if node.level else []
            whole = ".".join([*above, *([node.module] if node.module else [])])
            yield whole
            yield from (f"{whole}.{alias.name}" for alias in node.names)


def import_graph(package: Path) -> Graph:
    """Module -> the package's modules that it imports. Importing a submodule runs the packages above it first."""
    known = modules(package)
    graph: Graph = {}
    for name, path in known.items():
        found = set()
        for target in imported(name, path):
            parts = target.split(".")
            found |= {".".join(parts[:length]) for length in range(2, len(parts) + 1)}
        graph[name] = {each for each in found if each in known and each != name and not name.startswith(f"{each}.")}
    return graph


def cycles(graph: Graph) -> list[list[str]]:
    """The circles that a depth-first walk meets."""
    found: list[list[str]] = []
    state: dict[str, str] = {}

    def visit(name: str, path: list[str]) -> None:
        if state.get(name) == "open":
            found.append([*path[path.index(name) :], name])
        elif name not in state:
            state[name] = "open"
            for each in sorted(graph[name]):
                visit(each, [*path, name])
            state[name] = "done"

    for name in graph:
        visit(name, [])
    return found


def room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def floor(module: str) -> int:
    for index, names in enumerate(ROOMS):
        if room(module) in names:
            return index
    raise AssertionError(f"{module} is in no room: add its room to ROOMS")


def upwards(graph: Graph) -> list[str]:
    """Imports against the order of the rooms, or between two rooms of one floor."""
    return [
        f"{name} imports {each}"
        for name, targets in graph.items()
        for each in targets
        if floor(each) < floor(name) or (floor(each) == floor(name) and room(each) != room(name))
    ]


GRAPH = import_graph(PACKAGE)


def test_no_import_circle() -> None:
    assert cycles(GRAPH) == []


def test_imports_go_only_down() -> None:
    assert upwards(GRAPH) == []


def test_a_circle_and_an_upward_import_would_be_found(tmp_path: Path) -> None:
    """Through an ``__init__`` file, by a relative import, and inside a function."""
    package = tmp_path / "jtln"
    files = {
        "__init__.py": "",
        "costs/__init__.py": "from .base import Cost\n",
        "costs/base.py": "Cost = 1\ndef f():\n    from ..transport import loss\n",
        "transport/__init__.py": "from jtln.transport import loss\n",
        "transport/loss.py": "import jtln.costs.base\n",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    graph = import_graph(package)
    assert graph["jtln.costs"] == {"jtln.costs.base"}
    assert graph["jtln.transport.loss"] == {"jtln.costs", "jtln.costs.base"}
    assert any({"jtln.costs.base", "jtln.transport.loss"} <= set(circle) for circle in cycles(graph))
    assert "jtln.transport.loss imports jtln.costs.base" in upwards(graph)


def test_only_the_command_line_and_studies_import_hydra() -> None:
    who = {
        room(name)
        for name, path in modules(PACKAGE).items()
        if any(each.partition(".")[0] in ("hydra", "omegaconf") for each in imported(name, path))
    }
    assert who
    assert who <= set(HYDRA)


@pytest.mark.parametrize("text", ["jtln train", "python train.py", "--config-dir"])
def test_no_library_class_imports_the_command_line(text: str) -> None:
    above = {"cli", "study", "training", "__main__", "reporting", "inference"}
    who = [
        name
        for name, path in modules(PACKAGE).items()
        if room(name) not in above and text in path.read_text(encoding="utf-8")
    ]
    assert who == []


def test_every_file_is_named_for_what_it_holds() -> None:
    assert not [name for name in GRAPH if name.rpartition(".")[2] in ("utils", "helpers", "common", "misc")]


def test_the_command_line_starts_without_pytorch() -> None:
    commands = ", ".join(COMMANDS.values())
    code = f"import sys, {commands}; print([m for m in ('torch', 'pytorch_lightning', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.strip() == "[]"
