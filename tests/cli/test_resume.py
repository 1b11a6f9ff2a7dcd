"""What a run's overrides.yaml may name when the run is resumed: it may come from anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jtln.cli.resume import resumed
from jtln.errors import UserError


def written(folder: Path, *overrides: str) -> list[str]:
    (folder / "overrides.yaml").write_text("".join(f"- {json.dumps(each)}\n" for each in overrides), encoding="utf-8")
    return [f"resume={folder}"]


@pytest.mark.parametrize(
    "override",
    [
        "trunk._target_=os.system",
        "trunk._target_=jtln.storage.os.system",  # found by way of this package
        "+method.penalty={_target_: torch.load, f: x}",
        "+method.penalty={'_target_': jtln.inference.load._imported, name: os.system}",
        "+trunk.body={_target_: ${x}}",
        "trunk._target_=jtln.trunks.from_module",
        "trunk=module",
        "trunk.path=os.system",
        "hydra.searchpath=[file:///elsewhere]",
        "--config-dir=elsewhere",
        "dataset.name=${oc.env:HOME}",
        "trunk.dropout='${oc.decode:\"{_${method.ot_images}_: webbrowser.open, url: x}\"}'",  # ot_images is target
        "trunk.dropout='${${x}:[]}'",  # a resolver that another key names
        "trunk[_target_]=os.system",
    ],
)
def test_what_would_run_something_else_is_refused(override: str, tmp_path: Path) -> None:
    arguments = written(tmp_path, "seed=3", override)
    with pytest.raises(UserError, match="trust=true"):
        resumed(arguments)
    assert override in resumed([*arguments, "trust=true"])


def test_settings_and_the_packages_own_targets_are_taken(tmp_path: Path) -> None:
    own = ["seed=3", "method=delta", "cost._target_=jtln.costs.UniformCost", "trunk=torchvision", "dataset.root=data"]
    own += ["pretrain.optimizer.lr=${optimizer.lr}", "compare_target_only=true", "dataset.target_classes=all"]
    assert resumed(written(tmp_path, *own))[: len(own)] == own
