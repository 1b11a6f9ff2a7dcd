"""AlexNet, in torchvision's form and in a small one for small images."""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

from jtln.errors import UserError
from jtln.trunks.base import IMAGENET_MEAN, IMAGENET_STD, Trunk, check_image_size
from jtln.trunks.weights import with_weights

SMALL_MEAN, SMALL_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SMALLEST_FULL = 64  # pixels: below this the strides of torchvision's AlexNet leave no feature map


def alexnet(
    image_size: int,
    weights: str = "auto",
    width: float = 0.25,
    dropout: float | None = None,
    batch_norm: bool = False,
    match: str = "name",
) -> Trunk:
    """Return AlexNet up to its second fully connected layer ("fc7", after ReLU).

    From 64 pixels on it is torchvision's network with D = 4096. Smaller images have the small form: the same five
    convolutions and two fully connected layers, with a first convolution of 5 x 5 at stride 1 and ``width`` times the
    channels, D = 4096 * width.

    Args:
        image_size: height and width of the images, in pixels.
        weights: "auto" (ImageNet's for torchvision's form, none for the small one), "imagenet" (torchvision's newest),
            a torchvision name ("IMAGENET1K_V1"), "none", or a file: a state dict of torchvision's AlexNet or of this
            trunk, or a checkpoint of a run.
        width: > 0; of the small form only.
        dropout: probability in [0, 1), before each fully connected layer; None: AlexNet's 0.5, and 0.2 in the small
            form, which does not overfit in a few passes over a source set (notebooks/research_log.ipynb).
        batch_norm: of the small form only: whether a batch norm follows each convolution, which speeds up learning;
            conf/trunk/alexnet.yaml sets it.
        match: see :func:`jtln.trunks.weights.load_weights`.
    """
    if dropout is None:
        dropout = 0.5 if image_size >= SMALLEST_FULL else 0.2
    check_image_size(image_size)
    if not 0 <= dropout < 1:
        raise UserError(f"expected trunk.dropout in [0, 1), but got {dropout}")
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
    return with_weights(trunk, weights, "alexnet" if image_size >= SMALLEST_FULL else None, match)


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
        for layer in self.modules():  # PyTorch's default initialisation is too small for seven ReLU layers.
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))
