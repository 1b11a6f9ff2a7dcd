"""Loggers and callbacks by Hydra's convention: several at once, and one's own by its _target_."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger

from jtln.cli.train import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_a_folder_of_its_own", "no_drawing")]

SMALL = ["debug=smoke", "trunk.width=0.05", "trainer.progress_bar=false", "report=false", "method=consecutive"]
SMALL += ["pretrain=none", "hydra.run.dir=run"]


class Counting(Callback):
    """Counts the steps of the run that it is given to."""

    seen: list[int] = []  # noqa: RUF012

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.seen.append(trainer.global_step * self.every)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the option by which Hydra finds the user's own files."""
    module = ModuleType("my_parts")
    module.Counting, module.Table = Counting, CSVLogger  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_parts", module)
    files = {
        "callbacks/counting": "counting:\n  _target_: my_parts.Counting\n  every: 10\n",
        "logger/table": "table:\n  _target_: my_parts.Table\n  save_dir: tables\n  name: mine\n  version: ''\n",
    }
    for name, text in files.items():
        path = tmp_path / "myconf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return ["--config-dir", "myconf"]


def test_several_and_ones_own(mine: list[str]) -> None:
    Counting.seen.clear()
    again = "+logger.second={_target_: pytorch_lightning.loggers.CSVLogger, save_dir: second, name: x, version: ''}"
    callbacks = "callbacks=[counting,lr_monitor,weight_averaging,model_summary]"
    assert main([*mine, *SMALL, "logger=[csv,table]", again, callbacks]) == 0
    assert Counting.seen == [10, 20]
    result = json.loads(Path("run/result.json").read_text(encoding="utf-8"))
    for path in ("tables/mine", "second/x"):
        with open(Path(path, "metrics.csv"), newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert {row["step"] for row in rows if row["lr-AdamW/trunk"]} == {"0", "1"}
        (best,) = [float(row["best/test/target/accuracy"]) for row in rows if row["best/test/target/accuracy"]]
        assert best == result["target"]["test"]["accuracy"]
        assert "dataset" in Path(path, "hparams.yaml").read_text(encoding="utf-8")


def test_weight_averaging_keeps_the_average() -> None:
    """By hand from the weights after each step."""
    kept = ["callbacks=weight_averaging", "callbacks.weight_averaging.decay=0.5", "dataset.validation=0"]
    assert main([*SMALL, *kept]) == 0
    best, last = (torch.load(f"run/checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert not torch.equal(last["state_dict"]["target_head.weight"], last["current_model_state"]["target_head.weight"])
    assert torch.equal(best["state_dict"]["target_head.weight"], last["state_dict"]["target_head.weight"])


def test_early_stopping_stops(capsys: pytest.CaptureFixture[str]) -> None:
    stop = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1"]
    wide = [each for each in SMALL if each != "debug=smoke"] + ["dataset.validation=2", "epochs=9", "steps_per_epoch=1"]
    assert main([*wide, *stop, "callbacks.early_stopping.min_delta=1.0", "cost=uniform"]) == 0
    result = json.loads(Path("run/result.json").read_text(encoding="utf-8"))
    assert result["steps"] == 2
