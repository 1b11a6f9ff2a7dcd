"""The command line, in this process: every mistake ends in one line, and a fault of the program in a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jtln.cli.train import main
from jtln.cli.user_errors import explain

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

MISTAKES = {
    "cost=unifrm": "Did you mean 'uniform'",
    "costs=uniform": "Did you mean 'cost'",
    "dataset.shot=3": "Did you mean 'shots'",
    "datset.shots=3": "Did you mean 'dataset'",
    "dataset.shots=abc": "expected a whole number for dataset.shots, but got 'abc'",
    "dataset.shots=1000 debug=none": "set dataset.shots to at most",
    "dataset.shots=0 debug=none": "1 or more labelled images",
    "seed=-1": ">= 0 for seed, but got -1",
    "seed=1.5": "expected a whole number for seed",
    "transport.epsilon=0": "transport: expected a finite number epsilon > 0, but got 0",
    "method.lambda_ot=-1": "method: expected a number lambda_ot >= 0, but got -1",
    "dataset.source_classes=[Foo,Bar]": "Sandal",
    "trunk.weights=/nope": "trunk.weights=/nope",
    "lr=3": "did you mean pretrain.optimizer.lr or optimizer.lr?",
    "shots=5": "did you mean dataset.shots?",
    "cost@cost.of=centroid": "none of them has cost@cost.of",
    "dataset=pictograms dataset/source=imagenet": "dataset.source_validation, of dataset/source=imagenet",
    "optimizer.lr=-1": "optimizer, but got lr=-1",
    "pretrain.optimizer.lr=-1": "pretrain.optimizer, but got lr=-1",
    "epochs=true": "epochs",
    "transport.max_iterations=0": "transport: expected max_iterations >= 1",
    "transport.tolerance=-1": "tolerance >= 0",
    "transport.calibrate=3": "expected true or false for transport.calibrate, but got 3",
    "+transport.foo=1": "unknown key in 'transport' 'foo'",
    "method=consecutive method.lambda_source=0.5": "unknown key in 'method' 'lambda_source'",
    "trainer.accelerator=tpu": "takes in trainer.*, but got",
    "+cost=uniform": "cost",
    "method=null": "one file's name for method, but got method=null: choose from bss, co_tuning,",
    "logger=[csv,wandbb]": "Did you mean 'wandb'",
    "+logger.mine._target_=torch.nn.Identity": "pytorch_lightning.loggers.logger.Logger for logger.mine",
    "+logger.mine=3": "expected a _target_ in logger.mine",
    "callbacks=early_stoping": "Did you mean 'early_stopping'",
    "callbacks=early_stopping callbacks.early_stopping.mode=most": "callbacks.early_stopping, but got",
    "callbacks=early_stopping dataset.validation=0": "expected validation images for EarlyStopping",
    "+callbacks.mine._target_=nowhere.Mine": "nowhere",
    "cost=[uniform,wordnet]": "or several runs with -m and commas between the names",
    "-m cost=uniform,null": "one file's name for cost",
    "+experiment=null": "one file's name for experiment",
    "cost=permuted cost@cost.of=null": "one file's name for cost",
    "method=l2sp method.penalty=null method.penalty.alpha=1": "one of method.penalty=null and method.penalty.alpha=1",
    "method=co_tuning method.penalty=null": "expected the penalty of method=co_tuning, but got null",
    "head=null": "for head, but got head=null: choose from cosine, discriminant, free_lunch, linear, logistic",
    "head=linear head.shrinkage=0.5": "unknown key in 'head' 'shrinkage'",
    "head=discriminant head.shrinkage=0": "head: expected shrinkage in [1e-6, 1], but got 0",
    "method=l2sp method.penalty=3 method.penalty.alpha=1": "one of method.penalty=3 and method.penalty.alpha=1",
    "method.lambda_label=-1": "method: expected a number lambda_label >= 0, but got -1",
    "method.lambda_ot=null": "expected a number for method.lambda_ot, but got null",
    "trunk_lr_factor=null": "expected a number for trunk_lr_factor, but got null",
    "pretrain.optimizer.lr=null": "expected a number for pretrain.optimizer.lr, but got null",
    "seed=null": "expected a whole number for seed, but got null",
    "dataset=pictograms dataset.shots=null": "expected 1 to",
    "dataset=pictograms dataset.validation=null": "validation style groups, but got None",
    "-m study=quick dataset=pictograms study.shots=[null] study.only=[consecutive]": "expected 1 to",
    "schedule=step schedule.milestones=5": "expected a list for schedule.milestones, but got 5",
    "method=delta method.penalty.layers=5": "method.penalty: expected layers to be names of layers or null, but got 5",
    "trunk=torchvision trunk.name=inception_v3 trunk.weights=none": "inception_v3 cannot take images of 28 pixels",
    "+method.foo=1": "unknown key in 'method' 'foo'",
    "-m study=quick +study.rows.x=['cost=null'] study.only=[x]": "x: expected one file's name for cost",
    "-m study=quick +study.rows.x=['+method.foo=1'] study.only=[x]": "x: unknown key in 'method' 'foo'",
    "dataset=fashion_full dataset.root=/nowhere dataset.download=false debug=none": "/nowhere",
    "optimizer.lr=high": "expected a number for optimizer.lr, but got 'high'",
    "dataset.shots=1 foo": "GROUP=FILE or KEY=VALUE, but got 'foo'",
    "trainer.precision=32-foo": "trainer.*",
    "trainer.accelerator=abacus": "trainer.*",
    "trainer.devices=0": "trainer.*",
    "+trainer.foo=3": "foo",
    "method.ot_images=sorce": "method: unknown ot_images 'sorce': expected one of source, target, both. Did you mean",
    "method.gradient=non": "method: unknown gradient 'non': expected one of both, source, target",
    "epochs=0": ">= 1 for epochs, but got 0",
    "batch_size=3": "batch_size.source and batch_size.target",
    "batch_size.target=0": ">= 1 for batch_size.target",
    "trunk=torchvision trunk.name=resnt": "resnet",
    "+dataset.foo=1": "foo",
    "+pretrain.foo=1": "unknown key in 'pretrain' 'foo'",
    "+logger.foo=1": "_target_ in logger.foo",
    "logger=wandb +logger.wandb.foo=1": "unknown key in 'logger.wandb' 'foo'",
    "debug=none +debug.per_class=3": "unknown key in 'debug' 'per_class'",
    "+batch_size.foo=1": "unknown key in 'batch_size' 'foo'",
    "+trunk.foo=1": "takes, but got trunk.foo",
    "trunk=torchvision trunk.name=resnet18 trunk.weights=IMAGENET1K_V9": "weights of resnet18 for trunk.weights",
    "trunk=timm trunk.name=resnet10t trunk.weights=imagenet pretrain=none": "no file: trunk.weights=imagenet",
    "cost=centroid cost.metric=manhattan": "expected one of euclidean, sqeuclidean, cosine",
    "cost=wordnet cost.metric=wupp": "cost: unknown WordNet metric 'wupp': expected one of path, wup, lch",
    "schedule.warmup=2": "schedule: expected warmup in [0, 1)",
    "logger=wandb logger.wandb.mode=onlin": "auto, online, offline, disabled",
    "logger=wandb logger.wandb.project=team/jtln": "logger.wandb.tags, but it says: Invalid",
    "seed=4294967296": "from 0 to 4294967295 for seed, but got 4294967296",
    "pretrain.seed=-1": ">= 0 for pretrain.seed, but got -1",
    "dataset.shift=-1": "0 or more for dataset.shift, but got -1",
    "dataset=pictograms dataset.shift=-1": "0 or more for dataset.shift, but got -1",
    "dataset=pictograms dataset.image_size=0": "1 or more for dataset.image_size, but got 0",
    "pretrain=none method.lambda_source=0 method.lambda_label=0": "for method.lambda_ot without lambda_source",
    "resume=/nowhere": "no /nowhere/overrides.yaml",
    "hydra.run.dir=/proc/x": "/proc/x",
}


AT_ONCE = {  # one for each way in which a mistake is found; together the others take a minute and more
    "cost=unifrm",
    "datset.shots=3",
    "dataset.shots=abc",
    "transport.epsilon=0",
    "head=discriminant head.shrinkage=0",
    "lr=3",
    "method=null",
    "method=l2sp method.penalty=null method.penalty.alpha=1",
    "dataset.shots=1 foo",
    "resume=/nowhere",
}


@pytest.mark.parametrize("call", [pytest.param(c, marks=() if c in AT_ONCE else pytest.mark.slow) for c in MISTAKES])
def test_a_mistake_ends_in_one_line_that_helps(
    call: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    given = call.split()
    base = [] if any("debug" in each for each in given) else ["debug=smoke"]
    folder = [] if "hydra.run.dir" in call else [f"hydra.run.dir={tmp_path}/run"]
    code = main(["trainer.progress_bar=false", *base, *given, *folder])
    told = capfd.readouterr()
    assert "Traceback" not in told.err + told.out
    lines = [line for line in told.err.splitlines() if line.strip()]
    assert code == 2, lines
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert MISTAKES[call] in lines[0]
    assert not (tmp_path / "run" / "checkpoints").exists()  # found before anything was trained


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["trainer=gpu", "debug=smoke"]) == 2
    assert capfd.readouterr().err.startswith("error: expected values that pytorch_lightning.Trainer takes in trainer.*")


@pytest.mark.parametrize(
    "call",
    [
        *("transport.epsilon=0", "trunk.width=null"),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (
                *("method.ot_images=sorce", "seed=-1", "batch_size=3", "epochs=0", "trunk.dropout=2"),
                *("trunk.width=-1", "trunk.weights=/nope", "trunk=torchvision trunk.name=resnt"),
            )
        ),
    ],
)
def test_what_can_be_seen_at_once_is_said_before_images_are_read(
    call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jtln.data.category_pair.CategoryPair.load", lambda self: pytest.fail("read images"))
    assert main(call.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert len(told.err.splitlines()) == 1


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(experiment: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jtln.training.run.run", full)
    assert main(["debug=smoke", "cost=uniform"]) == 2
    assert "no space is left" in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jtln.training.run.run", lambda experiment: [][1])
    with pytest.raises(IndexError):
        main(["debug=smoke", "cost=uniform"])


@pytest.mark.slow
def test_a_reader_that_has_had_enough_is_no_fault(tmp_path: Path) -> None:
    """As with | head -1."""
    reader, writer = os.pipe()
    os.close(reader)
    call = [sys.executable, "-m", "jtln", "classes", "dataset=pictograms", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(call, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=600, check=False)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


def test_what_wandb_refuses_is_no_traceback() -> None:
    wandb = pytest.importorskip("wandb")
    told = explain(wandb.errors.CommError("no such\nentity"), [])
    assert told == "W&B does not take this run: no such entity. With logger=csv it goes without"
    assert explain(RuntimeError("no such entity"), []) is None
