"""The cosine head against scikit-learn, SciPy and a case by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize
from torch import Tensor, nn

from jtln.errors import UserError
from jtln.heads import Cosine, CosineClassifier, HeadFit, HeadInputs

T, D = 4, 7

Images = tuple[Tensor, Tensor]  # features (N, D), labels (N,)


def images(count: int, seed: int, classes: int = T) -> Images:
    """Features near their class's direction, with very different lengths."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    lengths = torch.rand(count, 1, generator=draw) * 10 + 0.1
    return lengths * (torch.eye(D)[labels] + 0.5 * torch.randn(count, D, generator=draw)), labels


class Given:
    """Labelled and validation images in two batches; the source has none."""

    def __init__(self, labelled: Images, validation: Images) -> None:
        self.parts = {"train": labelled, "val": validation}

    def of(self, side: str, part: str = "train", at_most: int | None = None) -> list[Images]:
        assert (side, at_most) == ("target", None)
        features, labels = self.parts[part]
        if not len(labels):
            return []
        return [(features[:1], labels[:1]), (features[1:], labels[1:])]


def fit(given: Given, classes: int = T) -> HeadFit:
    return Cosine().fit(nn.Linear(given.parts["train"][0].shape[1], classes), HeadInputs(given, (9, classes)))


def test_is_scikit_learns_nearest_centroid_by_cosine() -> None:
    labelled, fresh = images(13, seed=0), images(50, seed=2)[0]
    classifier, chosen, _ = fit(Given(labelled, images(60, seed=1)))
    nearest = NearestCentroid().fit(normalize(labelled[0].double().numpy()), labelled[1].numpy())
    cosines = cosine_similarity(fresh.double().numpy(), nearest.centroids_)  # (50, T)
    np.testing.assert_allclose(classifier(fresh).numpy(), cosines / chosen["temperature"], rtol=1e-4, atol=1e-4)
    nearest.centroids_ = normalize(nearest.centroids_)
    predicted = nearest.predict(normalize(fresh.double().numpy()))
    assert classifier(fresh).argmax(1).tolist() == predicted.tolist()
    assert len(set(predicted)) == T


def test_the_temperature_makes_the_validation_labels_most_likely() -> None:
    labelled, validation = images(8, seed=3), images(90, seed=4)
    classifier, chosen, _ = fit(Given(labelled, validation))
    centres = [normalize(labelled[0].double().numpy())[labelled[1].numpy() == j].mean(0) for j in range(T)]
    cosines = cosine_similarity(validation[0].double().numpy(), np.stack(centres))

    def nll(log_tau: float) -> float:
        scores = log_softmax(cosines / math.exp(log_tau), axis=1)
        return float(-scores[np.arange(90), validation[1].numpy()].mean())

    best = minimize_scalar(nll, bounds=(-6, 6), method="bounded", options={"xatol": 1e-9})
    assert chosen == {"temperature": pytest.approx(math.exp(best.x), rel=1e-4), "nll": pytest.approx(best.fun)}
    assert 0.01 < chosen["temperature"] < 1  # a choice between limits
    found = nn.functional.cross_entropy(classifier(validation[0]), validation[1])
    assert found.item() == pytest.approx(chosen["nll"], rel=1e-5)


def test_by_hand() -> None:
    """Lengths do not count: class 0 lies at (1, 1), between (3, 0) and (0, 1), class 1 at (0, -1).

    Along (1, 1) the cosines are 1 and -1/sqrt 2, d apart. Three of four such images being of class 0, the labels are
    most likely where sigmoid(d / tau) = 3/4: at tau = d / log 3.
    """
    labelled = torch.tensor([[3.0, 0.0], [0.0, -5.0], [0.0, 1.0]]), torch.tensor([0, 1, 0])
    validation = torch.tensor([[1.0, 1.0], [7.0, 7.0], [0.2, 0.2], [2.0, 2.0]]), torch.tensor([0, 1, 0, 0])
    classifier, chosen, _ = fit(Given(labelled, validation), classes=2)
    root = math.sqrt(0.5)
    tau = (1 + root) / math.log(3)
    torch.testing.assert_close(classifier.weight, torch.tensor([[root, root], [0.0, -1.0]]))
    nll = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert chosen == {"temperature": pytest.approx(tau, rel=1e-6), "nll": pytest.approx(nll, rel=1e-6)}
    found = classifier(torch.tensor([[4.0, 0.0], [0.0, -1.0]]))
    torch.testing.assert_close(found, torch.tensor([[root, 0.0], [-root, 1.0]]) / tau)


def test_without_validation_images_labelled_ones_are_left_out_of_their_mean() -> None:
    labelled = images(12, seed=3)  # three a class
    _, chosen, _ = fit(Given(labelled, images(0, seed=0)))
    rows, labels = normalize(labelled[0].double().numpy()), labelled[1].numpy()
    logits = np.zeros((12, T))
    for left_out in range(12):
        kept = np.arange(12) != left_out
        means = np.stack([rows[kept & (labels == j)].mean(0) for j in range(T)])
        logits[left_out] = cosine_similarity(rows[left_out : left_out + 1], means)[0]

    def nll(log_tau: float) -> float:
        return float(-log_softmax(logits / math.exp(log_tau), axis=1)[np.arange(12), labels].mean())

    best = minimize_scalar(nll, bounds=(-6, 6), method="bounded", options={"xatol": 1e-9})
    assert chosen["temperature"] == pytest.approx(math.exp(best.x), rel=1e-3)


def test_with_one_label_a_class_the_temperature_is_the_setting() -> None:
    _, chosen, _ = fit(Given(images(T, seed=3), images(0, seed=0)))
    assert chosen == {"temperature": 0.07}
    with pytest.raises(UserError, match="temperature > 0, but got 0"):
        Cosine(temperature=0)


def test_a_class_without_an_image_is_similar_to_none() -> None:
    classifier, chosen, _ = fit(Given(images(9, seed=0, classes=3), images(60, seed=1)))
    assert classifier.weight[3].tolist() == [0.0] * D
    assert classifier(images(5, seed=2)[0])[:, 3].tolist() == [0.0] * 5
    assert math.isfinite(chosen["nll"])
    assert classifier(torch.zeros(1, D)).tolist() == [[0.0] * T]  # nor is an image without features


def test_a_state_dict_fills_an_empty_classifier() -> None:
    head = Cosine()
    found = fit(Given(images(13, seed=0), images(60, seed=1))).classifier
    again = Cosine(**head.settings()).classifier(D, T)
    assert isinstance(again, CosineClassifier)
    again.load_state_dict(found.state_dict())
    fresh = images(5, seed=2)[0]
    assert torch.equal(again(fresh), found(fresh))
    assert not list(found.parameters())
    assert (head.name, head.uses_cost, head.replaces) == ("cosine", False, True)
