"""What every baseline's penalty is: a term of the objective that reads the target's batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from jtln.errors import UserError
from jtln.trunks.base import Trunk


class Seen(NamedTuple):
    """The target's images of a training step: the last rows of what went through the trunk."""

    images: Tensor  # (B, 3, H, W), augmented and normalised
    labels: Tensor  # (B,)
    features: Tensor  # (B, D)


class Network(Protocol):
    """What a penalty reads of the network that it is a part of."""

    @property
    def trunk(self) -> Trunk: ...

    @property
    def source_head(self) -> nn.Linear: ...

    @property
    def target_head(self) -> nn.Linear: ...

    def images_of(self, side: str, part: str = "train") -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the "source" or "target" images, each once: (B, 3, H, W), labels (B,)."""

    def features_of(self, side: str, part: str = "train") -> Iterator[tuple[Tensor, Tensor]]:
        """The same through the trunk: (B, D), labels (B,)."""


class Penalty(nn.Module):
    """A term that a baseline adds to the objective, its weights among its own settings.

    A subclass implements :meth:`forward`. What it has to know of the pre-trained network it makes room for in
    :meth:`prepare` and reads in :meth:`start`; kept in buffers or frozen modules, it is saved with the network, and a
    resumed run does not start again.

    Attributes:
        needs_source_head: whether it reads and trains the pre-trained source head, on target images.
        replaces_weight_decay: whether the optimizer is to decay no weight, because the penalty says where to.
        started: whether :meth:`start` has run; a buffer.
    """

    needs_source_head: bool = False
    replaces_weight_decay: bool = False
    started: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("started", torch.tensor(False))

    def prepare(self, network: Network) -> None:
        """When the network is built, before any weights are loaded: make room."""

    def start(self, network: Network) -> None:
        """At the pre-trained weights, before the first step, without gradients and with the trunk in eval mode."""

    def forward(self, network: Network, seen: Seen) -> Tensor:
        """The scalar to add to the loss. Where processes share a batch, their mean is what one would have."""
        raise NotImplementedError


class Frozen(nn.Module):
    """A copy of a trunk that stays as it is: it has no gradients, and is in eval mode always."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(trunk).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    def take(self, trunk: Trunk) -> None:
        """Become the trunk as it is now."""
        self.trunk.load_state_dict(trunk.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)"""
        with torch.no_grad():
            return self.trunk(images)


def check_weights(**weights: float) -> None:
    """Raise a UserError where a weight is negative or no number."""
    for name, value in weights.items():
        if not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise UserError(f"expected method.penalty.{name} to be a number >= 0, but got {value!r}")
