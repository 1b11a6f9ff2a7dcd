"""Transport with a free source marginal, in closed form: what is left of the problem where s(x) is detached.

Let the rows of R be soft labels, R_i = softmax(-C_i / eps), and q = R' a. Of all plans g that end at b, whatever
their source marginal is, the nearest to diag(a) R has

    min over g with g' 1 = b of KL(g || diag(a) R)  =  KL(b || q),        g_ij = a_i R_ij b_j / q_j,

which is a lower bound of entropic transport with the source marginal a (up to terms in a alone). Its gradient in b is
log(b / q) + 1. b is a true label (:func:`label_transport`, a term of the objective), or the target head's prediction
(:func:`prior_divergence`, for programs of your own). The paper's objective constrains the source head, whose gradient
this form does not give: that is :func:`jtln.transport.sinkhorn`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


@torch.no_grad()
def soft_labels(cost: Tensor, epsilon: float) -> Tensor:
    """Return the target head's soft label for each source class, softmax(-C_i / eps), (S, T)."""
    return torch.softmax(cost / -epsilon, dim=1)


def log_prior(probabilities: Tensor, rows: Tensor) -> Tensor:
    """Return log q(x), the log of s(x) R, (B, T), at least log 1e-30.

    Args:
        probabilities: s(x), (B, S).
        rows: R (S, T) >= 0, each row of sum 1.
    """
    return (probabilities @ rows).clamp_min(1e-30).log()


def label_transport(source_logits: Tensor, labels: Tensor, cost: Tensor, epsilon: float) -> Tensor:
    """Return the transport of the source head's predictions s(x) to true labels, in units of epsilon.

    It is the mean of -log q(x)_y, q = R' s(x), R_i = softmax(-C_i / eps).

    Of all plans g of mass 1 that end at class y, at the price <g, C> + eps * KL(g 1 || s(x)), the second part for a
    source marginal other than s(x) (unbalanced transport, without entropy), the cheapest costs
    -eps log sum_i s_i(x) exp(-C_iy / eps). Here, where a row's constant counts, every row of the cost has the one at
    which exp(-C_i / eps) is a soft label, of sum 1. Which class the source head takes the image for stays free among
    those that the cost brings near to the label; under a constant cost there is nothing to learn. The form is that of
    forward loss correction (Patrini et al. 2017).

    Args:
        source_logits: (B, S) of target images.
        labels: (B,) their target classes.
        cost: (S, T).
        epsilon: > 0, in the cost's units.

    Returns:
        A scalar >= 0, in nats; log T for a constant cost.
    """
    to_label = log_softmax(cost / -epsilon, dim=1)[:, labels].t()  # (B, S)
    return -(log_softmax(source_logits.float(), dim=1) + to_label).logsumexp(1).mean()


def prior_divergence(source_logits: Tensor, target_logits: Tensor, rows: Tensor) -> Tensor:
    """Return the divergence KL(t(x) || q(x)) of the target head's predictions from the transported prior.

    It bounds the transport loss from below, in units of epsilon and up to terms in s(x) alone, and needs no iteration.
    s(x) is detached.

    Args:
        source_logits: (B, S).
        target_logits: (B, T).
        rows: R (S, T) >= 0, each row of sum 1.

    Returns:
        A scalar >= 0, the mean over the batch, in nats.
    """
    log_t = log_softmax(target_logits.float(), dim=1)
    log_q = log_prior(source_logits.detach().float().softmax(1), rows)
    return (log_t.exp() * (log_t - log_q)).sum(1).mean()
