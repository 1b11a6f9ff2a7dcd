"""The methods' own terms in training: what is added, who learns how fast, what stays, and that one may be cut off."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from test_experiment import column, cut_off, rows
from tiny import CPU, TinySpec
from torch import nn

from jtln.costs import CentroidCost, FileCost, PermutedCost, PosteriorCost, UniformCost
from jtln.costs.calibration import calibrated
from jtln.costs.file import save_cost
from jtln.errors import UserError
from jtln.methods import BSS, DELTA, L2SP, CoTuning, Penalty
from jtln.module import JTLN
from jtln.names.class_set import ClassSet
from jtln.schedules import Constant, Linear
from jtln.training.experiment import Experiment, Method
from jtln.training.pretraining import Pretraining
from jtln.training.run import run
from jtln.training.trainer import Budget, TrainerSettings
from jtln.transport.loss import TransportLoss, soft_labels
from jtln.trunks.base import Trunk

SOURCE, TARGET = ClassSet(["ant", "bee", "cat", "dog"]), ClassSet(["elk", "fox", "gnu"])
PENALTIES: dict[str, Callable[[], Penalty]] = {
    "l2sp": lambda: L2SP(0.5, 0.5),
    "delta": lambda: DELTA(5.0, 0.1, attention_images=6),
    "bss": lambda: BSS(0.1, 2),
    "co_tuning": CoTuning,
}


def conv_trunk() -> Trunk:
    """(B, 3, 8, 8) -> (B, 6), with all that behaves otherwise in training."""
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(80, 6),
    )  # fmt: skip
    return Trunk(body, "conv", 6, (0.5,) * 3, (0.5,) * 3)


def module_with(penalty: Penalty | None, **settings: Any) -> JTLN:
    torch.manual_seed(0)
    settings = {"lambda_source": 0.0, "optimizer": partial(torch.optim.SGD, lr=0.1, weight_decay=0.01), **settings}
    return JTLN(conv_trunk(), SOURCE, TARGET, penalty=penalty, **settings)


class Watch(pl.Callback):
    """What was logged at each step, and how often the penalty was started."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.states.append(copy.deepcopy(pl_module.state_dict()))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.logged.append({key: float(value) for key, value in trainer.callback_metrics.items()})


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("lambda_source", [0.0, 0.3])
def test_the_penalty_is_added_and_logged(name: str, lambda_source: float, fit: Callable[..., Any]) -> None:
    module = module_with(PENALTIES[name](), lambda_source=lambda_source)
    before = copy.deepcopy(module.trunk.state_dict())
    watch = Watch()
    fit(module, steps=3, callbacks=[watch])
    for logged in watch.logged:
        parts = logged["train/target_loss"] + lambda_source * logged.get("train/source_loss", 0.0)
        assert logged["train/loss"] == pytest.approx(parts + logged["train/penalty"], rel=1e-5)
    assert watch.logged[0]["train/penalty"] > 0
    assert bool(module.penalty.started)
    for state in watch.states:  # what it was started with: the weights before the first step
        for key in before:
            if name in ("l2sp", "delta"):
                assert torch.equal(state[f"penalty.pretrained.trunk.{key}"], before[key])
    assert module.trunk.training


@pytest.mark.parametrize("name", PENALTIES)
def test_who_learns_at_what_rate(name: str, fit: Callable[..., Any]) -> None:
    """Co-Tuning's pre-trained source head at the trunk's; L2-SP and DELTA in place of weight decay."""
    module = module_with(PENALTIES[name](), trunk_lr_factor=0.1)
    trainer, _ = fit(module, steps=1)
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    slow, fast = (set(map(id, groups[group]["params"])) for group in ("trunk", "heads"))
    assert fast == set(map(id, module.target_head.parameters()))
    expected = {*map(id, module.trunk.parameters())}
    assert slow == (expected | {*map(id, module.source_head.parameters())} if name == "co_tuning" else expected)
    assert groups["trunk"]["lr"] == pytest.approx(0.01)
    decays = {group["weight_decay"] for group in groups.values()}
    assert decays == ({0.0} if name in ("l2sp", "delta") else {0.01})
    assert (module.uses_source, module.uses_target) == (False, True)


def test_a_penalty_starts_once(fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    monkeypatch.setattr(BSS, "start", lambda self, network: starts.append(torch.is_grad_enabled()))
    module = module_with(BSS())
    fit(module, epochs=3, steps=1)
    assert starts == [False]
    again = module_with(BSS())
    again.load_state_dict(module.state_dict())
    fit(again, steps=1)
    assert starts == [False]


def test_a_frozen_trunk_stays_as_it_is(fit: Callable[..., Any]) -> None:
    """Its batch norm's statistics, too; and its dropout draws nothing."""
    module = module_with(None, freeze_trunk=True)
    before = copy.deepcopy(module.state_dict())
    trainer, _ = fit(module, epochs=2, steps=2)
    assert not any(each.training for each in module.trunk.modules())
    assert [group["name"] for group in trainer.optimizers[0].param_groups] == ["heads"]
    changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key in changed if not key.startswith(("metrics", "confusion"))} == {
        "target_head.weight",
        "target_head.bias",
    }
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(module.train().trunk(images), module.trunk(images))
    assert module.target_head.training


def test_a_transport_loss_on_a_frozen_trunk_is_logged_without_a_gradient(fit: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    loss = TransportLoss(UniformCost().matrix(SOURCE, TARGET))
    module = JTLN(conv_trunk(), SOURCE, TARGET, loss, freeze_trunk=True)
    watch = Watch()
    fit(module, steps=1, callbacks=[watch])
    assert "train/plan_entropy" in watch.logged[0]
    assert "train/ot_gradient_ratio" not in watch.logged[0]


def test_a_cost_reads_the_source_head(fit: Callable[..., Any]) -> None:
    """The posterior by hand: of the training images, by the network as it was before the first step."""
    torch.manual_seed(0)
    loss = TransportLoss(torch.ones(4, 3))
    module = JTLN(conv_trunk(), SOURCE, TARGET, loss, PosteriorCost(scale="none"), lambda_ot=0.1)
    nn.init.normal_(module.source_head.weight, std=2)
    before = copy.deepcopy(module).eval()
    _, data = fit(module, steps=2)
    train = data.pair.target.train
    images, labels = train.__getitems__(list(range(len(train))))
    with torch.no_grad():
        p = before.source_head(before.trunk(data.transform_eval(images))).softmax(1)
    relation = torch.stack([p[labels == label].mean(0) for label in range(3)])
    torch.testing.assert_close(module.transport.cost, -(0.999 * relation + 0.001 / 4).log().t(), atol=1e-5, rtol=1e-5)


# The transport to labels.


@pytest.mark.parametrize("kind", ["calibrated", "epoch", "ema"])
def test_the_transport_to_labels_reads_the_cost_as_it_is_at_each_step(kind: str, fit: Callable[..., Any]) -> None:
    """What the labelled images bear out of it, or what the features say by now, when the other term is gone as well."""
    torch.manual_seed(0)
    given = torch.rand(4, 3)
    loss = TransportLoss(given, 0.2)
    cost = None if kind == "calibrated" else CentroidCost(update=kind, momentum=0.5)
    settings = {"lambda_ot": 0.1, "lambda_label": 0.5, "ot_schedule": Linear(until=0.5)}
    module = JTLN(conv_trunk(), SOURCE, TARGET, loss, cost, calibrate=cost is None, **settings)
    before = copy.deepcopy(module).eval()
    seen: list[tuple[torch.Tensor, ...]] = []
    term = loss.to_labels

    def kept(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = term(logits, labels)
        seen.append((value.detach(), logits.detach().softmax(1), labels, loss.cost.clone()))
        return value

    loss.to_labels = kept  # type: ignore[method-assign]
    watch = Watch()
    _, data = fit(module, epochs=4, steps=1, callbacks=[watch])
    for logged, (value, predictions, labels, matrix) in zip(watch.logged, seen, strict=True):
        said = (predictions @ soft_labels(matrix, 0.2))[torch.arange(len(labels)), labels]
        torch.testing.assert_close(value, -said.log().mean())
        assert logged["train/ot_to_labels"] == pytest.approx(value.item())
        parts = sum(logged[f"train/{name}"] for name in ("target_loss", "source_loss"))
        parts += logged["train/lambda_ot"] * logged["train/ot"] + 0.5 * value.item()
        assert logged["train/loss"] == pytest.approx(parts, rel=1e-5)
    assert watch.logged[-1]["train/lambda_ot"] == 0
    changed = [not torch.equal(a[3], b[3]) for a, b in pairwise(seen)]
    assert changed == [kind != "calibrated"] * 3
    if kind == "calibrated":
        train = data.pair.target.train
        images, labels = train.__getitems__(list(range(len(train))))
        with torch.no_grad():
            logits = before.source_head(before.trunk(data.transform_eval(images)))
        torch.testing.assert_close(seen[0][3], calibrated(given, 0.2, [(logits, labels)])[0], atol=1e-4, rtol=1e-4)


def test_the_transport_to_labels_trains_the_source_head_and_the_trunk(fit: Callable[..., Any]) -> None:
    """The source head, which nothing else trains here, at the heads' rate; no source image is read."""
    torch.manual_seed(0)
    loss = TransportLoss(torch.rand(4, 3), 0.2)
    module = JTLN(conv_trunk(), SOURCE, TARGET, loss, lambda_source=0.0, lambda_ot=0.0, lambda_label=0.5)
    assert (module.uses_source, module.uses_target) == (False, True)
    before = copy.deepcopy(module.state_dict())
    trainer, _ = fit(module, steps=1)
    for name in ("source_head.weight", "trunk.body.0.weight"):
        assert not torch.equal(module.state_dict()[name], before[name])
    assert {group["name"]: len(group["params"]) for group in trainer.optimizers[0].param_groups}["heads"] == 4
    assert JTLN(conv_trunk(), SOURCE, TARGET, lambda_label=0.5).lambda_label == 0  # without a cost there is none


# Whole runs.


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment(
        method=Method("consecutive"),
        dataset="tiny",
        cost_name="posterior",
        spec=TinySpec(),
        cost=PosteriorCost(),
        make_trunk=conv_trunk,
        budget=Budget(3, 4, 8, 6),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        lr_schedule=Constant(),
        trunk_lr_factor=0.5,
        trainer=TrainerSettings({**CPU.options, "log_every_n_steps": 1}, progress_bar=False),
        folder=tmp_path / "run",
        pretraining=Pretraining(Budget(1, 3, 8, 1), 0, partial(torch.optim.AdamW, lr=1e-2), Constant()),
        cache=tmp_path / "cache",
    )


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("name", [*PENALTIES, "permuted posterior"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(
    name: str, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fresh(folder: str) -> Experiment:
        if name in PENALTIES:
            method, cost = Method(name, penalty=PENALTIES[name]()), experiment.cost
        else:
            method, cost = Method("jtln", 1.0, lambda_ot=1.0), PermutedCost(PosteriorCost(calibrate=True))
        return replace(experiment, method=method, cost=cost, folder=tmp_path / folder)

    expected = run(fresh("whole"))
    cut_off(fresh("halves"), monkeypatch)
    result = run(replace(fresh("halves"), resume=True))
    assert rows(tmp_path / "halves") == rows(tmp_path / "whole")
    assert result["target"] == expected["target"]
    if name in PENALTIES:
        assert len(column(tmp_path / "halves", "train/penalty")) == 12


@pytest.mark.usefixtures("no_drawing")
def test_every_method_starts_from_the_same_trunk(experiment: Experiment, tmp_path: Path) -> None:
    """The frozen copies are of the pre-trained weights, and not of those that the network was built with."""
    kept = []
    for name in ("l2sp", "delta"):
        method = Method(name, penalty=PENALTIES[name]())
        result = run(replace(experiment, method=method, folder=tmp_path / name))
        state = torch.load(tmp_path / name / "checkpoints" / "best.ckpt", weights_only=False)["state_dict"]
        cache = torch.load(next((tmp_path / "cache" / "pretrained").iterdir()), weights_only=True)["state"]
        for key, value in cache.items():
            if key.startswith("trunk."):
                assert torch.equal(state[f"penalty.pretrained.{key}"], value)
        kept.append(result["trunk"]["pretrained"]["key"])
    assert kept[0] == kept[1]


def test_a_source_head_that_nothing_taught_is_refused(experiment: Experiment) -> None:
    with pytest.raises(UserError, match="for method=co_tuning, but got pretrain=none: give pretrain=source"):
        replace(experiment, method=Method("co_tuning", penalty=CoTuning()), pretraining=None)
    with pytest.raises(UserError, match="for cost=posterior, but got pretrain=none"):
        replace(experiment, method=Method("jtln", 1.0, lambda_ot=1.0), pretraining=None)
    with pytest.raises(UserError, match=r"for method\.lambda_label without lambda_source, but got pretrain=none"):
        replace(experiment, method=Method("jtln", lambda_label=0.3), cost=CentroidCost(), pretraining=None)
    replace(experiment, method=Method("jtln", 1.0, lambda_label=0.3), cost=CentroidCost(), pretraining=None)
    replace(experiment, method=Method("joint", 1.0), pretraining=None)  # no transport: the cost is not read
    replace(experiment, method=Method("jtln", 1.0, lambda_ot=1.0), cost=CentroidCost(), pretraining=None)


@pytest.mark.usefixtures("no_drawing")
def test_the_transport_to_labels_alone_has_a_cost(experiment: Experiment, tmp_path: Path) -> None:
    """Calibrated as the transport loss's is; from the batches where both tasks have some."""
    method = Method("jtln", 1.0, calibrate=True, lambda_label=0.3)
    replace(experiment, method=method, cost=CentroidCost(update="ema"))
    with pytest.raises(UserError, match=r"update=ema of cost=posterior: give cost\.update=once"):
        replace(experiment, method=replace(method, lambda_source=0.0), cost=CentroidCost(update="ema"))
    given = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    save_cost(tmp_path / "mine.csv", given, experiment.spec.source_classes, experiment.spec.target_classes)
    result = run(replace(experiment, method=method, cost=FileCost(tmp_path / "mine.csv"), cost_name="file"))
    transport = result["transport"]
    assert (result["cost"], transport["lambda_ot"], transport["lambda_label"]) == ("file", 0, 0.3)
    assert transport["calibration"]["surprise"] <= transport["calibration"]["chance"] == pytest.approx(math.log(3))
    assert len(column(experiment.folder, "train/ot_to_labels")) == 12
