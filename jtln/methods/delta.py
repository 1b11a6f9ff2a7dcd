"""DELTA: keep the feature maps that matter to the target as the pre-trained trunk has them.

Li et al., "DELTA: Deep Learning Transfer using Feature Map with Attention for Convolutional Networks", arXiv 1901.09229
(2019). Formula, attention and defaults are those of the authors' code (github.com/lixingjian/DELTA, train.py and
channel_eval.py, which thuml's Transfer-Learning-Library follows); the paper was not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jtln.data.features import Features
from jtln.errors import UserError
from jtln.methods.attention import attention, channel_importance, convolution, last_convolutions
from jtln.methods.base import FrozenCopy, Network, Penalty, TargetBatch, check_weights


class DELTA(Penalty):
    """alpha / 2 sum_l sum_c C_l a_lc |FM_lc(x) - FM0_lc(x)|^2 / (H_l W_l) + beta / 2 |v|^2, a mean over images x.

    FM_l are the feature maps (C_l, H_l, W_l) that layer l puts out, FM0_l those of the pre-trained trunk, v the target
    head's weights and biases, and a_l the attention, which sums to 1 over the channels: how much worse a linear
    classifier on the pre-trained features does on the target's training images without that channel.

    Takes the place of the optimizer's weight decay, as it does in the authors' code.

    Args:
        alpha: >= 0. The authors sum over a batch of 64 images with alpha = 0.01; that is a mean with 0.64.
        beta: >= 0.
        layers: names of the trunk's convolutions whose maps are held, such as body.layer4.2.conv3; None takes
            :func:`last_convolutions`, which for torchvision's ResNet-50 and -101 are the authors' own.
        attention_images: target images that the attention is read off; 0 attends to all channels alike. The authors'
            four batches of 32. Each channel of each layer takes a pass of these images through what follows it.
    """

    needs_trunk = True
    replaces_weight_decay = True

    def __init__(
        self,
        alpha: float = 0.64,
        beta: float = 0.01,
        layers: Sequence[str] | None = None,
        attention_images: int = 128,
    ) -> None:
        super().__init__()
        check_weights(alpha=alpha, beta=beta)
        if not isinstance(attention_images, int) or attention_images < 0:
            raise UserError(f"expected attention_images to be a whole number >= 0, but got {attention_images!r}")
        if not isinstance(layers, str | Sequence | None):
            raise UserError(f"expected layers to be names of layers or null, but got {layers!r}")
        self.alpha, self.beta = alpha, beta
        self.layers = [layers] if isinstance(layers, str) else layers
        self.attention_images = attention_images
        self._maps: dict[str, Tensor] = {}

    def setup(self, network: Network) -> None:
        self.pretrained = FrozenCopy(network.trunk)
        self.names = tuple(self.layers or last_convolutions(network.trunk))
        for index, name in enumerate(self.names):
            layer = convolution(network.trunk, name)
            layer.register_forward_hook(partial(self._keep, name))
            convolution(self.pretrained.trunk, name).register_forward_hook(partial(self._keep, f"pretrained.{name}"))
            self.register_buffer(f"attention_{index}", torch.zeros(layer.out_channels))

    def on_fit_start(self, network: Network, features: Features) -> None:
        self.pretrained.take(network.trunk)
        if not self.attention_images:
            for each in self._attention():
                each.fill_(1 / len(each))
            return
        importance = channel_importance(network, features, self.names, self.attention_images)
        for each, values in zip(self._attention(), importance, strict=True):
            each.copy_(attention(values))

    def forward(self, network: Network, batch: TargetBatch) -> Tensor:
        self.pretrained(batch.images)
        distance = batch.features.new_zeros((), dtype=torch.float32)
        for name, weights in zip(self.names, self._attention(), strict=True):
            ours = self._maps.pop(name)[-len(batch.labels) :]  # of a pass that may begin with source images
            moved = (ours.float() - self._maps.pop(f"pretrained.{name}").float()).square()  # (B, C, H, W)
            per_channel = moved.flatten(2).mean(2)  # (B, C)
            distance = distance + (len(weights) * weights * per_channel).sum(1).mean()
        head = torch.stack([v.square().sum() for v in network.target_head.parameters()]).sum()
        return self.alpha / 2 * distance + self.beta / 2 * head

    def _attention(self) -> list[Tensor]:
        return [getattr(self, f"attention_{index}") for index in range(len(self.names))]

    def _keep(self, name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        if name.startswith("pretrained.") or (layer.training and torch.is_grad_enabled()):
            self._maps[name] = output.clone()  # an in-place ReLU after it would overwrite it

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, beta={self.beta:g}"
