"""Options of Lightning's Trainer that people try first: each works, or one line names what to use in its place."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path

import pytest
from pytorch_lightning import Trainer

from jtln.cli.train import main
from jtln.training.trainer import REFUSED

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own", "no_drawing")

SMALL = ["debug=smoke", "trunk.width=0.05", "trainer=cpu", "trainer.progress_bar=false", "report=false"]
SMALL += ["method=consecutive", "pretrain=none", "hydra.run.dir=run"]
WORKS = [
    "+trainer.accumulate_grad_batches=2",
    "+trainer.max_time=00:00:10:00",
    "+trainer.max_time={minutes: 10}",
    "+trainer.strategy=ddp_find_unused_parameters_true",
    "+trainer.detect_anomaly=true",
    "+trainer.gradient_clip_algorithm=value",
    "trainer.precision=16-mixed",
    "trainer.precision=bf16-mixed",
]
INSTEAD = {
    "fast_dev_run=true": "debug=smoke",
    "max_epochs=3": "epochs and steps_per_epoch",
    "max_steps=3": "epochs and steps_per_epoch",
    "limit_train_batches=0.1": "epochs and steps_per_epoch",
    "limit_val_batches=2": "dataset.validation",
    "overfit_batches=1": "dataset.shots=1",
    "compile=true": "trainer.precision=bf16-mixed",
    "barebones=true": "debug=smoke",
    "enable_progress_bar=false": "trainer.progress_bar",
    "default_root_dir=here": "hydra.run.dir=DIR",
    "logger=true": "logger=csv",
    "callbacks=[]": "callbacks",
}
REFUSALS = {
    **{f"{sign}trainer.{given}": told for given, told in INSTEAD.items() for sign in ("+", "")},
    "trainer.accumulate_grad_batches=2": "+trainer.accumulate_grad_batches=VALUE",
    "trainer.max_time=00:01:00:00": "+trainer.max_time=VALUE",
    "+trainer.max_time=00:00:00:00": "trainer.max_time",
    "+trainer.max_time=soon": "soon",
    "trainer.strategy=ddp_spawn": "+trainer.strategy=VALUE",
    "+trainer.strategy=ddp_spawn": "ddp_find_unused_parameters_true",
    "trainer=ddp trainer.strategy=ddp_spawn": "ddp_find_unused_parameters_true",
    "trainer.precision=16": "16-mixed",
    "trainer.precison=16-mixed": "Did you mean 'precision'",
    "trainer.max_tim=1": "Did you mean 'max_time'",
}


@pytest.mark.slow
@pytest.mark.parametrize("given", WORKS)
def test_works(given: str) -> None:
    assert main([*SMALL, given]) == 0
    assert json.loads(Path("run/result.json").read_text(encoding="utf-8"))["steps"] >= 1


@pytest.mark.parametrize(
    "call", [pytest.param(call, marks=() if "fast_dev_run" in call else pytest.mark.slow) for call in REFUSALS]
)
def test_ends_in_one_line_that_names_what_to_use(call: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *call.split()]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert REFUSALS[call] in line


def test_what_is_refused_is_lightnings() -> None:
    """But for compile, which others have."""
    assert set(REFUSED) - set(signature(Trainer.__init__).parameters) == {"compile"}
