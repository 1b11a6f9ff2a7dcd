"""Learning without forgetting: the source head's predictions on target images stay near those before training.

Li & Hoiem, "Learning without Forgetting", arXiv 1606.09282 (2017). Loss, temperature and weight are those of the
authors' code (github.com/lizhitwo/LearningWithoutForgetting: vl_nnsoftmaxdiff.m in mode MI, snippets/PASCALkeeporig.m);
of the paper the abstract was read. The code has the cross-entropy; here it is the divergence, which is less by a
constant and begins at zero. The source head learns at the trunk's rate, like all pre-trained weights; that is ours.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from jtln.methods.base import FrozenCopy, TargetBatch
from jtln.trunks.base import Trunk

TEMPERATURE = 2.0  # distillation_temp in the authors' code


class Pretrained(nn.Module):
    """The source head's predictions as they were before training.

    Args:
        trunk: is copied, unless it stays as it is.
        source_head: is copied.
    """

    def __init__(self, trunk: Trunk, source_head: nn.Linear) -> None:
        super().__init__()
        self.trunk = None if trunk.frozen else FrozenCopy(trunk)
        self.head = copy.deepcopy(source_head).requires_grad_(False)

    def take(self, trunk: Trunk, source_head: nn.Linear) -> None:
        """Copy the weights of the network as it is now."""
        if self.trunk is not None:
            self.trunk.take(trunk)
        self.head.load_state_dict(source_head.state_dict())

    def forward(self, batch: TargetBatch) -> Tensor:
        """Return the source head's logits (B, S) on the batch, the copied trunk in evaluation mode."""
        with torch.no_grad():
            logits: Tensor = self.head(batch.features if self.trunk is None else self.trunk(batch.images))
        return logits


def kept(now: Tensor, before: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the mean of KL(softmax(z_0 / tau) || softmax(z / tau)), a scalar.

    Args:
        now: z, logits (B, S).
        before: z_0, likewise, without a gradient.
        temperature: tau > 0.
    """
    p, q = ((logits.float() / temperature).log_softmax(1) for logits in (before, now))
    return kl_div(q, p, reduction="batchmean", log_target=True)
