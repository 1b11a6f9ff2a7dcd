import importlib.metadata
import subprocess
from pathlib import Path

import pytest

import jtln
from jtln.training.provenance import git_commit, versions


def test_a_checkout_that_is_not_installed_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def without_ours(package: str) -> str:
        if package == "jtln":
            raise importlib.metadata.PackageNotFoundError(package)
        return installed(package)

    assert versions()["jtln"] == installed("jtln")
    monkeypatch.setattr("jtln.training.provenance.version", without_ours)
    assert versions()["jtln"] == jtln.__version__


def test_the_commit_and_whether_the_code_has_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "jtln" / "training" / "provenance.py"
    code.parent.mkdir(parents=True)
    code.write_text("1\n", encoding="utf-8")
    monkeypatch.setattr("jtln.training.provenance.__file__", str(code))
    assert git_commit() is None

    def git(*arguments: str) -> str:
        call = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(call, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    git("tag", "-a", "v1", "-m", "v1")  # the commit is named all the same
    head = git("rev-parse", "HEAD").strip()
    assert git_commit() == head
    (tmp_path / "notes.txt").touch()  # run folders and the like
    assert git_commit() == head
    code.write_text("2\n", encoding="utf-8")
    assert git_commit() == f"{head}-dirty"
