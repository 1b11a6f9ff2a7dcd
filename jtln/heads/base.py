"""The interface of a head, which forms the target classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from jtln.errors import UserError

AUTO = "auto"

Batch = tuple[Tensor, Tensor]  # features (B, D), labels (B,)
SourcePlan = Callable[[Tensor, Tensor], Tensor]  # indices of source classes (A,) and (B,) -> plan between them (A, B)


class FeatureSource(Protocol):
    """The features for a head's fit: :class:`jtln.data.features.Features`, or your own iterables."""

    def of(self, side: str, part: str = "train", at_most: int | None = None) -> Iterable[Batch]:
        """Return features (B, D) and labels (B,), this process's share of them, each image once; empty without images.

        Args:
            side: "source" or "target".
            part: "train" (of the target: the labelled images) or "val".
            at_most: approximate number of images, evenly spread over the part; None: all.
        """


class HeadInputs(NamedTuple):
    """The inputs of a head's fit."""

    features: FeatureSource  # of the trained trunk
    sizes: tuple[int, int]  # S and T
    plan: Tensor | None = None  # (S, T) between the classes, columns of positive mass; None: no cost relates them
    prior: Callable[[Tensor], Tensor] | None = None  # alpha log q, (B, D) -> (B, T); None: there is no prior
    source_plan: SourcePlan | None = None  # between source classes; None: no cost relates them


class HeadFit(NamedTuple):
    """The outcome of a fit."""

    classifier: nn.Module  # (B, D) -> logits (B, T), without the prior
    chosen: dict[str, float]  # chosen settings and their scores, for result.json
    temperature: float = 1.0  # divisor of the logits, already applied to the classifier, to be applied to the prior


@dataclass(frozen=True)
class Head(ABC):
    """A way to form the target classifier once the network is trained.

    A subclass is one file here, or in your own code, and one YAML file in ``conf/head``.

    Attributes:
        prior: alpha >= 0, the weight of the transported prior log q(x) in the target logits
            (:mod:`jtln.transport.prior`); 0 leaves it out; "auto" chooses it by the likelihood of the labelled images.

    Class attributes:
        name: the head's name in results.
        reads_plan: whether it reads the plan between the classes.
        reads_source: whether it reads source images.
        replaces: whether :meth:`fit` replaces the trained linear head.

    Raises:
        UserError: ``prior`` is none of these.
    """

    prior: float | str = 0.0

    name = ""
    reads_plan = False
    reads_source = False
    replaces = True

    def __post_init__(self) -> None:
        if self.prior != AUTO and not (isinstance(self.prior, int | float) and 0 <= self.prior < float("inf")):
            raise UserError(f"expected a number prior >= 0, or auto, but got {self.prior!r}")

    @property
    def uses_cost(self) -> bool:
        """True if the head reads the cost between the classes."""
        return self.reads_plan or self.prior != 0

    @abstractmethod
    def classifier(self, dim: int, classes: int) -> nn.Module:
        """Return an empty classifier (B, dim) -> (B, classes), whose state dict a checkpoint fills."""

    @abstractmethod
    def fit(self, trained: nn.Linear, given: HeadInputs) -> HeadFit:
        """Form the classifier; all processes call this and get the same result.

        Args:
            trained: the linear head after training, D -> T.
            given: the features, and the plans and the prior of the classes.
        """

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments, with which the head of a checkpoint is made again."""
        return asdict(self)
