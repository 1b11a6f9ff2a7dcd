"""BSS, batch spectral shrinkage: let go of the directions in which the features hardly vary.

Chen, Wang, Fu, Long & Wang, "Catastrophic Forgetting Meets Negative Transfer", NeurIPS 2019. Formula and defaults are
those of the authors' code (github.com/thuml/Batch-Spectral-Shrinkage, BSS.py, and thuml's Transfer-Learning-Library,
tllib/regularization/bss.py, the same); the paper was not read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jtln.distributed import all_gather, process
from jtln.errors import UserError
from jtln.methods.base import Network, Penalty, TargetBatch, check_weights


class BSS(Penalty):
    """eta times the sum of the k smallest squared singular values of the batch's feature matrix (B, D).

    The batch is the target's, over all processes together.

    Args:
        eta: >= 0.
        k: >= 1, how many singular values; at most min(B, D).
    """

    needs_trunk = True

    def __init__(self, eta: float = 0.001, k: int = 1) -> None:
        super().__init__()
        check_weights(eta=eta)
        if not isinstance(k, int) or k < 1:
            raise UserError(f"expected k to be a whole number >= 1, but got {k!r}")
        self.eta, self.k = eta, k

    def forward(self, network: Network, batch: TargetBatch) -> Tensor:
        features = _of_all_processes(batch.features.float())  # (B, D)
        if self.k > min(features.shape):
            raise UserError(
                f"expected k of at most {min(features.shape)}, the singular values of "
                f"{features.shape[0]} target images with {features.shape[1]} features, but got {self.k}"
            )
        singular = torch.linalg.svdvals(features)  # (min(B, D),), descending
        return self.eta * singular[-self.k :].square().sum()

    def extra_repr(self) -> str:
        return f"eta={self.eta:g}, k={self.k}"


def _of_all_processes(own: Tensor) -> Tensor:
    """Return the rows of all processes; the gradient reaches this process's own.

    The gradient is multiplied by the number of processes, because the strategy then takes the mean over processes.
    """
    rank, processes = process()
    if processes == 1:
        return own
    parts = all_gather(own)
    parts[rank] = own + (processes - 1) * (own - own.detach())
    return torch.cat(parts)
