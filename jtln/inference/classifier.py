"""A trained network as a classifier: from image files to class probabilities."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jtln.data.files import BadImage, Reader
from jtln.data.pairs import PairSpec
from jtln.data.transforms import ToFloat, Views
from jtln.errors import UserError
from jtln.transport import TransportedPrior
from jtln.trunks.base import Trunk

LEAST_SHARE = 0.01  # smallest share of a source class in an explanation
KEY = "model"  # key of the network's description in a checkpoint's hyper-parameters


@dataclass(frozen=True)
class Description:
    """A checkpoint's description of its network: all that other programs need besides the weights.

    Attributes:
        trunk: its configuration, as in ``conf/trunk``; empty if it was made in Python.
        source, target: the classes of the heads, in order.
        image_size: the side of the network's input images, in pixels.
        stored_size: the side at which files are read, >= image_size; views are crops of that image.
        channels: 1 (grey) or 3 (RGB).
        fit: how an oblong image becomes a square: "crop", "squash" or "pad".
        views: the views over which the test averaged predictions: "none", "flip" or "ten_crop".
        white: the white level of grey images of more than 8 bits; None: as each file declares.
    """

    trunk: dict[str, Any]
    source: list[str]
    target: list[str]
    image_size: int
    stored_size: int
    channels: int
    fit: str
    views: str
    white: float | None = None

    @classmethod
    def of(cls, spec: PairSpec, trunk: dict[str, Any], views: str, white: float | None = None) -> Description:
        """Return the description of a network that is trained on the pair."""
        return cls(
            trunk,
            list(spec.source_classes.names),
            list(spec.target_classes.names),
            spec.image_size,
            spec.stored_size,
            spec.channels,
            spec.fit,
            views,
            white,
        )


class Informed(nn.Module):
    """A target head with the transported prior: features (B, D) -> logits (B, T).

    Args:
        classifier: D -> T.
        source_head: D -> S.
        prior: alpha log q.
        source_classes: (S,) the names of the source head's classes.
    """

    def __init__(
        self, classifier: nn.Module, source_head: nn.Linear, prior: TransportedPrior, source_classes: Sequence[str]
    ) -> None:
        super().__init__()
        self.classifier, self.source_head, self.prior = classifier, source_head, prior
        self.source_classes = tuple(source_classes)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(features) + self.prior(self.source_head(features))
        return logits

    def shares(self, features: Tensor) -> Tensor:
        """Return what each source class contributes to q(x): s_i(x) R_ij / q_j(x), (B, D) -> (B, S, T)."""
        terms = self.prior.source_probabilities(self.source_head(features))[:, :, None] * self.prior.rows
        return terms / terms.sum(1, keepdim=True).clamp_min(1e-30)


class Explained(NamedTuple):
    """A prediction, and the source classes with the largest shares in its prior."""

    probabilities: Tensor  # (K,)
    related: tuple[tuple[str, float], ...]  # names and shares of the source classes, for the predicted class


class Classifier(nn.Module):
    """Images -> probabilities of the classes, averaged over views of each image.

    Args:
        trunk: (B, 3, H, W) -> (B, D).
        head: (B, D) -> (B, K).
        classes: (K,) the names of the head's classes.
        reader: decodes the image files.
        views: of each image, as network input.
    """

    def __init__(self, trunk: Trunk, head: nn.Module, classes: Sequence[str], reader: Reader, views: Views) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.classes = tuple(classes)
        self.reader = reader
        self.views = views
        self.to_float = ToFloat(trunk.mean, trunk.std)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities (B, K) float32, rows sum to 1, of the reader's images (B, channels, S, S) uint8."""
        views = self.views(images)  # (B, V, C, H, W)
        logits = self.head(self.trunk(self.to_float(views.flatten(0, 1)))).float()
        return logits.softmax(1).unflatten(0, views.shape[:2]).mean(1)

    @torch.inference_mode()
    def predict(
        self, paths: Sequence[str | Path], batch_size: int = 64
    ) -> Iterator[tuple[str | Path, Tensor | BadImage]]:
        """Yield every file with its probabilities (K,) on the CPU, or with its error, in the given order.

        Raises:
            UserError: the network's probabilities of an image are not finite.
        """
        device = self.to_float.mean.device
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            for start in range(0, len(paths), batch_size):
                chunk = paths[start : start + batch_size]
                read = list(threads.map(self._read, chunk))
                images = [image for image in read if isinstance(image, Tensor)]
                found = iter(self(torch.stack(images).to(device)).cpu() if images else ())
                for path, image in zip(chunk, read, strict=True):
                    if isinstance(image, BadImage):
                        yield path, image
                        continue
                    probabilities = next(found)
                    if not bool(probabilities.isfinite().all()):
                        raise UserError(
                            f"expected finite probabilities of {path}, but got others: the network's weights are too "
                            "large, because its training diverged; train it again with a lower learning rate"
                        )
                    yield path, probabilities

    @torch.inference_mode()
    def explain(
        self, paths: Sequence[str | Path], batch_size: int = 64, most: int = 3
    ) -> Iterator[tuple[str | Path, Explained | BadImage]]:
        """Yield every file with its prediction and the source classes of its prior, or with its error.

        Args:
            paths: image files.
            batch_size: images at a time.
            most: the largest number of source classes; those with a share below 1 % are left out.

        Raises:
            UserError: the head has no prior.
        """
        head = self.head
        if not isinstance(head, Informed):
            raise UserError("expected a run with a prior (head.prior) to explain, but this one has none")
        for path, probabilities in self.predict(paths, batch_size):
            if isinstance(probabilities, BadImage):
                yield path, probabilities
                continue
            image = self.reader(path)[None].to(self.to_float.mean.device)
            features = self.trunk(self.to_float(self.views(image).flatten(0, 1)))
            shares = head.shares(features).mean(0)[:, int(probabilities.argmax())]  # (S,)
            best = shares.topk(min(most, len(shares)))
            found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            related = tuple((head.source_classes[i], share) for i, share in found if share >= LEAST_SHARE)
            yield path, Explained(probabilities, related)

    def _read(self, path: str | Path) -> Tensor | BadImage:
        try:
            return self.reader(path)
        except BadImage as error:
            return error
