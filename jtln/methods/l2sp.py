"""L2-SP: stay near the pre-trained weights.

Li, Grandvalet & Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", arXiv 1802.01483
(2018). Formula and defaults are those of the authors' code (github.com/holyseven/TransferLearningClassification:
model/network_base.py, mode 1, and run_classification/run_exp.py); the paper was not read.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from jtln.data.features import Features
from jtln.methods.base import FrozenCopy, Network, Penalty, TargetBatch, check_weights


class L2SP(Penalty):
    """alpha / 2 |w - w0|^2 over the trunk's weights, w0 the pre-trained ones, + beta / 2 |v|^2 over the target head's.

    Takes the place of the optimizer's weight decay, as it does in the authors' code.

    Args:
        alpha: >= 0.
        beta: >= 0.
        biases: whether biases, and the scales and shifts of normalisations, are held, too. The authors' default is the
            weights alone (mode 1); their mode 101 and thuml's Transfer-Learning-Library hold everything.
    """

    needs_trunk = True
    replaces_weight_decay = True

    def __init__(self, alpha: float = 0.01, beta: float = 0.01, biases: bool = False) -> None:
        super().__init__()
        check_weights(alpha=alpha, beta=beta)
        self.alpha, self.beta, self.biases = alpha, beta, biases

    def setup(self, network: Network) -> None:
        self.pretrained = FrozenCopy(network.trunk)

    def on_fit_start(self, network: Network, features: Features) -> None:
        self.pretrained.take(network.trunk)

    def forward(self, network: Network, batch: TargetBatch) -> Tensor:
        pairs = zip(self._held(network.trunk), self._held(self.pretrained.trunk), strict=True)
        moved = torch.stack([(w - w0).square().sum() for w, w0 in pairs]).sum()
        head = torch.stack([v.square().sum() for v in self._held(network.target_head)]).sum()
        return self.alpha / 2 * moved + self.beta / 2 * head

    def _held(self, module: nn.Module) -> Iterator[Tensor]:
        return (w for w in module.parameters() if self.biases or w.dim() > 1)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, beta={self.beta:g}"
