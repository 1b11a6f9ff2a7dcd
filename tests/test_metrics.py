"""Against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score
from torch import Tensor

from jtln.metrics import MeanClassAccuracy, classification_metrics

CLASSES = 7


def predictions(seed: int, images: int = 200, missing: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Logits (B, 7) that are right about half of the time, and labels (B,) without the classes in ``missing``."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.tensor([c for c in range(CLASSES) if c not in missing])
    labels = present[torch.multinomial(torch.arange(1.0, 1 + len(present)), images, True, generator=generator)]
    logits = torch.randn(images, CLASSES, generator=generator)
    return logits + 1.5 * torch.nn.functional.one_hot(labels, CLASSES), labels


@pytest.mark.parametrize("missing", [(), (0, 3)])
def test_agree_with_scikit_learn(missing: tuple[int, ...]) -> None:
    logits, labels = predictions(0, missing=missing)
    metrics = classification_metrics(CLASSES, "val/target/")
    for x, y in zip(logits.split(64), labels.split(64), strict=True):
        metrics.update(x, y)
    result = metrics.compute()
    guess = logits.argmax(1).numpy()
    assert not missing or set(missing) <= set(guess)  # a class that is predicted and has no image
    expected = {
        "accuracy": accuracy_score(labels, guess),
        "mean_class_accuracy": recall_score(labels, guess, labels=np.unique(labels), average="macro"),
        "macro_f1": f1_score(labels, guess, average="macro", zero_division=0.0),
    }
    for name, value in expected.items():
        assert result[f"val/target/{name}"].item() == pytest.approx(value, rel=1e-5), name
    assert set(result) == {f"val/target/{name}" for name in (*expected, "ece")}


def test_calibration_error_is_the_gap_of_confidence_and_accuracy_in_15_bins() -> None:
    logits, labels = predictions(1)
    metrics = classification_metrics(CLASSES, "")
    metrics.update(logits, labels)
    confidence, guess = logits.softmax(1).max(1)
    right, bins = (guess == labels).double().numpy(), np.ceil(confidence.numpy() * 15)
    expected = sum(
        (bins == b).mean() * abs(right[bins == b].mean() - confidence.double().numpy()[bins == b].mean())
        for b in np.unique(bins)
    )
    assert metrics.compute()["ece"].item() == pytest.approx(expected, rel=1e-4)


def test_mean_class_accuracy_weighs_classes_alike() -> None:
    metric = MeanClassAccuracy(3)
    logits = torch.eye(3)[[0, 0, 0, 1]]
    metric.update(logits, torch.tensor([0, 0, 0, 1]))
    metric.update(torch.eye(3)[[0]], torch.tensor([1]))
    assert metric.compute().item() == pytest.approx((1 + 0.5) / 2)  # class 2 has no image
    metric.reset()
    metric.update(torch.eye(3)[[2]], torch.tensor([1]))
    assert metric.compute().item() == 0.0


def test_collections_share_no_state() -> None:
    first, second = (classification_metrics(CLASSES, prefix) for prefix in ("val/", "test/"))
    first.update(*predictions(0))
    second.update(*predictions(1))
    assert first.compute()["val/accuracy"] != second.compute()["test/accuracy"]
