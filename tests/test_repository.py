"""What the services and tools around the repository are told agrees with what the package says."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_ci_runs_what_the_project_runs_on_every_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    versions = job["strategy"]["matrix"]["python-version"]
    assert versions == [f"3.{minor}" for minor in range(10, 14)]  # text: 3.10 would be the number 3.1
    (oldest,) = re.findall(r'requires-python = ">=([\d.]+)"', pyproject())
    assert versions[0] == oldest
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert os.access(ROOT / commands[0], os.X_OK)


def test_pre_commit_calls_the_tools_of_ci() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for hook in hooks:
        command = hook["entry"].removesuffix(" --fix")
        assert re.search(rf"^{re.escape(command)}\b", script, re.MULTILINE), command
        assert shutil.which(command.split()[0])
        assert hook["language"] == "system"
