import torch
from tiny import TinySpec

from jtln.data.pairs import PairSpec
from jtln.data.synthetic import EVALUATED, synthetic_pair
from jtln.names.class_set import ClassSet


class Large(TinySpec):
    """As many classes as ImageNet, at its size, which do not fit into memory at once."""

    source_classes = ClassSet([f"class {index}" for index in range(1000)])
    image_size = 224
    stored_size = 256  # type: ignore[assignment]


def test_it_looks_like_its_spec(tiny: PairSpec) -> None:
    pair = synthetic_pair(tiny, per_class=3)
    assert (pair.target.classes, pair.source.classes) == (tiny.target_classes, tiny.source_classes)
    for images in (pair.source.train, pair.source.val, pair.source.test):
        assert images[0][0].shape == (3, 8, 8)
        assert images[0][0].dtype == torch.uint8
        assert images.labels.bincount().tolist() == [3] * 4
    names = [n for task in (pair.source, pair.target) for part in (task.train, task.val, task.test) for n in part.names]
    assert len(set(names)) == len(names)


def test_classes_have_colours_of_their_own_and_images_differ(tiny: PairSpec) -> None:
    train = synthetic_pair(tiny, per_class=3).target.train
    images, labels = train.__getitems__(list(range(9)))
    means = torch.stack([images[labels == label].float().mean((0, 2, 3)) for label in range(3)])  # (3, C)
    assert torch.pdist(means).min() > 10
    assert len({image.numpy().tobytes() for image in images}) == 9
    parts = synthetic_pair(tiny).target
    assert not torch.equal(parts.train[0][0], parts.test[0][0])


def test_it_is_the_same_each_time(tiny: PairSpec) -> None:
    first, again, other = synthetic_pair(tiny), synthetic_pair(tiny), synthetic_pair(tiny, seed=1)
    assert torch.equal(first.source.val[3][0], again.source.val[3][0])
    assert first.source.train.fingerprint() == again.source.train.fingerprint()
    assert first.source.train.fingerprint() != other.source.train.fingerprint()


def test_many_large_images_are_made_when_they_are_asked_for() -> None:
    pair = synthetic_pair(Large())
    assert (len(pair.source.train), len(pair.source.val), pair.image_size) == (2000, 2 * EVALUATED, 224)
    assert pair.source.train[1999][0].shape == (3, 256, 256)
    assert pair.source.train.labels.bincount().tolist() == [2] * 1000
    pair.source.train.fingerprint()
