"""The classes of a network's own published classifier, as a source task without images."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from jtln.data.collections.base import Collection, classes_of
from jtln.data.files import Reader
from jtln.data.images import ImageSet
from jtln.errors import UserError
from jtln.names.class_set import ClassSet

AUTO, IMAGENET = "auto", "imagenet-1k"


class Classifier(Collection):
    """The classes of a published classifier, without images.

    Args:
        labels: "imagenet-1k"; another list of timm's ``ImageNetInfo`` ("imagenet-12k", "imagenet-21k",
            "imagenet-22k", ...); a CSV file with the columns class and synset in the classifier's order; or "auto":
            timm's list for ``network``, and "imagenet-1k" if timm has none.
        network: the trunk's name.
        temperature: > 0, divides the classifier's logits; a classifier trained with binary cross-entropies needs a
            value other than 1.

    Raises:
        UserError: there is no such list, or it needs timm, which is not installed.
    """

    name = "classifier"
    has_images = False

    def __init__(self, labels: str | Path = AUTO, network: str | None = None, temperature: float = 1.0) -> None:
        if not (isinstance(temperature, int | float) and 0 < temperature < float("inf")):
            raise UserError(f"expected a number > 0 for dataset.source.temperature, but got {temperature!r}")
        self.temperature = float(temperature)
        named = _subset_of(network) if str(labels) == AUTO else str(labels)
        if named == IMAGENET:
            self.classes = classes_of("imagenet")[0]
        elif named.endswith(".csv"):
            self.classes = ClassSet.from_csv(Path(named).expanduser())
        else:
            self.classes = _of_timm(named)
        self.classifier_classes = self.classes

    def parts(self, reader: Reader) -> dict[str, ImageSet]:
        return {}


@lru_cache(maxsize=8)
def _subset_of(network: str | None) -> str:
    """Return the list of classes that timm's weights of this network were trained on."""
    try:
        timm = import_module("timm")
        config = None if network is None else timm.get_pretrained_cfg(network, allow_unregistered=False)
    except (ImportError, RuntimeError, ValueError, KeyError):
        return IMAGENET
    subset = None if config is None else timm.data.infer_imagenet_subset(config.to_dict())
    return IMAGENET if subset is None else str(subset)


def _of_timm(named: str) -> ClassSet:
    try:
        data = import_module("timm.data")
    except ImportError as error:
        raise UserError(
            f"expected the package timm for the classes {named}, but it is not installed: pip install 'jtln[timm]'"
        ) from error
    try:
        info = data.ImageNetInfo(named)
    except (AssertionError, ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(
            f"expected {AUTO}, {IMAGENET}, another list of timm's ImageNetInfo (imagenet-12k, imagenet-21k, "
            f"imagenet-22k) or a CSV file for dataset.source.labels, but got {named!r}"
        ) from error
    synsets = info.label_names()
    names = [info.label_name_to_description(synset).partition(",")[0].strip() for synset in synsets]
    counts = Counter(names)
    unique = [name if counts[name] == 1 else f"{name} ({synset})" for name, synset in zip(names, synsets, strict=True)]
    return ClassSet(unique, synsets)
