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

LEAST_SHARE = 0.01  # of a source class that an explanation names
KEY = "model"  # of a checkpoint's hyper-parameters: what it says about its network


@dataclass(frozen=True)
class Description:
    """A checkpoint's description of its network: all that other programs need beside the weights.

    Attributes:
        trunk: its configuration, as ``conf/trunk`` has it; empty where it was made in Python.
        source, target: the classes of the heads, in order.
        image_size: the side of the images as the network sees them, in pixels.
        stored_size: the side at which files are read, >= image_size; the views are cut out of that.
        channels: 1 (grey) or 3 (RGB).
        fit: how an oblong image becomes a square: "crop", "squash" or "pad".
        views: what predictions were averaged over in its test: "none", "flip" or "ten_crop".
        white: the grey level that is white in grey images of more than 8 bits; None: as each file declares.
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
        """Return that of a network which learns the pair."""
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
    """A prediction, and the source classes that the prior reads it from."""

    probabilities: Tensor  # (K,)
    related: tuple[tuple[str, float], ...]  # the name and share of the most important ones, for the likeliest class


class Classifier(nn.Module):
    """Images -> probabilities of the classes, averaged over views of each image.

    Args:
        trunk: (B, 3, H, W) -> (B, D).
        head: (B, D) -> (B, K).
        classes: (K,) the names of the head's classes.
        reader: how a file becomes an image.
        views: what the network sees of it.
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
        """(B, channels, S, S) uint8, as the reader makes them -> (B, K) float32, rows that sum to one."""
        views = self.views(images)  # (B, V, C, H, W)
        logits = self.head(self.trunk(self.to_float(views.flatten(0, 1)))).float()
        return logits.softmax(1).unflatten(0, views.shape[:2]).mean(1)

    @torch.inference_mode()
    def predict(
        self, paths: Sequence[str | Path], batch_size: int = 64
    ) -> Iterator[tuple[str | Path, Tensor | BadImage]]:
        """Every file with its probabilities (K,) on the CPU, or with what is wrong with it; in the order given."""
        device = self.to_float.mean.device
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            for start in range(0, len(paths), batch_size):
                chunk = paths[start : start + batch_size]
                read = list(threads.map(self._read, chunk))
                images = [image for image in read if isinstance(image, Tensor)]
                found = iter(self(torch.stack(images).to(device)).cpu() if images else ())
                for path, image in zip(chunk, read, strict=True):
                    yield path, image if isinstance(image, BadImage) else next(found)

    @torch.inference_mode()
    def explain(
        self, paths: Sequence[str | Path], batch_size: int = 64, most: int = 3
    ) -> Iterator[tuple[str | Path, Explained | BadImage]]:
        """Yield every file with its prediction and the source classes behind it, or with the reason why it is broken.

        Args:
            paths: image files.
            batch_size: images at a time.
            most: how many source classes at most; those of a share below 1 % are left out.

        Raises:
            UserError: the head has no prior, so that it reads no source class.
        """
        head = self.head
        if not isinstance(head, Informed):
            raise UserError("expected a run with a prior (head.prior) to explain, but this one reads no source class")
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
