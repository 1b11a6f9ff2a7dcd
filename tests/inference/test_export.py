"""Exported networks compared with the classifier that they were made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jtln.errors import UserError
from jtln.heads import Cosine, Head, Linear
from jtln.inference import Classifier, load
from jtln.inference.export import _MaximaOfParts, to_onnx, to_torch


@pytest.fixture(params=[Linear(), Cosine()], ids=lambda head: head.name)
def classifier(request: pytest.FixtureRequest, write: Callable[..., Any]) -> Classifier:
    """With each kind of head, over ten views of each image."""
    head: Head = request.param
    fitted = head.classifier(write().trunk.dim, 4)
    for value in fitted.state_dict().values():
        value.uniform_(0.1, 1)
    return load(write(head=head, fitted=fitted, views="ten_crop").path)


def images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


@pytest.mark.slow
@torch.no_grad()
def test_the_program_of_torch_does_the_same(classifier: Classifier) -> None:
    program = to_torch(classifier).module()
    for count in (1, 5):
        torch.testing.assert_close(program(images(count)), classifier(images(count)))


@pytest.mark.slow
def test_onnx_does_the_same(classifier: Classifier, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    to_onnx(classifier, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(classifier.classes)
    for count in (1, 5):
        (found,) = session.run(["probabilities"], {"images": images(count).numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), classifier(images(count)), rtol=1e-4, atol=1e-5)
    assert any(isinstance(module, nn.AdaptiveMaxPool2d) for module in classifier.modules())  # it stays as it was


@pytest.mark.parametrize(("height", "width", "size"), [(7, 8, 3), (4, 9, (3, 2)), (2, 3, 4)])
def test_maxima_of_parts_are_adaptive_pooling(height: int, width: int, size: int | tuple[int, int]) -> None:
    x = torch.randn(2, 3, height, width)
    rows, columns = (size, size) if isinstance(size, int) else size
    assert torch.equal(_MaximaOfParts(rows, columns)(x), nn.AdaptiveMaxPool2d(size)(x))


@pytest.mark.slow
def test_a_network_that_cannot_be_traced(write: Callable[..., Any]) -> None:
    class Untraceable(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features * float(features.sum())

    classifier = load(write().path)
    classifier.head = nn.Sequential(Untraceable(), classifier.head)
    with pytest.raises(UserError, match=r"that torch\.export can trace, but got: "):
        to_torch(classifier)


def test_a_network_that_overflows_is_not_written(write: Callable[..., Any]) -> None:
    classifier = load(write().path)
    for parameter in classifier.parameters():
        parameter.data.mul_(1e30)
    with pytest.raises(UserError, match=r"finite probabilities.*learning rate"):
        to_torch(classifier)


def test_without_onnxscript(write: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jtln.inference.export.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnxscript.*pip install 'jtln\[onnx\]'.*--format torch"):
        to_onnx(load(write().path), tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()
