"""Every published protocol runs, in seconds and small, and every command in a header is one that can be given."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from jtln.cli.overrides import config_dir
from jtln.cli.train import main

pytestmark = [pytest.mark.usefixtures("in_a_folder_of_its_own"), pytest.mark.slow]

FOLDER = config_dir() / "experiment"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
TEXTS = {name: (FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in NAMES}
ADAPTATION = ("cub200", "cars", "aircraft")

# What a file needs beside debug=smoke, only to be quick.
SMALL = ["dataset.image_size=32", "trainer.progress_bar=false"]
NEEDS: dict[str, list[str]] = {
    "none": ["trunk.width=0.05"],
    **{name: ["trunk.width=0.05"] for name in ("aircraft_boeing_airbus", "imagenet_office31")},
    "photographs": [f"dataset.target.root={Path(__file__).parents[1] / 'files' / 'own_target.csv'}"],
    **{name: ["trunk.name=resnet18"] for name in ("caltech256_30", "caltech256_60", "cars", "aircraft", "cub200")},
}


def commands() -> list[tuple[str, str]]:
    """What the headers say can be typed, with the name of the file; a line that ends in \\ goes on in the next."""
    found = []
    for name, text in TEXTS.items():
        header = re.sub(r" \\\n# +", " ", text.partition("\ndefaults:")[0])
        found += [(name, line) for line in re.findall(r"^# +python train\.py (.*?)(?: {3,}\(.*\))?$", header, re.M)]
    return found


def composed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([*arguments, "--cfg", "job"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return OmegaConf.create(told.out)


@pytest.mark.slow
@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_runs(name: str, tmp_path: Path) -> None:
    needs = [*SMALL, *NEEDS.get(name, [])]
    assert main([f"experiment={name}", *needs, "debug=smoke", f"hydra.run.dir={tmp_path}/run"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["synthetic_images"] is True
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert config["epochs"] == 2
    if name in ADAPTATION:
        assert (result["shots"], result["rate"], result["method"]) == (None, 0.15, "consecutive")
        assert result["trunk"]["pretrained"] is None


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_of_a_header_composes(name: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [re.sub(r"range\((\d+)\)", "0,1", each) for each in shlex.split(command) if each != "-m"]
    assert f"experiment={name}" in arguments
    pairs = [each.partition("=")[::2] for each in arguments]
    # Of values with commas the first and the last.
    for values in {tuple(f"{key}={value.split(',')[job]}" for key, value in pairs) for job in (0, -1)}:
        assert composed(list(values), capsys)["epochs"] in ((10,) if name == "photographs" else (18, 20))


def test_headers_say_what_they_have_to() -> None:
    for name in set(NAMES) - {"none", "photographs"}:
        for part in ("Hardware:", "Published by others:", "Ours: ", f"python train.py experiment={name}"):
            assert part in TEXTS[name], (name, part)


def test_the_command_of_the_design_on_four_devices(capsys: pytest.CaptureFixture[str]) -> None:
    config = composed(["experiment=aircraft_boeing_airbus", "trainer=ddp", "trainer.devices=4"], capsys)
    assert (config.dataset.name, config.dataset.target_classes, config.trainer.devices) == ("aircraft", ["Airbus/*"], 4)
    assert config.trunk["_target_"] == "jtln.trunks.alexnet"
    for size in config.batch_size.values():
        assert size % 4 == 0


@pytest.mark.parametrize("name", ADAPTATION)
def test_task_adaptation_is_the_librarys(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """thuml's Transfer-Learning-Library, examples/task_adaptation/image_classification/erm.py, its defaults."""
    config = composed([f"experiment={name}"], capsys)
    optimizer = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    assert {key: config.optimizer[key] for key in optimizer} == optimizer
    assert (config.epochs, config.steps_per_epoch, config.batch_size.target) == (20, 500, 48)
    assert [milestone * config.epochs for milestone in config.schedule.milestones] == [12]
    assert (config.schedule.gamma, config.trunk_lr_factor) == (0.1, 0.1)
    assert (config.trunk.name, config.trunk.weights) == ("resnet50", "IMAGENET1K_V1")
    assert (config.dataset.crop, config.dataset.flip, config.dataset.image_size) == (0.2, True, 224)
    assert (config.dataset.target_classes, config.pretrain.source) == ("all", False)


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ("method=target_only", "trunk_lr_factor", 0.1),  # the file's own, not that of a random trunk
        ("method=jtln", "method.name", "jtln"),
        ("method=jtln_annealed", "head._target_", "jtln.heads.Discriminant"),  # the method's own
        ("head=cosine", "head._target_", "jtln.heads.Cosine"),
        ("dataset/source=imagenet", "dataset.source._target_", "jtln.data.collections.imagenet.ImageNet"),
        ("pretrain=source", "pretrain.source", True),
        ("cost=posterior", "cost._target_", "jtln.costs.PosteriorCost"),
        ("optimizer=adamw", "optimizer._target_", "torch.optim.AdamW"),
        ("dataset.rate=1.0", "dataset.rate", 1.0),
    ],
)
def test_what_is_given_counts_more(given: str, key: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cub200", "aircraft"):
        assert OmegaConf.select(composed([f"experiment={name}", given], capsys), key) == value
