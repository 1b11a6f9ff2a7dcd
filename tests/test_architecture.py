"""The shape of the code: which module may import which, how long a file may be, and what starts quickly."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jtln
from jtln.__main__ import COMMANDS

PACKAGE = Path(jtln.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "assets" not in path.relative_to(PACKAGE).parts)

# From the bottom to the top; a module imports only from layers below its own, or from its own.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "jtln",
        "jtln.errors",
        "jtln.assets",
        "jtln.storage",
        "jtln.training.progress",
        "jtln.training.provenance",
        "jtln.reporting.statistics",
        "jtln.reporting.tables",
    ),
    (
        "jtln.names.class_set",
        "jtln.schedules",
        "jtln.transport.sinkhorn",
        "jtln.trunks.alexnet",
        "jtln.names.wordnet",
        "jtln.names.spelling",
        "jtln.names.senses",
        "jtln.names.linking",
    ),
    ("jtln.distributed", "jtln.costs.class_posterior"),
    (
        "jtln.costs",
        "jtln.transport.loss",
        "jtln.costs.calibration",
        "jtln.heads.discriminant",
        "jtln.metrics",
        "jtln.data",
        "jtln.reporting.plots",
    ),
    ("jtln.methods",),
    ("jtln.module",),
    ("jtln.training.trainer", "jtln.training.pretraining", "jtln.reporting.run_page", "jtln.inference.classifier"),
    ("jtln.training.experiment", "jtln.inference.export"),
    ("jtln.training.log", "jtln.training.negative_transfer", "jtln.training.run_folder", "jtln.training.run"),
    ("jtln.study",),
    ("jtln.cli",),
    ("jtln.__main__",),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    """The index in LAYERS of the most specific name that ``module`` is or lies in."""
    for length in range(module.count(".") + 1, 0, -1):
        name = ".".join(module.split(".")[:length])
        if length == 1 and module != "jtln":
            break
        for index, names in enumerate(LAYERS):
            if name in names:
                return index
    raise AssertionError(f"{module} has no layer: add it to LAYERS")


def imports(path: Path) -> set[str]:
    """Every module that ``path`` imports anywhere, submodules included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            if node.module == "jtln":
                found |= {f"jtln.{alias.name}" if is_module(alias.name) else "jtln" for alias in node.names}
            else:
                found.add(node.module)
    return found


def is_module(name: str) -> bool:
    return (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name).is_dir()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_only_downwards(path: Path) -> None:
    mine = layer(module_name(path))
    upwards = {name for name in imports(path) if name.partition(".")[0] == "jtln" and layer(name) > mine}
    assert not upwards


def test_only_the_command_line_knows_hydra() -> None:
    who = {
        module_name(path)
        for path in FILES
        if any(name.partition(".")[0] in ("hydra", "omegaconf") for name in imports(path))
    }
    assert who
    assert all(name.startswith("jtln.cli.") for name in who)


def test_no_file_is_too_long_to_read() -> None:
    assert not {module_name(path): length for path in FILES if (length := len(path.read_text().splitlines())) > 400}


def test_every_file_is_named_for_what_it_holds() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "common", "misc")]


def test_the_command_line_starts_without_pytorch() -> None:
    commands = ", ".join(COMMANDS.values())
    code = f"import sys, {commands}; print([m for m in ('torch', 'pytorch_lightning', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
