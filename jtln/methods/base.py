"""The interface of a baseline's penalty: a term of the objective that reads the target's batch."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from jtln.data.features import Features
from jtln.errors import UserError
from jtln.trunks.base import Trunk


class TargetBatch(NamedTuple):
    """The target's images of a training step: the last rows of what went through the trunk."""

    images: Tensor  # (B, 3, H, W), augmented and normalised
    labels: Tensor  # (B,)
    features: Tensor  # (B, D)


class Network(Protocol):
    """The part of the network that a penalty reads."""

    @property
    def trunk(self) -> Trunk:
        """The network from images (B, 3, H, W) to features (B, D)."""

    @property
    def source_head(self) -> nn.Linear:
        """The classifier of the source classes, (B, D) -> (B, S)."""

    @property
    def target_head(self) -> Any:
        """The classifier of the target classes, (B, D) -> (B, T)."""


class Penalty(nn.Module):
    """A term that a baseline adds to the objective, its weights among its own settings.

    A subclass implements :meth:`forward`. It makes room for what it keeps of the pre-trained network in :meth:`setup`
    and reads it in :meth:`on_fit_start`; in buffers or frozen modules it is saved with the network, and a resumed run
    does not read it again.

    Attributes:
        needs_source_head: whether it reads and trains the pre-trained source head, on target images.
        needs_trunk: whether it does nothing where the trunk stays as it is.
        replaces_weight_decay: whether the optimizer is to decay no weight, because the penalty says where to.
    """

    needs_source_head: bool = False
    needs_trunk: bool = False
    replaces_weight_decay: bool = False

    def setup(self, network: Network) -> None:
        """Make room, when the network is built and no weights are loaded yet."""

    def on_fit_start(self, network: Network, features: Features) -> None:
        """Read the pre-trained network before the first step, without gradients.

        Args:
            network: the pre-trained network.
            features: of the pair's images under the network's trunk in evaluation mode.
        """

    def forward(self, network: Network, batch: TargetBatch) -> Tensor:
        """Return the scalar to add to the loss. Where processes share a batch, their mean is what one would have."""
        raise NotImplementedError


class FrozenCopy(nn.Module):
    """A copy of a trunk that stays as it is: without gradients, and in evaluation mode always."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(trunk).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenCopy:
        return super().train(False)

    def take(self, trunk: Trunk) -> None:
        """Copy the weights of the trunk as it is now."""
        self.trunk.load_state_dict(trunk.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        """Return the features: (B, 3, H, W) -> (B, D)."""
        with torch.no_grad():
            return self.trunk(images)


def check_weights(**weights: float) -> None:
    """Raise a UserError where a weight is negative or no number."""
    for name, value in weights.items():
        if not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise UserError(f"expected a number {name} >= 0, but got {value!r}")
