"""The objective's settings: which terms there are, and how they are weighted."""

from __future__ import annotations

from dataclasses import dataclass, field

from jtln.errors import UserError, unknown
from jtln.methods.base import Penalty
from jtln.schedules import Constant, Schedule
from jtln.transport.loss import GRADIENTS

IMAGES = {"source": ("source",), "target": ("target",), "both": ("source", "target")}
UNITS = ("1/epsilon", "1")
STARTS = ("random", "logistic")


@dataclass(frozen=True)
class Method:
    """The objective during training, and nothing else. The keys of ``conf/method``.

    A term of weight zero is not built, and its images are not read.

    Args:
        name: what results are filed under.
        lambda_target: >= 0, weight of the target's cross-entropy.
        lambda_source: >= 0, weight of the source's cross-entropy.
        lambda_ot: >= 0, weight of the transport loss between the two heads' predictions.
        lambda_label: >= 0, weight of the transport from the source head's predictions to the target labels.
        keep: >= 0, weight of the divergence of the source head's predictions on target images from those before
            training (:mod:`jtln.methods.keep`), which takes the place of the source's cross-entropy.
        lambda_ot_unit: "1/epsilon" multiplies ``lambda_ot`` by 1/epsilon, so that the soft labels of the transport loss
            weigh the same at every epsilon; "1" takes ``lambda_ot`` as it is.
        ot_images: whose images the transport loss reads: "source", "target" or "both".
        gradient: which head's predictions the transport loss changes: "both", "source" or "target".
        ot_schedule: factor of ``lambda_ot`` over training.
        penalty: a baseline's own term, with its weight in its own settings.
        start_from: where the target head starts: at "random" weights, or at the "logistic" regression on the labelled
            images' features before training, the prior in place. Linear probing before fine-tuning is LP-FT's (Kumar et
            al., arXiv 2202.10054, 2022; the paper was not read).

    Raises:
        UserError: a weight is negative, or a choice is unknown.
    """

    name: str = "jtln"
    lambda_target: float = 1.0
    lambda_source: float = 0.0
    lambda_ot: float = 0.0
    lambda_label: float = 0.0
    keep: float = 0.0
    lambda_ot_unit: str = "1/epsilon"
    ot_images: str = "source"
    gradient: str = "both"
    ot_schedule: Schedule = field(default_factory=Constant)
    penalty: Penalty | None = None
    start_from: str = "random"

    def __post_init__(self) -> None:
        for key in ("lambda_target", "lambda_source", "lambda_ot", "lambda_label", "keep"):
            value = getattr(self, key)
            if not (isinstance(value, int | float) and 0 <= value < float("inf")):
                raise UserError(f"expected a number {key} >= 0, but got {value!r}")
        kinds = {"lambda_ot_unit": UNITS, "ot_images": tuple(IMAGES), "gradient": GRADIENTS, "start_from": STARTS}
        for key, choices in kinds.items():
            if getattr(self, key) not in choices:
                raise unknown(key, getattr(self, key), choices)

    @property
    def uses_transport(self) -> bool:
        """True if a term compares the two heads under the cost."""
        return self.lambda_ot > 0 or self.lambda_label > 0

    @property
    def has_terms(self) -> bool:
        """True if the objective has a term, so that there is something to train."""
        weights = self.lambda_target, self.lambda_source, self.keep
        return any(weights) or self.uses_transport or self.penalty is not None

    @property
    def keeps_source(self) -> bool:
        """True if a term holds the source head to its task, so that other terms may train it."""
        return self.lambda_source > 0 or self.keep > 0

    def ot_weight(self, epsilon: float) -> float:
        """Return the transport loss's weight before its schedule."""
        return self.lambda_ot * (1.0 / epsilon if self.lambda_ot_unit == "1/epsilon" else 1.0)
