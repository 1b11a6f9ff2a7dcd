"""What a head is: how the target classifier is formed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]  # features (B, D), labels (B,)


class FeatureSource(Protocol):
    """What a head is fitted to: :class:`jtln.data.features.Features`, or iterables of your own in this form."""

    def of(self, side: str, part: str = "train", at_most: int | None = None) -> Iterable[Batch]:
        """Features (B, D) and labels (B,), this process's share of them, each image once.

        Args:
            side: "source" or "target".
            part: "train" (of the target: the labelled images) or "val".
            at_most: about how many images, evenly spread over the part; None: all.
        """


class HeadFit(NamedTuple):
    """The outcome of a fit."""

    classifier: nn.Module  # (B, D) -> logits (B, T)
    chosen: dict[str, float]  # what was chosen and how well it does, for result.json


class Head(ABC):
    """A way to form the target classifier once the network is trained.

    A subclass is one file here, or in your own code, and one YAML file in ``conf/head``.

    Attributes:
        name: what results are filed under.
        uses_cost: whether it reads the plan between the classes.
        replaces: whether :meth:`fit` takes the place of the linear head that was trained.
    """

    name: str
    uses_cost: bool = False
    replaces: bool = True

    @abstractmethod
    def classifier(self, dim: int, classes: int) -> nn.Module:
        """Return an empty classifier (B, dim) -> (B, classes), whose state dict a checkpoint fills."""

    @abstractmethod
    def fit(self, trained: nn.Linear, features: FeatureSource, plan: Tensor | None, sizes: tuple[int, int]) -> HeadFit:
        """Form the classifier; in several processes each of them calls this and gets the same.

        Args:
            trained: the linear head after training, D -> T.
            features: of the trained trunk.
            plan: (S, T) between the classes, columns of positive mass; None where no cost relates them.
            sizes: S and T.
        """

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments, by which a checkpoint makes the head again."""
        return dict(vars(self))
