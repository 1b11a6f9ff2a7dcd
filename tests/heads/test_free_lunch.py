"""Free Lunch against explicit covariances in NumPy and scikit-learn's logistic regression."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from jtln.errors import UserError
from jtln.heads import FreeLunch, HeadFit, HeadInputs, PoweredLinear
from jtln.heads.free_lunch import SourceClasses

S, T, D = 5, 3, 4
SHOTS = torch.tensor([2, 1, 3])

Images = tuple[Tensor, Tensor]  # features (N, D), labels (N,)


class World:
    """Source classes of different covariances, >= 0 like averages after a ReLU; class 3 has one image, class 4 none."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        labels = torch.tensor([0] * 9 + [1] * 12 + [2] * 7 + [3])
        means = 1 + 3 * torch.rand(S, D, generator=draw)
        mix = torch.randn(S, D, D, generator=draw) / 3
        noise = torch.randn(len(labels), 1, D, generator=draw)
        self.source: Images = (means[labels] + (noise @ mix[labels])[:, 0]).abs(), labels
        labels = torch.arange(T).repeat_interleave(SHOTS)
        self.labelled: Images = 4 * torch.rand(len(labels), D, generator=draw), labels
        self.asked: int | None = None

    def of(self, side: str, part: str = "train", at_most: int | None = None) -> list[Images]:
        """Two batches of different sizes; nothing is read of validation images."""
        assert part == "train"
        features, labels = self.source if side == "source" else self.labelled
        if side == "source":
            self.asked = at_most
        return [(features[:2], labels[:2]), (features[2:], labels[2:])]

    def fit(self, prior: Callable[[Tensor], Tensor] | None = None, **settings: float) -> HeadFit:
        return FreeLunch(**settings).fit(nn.Linear(D, T), HeadInputs(self, (S, T), prior=prior))  # type: ignore[arg-type]


def calibrated(z: np.ndarray, world: World, k: int, alpha: float, power: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) around a transformed labelled feature, with explicit covariances."""
    x, y = (each.double().numpy() for each in world.source)
    classes = [x[y == i] ** power for i in range(4)]
    means = [each.mean(0) for each in classes]
    covariances = [np.cov(each.T) if len(each) > 1 else np.zeros((D, D)) for each in classes]
    near = np.argsort([np.linalg.norm(z - mean) for mean in means])[:k]
    mean = np.mean([*(means[i] for i in near), z], axis=0)
    return mean, np.mean([covariances[i] for i in near], axis=0) + alpha


@pytest.mark.parametrize(
    ("k", "alpha", "power"), [(1, 0.0, 1.0), (2, 0.21, 1.0), (2, 0.21, 0.5), (3, 1.0, 0.5), (9, 0.2, 1.0)]
)
def test_samples_have_the_calibrated_mean_and_covariance(k: int, alpha: float, power: float) -> None:
    world, count = World(), 20_000
    rows = world.labelled[0].double() ** 0.5
    source = SourceClasses.of(world, 100, power)
    samples = source.samples(rows, torch.full((len(rows),), count), k, alpha, seed=1)
    assert samples.shape == (6 * count, D)
    for row, drawn in zip(rows.numpy(), samples.numpy().reshape(6, count, D), strict=True):
        mean, covariance = calibrated(row, world, min(k, 4), alpha, power)
        scale = np.sqrt(np.diag(covariance)) + 1e-9
        np.testing.assert_allclose((drawn.mean(0) - mean) / scale, 0, atol=5 / np.sqrt(count))
        spread = (np.cov(drawn.T) - covariance) / np.outer(scale, scale)
        np.testing.assert_allclose(spread, 0, atol=6 * np.sqrt(2 / count))
    assert world.asked == 100


def by_scikit_learn(x: np.ndarray, y: np.ndarray, c: float, fresh: np.ndarray) -> np.ndarray:
    """Return predictions with the penalty |b|^2 / 2 on the bias, the weight of a constant column of 1/sqrt(C)."""
    x, fresh = (np.hstack([each, np.full((len(each), 1), c**-0.5)]) for each in (x, fresh))
    return LogisticRegression(C=c, fit_intercept=False, tol=1e-9, max_iter=10_000).fit(x, y).predict_proba(fresh)


@pytest.mark.parametrize(("c", "power"), [(1.0, 0.5), (30.0, 1.0)])
def test_without_samples_it_is_logistic_regression(c: float, power: float) -> None:
    world, fresh = World(), torch.rand(20, D, generator=torch.Generator().manual_seed(2))
    classifier, chosen, _ = world.fit(samples=0, inverse_penalty=c, power=power)
    x, y = world.labelled[0].double().numpy() ** power, world.labelled[1].numpy()
    expected = by_scikit_learn(x, y, c, fresh.double().numpy() ** power)
    np.testing.assert_allclose(classifier(fresh).softmax(1).numpy(), expected, atol=1e-3)
    assert chosen["samples"] == 0
    assert isinstance(classifier, PoweredLinear)
    mirrored = -(fresh**power) @ classifier.weight.t() + classifier.bias
    torch.testing.assert_close(classifier(-fresh), mirrored)  # the sign is kept


def test_with_samples_it_is_logistic_regression_on_all_features() -> None:
    """Every class has the same number of samples, except for rounding; its labelled images share them."""
    world, fresh = World(), torch.rand(20, D, generator=torch.Generator().manual_seed(2))
    classifier, chosen, _ = world.fit(samples=60, alpha=0.1, neighbours=1, seed=3)
    rows = world.labelled[0].double() ** 0.5
    counts = torch.tensor([30, 30, 60, 20, 20, 20])
    samples = SourceClasses.of(world, 100, 1.0).samples(rows, counts, 1, 0.1, seed=3)
    assert chosen["samples"] == 180
    y = torch.cat([world.labelled[1], torch.arange(T).repeat_interleave(60)])
    expected = by_scikit_learn(torch.cat([rows, samples]).numpy(), y.numpy(), 1.0, fresh.double().numpy() ** 0.5)
    np.testing.assert_allclose(classifier(fresh).softmax(1).numpy(), expected, atol=1e-3)


def test_the_samples_are_seeded_and_bounded() -> None:
    world = World()
    one, same, other = (world.fit(samples=20, seed=seed).classifier for seed in (1, 1, 2))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    trained, state = nn.Linear(D, T), torch.get_rng_state()
    FreeLunch().fit(trained, HeadInputs(world, (S, T)))
    assert torch.equal(torch.get_rng_state(), state)  # it draws nothing of the global generator
    assert world.fit(most_samples=40).chosen["samples"] == 3 * 12 + 1  # 13 a class: 6 + 6, 13, 4 + 4 + 4
    assert world.fit().chosen["samples"] == 3 * 750
    assert world.asked == 10_000


def test_a_sample_has_the_prior_of_its_labelled_image() -> None:
    """At the optimum the gradient of the whole prediction is zero."""
    world = World()
    prior = nn.Linear(D, T)
    nn.init.normal_(prior.weight, generator=torch.Generator().manual_seed(4))
    classifier, _, _ = world.fit(prior=prior, samples=12, alpha=0.0)
    rows, counts = world.labelled[0].double() ** 0.5, torch.tensor([6, 6, 12, 4, 4, 4])
    samples = SourceClasses.of(world, 100, 1.0).samples(rows, counts, 2, 0.0, seed=0)
    x = torch.cat([rows, samples]).numpy()
    y = torch.cat([world.labelled[1], torch.arange(T).repeat_interleave(12)])
    offset = prior(world.labelled[0]).detach().double()
    offset = torch.cat([offset, offset.repeat_interleave(counts, 0)]).numpy()
    weight, bias = (getattr(classifier, name).double().numpy() for name in ("weight", "bias"))
    slope = softmax(x @ weight.T + bias + offset, 1)
    slope[np.arange(len(y)), y] -= 1
    np.testing.assert_allclose(slope.T @ x + weight, 0, atol=1e-2)
    np.testing.assert_allclose(slope.sum(0) + bias, 0, atol=1e-2)
    assert np.abs(slope).max() > 0.1


def test_a_state_dict_fills_an_empty_classifier() -> None:
    world, head = World(), FreeLunch(power=0.7, samples=5)
    found = head.fit(nn.Linear(D, T), HeadInputs(world, (S, T))).classifier
    again = FreeLunch(**head.settings()).classifier(D, T)
    again.load_state_dict(found.state_dict())
    fresh = torch.randn(5, D)
    assert torch.equal(again(fresh), found(fresh))
    assert (head.name, head.uses_cost, head.replaces, head.reads_source) == ("free_lunch", False, True, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neighbours": 0}, "neighbours >= 1, but got 0"),
        ({"samples": 1.5}, "samples >= 0, but got 1.5"),
        ({"alpha": -1.0}, "alpha >= 0, but got -1.0"),
        ({"power": 0.0}, "power .*got 0.0"),
        ({"source_power": 2}, "source_power .*got 2"),
        ({"inverse_penalty": 0}, "inverse_penalty > 0, but got 0"),
    ],
)
def test_a_number_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FreeLunch(**settings)  # type: ignore[arg-type]


def test_features_that_are_missing_or_not_finite() -> None:
    world = World()
    world.source[0][3, 1] = torch.nan
    with pytest.raises(UserError, match="finite features of the source images"):
        world.fit()
    world.of = lambda side, part="train", at_most=None: [] if side == "source" else [world.labelled]  # type: ignore[method-assign]
    with pytest.raises(UserError, match="source features, but got none"):
        world.fit()
