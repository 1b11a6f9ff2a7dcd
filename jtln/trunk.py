"""The shared trunk: images (B, 3, H, W) -> features (B, D)."""

from __future__ import annotations

import difflib
import hashlib
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from jtln.errors import UserError, unknown

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL_MEAN, SMALL_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SMALLEST_FULL = 64  # pixels: under this, torchvision's AlexNet has pooled everything away before its last layers


class Trunk(nn.Module):
    """A network without its classifier, held with the channels last in memory, which is quicker.

    Attributes:
        name: what it is, for people and for caches.
        dim: D, the number of features.
        mean, std: how it wants its images (in [0, 1]) normalised, a value a channel.
        pretrained: whether it has weights that others trained; False where they are random.
    """

    pretrained: bool = False

    def __init__(self, body: nn.Module, name: str, dim: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body = body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.name, self.dim = name, dim
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)"""
        return self.body(images.contiguous(memory_format=torch.channels_last))


def alexnet(
    image_size: int,
    weights: str = "auto",
    width: float = 0.25,
    dropout: float | None = None,
    batch_norm: bool = False,
) -> Trunk:
    """AlexNet up to its second fully connected layer ("fc7", after ReLU).

    From 64 pixels on it is torchvision's, D = 4096. Below, where that one's strides leave nothing of the image, it is
    the small form: the same five convolutions and two fully connected layers, the first convolution 5 x 5 at stride 1,
    every layer ``width`` times as wide, D = 4096 * width.

    Args:
        image_size: height and width of the images, in pixels.
        weights: "auto" (ImageNet's for torchvision's form, none for the small one), "imagenet" (torchvision's newest),
            a name of torchvision's ("IMAGENET1K_V1"), "none", or a file: a state dict of torchvision's AlexNet or of
            this trunk, or a checkpoint of a run.
        width: > 0; of the small form only.
        dropout: probability in [0, 1), before each fully connected layer; None is AlexNet's own 0.5, and 0.2 in the
            small form, which a few passes over a source set do not let overfit (notebooks/research_log.ipynb).
        batch_norm: of the small form only: whether a batch norm follows each convolution. It then learns more from as
            many steps, and conf/trunk/alexnet.yaml has it; what was trained before there was a choice has none.
    """
    if dropout is None:
        dropout = 0.5 if image_size >= SMALLEST_FULL else 0.2
    _check_trunk_options(image_size, dropout)
    if image_size >= SMALLEST_FULL:
        model = torchvision.models.alexnet(dropout=dropout)
        model.classifier[6] = nn.Identity()
        trunk = Trunk(model, "alexnet", 4096, IMAGENET_MEAN, IMAGENET_STD)
    else:
        if not width > 0:
            raise UserError(f"expected trunk.width > 0, but got {width}")
        body = _SmallAlexNet(width, dropout, batch_norm)
        name = f"alexnet-small-{width:g}{'-bn' if batch_norm else ''}"
        trunk = Trunk(body, name, body.dim, SMALL_MEAN, SMALL_STD)
    return _with_weights(trunk, weights, "alexnet" if image_size >= SMALLEST_FULL else None)


def from_torchvision(image_size: int, name: str = "resnet50", weights: str = "auto") -> Trunk:
    """Any of torchvision's classification networks without its last linear layer.

    Args:
        image_size: height and width of the images, in pixels.
        name: as ``torchvision.models.list_models()`` spells it.
        weights: see :func:`alexnet`; "auto" is ImageNet's.

    Raises:
        UserError: torchvision has no such classification network, it has no linear layer (squeezenet), or it cannot
            take images of this size (inception_v3 below 75 pixels).
    """
    _check_trunk_options(image_size, 0.0)
    choices = torchvision.models.list_models(module=torchvision.models)
    if name not in choices:
        near = difflib.get_close_matches(name.lower(), choices, n=5, cutoff=0.4)
        raise UserError(
            f"unknown torchvision network '{name}': expected one of torchvision.models.list_models() that classifies "
            f"images, such as {', '.join(near or ['resnet18', 'resnet50', 'convnext_tiny'])}"
        )
    # Without their auxiliary classifiers these two return features alone, in training too.
    options = (
        {"aux_logits": False, "init_weights": True, "transform_input": is_fetched(weights)}
        if name in ("googlenet", "inception_v3")
        else {}
    )
    model = torchvision.models.get_model(name, weights=None, **options)
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise UserError(f"expected a network that ends in a linear layer, but got '{name}', which has none")
    last_name, last = linear[-1]
    parent, _, leaf = last_name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    trunk = Trunk(model, name, last.in_features, IMAGENET_MEAN, IMAGENET_STD)
    _check_size(trunk, image_size)
    return _with_weights(trunk, weights, name)


class _SmallAlexNet(nn.Module):
    def __init__(self, width: float, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (max(1, round(channels * width)) for channels in (64, 192, 384, 256, 256))
        self.dim = max(1, round(4096 * width))

        def convolution(inputs: int, outputs: int, size: int) -> list[nn.Module]:
            norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
            return [nn.Conv2d(inputs, outputs, size, padding=size // 2), *norm, nn.ReLU(inplace=True)]

        self.features = nn.Sequential(
            *convolution(3, c1, 5), nn.MaxPool2d(2),
            *convolution(c1, c2, 5), nn.MaxPool2d(2),
            *convolution(c2, c3, 3),
            *convolution(c3, c4, 3),
            *convolution(c4, c5, 3),
            nn.AdaptiveMaxPool2d(3),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(c5 * 9, self.dim), nn.ReLU(inplace=True),
            nn.Dropout(dropout), nn.Linear(self.dim, self.dim), nn.ReLU(inplace=True),
        )  # fmt: skip
        for layer in self.modules():  # the default initialisation is too small for seven ReLU layers from scratch
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def weights_digest(weights: str) -> str:
    """What the weights setting stands for, for a cache's key: a file's content, or the setting itself."""
    path = Path(weights).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else weights


def is_fetched(weights: str) -> bool:
    """Whether ``weights`` stands for torchvision's, which are fetched: "auto", "imagenet", or a name such as
    "IMAGENET1K_V1"."""
    return weights in ("auto", "imagenet") or weights.startswith("IMAGENET1K_")


def _check_trunk_options(image_size: int, dropout: float) -> None:
    if image_size < 8:
        raise UserError(f"expected images of at least 8 pixels, but got image_size={image_size}")
    if not 0 <= dropout < 1:
        raise UserError(f"expected trunk.dropout in [0, 1), but got {dropout}")


def _check_size(trunk: Trunk, image_size: int) -> None:
    """Whether the network takes images of this size: some pool small ones away, some take only their own."""
    try:
        with torch.no_grad():
            trunk.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{trunk.name} cannot take images of {image_size} pixels ({reason}): set dataset.image_size to the size "
            "that it was made for, mostly 224"
        ) from error
    trunk.train()


def _with_weights(trunk: Trunk, weights: str, torchvision_name: str | None) -> Trunk:
    """Load what ``weights`` names; ``torchvision_name`` is None where torchvision has no weights for this form."""
    if weights == "auto":
        weights = "none" if torchvision_name is None else "imagenet"
    if weights == "none":
        return trunk
    if not is_fetched(weights):
        state = _read_weights(Path(weights).expanduser())
    elif torchvision_name is None:
        raise UserError(
            f"expected trunk.weights=none or a file for {trunk.name}, but got {weights}: there are ImageNet weights "
            f"only for images of {SMALLEST_FULL} pixels and more (dataset.image_size)"
        )
    else:
        state = _fetch_imagenet(torchvision_name, "DEFAULT" if weights == "imagenet" else weights)
    _load(trunk, state, weights)
    trunk.pretrained = True
    return trunk


def _fetch_imagenet(name: str, which: str) -> dict[str, Any]:
    there = torchvision.models.get_model_weights(name).__members__
    if which not in there:
        raise unknown(f"weights of {name} for trunk.weights", which, ["imagenet", *there])
    try:
        return there[which].get_state_dict(check_hash=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"the ImageNet weights of {name} could not be fetched ({error}): give a file with trunk.weights=FILE, "
            "start from a random trunk with trunk.weights=none, or train it on the source set first with "
            "trunk.weights=none pretrain=source"
        ) from error


def _read_weights(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"expected trunk.weights to be auto, imagenet, none or a file, but there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"expected a PyTorch state dict or checkpoint in {path}, but it cannot be read: {error}"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"expected a PyTorch state dict or checkpoint in {path}, but got {type(state).__name__}")
    return state


def _load(trunk: Trunk, state: dict[str, Tensor], origin: str) -> None:
    """Load a run's ``trunk.body.*``, this trunk's ``body.*`` or the bare network's names; a classifier is left out."""
    for prefix in ("trunk.body.", "body."):
        if any(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
            break
    wanted = trunk.body.state_dict()
    missing = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    if missing:
        raise UserError(
            f"expected the weights of {trunk.name} in {origin}, but {len(missing)} of its {len(wanted)} tensors are "
            f"not there or have another shape, '{missing[0]}' among them: choose the trunk that the file was made with"
        )
    trunk.body.load_state_dict({key: state[key] for key in wanted})
