"""timm's networks against timm itself, and the weights that a package carries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

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


def by_jax(model: nn.Module, heads: int) -> dict[str, np.ndarray]:
    """The weights of a ViT with the names and shapes of its authors' .npz files."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    dim = state["cls_token"].shape[2]
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for index in range(sum(name.endswith("attn.qkv.weight") for name in state)):
        there, here = f"Transformer/encoderblock_{index}", f"blocks.{index}"
        attention = f"{there}/MultiHeadDotProductAttention_1"
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * dim, (part + 1) * dim)
            arrays[f"{attention}/{name}/kernel"] = state[f"{here}.attn.qkv.weight"][rows].T.reshape(dim, heads, -1)
            arrays[f"{attention}/{name}/bias"] = state[f"{here}.attn.qkv.bias"][rows].reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = state[f"{here}.attn.proj.weight"].T.reshape(heads, -1, dim)
        arrays[f"{attention}/out/bias"] = state[f"{here}.attn.proj.bias"]
        for part in (0, 1):
            arrays[f"{there}/MlpBlock_3/Dense_{part}/kernel"] = state[f"{here}.mlp.fc{part + 1}.weight"].T
            arrays[f"{there}/MlpBlock_3/Dense_{part}/bias"] = state[f"{here}.mlp.fc{part + 1}.bias"]
        for theirs, ours in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            arrays[f"{there}/{theirs}/scale"] = state[f"{here}.{ours}.weight"]
            arrays[f"{there}/{theirs}/bias"] = state[f"{here}.{ours}.bias"]
    return arrays


def test_npz_files_of_vits_with_their_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=7, img_size=32)
    np.savez(tmp_path / "augreg.npz", **by_jax(model, heads=3))
    trunk = from_timm(32, "vit_tiny_patch16_224", str(tmp_path / "augreg.npz")).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    classifier = model.get_classifier()
    assert trunk.published is not None
    assert torch.equal(trunk.published.weight, classifier.weight)
    assert torch.equal(trunk.published.bias, classifier.bias)
    model.reset_classifier(0)
    with torch.no_grad():
        expected = model.eval().to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        assert float((trunk(images) - expected).abs().max()) == 0.0
    (tmp_path / "cut.npz").write_bytes((tmp_path / "augreg.npz").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut\.npz"):
        from_timm(32, "vit_tiny_patch16_224", str(tmp_path / "cut.npz"))


@pytest.mark.slow
def test_weights_for_another_image_size_are_what_timm_makes_of_them(tmp_path: Path) -> None:
    """The teacher of a DINO checkpoint, whose position embedding is of another size."""
    torch.manual_seed(0)
    large = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=64)
    with torch.no_grad():
        large.pos_embed.normal_()
    state = large.state_dict()
    teacher = {f"module.backbone.{name}": value for name, value in state.items()}
    torch.save({"teacher": teacher | {"module.head.mlp.0.weight": torch.ones(8, 192)}}, tmp_path / "dino.pth")
    trunk = from_timm(32, "vit_tiny_patch16_224", str(tmp_path / "dino.pth")).eval()
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=32)
    model.load_state_dict(checkpoint_filter_fn(dict(state), model))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.eval().to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        assert float((trunk(images) - expected).abs().max()) == 0.0


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
