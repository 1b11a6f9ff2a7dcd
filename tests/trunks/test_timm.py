"""timm's networks against timm itself, and the weights that a package carries."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from jtln.errors import UserError
from jtln.trunks.timm import efficientnet_lite, from_timm, lite_file

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto", "tf_efficientnet_lite0"])
def test_features_are_timms_own(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=7)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    size = 224 if name.startswith("vit") else 64
    trunk = from_timm(size, name, str(tmp_path / "weights.pth")).eval()
    model.reset_classifier(0)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = trunk(images)
        expected = model.eval().to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert float((features - expected).abs().max()) == 0.0
    assert features.shape == (2, trunk.dim)
    assert (trunk.mean, trunk.std) == (tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"]))
    assert trunk.pretrained


def test_a_network_that_is_built_for_a_size_is_built_for_this_one() -> None:
    assert from_timm(96, "vit_tiny_patch16_224", "none")(torch.zeros(1, 3, 96, 96)).shape == (1, 192)


def test_lite0_is_the_published_classifier() -> None:
    """Its features are timm's to the last bit, and under the published last layer give timm's logits."""
    state = torch.load(lite_file("efficientnet_lite0"), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    trunk = efficientnet_lite(128).eval()
    assert (trunk.dim, trunk.pretrained, trunk.name) == (1280, True, "efficientnet_lite0")
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = trunk(images)
        images = images.to(memory_format=torch.channels_last)
        expected = model.eval().to(memory_format=torch.channels_last).forward_features(images)
        assert float((features - model.forward_head(expected, pre_logits=True)).abs().max()) == 0.0
        logits = torch.nn.functional.linear(features, state["_fc.weight"], state["_fc.bias"])
        torch.testing.assert_close(logits, model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_timm(64, "resnet5O", "none"), "resnet50"),
        (lambda: efficientnet_lite(64, "efficientnet_lite7"), "efficientnet_lite0"),
        (lambda: from_timm(64, "resnet10t", "missing.pth"), r"missing\.pth"),
        (lambda: from_timm(64, "resnet10t", "missing.npz"), r"missing\.npz"),
    ],
)
def test_mistakes(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]
