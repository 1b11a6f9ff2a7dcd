"""The transport of the source head's prediction to a target image's true label."""

from __future__ import annotations

from torch import Tensor

from jtln.errors import UserError
from jtln.losses import label_surprise
from jtln.methods.base import Network, Penalty, Seen, check_weights


class LabelTransport(Penalty):
    """weight * -log p(y_t | s(x_t), C): the source classifier is constrained by the target's labels.

    p is what the source head's prediction on a target image says of the target class under the transport's cost, as
    the cost is at this step (:func:`jtln.losses.label_surprise`). For which source class a target image is taken stays
    free among those that the cost brings near to its label; a constant cost leaves nothing to learn. Co-Tuning's source
    head is taught what it said of a target class itself before training, this one what the cost says of it. Ours.

    Args:
        weight: >= 0.
    """

    reads_cost = True

    def __init__(self, weight: float = 0.3) -> None:
        super().__init__()
        check_weights(weight=weight)
        self.weight = weight

    def prepare(self, network: Network) -> None:
        if network.transport is None:
            raise UserError("expected a transport loss, whose cost the penalty reads, but got none")

    def forward(self, network: Network, seen: Seen) -> Tensor:
        transport = network.transport
        assert transport is not None
        logits = network.source_head(seen.features)  # (B, S)
        return self.weight * label_surprise(logits, seen.labels, transport.cost, transport.epsilon)

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}"
