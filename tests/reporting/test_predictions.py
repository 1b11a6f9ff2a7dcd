"""The stored test predictions, against PyTorch's own loss and against what was stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import nll_loss

from jtln.errors import UserError
from jtln.reporting.predictions import FILE, Predictions, predicted_of, read_predictions, write_predictions


def made(images: int = 50, classes: int = 7) -> Predictions:
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(images, classes, generator=generator)).softmax(1)
    labels = torch.randint(classes, (images,), generator=generator)
    whole, real = (each.numpy() for each in predicted_of(probabilities, labels))
    return Predictions(whole[:, 0].astype(np.int32), whole[:, 1].astype(np.int32), real[:, 0], real[:, 1])


def test_a_batch_against_pytorch() -> None:
    probabilities = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).softmax(1)
    labels = torch.arange(40) % 6
    classes, figures = predicted_of(probabilities, labels)
    assert classes[:, 0].tolist() == labels.tolist()
    assert classes[:, 1].tolist() == probabilities.argmax(1).tolist()
    assert torch.equal(figures[:, 0], probabilities.amax(1))
    torch.testing.assert_close(figures[:, 1], nll_loss(probabilities.log(), labels, reduction="none"))


def test_a_label_without_any_probability_has_a_finite_nll() -> None:
    """And one whose mean over views is rounded above 1 has none below zero."""
    probabilities = torch.tensor([[0.0, 1.0], [1.0000001, 0.0]])
    _, figures = predicted_of(probabilities, torch.tensor([0, 0]))
    assert figures[0, 1] == pytest.approx(-np.log(np.finfo(np.float32).tiny))
    assert figures[1].tolist() == [1.0, 0.0]


def test_the_file_holds_what_was_written(tmp_path: Path) -> None:
    predictions = made()
    path = write_predictions(predictions, tmp_path)
    assert path.name == FILE
    with np.load(path, allow_pickle=False) as arrays:
        kinds = {name: (arrays[name].dtype.name, arrays[name].shape) for name in arrays.files}
    assert kinds == {
        **dict.fromkeys(("label", "predicted"), ("int32", (50,))),
        **dict.fromkeys(("confidence", "nll"), ("float32", (50,))),
    }
    for found, given in zip(read_predictions(tmp_path), predictions, strict=True):
        assert np.array_equal(found, given)
    assert read_predictions(tmp_path).right.tolist() == (predictions.label == predictions.predicted).tolist()
    assert path.read_bytes() == write_predictions(predictions, tmp_path).read_bytes()


def test_a_few_tens_of_kilobytes(tmp_path: Path) -> None:
    assert write_predictions(made(4000, 100), tmp_path).stat().st_size < 50_000


@pytest.mark.parametrize("kind", ["none", "cut off", "no archive", "an array is missing", "lengths differ"])
def test_a_broken_file_is_named(kind: str, tmp_path: Path) -> None:
    whole = write_predictions(made(), tmp_path).read_bytes()
    path = tmp_path / FILE
    if kind == "none":
        path.unlink()
    elif kind == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "no archive":
        path.write_bytes(b"nothing")
    elif kind == "an array is missing":
        np.savez(path, label=np.zeros(3), predicted=np.zeros(3), nll=np.zeros(3))
    else:
        np.savez(path, label=np.zeros(3), predicted=np.zeros(2), confidence=np.zeros(3), nll=np.zeros(3))
    with pytest.raises(UserError, match=rf"{FILE}.*\S"):
        read_predictions(tmp_path)
