"""The transported prior: the target distribution implied by the source classifier and the cost.

    q(x) = R' s(x),        target logits(x) = classifier(f) + alpha log q(x)

s(x) are the source head's probabilities. R (S, T) relates the classes: each row is a distribution over the target
classes. R holds the rows of the balanced plan between the classes, which keeps the cost of one pair relative to others,
or the soft labels softmax(-C_i / eps). With the rows of R as soft labels, entropic transport is bounded from below by
the divergence of the target prediction from q,

    min over g in Pi(a, b) of KL(g || diag(a) R)  >=  KL(b || R' a),

with equality where the source marginal is free. Reading a label through the source head is a LEEP score (Nguyen et al.
2020); -log q(x)_y is :func:`jtln.transport.label_transport` under the cost C' = -eps log R.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jtln.errors import UserError, unknown
from jtln.transport.loss import ROWS, soft_labels
from jtln.transport.plans import class_plan

FLOOR = 1e-8  # the least share of a source class that a target class has: log q stays finite


@torch.no_grad()
def relation(cost: Tensor, epsilon: float, rows: str = "plan", unknown_targets: Sequence[int] = ()) -> Tensor:
    """Return R, the share of each source class that goes to each target class, none of them below 1e-8.

    Arguments and errors are those of :func:`shares`.
    """
    found = shares(cost, epsilon, rows, unknown_targets).clamp_min(FLOOR)
    return found / found.sum(1, keepdim=True)


@torch.no_grad()
def shares(cost: Tensor, epsilon: float, rows: str = "plan", unknown_targets: Sequence[int] = ()) -> Tensor:
    """Return the share of each source class that goes to each target class.

    Args:
        cost: (S, T).
        epsilon: > 0, in the cost's units.
        rows: "plan", the rows of the balanced plan between the classes; or "softmax", softmax(-C_i / epsilon).
        unknown_targets: target classes that the cost knows nothing of. Each has 1/T of every row, and the others share
            the rest: in a balanced plan a neutral column would absorb the mass that is left over.

    Returns:
        (S, T) >= 0, each row of sum 1.

    Raises:
        UserError: ``rows`` is neither, or no target class is known.
    """
    if rows not in ROWS:
        raise unknown("rows", rows, ROWS)
    targets, unlinked = cost.shape[1], set(unknown_targets)
    known = [index for index in range(targets) if index not in unlinked]
    if not known:
        raise UserError(f"expected a target class that the cost knows, but it knows none of {targets}")
    inner = cost if len(known) == targets else cost[:, known]
    found = class_plan(inner, epsilon) if rows == "plan" else soft_labels(inner, epsilon)
    found = found / found.sum(1, keepdim=True)
    if len(known) == targets:
        return found
    every = found.new_full(tuple(cost.shape), 1 / targets)
    every[:, known] = found * (len(known) / targets)
    return every


class TransportedPrior(nn.Module):
    """alpha log q(x), which is added to the target logits.

    Args:
        rows: R (S, T), see :func:`relation`.
        alpha: >= 0, the weight; 0 leaves the prior out.
        temperature: > 0, of the source head's logits; a head that was trained with binary cross-entropies needs one.
        learns: whether the gradient reaches the source head.

    Raises:
        UserError: a number is out of range.
    """

    rows: Tensor
    alpha: Tensor
    temperature: Tensor

    def __init__(self, rows: Tensor, alpha: float = 0.5, temperature: float = 1.0, learns: bool = False) -> None:
        super().__init__()
        if not 0 <= alpha < float("inf"):
            raise UserError(f"expected a number alpha >= 0, but got {alpha}")
        if not 0 < temperature < float("inf"):
            raise UserError(f"expected a number temperature > 0, but got {temperature}")
        self.register_buffer("rows", rows.detach().clone().float())
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.learns = learns

    def log_q(self, source_logits: Tensor) -> Tensor:
        """Return log q(x), (B, T), of the source head's logits (B, S)."""
        return (self.source_probabilities(source_logits) @ self.rows).clamp_min(1e-30).log()

    def source_probabilities(self, source_logits: Tensor) -> Tensor:
        """Return s(x), (B, S), detached unless the source head learns."""
        logits = source_logits.float() if self.learns else source_logits.detach().float()
        return (logits / self.temperature).softmax(1)

    def forward(self, source_logits: Tensor) -> Tensor:
        """Return alpha log q (B, T) of source_logits (B, S)."""
        return self.alpha * self.log_q(source_logits)

    def extra_repr(self) -> str:
        return f"rows={tuple(self.rows.shape)}, alpha={float(self.alpha):g}"
