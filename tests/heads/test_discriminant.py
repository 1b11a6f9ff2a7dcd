"""The discriminant head against NumPy and SciPy."""

from __future__ import annotations

import math
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
from jtln.heads import Discriminant, HeadFit, HeadInputs, discriminant
from jtln.heads.discriminant import CENTRE_SHIFTS, PRIOR_COUNTS, TRANSPORT_COUNTS
from jtln.transport import class_plan

S, T, D = 6, 3, 5
PLAN = torch.zeros(S, T)  # target class j is related to source classes j and j + 3
for j in range(T):
    PLAN[[j, j + T], j] = 1 / S

Images = tuple[Tensor, Tensor]  # features (N, D), labels (N,)


class World:
    """Gaussian classes with one covariance; each target class is between its two source classes."""

    def __init__(self, labelled: tuple[int, ...] = (2, 1, 3), spread: float = 0.5, away: float = 0.0) -> None:
        draw = torch.Generator().manual_seed(3)
        mix = torch.randn(D, D, generator=draw)  # covariance mix' mix
        means = torch.randn(S, D, generator=draw) @ mix + 2.0
        targets = (means[:T] + means[T:]) / 2 + spread * torch.randn(T, D, generator=draw) + away
        labels = torch.arange(S).repeat_interleave(30)[:-7]
        self.source: Images = means[labels] + torch.randn(len(labels), D, generator=draw) @ mix, labels
        labels = torch.repeat_interleave(torch.arange(T), torch.tensor(labelled))
        self.labelled: Images = targets[labels] + torch.randn(len(labels), D, generator=draw) @ mix, labels
        labels = torch.arange(T).repeat(20)
        self.validation: Images = targets[labels] + torch.randn(len(labels), D, generator=draw) @ mix, labels
        self.asked: int | None = None

    def of(self, side: str, part: str = "train", at_most: int | None = None) -> list[Images]:
        """Two batches of different sizes."""
        kinds = {("source", "train"): "source", ("target", "train"): "labelled", ("target", "val"): "validation"}
        features, labels = getattr(self, kinds[side, part])
        if side == "source":
            self.asked = at_most
        first = len(labels) // 3
        return [(features[:first], labels[:first]), (features[first:], labels[first:])]

    def fit(self, trained: nn.Linear | None = None, plan: Tensor | None = PLAN, **settings: float) -> HeadFit:
        head = Discriminant(**settings)  # type: ignore[arg-type]
        return head.fit(trained or nn.Linear(D, T), HeadInputs(self, (S, T), plan))

    def expected(self, k: float, u: float, shift: float, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
        """The class means (T, D) and the covariance (D, D), by the formulas of the module."""
        x, y = (each.double().numpy() for each in self.source)
        means = np.stack([x[y == i].mean(0) for i in range(S)])
        within = sum(np.cov(x[y == i].T, bias=True) * (y == i).sum() for i in range(S)) / (len(y) - S)
        within = (1 - shrinkage) * within + shrinkage * np.trace(within) / D * np.eye(D)
        x, y = (each.double().numpy() for each in self.labelled)
        centre = (1 - shift) * means.mean(0) + shift * np.mean([x[y == j].mean(0) for j in set(y.tolist())], axis=0)
        classes = []
        for j in range(T):
            transported = centre + (means[j] + means[j + T]) / 2 - means.mean(0)
            classes.append((x[y == j].sum(0) + k * transported + u * centre) / ((y == j).sum() + k + u))
        return np.stack(classes), within

    def accuracy(self, classifier: nn.Module) -> float:
        """Share of the validation images that are classified right."""
        features, labels = self.validation
        return float((classifier(features).argmax(1) == labels).float().mean())


def densities(features: Tensor, means: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """log N(f; mu_j, W), (B, T), by SciPy."""
    return np.stack([multivariate_normal(mean, covariance).logpdf(features.double().numpy()) for mean in means], 1)


def best_factor(scores: np.ndarray, labels: Tensor) -> tuple[float, float]:
    """Return the factor of the scores with the least negative log-likelihood, and that value."""

    def nll(log_factor: float) -> float:
        return float(-log_softmax(np.exp(log_factor) * scores, axis=1)[np.arange(len(labels)), labels].mean())

    found = minimize_scalar(nll, bounds=(-7, 5), method="bounded", options={"xatol": 1e-9})
    return float(np.exp(found.x)), float(found.fun)


@pytest.mark.parametrize(
    ("shrinkage", "labelled", "away"),  # of labelled images, 0: none
    [
        pytest.param(shrinkage, labelled, away, marks=() if shrinkage == quick else pytest.mark.slow)
        for labelled, away, quick in (((2, 1, 3), 0.0, 0.1), ((1, 0, 1), 0.0, 1.0), ((1, 0, 3), 4.0, 0.7))
        for shrinkage in (0.1, 0.7, 1.0)
    ],
)
def test_is_the_gaussian_discriminant_of_the_least_validation_nll(
    shrinkage: float, labelled: tuple[int, ...], away: float
) -> None:
    world = World(labelled, away=away)
    features, labels = world.validation
    every = {}
    for k, u, shift in product(TRANSPORT_COUNTS, PRIOR_COUNTS, CENTRE_SHIFTS):
        every[k, u, shift] = best_factor(densities(features, *world.expected(k, u, shift, shrinkage)), labels)
    trained = nn.Linear(D, T)
    weights = trained.weight.clone()
    classifier, chosen, _ = world.fit(trained, shrinkage=shrinkage)
    assert set(chosen) == {"transport_count", "prior_count", "centre_shift", "trained_share", "nll"}
    assert chosen["nll"] == pytest.approx(min(nll for _, nll in every.values()), abs=1e-5)
    picked = chosen["transport_count"], chosen["prior_count"], chosen["centre_shift"]
    factor, nll = every[picked]
    assert nll == pytest.approx(chosen["nll"], abs=1e-5)
    assert chosen["trained_share"] == 0.0
    fresh = torch.randn(8, D, generator=torch.Generator().manual_seed(4)) * 3
    expected = log_softmax(factor * densities(fresh, *world.expected(*picked, shrinkage)), axis=1)
    np.testing.assert_allclose(classifier(fresh).detach().log_softmax(1).numpy(), expected, rtol=2e-3, atol=2e-3)
    assert torch.equal(trained.weight, weights)  # the trained head stays as it is


def test_a_true_plan_counts_for_more_than_a_permuted_one() -> None:
    """One labelled image a class; the classes are at the plan's means, or elsewhere."""
    world = World((1, 1, 1), spread=0.0)
    informed, uninformed = world.fit(), world.fit(plan=None)
    permuted = world.fit(plan=PLAN[:, [1, 2, 0]])
    assert informed.chosen["transport_count"] >= 4
    assert informed.chosen["transport_count"] > permuted.chosen["transport_count"]
    assert uninformed.chosen["transport_count"] == 0.0
    assert informed.chosen["nll"] < uninformed.chosen["nll"] - 0.02
    assert world.accuracy(informed.classifier) > world.accuracy(uninformed.classifier)
    constant = world.fit(plan=torch.full((S, T), 1 / (S * T)))
    assert constant.chosen == uninformed.chosen
    torch.testing.assert_close(constant.classifier.weight, uninformed.classifier.weight)


def test_target_classes_far_from_the_source_have_a_centre_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a prior at the source's centre, a class with few labelled images would lose to one with many."""
    world = World((8, 1, 1), spread=0.0, away=10.0)
    shifted = world.fit()
    monkeypatch.setattr(discriminant, "CENTRE_SHIFTS", (0.0,))
    around_source = world.fit()
    assert shifted.chosen["centre_shift"] > 0 == around_source.chosen["centre_shift"]
    assert shifted.chosen["nll"] < around_source.chosen["nll"] - 0.05
    assert world.accuracy(shifted.classifier) > world.accuracy(around_source.classifier) + 0.05
    monkeypatch.undo()
    assert World((2, 2, 2), spread=0.0).fit().chosen["centre_shift"] == 0.0


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.slow
def test_with_more_labelled_images_the_trained_head_has_a_share(good: bool) -> None:
    """The share has the least validation nll; below ``mixed_from`` images it is zero."""
    world = World((4, 4, 4), spread=3.0)
    features, labels = world.validation
    torch.manual_seed(0)
    trained = nn.Linear(D, T)
    if good:  # a head fitted to the validation images themselves
        optimizer = torch.optim.LBFGS(trained.parameters(), max_iter=50)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(trained(features), labels)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    own = best_factor(trained(features).detach().double().numpy(), labels)[1]
    mixed, alone = world.fit(trained, mixed_from=4), world.fit(trained, mixed_from=4.1)
    assert alone.chosen["trained_share"] == 0.0
    for name in ("transport_count", "prior_count"):
        assert mixed.chosen[name] == alone.chosen[name]
    assert (mixed.chosen["trained_share"] > 0.5) == good
    assert mixed.chosen["nll"] <= min(alone.chosen["nll"], own) + 1e-6
    for classifier, chosen, _ in (mixed, alone):
        assert cross_entropy(classifier(features), labels).item() == pytest.approx(chosen["nll"], abs=1e-5)


def test_the_classifier_is_linear_and_a_state_dict_fills_an_empty_one() -> None:
    world, head = World(), Discriminant(source_images=9)
    found = head.fit(nn.Linear(D, T), HeadInputs(world, (S, T), PLAN)).classifier
    assert world.asked == 9
    again = Discriminant(**head.settings()).classifier(D, T)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again(world.validation[0]), found(world.validation[0]))
    assert (head.name, head.uses_cost, head.replaces) == ("discriminant", True, True)
    assert head.settings() == {"shrinkage": 0.7, "mixed_from": 10, "source_images": 9, "prior": 0.0}


def test_source_classes_without_an_image_and_a_single_image() -> None:
    """A class without a chosen source image is at the centre; the classifier stays finite."""
    world = World()
    kept = world.source[1] != 4
    whole = world.source
    for source, settings in (
        ((whole[0][kept], whole[1][kept]), {}),
        ((whole[0][:1], whole[1][:1]), {}),  # no spread at all
        ((torch.ones(6, D) * torch.arange(6.0)[:, None], torch.arange(6) // 2), {"shrinkage": 1e-6}),  # along a line
    ):
        world.source = source
        classifier = world.fit(**settings).classifier
        assert bool(classifier.weight.isfinite().all())
        assert bool(classifier.bias.isfinite().all())


def test_features_that_are_missing_or_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    for part, told in (("source", "source"), ("labelled", "target"), ("validation", "target")):
        for value in (torch.nan, torch.inf):
            world = World()
            getattr(world, part)[0][2] = value
            with pytest.raises(UserError, match=f"finite features of the {told}"):
                world.fit()
    world = World()
    monkeypatch.setattr(world, "of", lambda side, *_, **__: [] if side == "source" else World.of(world, side))
    with pytest.raises(UserError, match="source features, but got none"):
        world.fit()


# Without validation images: episodes of source classes.

FAMILIES, SIZE = 6, 5  # source classes 5 f to 5 f + 4 are of family f, and target class f is


class Families:
    """Classes near to their family's centre; one labelled image a target class, and no validation image."""

    def __init__(self, shots: int = 1, apart: float = 2.0) -> None:
        draw = torch.Generator().manual_seed(7)
        centres = apart * torch.randn(FAMILIES, D, generator=draw)
        means = centres.repeat_interleave(SIZE, 0) + 0.3 * torch.randn(FAMILIES * SIZE, D, generator=draw) * apart
        labels = torch.arange(FAMILIES * SIZE).repeat_interleave(20)
        self.source: Images = means[labels] + torch.randn(len(labels), D, generator=draw), labels
        targets = centres + 0.3 * torch.randn(FAMILIES, D, generator=draw) * apart
        labels = torch.arange(FAMILIES).repeat(shots)
        self.labelled: Images = targets[labels] + torch.randn(len(labels), D, generator=draw), labels
        labels = torch.arange(FAMILIES).repeat(100)
        self.test: Images = targets[labels] + torch.randn(len(labels), D, generator=draw), labels

    def of(self, side: str, part: str = "train", at_most: int | None = None) -> list[Images]:
        if part == "val":
            return []
        features, labels = self.source if side == "source" else self.labelled
        return [(features[:2], labels[:2]), (features[2:], labels[2:])]

    def fit(self, cost: Tensor | None = None, between: Tensor | None = None) -> HeadFit:
        """With plans under a cost between source and target classes, and one between source classes."""
        sizes = FAMILIES * SIZE, FAMILIES
        plan = None if cost is None else class_plan(cost, 0.1)
        source_plan = None if between is None else lambda some, others: class_plan(between[some][:, others], 0.1)
        return Discriminant().fit(nn.Linear(D, FAMILIES), HeadInputs(self, sizes, plan, source_plan=source_plan))

    def accuracy(self, fit: HeadFit) -> float:
        return float((fit.classifier(self.test[0]).argmax(1) == self.test[1]).float().mean())


family = torch.arange(FAMILIES * SIZE) // SIZE
COST = (family[:, None] != torch.arange(FAMILIES)).float()  # (S, T): of another family
BETWEEN = (family[:, None] != family).float()  # (S, S)


@pytest.mark.slow
def test_episodes_choose_what_an_informative_cost_is_worth() -> None:
    world = Families()
    informed, uninformed = world.fit(COST, BETWEEN), world.fit()
    assert informed.chosen["transport_count"] > 0 == uninformed.chosen["transport_count"]
    assert informed.chosen["nll"] < uninformed.chosen["nll"] - 0.1
    assert world.accuracy(informed) > world.accuracy(uninformed) + 0.05
    assert (informed.chosen["trained_share"], informed.chosen["episodes"]) == (0.0, 5)
    for cost, between in ((torch.ones_like(COST), torch.ones_like(BETWEEN)), (COST, None), (None, BETWEEN)):
        assert world.fit(cost, between).chosen == uninformed.chosen
    permuted = world.fit(COST.roll(1, 1), BETWEEN.roll(SIZE, 1))
    assert permuted.chosen["transport_count"] < informed.chosen["transport_count"]


@pytest.mark.slow
def test_episodes_are_of_other_classes_each_time_and_the_same_in_every_fit() -> None:
    asked: list[tuple[list[int], list[int]]] = []

    def plan(some: Tensor, others: Tensor) -> Tensor:
        asked.append((some.tolist(), others.tolist()))
        return class_plan(BETWEEN[some][:, others], 0.1)

    world = Families()
    given = HeadInputs(world, (FAMILIES * SIZE, FAMILIES), class_plan(COST, 0.1), source_plan=plan)
    first, second = (Discriminant().fit(nn.Linear(D, FAMILIES), given) for _ in range(2))
    assert asked[:5] == asked[5:]
    assert len({tuple(others) for _, others in asked}) == 5
    for some, others in asked:
        assert len(others) == FAMILIES  # as many as target classes: less than a third of the source's
        assert sorted(some + others) == list(range(FAMILIES * SIZE))
    assert first.chosen == second.chosen
    assert torch.equal(first.classifier.weight, second.classifier.weight)


def test_images_that_are_held_out_are_not_the_labelled_ones() -> None:
    """With pure noise the negative log-likelihood is near that of chance."""
    found = Families(apart=0.0).fit().chosen
    assert math.log(FAMILIES) - 0.05 < found["nll"] < math.log(FAMILIES) + 0.02


@pytest.mark.parametrize("shots", [1, 4])
def test_the_outcome_is_the_gaussian_discriminant_of_the_choice(shots: int) -> None:
    """Compared with SciPy, up to the temperature."""
    world = Families(shots)
    classifier, chosen, _ = world.fit(COST, BETWEEN)
    k, u, shift = (chosen[name] for name in ("transport_count", "prior_count", "centre_shift"))
    x, y = (each.double().numpy() for each in world.source)
    means = np.stack([x[y == i].mean(0) for i in range(FAMILIES * SIZE)])
    within = sum(np.cov(x[y == i].T, bias=True) * (y == i).sum() for i in range(len(means))) / (len(y) - len(means))
    within = 0.3 * within + 0.7 * np.trace(within) / D * np.eye(D)
    plan = class_plan(COST, 0.1).double().numpy()
    x, y = (each.double().numpy() for each in world.labelled)
    own = np.stack([x[y == j].mean(0) for j in range(FAMILIES)])
    centre = (1 - shift) * means.mean(0) + shift * own.mean(0)
    transported = centre + (plan / plan.sum(0)).T @ (means - means.mean(0))
    expected = densities(world.test[0], (shots * own + k * transported + u * centre) / (shots + k + u), within)
    found = classifier(world.test[0]).detach().double().numpy()
    expected, found = (each - each.mean(1, keepdims=True) for each in (expected, found))
    factor = (expected * found).sum() / (expected**2).sum()
    np.testing.assert_allclose(found, factor * expected, rtol=1e-3, atol=1e-3)
    assert 0.3 < factor < 3  # the classes are Gaussians of this covariance


def test_too_few_source_classes_for_episodes() -> None:
    world = Families()
    world.source = world.source[0][:60], world.source[1][:60]
    with pytest.raises(UserError, match=r"dataset\.validation.* 4 or more source classes .*got 3"):
        world.fit()


@pytest.mark.parametrize("settings", [{"shrinkage": 0.0}, {"shrinkage": 1.1}, {"mixed_from": -1}, {"source_images": 0}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=f"{name} .*got {value}"):
        Discriminant(**settings)  # type: ignore[arg-type]
