"""The wheel holds everything that a run needs, and runs without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("jtln-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def tracked(folder: str) -> list[str]:
    """The checkout's files below ``folder``, but for what Python and tools leave there."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return [path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts]


def test_the_configuration_is_in_the_package(unpacked: Path) -> None:
    files = tracked("conf")
    assert files
    for name in files:
        assert (unpacked / "jtln" / name).read_bytes() == (ROOT / name).read_bytes()


def test_all_code_and_assets_are_in_the_package(unpacked: Path) -> None:
    missing = [name for name in tracked("jtln") if not (unpacked / name).is_file()]
    assert not missing


def test_type_checkers_read_its_types(unpacked: Path) -> None:
    assert (unpacked / "jtln" / "py.typed").is_file()


def test_what_is_embedded_comes_with_its_licence(unpacked: Path) -> None:
    assets = unpacked / "jtln" / "assets"
    embedded = [folder for folder in assets.iterdir() if folder.is_dir() and folder.name != "__pycache__"]
    assert {folder.name for folder in embedded} >= {"fashion", "pictograms", "wordnet"}
    for folder in embedded:
        texts = [path for path in folder.iterdir() if path.name.startswith(("LICEN", "NOTICE"))]
        assert texts, folder.name
        assert all(path.stat().st_size > 200 for path in texts)
    assert list(unpacked.glob("jtln-*.dist-info/licenses/LICENSE"))


def test_nothing_else_is_in_it(unpacked: Path) -> None:
    assert {path.name.partition("-")[0] for path in unpacked.iterdir()} == {"jtln"}
    assert not list(unpacked.rglob("*.pyc"))


def run(unpacked: Path, folder: Path, *arguments: str) -> str:
    """``python ...`` in a folder elsewhere, with the unpacked wheel before the checkout."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(unpacked), "JTLN_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_composes_from_another_folder(unpacked: Path, tmp_path: Path) -> None:
    where = run(unpacked, tmp_path, "-c", "import jtln.cli.overrides as m; print(m.__file__); print(m.config_dir())")
    assert where.splitlines() == [str(unpacked / "jtln/cli/overrides.py"), str(unpacked / "jtln/conf")]
    config = run(unpacked, tmp_path, "-m", "jtln", "train", "--cfg", "job", "cost=centroid")
    assert "_target_: jtln.costs.CentroidCost" in config
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_it_reads_what_is_embedded(unpacked: Path, tmp_path: Path) -> None:
    shown = run(unpacked, tmp_path, "-m", "jtln", "cost", "dataset=pictograms", "cost=wordnet")
    assert "150 source x 50 target classes" in " ".join(shown.split())
    assert len(list(tmp_path.glob("outputs/cost/*/cost.csv"))) == 1
