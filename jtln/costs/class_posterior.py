"""The class posterior p(source class | target class) under a trained source head, and the head's temperature.

It is Co-Tuning's in its direct form, as its authors' Transfer-Learning-Library has it (thuml, commit c4aa59e,
tllib/regularization/co_tuning.py); the paper (You et al., 2020) was not read.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from jtln.distributed import Batch, class_sums


def source_given_target(logits: Iterable[Batch], classes: int) -> Tensor:
    """Return p(source class | target class), the source head's mean probabilities on each target class's images.

    Args:
        logits: batches of the source head's logits (B, S) on target images and their target labels (B,), this
            process's share of them.
        classes: T.

    Returns:
        (T, S) float32, rows sum to 1; the row of a class without an image is 1/S.
    """
    sums, counts = class_sums(((batch.float().softmax(1), labels) for batch, labels in logits), classes)
    means = sums / counts.clamp_min(1)[:, None]  # (T, S)
    return torch.where(counts[:, None] > 0, means, 1 / sums.shape[1])
