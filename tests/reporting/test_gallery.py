"""The gallery: which images are chosen, what they look like, and how much a page holds of them."""

from __future__ import annotations

import base64
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from jtln.data.images import ArrayImages
from jtln.names.class_set import ClassSet
from jtln.reporting import gallery as module
from jtln.reporting.gallery import MOST_CLASSES, MOST_IMAGES, SIDE, Gallery, make_gallery, thumbnail
from jtln.reporting.predictions import Predictions
from jtln.reporting.run_page import write_report

SIZE = 16
RELATED = {"fox": [("dog", 0.613), ("cat", 0.22)]}


def images(labels: list[int], part: str, size: int = SIZE) -> ArrayImages:
    """One image a label, each of other pixels."""
    pixels = torch.randint(0, 256, (len(labels), 3, size, size), generator=torch.Generator().manual_seed(len(part)))
    return ArrayImages(pixels.to(torch.uint8), torch.tensor(labels), [f"{part}/{i}.png" for i in range(len(labels))])


def predictions(labels: list[int], classes: int, right: float = 0.6) -> Predictions:
    generator = np.random.default_rng(3)
    label = np.array(labels, dtype=np.int32)
    other = (label + generator.integers(1, classes, len(label))) % classes
    predicted = np.where(generator.uniform(size=len(label)) < right, label, other).astype(np.int32)
    figures = generator.uniform(0.2, 1, (2, len(label))).astype(np.float32)
    return Predictions(label, predicted, figures[0], figures[1])


def made(classes: int = 3, per_class: int = 40, size: int = SIZE) -> tuple[Gallery, ArrayImages, Predictions, ClassSet]:
    names = ClassSet(["elk", "fox", "gnu", *(f"class {i}" for i in range(3, classes))][:classes])
    labels = [index % classes for index in range(classes * per_class)]
    test, found = images(labels, "test", size), predictions(labels, classes)
    labelled = images([index % classes for index in range(7 * classes)], "train", size)
    return make_gallery(names, labelled, test, found, RELATED), test, found, names


def opened(uri: str) -> Image.Image:
    kind, _, content = uri.partition(";base64,")
    image = Image.open(BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{str(image.format).lower()}"
    return image


def test_the_most_confident_right_and_wrong_images_of_each_class() -> None:
    gallery, test, found, classes = made()
    assert {card.name for card in gallery.cards} == set(classes.names)
    for card in gallery.cards:
        label = classes.names.index(card.name)
        labelled, right, wrong = card.shelves
        assert [image.name for image in labelled.images] == [f"train/{label + 3 * i}.png" for i in range(MOST_IMAGES)]
        assert (labelled.more, {image.confidence for image in labelled.images}) == (7 - MOST_IMAGES, {None})
        everything = [(i, float(found.confidence[i]), int(found.predicted[i])) for i in range(len(test))]
        own = [each for each in everything if found.label[each[0]] == label]
        for shelf, those in (
            (right, [each for each in own if each[2] == label]),
            (wrong, [each for each in own if each[2] != label]),
        ):
            best = sorted(those, key=lambda each: -each[1])[:MOST_IMAGES]
            assert [image.name for image in shelf.images] == [test.names[index] for index, _, _ in best]
            assert [image.confidence for image in shelf.images] == [confidence for _, confidence, _ in best]
            mistaken = [None if predicted == label else classes.names[predicted] for _, _, predicted in best]
            assert [image.mistaken_for for image in shelf.images] == mistaken
            assert shelf.more == len(those) - len(best)
            for image, (index, _, _) in zip(shelf.images, best, strict=True):
                pixels = np.asarray(opened(image.uri))
                assert np.array_equal(pixels, test.images[index].permute(1, 2, 0).numpy())
        assert card.tested == len(own) == 40
        assert card.right == sum(predicted == label for _, _, predicted in own)
        assert card.interval == pytest.approx(binomtest(card.right, 40).proportion_ci(method="wilson"))


def test_of_many_classes_those_with_the_lowest_accuracies() -> None:
    gallery, _, found, classes = made(classes=40, per_class=9)
    accuracies = [float(found.right[found.label == label].mean()) for label in range(40)]
    order = sorted(range(40), key=lambda label: accuracies[label])
    assert [card.name for card in gallery.cards] == [classes.names[label] for label in order[:MOST_CLASSES]]
    assert [card.accuracy for card in gallery.cards] == [accuracies[label] for label in order[:MOST_CLASSES]]
    assert gallery.classes == 40


def test_a_class_without_test_images_comes_last() -> None:
    classes, found = ClassSet(["elk", "fox"]), predictions([1] * 6, 2, right=1.0)
    gallery = make_gallery(classes, images([0, 1], "train"), images([1] * 6, "test"), found, {})
    assert [(card.name, card.accuracy) for card in gallery.cards] == [("fox", 1.0), ("elk", None)]
    assert [shelf.images for shelf in gallery.cards[1].shelves[1:]] == [(), ()]


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 40, 40), (3, 200, 100), (1, 64, 64)])
def test_thumbnails(channels: int, height: int, width: int) -> None:
    """Small images keep every pixel; of large ones a smooth picture survives reduction and JPEG."""
    rows = torch.linspace(0, 255, height)[None, :, None].expand(channels, height, width)
    pixels = rows.round().to(torch.uint8)
    image = opened(thumbnail(pixels))
    assert max(image.size) <= max(SIDE, 40)
    assert image.size[0] * height == image.size[1] * width
    assert image.mode == ("L" if channels == 1 else "RGB")
    found = np.asarray(image).reshape(*image.size[::-1], channels)
    if max(height, width) <= 40:
        assert np.array_equal(found, pixels.permute(1, 2, 0).numpy())
    else:
        expected = np.interp((np.arange(len(found)) + 0.5) * height / len(found) - 0.5, range(height), rows[0, :, 0])
        assert np.abs(found[..., 0].mean(1) - expected).max() < 4


def test_a_page_has_room_for_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise, which no format compresses, in as many classes and images as a gallery takes."""
    whole = made(classes=MOST_CLASSES + 1, per_class=20, size=SIDE)[0]
    assert whole.size <= module.MOST_BYTES
    assert whole.size == sum(len(i.uri) for card in whole.cards for shelf in card.shelves for i in shelf.images)
    monkeypatch.setattr(module, "MOST_BYTES", whole.size // 2)
    half = made(classes=MOST_CLASSES + 1, per_class=20, size=SIDE)[0]
    assert half.size <= whole.size // 2
    assert half.cards == whole.cards[: len(half.cards)]
    assert 0 < len(half.cards) < len(whole.cards)


class Articles(HTMLParser):
    """The words and the images of each class on a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.images, self.within = list[str](), list[dict[str, str | None]](), False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "article":
            self.words.append("")
            self.within = True
        if tag == "img" and self.within:
            self.images.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self.within = self.within and tag != "article"

    def handle_data(self, data: str) -> None:
        if self.within:
            self.words[-1] = " ".join(f"{self.words[-1]} {data}".split())


def test_the_page(tmp_path: Path) -> None:
    gallery, _, _, _ = made()
    page = Articles(write_report(tmp_path, {"dataset": "toys"}, gallery).read_text(encoding="utf-8"))
    assert len(page.words) == 3
    for words, card in zip(page.words, gallery.cards, strict=True):
        low, high = card.interval
        share = f"{card.right} of 40 right: {card.right / 40:.1%} (95% interval {100 * low:.1f}–{high:.1%})"
        assert words.startswith(f"{card.name} {share}")
        assert ("related: dog 0.61, cat 0.22" in words) == (card.name == "fox")
        for shelf in card.shelves:
            number = len(shelf.images)
            counted = f" ({number} of {number + shelf.more})" if shelf.more else ""
            shown = [f"{i.mistaken_for} {i.confidence:.2f}" for i in shelf.images if i.mistaken_for]
            assert f"{shelf.title}{counted} {' '.join(shown)}".strip() in words
    shown = [image for card in gallery.cards for shelf in card.shelves for image in shelf.images]
    assert [(image["src"], image["alt"]) for image in page.images] == [(image.uri, image.name) for image in shown]


def test_names_are_escaped_and_need_not_be_text(tmp_path: Path) -> None:
    gallery = made()[0]
    card = replace(gallery.cards[0], name='<b>"&caf\udce9')
    html = write_report(tmp_path, {}, replace(gallery, cards=(card,))).read_text(encoding="utf-8")
    assert "<b>" not in html
    assert Articles(html).words[0].startswith('<b>"&caf\\udce9 ')
