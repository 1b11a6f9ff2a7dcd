"""Co-Tuning: the source head goes on learning, on target images, what they look like to it.

You, Kou, Long & Wang, "Co-Tuning for Transfer Learning", NeurIPS 2020. Loss, the relation in its direct form, and the
default weight are those of the authors' code (github.com/thuml/CoTuning, train.py, and thuml's
Transfer-Learning-Library, tllib/regularization/co_tuning.py); the paper was not read.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from jtln.costs.class_posterior import source_given_target
from jtln.data.features import Features
from jtln.methods.base import Network, Penalty, TargetBatch, check_weights
from jtln.temperature import temperature


class CoTuning(Penalty):
    """weight * CE(s(x_t), p(source class | target class y_t)), the relation p read off the pre-trained source head.

    p is the mean of the source head's probabilities over each target class's labelled training images, read once.
    (CoTuning's first code, not the Transfer-Learning-Library, learns p(target | source) by a logistic regression that
    it chooses and calibrates on the target's labelled validation images, and inverts it; in few-shot learning that
    would spend more labels on validation than on training.)

    The source head learns at the trunk's rate, as in the authors' code.

    Args:
        weight: >= 0.
        calibrate: whether the source head's probabilities are calibrated for the relation, by one temperature, on the
            source's validation images.
    """

    needs_source_head = True
    needs_trunk = True  # else only the source head changes
    relation: Tensor

    def __init__(self, weight: float = 2.3, calibrate: bool = False) -> None:
        super().__init__()
        check_weights(weight=weight)
        self.weight, self.calibrate = weight, calibrate
        self.register_buffer("relation", torch.zeros(0, 0))  # (T, S)

    def setup(self, network: Network) -> None:
        target, source = network.target_head.out_features, network.source_head.out_features
        self.relation = self.relation.new_zeros(target, source)

    def on_fit_start(self, network: Network, features: Features) -> None:
        head, tau = network.source_head, 1.0
        if self.calibrate:
            tau = temperature((head(x), labels) for x, labels in features.of("source", "val"))
        logits = ((head(x) / tau, labels) for x, labels in features.of("target"))
        self.relation = source_given_target(logits, len(self.relation))

    def forward(self, network: Network, batch: TargetBatch) -> Tensor:
        logits = network.source_head(batch.features).float()  # (B, S)
        return self.weight * cross_entropy(logits, self.relation[batch.labels])

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}" + (", calibrated" if self.calibrate else "")
