"""The transport loss: a cost matrix, called with both heads' logits, or with the source head's and true labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import log_softmax

from jtln.errors import UserError, unknown
from jtln.transport.free import label_transport
from jtln.transport.plans import plan_summary
from jtln.transport.sinkhorn import SinkhornResult, check_cost, check_epsilon, check_limits, sinkhorn

GRADIENTS = ("both", "source", "target")
ROWS = ("plan", "softmax")


@dataclass(frozen=True)
class TransportSettings:
    """The use of a cost by the transport loss and by the heads.

    Attributes:
        epsilon: > 0, in the cost's units: how soft the plans under the cost are.
        rows: what a source class's share of the target classes is in the prior: "plan", the rows of the balanced plan
            between the classes, or "softmax", softmax(-C_i / epsilon).
        temperature: > 0, of the source head's probabilities in the prior; above 1 they tell more of the classes that
            are not the most likely one.
        calibrate: whether the labelled images choose how sharp the plan is (:mod:`jtln.costs.calibration`, and
            :func:`jtln.transport.prior.fit_relation` for the prior).
        max_iterations: >= 1, of Sinkhorn.
        tolerance: >= 0, of Sinkhorn's marginal error.

    Raises:
        UserError: a value is out of range.
    """

    epsilon: float = 0.1
    calibrate: bool = True
    max_iterations: int = 200
    tolerance: float = 1e-4
    rows: str = "plan"
    temperature: float = 1.5

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        if self.rows not in ROWS:
            raise unknown("rows", self.rows, ROWS)
        check_limits(self.max_iterations, self.tolerance)
        if not (isinstance(self.temperature, int | float) and 0 < self.temperature < float("inf")):
            raise UserError(f"expected a number temperature > 0, but got {self.temperature!r}")
        if not isinstance(self.calibrate, bool):
            raise UserError(f"expected calibrate to be true or false, but got {self.calibrate!r}")


class TransportLoss(nn.Module):
    """Mean over a batch of OT_eps(s(x), t(x); C), s(x) and t(x) the two heads' predictions on the same image.

    Where the source head is sure of class i, the loss is eps * KL(t || softmax(-C_i / eps)) + constant: the target head
    is taught the soft label softmax(-C_i / eps), with weight eps. In a sum of losses a weight in units of 1/eps
    therefore means the same at every epsilon.

    Args:
        cost: (S, T) finite, >= 0; usually scaled to [0, 1]. A buffer: it moves with the module and is saved with it.
        epsilon: > 0; how soft the knowledge in the cost is. 0.1 of the cost's range is a start (ours, from validation
            on small images; nothing in the paper's abstract says it).
        gradient: whose predictions are not detached: "both" heads', or the "source" or the "target" head's alone.
        max_iterations: of Sinkhorn.
        tolerance: of Sinkhorn's marginal error; training does not need more than a few digits.

    Attributes:
        learns: the heads that the gradient reaches.
        last: the detached solution of the latest call, for logging; None before.

    Raises:
        UserError: (a ValueError) a bad cost, epsilon or gradient; logits whose shapes do not fit the cost.
    """

    cost: Tensor

    def __init__(
        self,
        cost: Tensor,
        epsilon: float = 0.1,
        *,
        gradient: str = "both",
        max_iterations: int = 200,
        tolerance: float = 1e-4,
    ) -> None:
        super().__init__()
        check_cost(cost)
        check_epsilon(epsilon)
        if gradient not in GRADIENTS:
            raise unknown("gradient", gradient, GRADIENTS)
        self.register_buffer("cost", cost.detach().clone().float())
        self.epsilon = float(epsilon)
        self.gradient = gradient
        self.learns = ("source", "target") if gradient == "both" else (gradient,)
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.last: SinkhornResult | None = None

    def set_cost(self, cost: Tensor) -> None:
        """Replace the cost matrix by another (S, T)."""
        if cost.shape != self.cost.shape:
            raise UserError(f"expected a cost of shape {tuple(self.cost.shape)}, but got {tuple(cost.shape)}")
        check_cost(cost)
        self.cost.copy_(cost.detach())

    def forward(self, source_logits: Tensor, target_logits: Tensor) -> Tensor:
        """source_logits (B, S), target_logits (B, T) -> scalar."""
        if self.gradient == "target":
            source_logits = source_logits.detach()
        if self.gradient == "source":
            target_logits = target_logits.detach()
        result = sinkhorn(
            log_softmax(source_logits.float(), dim=1),
            log_softmax(target_logits.float(), dim=1),
            self.cost,
            self.epsilon,
            max_iterations=self.max_iterations,
            tolerance=self.tolerance,
            check=False,  # the cost was looked at when it was set
        )
        self.last = result._replace(value=result.value.detach())
        return result.value.mean()

    def to_labels(self, source_logits: Tensor, labels: Tensor) -> Tensor:
        """Return :func:`label_transport` of the source head's predictions to true labels under this cost."""
        return label_transport(source_logits, labels, self.cost, self.epsilon)

    def readings(self) -> dict[str, Tensor | float]:
        """Return figures of the latest solution, for logging; none before the first solution."""
        if self.last is None:
            return {}
        return {
            "plan_entropy": plan_summary(self.last, self.cost, self.epsilon).entropy.mean(),
            "sinkhorn_iterations": float(self.last.iterations),
            "marginal_error": self.last.marginal_error.max(),
        }

    def extra_repr(self) -> str:
        return f"cost={tuple(self.cost.shape)}, epsilon={self.epsilon}, gradient={self.gradient}"
