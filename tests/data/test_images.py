import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from jtln.data.images import ArrayImages, ImageSet
from jtln.errors import UserError


def made(count: int = 7) -> ArrayImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 4, 5), generator=generator, dtype=torch.uint8)
    return ArrayImages(images, torch.arange(count) % 3, [f"image/{i}" for i in range(count)])


class OneByOne(ImageSet):
    """Like a set that reads files: only ``__getitem__`` is its own."""

    def __init__(self, array: ArrayImages) -> None:
        self.array = array
        self.labels = array.labels
        self.names = array.names

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.array[index]


def test_a_batch_is_its_items() -> None:
    images = made()
    for kind in (images, OneByOne(images)):
        batch, labels = kind.__getitems__([4, 0, 4])
        assert batch.shape == (3, 3, 4, 5)
        assert batch.dtype == torch.uint8
        assert labels.tolist() == [1, 0, 1]
        assert labels.dtype == torch.int64
        assert torch.equal(batch[1], images.images[0])


def test_a_subset_of_a_subset() -> None:
    images = made()
    for kind in (images, OneByOne(images)):
        part = kind.subset([5, 3, 1]).subset(torch.tensor([2, 0]))
        assert len(part) == 2
        assert part.names == ["image/1", "image/5"]
        assert part.labels.tolist() == [1, 2]
        assert torch.equal(part[1][0], images.images[5])
        assert torch.equal(part.__getitems__([0])[0][0], images.images[1])


def test_fingerprint_is_of_the_content() -> None:
    images = made()
    print_ = images.fingerprint()
    assert len(print_) == 32
    assert OneByOne(images).fingerprint() == print_
    assert ArrayImages(images.images, images.labels, list("abcdefg")).fingerprint() == print_
    other = images.images.clone()
    other[6, 2, 3, 4] ^= 1
    assert ArrayImages(other, images.labels, images.names).fingerprint() != print_
    assert ArrayImages(images.images, images.labels.flip(0), images.names).fingerprint() != print_
    assert images.subset([1, 0, 2, 3, 4, 5, 6]).fingerprint() != print_
    wide = images.images.transpose(2, 3).reshape(7, 3, 5, 4)
    assert ArrayImages(wide, images.labels, images.names).fingerprint() != print_


def test_a_dataloader_fetches_whole_batches() -> None:
    images = made()
    batches = list(DataLoader(images, batch_size=4, collate_fn=lambda batch: batch))
    assert [len(labels) for _, labels in batches] == [4, 3]
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), images.images)


def test_wrong_arrays_are_refused() -> None:
    images = made()
    with pytest.raises(UserError, match="uint8"):
        ArrayImages(images.images.float(), images.labels, images.names)
    with pytest.raises(UserError, match=r"\(N, 1 or 3, H, W\)"):
        ArrayImages(images.images[0], images.labels, images.names)
    with pytest.raises(UserError, match=r"7 .* 7 .* 6 "):
        ArrayImages(images.images, images.labels, images.names[1:])


def test_a_subset_with_other_labels() -> None:
    images = made()
    for kind in (images, OneByOne(images)):
        part = kind.subset((i for i in (5, 3, 1)), torch.tensor([9, 8, 7], dtype=torch.int32))
        assert part.labels.tolist() == [9, 8, 7]
        assert part.labels.dtype == torch.int64
        assert part[1][1] == 8
        pixels, labels = part.subset([2, 0]).__getitems__([1, 0])
        assert labels.tolist() == [9, 7]
        assert torch.equal(pixels, images.images[[5, 1]])
        assert kind.labels[5] == 2
        with pytest.raises(UserError, match="label"):
            kind.subset([0, 1], torch.tensor([1]))


def test_which_sets_are_in_memory() -> None:
    images = made()
    assert images.in_memory
    assert images.subset([1]).in_memory
    assert not OneByOne(images).in_memory
    assert not OneByOne(images).subset([1]).in_memory
