"""The logistic head: multinomial logistic regression on the trained features, fitted to convergence.

    min over W, b of  sum_n CE(W x_n + b + alpha log q(x_n), y_n) + |W|^2 / 2C + |b|^2 / 2

x is the feature vector scaled to a fixed length, so that one C suits every network. The problem is convex. W lies in
the span of the labelled images, so the problem has at most as many dimensions as images.
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
        length: > 0, of the scaled features.
        power: in (0, 1], exponent of every feature's size before scaling; signs are kept.
    """

    def __init__(self, dim: int, classes: int, length: float = 5.0, power: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, dim), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(classes), requires_grad=False)
        self.length, self.power = length, power

    def forward(self, features: Tensor) -> Tensor:
        return linear(at_length(features, self.length, self.power), self.weight, self.bias)


def at_length(features: Tensor, length: float, power: float = 1.0) -> Tensor:
    """Return features (B, D) scaled to ``length``, with sizes first raised to ``power`` and signs kept."""
    return length * normalize(powered(features, power))


def powered(features: Tensor, power: float) -> Tensor:
    """Raise the size of every number to ``power``, and keep its sign."""
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
        inverse_penalty: C > 0; 30 was chosen on EfficientNet-Lite0's features.
        length: > 0, of the features.
        power: in (0, 1]; 0.5 is Tukey's transform of features >= 0, as in Free Lunch (Yang et al. 2021).
        normalization: "each" scales every image's features to the length; "mean" scales all by one factor to this mean
            length, which keeps the classifier linear in the features, so that training can continue from it.
        temperature: > 0, of the logits, for one label a class and no validation image, because a regression on few
            images is underconfident. With validation images, or with two labels of a class, the temperature is fitted
            on these; 0.5 is near the best at one label on Caltech-101 (0.4 to 0.5) and the pictograms (0.45 to 0.5).
            None: the logits are not scaled.

    Raises:
        UserError: a number is out of range.
    """

    inverse_penalty: float = 30.0
    length: float = 5.0
    power: float = 1.0
    normalization: str = "each"
    temperature: float | None = 0.5

    name = "logistic"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("inverse_penalty", "length"):
            if not (isinstance(getattr(self, key), int | float) and 0 < getattr(self, key) < math.inf):
                raise UserError(f"expected a number {key} > 0, but got {getattr(self, key)!r}")
        number = isinstance(self.temperature, int | float) and not isinstance(self.temperature, bool)
        if self.temperature is not None and not (number and 0 < self.temperature < math.inf):
            raise UserError(f"expected a number temperature > 0, or null, but got {self.temperature!r}")
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
        """Return the regression's inputs (N, D) float64 of all labelled images' features."""
        if self.normalization == "each":
            return at_length(rows.double(), self.length, self.power)
        return rows.double() * self._scale(rows)

    def _scale(self, rows: Tensor) -> float:
        return self.length / max(float(rows.double().norm(dim=1).mean()), 1e-12)

    @torch.no_grad()
    def fit(self, trained: nn.Linear, given: HeadInputs) -> HeadFit:
        """Fit the regression to all labelled images.

        Raises:
            UserError: there are none, or features are not finite.
        """
        rows, labels, offset = labelled(given.features, given.prior)
        scale = 1.0 if self.normalization == "each" else self._scale(rows)
        found = regression(self.inputs(rows), labels, trained.out_features, offset, self.inverse_penalty)
        head = self.classifier(trained.in_features, trained.out_features).to(trained.weight.device)
        head.weight.copy_(found.weight * scale)  # type: ignore[operator, union-attr]
        head.bias.copy_(found.bias)  # type: ignore[operator, union-attr]
        chosen = {"loss": found.loss, "iterations": float(found.iterations)}
        if self.temperature is None:
            return HeadFit(head, chosen)
        held_out = [
            (head(x).double() + (0 if given.prior is None else given.prior(x)), y)
            for x, y in given.features.of("target", "val")
        ] or left_out(self, rows, labels, trained.out_features, [offset])[0]
        tau = fit_temperature(held_out).temperature if held_out else self.temperature
        head.weight.div_(tau)  # type: ignore[operator, union-attr]
        head.bias.div_(tau)  # type: ignore[operator, union-attr]
        return HeadFit(head, chosen | {"temperature": tau}, tau)


def labelled(features: FeatureSource, prior: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return features (N, D), labels (N,) and the prior's logits (N, T) of all processes' labelled images, on the CPU.

    Raises:
        UserError: there are none, or features are not finite.
    """
    batches = [(x, y, None if prior is None else prior(x)) for x, y in features.of("target")]
    if not batches:
        raise UserError("expected at least one batch of labelled target images, but got none")
    rows, labels = (gather_in_order(torch.cat([batch[k] for batch in batches])).cpu() for k in (0, 1))  # type: ignore[arg-type, misc]
    if not bool(rows.isfinite().all()):
        raise UserError(
            "expected finite features of the target's images, but got infinite or NaN ones: lower optimizer.lr"
        )
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
    start: Regression | None = None,
) -> Regression:
    """Fit a multinomial logistic regression by L-BFGS.

    Args:
        rows: (N, D) float64.
        labels: (N,) in [0, T).
        classes: T.
        offset: (N, T) logits that are added; None: none.
        inverse_penalty: C > 0, of |W|^2 / 2C; the bias has |b|^2 / 2.
        tolerance: > 0, of the gradient's largest entry.
        start: of the iterations, fitted to the same rows; None: at zero.
    """
    from scipy.optimize import minimize  # Importing it here keeps --help fast.

    count, dim = rows.shape
    basis = None  # (D, N) orthonormal basis of the span of the images: W = V basis'
    inner = rows
    if count < dim:
        basis, triangle = torch.linalg.qr(rows.t())
        inner = triangle.t()
    # The bias is the weight of a constant column, whose size makes its penalty |b|^2 / 2.
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

    at_start = np.zeros(classes * x.shape[1])
    if start is not None:
        weight = start.weight if basis is None else start.weight @ basis
        at_start = torch.cat([weight, start.bias[:, None] / column], dim=1).numpy().ravel()
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-12, "gtol": tolerance, "maxcor": 20}
    found = minimize(objective, at_start, jac=True, method="L-BFGS-B", options=options)
    weight = torch.from_numpy(found.x.reshape(classes, -1))
    inside, bias = weight[:, :-1], weight[:, -1] * column
    return Regression(inside if basis is None else inside @ basis.t(), bias, float(found.fun), int(found.nit))


@torch.no_grad()
def left_out(
    head: Logistic, rows: Tensor, labels: Tensor, classes: int, offsets: Sequence[Tensor | None] = (None,)
) -> list[list[tuple[Tensor, Tensor]]]:
    """Return logits (M, T) and labels (M,) of labelled images left out of the regression, by offset and fold.

    Each fold leaves out one image, or with more than five a fifth of the images, of every class that has two or more.

    Args:
        head: whose regression it is.
        rows: features (N, D).
        labels: (N,).
        classes: T.
        offsets: each (N, T) logits that are added; None: none.

    Returns:
        For each offset a list of folds; empty if no class has two images.
    """
    inputs, counts = head.inputs(rows), labels.bincount(minlength=classes)
    place = torch.zeros_like(labels)  # index of each image within its class
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero()[:, 0]
        place[mine] = torch.arange(len(mine))
    folds = min(int(counts.max()), 5)
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in offsets]
    for fold in range(folds if folds > 1 else 0):
        out = (place % folds == fold) & (counts[labels] >= 2)
        fit = None
        for batches, offset in zip(found, offsets, strict=True):
            kept = None if offset is None else offset[~out]
            fit = regression(inputs[~out], labels[~out], classes, kept, head.inverse_penalty, 1e-3, fit)
            logits = linear(inputs[out], fit.weight, fit.bias)
            batches.append((logits if offset is None else logits + offset[out].double(), labels[out]))
    return found


@torch.no_grad()
def alpha_nll(
    head: Logistic, rows: Tensor, labels: Tensor, log_q: Tensor, alphas: Sequence[float]
) -> dict[float, float]:
    """Return the mean negative log-likelihood of left-out labelled images at each weight of the prior.

    It is taken at the best temperature: a regression on few images is underconfident, and without a temperature a
    larger weight of the prior would compensate for that.

    Args:
        head: whose regression it is.
        rows: features (N, D).
        labels: (N,).
        log_q: (N, T).
        alphas: the candidates, >= 0.

    Returns:
        alpha -> negative log-likelihood; empty if no class has two images.
    """
    batches = left_out(head, rows, labels, log_q.shape[1], [alpha * log_q for alpha in alphas])
    return {alpha: fit_temperature(each).nll for alpha, each in zip(alphas, batches, strict=True) if each}
