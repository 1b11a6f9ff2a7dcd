"""A cost, a baseline, a head, a trunk and a data set of one's own: each is one Python file and one YAML file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from jtln.cli.predict import main as predict
from jtln.cli.train import main

pytestmark = [pytest.mark.usefixtures("in_a_folder_of_its_own", "no_drawing"), pytest.mark.slow]

PYTHON = {
    "my_cost": """
        import torch
        from jtln.costs import Cost

        class Letters(Cost):
            '''How far apart the first letters of two names are.'''
            def distances(self, source, target):
                return torch.tensor([[float(abs(ord(s[0]) - ord(t[0]))) for t in target] for s in source])
        """,
    "my_baseline": """
        from jtln.methods import Penalty

        class Small(Penalty):
            '''Small features.'''
            def __init__(self, weight):
                super().__init__()
                self.weight = weight
            def forward(self, network, batch):
                return self.weight * batch.features.square().mean()
        """,
    "my_head": """
        from dataclasses import dataclass

        import torch
        from torch import nn
        from jtln.heads import Head, HeadFit

        @dataclass(frozen=True)
        class Mean(Head):
            '''Nearest class mean.'''
            name = "mean"
            sharpness: float = 1.0
            def classifier(self, dim, classes):
                return nn.Linear(dim, classes)
            @torch.no_grad()
            def fit(self, trained, given):
                rows, labels = (torch.cat(each) for each in zip(*given.features.of("target")))
                means = torch.stack([rows[labels == j].mean(0) for j in range(given.sizes[1])])
                head = self.classifier(trained.in_features, given.sizes[1])
                head.weight.copy_(2 * self.sharpness * means)
                head.bias.copy_(-self.sharpness * means.square().sum(1))
                return HeadFit(head, {"sharpness": self.sharpness})
        """,
    "my_trunk": """
        from torch import nn
        from jtln.trunks import Trunk

        def pooled(image_size, cells):
            body = nn.Sequential(nn.AdaptiveAvgPool2d(cells), nn.Flatten(), nn.Linear(3 * cells**2, 12), nn.Tanh())
            return Trunk(body, "pooled", 12, (0.5,) * 3, (0.5,) * 3)
        """,
    "my_dataset": """
        from jtln.data.pairs import PairSpec
        from jtln.data.synthetic import synthetic_pair
        from jtln.names.class_set import ClassSet

        class Colours(PairSpec):
            '''Images of one colour each.'''
            name, image_size, channels, shots, flip, shift = "colours", 8, 3, 5, True, 1
            def __init__(self, per_class):
                self.per_class = per_class
                self.source_classes = ClassSet(["amber", "blue", "cyan", "dun"])
                self.target_classes = ClassSet(["ecru", "fawn", "gold"])
            def load(self):
                return synthetic_pair(self, per_class=self.per_class)
        """,
}
YAML = {
    "cost/letters": "_target_: my_cost.Letters\nscale: max\n",
    "method/small": "name: small\nlambda_source: 0.5\npenalty:\n  _target_: my_baseline.Small\n  weight: 0.01\n",
    "head/mean": "_target_: my_head.Mean\nsharpness: 2.0\n",
    "trunk/pooled": "_target_: my_trunk.pooled\ncells: 2\n",
    "dataset/colours": "_target_: my_dataset.Colours\nper_class: 5\n",
}
CHOICES = ["dataset=colours", "trunk=pooled", "cost=letters", "method=small", "head=mean"]
QUICK = ["epochs=3", "steps_per_epoch=10", "pretrain.epochs=1", "pretrain.steps_per_epoch=20", "trainer=cpu"]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Write the files of the groups named, and return the option by which Hydra finds them."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in PYTHON:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def write(*groups: str) -> list[str]:
        for (module, code), (file, text) in zip(PYTHON.items(), YAML.items(), strict=True):
            if file.partition("/")[0] in groups:
                lines = code.strip("\n").splitlines()
                (tmp_path / f"{module}.py").write_text("\n".join(line[8:] for line in lines), encoding="utf-8")
                path = tmp_path / "conf" / f"{file}.yaml"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        return ["--config-dir", "conf"]

    return write


@pytest.mark.parametrize("choice", CHOICES)
def test_one_python_file_and_one_yaml_file_add(
    choice: str, written: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = choice.partition("=")[0]
    option = written(group)
    added = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in added) == [".py", ".yaml"]
    small = [] if group == "trunk" else ["trunk.width=0.05"]
    transport = ["+method.lambda_ot=0.1"] if group == "method" else []
    given = [choice, *small, *transport, "debug=smoke", "trainer.progress_bar=false", "hydra.run.dir=run"]
    assert main([*option, *given]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    recorded = {
        "method": result["method"],
        "cost": result["cost"],
        "head": result["head"],
        "dataset": result["dataset"],
    }
    assert (recorded | {"trunk": result["trunk"]["name"]})[group] == choice.partition("=")[2]


def test_all_five_in_one_run(
    written: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They learn, and the trained network is used again where its code is trusted."""
    option = written("cost", "method", "head", "trunk", "dataset")
    assert (
        main([*option, *CHOICES, *QUICK, "+method.lambda_ot=0.1", "hydra.run.dir=run", "trainer.progress_bar=false"])
        == 0
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["target"]["test"]["accuracy"] > 0.6  # of three colours
    assert result["head_fit"] == {"sharpness": 2.0}
    capsys.readouterr()

    Image.new("RGB", (8, 8), "gold").save(tmp_path / "image.png")
    assert predict(["run", "image.png"]) == 2
    assert "my_trunk.pooled" in capsys.readouterr().err
    assert predict(["run", "image.png", "--trust"]) == 0
    assert "image.png," in capsys.readouterr().out
