"""The test predictions of a run, image by image: ``predictions.npz``.

The file holds four arrays of length N, for the N target test images in the order of ``pair.target.test``, which is
that of the test rows of ``split.csv``:

    label       int32    the image's class, an index into the target classes
    predicted   int32    the class of the largest probability
    confidence  float32  that probability, in (0, 1]
    nll         float32  -log of the label's probability, in nats: in [0, 87.34], the log of float32's smallest normal
                         number, so that means stay finite

The probabilities are those that the run's metrics are computed from: of the head that is tested, after the softmax,
their mean over the views where the test looks at several. So ``(label == predicted).mean()`` is the accuracy in
``result.json``. ``numpy.load`` reads the file without pickle.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jtln.errors import UserError
from jtln.storage import replacing

FILE = "predictions.npz"


class Predictions(NamedTuple):
    """The predictions for N images, in their order."""

    label: NDArray[np.int32]  # (N,)
    predicted: NDArray[np.int32]  # (N,)
    confidence: NDArray[np.float32]  # (N,)
    nll: NDArray[np.float32]  # (N,) in nats

    @property
    def right(self) -> NDArray[np.bool_]:
        """True where the predicted class is right, (N,)."""
        return self.predicted == self.label


class Correctness(NamedTuple):
    """The test images of a run, and whether its predictions are right, in one order."""

    label: NDArray[np.int32]  # (N,)
    right: NDArray[np.bool_]  # (N,)


def predicted_of(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is kept of a batch.

    Args:
        probabilities: (B, T), rows that sum to 1.
        labels: (B,) in [0, T).

    Returns:
        Labels and predicted classes (B, 2) int64; confidences and negative log-likelihoods (B, 2) float32.
    """
    rounded = probabilities.float().clamp(torch.finfo(torch.float32).tiny, 1.0)  # a mean over views may exceed 1
    confidence, predicted = rounded.max(1)
    nll = -rounded.gather(1, labels[:, None])[:, 0].log()
    return torch.stack([labels, predicted], 1), torch.stack([confidence, nll], 1)


def write_predictions(predictions: Predictions, folder: Path) -> Path:
    """Write ``predictions.npz`` into a run's folder, whole or not at all, and return its path."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **predictions._asdict())
    with replacing(folder / FILE) as file:
        file.write(buffer.getbuffer())
    return folder / FILE


def read_predictions(folder: Path) -> Predictions:
    """Read the test predictions of a run's folder.

    Raises:
        UserError: there is no such file, or it does not hold the four arrays, of one length.
    """
    path = folder / FILE
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = Predictions(*(arrays[name] for name in Predictions._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"expected the test predictions of a run in {path}, but it cannot be read: {error}") from error
    if any(each.shape != (len(found.label),) for each in found):
        shapes = ", ".join(f"{name} {each.shape}" for name, each in found._asdict().items())
        raise UserError(f"expected four arrays of one length in {path}, but got {shapes}")
    return found
