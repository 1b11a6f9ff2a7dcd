"""Every baseline's penalty on fixed tensors, against NumPy, SciPy and finite differences."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from scipy.special import log_softmax, softmax
from scipy.stats import zscore
from torch import Tensor, nn

from jtln.data.features import Features
from jtln.errors import UserError
from jtln.methods import BSS, DELTA, L2SP, CoTuning, Penalty, TargetBatch
from jtln.methods.attention import attention, channel_importance, last_convolutions, train_classifier
from jtln.temperature import temperature
from jtln.trunks.alexnet import alexnet
from jtln.trunks.base import Trunk
from jtln.trunks.torchvision import from_torchvision


class Convolutional(nn.Module):
    """Two convolutions, each overwritten by its ReLU; a batch norm and dropout, which a frozen copy must not draw."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(5), nn.ReLU(inplace=True)
        self.end = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(80, 6))

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.relu(self.norm(self.second(self.relu(self.first(images))))))


class Net(nn.Module):
    """A network as a penalty reads it, (B, 3, 8, 8) -> 6 features, 4 source and 3 target classes; and its images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = Trunk(Convolutional(), "two convolutions", 6, (0.5,) * 3, (0.5,) * 3)
        self.source_head, self.target_head = nn.Linear(6, 4), nn.Linear(6, 3)
        nn.init.normal_(self.source_head.weight, std=2)
        self.images = {"target": torch.randn(10, 3, 8, 8), "source": torch.randn(16, 3, 8, 8)}
        self.labels = {"target": torch.arange(10) % 3, "source": torch.arange(16) % 4}

    def images_of(
        self, side: str, part: str = "train", at_most: int | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        assert (side, part, at_most) in (("target", "train", None), ("source", "val", None))
        yield from zip(self.images[side].split(7), self.labels[side].split(7), strict=True)


def features_of(net: Net) -> Features:
    return Features(net.trunk, net, "cpu")


@pytest.fixture
def net() -> Net:
    return Net()


def started(penalty: Penalty, net: Net) -> Penalty:
    """Set the penalty up when the network is built, and start it when the network is trained, as the module does."""
    penalty.setup(net)
    with torch.no_grad():
        for parameter in net.trunk.parameters():
            parameter.mul_(1.1)  # other weights are loaded in between
        penalty.on_fit_start(net.eval(), features_of(net))
    net.train()
    return penalty


def target_batch(net: Net) -> TargetBatch:
    """A step on the target's ten images, after three of the source in the same pass."""
    images, labels = net.images["target"], net.labels["target"]
    return TargetBatch(images, labels, net.trunk(torch.cat([net.images["source"][:3], images]))[3:])


def moved(net: Net) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Move the trunk's weights; {name: (before, after)}."""
    before = {name: p.detach().numpy().copy() for name, p in net.trunk.named_parameters()}
    with torch.no_grad():
        for p in net.trunk.parameters():
            p += 0.1 * torch.randn_like(p)
    return {name: (before[name], p.detach().numpy()) for name, p in net.trunk.named_parameters()}


# L2-SP


@pytest.mark.parametrize("biases", [False, True])
def test_l2sp_holds_the_pre_trained_weights(biases: bool, net: Net) -> None:
    penalty = started(L2SP(0.3, 0.7, biases), net)
    weights = moved(net)
    head = [p.detach().double().numpy() for p in net.target_head.parameters()]
    expected = sum(
        0.15 * np.square(after.astype(float) - before).sum()
        for before, after in weights.values()
        if biases or before.ndim > 1
    )
    expected += 0.35 * sum(np.square(p).sum() for p in head if biases or p.ndim > 1)
    value = penalty(net, target_batch(net))
    assert value.item() == pytest.approx(expected, rel=1e-5)

    value.backward()
    for name, p in net.trunk.named_parameters():
        before, after = weights[name]
        if biases or before.ndim > 1:
            np.testing.assert_allclose(p.grad, 0.3 * (after - before), atol=1e-6)
        else:
            assert p.grad is None
    np.testing.assert_allclose(net.target_head.weight.grad, 0.7 * head[0], atol=1e-6)
    assert net.source_head.weight.grad is None


def test_l2sp_is_the_heads_decay_at_the_start(net: Net) -> None:
    penalty = started(L2SP(0.3, 0.7), net)
    assert penalty(net, target_batch(net)).item() == pytest.approx(0.35 * net.target_head.weight.square().sum().item())


# BSS


@pytest.mark.parametrize(("images", "k"), [(10, 1), (10, 3), (4, 2), (4, 4)])
def test_bss_is_the_smallest_singular_values(images: int, k: int, net: Net) -> None:
    features = torch.randn(images, 6, dtype=torch.float64, requires_grad=True)
    empty = torch.zeros(images)
    singular = np.linalg.svd(features.detach().numpy(), compute_uv=False)
    value = BSS(0.2, k)(net, TargetBatch(empty, empty, features))
    assert value.item() == pytest.approx(0.2 * np.square(np.sort(singular)[:k]).sum(), rel=1e-5)

    (gradient,) = torch.autograd.grad(value, features)
    u, s, v = np.linalg.svd(features.detach().numpy(), full_matrices=False)
    by_hand = 0.4 * (u[:, -k:] * s[-k:]) @ v[-k:]  # d sigma^2 = 2 sigma u v^T
    np.testing.assert_allclose(gradient.numpy(), by_hand, atol=1e-5)


def test_bss_takes_half_precision_features(net: Net) -> None:
    features = torch.randn(8, 6).bfloat16()
    value = BSS(1.0)(net, TargetBatch(features, features, features))
    assert value.item() == pytest.approx(np.linalg.svd(features.float().numpy())[1][-1] ** 2, rel=1e-3)


def test_bss_needs_as_many_images_as_singular_values(net: Net) -> None:
    with pytest.raises(UserError, match=r"\bk\b.* 4.*4 target images.*6 features.*got 5"):
        BSS(k=5)(net, TargetBatch(torch.zeros(4), torch.zeros(4), torch.randn(4, 6)))


# Co-Tuning


@pytest.mark.parametrize("calibrate", [False, True])
def test_co_tuning_is_the_cross_entropy_with_the_class_posterior(calibrate: bool, net: Net) -> None:
    penalty = started(CoTuning(2.3, calibrate), net)
    frozen = copy.deepcopy(net).eval()
    with torch.no_grad():
        # The temperature is tested against SciPy in tests/test_temperature.py.
        tau = temperature((frozen.source_head(x), y) for x, y in features_of(frozen).of("source", "val"))
        logits = frozen.source_head(frozen.trunk(frozen.images["target"])).double().numpy()
    labels = net.labels["target"].numpy()
    p = softmax(logits / (tau if calibrate else 1.0), axis=1)
    posterior = np.stack([p[labels == label].mean(0) for label in range(3)])
    np.testing.assert_allclose(penalty.relation.numpy(), posterior, atol=1e-5)

    moved(net)  # the posterior stays
    batch = target_batch(net)
    now = log_softmax(net.source_head(batch.features).detach().double().numpy(), axis=1)
    value = penalty(net, batch)
    assert value.item() == pytest.approx(-2.3 * (posterior[labels] * now).sum(1).mean(), rel=1e-5)
    value.backward()
    by_hand = 2.3 * (np.exp(now) - posterior[labels]).mean(0)  # of softmax cross-entropy, in the head's bias
    np.testing.assert_allclose(net.source_head.bias.grad, by_hand, atol=1e-5)
    assert net.target_head.weight.grad is None


# DELTA


def feature_maps(weights: dict[str, np.ndarray], images: np.ndarray, first_only: bool = False) -> np.ndarray:
    """(B, C, H, W), of the first convolution or of the second, in training mode or not: batch norm comes after both."""

    def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return np.stack([[correlate(image, each, mode="valid")[0] for each in kernel] for image in x])

    first = convolve(images, weights["body.first.weight"]) + weights["body.first.bias"][:, None, None]
    return first if first_only else convolve(first.clip(0), weights["body.second.weight"])


@pytest.mark.parametrize("attentive", [False, True])
def test_delta_holds_the_feature_maps(attentive: bool, net: Net) -> None:
    penalty = started(DELTA(0.3, 0.7, attention_images=5 if attentive else 0), net)
    assert penalty.names == ("body.first", "body.second")
    weights = [getattr(penalty, f"attention_{index}").double().numpy() for index in range(2)]
    assert [w.sum() for w in weights] == pytest.approx([1, 1])
    assert (np.ptp(weights[0]) > 0.01) == attentive
    trunk, images = moved(net), net.images["target"].double().numpy()
    expected = 0.35 * sum(p.detach().double().square().sum().item() for p in net.target_head.parameters())
    for first_only, w in zip((True, False), weights, strict=True):
        maps = [
            feature_maps({name: pair[now].astype(float) for name, pair in trunk.items()}, images, first_only)
            for now in (0, 1)
        ]
        per_channel = np.square(maps[1] - maps[0]).mean((2, 3))  # (B, C)
        expected += 0.15 * (len(w) * w * per_channel).sum(1).mean()
    before = net.trunk.body.norm.running_mean.clone()
    value = penalty(net, batch := target_batch(net))
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert not torch.equal(net.trunk.body.norm.running_mean, before)  # by the one pass of the network itself

    (gradient,) = torch.autograd.grad(value, net.trunk.body.second.weight, retain_graph=True)
    direction = torch.randn_like(gradient)
    values = []
    for step in (1e-2, -1e-2):
        other = copy.deepcopy((net, penalty))  # with the hooks between them
        with torch.no_grad():
            other[0].trunk.body.second.weight += step * direction
        values.append(other[1](other[0], target_batch(other[0])).item())
    assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-2, rel=1e-2)
    with pytest.raises(KeyError):
        penalty(net, batch)  # a pass is compared once


def test_delta_is_the_authors_sum_over_64_images(net: Net) -> None:
    """alpha = 0.64 of a mean is their 0.01 of a sum, 1/2 C a |difference|^2 / (H W) an image and channel."""
    penalty = started(DELTA(beta=0.0, layers=["body.second"]), net)
    trunk, images = moved(net), torch.randn(64, 3, 8, 8)
    maps = [feature_maps({k: v[now].astype(float) for k, v in trunk.items()}, images.numpy()) for now in (0, 1)]
    w = penalty.attention_0.double().numpy()
    norm = np.linalg.norm((maps[1] - maps[0]).reshape(64, 5, 16), axis=2)
    expected = 0.01 * 0.5 * np.sum(5 * w * norm**2 / 16)
    value = penalty(net, TargetBatch(images, torch.zeros(64), net.trunk(images)))
    assert value.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("make", [DELTA, L2SP])
def test_the_pre_trained_copy_stays_as_it_is(make: Callable[[], Any], net: Net) -> None:
    penalty = started(make(), net)
    before = copy.deepcopy(penalty.pretrained.state_dict())
    assert all(torch.equal(before[f"trunk.{name}"], value) for name, value in net.trunk.state_dict().items())
    penalty.train()
    penalty(net, target_batch(net)).backward()
    assert not any(module.training for module in penalty.pretrained.modules())
    assert all(torch.equal(before[name], value) for name, value in penalty.pretrained.state_dict().items())
    assert not any(p.requires_grad for p in penalty.parameters())


@pytest.mark.parametrize("make", [lambda: DELTA(attention_images=5), L2SP, CoTuning, lambda: BSS(0.5, 2)])
def test_a_penalty_that_is_restored_gives_the_same_value(make: Callable[[], Penalty], net: Net) -> None:
    """Set up in another network, and filled from the state dict in place of a start."""
    other = copy.deepcopy(net)
    penalty, again = started(make(), net), make()
    again.setup(other)
    again.load_state_dict(penalty.state_dict())
    moved(net)
    other.load_state_dict(net.state_dict())
    values = []
    for each, where in ((penalty, net), (again, other)):
        torch.manual_seed(1)  # of dropout
        values.append(each(where, target_batch(where)).item())
    assert values[1] == values[0] > 0
    state = penalty.state_dict()
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items())


# DELTA's attention


def test_attention_is_the_softmax_of_a_fifth_of_the_standardised_importance() -> None:
    importance = torch.rand(30, generator=torch.Generator().manual_seed(0))
    expected = softmax(zscore(importance.double().numpy()) / 5)
    np.testing.assert_allclose(attention(importance).numpy(), expected, rtol=1e-5)
    assert attention(torch.full((4,), 0.3)).tolist() == [0.25] * 4


@pytest.mark.parametrize("images", [10, 4, 1])
def test_importance_is_what_the_loss_gains_without_the_filter(images: int, net: Net) -> None:
    net.eval()
    with torch.no_grad():
        found = channel_importance(net, features_of(net), ["body.first", "body.second"], images)
        rows = net.trunk(net.images["target"])
        classify = train_classifier(rows, net.labels["target"], 3)
        every = math.ceil(10 / images)
        x, y = net.images["target"][::every], net.labels["target"][::every].numpy()

        def loss(trunk: nn.Module) -> float:
            return -log_softmax(classify(trunk(x)).double().numpy(), axis=1)[np.arange(len(y)), y].mean()

        for name, values in zip(("first", "second"), found, strict=True):
            for channel, value in enumerate(values.tolist()):
                without = copy.deepcopy(net.trunk)
                layer = getattr(without.body, name)
                layer.weight[channel] = 0
                if layer.bias is not None:
                    layer.bias[channel] = 0
                assert value == pytest.approx(loss(without) - loss(net.trunk), abs=1e-5)
        assert torch.equal(net.trunk(net.images["target"]), rows)  # nothing is left switched off


@pytest.mark.slow
def test_importance_in_a_network_with_branches_and_a_relu_used_twice() -> None:
    trunk = from_torchvision(32, "resnet18", "none").eval()
    net = Net()
    net.trunk, net.target_head = trunk, nn.Linear(512, 3)
    net.images["target"] = torch.randn(4, 3, 32, 32)
    net.labels["target"] = torch.arange(4) % 3
    layer, name = trunk.body.layer1[1].conv1, "body.layer1.1.conv1"
    with torch.no_grad():
        (values,) = channel_importance(net, features_of(net), [name], 4)
        classify = train_classifier(trunk(net.images["target"]), net.labels["target"], 3)
        losses = []
        for factor in (1, 0):
            layer.weight[7] *= factor
            losses.append(nn.functional.cross_entropy(classify(trunk(net.images["target"])), net.labels["target"]))
    assert values[7].item() == pytest.approx((losses[1] - losses[0]).item(), abs=1e-5)


def test_the_classifier_is_gradient_descent_with_momentum() -> None:
    """Ten epochs of one batch, by hand."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(20, 4, generator=generator), torch.arange(20) % 3
    classify = train_classifier(features, labels, 3)
    x = np.hstack([features.double().numpy(), np.ones((20, 1))])
    w, v, truth = np.zeros((3, 5)), np.zeros((3, 5)), np.eye(3)[labels.numpy()]
    for epoch in range(10):
        gradient = (softmax(x @ w.T, axis=1) - truth).T @ x / 20 + 1e-4 * w
        v = 0.9 * v + gradient
        w = w - 0.01 * 0.1 ** (epoch / 6) * v
    np.testing.assert_allclose(classify(features).numpy(), x @ w.T, atol=1e-6)


@pytest.mark.parametrize(
    ("trunk", "names"),
    [
        (lambda: from_torchvision(64, "resnet50", "none"), ["1.2", "2.3", "3.5", "4.2"]),  # the authors' own layers
        (lambda: from_torchvision(64, "resnet101", "none"), ["1.2", "2.3", "3.22", "4.2"]),
        (lambda: alexnet(28, width=0.05), [3, 6, 8, 10]),
    ],
)
def test_the_last_convolutions_of_the_last_blocks(trunk: Callable[[], Trunk], names: list[Any]) -> None:
    expected = [f"body.layer{n}.conv3" if isinstance(n, str) else f"body.features.{n}" for n in names]
    assert list(last_convolutions(trunk())) == expected


def test_trunks_without_what_delta_wants(net: Net, make_trunk: Callable[..., Trunk]) -> None:
    with pytest.raises(UserError, match=r"layers, .*body\.second, but got 'body\.end'"):
        DELTA(layers="body.end").setup(net)
    net.trunk = make_trunk()
    with pytest.raises(UserError, match=r"method=delta .*tiny has no convolution"):
        DELTA().setup(net)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L2SP(alpha=-1), "a number alpha >= 0, but got -1"),
        (lambda: L2SP(beta=math.inf), "beta .*got inf"),
        (lambda: DELTA(alpha=math.nan), "alpha .*got nan"),
        (lambda: DELTA(attention_images=-1), "attention_images .*>= 0, but got -1"),
        (lambda: DELTA(layers=3), "layers .*got 3"),  # type: ignore[arg-type]
        (lambda: BSS(eta=-1), "eta .*got -1"),
        (lambda: BSS(k=0), "k .*>= 1, but got 0"),
        (lambda: CoTuning(weight=-1), "weight .*got -1"),
    ],
)
def test_mistakes(make: Callable[[], Penalty], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
