"""The logistic head: multinomial logistic regression on the trained features, fitted to convergence.

    min over W, b of  sum_n CE(W x_n + b + alpha log q(x_n), y_n) + |W|^2 / 2C + |b|^2 / 2

x is the feature vector at a fixed length, which lets one C serve every network. The problem is convex. W lies in the
span of the labelled images, so that it is solved in at most as many dimensions as there are images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from jtln.distributed import gather_in_order
from jtln.errors import UserError, unknown
from jtln.heads.base import FeatureSource, Head, HeadFit, HeadInputs
from jtln.temperature import fit_temperature

NORMALIZATIONS = ("each", "mean")


class NormalizedLinear(nn.Module):
    """A linear classifier on features of a fixed length: (B, D) -> (B, T).

    Args:
        dim, classes: D and T.
        length: > 0, of the features that it sees.
        power: in (0, 1], of every feature's size before that, the sign kept.
    """

    def __init__(self, dim: int, classes: int, length: float = 5.0, power: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, dim), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(classes), requires_grad=False)
        self.length, self.power = length, power

    def forward(self, features: Tensor) -> Tensor:
        return linear(at_length(features, self.length, self.power), self.weight, self.bias)


def at_length(features: Tensor, length: float, power: float = 1.0) -> Tensor:
    """Return features (B, D) of this length, each number first raised to ``power``, its sign kept."""
    return length * normalize(powered(features, power))


def powered(features: Tensor, power: float) -> Tensor:
    """Raise the size of every number to ``power``, its sign kept."""
    return features if power == 1 else features.sign() * features.abs().pow(power)


class Regression(NamedTuple):
    """A fitted logistic regression."""

    weight: Tensor  # (T, D), float64
    bias: Tensor  # (T,)
    loss: float  # the objective's value
    iterations: int


@dataclass(frozen=True)
class Logistic(Head):
    """Logistic regression on the labelled images, with the prior in place.

    Attributes:
        inverse_penalty: C > 0; 30 is from the ``linear probe`` figures of the design on EfficientNet-Lite0.
        length: > 0, of the features.
        power: in (0, 1]; 0.5 is Tukey's transform of features >= 0, as in Free Lunch (Yang et al. 2021).
        normalization: "each" gives every image's features the length; "mean" divides all by their mean length, which
            leaves the classifier linear in the features, so that training can go on from it.

    Raises:
        UserError: a number is out of range.
    """

    inverse_penalty: float = 30.0
    length: float = 5.0
    power: float = 1.0
    normalization: str = "each"

    name = "logistic"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("inverse_penalty", "length"):
            if not (isinstance(getattr(self, key), int | float) and 0 < getattr(self, key) < math.inf):
                raise UserError(f"expected a number {key} > 0, but got {getattr(self, key)!r}")
        if not (isinstance(self.power, int | float) and 0 < self.power <= 1):
            raise UserError(f"expected power in (0, 1], but got {self.power!r}")
        if self.normalization not in NORMALIZATIONS:
            raise unknown("normalization", self.normalization, NORMALIZATIONS)
        if self.normalization == "mean" and self.power != 1:
            raise UserError(f"expected power=1 with normalization=mean, but got {self.power}")

    def classifier(self, dim: int, classes: int) -> nn.Module:
        if self.normalization == "mean":
            return nn.Linear(dim, classes)
        return NormalizedLinear(dim, classes, self.length, self.power)

    def inputs(self, rows: Tensor) -> Tensor:
        """Return the features (N, D) of all labelled images as the regression sees them, float64."""
        if self.normalization == "each":
            return at_length(rows.double(), self.length, self.power)
        return rows.double() * self._scale(rows)

    def _scale(self, rows: Tensor) -> float:
        return self.length / max(float(rows.double().norm(dim=1).mean()), 1e-12)

    @torch.no_grad()
    def fit(self, trained: nn.Linear, given: HeadInputs) -> HeadFit:
        """Fit the regression to all labelled images.

        Raises:
            UserError: there is none, or features are not finite.
        """
        rows, labels, offset = labelled(given.features, given.prior)
        scale = 1.0 if self.normalization == "each" else self._scale(rows)
        found = regression(self.inputs(rows), labels, trained.out_features, offset, self.inverse_penalty)
        head = self.classifier(trained.in_features, trained.out_features).to(trained.weight.device)
        head.weight.copy_(found.weight * scale)  # type: ignore[operator, union-attr]
        head.bias.copy_(found.bias)  # type: ignore[operator, union-attr]
        return HeadFit(head, {"loss": found.loss, "iterations": found.iterations})


def labelled(features: FeatureSource, prior: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return features (N, D), labels (N,) and the prior's logits (N, T) of all processes' labelled images, on the CPU.

    Raises:
        UserError: there is none, or features are not finite.
    """
    batches = [(x, y, None if prior is None else prior(x)) for x, y in features.of("target")]
    if not batches:
        raise UserError("expected at least one batch of labelled target images, but got none")
    rows, labels = (gather_in_order(torch.cat([batch[k] for batch in batches])).cpu() for k in (0, 1))  # type: ignore[arg-type, misc]
    if not bool(rows.isfinite().all()):
        raise UserError("expected finite features of the target's images, but got others: lower optimizer.lr")
    if prior is None:
        return rows, labels, None
    return rows, labels, gather_in_order(torch.cat([each for _, _, each in batches if each is not None])).cpu()


def regression(
    rows: Tensor,
    labels: Tensor,
    classes: int,
    offset: Tensor | None = None,
    inverse_penalty: float = 30.0,
    tolerance: float = 1e-5,
) -> Regression:
    """Fit a multinomial logistic regression by L-BFGS.

    Args:
        rows: (N, D) float64.
        labels: (N,) in [0, T).
        classes: T.
        offset: (N, T) logits that are added; None: none.
        inverse_penalty: C > 0, of |W|^2 / 2C; the bias has |b|^2 / 2.
        tolerance: > 0, of the gradient's largest entry.
    """
    from scipy.optimize import minimize  # here: --help stays quick

    count, dim = rows.shape
    basis = None  # (D, N) orthonormal, of the span of the images: W = V basis'
    inner = rows
    if count < dim:
        basis, triangle = torch.linalg.qr(rows.t())
        inner = triangle.t()
    # The bias is the weight of a constant column, at which |b|^2 / 2 is |W|^2 / 2C too.
    column = 1 / math.sqrt(inverse_penalty)
    x = torch.cat([inner, inner.new_full((count, 1), column)], dim=1).numpy()  # (N, R + 1)
    y = labels.numpy()
    added = np.zeros((count, classes)) if offset is None else offset.double().numpy()
    at = (np.arange(count), y)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = flat.reshape(classes, -1)
        logits = x @ weight.T + added
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits)
        sums = shares.sum(axis=1)
        value = float(np.log(sums).sum() - logits[at].sum() + (flat @ flat) / (2 * inverse_penalty))
        shares /= sums[:, None]
        shares[at] -= 1
        return value, (shares.T @ x).ravel() + flat / inverse_penalty

    start = np.zeros(classes * x.shape[1])
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-12, "gtol": tolerance, "maxcor": 20}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    weight = torch.from_numpy(found.x.reshape(classes, -1))
    inside, bias = weight[:, :-1], weight[:, -1] * column
    return Regression(inside if basis is None else inside @ basis.t(), bias, float(found.fun), int(found.nit))


@torch.no_grad()
def alpha_nll(
    head: Logistic, rows: Tensor, labels: Tensor, log_q: Tensor, alphas: Sequence[float]
) -> dict[float, float]:
    """Return the mean negative log-likelihood of labelled images that are left out, at each weight of the prior.

    Each fold leaves out one image of every class that has two or more; the regression is fitted to the others. The
    likelihood is that at the best temperature: a regression on few images is less sure than it should be, and a larger
    weight of the prior would make up for that.

    Args:
        head: whose regression it is.
        rows: features (N, D).
        labels: (N,).
        log_q: (N, T).
        alphas: the candidates, >= 0.

    Returns:
        Nothing where no class has two images.
    """
    inputs, log_q = head.inputs(rows), log_q.double()
    counts = labels.bincount(minlength=log_q.shape[1])
    place = torch.zeros_like(labels)  # of each image among those of its class
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero()[:, 0]
        place[mine] = torch.arange(len(mine))
    folds = min(int(counts.max()), 5)
    if folds < 2:
        return {}
    left_out: dict[float, list[tuple[Tensor, Tensor]]] = {alpha: [] for alpha in alphas}
    for fold in range(folds):
        out = (place % folds == fold) & (counts[labels] >= 2)
        kept = ~out
        for alpha in alphas:
            offset = alpha * log_q[kept]
            fit = regression(inputs[kept], labels[kept], log_q.shape[1], offset, head.inverse_penalty, 1e-3)
            left_out[alpha].append((linear(inputs[out], fit.weight, fit.bias) + alpha * log_q[out], labels[out]))
    return {alpha: fit_temperature(batches).nll for alpha, batches in left_out.items()}
