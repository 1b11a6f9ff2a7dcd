"""A trained network as a classifier: from image files to class probabilities."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jtln.data.files import BadImage, Reader
from jtln.data.pairs import PairSpec
from jtln.data.transforms import ToFloat, Views
from jtln.transport import TransportedPrior
from jtln.trunks.base import Trunk

KEY = "model"  # of a checkpoint's hyper-parameters: what it says about its network


@dataclass(frozen=True)
class Description:
    """What a checkpoint says about its network beside the weights: all that it takes to use it elsewhere.

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
    """

    def __init__(self, classifier: nn.Module, source_head: nn.Linear, prior: TransportedPrior) -> None:
        super().__init__()
        self.classifier, self.source_head, self.prior = classifier, source_head, prior

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(features) + self.prior(self.source_head(features))
        return logits


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

    def _read(self, path: str | Path) -> Tensor | BadImage:
        try:
            return self.reader(path)
        except BadImage as error:
            return error
