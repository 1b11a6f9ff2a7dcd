"""Against torchvision's own networks, with random weights in files: nothing is downloaded."""

import copy
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from jtln.errors import UserError
from jtln.trunks.alexnet import SMALL_MEAN, alexnet
from jtln.trunks.base import IMAGENET_MEAN, Trunk
from jtln.trunks.torchvision import from_torchvision
from jtln.trunks.weights import weights_digest


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.alexnet(num_classes=10).eval()


@pytest.fixture(scope="module")
def whole_file(whole: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "alexnet.pt"
    torch.save(whole.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def small() -> Trunk:
    torch.manual_seed(1)
    return alexnet(28, width=0.125).eval()


def fails_to_fetch(*_: Any, **__: Any) -> None:
    raise urllib.error.URLError("no network")


@pytest.mark.parametrize("size", [64, 224])
def test_alexnet_is_torchvisions_up_to_fc7(size: int, whole: nn.Module, whole_file: Path) -> None:
    trunk = alexnet(size, weights=str(whole_file)).eval()
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        features = trunk(images)
        assert features.shape == (2, trunk.dim) == (2, 4096)
        torch.testing.assert_close(whole.classifier[6](features), whole(images))  # type: ignore[operator, index]
    assert (trunk.name, trunk.mean) == ("alexnet", IMAGENET_MEAN)


@pytest.mark.parametrize("size", [8, 28, 32, 63])
@pytest.mark.parametrize(("width", "dim", "batch_norm"), [(0.125, 512, False), (0.01, 41, False), (0.125, 512, True)])
def test_small_alexnet(size: int, width: float, dim: int, batch_norm: bool) -> None:
    trunk = alexnet(size, width=width, batch_norm=batch_norm).eval()  # "auto" weights are none here
    features = trunk(torch.rand(2, 3, size, size))
    assert features.shape == (2, trunk.dim) == (2, dim)
    assert trunk.mean == SMALL_MEAN
    assert [layer.out_channels for layer in trunk.modules() if isinstance(layer, nn.Conv2d)] == [
        max(1, round(width * channels)) for channels in (64, 192, 384, 256, 256)
    ]


def test_small_alexnet_keeps_the_signals_size_through_its_layers() -> None:
    """Features of random weights are neither vanishing nor exploding, so that it trains from scratch."""
    torch.manual_seed(0)
    images = torch.randn(16, 3, 28, 28)
    features = alexnet(28, width=0.25).eval()(images).detach()
    assert 0.2 < float(features.square().mean().sqrt()) < 5


@pytest.mark.parametrize("size", [32, 64])
def test_channels_lie_last_in_memory_and_change_nothing_but_rounding(size: int) -> None:
    trunk = alexnet(size, weights="none", width=0.125).eval()
    kernels = [layer.weight for layer in trunk.modules() if isinstance(layer, nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    images = torch.rand(3, 3, size, size)
    body = copy.deepcopy(trunk.body).to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(trunk(images), body(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "own"), [(28, 0.2), (64, 0.5)])
def test_dropout_is_passed_on(size: int, own: float) -> None:
    for given, expected in ((0.3, 0.3), (0.0, 0.0), (None, own)):
        with torch.device("meta"):  # its weights do not matter
            trunk = alexnet(size, weights="none", width=0.05, dropout=given)
        assert {layer.p for layer in trunk.modules() if isinstance(layer, nn.Dropout)} == {expected}


def test_batch_norms_come_between_convolutions_and_their_relus() -> None:
    """A network with batch norms and one without are the same function if every norm is the identity."""
    plain, normed = alexnet(28, width=0.125), alexnet(28, width=0.125, batch_norm=True)
    assert normed.name == plain.name + "-bn"
    kinds = [type(layer) for layer in normed.body.features]  # type: ignore[union-attr]
    after = [kinds[i + 1 : i + 3] for i, kind in enumerate(kinds) if kind is nn.Conv2d]
    assert after == [[nn.BatchNorm2d, nn.ReLU]] * 5
    layers = [layer for layer in normed.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    theirs = [layer for layer in plain.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for ours, other in zip(layers, theirs, strict=True):
        ours.load_state_dict(other.state_dict())
    images = torch.rand(3, 3, 28, 28)
    torch.testing.assert_close(normed.eval()(images), plain.eval()(images), rtol=1e-3, atol=1e-4)


def test_weights_with_batch_norms_are_not_taken_for_others(tmp_path: Path) -> None:
    file = tmp_path / "bn.pt"
    torch.save(alexnet(28, width=0.125, batch_norm=True).state_dict(), file)
    with pytest.raises(UserError, match=r"alexnet-small-0\.125.*bn\.pt"):
        alexnet(28, weights=str(file), width=0.125)


@pytest.mark.parametrize("form", ["body", "trunk", "checkpoint", "checkpoint with hyper-parameters"])
def test_reads_weights_in_every_form(form: str, small: Trunk, tmp_path: Path) -> None:
    body = small.body.state_dict()
    run = {f"trunk.body.{name}": value for name, value in body.items()} | {"source_head.weight": torch.zeros(3, 512)}
    content: dict[str, Any] = {
        "body": body,
        "trunk": small.state_dict(),
        "checkpoint": {"state_dict": run},
        "checkpoint with hyper-parameters": {"state_dict": run, "epoch": 3, "hyper_parameters": {"lr": 0.1}},
    }
    file = tmp_path / "weights.ckpt"
    torch.save(content[form], file)
    trunk = alexnet(28, weights=str(file), width=0.125)
    assert trunk.state_dict().keys() == small.state_dict().keys()
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, small.state_dict()[name])


def test_wrong_files(small: Trunk, whole_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights.*auto, imagenet, none.*nowhere\.pt"):
        alexnet(28, weights=str(tmp_path / "nowhere.pt"))
    text = tmp_path / "text.pt"
    text.write_text("not weights")
    with pytest.raises(UserError, match=r"text\.pt.*cannot be read"):
        alexnet(28, weights=str(text))
    for number, content in enumerate(([1, 2], {"epoch": 3})):
        file = tmp_path / f"{number}.pt"
        torch.save(content, file)
        with pytest.raises(UserError, match=rf"{number}\.pt"):
            alexnet(28, weights=str(file))
    with pytest.raises(UserError, match=r"alexnet-small-0\.125.*alexnet\.pt"):
        alexnet(28, weights=str(whole_file), width=0.125)  # another architecture
    file = tmp_path / "small.pt"
    torch.save(small.state_dict(), file)
    with pytest.raises(UserError, match=r"alexnet-small-0\.25.*small\.pt.*shape"):
        alexnet(28, weights=str(file), width=0.25)


@pytest.mark.parametrize("weights", ["imagenet", "auto"])
def test_imagenet_weights_without_a_network_name_the_ways_out(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fails_to_fetch, raising=False)
    for build in (lambda: alexnet(64, weights), lambda: from_torchvision(64, "resnet18", weights)):
        with pytest.raises(UserError) as caught:
            build()
        message = str(caught.value)
        for part in ("no network", "trunk.weights=FILE", "trunk.weights=none", "pretrain=source"):
            assert part in message


def test_imagenet_weights_are_loaded_without_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: state, raising=False)
    trunk = from_torchvision(64, "resnet18", "imagenet")
    assert torch.equal(trunk.body.state_dict()["conv1.weight"], state["conv1.weight"])


def test_weights_by_torchvisions_name(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    whole = torchvision.models.resnet18(weights=None)
    fetched = []
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **_: fetched.append(self) or whole.state_dict())
    trunk = from_torchvision(64, "resnet18", "IMAGENET1K_V1")
    assert fetched == [weights]
    assert trunk.pretrained
    assert not from_torchvision(64, "resnet18", "none").pretrained
    assert torch.equal(trunk.body.conv1.weight, whole.conv1.weight)  # type: ignore[union-attr,arg-type]
    with pytest.raises(UserError, match=r"resnet18.*weights 'IMAGENET1K_V7'.*'IMAGENET1K_V1'"):
        from_torchvision(64, "resnet18", "IMAGENET1K_V7")


def test_there_are_no_imagenet_weights_for_the_small_form() -> None:
    with pytest.raises(UserError, match=r"weights=none.*imagenet.*64 pixels.*image_size"):
        alexnet(28, weights="imagenet")


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("mobilenet_v3_small", 1024), ("googlenet", 1024)])
def test_any_torchvision_network(name: str, dim: int) -> None:
    trunk = from_torchvision(64, name, "none").train()  # googlenet returns its auxiliary outputs in training
    assert trunk(torch.rand(2, 3, 64, 64)).shape == (2, trunk.dim) == (2, dim)
    assert trunk.name == name


@pytest.mark.parametrize(("name", "near"), [("resnet19", "resnet18"), ("ResNet18", "resnet18"), ("zzz", "resnet50")])
def test_an_unknown_network_gets_a_short_list(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"'{name}'.*{near}") as caught:
        from_torchvision(64, name, "none")
    assert len(str(caught.value)) < 250


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"linear layer.*'squeezenet1_0'"):
        from_torchvision(64, "squeezenet1_0", "none")
    with pytest.raises(UserError, match=r"8 pixels.*image_size=4"):
        alexnet(4)
    with pytest.raises(UserError, match=r"dropout in \[0, 1\).*got 1"):
        alexnet(28, dropout=1.0)
    with pytest.raises(UserError, match=r"width > 0.*got 0"):
        alexnet(28, width=0.0)


def test_weights_digest_follows_the_files_content(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    assert weights_digest("imagenet") == "imagenet"
    file.write_bytes(b"one")
    one = weights_digest(str(file))
    file.write_bytes(b"two")
    assert weights_digest(str(file)) != one


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(small: Trunk) -> None:
    images = torch.rand(4, 3, 28, 28)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):  # whose TF32 has three digits
        expected = small(images)
        features = small.cuda()(images.cuda()).cpu()
    small.cpu()
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)
