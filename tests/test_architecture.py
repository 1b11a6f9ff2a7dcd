"""The shape of the code: which room may import which, no import circle, and what starts quickly."""

from __future__ import annotations

import ast
import functools
import re
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
HEADLESS = re.compile(r"(What|Whether|Whose|Who|Why|When|How|Where|Which|Of|From|By|With|To|In|At|On|For|As|So|Tell)\b")
ABSTRACT = ("ABC", "NamedTuple", "Protocol")  # bases that document no method of a subclass

Graph = dict[str, set[str]]


def modules(package: Path) -> dict[str, Path]:
    """Every module below a package by its dotted name, ``__init__`` files by their package's."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes(tree: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Every node, but for what only a type checker reads."""
    for node in tree:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from nodes(ast.iter_child_nodes(node))


def imported(name: str, path: Path) -> Iterator[str]:
    """Every dotted name that a file may import, in functions and by relative imports too."""
    for node in nodes(ast.iter_child_nodes(parsed(path))):
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


def docstrings(package: Path) -> Iterator[tuple[str, str]]:
    """The place and the text of every docstring below a package."""
    for path in modules(package).values():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
                text := ast.get_docstring(node)
            ):
                yield f"{path.relative_to(package)}:{getattr(node, 'lineno', 1)}", text


def undocumented(package: Path) -> list[str]:
    """The public methods of public classes without a docstring, of their own or of a base class's method.

    Methods of other packages' classes, such as hooks, count as documented.
    """
    classes = [
        node for path in modules(package).values() for node in parsed(path).body if isinstance(node, ast.ClassDef)
    ]
    by_name = {name: [node for node in classes if node.name == name] for name in {node.name for node in classes}}

    def is_documented(node: ast.ClassDef, method: str) -> bool:
        """Return True if the class's own method, or one that it inherits, has a docstring."""
        functions = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == method]
        return any(map(ast.get_docstring, functions)) or any(inherits(base, method) for base in node.bases)

    def inherits(base: ast.expr, method: str) -> bool:
        name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        if name not in by_name:
            return name not in ABSTRACT
        return any(is_documented(node, method) for node in by_name[name])

    return [
        f"{node.name}.{function.name}"
        for node in classes
        for function in node.body
        if isinstance(function, ast.FunctionDef) and not node.name.startswith("_") and not function.name.startswith("_")
        if not is_documented(node, function.name)
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


def test_docstrings_begin_with_a_command_or_a_noun() -> None:
    found = dict(docstrings(PACKAGE))
    assert "transport/__init__.py:1" in found
    assert {where: text.splitlines()[0] for where, text in found.items() if HEADLESS.match(text)} == {}


def test_every_public_method_has_a_docstring() -> None:
    assert undocumented(PACKAGE) == []


def test_a_missing_or_headless_docstring_would_be_found(tmp_path: Path) -> None:
    """An overriding method needs none, and neither does a hook of another package's class."""
    package = tmp_path / "jtln"
    package.mkdir()
    (package / "__init__.py").write_text('"""Whether it works."""\n', encoding="utf-8")
    (package / "cost.py").write_text(
        "class Cost(ABC):\n"
        '    def matrix(self):\n        """Return (S, T)."""\n'
        "    def fit(self):\n        pass\n"
        "class Path(Cost, base.Module):\n"
        "    def matrix(self):\n        pass\n"
        "    def forward(self):\n        pass\n"
        "class Tree(Cost):\n"
        "    def fit(self):\n        pass\n"
        "    def depth(self):\n        pass\n",
        encoding="utf-8",
    )
    headless = [where for where, text in docstrings(package) if HEADLESS.match(text)]
    assert headless == ["__init__.py:1"]
    assert undocumented(package) == ["Cost.fit", "Tree.fit", "Tree.depth"]


def test_the_command_line_starts_without_pytorch() -> None:
    commands = ", ".join(COMMANDS.values())
    code = f"import sys, {commands}; print([m for m in ('torch', 'pytorch_lightning', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.strip() == "[]"
