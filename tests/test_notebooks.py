"""The notebooks run from top to bottom, and what is committed of their outputs is fit to be read by others."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from jtln.cli.train import main

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LARGEST = 1_500_000  # bytes
A_MACHINES_PATH = re.compile(r"(?<![\w.:/])/(tmp|home|root|work|Users|usr|opt|var|mnt)/|\b[A-Za-z]:\\\w")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(output: NotebookNode) -> Iterator[str]:
    """Yield the parts of an output that are not pictures."""
    for key in ("text", "evalue"):
        if key in output:
            yield output[key]
    yield from output.get("traceback", [])
    for kind, content in output.get("data", {}).items():
        if not kind.startswith("image/") or kind == "image/svg+xml":
            yield content if isinstance(content, str) else repr(content)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of the running interpreter, whatever kernels are registered on this machine."""
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "python3")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    for variable in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / "jupyter" / variable.lower()))
    assert KernelSpecManager().get_kernel_spec("python3").argv[0] == sys.executable
    return "python3"


def commands(notebook: NotebookNode) -> list[list[str]]:
    """The arguments of every ``python train.py`` in the text's code blocks; of several values the first."""
    blocks = re.findall(r"```bash\n(.*?)```", "\n".join(cell.source for cell in notebook.cells), flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    calls = [line[2:] for line in lines if line[:2] == ["python", "train.py"] and "--help" not in line]
    return [[argument.partition(",")[0] for argument in call if argument != "-m"] for call in calls]


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


def test_every_command_of_the_first_run_composes(capsys: pytest.CaptureFixture[str]) -> None:
    calls = commands(nbformat.read(next(path for path in NOTEBOOKS if path.stem == "first_run"), as_version=4))
    assert calls
    for arguments in calls:
        assert main([*arguments, "--cfg", "job"]) == 0
        assert capsys.readouterr().err == ""


@pytest.mark.slow
@each_notebook
def test_runs_without_an_error(path: Path, kernel: str, tmp_path: Path) -> None:
    """Trainings are cut to a few steps; whether the committed outputs are those of whole ones is not asked here."""
    notebook, folder = nbformat.read(path, as_version=4), tmp_path / "elsewhere"
    folder.mkdir()
    for cell in code_cells(notebook):
        cell.source = re.sub(r"\b(steps_per_epoch|(?:max_)?epochs)=\d+", r"\1=2", cell.source)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=600, kernel_name=kernel, resources=resources)
    client.execute()  # raises CellExecutionError at the first cell that fails
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]  # no warnings for a first-time user
    assert not [text for output in outputs for text in texts(output) if A_MACHINES_PATH.search(text)]
    assert not list(folder.iterdir())  # it leaves nothing behind where it is run


@each_notebook
def test_is_committed_as_it_was_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < LARGEST


@each_notebook
def test_committed_outputs_hold_no_path_of_a_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [text for output in outputs for text in texts(output) if A_MACHINES_PATH.search(text)]
    assert not A_MACHINES_PATH.search(repr(notebook.metadata))
    assert not [cell.metadata for cell in notebook.cells if A_MACHINES_PATH.search(repr(cell.metadata))]


@pytest.mark.parametrize("text", ["/tmp/x", "in '/home/me/run'", "(/mnt/main)", "C:\\Users", "File /usr/lib/x.py"])
def test_the_pattern_finds_paths(text: str) -> None:
    assert A_MACHINES_PATH.search(text)


@pytest.mark.parametrize("text", ["T-shirt/top", "https://site.org/home/x", "jtln/costs/base.py", "a/tmp/b"])
def test_the_pattern_lets_pass_what_is_no_path(text: str) -> None:
    assert not A_MACHINES_PATH.search(text)
