"""DELTA's attention: which channels of the pre-trained trunk matter to the target, and which layers are looked at.

The recipe is that of the authors' code (github.com/lixingjian/DELTA, channel_eval.py, and the softmax in train.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jtln.data.features import Features
from jtln.distributed import all_reduce_sum, gather_in_order, process
from jtln.errors import UserError
from jtln.methods.base import Network
from jtln.trunks.base import Trunk

EPOCHS, BATCH, RATE, MOMENTUM, DECAY, TENFOLD = 10, 32, 0.01, 0.9, 1e-4, 6  # of the classifier; rate / 10 in 6 epochs


def last_convolutions(trunk: Trunk, number: int = 4) -> tuple[str, ...]:
    """Return the names of the last convolution of each of the trunk's last ``number`` blocks.

    A block is a child that holds a convolution, of the outermost module that has several such children: the layers of
    AlexNet's and VGG's ``features``, ResNet's ``layer1`` to ``layer4``.

    Raises:
        UserError: the trunk has no convolution.
    """
    prefix = ""
    blocks: list[tuple[str, nn.Module]] = [("", trunk)]
    while len(blocks) == 1 and not isinstance(blocks[0][1], nn.Conv2d):
        name, parent = blocks[0]
        prefix += f"{name}." if name else ""
        blocks = [(name, child) for name, child in parent.named_children() if _convolutions(child)]
    if not blocks:
        raise UserError(
            f"method=delta compares feature maps, but {trunk.name} has no convolution: choose another trunk or method"
        )
    return tuple(
        f"{prefix}{name}.{inner}".rstrip(".") for name, block in blocks[-number:] for inner in _convolutions(block)[-1:]
    )


def _convolutions(module: nn.Module) -> list[str]:
    return [name for name, each in module.named_modules() if isinstance(each, nn.Conv2d)]


def convolution(trunk: Trunk, name: str) -> nn.Conv2d:
    """Return the convolution of that name; a UserError where there is none."""
    layer = dict(trunk.named_modules()).get(name)
    if not isinstance(layer, nn.Conv2d):
        names = _convolutions(trunk)
        raise UserError(
            f"expected names of {trunk.name}'s convolutions in layers, such as "
            f"{', '.join(names[-4:]) or '(it has none)'}, but got '{name}'"
        )
    return layer


def attention(importance: Tensor) -> Tensor:
    """Return softmax over the channels of a fifth of the standardised importance: (C,) -> (C,)."""
    spread = importance.std(correction=0).clamp_min(1e-12)  # of channels that are all alike
    return torch.softmax((importance - importance.mean()) / spread / 5, 0)


def channel_importance(network: Network, features: Features, layers: Sequence[str], images: int) -> list[Tensor]:
    """Return the growth of the target's cross-entropy without a channel, (C,) for each of ``layers``.

    A linear classifier is trained on the features of the target's training images; then each channel's map is set to
    zero in turn. (The authors set the filter to zero, which is the same where it has no bias.)

    Args:
        network: the pre-trained network.
        features: of the pair's images under the network's trunk.
        layers: names of convolutions of the trunk.
        images: of how many training images, at most, spread over all of them.
    """
    rows, labels = (torch.cat(parts) for parts in zip(*features.of("target"), strict=True))
    everyone = gather_in_order(rows)
    classify = train_classifier(everyone, gather_in_order(labels), network.target_head.out_features)
    chosen = _spread(features.images_of("target"), every=-(-len(everyone) // images))
    convolutions = [convolution(network.trunk, name) for name in layers]
    growth = [rows.new_zeros(layer.out_channels, dtype=torch.float64) for layer in convolutions]
    count = rows.new_zeros((), dtype=torch.float64)
    for x, y in chosen:
        loss = cross_entropy(classify(network.trunk(x)), y, reduction="sum")
        for values, layer in zip(growth, convolutions, strict=True):
            with _channel_by_channel(network.trunk, layer, x) as without:
                for channel in range(len(values)):
                    values[channel] += cross_entropy(classify(without(channel)), y, reduction="sum") - loss
        count += len(y)
    all_reduce_sum(count)
    return [(all_reduce_sum(values) / count).float() for values in growth]


def _spread(batches: Iterator[tuple[Tensor, Tensor]], every: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One image in ``every`` of those that all processes hold together, in batches of 32 at most."""
    rank, processes = process()
    before = 0
    for images, labels in batches:
        position = rank + processes * torch.arange(before, before + len(labels), device=labels.device)
        for chosen in (position % every == 0).nonzero()[:, 0].split(BATCH):
            if len(chosen):
                yield images[chosen], labels[chosen]
        before += len(labels)


@contextmanager
def _channel_by_channel(trunk: Trunk, layer: nn.Module, images: Tensor) -> Iterator[Callable[[int], Tensor]]:
    """Give a function from a channel of ``layer`` to the features (B, D) of ``images`` with the channel's map at zero.

    The outputs of the modules before ``layer`` are kept, so that only the modules after it are computed anew.
    """
    calls: list[tuple[nn.Module, Tensor]] = []  # of the modules without children, in the order in which they end

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls.append((module, output.clone()))  # before an in-place ReLU

    leaves = [module for module in trunk.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(keep) for module in leaves]
    trunk(images)
    for hook in hooks:
        hook.remove()
    called = [module for module, _ in calls]
    before = called.index(layer)
    again = {module: output for module, output in calls[:before] if called.count(module) == 1}
    whole, off = calls[before][1], torch.zeros(1, dtype=torch.int64, device=images.device)

    def without(channel: int) -> Tensor:
        off.fill_(channel)
        return trunk(images)

    try:
        for module, output in again.items():
            module.forward = lambda *_, output=output: output.clone()  # type: ignore[method-assign, assignment, misc]
        layer.forward = lambda *_: whole.index_fill(1, off, 0.0)  # type: ignore[method-assign, assignment]
        yield without
    finally:
        for module in (*again, layer):
            vars(module).pop("forward", None)  # the class's own again


def train_classifier(features: Tensor, labels: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """Train a linear classifier by stochastic gradient descent.

    Features (N, D) and labels (N,) give a function (B, D) -> (B, C).

    The weights start from zeros and batches are drawn from a stream of their own, so that the classifier is the same in
    every process.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        weight = features.new_zeros(classes, features.shape[1], requires_grad=True)
        bias = features.new_zeros(classes, requires_grad=True)
        optimizer = torch.optim.SGD([weight, bias], lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / TENFOLD))
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(labels), generator=generator).to(labels.device).split(BATCH):
                optimizer.zero_grad()
                logits = nn.functional.linear(features[chosen], weight, bias)
                cross_entropy(logits, labels[chosen]).backward()
                optimizer.step()
            schedule.step()
    return partial(nn.functional.linear, weight=weight.detach(), bias=bias.detach())
