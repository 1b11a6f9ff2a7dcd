"""A tiny pair, a tiny trunk, and trainer settings for tests of whole trainings."""

from __future__ import annotations

from torch import nn

from jtln.data.pairs import Pair, PairSpec
from jtln.data.synthetic import synthetic_pair
from jtln.names.class_set import ClassSet
from jtln.training.trainer import TrainerSettings
from jtln.trunks.base import Trunk

CPU = TrainerSettings({"accelerator": "cpu", "devices": 1}, progress_bar=False)


class TinySpec(PairSpec):
    """Four source and three target classes of made 8 x 8 images; ``load`` makes four images a class and part."""

    name = "tiny"
    source_classes = ClassSet(["ant", "bee", "cat", "dog"])
    target_classes = ClassSet(["elk", "fox", "gnu"])
    image_size = 8
    channels = 3
    shots = 4
    flip = True
    shift = 1

    def load(self) -> Pair:
        return synthetic_pair(self, per_class=4)


def tiny_trunk(dropout: float = 0.0, dim: int = 6) -> Trunk:
    """(B, 3, 8, 8) -> (B, dim)"""
    body = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(48, dim), nn.Tanh())
    return Trunk(body, "tiny", dim, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
