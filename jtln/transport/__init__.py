"""Entropic optimal transport under one shared cost matrix: the solver, its plans, and the loss."""

from jtln.transport.free import label_transport, prior_divergence, soft_labels
from jtln.transport.loss import TransportLoss, TransportSettings
from jtln.transport.plans import PlanSummary, class_plan, plan_summary, transport_plan
from jtln.transport.prior import TransportedPrior, relation
from jtln.transport.sinkhorn import SinkhornResult, check_cost, check_epsilon, check_limits, sinkhorn

__all__ = [
    "PlanSummary",
    "SinkhornResult",
    "TransportLoss",
    "TransportSettings",
    "TransportedPrior",
    "check_cost",
    "check_epsilon",
    "check_limits",
    "class_plan",
    "label_transport",
    "plan_summary",
    "prior_divergence",
    "relation",
    "sinkhorn",
    "soft_labels",
    "transport_plan",
]
