from collections.abc import Callable

import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as v2

from jtln.data.transforms import (
    VIEWS,
    Augment,
    CentreCrop,
    ToFloat,
    Views,
    crop_by_products,
    move,
    random_boxes,
    resized_crop,
)
from jtln.errors import UserError


def numbered(count: int = 4) -> torch.Tensor:
    """(count, 3, 5, 6) uint8 in which every pixel of an image differs from the others."""
    return torch.arange(count * 90).reshape(count, 3, 5, 6).remainder(251).to(torch.uint8)


def test_to_float_by_hand() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    out = ToFloat(mean=(0.0, 0.2, 0.5), std=(1.0, 0.1, 0.25))(images)
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == pytest.approx([0, 0, 2])


def test_grey_is_repeated() -> None:
    out = ToFloat(mean=(0, 0, 0), std=(1, 1, 1))(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8))
    assert torch.equal(out, torch.ones(2, 3, 4, 4))


def test_to_float_adds_nothing_to_a_checkpoint() -> None:
    assert not ToFloat().state_dict()


def test_move_is_a_roll_with_the_border_repeated() -> None:
    images = numbered()
    down, right = torch.tensor([0, 2, -1, 0]), torch.tensor([0, 0, 3, -2])
    out = move(images, down, right)
    assert torch.equal(out[0], images[0])
    assert torch.equal(out[1, :, 2:], images[1].roll(2, dims=1)[:, 2:])
    assert torch.equal(out[1, :, :2], images[1, :, :1].expand(3, 2, 6))
    assert torch.equal(out[2, :, :4, 3:], images[2].roll((-1, 3), dims=(1, 2))[:, :4, 3:])
    assert torch.equal(out[2, :, 4, 3:], images[2, :, 4, :3])
    assert torch.equal(out[2, :, :4, :3], images[2, :, 1:, :1].expand(3, 4, 3))
    assert torch.equal(out[3, :, :, :4], images[3].roll(-2, dims=2)[:, :, :4])
    assert torch.equal(out[3, :, :, 4:], images[3, :, :, 5:].expand(3, 5, 2))


def test_mirrored_images_are_moved_first() -> None:
    images = numbered()
    zero, one = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    mirrored = torch.tensor([True, False, True, False])
    out = move(images, zero, zero, mirrored)
    assert torch.equal(out[mirrored], images[mirrored].flip(3))
    assert torch.equal(out[~mirrored], images[~mirrored])
    assert torch.equal(move(images, zero, one, ~(mirrored & False)), move(images, zero, one).flip(3))


def test_each_image_draws_its_own() -> None:
    image = numbered(1)
    torch.manual_seed(0)
    out = Augment(flip=True, shift=2)(image.expand(2000, -1, -1, -1))
    assert out.dtype == torch.uint8
    candidates = {
        move(image, torch.tensor([dy]), torch.tensor([dx]), torch.tensor([flip])).numpy().tobytes()
        for dy in range(-2, 3)
        for dx in range(-2, 3)
        for flip in (False, True)
    }
    assert len(candidates) == 50
    assert {moved.numpy().tobytes() for moved in out} == candidates


def test_nothing_asked_nothing_done() -> None:
    images = numbered()
    assert torch.equal(Augment(flip=False, shift=0)(images), images)


def test_the_seed_decides() -> None:
    torch.manual_seed(3)
    first = Augment()(numbered())
    torch.manual_seed(3)
    assert torch.equal(Augment()(numbered()), first)


@pytest.mark.parametrize("crop", [resized_crop, crop_by_products])
@pytest.mark.parametrize(("side", "size"), [(24, 24), (40, 16), (20, 33)])
def test_resized_crop_is_torchvisions(crop: Callable, side: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, side, side + 5), generator=generator, dtype=torch.uint8)
    boxes = torch.tensor(
        [
            [0, 0, side, side + 5],
            [3, 1, 7, 13],
            [side - 9, side - 6, 9, 11],
            [5, 5, 1, 1],
            [2, 4, size // 2, size // 2],
            [0, 2, 10, 4],
        ]
    )
    got = crop(images, boxes, size)
    assert got.dtype == torch.uint8
    for image, box, one in zip(images, boxes.tolist(), got, strict=True):
        wanted = v2.resized_crop(image.float(), *box, [size, size], antialias=True)
        assert (one.float() - wanted).abs().max() <= 1.01  # rounding of the byte kernel, of rows and of columns
    exact = crop(images.double().float(), boxes, size)
    wanted = v2.resized_crop(images[1:2].float(), *boxes[1].tolist(), [size, size], antialias=True)
    assert torch.allclose(exact[1:2], wanted, atol=1e-3)


def test_boxes_are_drawn_as_torchvisions() -> None:
    torch.manual_seed(0)
    mine = random_boxes(6000, (60, 80), 0.2).float()
    image = torch.zeros(1, 60, 80)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.2, 1], [3 / 4, 4 / 3]) for _ in range(6000)]).float()
    top, left, height, width = mine.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 60).all()
    assert (left + width <= 80).all()
    for column in range(4):
        assert ks_2samp(mine[:, column].numpy(), theirs[:, column].numpy()).pvalue > 1e-3
    assert ks_2samp((width / height).numpy(), (theirs[:, 3] / theirs[:, 2]).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("sides", "box"), [((10, 100), [0, 43, 10, 13]), ((100, 10), [43, 0, 13, 10])])
def test_where_no_box_fits_the_middle_is_taken(sides: tuple[int, int], box: list[int]) -> None:
    assert random_boxes(3, sides, 1.0).tolist() == [box] * 3


def test_augment_crops_each_image_for_itself() -> None:
    image = torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.uint8)
    torch.manual_seed(0)
    out = Augment(flip=True, shift=0, crop=0.3, size=16)(image.expand(50, -1, -1, -1))
    assert out.shape == (50, 3, 16, 16)
    assert out.dtype == torch.uint8
    assert len({one.numpy().tobytes() for one in out}) > 45
    torch.manual_seed(0)
    assert torch.equal(Augment(flip=True, shift=0, crop=0.3, size=16)(image.expand(50, -1, -1, -1)), out)
    assert Augment(crop=0.3)(image).shape == (1, 3, 20, 20)


def test_augment_cuts_out_a_square() -> None:
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    torch.manual_seed(0)
    out = Augment(flip=False, shift=0, size=6)(image.expand(300, -1, -1, -1))
    squares = {image[0, :, i : i + 6, j : j + 6].contiguous().numpy().tobytes() for i in range(3) for j in range(3)}
    assert {one.contiguous().numpy().tobytes() for one in out} == squares


def test_an_augmentation_describes_itself() -> None:
    settings = [{}, {"flip": False}, {"shift": 1}, {"crop": 0.5}, {"size": 8}]
    assert len({repr(Augment(**each)) for each in settings}) == len(settings)


def test_views() -> None:
    images = numbered()  # (4, 3, 5, 6)
    middle = images[:, :, 0:4, 1:5]
    assert torch.equal(CentreCrop(4)(images), v2.center_crop(images, [4, 4]))
    for kind, count in VIEWS.items():
        views = Views(kind, 4)
        out = views(images)
        assert out.shape == (4, count, 3, 4, 4)
        assert len(views) == count
    assert torch.equal(CentreCrop(4)(images), middle)
    flipped = Views("flip", 4)(images)
    assert torch.equal(flipped[:, 0], middle)
    assert torch.equal(flipped[:, 1], middle.flip(-1))
    ten = Views("ten_crop", 4)(images)
    corners = [images[:, :, i : i + 4, j : j + 4] for i in (0, 1) for j in (0, 2)]
    for view in (*corners, middle):
        for one in (view, view.flip(-1)):
            assert sum(torch.equal(ten[:, v], one) for v in range(10)) >= 1


def test_senseless_settings() -> None:
    with pytest.raises(UserError, match=r"\(0, 1\].*1\.5"):
        Augment(crop=1.5)
    with pytest.raises(UserError, match=r"'five_crop'.*ten_crop"):
        Views("five_crop", 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    images = numbered().cuda()
    assert ToFloat()(Augment()(images)).device == images.device
    down = torch.tensor([0, 2, -1, 0])
    assert torch.equal(move(images, down.cuda(), down.cuda()).cpu(), move(numbered(), down, down))
    boxes = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 3], [2, 0, 2, 5], [4, 5, 1, 1]])
    on_cpu = resized_crop(numbered(), boxes, 7)
    assert (resized_crop(images, boxes, 7).cpu().int() - on_cpu.int()).abs().max() <= 1
    assert Augment(crop=0.3, size=4)(images).device == images.device
    assert Views("ten_crop", 4)(images).device == images.device
