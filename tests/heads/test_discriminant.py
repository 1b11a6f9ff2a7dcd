"""Where the target head ends, against NumPy, SciPy and what the labels bear out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import multivariate_normal
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jtln.errors import UserError
from jtln.heads import discriminant
from jtln.heads.discriminant import COMMON, OWN, TRANSPORTED, Discriminant, fitted

S, T, D = 6, 3, 5
PLAN = torch.zeros(S, T)  # target class j is related to source classes j and j + 3
for j in range(T):
    PLAN[[j, j + T], j] = 1 / S


def batches(features: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Two batches of different sizes."""
    first = len(labels) // 3
    return [(features[:first], labels[:first]), (features[first:], labels[first:])]


class World:
    """Classes that are Gaussians with one covariance; each target class lies between its two source classes."""

    def __init__(self, labelled: tuple[int, ...] = (2, 1, 3), spread: float = 0.5, away: float = 0.0) -> None:
        draw = torch.Generator().manual_seed(3)
        self.mix = torch.randn(D, D, generator=draw)  # covariance mix' mix
        middles = torch.randn(S, D, generator=draw) @ self.mix + 2.0
        targets = (middles[:T] + middles[T:]) / 2 + spread * torch.randn(T, D, generator=draw) + away
        labels = torch.arange(S).repeat_interleave(30)[:-7]
        self.source = middles[labels] + torch.randn(len(labels), D, generator=draw) @ self.mix, labels
        labels = torch.repeat_interleave(torch.arange(T), torch.tensor(labelled))
        self.labelled = targets[labels] + torch.randn(len(labels), D, generator=draw) @ self.mix, labels
        labels = torch.arange(T).repeat(20)
        self.validation = targets[labels] + torch.randn(len(labels), D, generator=draw) @ self.mix, labels

    def end(self, head: nn.Linear, plan: Tensor | None = PLAN, **settings: float) -> tuple[float, ...]:
        discriminant = Discriminant(**settings)  # type: ignore[arg-type]
        return discriminant.fit(
            head, plan, (S, T), batches(*self.source), batches(*self.labelled), batches(*self.validation)
        )

    def expected(self, k: float, u: float, own: float, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
        """The class means (T, D) and the covariance (D, D), written down again."""
        x, y = (each.double().numpy() for each in self.source)
        means = np.stack([x[y == i].mean(0) for i in range(S)])
        within = sum(np.cov(x[y == i].T, bias=True) * (y == i).sum() for i in range(S)) / (len(y) - S)
        within = (1 - shrinkage) * within + shrinkage * np.trace(within) / D * np.eye(D)
        x, y = (each.double().numpy() for each in self.labelled)
        middle = (1 - own) * means.mean(0) + own * np.mean([x[y == j].mean(0) for j in set(y.tolist())], axis=0)
        classes = []
        for j in range(T):
            transported = middle + (means[j] + means[j + T]) / 2 - means.mean(0)
            classes.append((x[y == j].sum(0) + k * transported + u * middle) / ((y == j).sum() + k + u))
        return np.stack(classes), within


def densities(features: Tensor, means: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """log N(f; mu_j, W), (B, T), by SciPy."""
    return np.stack([multivariate_normal(mean, covariance).logpdf(features.double().numpy()) for mean in means], 1)


def surprise(scores: np.ndarray, labels: Tensor) -> tuple[float, float]:
    """The likeliest factor of the scores, and the mean of -log p(y) there, by SciPy's search."""

    def loss(log_factor: float) -> float:
        return float(-log_softmax(np.exp(log_factor) * scores, axis=1)[np.arange(len(labels)), labels].mean())

    found = minimize_scalar(loss, bounds=(-7, 5), method="bounded", options={"xatol": 1e-9})
    return float(np.exp(found.x)), float(found.fun)


@pytest.mark.parametrize("shrinkage", [0.1, 0.7, 1.0])
@pytest.mark.parametrize(("labelled", "away"), [((2, 1, 3), 0.0), ((1, 0, 1), 0.0), ((1, 0, 3), 4.0)])  # 0: no image
def test_it_is_the_gaussian_discriminant_that_validation_finds_likeliest(
    shrinkage: float, labelled: tuple[int, ...], away: float
) -> None:
    world, head = World(labelled, away=away), nn.Linear(D, T)
    features, labels = world.validation
    every = {}
    for k, u, middle in product(TRANSPORTED, COMMON, OWN):
        every[k, u, middle] = surprise(densities(features, *world.expected(k, u, middle, shrinkage)), labels)
    transported, common, trained, least, own = world.end(head, shrinkage=shrinkage)
    assert least == pytest.approx(min(found for _, found in every.values()), abs=1e-5)
    factor, found = every[transported, common, own]
    assert found == pytest.approx(least, abs=1e-5)
    assert trained == 0.0
    fresh = torch.randn(8, D, generator=torch.Generator().manual_seed(4)) * 3
    expected = log_softmax(factor * densities(fresh, *world.expected(transported, common, own, shrinkage)), axis=1)
    np.testing.assert_allclose(head(fresh).detach().log_softmax(1).numpy(), expected, rtol=2e-3, atol=2e-3)
    assert head.weight.requires_grad


def test_a_relation_of_the_classes_is_used_as_far_as_it_is_true() -> None:
    """One labelled image a class; the classes lie where the plan says, and elsewhere."""
    world = World((1, 1, 1), spread=0.0)
    features, labels = world.validation
    told, untold = nn.Linear(D, T), nn.Linear(D, T)
    right, none = world.end(told), world.end(untold, plan=None)
    wrong = world.end(nn.Linear(D, T), plan=PLAN[:, [1, 2, 0]])
    assert right[0] >= 4
    assert right[0] > wrong[0]
    assert none[0] == 0.0
    assert right[3] < none[3] - 0.02
    accuracy = [(head(features).argmax(1) == labels).float().mean() for head in (told, untold)]
    assert accuracy[0] > accuracy[1]
    constant = nn.Linear(D, T)
    assert world.end(constant, plan=torch.full((S, T), 1 / (S * T))) == none
    torch.testing.assert_close(constant.weight, untold.weight)


def test_target_classes_far_from_the_source_lie_around_a_middle_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn to the source's middle, a class of few labelled images would lose against one of many."""
    world = World((8, 1, 1), spread=0.0, away=10.0)
    features, labels = world.validation
    head, around_source = nn.Linear(D, T), nn.Linear(D, T)
    found = world.end(head)
    monkeypatch.setattr(discriminant, "OWN", (0.0,))
    without = world.end(around_source)
    assert found[4] > 0 == without[4]
    assert found[3] < without[3] - 0.05
    accuracy = [(each(features).argmax(1) == labels).float().mean() for each in (head, around_source)]
    assert accuracy[0] > accuracy[1] + 0.05
    near = World((2, 2, 2), spread=0.0)
    assert near.end(nn.Linear(D, T))[4] == 0.0


@pytest.mark.parametrize("good", [True, False])
def test_with_more_labelled_images_the_trained_head_has_a_share(good: bool) -> None:
    """As large as validation finds it, and none below the number of images from which it may have one."""
    world = World((4, 4, 4), spread=3.0)
    features, labels = world.validation
    torch.manual_seed(0)
    head = nn.Linear(D, T)
    if good:  # a head that has been told the validation images
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=50)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(head(features), labels)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    own = surprise(head(features).detach().double().numpy(), labels)[1]
    again = nn.Linear(D, T)
    again.load_state_dict(head.state_dict())
    mixed, alone = world.end(head, mixed_from=4), world.end(again, mixed_from=4.1)
    assert alone[2] == 0.0
    assert mixed[:2] == alone[:2]
    assert (mixed[2] > 0.5) == good
    assert mixed[3] <= min(alone[3], own) + 1e-6
    for ended, found in ((head, mixed), (again, alone)):
        assert cross_entropy(ended(features), labels).item() == pytest.approx(found[3], abs=1e-5)


def test_logits_of_any_size_are_fitted() -> None:
    logits, labels = World().validation[0][:, :T].double() * 1e4, World().validation[1]
    factor, least = surprise(logits.numpy() / 1e4, labels)
    found = fitted([(logits[:10], labels[:10]), (logits[10:], labels[10:])])
    assert found.surprise == pytest.approx(least, abs=1e-6)
    assert found.temperature == pytest.approx(1e4 / factor, rel=1e-2)
    shared = fitted(
        [(logits + 1e7 * torch.rand(len(logits), 1), labels)]
    )  # what all classes have, softmax does not see
    assert shared.temperature == pytest.approx(found.temperature, rel=1e-3)


def test_source_classes_without_an_image_and_a_single_one() -> None:
    """Classes that the spread-out choice of source images misses lie in the middle; the head stays finite."""
    world, head = World(), nn.Linear(D, T)
    kept = world.source[1] != 4
    world.source = world.source[0][kept], world.source[1][kept]
    world.end(head)
    assert bool(head.weight.isfinite().all())
    world.source = world.source[0][:1], world.source[1][:1]  # no spread at all
    world.end(head)
    assert bool(head.weight.isfinite().all())
    with pytest.raises(UserError, match="source features"):
        Discriminant().fit(head, PLAN, (S, T), [], batches(*world.labelled), batches(*world.validation))
    world.source = torch.ones(6, D) * torch.arange(6.0)[:, None], torch.tensor([0, 0, 1, 1, 2, 2])  # along a line
    world.end(head, shrinkage=1e-6)
    assert bool(head.weight.isfinite().all())
    world.source[0][2] = torch.nan
    with pytest.raises(UserError, match="finite features of the source"):
        world.end(head)
    for part in ("labelled", "validation"):
        world = World()
        getattr(world, part)[0][2] = torch.inf
        weights = head.weight.clone()
        with pytest.raises(UserError, match="finite features of the target"):
            world.end(head)
        assert torch.equal(head.weight, weights)


@pytest.mark.parametrize("settings", [{"shrinkage": 0.0}, {"shrinkage": 1.1}, {"mixed_from": -1}, {"source_images": 0}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"method\.head_end\." + next(iter(settings))):
        Discriminant(**settings)  # type: ignore[arg-type]
