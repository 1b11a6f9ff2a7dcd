"""Export of a classifier as a program that does not need this package: ONNX or ``torch.export``."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jtln.errors import UserError
from jtln.inference.classifier import Classifier


def to_torch(classifier: Classifier) -> torch.export.ExportedProgram:
    """Export with ``torch.export``, for any number of images.

    Raises:
        UserError: the network cannot be traced, or its probabilities are not finite.
    """
    side, channels = classifier.reader.size, classifier.reader.channels
    example = torch.full((2, channels, side, side), 128, dtype=torch.uint8)
    with torch.no_grad():
        if not bool(classifier(example).isfinite().all()):
            raise UserError(
                "expected finite probabilities of a grey image, but got others: the network's weights are too large, "
                "because its training diverged; train it again with a lower learning rate"
            )
    try:
        with torch.no_grad():
            return torch.export.export(classifier, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"expected a network that torch.export can trace, but got: {reason}") from error


def to_onnx(classifier: Classifier, path: Path) -> None:
    """Write the classifier as ONNX, with its classes in the file's metadata.

    Raises:
        UserError: onnxscript is not installed, or the network has an operation that ONNX lacks.
    """
    if find_spec("onnxscript") is None:
        raise UserError(
            "expected the package onnxscript for --format onnx, but it is not installed: pip install 'jtln[onnx]', or "
            "pip install onnxscript; --format torch needs no package"
        )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                to_torch(_without_adaptive_maxima(classifier)),
                dynamo=True,
                input_names=["images"],
                output_names=["probabilities"],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise UserError(
                f"expected a network whose operations ONNX supports, but got: {reason}. Use --format torch, which has "
                "no such limit"
            ) from error
    assert program is not None
    program.model.metadata_props["classes"] = json.dumps(classifier.classes)
    program.save(str(path))


def _without_adaptive_maxima(classifier: Classifier) -> Classifier:
    """Return an equal classifier without adaptive max pooling, for which ONNX has no operator."""
    found = [name for name, module in classifier.named_modules() if isinstance(module, nn.AdaptiveMaxPool2d)]
    if not found:
        return classifier
    classifier = copy.deepcopy(classifier)
    for name in found:
        size: Any = classifier.get_submodule(name).output_size
        rows, columns = (size, size) if isinstance(size, int) else size
        classifier.set_submodule(name, _MaximaOfParts(rows, columns))
    return classifier


class _MaximaOfParts(nn.Module):
    """``nn.AdaptiveMaxPool2d``: the maximum of each of ``rows`` x ``columns`` parts, which may overlap."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        down, right = (_parts(n, k) for n, k in zip(x.shape[-2:], (self.rows, self.columns), strict=True))
        maxima = [x[..., top:bottom, left:end].amax((-2, -1)) for top, bottom in down for left, end in right]
        return torch.stack(maxima, -1).unflatten(-1, (self.rows, self.columns))


def _parts(length: int, count: int) -> list[tuple[int, int]]:
    """Return start and end of each of ``count`` parts of ``length`` pixels, as in PyTorch's adaptive pooling."""
    return [(k * length // count, -(-(k + 1) * length // count)) for k in range(count)]
