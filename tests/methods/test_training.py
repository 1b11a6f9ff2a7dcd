"""The methods' own terms in training: what is added, who learns how fast, what stays, and how a run is resumed."""

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
from given_cost import GivenCost
from runs import column, cut_off, rows
from tiny import CPU, TinySpec
from torch import nn

from jtln.costs import CentroidCost, Cost, PermutedCost, PosteriorCost
from jtln.costs.calibration import calibrate
from jtln.data.features import Features
from jtln.errors import UserError
from jtln.heads import Linear as LinearHead
from jtln.methods import BSS, DELTA, L2SP, CoTuning, Method, Penalty
from jtln.module import JTLN, Optimization
from jtln.schedules import Linear
from jtln.training.class_costs import FollowFeatures, read_cost
from jtln.training.experiment import Experiment
from jtln.training.pretraining import Pretraining
from jtln.training.run import run
from jtln.training.trainer import Budget, TrainerSettings, make_trainer, pair_data
from jtln.training.trainer import fit as fit_from
from jtln.transport import TransportLoss, TransportSettings, soft_labels
from jtln.trunks.base import Trunk

pytestmark = pytest.mark.slow

SETTINGS = TransportSettings(0.2, calibrate=True)
PENALTIES: dict[str, Callable[[], Penalty]] = {
    "l2sp": lambda: L2SP(0.5, 0.5),
    "delta": lambda: DELTA(0.5, 0.1, attention_images=6),
    "bss": lambda: BSS(0.1, 2),
    "co_tuning": CoTuning,
}


def conv_trunk() -> Trunk:
    """(B, 3, 8, 8) -> (B, 6), with a batch norm and dropout, which differ in training."""
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(80, 6),
    )  # fmt: skip
    return Trunk(body, "conv", 6, (0.5,) * 3, (0.5,) * 3)


def module_with(penalty: Penalty, lambda_source: float = 0.0, trunk_lr_factor: float = 0.1) -> JTLN:
    torch.manual_seed(0)
    method = Method("penalised", lambda_source=lambda_source, penalty=penalty)
    optimization = Optimization(partial(torch.optim.SGD, lr=0.1, weight_decay=0.01), trunk_lr_factor)
    return JTLN(conv_trunk(), 4, 3, method, optimization=optimization)


def module_under(cost: Cost, method: Method, calibrates: bool = False) -> tuple[JTLN, FollowFeatures]:
    """A network whose cost was read as a run reads it, and the callback that keeps it up to date."""
    torch.manual_seed(0)
    pair, trunk, head = TinySpec().load(), conv_trunk(), nn.Linear(6, 4)
    nn.init.normal_(head.weight, std=2)
    data = pair_data(pair, trunk, Budget(1, 1, 8, 6), seed=0, augment=None)
    read = read_cost(cost, pair, Features(trunk, data, "cpu"), head, SETTINGS, calibrates)
    module = JTLN(trunk, 4, 3, method, read.loss(method, SETTINGS), source_head=head)
    return module, FollowFeatures(cost, pair)


def labelled(data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The labelled images as evaluation sees them, and their labels."""
    train = data.pair.target.train
    images, labels = train.__getitems__(list(range(len(train))))
    return data.transform_eval(images), labels


class Watch(pl.Callback):
    """What was logged at each step, and the weights before it."""

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
    for state in watch.states:  # the frozen copy is of the weights before the first step
        for key in before:
            if name in ("l2sp", "delta"):
                assert torch.equal(state[f"penalty.pretrained.trunk.{key}"], before[key])
    assert module.trunk.training


@pytest.mark.parametrize("name", PENALTIES)
def test_who_learns_at_what_rate(name: str, fit: Callable[..., Any]) -> None:
    """Co-Tuning's pre-trained source head learns at the trunk's rate; L2-SP and DELTA replace weight decay."""
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
    assert (module.reads("source"), module.reads("target")) == (False, True)


def test_a_penalty_starts_once(fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step, without gradients, the trunk in evaluation mode; not where a run is resumed."""
    starts = []

    def on_fit_start(self: BSS, network: JTLN, features: Features) -> None:
        starts.append((torch.is_grad_enabled(), network.trunk.training, features.trunk is network.trunk))

    monkeypatch.setattr(BSS, "on_fit_start", on_fit_start)
    trainer, data = fit(module_with(BSS()), epochs=3, steps=1)
    assert starts == [(False, False, True)]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    longer = make_trainer(CPU, Budget(5, 1, 8, 6), tmp_path, keep_checkpoints=False)
    fit_from(longer, module_with(BSS()), data, tmp_path / "last.ckpt")
    assert longer.global_step == 5
    assert len(starts) == 1


def test_a_frozen_trunk_stays_as_it_is(fit: Callable[..., Any]) -> None:
    """Its batch norm's statistics, too; and its dropout draws nothing."""
    torch.manual_seed(0)
    trunk = conv_trunk()
    trunk.frozen = True
    module = JTLN(trunk, 4, 3, Method("linear_probe"))
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
    trunk = conv_trunk()
    trunk.frozen = True
    module = JTLN(trunk, 4, 3, Method(lambda_source=1.0, lambda_ot=1.0), TransportLoss(torch.ones(4, 3)))
    watch = Watch()
    fit(module, steps=1, callbacks=[watch])
    assert "train/plan_entropy" in watch.logged[0]
    assert "train/ot_gradient_ratio" not in watch.logged[0]


def test_a_cost_reads_the_source_head(fit: Callable[..., Any]) -> None:
    """The posterior by hand: of the labelled images, by the network in evaluation mode as it was at the start."""
    module, _ = module_under(PosteriorCost(scale="none"), Method(lambda_source=1.0, lambda_ot=0.1))
    before = copy.deepcopy(module).eval()
    _, data = fit(module, steps=2)
    images, labels = labelled(data)
    with torch.no_grad():
        p = before.source_head(before.trunk(images)).softmax(1)
    posterior = torch.stack([p[labels == label].mean(0) for label in range(3)])
    torch.testing.assert_close(module.transport.cost, -(0.999 * posterior + 0.001 / 4).log().t(), atol=1e-5, rtol=1e-5)


# The transport to labels.


@pytest.mark.parametrize("kind", ["calibrated", "epoch", "ema"])
def test_the_transport_to_labels_is_under_the_cost_of_each_step(kind: str, fit: Callable[..., Any]) -> None:
    """The calibrated cost, or the one that follows the features, also when the other transport term is annealed."""
    given = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    calibrated = kind == "calibrated"
    cost = GivenCost(given, "none") if calibrated else CentroidCost(update=kind, momentum=0.5)
    method = Method(lambda_source=1.0, lambda_ot=0.1, lambda_label=0.5, ot_schedule=Linear(until=0.5))
    module, follow = module_under(cost, method, calibrated)
    before, loss = copy.deepcopy(module).eval(), module.transport
    calls: list[tuple[torch.Tensor, ...]] = []
    term = loss.to_labels

    def recorded(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = term(logits, labels)
        calls.append((value.detach(), logits.detach().softmax(1), labels, loss.cost.clone()))
        return value

    loss.to_labels = recorded  # type: ignore[method-assign]
    watch = Watch()
    _, data = fit(module, epochs=4, steps=1, callbacks=[watch, follow])
    for logged, (value, predictions, labels, matrix) in zip(watch.logged, calls, strict=True):
        carried = (predictions @ soft_labels(matrix, 0.2))[torch.arange(len(labels)), labels]
        torch.testing.assert_close(value, -carried.log().mean())
        assert logged["train/ot_to_labels"] == pytest.approx(value.item())
        parts = sum(logged[f"train/{name}"] for name in ("target_loss", "source_loss"))
        parts += logged["train/lambda_ot"] * logged["train/ot"] + 0.5 * value.item()
        assert logged["train/loss"] == pytest.approx(parts, rel=1e-5)
    assert watch.logged[0]["train/lambda_ot"] == pytest.approx(0.1 / 0.2)
    assert watch.logged[-1]["train/lambda_ot"] == 0
    changed = [not torch.equal(a[3], b[3]) for a, b in pairwise(calls)]
    assert changed == [not calibrated] * 3
    if calibrated:
        images, labels = labelled(data)
        with torch.no_grad():
            logits = before.source_head(before.trunk(images))
        torch.testing.assert_close(calls[0][3], calibrate(given, 0.2, [(logits, labels)])[0], atol=1e-4, rtol=1e-4)


def test_the_transport_to_labels_trains_the_source_head_and_the_trunk(fit: Callable[..., Any]) -> None:
    """The source head, which no other term trains here, at the heads' rate; no source image is read."""
    torch.manual_seed(0)
    method = Method(lambda_label=0.5)
    module = JTLN(conv_trunk(), 4, 3, method, TransportLoss(torch.rand(4, 3), 0.2))
    assert (module.reads("source"), module.reads("target")) == (False, True)
    before = copy.deepcopy(module.state_dict())
    trainer, _ = fit(module, steps=1)
    for name in ("source_head.weight", "trunk.body.0.weight"):
        assert not torch.equal(module.state_dict()[name], before[name])
    assert {group["name"]: len(group["params"]) for group in trainer.optimizers[0].param_groups}["heads"] == 4
    with pytest.raises(UserError, match=r"transport loss .*jtln, but got None"):
        JTLN(conv_trunk(), 4, 3, method)


# Whole runs.


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment(
        method=Method("consecutive"),
        head=LinearHead(),
        cost=PosteriorCost(),
        transport=TransportSettings(),
        spec=TinySpec(),
        make_trunk=conv_trunk,
        budget=Budget(3, 4, 8, 6),
        optimization=Optimization(partial(torch.optim.SGD, lr=0.1), 0.5),
        trainer=TrainerSettings({**CPU.options, "log_every_n_steps": 1}, progress_bar=False),
        folder=tmp_path / "run",
        dataset="tiny",
        cost_name="posterior",
        pretraining=Pretraining(Budget(1, 3, 8, 1), 0, Optimization(partial(torch.optim.AdamW, lr=1e-2), 1.0)),
        cache=tmp_path / "cache",
    )


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("name", [*PENALTIES, "keep", "permuted posterior"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(
    name: str, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fresh(folder: str) -> Experiment:
        if name in PENALTIES:
            method, cost = Method(name, penalty=PENALTIES[name]()), experiment.cost
        elif name == "keep":
            method, cost = Method(keep=1.0), experiment.cost
        else:
            method, cost = Method(lambda_source=1.0, lambda_ot=1.0), PermutedCost(PosteriorCost(calibrate=True))
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
        state = torch.load(tmp_path / name / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        (cached,) = (tmp_path / "cache" / "pretrained").glob("*.pt")
        cache = torch.load(cached, weights_only=True)["state"]
        for key, value in cache.items():
            if key.startswith("trunk."):
                assert torch.equal(state[f"penalty.pretrained.{key}"], value)
        kept.append(result["trunk"]["pretrained"]["key"])
    assert kept[0] == kept[1]


def test_an_untrained_source_head_is_refused(experiment: Experiment) -> None:
    untrained = partial(replace, experiment, pretraining=None)
    with pytest.raises(UserError, match=r"for method=co_tuning, .*pretrain=none: give pretrain=source"):
        untrained(method=Method("co_tuning", penalty=CoTuning()))
    with pytest.raises(UserError, match=r"for method\.keep, .*pretrain=none: give pretrain=source"):
        untrained(method=Method("lwf", keep=1.0))
    with pytest.raises(UserError, match=r"for cost=posterior, .*pretrain=none"):
        untrained(method=Method(lambda_source=1.0, lambda_ot=1.0))
    with pytest.raises(UserError, match=r"for method\.lambda_label without lambda_source, .*pretrain=none"):
        untrained(method=Method(lambda_label=0.3), cost=CentroidCost())
    with pytest.raises(UserError, match=r"for method\.lambda_ot without lambda_source, .*pretrain=none"):
        untrained(method=Method(lambda_ot=0.3), cost=CentroidCost())
    untrained(method=Method(lambda_source=1.0, lambda_label=0.3), cost=CentroidCost())
    untrained(method=Method("joint", lambda_source=1.0))  # no transport: the cost is not read
    untrained(method=Method(lambda_source=1.0, lambda_ot=1.0), cost=CentroidCost())


@pytest.mark.usefixtures("no_drawing")
def test_the_transport_to_labels_alone_has_a_cost(experiment: Experiment) -> None:
    """It is calibrated as for the transport loss; one that follows the batches needs batches of both tasks."""
    method = Method(lambda_source=1.0, lambda_label=0.3)
    replace(experiment, method=method, cost=CentroidCost(update="ema"))
    with pytest.raises(UserError, match=r"update=ema of cost=posterior .*cost\.update=once"):
        replace(experiment, method=replace(method, lambda_source=0.0), cost=CentroidCost(update="ema"))
    given = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    result = run(replace(experiment, method=method, cost=GivenCost(given), cost_name="given"))
    transport = result["transport"]
    assert (result["cost"], transport["lambda_ot"], transport["lambda_label"]) == ("given", 0, 0.3)
    assert result["calibration"]["nll"] <= result["calibration"]["chance"] == pytest.approx(math.log(3))
    assert len(column(experiment.folder, "train/ot_to_labels")) == 12
