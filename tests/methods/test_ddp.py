"""The methods in two processes do what they do in one; run as a script, this file is one of the two."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_ddp import uneven_pair
from torch import nn
from two_processes import run_in_two

from jtln.costs import PermutedCost, PosteriorCost
from jtln.heads.discriminant import Discriminant
from jtln.methods import BSS, DELTA, L2SP, CoTuning
from jtln.module import JTLN
from jtln.training.trainer import Budget, TrainerSettings, make_trainer, pair_data
from jtln.transport.loss import TransportLoss
from jtln.trunks.base import Trunk

KINDS: dict[str, Any] = {
    "l2sp": lambda: {"penalty": L2SP(0.5, 0.5)},
    "delta": lambda: {"penalty": DELTA(5.0, 0.1, attention_images=6)},
    "bss": lambda: {"penalty": BSS(0.5, 2)},
    "co_tuning": lambda: {"penalty": CoTuning(calibrate=True), "lambda_source": 0.3},
    "calibrated": lambda: {
        "transport": TransportLoss(
            torch.rand(4, 3, generator=torch.Generator().manual_seed(5)), 0.2, tolerance=1e-7, max_iterations=2000
        ),
        "calibrate": True,
    },
    "discriminant": lambda: {
        "transport": TransportLoss(torch.rand(4, 3, generator=torch.Generator().manual_seed(6)), 0.2, tolerance=1e-7),
        "lambda_ot": 0.0,
        "head_end": Discriminant(mixed_from=2, source_images=9),
    },
    "to_labels": lambda: {
        "transport": TransportLoss(torch.rand(4, 3, generator=torch.Generator().manual_seed(5)), 0.2),
        "lambda_ot": 0.0,
        "lambda_label": 0.5,
        "calibrate": True,
    },
    "linear_probe": lambda: {"freeze_trunk": True},
    "posterior": lambda: {
        "transport": TransportLoss(torch.ones(4, 3), 0.2, tolerance=1e-7, max_iterations=2000),
        "cost": PermutedCost(PosteriorCost(calibrate=True)),
    },
}
CALIBRATED = {"calibrated": 0.113, "to_labels": 0.113}  # at which epsilon, as a share of the cost's range


def train(kind: str, folder: Path, devices: int) -> dict[str, Any]:
    """Three steps without anything random; what came of it in this process."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 6))
    pair = uneven_pair()
    module = JTLN(
        Trunk(body, "tiny", 6, (0.5,) * 3, (0.5,) * 3),
        pair.source.classes,
        pair.target.classes,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        **{"lambda_source": 0.0, **KINDS[kind]()},
    )
    data = pair_data(pair, module.trunk, budget := Budget(1, 3, 8, 6), seed=0, augment=None, eval_batch_size=3)
    data.use_source = module.uses_source
    options = {"accelerator": "cpu", "devices": devices, "log_every_n_steps": 1}
    options |= {"limit_val_batches": 0} if module.head_end is None else {}
    settings = TrainerSettings(options | ({"strategy": "ddp"} if devices > 1 else {}), progress_bar=False)
    trainer = make_trainer(settings, budget, folder, keep_checkpoints=False)
    trainer.fit(module, data)
    if module.head_end is not None:
        trainer.validate(module, datamodule=data, verbose=False)
    logged = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("train/")}
    weights = {name: value.float().numpy() for name, value in module.state_dict().items()}
    return {"weights": weights, "logged": logged, "world_size": trainer.world_size}


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What ``train`` returned in each of two processes, by kind."""
    return run_in_two(__file__, tmp_path_factory.mktemp("ddp"), timeout=180)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_agree_with_one(kind: str, in_two: list[dict[str, Any]], tmp_path: Path) -> None:
    one = train(kind, tmp_path, devices=1)
    for process in in_two:
        two = process[kind]
        assert (one["world_size"], two["world_size"]) == (1, 2)
        assert (one["weights"]["head_found"][0] >= 0) == (kind == "discriminant")
        assert one["weights"]["calibration"][0] == pytest.approx(CALIBRATED.get(kind, -1), abs=1e-3)
        tolerance = 2e-4 if kind == "delta" else 2e-5  # it standardises small differences of losses
        for name, value in one["weights"].items():
            np.testing.assert_allclose(two["weights"][name], value, atol=tolerance, err_msg=name)
        for name in ("train/loss", "train/penalty", "train/ot_to_labels"):
            if name in one["logged"]:
                assert two["logged"][name] == pytest.approx(one["logged"][name], rel=10 * tolerance), name


if __name__ == "__main__":
    out = Path(sys.argv[1])
    results = {kind: train(kind, out, devices=2) for kind in KINDS}
    torch.save(results, out / f"{os.environ['LOCAL_RANK']}.pt")
