"""Against SciPy's distances and sequences worked out by hand."""

import math

import numpy as np
import pytest
import torch
from given_cost import GivenCost
from scipy.spatial.distance import cdist
from torch import Tensor

from jtln.costs import CentroidCost, UniformCost, Unknown
from jtln.errors import UserError
from jtln.names.class_set import ClassSet
from jtln.transport import TransportLoss

SOURCE, TARGET = ClassSet(["cat", "dog", "fox"]), ClassSet(["wolf", "lynx"])
SIZES = (3, 2)


def features(seed: int = 0, dim: int = 7) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a batch for each task: features (B, D), and labels (B,) with every class."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for classes, images in ((3, 11), (2, 8)):
        labels = torch.arange(images) % classes
        batches.append((torch.randn(images, dim, generator=generator) + labels[:, None], labels))
    return batches[0], batches[1]


def centroids(batch: tuple[Tensor, Tensor]) -> np.ndarray:
    x, labels = (array.double().numpy() for array in batch)
    return np.stack([x[labels == label].mean(0) for label in np.unique(labels)])


# base


@pytest.mark.parametrize(("scale", "expected"), [("max", [0.5, 0.75, 1]), ("range", [0, 0.5, 1]), ("none", [2, 3, 4])])
def test_scales(scale: str, expected: list[float]) -> None:
    distances = torch.tensor([2.0, 3, 4])[:, None].expand(3, 2).double()
    matrix = GivenCost(distances.requires_grad_(), scale).matrix(SOURCE, TARGET)
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float32)[:, None].expand(3, 2))
    assert matrix.dtype == torch.float32
    assert not matrix.requires_grad


@pytest.mark.parametrize(("scale", "expected"), [("max", 1.0), ("range", 0.0), ("none", 5.0)])
def test_a_constant_distance_stays_constant(scale: str, expected: float) -> None:
    matrix = GivenCost(torch.full(SIZES, 5.0), scale).matrix(SOURCE, TARGET)
    assert torch.equal(matrix, torch.full(SIZES, expected))
    with pytest.raises(UserError, match=r"GivenCost.*zeros"):
        GivenCost(torch.zeros(SIZES), scale).matrix(SOURCE, TARGET)


def test_bad_distances() -> None:
    with pytest.raises(UserError, match=r"\(S, T\) = \(3, 2\).*GivenCost.*\(2, 3\)"):
        GivenCost(torch.ones(2, 3)).matrix(SOURCE, TARGET)
    for value in (math.nan, math.inf, -1.0):
        with pytest.raises(UserError, match="cost matrix"):
            GivenCost(torch.full(SIZES, value)).matrix(SOURCE, TARGET)
    with pytest.raises(UserError, match=r"scale 'maximum'.*max, range, none"):
        GivenCost(torch.ones(SIZES), scale="maximum")


class PartCost(GivenCost):
    """A cost without information on some classes, whose distances are NaN."""

    def __init__(self, distances: Tensor, unknown: Unknown, scale: str = "none") -> None:
        super().__init__(distances, scale)
        self.without = unknown

    def unknown(self, source: ClassSet, target: ClassSet) -> Unknown:
        return self.without


@pytest.mark.parametrize(("source", "target"), [((), (1,)), ((2,), ()), ((0, 2), (1, 3)), ((1,), (0, 1, 3))])
def test_neutral_costs_of_unknown_classes_agree_with_numpys_means(
    source: tuple[int, ...], target: tuple[int, ...]
) -> None:
    given = np.random.default_rng(0).uniform(1, 2, (3, 4))
    rows, columns = np.isin(np.arange(3), source), np.isin(np.arange(4), target)
    given[rows] = np.nan
    given[:, columns] = np.nan
    expected = np.where(np.isnan(given), np.nanmean(given), given)
    expected[np.ix_(~rows, columns)] = np.nanmean(given[~rows], axis=1)[:, None]
    expected[np.ix_(rows, ~columns)] = np.nanmean(given[:, ~columns], axis=0)
    classes = SOURCE, ClassSet([*"abcd"])
    matrix = PartCost(torch.from_numpy(given), Unknown(source, target)).matrix(*classes)
    np.testing.assert_allclose(matrix.numpy(), expected, rtol=1e-6)
    assert GivenCost(torch.ones(3, 4)).unknown(*classes) == Unknown((), ())


def test_a_cost_that_knows_no_class_of_a_side() -> None:
    for unknown, side in ((Unknown((0, 1, 2), ()), "source"), (Unknown((), (1, 0)), "target")):
        with pytest.raises(UserError, match=f"{side} class.*PartCost"):
            PartCost(torch.ones(SIZES), unknown).matrix(SOURCE, TARGET)


def test_uniform() -> None:
    cost = UniformCost()
    assert torch.equal(cost.matrix(SOURCE, TARGET), torch.ones(SIZES))
    assert cost.updates == "never"
    TransportLoss(cost.matrix(SOURCE, TARGET))


# centroid


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("autocast", [False, True])
def test_centroid_distances_agree_with_scipy(metric: str, autocast: bool) -> None:
    source, target = features()
    cost = CentroidCost(metric)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        cost.fit([source], [target], SIZES)
        distances = cost.distances(SOURCE, TARGET)
        matrix = cost.matrix(SOURCE, TARGET)
    expected = torch.as_tensor(cdist(centroids(source), centroids(target), metric))
    torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(matrix.double(), expected / expected.max(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
def test_small_distances_of_far_off_centroids_keep_their_digits(metric: str) -> None:
    """Cosines near 1, and differences so small against the lengths that |x|^2 + |y|^2 - 2 x y cancels."""
    generator = torch.Generator().manual_seed(0)
    x = 100 + 0.01 * torch.randn(3, 50, generator=generator)
    y = 100 + 0.01 * torch.randn(2, 50, generator=generator)
    cost = CentroidCost(metric)
    cost.fit([(x, torch.arange(3))], [(y, torch.arange(2))], SIZES)
    expected = torch.as_tensor(cdist(x.double().numpy(), y.double().numpy(), metric))
    torch.testing.assert_close(cost.distances(SOURCE, TARGET).double(), expected, rtol=5e-3, atol=0)


def test_fit_does_not_depend_on_the_batches() -> None:
    source, target = features()
    whole, parts = CentroidCost(), CentroidCost()
    whole.fit([source], [target], SIZES)
    parts.fit(
        list(zip(*(x.split(4) for x in source), strict=True)),
        list(zip(*(x.split(3) for x in target), strict=True)),
        SIZES,
    )
    for ours, theirs in zip(parts.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    whole.fit([source], [target], SIZES)  # again: it starts anew
    torch.testing.assert_close(whole.matrix(SOURCE, TARGET), parts.matrix(SOURCE, TARGET))


def test_fit_takes_half_precision_features_without_a_gradient() -> None:
    (x, labels), target = features()
    cost = CentroidCost()
    cost.fit([(x.bfloat16().requires_grad_(), labels)], [target], SIZES)
    assert cost.source_sum.dtype == torch.float32
    assert not cost.source_sum.requires_grad


def test_ema_follows_a_sequence_worked_out_by_hand() -> None:
    """Class 0 sees means 1, (nothing), 4 at momentum 0.5: weights 1/2, 1/2, 3/4, sums 1/2, 1/2, 9/4."""
    cost = CentroidCost(update="ema", momentum=0.5, scale="none")
    cost.prepare(SIZES, 1)
    target = (torch.zeros(2, 1), torch.tensor([0, 1]))

    def observe(values: list[float], labels: list[int]) -> None:
        cost.observe((torch.tensor(values)[:, None], torch.tensor(labels)), target, SIZES)

    observe([0.0, 2.0, 5.0], [0, 0, 1])
    assert cost.distances(SOURCE, TARGET)[:2].tolist() == [[1.0, 1.0], [5.0, 5.0]]
    observe([7.0], [1])
    assert cost.source_sum[:, 0].tolist() == [0.5, 0.5 * 2.5 + 3.5, 0.0]
    assert cost.source_weight.tolist() == [0.5, 0.75, 0.0]
    observe([4.0], [0])
    assert cost.source_sum[:, 0].tolist() == [2.25, 4.75, 0.0]
    assert cost.source_weight.tolist() == [0.75, 0.75, 0.0]
    distances = cost.distances(SOURCE, TARGET)
    torch.testing.assert_close(distances[:2, 0], torch.tensor([3.0, 19 / 3]))
    torch.testing.assert_close(distances[2], torch.full((2,), (3 + 19 / 3) / 2))  # unseen: the seen ones' average


def test_ema_without_memory_is_the_latest_batch() -> None:
    cost, fitted = CentroidCost(update="ema", momentum=0.0), CentroidCost()
    for seed in (0, 1):
        cost.observe(*features(seed), SIZES)  # makes its own room
    fitted.fit(*([batch] for batch in features(1)), SIZES)
    torch.testing.assert_close(cost.matrix(SOURCE, TARGET), fitted.matrix(SOURCE, TARGET))


def test_without_features_the_cost_is_constant() -> None:
    cost = CentroidCost(update="ema")
    with pytest.raises(UserError, match=r"fit\(\) or observe\(\)"):
        cost.matrix(SOURCE, TARGET)
    cost.prepare(SIZES, 5)
    assert torch.equal(cost.matrix(SOURCE, TARGET), torch.ones(SIZES))
    with pytest.raises(UserError, match=r"features.*none"):
        cost.fit([], [], SIZES)


def test_state_survives_a_checkpoint() -> None:
    cost = CentroidCost(update="ema")
    cost.prepare(SIZES, 7)
    cost.observe(*features(), SIZES)
    restored = CentroidCost(update="ema")
    restored.prepare(SIZES, 7)
    restored.load_state_dict(cost.state_dict())
    assert torch.equal(restored.matrix(SOURCE, TARGET), cost.matrix(SOURCE, TARGET))
    for each in (cost, restored):
        each.observe(*features(1), SIZES)
    assert torch.equal(restored.matrix(SOURCE, TARGET), cost.matrix(SOURCE, TARGET))


def test_centroid_mistakes() -> None:
    with pytest.raises(UserError, match=r"metric 'cosin'.*'cosine'"):
        CentroidCost("cosin")
    with pytest.raises(UserError, match=r"update 'never'.*once, epoch, ema"):
        CentroidCost(update="never")
    for momentum in (1.0, -0.1, math.nan):
        with pytest.raises(UserError, match=rf"momentum in \[0, 1\).*{momentum}"):
            CentroidCost(momentum=momentum)
