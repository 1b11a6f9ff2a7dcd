"""Two processes do what one does with the same global batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from runs import column
from torch import nn
from two_processes import run_in_two
from uneven import uneven_pair

from jtln.cli.train import main
from jtln.costs import CentroidCost
from jtln.data.features import Features
from jtln.methods import Method
from jtln.module import JTLN, Optimization
from jtln.schedules import Cosine, Linear
from jtln.training.callbacks import CollectPredictions
from jtln.training.class_costs import FollowFeatures, read_cost
from jtln.training.target_only import METRIC
from jtln.training.trainer import Budget, TrainerSettings, make_trainer, pair_data
from jtln.transport import TransportSettings
from jtln.trunks.base import Trunk

pytestmark = pytest.mark.slow

UPDATES = ("once", "epoch", "ema")
METRICS = ("val/target/", "val/source/", "test/target/", "test/source/")


class Watch(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[dict[str, np.ndarray]] = []

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        named = pl_module.named_parameters()
        self.gradients.append({name: p.grad.numpy().copy() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def train(update: str, folder: Path, devices: int) -> dict[str, Any]:
    """Two epochs of three steps without anything random; what came of it in this process."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Tanh())
    trunk, source_head = Trunk(body, "tiny", 6, (0.5,) * 3, (0.5,) * 3), nn.Linear(6, 4)
    pair, cost, settings = uneven_pair(), CentroidCost(update=update), TransportSettings(0.2, False, 2000, 1e-7)
    budget, watch, follow = Budget(2, 3, 8, 6), Watch(), FollowFeatures(cost, pair)
    predictions = CollectPredictions()
    data = pair_data(pair, trunk, budget, seed=0, augment=None, eval_batch_size=3)
    read = read_cost(cost, pair, Features(trunk, data, "cpu"), source_head, settings, calibrates=False)
    method = Method(lambda_source=1.0, lambda_ot=1.0, ot_images="both", ot_schedule=Linear())
    optimization = Optimization(partial(torch.optim.SGD, lr=0.1, momentum=0.9), 0.1, Cosine())
    module = JTLN(trunk, 4, 3, method, read.loss(method, settings), optimization, source_head)
    options = {"accelerator": "cpu", "devices": devices, "log_every_n_steps": 1}
    devices_of = TrainerSettings(options | ({"strategy": "ddp"} if devices > 1 else {}), progress_bar=False)
    trainer = make_trainer(devices_of, budget, folder, callbacks=[watch, follow, predictions], keep_checkpoints=False)
    trainer.fit(module, data)
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    trainer.test(module, datamodule=data, verbose=False)
    logged |= {key: float(value) for key, value in trainer.callback_metrics.items()}
    return {
        "losses": watch.losses,
        "gradients": watch.gradients,
        "weights": {name: value.numpy() for name, value in module.state_dict().items()},
        "cost": module.transport.cost.numpy(),
        "metrics": {key: value for key, value in logged.items() if key.startswith(METRICS)},
        "confusion": module.test_confusion.numpy(),
        "predictions": predictions.found._asdict(),
        "world_size": trainer.world_size,
    }


def train_all(folder: Path) -> dict[str, Any]:
    return {update: train(update, folder, devices=2) for update in UPDATES}


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What ``train`` returned in each of two processes, by update."""
    return run_in_two(train_all, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("update", UPDATES)
def test_two_processes_agree_with_one(update: str, in_two: list[dict[str, Any]], tmp_path: Path) -> None:
    one = train(update, tmp_path, devices=1)
    for process in in_two:
        two = process[update]
        assert (one["world_size"], two["world_size"]) == (1, 2)
        np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-5)
        for step, (mine, theirs) in enumerate(zip(one["gradients"], two["gradients"], strict=True)):
            assert mine.keys() == theirs.keys()
            for name, gradient in mine.items():
                np.testing.assert_allclose(theirs[name], gradient, atol=1e-5, err_msg=f"{name} in step {step}")
        np.testing.assert_allclose(two["cost"], one["cost"], atol=1e-5)
        for name, value in one["weights"].items():
            np.testing.assert_allclose(two["weights"][name], value, atol=1e-5, err_msg=name)
        assert two["metrics"].keys() == one["metrics"].keys()
        assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-4)
        assert two["confusion"].tolist() == one["confusion"].tolist()
        for name, values in one["predictions"].items():  # in the order of the test part, each image once
            np.testing.assert_allclose(two["predictions"][name], values, atol=1e-5, err_msg=name)
    assert np.ptp(one["cost"]) > 0.05  # the centroids were read
    assert one["confusion"].sum() == 5
    assert one["predictions"]["label"].tolist() == uneven_pair().target.test.labels.tolist()


# The real command line.

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.progress_bar=false", "trunk.width=0.05"]


def run_train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """``python train.py ...`` in an empty folder, in two processes on the CPU."""
    script = Path(__file__).resolve().parents[2] / "train.py"
    return subprocess.run(
        [sys.executable, str(script), *TWO, "debug=smoke", *overrides],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def found(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


RUN_FILES = {
    *("config.yaml", "overrides.yaml", "result.json", "metrics.csv", "cost.csv", "split.csv", "data.json"),
    *("report.html", "predictions.npz", "target_only.json"),
    *("plots/confusion.png", "plots/cost.png", "plots/plan.png", "plots/training.png"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
}


def test_two_processes_write_one_folder(tmp_path: Path) -> None:
    """A multirun of two jobs, and one of them resumed as a run of its own.

    The target alone is trained before the second process runs (pretrain=none), and while it does.
    """
    done = run_train(tmp_path, "-m", "cost=centroid", "compare_target_only=true", "pretrain=none,source")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "multirun").iterdir()  # the second process has not made one of its own
    files = {f"{job}/{name}" for job in range(2) for name in RUN_FILES} | {"table.md", "table.csv", "multirun.yaml"}
    assert found(folder) == files
    for line, times in {"sweep folder:": 1, "run folder:": 2, "pair  ": 2}.items():
        assert done.stdout.count(line) == times
    assert done.stdout.count("points over the target alone") == 2
    assert "sync_dist" not in done.stderr
    results = [json.loads((folder / f"{job}/result.json").read_text()) for job in range(2)]
    assert [result["trunk"]["pretrained"] is None for result in results] == [True, False]
    for result in results:
        assert result["hardware"].startswith("2 x cpu")
        assert (result["target"]["test"]["n"], result["source"]["test"]["n"]) == (8, 12)
    alone = [result["target_only"]["val_accuracy"] for result in results]
    assert alone[0] == alone[1]  # it is the same run
    gaps = [column(folder / str(job), METRIC) for job in range(2)]
    assert [list(each) for each in gaps] == [[0, 1], [0, 1]]

    curve = column(folder / "1", "train/loss")
    again = run_train(tmp_path, f"resume={folder}/1")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("resumed    after 2 steps") == 1
    assert found(tmp_path) == {f"multirun/{folder.name}/{name}" for name in files}
    assert json.loads((folder / "1/result.json").read_text())["target"] == results[1]["target"]
    assert column(folder / "1", "train/loss") == curve


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_study_in_two_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run has a group of processes of its own; and a head that no loss reaches is not waited for."""
    call = ["study=quick", "study.shots=1", "study.seeds=1", "study.only=[annealed_uniform]", "study.folder=studies"]
    keys = ["method.ot_images=target", "method.lambda_source=0", "method.lambda_label=0", "pretrain.epochs=1"]
    assert main(["-m", *call, *TWO, "debug=smoke", *keys]) == 0, capsys.readouterr()
    (result,) = [json.loads(path.read_text()) for path in tmp_path.glob("studies/runs/*/result.json")]
    assert (result["seed"], result["hardware"][:7]) == (0, "2 x cpu")
    assert not {"LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} & set(os.environ)  # the next run has another group
