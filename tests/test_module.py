"""The training step against the objective written out by hand, with POT for its transport term."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import ot
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from jtln.errors import UserError
from jtln.methods import Method
from jtln.module import JTLN, Batch, Optimization
from jtln.schedules import Constant, Cosine, Linear
from jtln.transport import TransportedPrior, TransportLoss, relation
from jtln.trunks.base import Trunk

CLASSES = 4, 3
EPSILON = 0.3
WEIGHTS = {"lambda_target": 1.5, "lambda_source": 0.4, "lambda_ot": 0.7}
METRICS = ("accuracy", "mean_class_accuracy", "macro_f1", "ece")

Fit = Callable[..., tuple[pl.Trainer, Any]]


@pytest.fixture
def cost() -> Tensor:
    return torch.rand(4, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    return {
        "source": (torch.randn(8, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])),
        "target": (torch.randn(5, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0, 1])),
    }


@pytest.fixture
def make_module(make_trunk: Callable[..., Trunk], cost: Tensor) -> Callable[..., JTLN]:
    """A JTLN with an accurate transport loss; the method's settings by name."""

    def make(trunk: Trunk | None = None, optimization: Optimization | None = None, **settings: Any) -> JTLN:
        torch.manual_seed(0)
        method = Method(**{**WEIGHTS, **settings})
        transport = TransportLoss(cost, EPSILON, gradient=method.gradient, tolerance=1e-7, max_iterations=5000)
        module = JTLN(trunk or make_trunk(), *CLASSES, method, transport, optimization)
        for head in (module.source_head, module.target_head):
            nn.init.normal_(head.weight, std=1.5)
        return module

    return make


def heads(module: JTLN, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both heads' probabilities (B, S), (B, T) in float64, from a copy of the network in float64."""
    module = copy.deepcopy(module).double()
    features = module.trunk(images.double())
    logits = (module.source_head(features), module.target_head(features))
    a, b = (torch.softmax(values, 1).detach().numpy() for values in logits)
    return a, b


def transport_of(a: np.ndarray, b: np.ndarray, cost: Tensor) -> float:
    """The mean of <g, C> - eps H(g) over pairs of rows of a and b, with POT's plans g."""
    matrix, values = cost.double().numpy(), []
    for source, target in zip(a, b, strict=True):
        plan = ot.sinkhorn(source, target, matrix, EPSILON, method="sinkhorn_log", stopThr=1e-13, numItermax=20000)
        values.append((plan * matrix).sum() + EPSILON * (plan * (np.log(plan) - 1)).sum())
    return float(np.mean(values))


def objective(
    module: JTLN, batch: Batch, on: str, unit: str, cost: Tensor, held: JTLN | None = None, gradient: str = "both"
) -> float:
    """L by hand; ``held`` gives the predictions of the head that the transport term's gradient leaves alone."""
    probabilities = {side: heads(module, batch[side][0]) for side in batch}
    ce = {
        side: -np.log(probabilities[side][index][np.arange(len(batch[side][1])), batch[side][1].numpy()]).mean()
        for index, side in enumerate(("source", "target"))
    }
    images = torch.cat([batch[side][0] for side in ("source", "target") if on in (side, "both")])
    a, b = heads(module, images)
    if held is not None and gradient == "source":
        b = heads(held, images)[1]
    if held is not None and gradient == "target":
        a = heads(held, images)[0]
    weight = WEIGHTS["lambda_ot"] * {"1": 1.0, "1/epsilon": 1.0 / EPSILON}[unit]
    cross_entropies = WEIGHTS["lambda_target"] * ce["target"] + WEIGHTS["lambda_source"] * ce["source"]
    return float(cross_entropies + weight * transport_of(a, b, cost))


@pytest.mark.parametrize("unit", ["1", "1/epsilon"])
@pytest.mark.parametrize("on", ["source", "target", "both"])
def test_loss_is_the_objective(
    on: str, unit: str, make_module: Callable[..., JTLN], batch: Batch, cost: Tensor
) -> None:
    module = make_module(ot_images=on, lambda_ot_unit=unit)
    expected = objective(module, batch, on, unit, cost)
    assert float(module.training_step(batch, 0)["loss"].detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gradient", ["both", "source", "target"])
@pytest.mark.parametrize("part", ["trunk", "source_head", "target_head"])
def test_gradient_is_that_of_the_objective(
    gradient: str, part: str, make_module: Callable[..., JTLN], batch: Batch, cost: Tensor
) -> None:
    """Central differences of the objective by hand, along one direction of the part's parameters."""
    module = make_module(gradient=gradient, ot_images="both")
    module.training_step(batch, 0)["loss"].backward()
    module.latest = {}  # holds the graph, which cannot be copied
    parameters = dict(module.get_submodule(part).named_parameters())
    generator = torch.Generator().manual_seed(3)
    direction = {name: torch.randn(p.shape, generator=generator) for name, p in parameters.items()}
    slope = sum(float((p.grad * direction[name]).sum()) for name, p in parameters.items() if p.grad is not None)

    def shifted(step: float) -> float:
        moved = copy.deepcopy(module).double()
        for name, p in moved.get_submodule(part).named_parameters():
            p.data += step * direction[name].double()
        return objective(moved, batch, "both", "1/epsilon", cost, held=module, gradient=gradient)

    difference = (shifted(1e-4) - shifted(-1e-4)) / 2e-4
    assert slope == pytest.approx(difference, rel=1e-3, abs=1e-4)


def test_without_a_transport_loss_it_is_two_cross_entropies(make_trunk: Callable[..., Trunk], batch: Batch) -> None:
    module = JTLN(make_trunk(), *CLASSES, Method(lambda_source=0.4))
    source, target = heads(module, batch["source"][0])[0], heads(module, batch["target"][0])[1]
    expected = -np.log(target[np.arange(5), batch["target"][1]]).mean()
    expected += 0.4 * -np.log(source[np.arange(8), batch["source"][1]]).mean()
    assert float(module.training_step(batch, 0)["loss"].detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "terms", "reads", "frozen"),
    [
        ({}, ["target_loss"], (False, True), {"source_head"}),
        ({"lambda_source": 1.0}, ["target_loss", "source_loss"], (True, True), set()),
        ({"lambda_target": 0.0, "lambda_source": 1.0}, ["source_loss"], (True, False), {"target_head"}),
        ({"lambda_target": 0.0, "lambda_ot": 1.0}, ["ot"], (True, False), set()),
        ({"lambda_target": 0.0, "lambda_ot": 1.0, "ot_images": "target"}, ["ot"], (False, True), set()),
        ({"lambda_ot": 1.0, "ot_images": "both"}, ["target_loss", "ot"], (True, True), set()),
        ({"lambda_ot": 1.0, "ot_images": "target"}, ["target_loss", "ot"], (False, True), set()),
        ({"lambda_ot": 1.0, "gradient": "target"}, ["target_loss", "ot"], (True, True), {"source_head"}),
        ({"lambda_target": 0.0, "lambda_ot": 1.0, "gradient": "source"}, ["ot"], (True, False), {"target_head"}),
        ({"lambda_label": 1.0}, ["target_loss", "ot_to_labels"], (False, True), set()),
        ({"keep": 1.0}, ["target_loss", "keep"], (False, True), {"pretrained"}),
    ],
)
def test_a_term_of_weight_zero_is_not_built(
    settings: dict[str, Any],
    terms: list[str],
    reads: tuple[bool, bool],
    frozen: set[str],
    make_trunk: Any,
    cost: Tensor,
) -> None:
    """Its images are not read, and a head that no term teaches is frozen."""
    method = Method(**settings)
    module = JTLN(make_trunk(), *CLASSES, method, TransportLoss(cost, EPSILON, gradient=method.gradient))
    assert [term.name for term in module.terms] == terms
    assert (module.reads("source"), module.reads("target")) == reads
    trained = {name: p.requires_grad for name, p in module.named_parameters()}
    assert {name.partition(".")[0] for name, on in trained.items() if not on} == frozen
    assert (module.transport is None) == (not method.uses_transport)


def test_a_frozen_trunk_stays_as_it_is(make_trunk: Callable[..., Trunk], fit: Fit) -> None:
    trunk = make_trunk(dropout=0.5)
    trunk.frozen = True
    before = copy.deepcopy(trunk.state_dict())
    module = JTLN(trunk, *CLASSES, Method(), optimization=Optimization(partial(torch.optim.SGD, lr=0.5)))
    head = module.target_head.weight.detach().clone()
    fit(module, steps=3)
    assert not module.train().trunk.training
    assert all(torch.equal(value, before[name]) for name, value in module.trunk.state_dict().items())
    assert not torch.equal(module.target_head.weight, head)


def test_validation_changes_nothing(make_module: Callable[..., JTLN], fit: Fit) -> None:
    module = make_module()
    trainer, data = fit(module, steps=2)
    before = copy.deepcopy(module.state_dict())
    trainer.validate(module, datamodule=data, verbose=False)
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Watch(pl.Callback):
    """What each step had: learning rates, progress, weight of the transport term, cost, and logged values."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}
        before = copy.deepcopy(pl_module.state_dict())
        self.steps.append({"rates": rates, "progress": pl_module.progress, "before": before})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
        self.steps[-1] |= {"logged": logged, "batch": batch, "cost": pl_module.transport.cost.clone()}


def test_schedules_and_progress(make_module: Callable[..., JTLN], fit: Fit) -> None:
    module = make_module(
        lambda_ot_unit="1",
        ot_schedule=Linear(final=0.5),
        optimization=Optimization(partial(torch.optim.SGD, lr=0.2), 0.1, Cosine(warmup=0.25)),
    )
    assert module.progress == 0.0  # outside a trainer
    watch = Watch()
    fit(module, epochs=2, steps=4, callbacks=[watch])
    steps = watch.steps
    assert [step["progress"] for step in steps] == [k / 8 for k in range(8)]
    weights = [step["logged"]["train/lambda_ot"] for step in steps]
    assert weights == pytest.approx([0.7 * (1 - 0.5 * k / 8) for k in range(8)])
    factors = [0.0, 0.5] + [0.5 * (1 + math.cos(math.pi * (k - 2) / 6)) for k in range(2, 8)]
    assert [step["rates"]["heads"] for step in steps] == pytest.approx([0.2 * factor for factor in factors])
    assert [step["rates"]["trunk"] for step in steps] == pytest.approx([0.02 * factor for factor in factors])


def test_the_optimizer_gets_every_parameter_that_learns_once(make_trunk: Callable[..., Trunk], fit: Fit) -> None:
    module = JTLN(make_trunk(), *CLASSES, Method())
    trainer, _ = fit(module, steps=1)
    given = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    wanted = [p for p in module.parameters() if p.requires_grad]
    assert sorted(map(id, given)) == sorted(map(id, wanted))


def test_metrics_have_a_name_for_each_head_and_split(make_module: Callable[..., JTLN], fit: Fit) -> None:
    module = make_module()
    trainer, data = fit(module, steps=1)
    names = set(trainer.callback_metrics)
    (values, *_) = trainer.test(module, datamodule=data, verbose=False)
    val = {f"val/{head}/{metric}" for head in ("source", "target") for metric in METRICS} | {"val/target/selection"}
    assert {name for name in names if name.startswith("val/")} == val
    assert set(values) == {f"test/{head}/{metric}" for head in ("source", "target") for metric in METRICS}
    train = {"loss", "target_loss", "source_loss", "ot", "lambda_ot", "ot_gradient_ratio", "plan_entropy"}
    train |= {"sinkhorn_iterations", "marginal_error"}
    train |= {f"{head}/{metric}" for head in ("source", "target") for metric in ("accuracy", "mean_class_accuracy")}
    assert {name for name in names if name.startswith("train/")} == {f"train/{name}" for name in train}


def test_evaluation_counts_by_hand(make_module: Callable[..., JTLN], fit: Fit) -> None:
    module = make_module()
    trainer, data = fit(module, steps=3)
    (values, *_) = trainer.test(module, datamodule=data, verbose=False)
    for head, index in (("source", 0), ("target", 1)):
        test = getattr(data.pair, head).test
        images, labels = test.__getitems__(list(range(len(test))))
        predicted = heads(module.eval(), data.transform_eval(images))[index].argmax(1)
        assert values[f"test/{head}/accuracy"] == pytest.approx((predicted == labels.numpy()).mean())
    counts = np.zeros((3, 3))
    np.add.at(counts, (labels.numpy(), predicted), 1)
    assert module.test_confusion.tolist() == counts.tolist()


# What is logged.


def test_logits_that_are_not_finite_are_named_with_head_images_and_step(make_module: Callable[..., JTLN]) -> None:
    module = make_module()
    nn.init.constant_(module.source_head.bias, math.inf)
    images, labels = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    with pytest.raises(UserError, match=r"source head on its val images.*step 0.*pretrain\.optimizer\.lr"):
        module.validation_step((images, labels), 0, 1)


def test_what_is_logged_of_the_transport_term(make_module: Callable[..., JTLN], fit: Fit) -> None:
    module = make_module(ot_images="source", ot_schedule=Constant())
    watch = Watch()
    fit(module, steps=2, callbacks=[watch])
    step = watch.steps[1]
    before = copy.deepcopy(module).double()
    before.load_state_dict(step["before"])
    batch, logged = {side: (x.double(), y) for side, (x, y) in step["batch"].items()}, step["logged"]

    features = {side: before.trunk(x).detach().requires_grad_() for side, (x, _) in batch.items()}
    ce = 1.5 * nn.functional.cross_entropy(before.target_head(features["target"]), batch["target"][1])
    ce = ce + 0.4 * nn.functional.cross_entropy(before.source_head(features["source"]), batch["source"][1])
    pulls = torch.autograd.grad(ce, list(features.values()))
    of_ce = math.sqrt(sum(float(pull.square().sum()) for pull in pulls))

    def term(x: Tensor) -> float:
        a = torch.softmax(before.source_head(x), 1).detach().numpy()
        b = torch.softmax(before.target_head(x), 1).detach().numpy()
        return 0.7 / EPSILON * transport_of(a, b, before.transport.cost)

    x, pull = features["source"].detach(), np.zeros(features["source"].shape)
    for row, column in np.ndindex(*pull.shape):  # the term is a mean over the images: another row stays as it is
        step_by = torch.zeros(1, x.shape[1], dtype=x.dtype)
        step_by[0, column] = 1e-4
        here = x[row : row + 1]
        pull[row, column] = (term(here + step_by) - term(here - step_by)) / 2e-4 / len(x)
    value = term(x)
    assert logged["train/ot"] == pytest.approx(value / (0.7 / EPSILON), rel=1e-4)
    assert logged["train/ot_gradient_ratio"] == pytest.approx(np.linalg.norm(pull) / of_ce, rel=1e-3)
    a, b = (torch.softmax(head(x), 1).detach().numpy() for head in (before.source_head, before.target_head))
    matrix = before.transport.cost.numpy()
    plans = [
        ot.sinkhorn(s, t, matrix, EPSILON, method="sinkhorn_log", stopThr=1e-13) for s, t in zip(a, b, strict=True)
    ]
    entropy = np.mean([-(plan * np.log(plan)).sum() for plan in plans])
    assert logged["train/plan_entropy"] == pytest.approx(entropy, rel=1e-4)
    assert 1 <= logged["train/sinkhorn_iterations"] < 5000
    assert 0 <= logged["train/marginal_error"] < 1e-6


def test_a_solver_that_did_not_converge_shows_in_the_log(make_module: Callable[..., JTLN], fit: Fit) -> None:
    module = make_module()
    module.transport.max_iterations = 1
    watch = Watch()
    fit(module, steps=1, callbacks=[watch])
    logged = watch.steps[0]["logged"]
    assert logged["train/sinkhorn_iterations"] == 1
    assert logged["train/marginal_error"] > 1e-4


def test_bfloat16_autocast_stays_finite_and_near(make_module: Callable[..., JTLN], fit: Fit) -> None:
    """With predictions as sure as they get, where probabilities underflow."""
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        module = make_module(ot_images="both")
        nn.init.normal_(module.source_head.weight, std=60.0)
        watch = Watch()
        fit(module, steps=3, callbacks=[watch], precision=precision)
        assert all(bool(p.isfinite().all()) for p in module.parameters())
        losses[precision] = [step["logged"]["train/loss"] for step in watch.steps]
        assert all(math.isfinite(value) for step in watch.steps for value in step["logged"].values())
    assert losses["bf16-mixed"][0] == pytest.approx(losses["32-true"][0], rel=0.05)
    assert losses["bf16-mixed"][0] != losses["32-true"][0]  # autocast was on


def test_a_prior_is_a_part_of_the_prediction_that_the_losses_see(
    make_trunk: Callable[..., Trunk], cost: Tensor, batch: Batch
) -> None:
    torch.manual_seed(0)
    prior = TransportedPrior(relation(cost, EPSILON), alpha=0.7)
    module = JTLN(make_trunk(), *CLASSES, Method("target_only"), prior=prior)
    loss = module.training_step(batch, 0)["loss"]
    images, labels = batch["target"]
    with torch.no_grad():
        features = module.trunk(images)
        q = module.source_head(features).softmax(1) @ prior.rows
        expected = nn.functional.cross_entropy(module.target_head(features) + 0.7 * q.log(), labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(module(images).target, module.target_head(features) + 0.7 * q.log())
    loss.backward()
    assert module.source_head.weight.grad is None  # s is detached inside q
    assert module.target_head.weight.grad is not None


def test_a_transport_term_needs_a_transport_loss(make_trunk: Callable[..., Trunk]) -> None:
    with pytest.raises(UserError, match=r"transport.*None"):
        JTLN(make_trunk(), *CLASSES, Method(lambda_label=0.1))


def test_the_trunk_learns_at_no_negative_rate() -> None:
    with pytest.raises(UserError, match=r"trunk_lr_factor >= 0.*-0\.1"):
        Optimization(torch.optim.SGD, trunk_lr_factor=-0.1)
