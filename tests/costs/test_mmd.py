"""The MMD cost against scikit-learn's kernels, a closed form, and itself in blocks and in two processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode
from two_processes import run_in_two

from jtln.costs import MMDCost, mmd
from jtln.costs.mmd import class_samples, median_distance, squared_mmd
from jtln.errors import UserError
from jtln.names.class_set import ClassSet

SOURCE, TARGET = ClassSet(["cat", "dog", "fox"]), ClassSet(["wolf", "lynx"])
SIZES = (3, 2)


def features(seed: int = 0, dim: int = 5, images: tuple[int, int] = (17, 9)) -> list[tuple[Tensor, Tensor]]:
    """A batch for each side: features (B, D) far from the origin, and labels (B,) in no order."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for classes, count in zip(SIZES, images, strict=True):
        labels = torch.arange(count)[torch.randperm(count, generator=generator)] % classes
        rows = 20 + torch.randn(count, dim, generator=generator) * (1 + labels[:, None]) + labels[:, None]
        batches.append((rows, labels))
    return batches


def split(batch: tuple[Tensor, Tensor], size: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(part.split(size) for part in batch), strict=True))


def by_hand(
    source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], widths: list[float], unbiased: bool
) -> np.ndarray:
    """Class by class, with scikit-learn's kernel."""
    (x, x_labels), (y, y_labels) = ((rows.double().numpy(), labels.numpy()) for rows, labels in (source, target))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.mean([rbf_kernel(a, b, gamma=1 / (2 * width**2)) for width in widths], axis=0)

    def within(a: np.ndarray) -> float:
        values = kernel(a, a)
        return values[~np.eye(len(a), dtype=bool)].mean() if unbiased else values.mean()

    return np.array(
        [
            [
                within(x[x_labels == i])
                + within(y[y_labels == j])
                - 2 * kernel(x[x_labels == i], y[y_labels == j]).mean()
                for j in range(SIZES[1])
            ]
            for i in range(SIZES[0])
        ]
    )


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("bandwidths", [[1.0], [0.5, 1, 3]])
@pytest.mark.parametrize("autocast", [False, True])
def test_agrees_with_scikit_learn(estimator: str, bandwidths: list[float], autocast: bool) -> None:
    source, target = features()
    median = np.median(pdist(np.concatenate([source[0].numpy(), target[0].numpy()]).astype(np.float64)))
    expected = by_hand(source, target, [median * each for each in bandwidths], estimator == "unbiased")
    cost = MMDCost(estimator, bandwidths)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        cost.fit(split(source, 4), split(target, 5), SIZES)
        distances, matrix = cost.distances(SOURCE, TARGET), cost.matrix(SOURCE, TARGET)
    assert expected.max() > 0.2
    expected = np.maximum(expected, 0)
    np.testing.assert_allclose(distances.numpy(), expected, atol=2e-6)
    np.testing.assert_allclose(matrix.numpy(), expected / expected.max(), atol=1e-5)


def test_two_gaussians_have_the_closed_form() -> None:
    """E exp(-|x - y|^2 / 2 s^2) for x - y ~ N(m, v I) is (s^2 / (s^2 + v))^(D/2) exp(-|m|^2 / (2 (s^2 + v)))."""
    dim, width, deviations, mean = 3, 1.5, (1.0, 2.0), torch.tensor([1.0, -0.5, 0.0])
    generator = torch.Generator().manual_seed(0)
    x, y = (deviation * torch.randn(2500, dim, generator=generator) for deviation in deviations)
    labels = torch.zeros(2500, dtype=torch.long)

    def expected(variance: float, squared: float) -> float:
        total = width**2 + variance
        return (width**2 / total) ** (dim / 2) * math.exp(-squared / (2 * total))

    within = [expected(2 * deviation**2, 0) for deviation in deviations]
    closed = sum(within) - 2 * expected(sum(each**2 for each in deviations), float(mean.square().sum()))
    for unbiased in (False, True):
        found = squared_mmd((x + mean, labels), (y, labels), (1, 1), [width], unbiased)
        assert float(found) == pytest.approx(closed, abs=0.008)
    assert closed > 0.1


def test_the_same_images_cost_nothing_and_negative_estimates_are_clamped() -> None:
    (x, labels), _ = features()
    cost = MMDCost("biased", scale="none")
    cost.fit([(x, labels)], [(x, labels)], (3, 3))
    assert cost.distances(SOURCE, SOURCE).diagonal().abs().max() < 1e-12
    assert cost.distances(SOURCE, SOURCE).min() >= 0
    raw = squared_mmd(class_samples([(x, labels)], 3, None), class_samples([(x, labels)], 3, None), (3, 3), [3.0], True)
    assert (raw.diagonal() < -0.01).all()
    cost = MMDCost("unbiased", scale="none")
    cost.fit([(x, labels)], [(x, labels)], (3, 3))
    assert torch.equal(cost.distances(SOURCE, SOURCE).diagonal(), torch.zeros(3))


def test_one_image_a_class() -> None:
    """For two single images MMD^2 is 2 - 2 k(x, y); the unbiased estimate does not exist."""
    x, y = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[1.0], [2.0]])
    labels = torch.arange(3)
    cost = MMDCost("biased", [1.0], scale="none")
    cost.fit([(x, labels)], [(y, labels[:2])], SIZES)
    median = np.median(pdist(torch.cat([x, y]).numpy()))
    expected = 2 - 2 * np.exp(-((x - y.T).numpy() ** 2) / (2 * median**2))
    np.testing.assert_allclose(cost.distances(SOURCE, TARGET).numpy(), expected, atol=1e-6)
    with pytest.raises(UserError, match=r"2 or more.*unbiased.*3 of 3 source classes have 1.*estimator=biased"):
        MMDCost("unbiased").fit([(x, labels)], [(y, labels[:2])], SIZES)
    with pytest.raises(UserError, match=r"1 or more.*1 of 2 target classes have 0"):
        MMDCost().fit([(x, labels)], [(y, labels[:2] * 0)], SIZES)


def test_the_first_images_of_each_class_are_read() -> None:
    rows, labels = torch.arange(8.0)[:, None], torch.tensor([1, 0, 1, 1, 0, 0, 1, 2])
    found, found_labels = class_samples(split((rows, labels), 3), 3, 2)
    assert found[:, 0].tolist() == [1, 4, 0, 2, 7]
    assert found_labels.tolist() == [0, 0, 1, 1, 2]
    everything, _ = class_samples([(rows, labels)], 3, None)
    assert everything[:, 0].tolist() == [1, 4, 5, 0, 2, 3, 6, 7]
    with pytest.raises(UserError, match=r"features.*none"):
        class_samples([], 3, 2)


def test_the_median_is_that_of_a_bounded_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, _), (y, _) = features()
    monkeypatch.setattr(mmd, "SAMPLE", 5)
    chosen = np.concatenate([x.numpy()[[0, 4, 8, 12, 16]], y.numpy()[[0, 2, 4, 6, 8]]]).astype(np.float64)
    assert median_distance(x, y) == pytest.approx(np.median(pdist(chosen)))
    assert median_distance(x * 0, y * 0) == 1.0


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, Tensor):
                self.numel = max(self.numel, each.numel())
        return result


@pytest.mark.slow
def test_memory_is_bounded_by_the_features_and_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 source classes of up to 4 of 10 images of 256 features; all kernel values at once would be 16 million."""
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(mmd, "SAMPLE", 50)

    def source() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, 10_000, 250):
            yield torch.randn(250, 256, generator=generator), torch.arange(start, start + 250) % 1000

    rows = torch.randn(40, 256, generator=generator)
    monkeypatch.setattr(mmd, "BLOCK", 2**12)
    cost = MMDCost(images=4, bandwidths=[1.0])
    with Largest() as largest:
        cost.fit(source(), [(rows, torch.arange(40) % 20)], (1000, 20))
    assert largest.numel <= 4000 * 256
    x, labels = class_samples(source(), 1000, 4)
    with Largest() as largest:
        squared_mmd((x, labels), (rows, torch.arange(40) // 2), (1000, 20), [20.0], False)
    assert largest.numel <= max(2**12 // 40 * 256, 1000 * 20)  # features of a block's rows, the result


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = (class_samples([batch], size, None) for batch, size in zip(features(), SIZES, strict=True))
    whole = squared_mmd(source, target, SIZES, [1.0, 4.0], True)
    for block in (1, 4, 7, 20):
        monkeypatch.setattr(mmd, "BLOCK", block)
        torch.testing.assert_close(squared_mmd(source, target, SIZES, [1.0, 4.0], True), whole)


def test_half_precision_features_with_a_gradient() -> None:
    (x, labels), target = features()
    cost, same = MMDCost(), MMDCost()
    cost.fit([(x.bfloat16().requires_grad_(), labels)], [target], SIZES)
    same.fit([(x.bfloat16().float(), labels)], [target], SIZES)
    assert torch.equal(cost.discrepancy, same.discrepancy)
    assert not cost.discrepancy.requires_grad


def test_state_survives_a_checkpoint() -> None:
    cost, restored = MMDCost(update="epoch"), MMDCost(update="epoch")
    with pytest.raises(UserError, match=r"fit\(\)"):
        cost.matrix(SOURCE, TARGET)
    cost.fit(*([batch] for batch in features()), SIZES)
    restored.prepare(SIZES, 5)
    restored.load_state_dict(cost.state_dict())
    assert torch.equal(restored.matrix(SOURCE, TARGET), cost.matrix(SOURCE, TARGET))


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"estimator 'unbaised'.*'unbiased'"):
        MMDCost("unbaised")
    with pytest.raises(UserError, match=r"update 'ema'.*once, epoch"):
        MMDCost(update="ema")
    for bandwidths in ([], [0.0], [1, -1], [math.inf], ["a"], 1.0, "1"):
        with pytest.raises(UserError, match="bandwidths"):
            MMDCost(bandwidths=bandwidths)  # type: ignore[arg-type]
    for images in (0, 1.5, "all"):
        with pytest.raises(UserError, match=f"images.*{images!r}"):
            MMDCost(images=images)  # type: ignore[arg-type]


def fitted(rank: int, processes: int) -> Tensor:
    """The matrix from this process's share of the images: every ``processes``-th one, from ``rank`` on."""
    cost = MMDCost("unbiased", images=3, scale="none")
    shares = [(rows[rank::processes], labels[rank::processes]) for rows, labels in features()]
    cost.fit(*(split(share, 2) for share in shares), SIZES)
    return cost.distances(SOURCE, TARGET)


def share_of_two(_: Path) -> Tensor:
    mmd.BLOCK = 8  # several blocks for each process
    return fitted(distributed.get_rank(), 2)


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    for two in run_in_two(share_of_two, tmp_path):
        torch.testing.assert_close(two, fitted(0, 1))
