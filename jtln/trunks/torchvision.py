"""Any of torchvision's classification networks as a trunk."""

from __future__ import annotations

import difflib

import torchvision
from torch import nn

from jtln.errors import UserError
from jtln.trunks.base import IMAGENET_MEAN, IMAGENET_STD, Trunk, check_image_size, check_takes
from jtln.trunks.weights import is_fetched, with_weights


def from_torchvision(image_size: int, name: str = "resnet50", weights: str = "auto", match: str = "name") -> Trunk:
    """Return any of torchvision's classification networks without its last linear layer.

    Args:
        image_size: height and width of the images, in pixels.
        name: from ``torchvision.models.list_models()``.
        weights: see :func:`alexnet`; "auto": ImageNet's.
        match: see :func:`jtln.trunks.weights.load_weights`.

    Raises:
        UserError: torchvision has no such classification network, it has no linear layer (squeezenet), or it cannot
            take images of this size (inception_v3 below 75 pixels).
    """
    check_image_size(image_size)
    choices = torchvision.models.list_models(module=torchvision.models)
    if name not in choices:
        near = difflib.get_close_matches(name.lower(), choices, n=5, cutoff=0.4)
        raise UserError(
            f"unknown torchvision network '{name}': expected one of torchvision.models.list_models() that classifies "
            f"images, such as {', '.join(near or ['resnet18', 'resnet50', 'convnext_tiny'])}"
        )
    # Without their auxiliary classifiers these two return only features, also in training.
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
    check_takes(trunk, image_size)
    return with_weights(trunk, weights, name, match)
